"""The clocks of one batch: wound as a journey stands, struck by their events, ended; rows and messages.

What runs is a fact of the journey (`Facts.clocks`); the statements are in `store_handoffs`. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from services.contracts.events import HANDOFFS_TOPIC, LeadEvent
from services.contracts.handoffs import CLOCK_FIRED, CLOCK_RANG, ClockRang
from services.contracts.published import AlertWish, JourneyRef, PersonRef
from services.contracts.team import Person
from services.stage_service import clocks
from services.stage_service.assignment import Assigner
from services.stage_service.clocks import Ticking, Wanted
from services.stage_service.funnel import Journey, active_at, score_of
from services.stage_service.journal import Journal, brief, handoff_id, journey_id, person_of
from services.stage_service.offers import Ring
from services.stage_service.playbook import ClockPlan, Playbook
from services.stage_service.store import Record
from services.stage_service.store_handoffs import ClockRow, Closing, HandoffRow


class Winding:
    """What changes in the clocks of one batch; use once. `handoffs` are the rows it writes, by id."""

    def __init__(
        self,
        journal: Journal,
        assigner: Assigner,
        recorded_at: datetime,
        handoffs: Mapping[str, HandoffRow],
    ) -> None:
        self._journal = journal
        self._assigner = assigner
        self._now = recorded_at
        self._handoffs = handoffs
        self._clocks: dict[str, ClockRow] = {}
        self._closings: dict[str, Closing] = {}

    @property
    def rows(self) -> tuple[list[ClockRow], list[Closing]]:
        """What is to be written."""
        return list(self._clocks.values()), list(self._closings.values())

    @property
    def has_rows(self) -> bool:
        """Tell whether there is anything to write."""
        return bool(self._clocks or self._closings)

    def wind(
        self,
        record: Record,
        name: str,
        playbook: Playbook | None,
        void: Sequence[LeadEvent],
        rings: Sequence[Ring],
        *,
        again: bool,
    ) -> None:
        """Start, move and end the clocks of a journey so that they fit how it stands.

        `void` are clock events that met nothing any more; `again`: its history was told anew, with all its
        `rings`, so all clocks are written, whatever runs.
        """
        lead, facts = record.lead, record.facts[name]
        assert lead is not None  # noqa: S101
        journey, id = lead.journeys[name], journey_id(record.id, name)
        offer = journey.offer
        if playbook is not None and _waits_for_its_name(playbook, journey.stage):
            return  # it goes on with the lead's next event, and so do its clocks
        wants: dict[str, Wanted] = {}
        if playbook is not None:
            waiting = handoff_id(id, offer) if offer is not None and offer.is_open else None
            wants = clocks.wanted(
                playbook,
                journey.stage,
                journey.entered_at,
                active_at(lead, journey),
                offer,
                waiting,
            )
        for key, ticking in list(facts.clocks.items()):
            want = wants.get(key)
            if (
                want is None
                or playbook is None
                or _is_another(playbook, ticking, want, journey, key, void)
            ):
                self._end(record, journey, ticking)
                del facts.clocks[key]
        for key, want in wants.items():
            owner = facts.owners.get(want.role)
            person = self._assigner.person(owner.id) if owner is not None else None
            ticking = facts.clocks.get(key)
            if ticking is None:
                ticking = clocks.wound(id, want, person, self._now)
            elif ticking.person != (person.id if person is not None else None):
                ticking = _with_owner(ticking, want.plan, person)
            elif not again:
                continue
            missed_at = None
            if again:
                ticking, missed_at = _caught_up(ticking, want, name, rings, person)
            facts.clocks[key] = ticking
            self._run(record, name, want, ticking, missed_at)

    def end_all(self, record: Record, name: str, at: datetime) -> None:
        """End the clocks of a journey that is no more."""
        facts = record.facts.get(name)
        if facts is None:
            return
        for ticking in facts.clocks.values():
            self._closings[ticking.id] = Closing(ticking.id, at, void=True, missed_at=None)
        facts.clocks.clear()

    def ring(self, record: Record, playbook: Playbook, ring: Ring) -> None:
        """Tell of a clock's step that counts, and set the next."""
        lead, event, data = record.lead, ring.event, ring.event.data
        assert lead is not None  # noqa: S101
        key = str(data["clock"])
        plan, facts = clocks.plan_of(playbook, key), record.facts[ring.journey]
        ticking = facts.clocks.get(key)
        if plan is None or ticking is None:
            return
        role, step = str(data["role"]), clocks.step_named(plan, str(data["step"]))
        owner = facts.owners.get(role)
        person = self._assigner.person(owner.id) if owner is not None else None
        if step is None:  # the ladder is shorter by now
            ticking = msgspec.structs.replace(ticking, due_at=None)
            facts.clocks[key] = ticking
            want = Wanted(
                plan, str(data["kind"]), role, ticking.stage, ticking.since, ticking.handoff_id
            )
            self._run(record, ring.journey, want, ticking, None)
            return
        kind = clocks.steps_of(plan)[step]
        told = list(clocks.listeners(
            kind.to, role, owner.id if owner else None, ticking.told, self._assigner.team, self._now
        ))  # fmt: skip
        ticking = clocks.struck(ticking, plan, step, _since(event), person)
        ticking = msgspec.structs.replace(ticking, told=[*ticking.told, *(p.id for p, _ in told)])
        facts.clocks[key] = ticking
        id = journey_id(record.id, ring.journey)
        journey = lead.journeys[ring.journey]
        want = Wanted(
            plan, str(data["kind"]), role, ticking.stage, ticking.since, ticking.handoff_id
        )
        missed = event.time if kind.kind == "due" else None
        self._run(record, ring.journey, want, ticking, missed)
        if kind.kind == "due" and ring.offer is not None:
            return  # the handoff itself says that it is overdue
        if not told and kind.to == "stand_in":
            return  # nobody stands in: the next step tells somebody
        nobody = kind.to == "owner" or kind.kind == "escalate"
        wishes = [AlertWish(role, PersonRef(p.id, p.name)) for p, _ in told]
        if not wishes and nobody and owner is None:
            wishes = [AlertWish(role, None)]
        stage = playbook.stages.get(playbook.named(str(data["stage"])))
        rungs = ", ".join(dict.fromkeys(rung for _, rung in told))
        self._journal.publish(HANDOFFS_TOPIC, CLOCK_RANG, record.id, ClockRang(
            clock_id=ticking.id,
            lead=brief(record),
            journey=JourneyRef(id, playbook.name, journey.key),
            stage=str(data["stage"]),
            stage_title=stage.title if stage is not None else str(data["stage"]),
            clock=key,
            title=plan.title,
            step=kind.kind,  # pyright: ignore[reportArgumentType]  one of three by construction
            role=role,
            owner=person_of(facts, role),
            since=ticking.since,
            deadline=ticking.deadline,
            late=bool(data.get("late")),
            handoff_id=ticking.handoff_id,
            occurred_at=event.time,
            recorded_at=self._now,
            score=score_of(lead, playbook, event.time),
            explanation=_rang(plan, kind.kind, person_of(facts, role), rungs),
            alerts=wishes,
            offer=self._journal.offer_ref(record, playbook, ring.journey, ring.offer),
        ))  # fmt: skip

    def _run(
        self,
        record: Record,
        name: str,
        want: Wanted,
        ticking: Ticking,
        missed_at: datetime | None,
    ) -> None:
        assert record.lead is not None  # noqa: S101
        journey = record.lead.journeys[name]
        before = self._clocks.get(ticking.id)
        self._closings.pop(ticking.id, None)  # a row is written once a statement
        self._clocks[ticking.id] = ClockRow(
            ticking.id, journey_id(record.id, name), record.id, journey.playbook, journey.key,
            want.plan.key, want.kind, want.stage, want.role, ticking.person,
            ticking.handoff_id, ticking.since, ticking.begin, ticking.deadline, ticking.step, ticking.due_at,
            missed_at or (before.missed_at if before else None),
        )  # fmt: skip

    def _end(self, record: Record, journey: Journey, ticking: Ticking) -> None:
        assert record.lead is not None  # noqa: S101
        at, void = record.lead.last[0], False
        if ticking.handoff_id is not None:
            handoff = self._handoffs.get(ticking.handoff_id)
            at = handoff.answered_at or at if handoff is not None else at
            void = handoff is None or handoff.state in ("offered", "withdrawn")
        elif journey.entered_at > ticking.since:
            at = journey.entered_at
        row = self._clocks.pop(ticking.id, None)  # a row is written once a statement
        self._closings[ticking.id] = Closing(ticking.id, at, void, row.missed_at if row else None)


