"""One batch of lead events inside one transaction: gather, decide, record.

`Batch.apply` is the way of an event from the lane to the commit. It looks up the events (a repeat
changes nothing), finds or makes their leads, locks those in id order, folds, and writes events, states,
transitions and the outbox. It never commits: the lane owns the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import CLAIMED_TIME, LeadEvent
from services.contracts.team import Person, Team
from services.stage_service import funnel, store
from services.stage_service.funnel import Lead, Move, Score
from services.stage_service.journal import Journal, Revision, journey_id, revise, share_replaced
from services.stage_service.playbook import Playbook
from services.stage_service.routing import choose, eligible
from services.stage_service.shelf import Shelf
from services.stage_service.store import Connection, Facts, Past, Record, TransitionRow

LEAD_IDENTITY = "lead"
"""The identity kind of events that Baton's own API makes for a lead it knows by id."""


class RacedError(Exception):
    """Another process recorded the same event or identity first: apply the batch again."""


class Brief(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """A transition as the answer to a sender shows it."""

    transition_id: str
    kind: str
    sequence: int
    journey_id: str
    playbook: str
    key: str
    from_: str
    to: str
    rule: str | None
    explanation: str
    replaces: list[str] = []


class HeldBrief(msgspec.Struct, frozen=True):
    """A move that a gate holds, as the answer to a sender shows it."""

    journey_id: str
    to: str
    rule: str
    missing: list[str]


class Outcome(msgspec.Struct, omit_defaults=False):
    """What happened to one event."""

    id: str
    source: str
    status: str
    lead_id: str | None
    transitions: list[Brief] = []
    held: list[HeldBrief] = []
    late: bool = False
    warning: str | None = None
    error: dict[str, Any] | None = None


class Batch:
    """Applies events on one connection; use once."""

    def __init__(
        self,
        connection: Connection,
        shelf: Shelf,
        team: Team,
        recorded_at: datetime,
        new_id: Callable[[], str],
    ) -> None:
        self._connection = connection
        self._shelf = shelf
        self._team = team
        self._new_id = new_id
        self._journal = Journal(recorded_at, self._assign, new_id)
        self._counts: dict[str, dict[str, int]] = {}
        self._records: dict[str, Record] = {}
        self._claims: dict[tuple[str, str], str] = {}
        self._epoch = shelf.epoch
        """Stored with the events and folded under: one batch, one epoch, whatever is published now."""
        self._before: dict[str, Lead | None] = {}
        self._changed: dict[tuple[str, str], Record] = {}
        self._shifted: dict[str, tuple[str, datetime]] = {}
        self._outcomes: dict[tuple[str, str], Outcome] = {}
        self.moved: list[TransitionRow] = []
        self.unevaluated: list[tuple[str, str]] = []

    async def apply(self, events: Sequence[LeadEvent]) -> list[Outcome]:
        """Apply `events` and give an outcome for each, in their order.

        Raises RacedError when another transaction was faster; the caller rolls back and tries again.
        """
        answers, fresh = await self._recognise(events)
        by_lead: dict[str, list[LeadEvent]] = {}
        for event, lead_id in fresh:
            if lead_id is not None:
                by_lead.setdefault(lead_id, []).append(event)
        moves, late = self._fold(by_lead)
        histories = await self._refold(by_lead, late) if late else {}
        await self._lock_rotations(moves, histories)
        self._write_down(by_lead, moves, histories)
        if fresh:
            await self._write(fresh)
        return answers

    async def _recognise(
        self, events: Sequence[LeadEvent]
    ) -> tuple[list[Outcome], list[tuple[LeadEvent, str | None]]]:
        """Part the events that are new, with their leads, locked, from the repeats; answer both."""
        unique: dict[tuple[str, str], LeadEvent] = {}
        for event in events:  # of two with the same key the first counts
            unique.setdefault((event.source, event.id), event)
        identities = sorted({
            i for e in unique.values() for i in e.identities if i[0] != LEAD_IDENTITY
        })  # fmt: skip
        by_id = sorted({
            e.identities[0][1] for e in unique.values()
            if e.identities and e.identities[0][0] == LEAD_IDENTITY
        })  # fmt: skip
        found = await store.look_up(self._connection, list(unique), identities, by_id)
        self._records = found.records
        if found.epoch > self._shelf.epoch:
            await self._shelf.load(self._connection)
        self._epoch = self._shelf.epoch
        answers: list[Outcome] = []
        fresh: list[tuple[LeadEvent, str | None]] = []
        for event in events:
            key = (event.source, event.id)
            first = self._outcomes.get(key)
            if first is not None:  # twice in this batch
                answers.append(Outcome(event.id, event.source, "duplicate", first.lead_id))
            elif key in found.recorded:
                answers.append(Outcome(event.id, event.source, "duplicate", found.recorded[key]))
            else:
                lead_id, warning = self._find_lead(event, found.owned)
                if CLAIMED_TIME in event.envelope:
                    said = (
                        f"time {event.envelope[CLAIMED_TIME]} is ahead of now: held to the arrival"
                    )
                    warning = f"{warning}; {said}" if warning else said
                outcome = Outcome(event.id, event.source, "applied", lead_id, warning=warning)
                outcome.transitions, outcome.held = [], []
                self._outcomes[key] = outcome
                answers.append(outcome)
                fresh.append((event, lead_id))
        return answers, fresh

    def _find_lead(
        self,
        event: LeadEvent,
        owned: dict[tuple[str, str], str],
    ) -> tuple[str | None, str | None]:
        """Give the lead of `event` (strongest identity first), new when nobody has any of them."""
        if not event.identities:
            return None, "no email, external_ids or anonymous_id in data: kept, about no lead"
        if event.identities[0][0] == LEAD_IDENTITY:
            return event.identities[0][1], None
        found = [owned[i] for i in event.identities if i in owned]
        lead_id = found[0] if found else self._new_id()
        if not found:
            self._records[lead_id] = Record(lead_id, None, {}, is_new=True)
        for identity in event.identities:
            if identity not in owned:
                owned[identity] = self._claims[identity] = lead_id
        others = set(found) - {lead_id}
        warning = f"its identities also belong to {len(others)} other lead(s)" if others else None
        return lead_id, warning

    def _fold(
        self, by_lead: dict[str, list[LeadEvent]]
    ) -> tuple[dict[str, list[Move]], dict[str, tuple[datetime, str, str]]]:
        """Fold what arrived in time; give the moves by lead, and the leads with late events.

        The latter with the place of the newest event folded before.
        """
        moves: dict[str, list[Move]] = {}
        late: dict[str, tuple[datetime, str, str]] = {}
        playbooks = self._shelf.at(self._epoch)
        for lead_id, events in by_lead.items():
            record = self._records.setdefault(lead_id, Record(lead_id, None, {}))
            self._before[lead_id] = record.lead
            events.sort(key=_place)
            if record.lead is not None and events[0].place < record.lead.last:
                late[lead_id] = record.lead.last
                for event in events:
                    self._outcome(event).late = event.place < record.lead.last
                continue
            made = moves.setdefault(lead_id, [])
            for event in events:
                folded = funnel.fold(playbooks, record.lead, event)
                record.lead = folded.lead
                made += folded.moves
                self.unevaluated += folded.unevaluated
        return moves, late

    async def _refold(
        self, by_lead: dict[str, list[LeadEvent]], late: dict[str, tuple[datetime, str, str]]
    ) -> dict[str, tuple[list[Move], dict[str, list[Past]], tuple[datetime, str, str]]]:
        """Fold the leads with late events again: from their stored events and the new ones."""
        ids = list(late)
        stored = await store.events_of_leads(self._connection, ids)
        for lead_id in ids:
            stored[lead_id] += [(event, self._epoch) for event in by_lead[lead_id]]
        if any(epoch > self._shelf.epoch for events in stored.values() for _, epoch in events):
            await self._shelf.load(self._connection)  # published while we waited for the lock
        past = await store.history(self._connection, ids)
        histories: dict[str, Any] = {}
        for lead_id in ids:
            record = self._records[lead_id]
            record.lead, moves, unevaluated = funnel.refold(
                (event, self._shelf.at(epoch)) for event, epoch in stored[lead_id]
            )
            self.unevaluated += unevaluated
            histories[lead_id] = (moves, past.get(lead_id, {}), late[lead_id])
        return histories

    async def _lock_rotations(
        self, moves: dict[str, list[Move]], histories: Mapping[str, Any]
    ) -> None:
        """Lock the rotations of the roles that may need a person chosen."""
        roles: set[str] = set()
        for lead_id, made in [*moves.items(), *((i, h[0]) for i, h in histories.items())]:
            record = self._records[lead_id]
            for move in made:
                facts = record.facts.get(move.journey)
                alerts = self._stage_alerts(move)
                roles.update(
                    r for r in (move.role, *alerts) if facts is None or r not in facts.owners
                )
        if histories:  # a correction may bring back the first stage, which no move enters
            roles.update(
                role
                for playbook in self._shelf.at(self._epoch).values()
                for stage in playbook.stages.values()
                for role in (stage.responsible[0], *stage.alerts)
            )
        if roles:
            self._counts = await store.lock_rotations(self._connection, sorted(roles))

    def _stage_alerts(self, move: Move) -> Sequence[str]:
        return self._playbook(move).stages[move.to_stage].alerts

    def _playbook(self, move: Move) -> Playbook:
        return self._shelf.version(move.playbook, move.version)

    def _assign(self, role: str, attributes: Mapping[str, Any]) -> Person | None:
        counts = self._counts.get(role)
        if counts is None:
            return None
        return choose(eligible(self._team, role, attributes), counts)

    def _write_down(
        self,
        by_lead: dict[str, list[LeadEvent]],
        moves: dict[str, list[Move]],
        histories: Mapping[str, tuple[list[Move], dict[str, list[Past]], tuple[Any, ...]]],
    ) -> None:
        """Turn moves into records, leads in the order that their events came."""
        for lead_id, events in by_lead.items():
            record = self._records[lead_id]
            assert record.lead is not None  # noqa: S101  it has just been folded
            for name in record.lead.journeys:
                record.facts.setdefault(name, Facts(0, {}))
            causes = {(e.source, e.id): e for e in events}
            if lead_id in histories:
                self._revise(record, causes, *histories[lead_id])
            for move in moves.get(lead_id, ()):
                self._transition(record, move, causes)
            # A journey that an event left alone is the same object still, and is not written again.
            before = self._before[lead_id]
            for name, journey in record.lead.journeys.items():
                known = before.journeys.get(name) if before is not None else None
                if known is not journey or lead_id in histories:
                    self._changed[lead_id, name] = record
            self._tell_held(record, events)

    def _transition(
        self,
        record: Record,
        move: Move,
        causes: Mapping[tuple[str, str], LeadEvent],
        late: LeadEvent | None = None,
    ) -> None:
        # A late event can make one that was stored before fire: its sender hears of that.
        event = causes.get((move.event_source, move.event_id), late)
        trace = event.traceparent if event else None
        row = self._journal.transition(record, self._playbook(move), move, trace)
        if event is not None:
            self._tell(self._outcome(event), row, move)

    def _revise(
        self,
        record: Record,
        causes: Mapping[tuple[str, str], LeadEvent],
        moves: list[Move],
        past_by_journey: dict[str, list[Past]],
        last: tuple[Any, ...],
    ) -> None:
        """Record what late events change in each journey's history (I7)."""
        assert record.lead is not None  # noqa: S101
        late = next(e for e in causes.values() if e.place < last)
        for name in record.lead.journeys:
            mine = [m for m in moves if m.journey == name]
            past = past_by_journey.get(journey_id(record.id, name), [])
            revision = revise(
                past, mine,
                lambda m: (m.event_source, m.event_id) in causes
                and causes[m.event_source, m.event_id].place > last,
            )  # fmt: skip
            for old, move in revision.shifted:
                self._shifted[old.id] = (journey_id(record.id, name), move.visit_entered_at)
            if revision.replaced:
                self._correct(record, name, revision, late)
            for move in revision.appended:
                self._transition(record, move, causes, late)

    def _correct(self, record: Record, name: str, revision: Revision, late: LeadEvent) -> None:
        """Record the corrections of a journey; only the last that still holds now may alert."""
        outcome = self._outcome(late)
        replaced = revision.replaced
        before = replaced[-1].role
        if not revision.corrections:
            move, playbook = self._nothing_happened(record, name, revision, late)
            row = self._journal.retraction(
                record, playbook, move, [r.id for r in replaced], late.traceparent,
                alert=move.role != before and not revision.appended,
            )  # fmt: skip
            self._tell(outcome, row, move)
            return
        shares = share_replaced(revision.corrections, replaced)
        for index, (move, share) in enumerate(zip(revision.corrections, shares, strict=True)):
            is_present = index == len(revision.corrections) - 1 and not revision.appended
            corrected = msgspec.structs.replace(
                move,
                explanation=f"{move.explanation} Corrected: an event of "
                f"{late.time:%Y-%m-%d %H:%M} UTC ({late.type}) arrived late.",
            )
            row = self._journal.correction(
                record, self._playbook(move), corrected, share, is_present=is_present,
                alert=is_present and move.role != before, trace=late.traceparent,
            )  # fmt: skip
            self._tell(outcome, row, corrected)

    def _nothing_happened(
        self, record: Record, name: str, revision: Revision, late: LeadEvent
    ) -> tuple[Move, Playbook]:
        """Make the record that takes back what was replaced, and the playbook it is told under.

        It starts and ends in the stage that holds: where the next move starts, or the journey stands.
        """
        assert record.lead is not None  # noqa: S101
        journey = record.lead.journeys[name]
        replaced = revision.replaced
        key = revision.appended[0].from_stage if revision.appended else journey.stage
        versions = [journey.version, *(m.version for m in revision.appended[:1]),
                    *(r.playbook_version for r in reversed(replaced))]  # fmt: skip
        playbook = next(
            p for v in versions if key in (p := self._shelf.version(journey.playbook, v)).stages
        )
        stage = playbook.stages[key]
        at = replaced[0].occurred_at
        gone = ", ".join(f"{r.from_stage} to {r.to_stage}" for r in replaced)
        move = Move(
            name, journey.playbook, playbook.version, journey.key, key, key, at, at, late.source,
            late.id, late.type, None, None, stage.responsible[0], replaced[-1].role, [],
            funnel.score_of(record.lead, playbook, record.lead.last[0]),
            f"Still in {stage.title}: an event of {late.time:%Y-%m-%d %H:%M} UTC ({late.type}) "
            f"arrived late and takes back {gone}.",
            {"retracted": [r.id for r in replaced]},
        )  # fmt: skip
        return move, playbook

    def _outcome(self, event: LeadEvent) -> Outcome:
        return self._outcomes[event.source, event.id]

    def _tell(self, outcome: Outcome, row: TransitionRow, move: Move) -> None:
        outcome.transitions.append(Brief(
            row.id, row.kind, row.sequence, row.journey_id, row.playbook, move.key, row.from_stage,
            row.to_stage, row.rule, row.explanation,
            [old for old, (_, new) in self._journal.written.replaced.items() if new == row.id],
        ))  # fmt: skip

    def _tell_held(self, record: Record, events: Sequence[LeadEvent]) -> None:
        assert record.lead is not None  # noqa: S101
        for name, journey in record.lead.journeys.items():
            before = self._before[record.id]
            known = before.journeys.get(name) if before is not None else None
            for held in journey.held:
                if known is not None and held in known.held:
                    continue
                for event in events:
                    if event.time == held.since:
                        self._outcome(event).held.append(HeldBrief(
                            journey_id(record.id, name), held.to, held.rule, held.missing
                        ))  # fmt: skip

    async def _write(self, fresh: list[tuple[LeadEvent, str | None]]) -> None:
        written = self._journal.written
        self.moved = written.rows
        records = [r for id, r in self._records.items() if id in self._before]
        if self._shifted:
            await store.shift_visits(self._connection, self._shifted)
        if written.replaced:
            await store.replace_transitions(self._connection, written.replaced)
        everything = store.Written(
            self._claims, fresh, self._epoch, records, {r.id: self._score(r) for r in records},
            [(r, name, journey_id(r.id, name)) for (_, name), r in self._changed.items()],
            written.rows, self._counts, written.messages,
        )  # fmt: skip
        if not await store.write(self._connection, everything):
            raise RacedError

    def _score(self, record: Record) -> tuple[int, int]:
        """Give (fit, intent) under the first playbook at the lead's newest event."""
        lead = record.lead
        playbook = next(iter(self._shelf.playbooks.values()), None)
        if lead is None or playbook is None:
            return 0, 0
        score: Score = funnel.score_of(lead, playbook, lead.last[0])
        return score.fit, score.intent


def _place(event: LeadEvent) -> tuple[datetime, str, str]:
    return event.place
