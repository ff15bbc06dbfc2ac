"""Plays a story of events under a playbook, without database, people or clock of the machine. Pure.

Time passes only when the story says so; what comes due meanwhile fires in its order, as in life. There is no
roster here: a deadline in working hours counts those given for its role, else it is as long as on the wall;
a step tells a role, not a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from services.contracts.events import SOURCE, LeadEvent, rfc3339
from services.contracts.published import Score
from services.contracts.team import Person
from services.stage_service import clocks, funnel
from services.stage_service.clocks import Ticking, Wanted
from services.stage_service.funnel import Journey, Lead, Move, active_at
from services.stage_service.offers import Handed
from services.stage_service.playbook import Playbook

RINGS_MAX = 10_000
"""A story that lets more clocks ring than this has a mistake in it."""


class Ringing(NamedTuple):
    """A step that fired: of which clock, what (``remind``, ``due``, ``escalate``), for whom, and when."""

    playbook: str
    clock: str
    step: str
    to: str
    at: datetime


class Rehearsal:
    """One lead's story. Events are told in the order of their times.

    `hours` has, by role, somebody in whose working hours its deadlines run.
    """

    def __init__(
        self, playbooks: Mapping[str, Playbook], hours: Mapping[str, Person] | None = None
    ) -> None:
        self.playbooks = playbooks
        self._hours = hours or {}
        self.lead: Lead | None = None
        self.moves: list[Move] = []
        self.handed: list[Handed] = []
        self.rings: list[Ringing] = []
        self.now: datetime | None = None
        self._running: dict[tuple[str, str], tuple[Wanted, Ticking]] = {}

    def tell(self, event: LeadEvent) -> None:
        """Let time pass until `event`, and fold it. Raises ValueError for one before the present."""
        self.wait_until(event.time)
        self._fold(event)

    def wait_until(self, moment: datetime) -> None:
        """Let time pass, and fire what comes due. Raises ValueError for the past."""
        if self.now is not None and moment < self.now:
            raise ValueError(f"{rfc3339(moment)} is before {rfc3339(self.now)}, where the story is")
        while (due := self._next_due(moment)) is not None:
            if len(self.rings) >= RINGS_MAX:
                raise ValueError(f"more than {RINGS_MAX} clocks rang")
            self._ring(*due)
        self.now = moment

    def journey(self, playbook: str, key: str) -> Journey | None:
        """Give a journey as it stands; None before its first event."""
        name = funnel.journey_name(playbook, key)
        return self.lead.journeys.get(name) if self.lead is not None else None

    def clocks_of(self, playbook: str, key: str) -> dict[str, Ticking]:
        """Give the clocks that run for a journey, by their keys."""
        name = funnel.journey_name(playbook, key)
        return {clock: t for (journey, clock), (_, t) in self._running.items() if journey == name}

    def alerts(self, playbook: str, key: str) -> list[str]:
        """Give the roles that the journey's moves alerted, in order."""
        told: list[str] = []
        stages = self.playbooks[playbook].stages
        for move in self.moves:
            if (move.playbook, move.key) == (playbook, key):
                roles = stages[move.to_stage].alerts
                if move.offer is not None and move.role not in roles:
                    roles = (*roles, move.role)
                told += roles
        return told

    def score(self, playbook: str) -> Score:
        """Give the score at the present moment of the story."""
        if self.lead is None or self.now is None:
            return Score(0, 0, 0)
        return funnel.score_of(self.lead, self.playbooks[playbook], self.now)

    def _fold(self, event: LeadEvent) -> None:
        folded = funnel.fold(self.playbooks, self.lead, event)
        self.lead = folded.lead
        self.moves += folded.moves
        self.handed += folded.handed
        self.now = event.time
        for name, journey in folded.lead.journeys.items():
            self._wind(name, journey, event.time)

    def _wind(self, name: str, journey: Journey, now: datetime) -> None:
        """Let the clocks run that the journey has now, and no other."""
        assert self.lead is not None  # noqa: S101  it has just been folded
        playbook = self.playbooks.get(journey.playbook)
        if playbook is None:
            return  # begun by a late event, which was recorded when there was another playbook
        offer = journey.offer
        wanted = clocks.wanted(
            playbook, journey.stage, journey.entered_at,
            active_at(self.lead, journey), offer, offer.name if offer is not None else None,
        )  # fmt: skip
        for place in [p for p in self._running if p[0] == name and p[1] not in wanted]:
            del self._running[place]
        for key, want in wanted.items():
            known = self._running.get((name, key))
            if known is None or known[0] != want:
                person = self._hours.get(want.role)
                self._running[name, key] = (want, clocks.wound(name, want, person, now))

    def _next_due(self, until: datetime) -> tuple[str, str, datetime] | None:
        due = [
            (ticking.due_at, name, key)
            for (name, key), (_, ticking) in self._running.items()
            if ticking.due_at is not None and ticking.due_at <= until
        ]
        if not due:
            return None
        moment, name, key = min(due)
        return name, key, moment

    def _ring(self, name: str, key: str, moment: datetime) -> None:
        want, ticking = self._running[name, key]
        assert self.lead is not None  # noqa: S101  a clock runs for a lead
        journey = self.lead.journeys[name]
        steps = clocks.steps_of(want.plan)
        step = steps[ticking.step]
        self.rings.append(Ringing(journey.playbook, key, step.kind, step.to, moment))
        person = self._hours.get(want.role)
        after = clocks.struck(ticking, want.plan, ticking.step, ticking.since, person)
        self._running[name, key] = (want, after)
        data = {
            "clock": key, "kind": want.kind, "playbook": journey.playbook, "stage": want.stage,
            "role": want.role, "since": rfc3339(want.since), "deadline": rfc3339(ticking.deadline),
            "step": step.name, "round": journey.offer.round if journey.offer is not None else None,
        }  # fmt: skip
        self._fold(LeadEvent(
            clocks.event_id(ticking.id, want.since, step.name), SOURCE, clocks.EVENT_TYPES[step.kind],
            moment, moment, None, (), journey.key, data, {},
        ))  # fmt: skip
