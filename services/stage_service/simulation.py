"""What a candidate playbook would have made of real history, beside what happened. Pure.

A lead's stored events are folded again under the candidate; what came of them is compared with the moves that
were recorded. What clocks fired then is left out: it was another playbook's deadline; a candidate
whose rules ask for clocks has its own fire. Tallies of many leads add up in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import msgspec

from services.contracts.events import LeadEvent
from services.contracts.simulations import Days, Difference
from services.contracts.team import Person
from services.stage_service import clocks, funnel, offers
from services.stage_service.funnel import Journey, Move
from services.stage_service.playbook import Playbook
from services.stage_service.playbook_succession import following
from services.stage_service.rehearsal import Rehearsal
from services.stage_service.renaming import MIGRATE
from services.stage_service.simulation_differences import Place, Step, difference, same, step_of

DIFFERENCES_MAX = 1000
"""How many journeys that differ are told of one by one; all are counted."""


class StageTally(msgspec.Struct):
    """Of one stage: journeys that ever entered or passed it, moves into it, journeys that are in it now."""

    reached: int = 0
    entered: int = 0
    current: int = 0


class Side(msgspec.Struct):
    """One side's numbers: by stage, by (role, day), and handoffs by role.

    `alerts` are by the day of the move, `due` and `overdue` deadlines by the day they fall on.
    """

    stages: dict[str, StageTally] = msgspec.field(default_factory=dict[str, StageTally])
    alerts: Days = msgspec.field(default_factory=dict[str, dict[str, int]])
    due: Days = msgspec.field(default_factory=dict[str, dict[str, int]])
    overdue: Days = msgspec.field(default_factory=dict[str, dict[str, int]])
    handoffs: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    missed: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    waiting: dict[str, int] = msgspec.field(default_factory=dict[str, int])

    def stage(self, key: str) -> StageTally:
        """Give the tally of a stage."""
        return self.stages.setdefault(key, StageTally())

    def add(self, other: Side) -> None:
        """Add the numbers of other leads."""
        for key, tally in other.stages.items():
            stage = self.stage(key)
            stage.reached += tally.reached
            stage.entered += tally.entered
            stage.current += tally.current
        for mine, theirs in (
            (self.alerts, other.alerts), (self.due, other.due), (self.overdue, other.overdue),
        ):  # fmt: skip
            for role, days in theirs.items():
                _add(mine.setdefault(role, {}), days)
        _add(self.handoffs, other.handoffs)
        _add(self.missed, other.missed)
        _add(self.waiting, other.waiting)


class Tally(msgspec.Struct):
    """The numbers of some leads: both sides, and what differs. Adding tallies gives those of all."""

    leads: int = 0
    events: int = 0
    journeys: int = 0
    differing: int = 0
    today: Side = msgspec.field(default_factory=Side)
    candidate: Side = msgspec.field(default_factory=Side)
    differences: list[Difference] = msgspec.field(default_factory=list[Difference])

    def add(self, other: Tally) -> None:
        """Add the numbers of other leads; of the differences the first by lead and journey are kept."""
        self.leads += other.leads
        self.events += other.events
        self.journeys += other.journeys
        self.differing += other.differing
        self.today.add(other.today)
        self.candidate.add(other.candidate)
        self.differences = sorted([*self.differences, *other.differences])[:DIFFERENCES_MAX]


class Past(msgspec.Struct, frozen=True):
    """What is recorded of one journey: its moves that hold, where it is, and its handoffs.

    `handoffs` are (role, offered at, answered at or None).
    """

    playbook: str
    key: str
    stage: str
    furthest: str
    moves: Sequence[Step]
    handoffs: Sequence[tuple[str, datetime, datetime | None]]


class Simulation:
    """Folds leads under `candidate`; `now` ends the story, `since` (if any) is when counting begins.

    `active` are the playbooks by epoch; the candidate is taken as the version after the newest of its name,
    whose stages it may have renamed. `hours` has, by role, somebody whose working hours its deadlines
    count in, on both sides alike: who would have owned a journey on another way nobody knows.
    """

    def __init__(
        self,
        candidate: Playbook,
        active: Mapping[int, Mapping[str, Playbook]],
        hours: Mapping[str, Person],
        now: datetime,
        since: datetime | None = None,
    ) -> None:
        present = active[max(active)].get(candidate.name)
        if present is not None:
            candidate = following(candidate, present, present.version + 1, candidate.migrate)
        self._candidate = candidate
        self._present = present or candidate
        self._playbooks = {e: {**known, candidate.name: candidate} for e, known in active.items()}
        self._hours = hours
        self._now = now
        self._since = since
        types = {t for rule in candidate.rules for t in rule.on or ()}
        self._rings = bool(types & offers.CLOCK_EVENTS)

    def run(
        self,
        leads: Mapping[str, Sequence[tuple[LeadEvent, int]]],
        past: Mapping[str, Mapping[str, Past]],
    ) -> Tally:
        """Give the numbers of `leads`: their events with epochs, and their journeys as recorded, by name."""
        tally = Tally()
        for lead_id, events in leads.items():
            tally.leads += 1
            tally.events += len(events)
            self._lead(tally, lead_id, events, past.get(lead_id, {}))
        return tally

    def _lead(
        self,
        tally: Tally,
        lead_id: str,
        events: Sequence[tuple[LeadEvent, int]],
        past: Mapping[str, Past],
    ) -> None:
        answered = {h[2] for p in past.values() for h in p.handoffs if h[2] is not None}
        folded = [(_for_any(e, answered), epoch) for e, epoch in events if not offers.is_clock(e)]
        journeys, moves, handed = self._folded(folded, self._now)
        name = self._candidate.name
        made: dict[str, list[Move]] = {}
        for move in moves:
            if move.playbook == name:
                made.setdefault(move.journey, []).append(move)
        names = {n for n, p in past.items() if p.playbook == name}
        names |= {n for n, j in journeys.items() if j.playbook == name}
        for journey in sorted(names):
            self._journey(
                tally,
                lead_id,
                journey,
                past.get(journey),
                journeys.get(journey),
                made.get(journey, []),
                folded,
            )
        last = {(c.journey, c.offer.name): c.offer for c in handed if c.playbook == name}
        for offer in last.values():
            self._offered(
                tally.candidate, self._candidate, offer.role, offer.offered_at, offer.answered_at
            )

    def _folded(
        self, events: Sequence[tuple[LeadEvent, int]], until: datetime
    ) -> tuple[Mapping[str, Journey], list[Move], list[offers.Handed]]:
        if not self._rings:
            whole = funnel.refold(events, self._playbooks.__getitem__)
            return whole.lead.journeys if whole.lead else {}, whole.moves, whole.handed
        newest = self._playbooks[max(self._playbooks)]
        story = Rehearsal(newest, self._hours)
        ordered = funnel.in_place(events)
        for event, epoch in ordered:
            story.playbooks = self._playbooks[epoch]
            story.tell(event)
        story.wait_until(max(until, ordered[-1][0].time) if ordered else until)
        return story.lead.journeys if story.lead else {}, story.moves, story.handed

    def _journey(
        self,
        tally: Tally,
        lead_id: str,
        name: str,
        past: Past | None,
        journey: Journey | None,
        moves: Sequence[Move],
        events: Sequence[tuple[LeadEvent, int]],
    ) -> None:
        tally.journeys += 1
        # That a stage has another name now is no move of the candidate's.
        held = [m for m in past.moves if not self._is_name_only(m)] if past is not None else []
        before = [self._named(m) for m in held]
        after = [step_of(m) for m in moves]
        if past is not None:
            self._count(tally.today, self._present, past.stage, past.furthest, held)
            for handoff in past.handoffs:
                self._offered(tally.today, self._present, *handoff)
        if journey is not None:
            self._count(tally.candidate, self._candidate, journey.stage, journey.furthest, after)
        if [same(m) for m in before] == [same(m) for m in after]:
            return
        tally.differing += 1
        if len(tally.differences) < DIFFERENCES_MAX:
            tally.differences.append(difference(
                lead_id, name, before, after, self._candidate,
                lambda place: self._journey_at(events, name, place),
            ))  # fmt: skip

    def _journey_at(
        self, events: Sequence[tuple[LeadEvent, int]], name: str, place: Place
    ) -> Journey | None:
        """Give the journey `name` as the candidate has it after the event at `place`."""
        told = [(event, epoch) for event, epoch in funnel.in_place(events) if event.place <= place]
        return self._folded(told, place[0])[0].get(name)

    def _named(self, move: Step) -> Step:
        """Give a recorded move by the candidate's names of its stages."""
        named, known = self._candidate.named, self._candidate.stages
        if move.from_stage in known and move.to_stage in known:
            return move
        return msgspec.structs.replace(
            move, from_stage=named(move.from_stage), to_stage=named(move.to_stage)
        )

    def _is_name_only(self, move: Step) -> bool:
        named = self._candidate.named
        return move.rule == MIGRATE and named(move.from_stage) == named(move.to_stage)

    def _count(
        self, side: Side, playbook: Playbook, stage: str, furthest: str, moves: Sequence[Step]
    ) -> None:
        path, named = self._candidate.path, self._candidate.named
        side.stage(named(stage)).current += 1
        reached = {named(m.to_stage) for m in moves} | {path[0], named(stage)}
        if named(furthest) in path:
            reached |= set(path[: path.index(named(furthest)) + 1])
        for key in reached:
            side.stage(key).reached += 1
        for move in moves:
            if self._since is not None and move.occurred_at < self._since:
                continue
            side.stage(named(move.to_stage)).entered += 1
            day = move.occurred_at.date().isoformat()
            for role in _alerted(playbook, move):
                _bump(side.alerts.setdefault(role, {}), day)

    def _offered(
        self,
        side: Side,
        playbook: Playbook,
        role: str,
        offered_at: datetime,
        answered_at: datetime | None,
    ) -> None:
        if self._since is not None and offered_at < self._since:
            return
        _bump(side.handoffs, role)
        if answered_at is None:
            _bump(side.waiting, role)
        plan = playbook.handoffs.get(role)
        if plan is None:
            return
        deadline = clocks.reached(
            plan.clock, offered_at, plan.clock.within_s, self._hours.get(role)
        )
        day = deadline.date().isoformat()
        _bump(side.due.setdefault(role, {}), day)
        if (answered_at or self._now) > deadline:
            _bump(side.missed, role)
            _bump(side.overdue.setdefault(role, {}), day)


def _for_any(event: LeadEvent, answered: Collection[datetime]) -> LeadEvent:
    """Let an answer that met a handoff meet the candidate's, too, though that was offered at another time.

    One that met none names a handoff that was over: it stays as it is. `answered`: when handoffs were.
    """
    if event.type not in offers.ANSWERS or event.time not in answered:
        return event
    data = {k: v for k, v in event.data.items() if k not in ("offered_at", "round")}
    return msgspec.structs.replace(event, data=data)


def _alerted(playbook: Playbook, move: Step) -> Sequence[str]:
    """Give the roles that a move alerts under `playbook`: as its stage says, and who has to answer."""
    came_from = playbook.stages.get(playbook.named(move.from_stage))
    to = playbook.stages.get(playbook.named(move.to_stage))
    if to is None:
        return ()
    role = to.responsible[0]
    if role in to.alerts or came_from is None or not offers.is_offered(playbook, came_from, to):
        return to.alerts
    return (*to.alerts, role)


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for key, count in more.items():
        counts[key] = counts.get(key, 0) + count


def _bump(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
