"""From moves to records: number them, name the owner, correct history, write the message.

The fold says what moved; this says how it is recorded and published. Pure but for `new_id`. A journey's
records are numbered 1..n. When a late event changes history, everything from the first difference on
is replaced: so the records not replaced are the history both in the order of their numbers and in the
order of time, and each starts where the one before it ended.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import (
    ASSIGNED_BY_HAND,
    CORRECTED,
    HANDOFFS_TOPIC,
    OWNER_CHANGED,
    TRANSITIONED,
    TRANSITIONS_TOPIC,
    LeadEvent,
    Message,
    message_headers,
)
from services.contracts.published import (
    AlertWish,
    Cause,
    JourneyRef,
    LeadSnapshot,
    OfferRef,
    OwnerChanged,
    PersonRef,
    Responsible,
    Score,
    StageGuide,
    StageTransitioned,
)
from services.contracts.team import Person
from services.stage_service.clocks import reached
from services.stage_service.funnel import Lead, Move, score_of
from services.stage_service.ids import ids_of_names
from services.stage_service.lead_facts import company_name, display_name
from services.stage_service.offers import Offer
from services.stage_service.playbook import HandoffPlan, Playbook, Stage
from services.stage_service.renaming import is_quiet, listeners
from services.stage_service.routing import Decision
from services.stage_service.store import Facts, Owner, Past, Record, Told, TransitionRow, as_json

ATTRIBUTES_BYTES_MAX = 256 * 1024
"""Of one message: brokers take 1 MiB, and a message refused would stop all behind it."""

_encode = msgspec.json.Encoder().encode
_journeys = ids_of_names(uuid.UUID("7a1d4d0e-5f0c-4c7e-9a53-0b0d2f6c1f11"))
_handoffs = ids_of_names(uuid.UUID("0b7c5a1e-52c4-4f0e-8d0b-5a2f0f6a3c55"))

Assign = Callable[[str, Record, Playbook, Move], Decision | None]
"""Decides who gets a record's journey for a role as of a move (routing, with the rotation locked)."""


def journey_id(lead_id: str, name: str) -> str:
    """Give the id of a lead's journey: the same for ever, so a re-fold finds it again."""
    return _journeys(f"{lead_id}/{name}")


def handoff_id(journey: str, offer: Offer) -> str:
    """Give the id of a journey's handoff: the same for ever, so a re-fold finds it again."""
    return _handoffs(f"{journey}\n{offer.name}")


class Written(msgspec.Struct):
    """What a batch writes besides events and states."""

    rows: list[TransitionRow]
    replaced: dict[str, tuple[str, str]]
    messages: list[Message]


class Revision(msgspec.Struct):
    """How a journey's recorded history becomes the new one."""

    replaced: list[Past]
    corrections: list[Move]
    appended: list[Move]
    shifted: list[tuple[Past, Move]]
    """Records that hold, but whose visit began at another time than recorded."""


def revise(
    past: Sequence[Past],
    moves: Sequence[Move],
    is_new: Callable[[Move], bool],
    *,
    regrouped: bool = False,
) -> Revision:
    """Compare the `past` records of a journey with its re-folded `moves`.

    `is_new` tells whether a move's event is newer than all that was folded before: such moves are
    ordinary transitions, the other new ones correct history; where nothing is replaced they are
    ordinary too, unless the lead was `regrouped`: then they were told before, of another lead.
    """
    kept = 0
    agreed = 0
    shifted: list[tuple[Past, Move]] = []
    for index, record in enumerate(past):
        if record.kind == "retraction":
            continue
        if agreed == len(moves) or not _tells(record, moves[agreed]):
            break
        if moves[agreed].visit_entered_at != record.visit_entered_at:
            shifted.append((record, moves[agreed]))
        agreed += 1
        kept = index + 1
    else:
        kept = len(past)
    rest = list(moves[agreed:])
    replaced = list(past[kept:])
    if not replaced and not regrouped:
        return Revision([], [], rest, shifted)
    return Revision(
        replaced,
        [m for m in rest if not is_new(m)],
        [m for m in rest if is_new(m)],
        shifted,
    )


