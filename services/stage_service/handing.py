"""Handoffs of one batch: rows, messages and new owners, from what the fold says changed.

Their clocks, and those of stages, are in `winding`; the statements in `store_handoffs`. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from services.contracts.events import HANDOFFS_TOPIC, LeadEvent
from services.contracts.handoffs import (
    ACCEPTED,
    CLOCK_FIRED,
    HANDOFF_REJECTED,
    OFFERED,
    OVERDUE,
    REJECTED,
    WITHDRAWN,
    HandoffTold,
)
from services.contracts.published import AlertWish, JourneyRef, OfferRef, PersonRef
from services.stage_service import offers
from services.stage_service.assignment import Assigner
from services.stage_service.funnel import journey_name, score_of
from services.stage_service.journal import Journal, brief, handoff_id, journey_id, person_of
from services.stage_service.offers import Handed, Offer, Ring
from services.stage_service.playbook import Playbook
from services.stage_service.store import Record
from services.stage_service.store_handoffs import ClockRow, Closing, HandoffRow
from services.stage_service.winding import Winding

TYPES = {"accepted": ACCEPTED, "rejected": REJECTED, "withdrawn": WITHDRAWN}
SAID = {
    "accepted": "{who} accepted it.",
    "rejected": "{who} rejected it: {reason}.",
    "withdrawn": "It no longer waits: {reason}.",
}


class Handing:
    """What changes in the handoffs of one batch, with its `clocks`; use once."""

    def __init__(self, journal: Journal, assigner: Assigner, recorded_at: datetime) -> None:
        self._journal = journal
        self._assigner = assigner
        self._now = recorded_at
        self._handoffs: dict[str, HandoffRow] = {}
        self.clocks = Winding(journal, assigner, recorded_at, self._handoffs)
        self.gone: list[str] = []
        """Handoffs that a corrected history does not know."""

    @property
    def rows(self) -> tuple[list[HandoffRow], list[ClockRow], list[Closing]]:
        """What is to be written."""
        return (list(self._handoffs.values()), *self.clocks.rows)

    @property
    def has_rows(self) -> bool:
        """Tell whether there is anything to write."""
        return bool(self._handoffs) or self.clocks.has_rows

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
                self.clocks.ring(record, playbooks[str(event.data["playbook"])], ring)

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
            if id not in last and row["holds"]:
                self.gone.append(id)
                if row["state"] == "offered":
                    self._take_back(record, playbooks.get(row["playbook"]), row)

    def _changed(self, record: Record, playbook: Playbook, change: Handed) -> None:
        offer, event = change.offer, change.event
        facts = record.facts[change.journey]
        if event.type == CLOCK_FIRED and offer.is_open and offer.overdue_at is not None:
            row = self._row(record, {playbook.name: playbook}, change)
            owner = person_of(facts, offer.role)
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
        if journey is None:
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
        # Who had it when it was over before it became known, nobody knows.
        is_past = not offer.is_open and (id, offer.role) in self._journal.only_passed
        owner = facts.owners.get(offer.role) if is_new and not is_past else None
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
        stage = playbook.stages.get(playbook.named(offer.stage))
        plan = playbook.handoffs.get(offer.role)
        due_at = row.due_at
        if due_at is None and plan is not None:
            due_at = self._journal.due_at(record, plan, change.journey, offer)
        owner = person_of(facts, offer.role)
        occurred_at = offer.answered_at or offer.overdue_at or offer.offered_at
        self._journal.publish(HANDOFFS_TOPIC, type or TYPES.get(offer.state, OFFERED), record.id, HandoffTold(
            handoff_id=row.id,
            lead=brief(record),
            journey=JourneyRef(row.journey_id, row.playbook, row.key),
            stage=offer.stage,
            stage_title=stage.title if stage is not None else offer.stage,
            role=offer.role,
            from_role=offer.from_role,
            owner=owner,
            giver=person_of(facts, offer.from_role) if offer.from_role != offer.role else None,
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
        lead = record.lead
        if playbook is None or lead is None:
            return
        stage = playbook.stages.get(playbook.named(row["stage"]))
        title = stage.title if stage is not None else row["stage"]
        owner = PersonRef(row["person_id"], row["person_name"]) if row["person_id"] else None
        self._journal.publish(HANDOFFS_TOPIC, WITHDRAWN, record.id, HandoffTold(
            handoff_id=row["id"], lead=brief(record),
            journey=JourneyRef(row["journey_id"], row["playbook"], row["key"]),
            stage=row["stage"], stage_title=title, role=row["role"], from_role=row["from_role"],
            owner=owner, giver=None, round=row["round"], state="withdrawn",
            offered_at=row["offered_at"], due_at=row["due_at"], overdue_at=row["overdue_at"],
            answered_at=self._now, answered_by=None, implied=True, reason=reason,
            asked_at=row["asked_at"], occurred_at=self._now, recorded_at=self._now,
            score=score_of(lead, playbook, lead.last[0]),
            explanation=f"{title}: {SAID['withdrawn'].format(reason=reason)}",
        ))  # fmt: skip


def _explained(
    playbook: Playbook,
    offer: Offer,
    owner: PersonRef | None,
    type: str | None,
) -> str:
    who = owner.name if owner is not None else "nobody"
    stage = playbook.stages.get(playbook.named(offer.stage))
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


def _key(event: LeadEvent) -> tuple[str, str]:
    return event.source, event.id