def _waits_for_its_name(playbook: Playbook, stage: str) -> bool:
    """Tell whether a journey in `stage` has not heard yet that it is called otherwise."""
    return stage not in playbook.stages and playbook.named(stage) in playbook.stages


def _is_another(
    playbook: Playbook,
    ticking: Ticking,
    want: Wanted,
    journey: Journey,
    key: str,
    void: Sequence[LeadEvent],
) -> bool:
    """Tell whether the clock wanted is not the one that runs, but has another start.

    One that was wound when its stage had another name runs on, and keeps that name: so what it fires stands
    under the version of then and of now.
    """
    same_stage = playbook.named(ticking.stage) == playbook.named(want.stage)
    if want.kind != "activity":
        return not same_stage or (ticking.since, ticking.handoff_id) != (
            want.since, want.handoff_id
        )  # fmt: skip
    # One that has not fired yet is moved when it comes due: not at each event.
    fired = ticking.step > 0 or any(e.data.get("clock") == key for e in void)
    # An earlier start is another history, told late: what runs would meet nothing when it comes due.
    return (
        not same_stage
        or ticking.since < journey.entered_at
        or want.since < ticking.since
        or (fired and want.since > ticking.since)
    )


def _caught_up(
    ticking: Ticking, want: Wanted, name: str, rings: Sequence[Ring], person: Person | None
) -> tuple[Ticking, datetime | None]:
    """Give a clock past the steps that it fired before its history was told anew; and when it was missed."""
    missed_at: datetime | None = None
    for ring in rings:
        data = ring.event.data
        if (
            ring.journey != name
            or data["clock"] != want.plan.key
            or _since(ring.event) != want.since
        ):
            continue
        step = clocks.step_named(want.plan, str(data["step"]))
        if step is not None and step >= ticking.step:
            ticking = clocks.struck(ticking, want.plan, step, want.since, person)
        if ring.event.type == CLOCK_FIRED:
            missed_at = ring.event.time
    return ticking, missed_at


def _with_owner(ticking: Ticking, plan: ClockPlan, person: Person | None) -> Ticking:
    """Give a clock that another person has to meet now: what is left of it, by their hours."""
    steps = clocks.steps_of(plan)
    due_at = None
    if ticking.step < len(steps):
        due_at = clocks.reached(plan, ticking.begin, steps[ticking.step].offset_s, person)
    return msgspec.structs.replace(
        ticking, person=person.id if person is not None else None, due_at=due_at,
        deadline=clocks.reached(plan, ticking.begin, plan.within_s, person),
    )  # fmt: skip


def _rang(plan: ClockPlan, step: str, owner: PersonRef | None, rungs: str) -> str:
    who = owner.name if owner is not None else "nobody"
    if step == "remind":
        return f"{plan.title}: the deadline is near, and {who} has it."
    said = f"{plan.title}: the deadline has passed, and {who} has it."
    return f"{said} Escalated to: {rungs}." if step == "escalate" and rungs else said


def _since(event: LeadEvent) -> datetime:
    return datetime.fromisoformat(str(event.data["since"]))