def _tells(record: Past, move: Move) -> bool:
    """Say whether `record` tells of `move`: also who was asked, and under which version."""
    return record.identity == move.identity and (
        record.playbook_version, record.role, record.skipped
    ) == (move.version, move.role, move.skipped)  # fmt: skip


def share_replaced(corrections: Sequence[Move], replaced: Sequence[Past]) -> list[list[str]]:
    """Say which replaced records each correction names: its like by stage entered, else the first."""
    shares: list[list[str]] = [[] for _ in corrections]
    for old in replaced:
        like = next((i for i, m in enumerate(corrections) if m.to_stage == old.to_stage), 0)
        shares[like].append(old.id)
    return shares


class Journal:
    """Writes the records of one batch; `new_id` gives ids that sort by time (UUIDv7)."""

    def __init__(
        self,
        recorded_at: datetime,
        assign: Assign,
        person: Callable[[str], Person | None],
        new_id: Callable[[], str],
    ) -> None:
        self.written = Written([], {}, [])
        self.recorded_at = recorded_at
        self._assign = assign
        self._who = person
        self._new_id = new_id
        self.offered_by: dict[str, str] = {}
        """The transition that offers a handoff, by the handoff's id."""
        self.told_before: dict[Told, set[str]] = {}
        """Whom records alerted that hold no more: of the same move nobody hears twice."""
        self.only_passed: set[tuple[str, str]] = set()
        """(journey id, role) of owners chosen for stages that were over when they became known."""
        self.is_quiet = False
        """Whether nobody is alerted of what is written: what a repair tells is no news."""
        self._decided: dict[str, Decision] = {}
        """The owners chosen for the record being written, by role."""

    def transition(
        self, record: Record, playbook: Playbook, move: Move, trace: str | None
    ) -> TransitionRow:
        """Record an ordinary move: owners are chosen, alerts asked for."""
        facts = record.facts[move.journey]
        stage = playbook.stages[move.to_stage]
        told = listeners(stage, move)
        for role in (move.role, *told):
            self.only_passed.discard((journey_id(record.id, move.journey), role))
            self._own(record, facts, role, playbook, move)
        if move.offer is not None and move.role not in told:
            told = (*told, move.role)  # who has to answer hears of it
        wishes = self._wishes(record, move, told, urgent=stage.urgent)
        return self._write(record, playbook, move, "transition", [], wishes, trace, move.offer)

    def _wishes(
        self, record: Record, move: Move, roles: Sequence[str], *, urgent: bool
    ) -> list[AlertWish]:
        """Give the alerts of a move for `roles`, but to nobody whom a replaced record told of the same."""
        facts = record.facts[move.journey]
        wishes = [AlertWish(role, person_of(facts, role), urgent) for role in roles]
        before = self.told_before.get((journey_id(record.id, move.journey), move.identity))
        return [w for w in wishes if _who(w) not in before] if before else wishes

    def correction(
        self,
        record: Record,
        playbook: Playbook,
        move: Move,
        replaces: list[str],
        *,
        alert: bool,
        is_present: bool,
        trace: str | None,
    ) -> TransitionRow:
        """Record a correcting move. The roles it asks for get owners, as they would have had it come in
        time; nobody is alerted of it unless the present responsible changed (`alert`)."""
        facts = record.facts[move.journey]
        stage = playbook.stages[move.to_stage]
        told = listeners(stage, move)
        for role in (move.role, *told):
            of = (journey_id(record.id, move.journey), role)
            if is_present:
                self.only_passed.discard(of)
            elif role not in facts.owners and role not in facts.aside:
                self.only_passed.add(of)
            self._own(record, facts, role, playbook, move)
        # Of a new name hears nobody but who is responsible there and was not before.
        heard = (move.role,) if is_quiet(move) else told
        wishes = self._wishes(record, move, heard if alert else (), urgent=stage.urgent)
        offer = self._open_offer(record, move) if alert else None
        return self._write(record, playbook, move, "correction", replaces, wishes, trace, offer)

    def retraction(
        self,
        record: Record,
        playbook: Playbook,
        move: Move,
        replaces: list[str],
        trace: str | None,
        *,
        alert: bool,
        ended: bool = False,
    ) -> TransitionRow:
        """Record that moves never happened: `move` starts and ends in the stage that holds.

        `ended`: the journey itself is no more.
        """
        facts = record.facts[move.journey]
        stage = playbook.stages[move.to_stage]
        wishes: list[AlertWish] = []
        if alert:
            self._own(record, facts, move.role, playbook, move)
            for role in stage.alerts:
                self._own(record, facts, role, playbook, move)
                wishes.append(AlertWish(role, person_of(facts, role), stage.urgent))
        offer = self._open_offer(record, move) if alert else None
        return self._write(
            record, playbook, move, "retraction", replaces, wishes, trace, offer, ended=ended
        )

    def reassign(
        self,
        record: Record,
        playbook: Playbook,
        name: str,
        decision: Decision,
        event: LeadEvent,
        offer: Offer | None,
    ) -> None:
        """Record that the journey `name` has another owner, as `event` asks, and tell them.

        `offer` is the handoff that is offered to them by it.
        """
        lead = record.lead
        assert lead is not None  # noqa: S101  it has just been folded
        facts = record.facts[name]
        role, journey = decision.role, lead.journeys[name]
        # Told anew by an event of before a publication, it may stand in a stage that is gone since.
        stage = playbook.stage_of(journey.stage, journey.version)
        before = person_of(facts, role)
        if decision.person is not None:
            facts.owners[role] = Owner(decision.person, decision.name, decision.why)
            facts.aside.pop(role, None)
        wishes = [AlertWish(role, person_of(facts, role), stage.urgent)]
        routing = playbook.routing.get(role)
        by_hand = event.type == ASSIGNED_BY_HAND
        if routing is not None and routing.tell_before and before is not None and by_hand:
            wishes.append(AlertWish(role, before))
        id = self._new_id()
        changed = OwnerChanged(
            change_id=id,
            lead=_snapshot(record.id, lead, event.time),
            journey=JourneyRef(journey_id(record.id, name), journey.playbook, journey.key),
            role=role,
            owner=person_of(facts, role),
            previous_owner=before,
            why=decision.why,
            reason=str(event.data.get("reason") or "no reason given"),
            actor=str(event.data.get("actor") or event.data.get("person") or event.source),
            occurred_at=event.time,
            recorded_at=self.recorded_at,
            score=score_of(lead, playbook, event.time),
            stage=_guide(playbook, stage),
            alerts=wishes,
            offer=self.offer_ref(record, playbook, name, offer),
        )
        headers = message_headers(id, OWNER_CHANGED, self.recorded_at, None, record.id)
        self.written.messages.append(Message(HANDOFFS_TOPIC, record.id, headers, _encode(changed)))

    def offer_ref(
        self, record: Record, playbook: Playbook, name: str, offer: Offer | None
    ) -> OfferRef | None:
        """Give what a message says of the handoff it offers."""
        plan = playbook.handoffs.get(offer.role) if offer is not None else None
        if offer is None or plan is None:
            return None
        return OfferRef(
            handoff_id(journey_id(record.id, name), offer), offer.role,
            self.due_at(record, plan, name, offer), list(plan.reasons),
        )  # fmt: skip

    def due_at(self, record: Record, plan: HandoffPlan, name: str, offer: Offer) -> datetime:
        """Give until when an offer is to be answered: as its clock runs, else by its owner's hours."""
        facts = record.facts[name]
        ticking = facts.clocks.get(plan.clock.key)
        if ticking is not None and ticking.since == offer.offered_at:
            return ticking.deadline
        owner = facts.owners.get(offer.role)
        person = self._who(owner.id) if owner is not None else None
        begin = max(offer.offered_at, self.recorded_at)
        return reached(plan.clock, begin, plan.clock.within_s, person)

    def publish(self, topic: str, type: str, lead_id: str, body: msgspec.Struct) -> str:
        """Write a message that is no record of the journey's way; gives its id."""
        id = self._new_id()
        headers = message_headers(id, type, self.recorded_at, None, lead_id)
        self.written.messages.append(Message(topic, lead_id, headers, _encode(body)))
        return id

    def _open_offer(self, record: Record, move: Move) -> Offer | None:
        """Give the handoff that waits in the journey of `move` for its present role."""
        assert record.lead is not None  # noqa: S101
        offer = record.lead.journeys[move.journey].offer
        return offer if offer is not None and offer.is_open and offer.role == move.role else None

    def _own(self, record: Record, facts: Facts, role: str, playbook: Playbook, move: Move) -> None:
        """Choose the journey's owner for `role`, once: an owner sticks, while they are here."""
        owner = facts.owners.get(role) or facts.aside.pop(role, None)
        if record.lead is None or (owner is not None and self._who(owner.id)):
            if owner is not None:
                facts.owners[role] = owner
            return
        decision = self._assign(role, record, playbook, move)
        if decision is None:
            return
        self._decided[role] = decision
        if decision.person is not None:
            facts.owners[role] = Owner(decision.person, decision.name, decision.why)

    def _write(
        self,
        record: Record,
        playbook: Playbook,
        move: Move,
        kind: str,
        replaces: list[str],
        wishes: list[AlertWish],
        trace: str | None,
        offer: Offer | None,
        *,
        ended: bool = False,
    ) -> TransitionRow:
        lead = record.lead
        assert lead is not None  # noqa: S101  a record with moves has been folded
        facts = record.facts[move.journey]
        facts.sequence += 1
        id = self._new_id()
        journey = journey_id(record.id, move.journey)
        owner = facts.owners.get(move.role)
        handoff = move.role != move.previous_role
        why = {**move.why, "routing": self._decided} if self._decided else move.why
        if wishes:
            why = {**why, "told": [_who(wish) for wish in wishes]}
        self._decided = {}
        row = TransitionRow(
            journey, facts.sequence, id, record.id, kind, move.playbook, move.version,
            move.from_stage, move.to_stage, move.visit_entered_at, move.occurred_at,
            self.recorded_at, move.event_source, move.event_id, move.event_type, move.rule,
            move.actor, move.role, owner.id if owner else None, handoff, move.skipped,
            move.explanation, as_json(why), replaces,
        )  # fmt: skip
        self.written.rows.append(row)
        offered = self.offer_ref(record, playbook, move.journey, offer)
        if offered is not None:
            self.offered_by[offered.handoff_id] = id
        for old in replaces:
            self.written.replaced[old] = (journey, id)
        responsible = Responsible(move.role, _ref(owner), (owner.why or None) if owner else None)
        previous = Responsible(move.previous_role, person_of(facts, move.previous_role))
        self._tell(
            record, playbook, row, move.key, responsible, previous, move.score, wishes, offered, trace,
            ended=ended,
        )  # fmt: skip
        return row

    def tell_again(
        self, record: Record, playbook: Playbook, row: TransitionRow, key: str, *, ended: bool
    ) -> None:
        """Write the message of a `row` that is on record and was never told; nobody is alerted.

        Who held the journey before is not known any more: the role of the stage it left is told.
        """
        lead = record.lead
        assert lead is not None  # noqa: S101
        person = self._who(row.owner_id) if row.owner_id is not None else None
        owner = (
            PersonRef(row.owner_id, person.name if person else row.owner_id)
            if row.owner_id
            else None
        )
        left = playbook.stages.get(row.from_stage)
        previous = Responsible(left.responsible[0] if left is not None else row.role, None)
        score = score_of(lead, playbook, row.occurred_at)
        self._tell(
            record, playbook, row, key, Responsible(row.role, owner, None), previous, score, [], None,
            None, ended=ended,
        )  # fmt: skip

    def _tell(
        self,
        record: Record,
        playbook: Playbook,
        row: TransitionRow,
        key: str,
        responsible: Responsible,
        previous: Responsible,
        score: Score,
        wishes: list[AlertWish],
        offered: OfferRef | None,
        trace: str | None,
        *,
        ended: bool,
    ) -> None:
        """Write the message that tells of a `row`."""
        assert record.lead is not None  # noqa: S101
        event = StageTransitioned(
            transition_id=row.id,
            sequence=row.sequence,
            lead=_snapshot(record.id, record.lead, row.occurred_at),
            journey=JourneyRef(row.journey_id, row.playbook, key),
            from_=row.from_stage,
            to=row.to_stage,
            occurred_at=row.occurred_at,
            recorded_at=row.recorded_at,
            cause=Cause(row.event_id, row.event_source, row.event_type, row.rule, row.actor),
            responsible=responsible,
            previous_responsible=previous,
            handoff=row.handoff,
            score=score,
            playbook_version=row.playbook_version,
            explanation=row.explanation,
            stage=_guide(playbook, playbook.stages[row.to_stage]),
            alerts=[] if self.is_quiet else wishes,
            skipped=row.skipped,
            replaces=row.replaces,
            ended=ended or msgspec.UNSET,
            offer=offered,
        )
        type_ = TRANSITIONED if row.kind == "transition" else CORRECTED
        headers = message_headers(row.id, type_, self.recorded_at, trace, record.id)
        self.written.messages.append(Message(TRANSITIONS_TOPIC, record.id, headers, _encode(event)))


