"""Handoffs and clocks of one batch: rows, messages and new owners, from what the fold says changed.

The lane's facts (who owns what, which clock runs until when) are looked after here; the statements are in
`store_handoffs`. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import (
    HANDOFFS_TOPIC,
    AlertWish,
    JourneyRef,
    LeadEvent,
    LeadSnapshot,
    OfferRef,
    PersonRef,
)
from services.contracts.handoffs import (
    ACCEPTED,
    CLOCK_FIRED,
    CLOCK_RANG,
    HANDOFF_REJECTED,
    OFFERED,
    OVERDUE,
    REJECTED,
    WITHDRAWN,
    ClockRang,
    HandoffTold,
)
from services.contracts.team import Person
from services.stage_service import clocks, offers
from services.stage_service.assignment import Assigner
from services.stage_service.clocks import Ticking, Wanted
from services.stage_service.funnel import Journey, active_at, journey_name, score_of
from services.stage_service.journal import Journal, handoff_id, journey_id
from services.stage_service.lead_facts import company_name, display_name
from services.stage_service.offers import Handed, Offer, Ring
from services.stage_service.playbook import ClockPlan, Playbook
from services.stage_service.store import Facts, Record
from services.stage_service.store_handoffs import ClockRow, Closing, HandoffRow

TYPES = {"accepted": ACCEPTED, "rejected": REJECTED, "withdrawn": WITHDRAWN}
SAID = {
    "accepted": "{who} accepted it.",
    "rejected": "{who} rejected it: {reason}.",
    "withdrawn": "It no longer waits: {reason}.",
}


class Handing:
    """What changes in the handoffs and clocks of one batch; use once."""

    def __init__(self, journal: Journal, assigner: Assigner, recorded_at: datetime) -> None:
        self._journal = journal
        self._assigner = assigner
        self._now = recorded_at
        self._handoffs: dict[str, HandoffRow] = {}
        self._clocks: dict[str, ClockRow] = {}
        self._closings: dict[str, Closing] = {}
        self.gone: list[str] = []
        """Handoffs that a corrected history does not know."""

    @property
    def rows(self) -> tuple[list[HandoffRow], list[ClockRow], list[Closing]]:
        """What is to be written."""
        return (
            list(self._handoffs.values()),
            list(self._clocks.values()),
            list(self._closings.values()),
        )

    @property
    def has_rows(self) -> bool:
        """Tell whether there is anything to write."""
        return bool(self._handoffs or self._clocks or self._closings)

    def follow(
        self,
        record: Record,
        playbooks: Mapping[str, Playbook],
        events: Sequence[LeadEvent],
        handed: Sequence[Handed],
        rings: Sequence[Ring],
    ) -> None:
        """Record what `events` did to the handoffs of a lead, in their order."""
        by_event: dict[tuple[str, str], list[Handed]] = {}
        for change in handed:
            by_event.setdefault((change.event.source, change.event.id), []).append(change)
        ringing = {(r.event.source, r.event.id): r for r in rings}
        for event in events:
            key = (event.source, event.id)
            changes = by_event.get(key, [])
            for change in changes:
                self._changed(record, playbooks[change.playbook], change)
            if offers.is_assignment(event) and not any(c.offer.is_open for c in changes):
                self._assign(record, playbooks, event, None)
            ring = ringing.get(key)
            if ring is not None:
                self._ring(record, playbooks[str(event.data["playbook"])], ring)

    def reconcile(
        self,
        record: Record,
        playbooks: Mapping[str, Playbook],
        events: Sequence[LeadEvent],
        handed: Sequence[Handed],
        rings: Sequence[Ring],
        recorded: Mapping[str, Any],
    ) -> None:
        """Compare the handoffs of a lead whose history was told anew with those `recorded` (id: state).

        What `events`, the new ones, did is told as ever; of the past only what is different now.
        """
        assert record.lead is not None  # noqa: S101  it has just been folded
        fresh = {(e.source, e.id) for e in events}
        last: dict[str, Handed] = {}
        for change in handed:
            last[handoff_id(journey_id(record.id, change.journey), change.offer)] = change
        for id, change in last.items():
            if _key(change.event) in fresh:
                continue  # told with its event
            known = recorded.get(id)
            # One that is open again waits for who owns it now, whoever it was offered to then.
            is_new = known is None or change.offer.is_open
            row = self._row(record, playbooks, change, is_new=is_new)
            playbook = playbooks.get(change.playbook)
            is_told = (
                known is not None or change.offer.is_open
            )  # the past, told of another lead before
            if (
                playbook is not None
                and is_told
                and (known or {}).get("state") != change.offer.state
            ):
                self._tell(record, playbook, change, row)
        # What a new event began and an old one ended was told above, as it ended.
        told = [
            c for c in handed
            if _key(c.event) in fresh
            and _key(last[handoff_id(journey_id(record.id, c.journey), c.offer)].event) in fresh
        ]  # fmt: skip
        self.follow(record, playbooks, events, told, [r for r in rings if _key(r.event) in fresh])
        for id, row in recorded.items():
            if id not in last and row["state"] == "offered":
                self._take_back(record, playbooks.get(row["playbook"]), row)

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
            if want is None or _is_another(ticking, want, journey, key, void):
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

    def _changed(self, record: Record, playbook: Playbook, change: Handed) -> None:
        offer, event = change.offer, change.event
        facts = record.facts[change.journey]
        if event.type == CLOCK_FIRED and offer.is_open and offer.overdue_at is not None:
            row = self._row(record, {playbook.name: playbook}, change)
            owner = _ref(facts, offer.role)
            wishes = [AlertWish(offer.role, owner)]
            self._tell(record, playbook, change, row, OVERDUE, wishes)
            return
        if offer.is_open and offers.is_assignment(event):
            self._assign(record, {playbook.name: playbook}, event, offer)
        elif offer.is_open and offer.round > 1 and event.type == HANDOFF_REJECTED:
            owner = facts.owners.get(offer.role)
            without = frozenset((*offer.rejected_by, *((owner.id,) if owner else ())))
            decision = self._assigner.again(
                offer.role, record, playbook, change.journey, event, without
            )
            if decision is not None:
                self._journal.reassign(record, playbook, change.journey, decision, event, offer)
        self._tell(record, playbook, change, self._row(record, {playbook.name: playbook}, change))

    def _assign(
        self,
        record: Record,
        playbooks: Mapping[str, Playbook],
        event: LeadEvent,
        offer: Offer | None,
    ) -> None:
        """Give a journey to somebody else, as `event` asks; nothing where there is no such journey."""
        assert record.lead is not None  # noqa: S101
        playbook = playbooks[str(event.data["playbook"])]
        name = journey_name(playbook.name, event.deal)
        journey = record.lead.journeys.get(name)
        if journey is None or journey.stage not in playbook.stages:
            return
        decision = self._assigner.by_hand(record, playbook, name, event)
        if decision is not None:
            self._journal.reassign(record, playbook, name, decision, event, offer)

    def _row(
        self,
        record: Record,
        playbooks: Mapping[str, Playbook],
        change: Handed,
        *,
        is_new: bool = False,
    ) -> HandoffRow:
        assert record.lead is not None  # noqa: S101
        offer, facts = change.offer, record.facts[change.journey]
        journey = record.lead.journeys[change.journey]
        id = journey_id(record.id, change.journey)
        playbook = playbooks.get(change.playbook)
        plan = playbook.handoffs.get(offer.role) if playbook is not None else None
        own_id = handoff_id(id, offer)
        known = self._handoffs.get(own_id)
        # Of an offer that was recorded before, the row keeps whose it was and until when.
        is_new = is_new or (offer.is_open and offer.overdue_at is None)
        owner = facts.owners.get(offer.role) if is_new else None
        giver = facts.owners.get(offer.from_role)
        row = HandoffRow(
            own_id, id, record.id, change.playbook, journey.key, offer.stage,
            offer.role, offer.from_role, offer.round,
            owner.id if owner else known and known.person_id,
            owner.name if owner else known and known.person_name,
            giver.id if giver and offer.from_role != offer.role else None,
            self._journal.offered_by.get(own_id),
            offer.offered_at, self._now, change.asked_at,
            self._journal.due_at(record, plan, change.journey, offer) if plan and is_new
            else known and known.due_at,
            offer.state, offer.overdue_at, offer.answered_at, offer.answered_by, offer.implied,
            offer.reason,
        )  # fmt: skip
        self._handoffs[row.id] = row
        return row

    def _tell(
        self,
        record: Record,
        playbook: Playbook,
        change: Handed,
        row: HandoffRow,
        type: str | None = None,
        wishes: Sequence[AlertWish] = (),
    ) -> None:
        """Publish a handoff as it is now."""
        lead, offer = record.lead, change.offer
        assert lead is not None  # noqa: S101
        facts = record.facts[change.journey]
        stage = playbook.stages.get(offer.stage)
        plan = playbook.handoffs.get(offer.role)
        due_at = row.due_at
        if due_at is None and plan is not None:
            due_at = self._journal.due_at(record, plan, change.journey, offer)
        owner = _ref(facts, offer.role)
        occurred_at = offer.answered_at or offer.overdue_at or offer.offered_at
        self._journal.publish(HANDOFFS_TOPIC, type or TYPES.get(offer.state, OFFERED), record.id, HandoffTold(
            handoff_id=row.id,
            lead=_brief(record),
            journey=JourneyRef(row.journey_id, row.playbook, row.key),
            stage=offer.stage,
            stage_title=stage.title if stage is not None else offer.stage,
            role=offer.role,
            from_role=offer.from_role,
            owner=owner,
            giver=_ref(facts, offer.from_role) if offer.from_role != offer.role else None,
            round=offer.round,
            state=offer.state,  # pyright: ignore[reportArgumentType]  one of four by construction
            offered_at=offer.offered_at,
            due_at=due_at,
            overdue_at=offer.overdue_at,
            answered_at=offer.answered_at,
            answered_by=offer.answered_by,
            implied=offer.implied,
            reason=offer.reason,
            asked_at=change.asked_at,
            occurred_at=occurred_at,
            recorded_at=self._now,
            score=score_of(lead, playbook, occurred_at),
            explanation=_explained(playbook, offer, owner, type),
            alerts=list(wishes),
            offer=OfferRef(row.id, offer.role, due_at, list(plan.reasons))
            if offer.is_open and plan is not None else None,
        ))  # fmt: skip

    def _take_back(self, record: Record, playbook: Playbook | None, row: Mapping[str, Any]) -> None:
        """Withdraw a handoff that the corrected history does not know."""
        reason = "the history was corrected"
        self.gone.append(row["id"])
        lead = record.lead
        if playbook is None or lead is None:
            return
        stage = playbook.stages.get(row["stage"])
        title = stage.title if stage is not None else row["stage"]
        owner = PersonRef(row["person_id"], row["person_name"]) if row["person_id"] else None
        self._journal.publish(HANDOFFS_TOPIC, WITHDRAWN, record.id, HandoffTold(
            handoff_id=row["id"], lead=_brief(record),
            journey=JourneyRef(row["journey_id"], row["playbook"], row["key"]),
            stage=row["stage"], stage_title=title, role=row["role"], from_role=row["from_role"],
            owner=owner, giver=None, round=row["round"], state="withdrawn",
            offered_at=row["offered_at"], due_at=row["due_at"], overdue_at=row["overdue_at"],
            answered_at=self._now, answered_by=None, implied=True, reason=reason,
            asked_at=row["asked_at"], occurred_at=self._now, recorded_at=self._now,
            score=score_of(lead, playbook, lead.last[0]),
            explanation=f"{title}: {SAID['withdrawn'].format(reason=reason)}",
        ))  # fmt: skip

    def _ring(self, record: Record, playbook: Playbook, ring: Ring) -> None:
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
        stage = playbook.stages.get(str(data["stage"]))
        rungs = ", ".join(dict.fromkeys(rung for _, rung in told))
        self._journal.publish(HANDOFFS_TOPIC, CLOCK_RANG, record.id, ClockRang(
            clock_id=ticking.id,
            lead=_brief(record),
            journey=JourneyRef(id, playbook.name, journey.key),
            stage=str(data["stage"]),
            stage_title=stage.title if stage is not None else str(data["stage"]),
            clock=key,
            title=plan.title,
            step=kind.kind,  # pyright: ignore[reportArgumentType]  one of three by construction
            role=role,
            owner=_ref(facts, role),
            since=ticking.since,
            deadline=ticking.deadline,
            late=bool(data.get("late")),
            handoff_id=ticking.handoff_id,
            occurred_at=event.time,
            recorded_at=self._now,
            score=score_of(lead, playbook, event.time),
            explanation=_rang(plan, kind.kind, _ref(facts, role), rungs),
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


def _is_another(
    ticking: Ticking, want: Wanted, journey: Journey, key: str, void: Sequence[LeadEvent]
) -> bool:
    """Tell whether the clock wanted is not the one that runs, but has another start."""
    if want.kind != "activity":
        return (ticking.stage, ticking.since, ticking.handoff_id) != (
            want.stage, want.since, want.handoff_id
        )  # fmt: skip
    # One that has not fired yet is moved when it comes due: not at each event.
    fired = ticking.step > 0 or any(e.data.get("clock") == key for e in void)
    # An earlier start is another history, told late: what runs would meet nothing when it comes due.
    return (
        ticking.stage != want.stage
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


def _brief(record: Record) -> LeadSnapshot:
    """Give the lead without its attributes: who follows handoffs has them from its transitions."""
    lead = record.lead
    assert lead is not None  # noqa: S101
    return LeadSnapshot(
        record.id, lead.email, display_name(lead.attributes), company_name(lead.attributes), {}
    )


def _ref(facts: Facts, role: str) -> PersonRef | None:
    owner = facts.owners.get(role)
    return PersonRef(owner.id, owner.name) if owner is not None else None


def _explained(
    playbook: Playbook,
    offer: Offer,
    owner: PersonRef | None,
    type: str | None,
) -> str:
    who = owner.name if owner is not None else "nobody"
    stage = playbook.stages.get(offer.stage)
    title = stage.title if stage is not None else offer.stage
    if type == OVERDUE:
        return f"{title}: {who} has not answered in time."
    if offer.is_open:
        again = f" It is offer number {offer.round}." if offer.round > 1 else ""
        return f"{title}: it waits for {who} to accept it.{again}"
    said = SAID[offer.state].format(
        who=offer.answered_by or who, reason=offer.reason or "no reason given"
    )
    if offer.implied:
        done = {"accepted": f"{who} took it up: the journey went on."}
        said = done.get(offer.state, "It no longer waits: the journey went another way.")
    return f"{title}: {said}"


def _rang(plan: ClockPlan, step: str, owner: PersonRef | None, rungs: str) -> str:
    who = owner.name if owner is not None else "nobody"
    if step == "remind":
        return f"{plan.title}: the deadline is near, and {who} has it."
    said = f"{plan.title}: the deadline has passed, and {who} has it."
    return f"{said} Escalated to: {rungs}." if step == "escalate" and rungs else said


def _since(event: LeadEvent) -> datetime:
    return datetime.fromisoformat(str(event.data["since"]))


def _key(event: LeadEvent) -> tuple[str, str]:
    return event.source, event.id