def _ref(owner: Owner | None) -> PersonRef | None:
    return PersonRef(owner.id, owner.name) if owner else None


def _who(wish: AlertWish) -> str:
    """Give whom an alert is for, as the notifier names them."""
    return wish.person.id if wish.person is not None else f"role:{wish.role}"


def person_of(facts: Facts, role: str) -> PersonRef | None:
    """Give who holds a journey for `role`."""
    return _ref(facts.owners.get(role))


def brief(record: Record) -> LeadSnapshot:
    """Give the lead without its attributes: who follows handoffs has them from its transitions."""
    lead = record.lead
    assert lead is not None  # noqa: S101
    return LeadSnapshot(
        record.id, lead.email, display_name(lead.attributes), company_name(lead.attributes), {}
    )


def _snapshot(lead_id: str, lead: Lead, until: datetime) -> LeadSnapshot:
    """Give the lead as it is known now, with its last touches up to the transition."""
    attributes = lead.attributes
    return LeadSnapshot(
        lead_id, lead.email, display_name(attributes), company_name(attributes),
        _published(attributes),
        [t for t in lead.touches if t.time <= until],
    )  # fmt: skip


def _published(attributes: dict[str, Any]) -> msgspec.Raw:
    """Give the attributes as JSON a broker takes: the longest are left out of one over 256 KiB."""
    encoded = _encode(attributes)
    if len(encoded) > ATTRIBUTES_BYTES_MAX:
        kept: dict[str, Any] = {}
        size = 2
        for name, value in sorted(attributes.items(), key=lambda item: len(_encode(item[1]))):
            size += len(_encode(value)) + len(_encode(name)) + 2
            if size > ATTRIBUTES_BYTES_MAX:
                break
            kept[name] = value
        encoded = _encode(kept)
    return msgspec.Raw(encoded)


_guides: dict[tuple[str, str], msgspec.Raw] = {}


def _guide(playbook: Playbook, stage: Stage) -> msgspec.Raw:
    """Give the stage's guidance as JSON; encoded once a playbook, since every message carries it."""
    key = (playbook.digest, stage.key)
    if key not in _guides:
        guide = StageGuide(
            stage.key, stage.title, stage.band, stage.focus, stage.goal, list(stage.guidance),
            list(stage.next_steps),
        )  # fmt: skip
        _guides[key] = msgspec.Raw(_encode(guide))
    return _guides[key]
