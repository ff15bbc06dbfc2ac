"""One batch of lead events inside one transaction: gather, decide, record.

`Batch.apply` is the way of an event from the lane to the commit. It looks up the events (a repeat
changes nothing), finds or makes their leads, locks those in id order, merges those that turned out to be
one person, folds, and writes events, states, transitions and the outbox. It never commits: the lane owns
the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from services.contracts.audit import record
from services.contracts.events import (
    ASSIGNED_BY_HAND,
    CLAIMED_TIME,
    SOURCE,
    UNMERGED_BY_HAND,
    LeadEvent,
)
from services.contracts.handoffs import HANDOFF_REJECTED
from services.contracts.postgres_log import Fresh
from services.contracts.published import Score
from services.contracts.roster import Roster
from services.stage_service import deeds, funnel, horizon, offers, store, store_handoffs
from services.stage_service.assignment import Assigner
from services.stage_service.corrections import Corrections, change_by
from services.stage_service.funnel import Lead, Move
from services.stage_service.handing import Handing
from services.stage_service.identities import LEAD_IDENTITY, Policy, keys_of
from services.stage_service.journal import Journal, journey_id
from services.stage_service.merging import Change
from services.stage_service.offers import Handed, Ring
from services.stage_service.playbook import Playbook
from services.stage_service.regrouping import Regrouping
from services.stage_service.shelf import Shelf
from services.stage_service.store import Connection, Facts, Past, Record, TransitionRow

HELD_KINDS = ("open", "won")
"""Stages in which a journey is somebody's work, and counts for their load."""


class RacedError(Exception):
    """Another process recorded the same event or identity first, or published: apply the batch again."""


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
    beyond_horizon: bool | msgspec.UnsetType = msgspec.UNSET
    """It came too late to rewrite history: kept, and not counted."""
    claimed_time: str | msgspec.UnsetType = msgspec.UNSET
    """The time it was sent with, of one held to its arrival."""
    warning: str | None = None
    error: dict[str, Any] | None = None


class Batch:
    """Applies events on one connection; use once.

    None of its parts refers back to it: a batch that is done is gone, and leaves the collector nothing.
    """

    def __init__(
        self,
        connection: Connection,
        shelf: Shelf,
        roster: Roster,
        recorded_at: datetime,
        new_id: Callable[[], str],
        policy: Policy,
        late_within: timedelta | None = None,
    ) -> None:
        self._connection = connection
        self._late_within = late_within
        """How long after their recording events may be overtaken by late ones; None: for ever."""
        self._beyond: list[LeadEvent] = []
        self._shelf = shelf
        self._policy = policy
        self._assigner = Assigner(roster, recorded_at)
        self._journal = Journal(recorded_at, self._assigner.assign, self._assigner.person, new_id)
        self._handing = Handing(self._journal, self._assigner, recorded_at)
        self._corrections = Corrections(self._journal, shelf)
        self.regrouping = Regrouping(connection, shelf, self._journal, policy, new_id)
        self._records: dict[str, Record] = {}
        self._changes: dict[str, Change] = {}
        self._epoch = shelf.epoch
        """Stored with the events and folded under: one batch, one epoch, whatever is published now."""
        self._before: dict[str, Lead | None] = {}
        self._changed: dict[tuple[str, str], Record] = {}
        self._handed: dict[str, list[Handed]] = {}
        self._rings: dict[str, list[Ring]] = {}
        self._given: dict[str, set[tuple[str, str]]] = {}
        """(journey name, role) of all assignments by hand of the leads folded anew."""
        self._outcomes: dict[tuple[str, str], Outcome] = {}
        self.moved: list[TransitionRow] = []
        self.published: Fresh | None = None
        """The messages that were written."""
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
        changes = await self.regrouping.apply(self._records, by_lead)
        if changes is None:
            raise RacedError
        self._changes = changes
        moves, late = self._fold(by_lead)
        handoffs: dict[str, dict[str, Any]] = {}
        histories = await self._refold(by_lead, late, moves) if late else {}
        assigned = {
            lead_id: found
            for lead_id, mine in by_lead.items()
            if (found := [e for e in mine if e.type == ASSIGNED_BY_HAND and e.source == SOURCE])
        }
        await self._lock_rotations(moves, histories, assigned)
        self._write_down(by_lead, moves, histories)
        if late:
            handoffs = await store_handoffs.handoffs_of(self._connection, list(late))
        for lead_id, mine in by_lead.items():
            self._hand_over(lead_id, mine, handoffs.get(lead_id, {}) if lead_id in late else None)
        if fresh:
            await self._write(fresh)
            # Last: what is locked after this is the head of the audit's chain, at the commit.
            for by, note in deeds.notes_of(fresh, self.moved, self._handed, self._records):
                await record(self._connection, by, note)
        return answers

    async def mend(
        self,
        record: Record,
        cause: LeadEvent,
        because: str,
        untold: Sequence[tuple[TransitionRow, str, bool]],
    ) -> int:
        """Put right what is stored of a locked lead: all of it becomes what its stored events fold to.

        What differs in its history is corrected, as a late event would: published, and nobody is alerted.
        `cause`, a stored event of the lead, stands for the repair where a record has to name one. `untold`
        are records that were never published, with the key of their journey and whether that is no more.
        Gives how many messages that made.
        """
        held: dict[str, set[tuple[str, str | None]]] = {
            name: {(role, owner.id) for role, owner in facts.owners.items()}
            for name, facts in record.facts.items()
        }
        self._records[record.id], self._before[record.id] = record, record.lead
        self._changes[record.id] = Change(cause, because, cause.place, held)
        self._outcomes[cause.source, cause.id] = Outcome(
            cause.id, cause.source, "applied", record.id
        )
        by_lead: dict[str, list[LeadEvent]] = {record.id: []}
        histories = await self._refold(by_lead, {record.id: cause.place}, {})
        await self._lock_rotations({}, histories, {})
        self._journal.is_quiet = True
        self._write_down(by_lead, {}, histories)
        for row, key, ended in untold:
            playbook = self._shelf.version(row.playbook, row.playbook_version)
            self._journal.tell_again(record, playbook, row, key, ended=ended)
        handoffs = await store_handoffs.handoffs_of(self._connection, [record.id])
        self._hand_over(record.id, [], handoffs.get(record.id, {}))
        await self._write([])
        return len(self._journal.written.messages)

    async def _recognise(
        self, events: Sequence[LeadEvent]
    ) -> tuple[list[Outcome], list[tuple[LeadEvent, str | None]]]:
        """Part the events that are new, with their leads, locked, from the repeats; answer both."""
        unique: dict[tuple[str, str], LeadEvent] = {}
        for event in events:  # of two with the same key the first counts
            unique.setdefault((event.source, event.id), event)
        keyed = {key: keys_of(e.identities, e.data, self._policy) for key, e in unique.items()}
        named = {k for keys, _ in keyed.values() for k in keys}
        by_id = {value for kind, value in named if kind == LEAD_IDENTITY}
        by_id.update(str(e.data["lead"]) for e in unique.values() if e.type == UNMERGED_BY_HAND)
        found = await store.look_up(
            self._connection, list(unique), sorted(k for k in named if k[0] != LEAD_IDENTITY),
            sorted(by_id),
        )  # fmt: skip
        self._records = found.records
        if found.epoch > self._shelf.epoch:
            await self._shelf.load(self._connection)
        self._epoch = self._shelf.epoch
        regrouping = self.regrouping
        await regrouping.look(
            (keys for key, (keys, _) in keyed.items() if key not in found.recorded), found.owned
        )
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
                keys, warnings = keyed[key]
                lead_id, said = regrouping.lead_of(event, keys)
                warning = "; ".join([*warnings, *said]) or None
                outcome = Outcome(event.id, event.source, "applied", lead_id, warning=warning)
                outcome.transitions, outcome.held = [], []
                outcome.claimed_time = event.envelope.get(CLAIMED_TIME, msgspec.UNSET)
                self._outcomes[key] = outcome
                answers.append(outcome)
                fresh.append((event, lead_id))
        if found.stale - regrouping.parted:
            raise RacedError
        for lead_id in regrouping.new:
            self._records[lead_id] = Record(lead_id, None, {}, is_new=True)
        if regrouping.moves_events:
            fresh = [(event, lead_id and regrouping.root(lead_id)) for event, lead_id in fresh]
            for outcome in answers:
                outcome.lead_id = outcome.lead_id and regrouping.root(outcome.lead_id)
        return answers, fresh

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
            change = self._changes.get(lead_id)
            if change is not None:
                late[lead_id] = change.last
                for event in events:
                    self._outcome(event).late = event.place < change.last
                continue
            if record.lead is not None and events[0].place < record.lead.last:
                late[lead_id] = record.lead.last
                for event in events:
                    self._outcome(event).late = event.place < record.lead.last
                continue
            moves[lead_id] = self._fold_on(playbooks, record, events)
        return moves, late

    def _fold_on(
        self, playbooks: Mapping[str, Playbook], record: Record, events: Sequence[LeadEvent]
    ) -> list[Move]:
        """Fold `events` that come after all that was folded of a lead; give its moves."""
        made: list[Move] = []
        for event in events:
            folded = funnel.fold(playbooks, record.lead, event)
            record.lead = folded.lead
            made += folded.moves
            self.unevaluated += folded.unevaluated
            if folded.handed:
                self._handed.setdefault(record.id, []).extend(folded.handed)
            if folded.rings:
                self._rings.setdefault(record.id, []).extend(folded.rings)
        return made

    def _leave_out(
        self,
        by_lead: dict[str, list[LeadEvent]],
        stored: Mapping[str, list[tuple[LeadEvent, int]]],
        late: dict[str, tuple[datetime, str, str]],
        moves: dict[str, list[Move]],
    ) -> None:
        """Take events beyond the horizon out of `by_lead`; a lead with no other late one is not `late`."""
        if self._late_within is None:
            return
        now, playbooks = self._journal.recorded_at, self._shelf.at(self._epoch)
        for lead_id in list(late):
            frozen = horizon.frozen_to((e for e, _ in stored[lead_id]), now, self._late_within)
            by_lead[lead_id], beyond = horizon.parted(by_lead[lead_id], frozen)
            for event in beyond:
                outcome = self._outcome(event)
                outcome.late = outcome.beyond_horizon = True
                said = horizon.warning(self._late_within)
                outcome.warning = "; ".join(filter(None, (outcome.warning, said)))
            self._beyond += beyond
            counted, record = by_lead[lead_id], self._records[lead_id]
            if beyond and lead_id not in self._changes and not any(
                e.place < late[lead_id] for e in counted
            ):  # fmt: skip
                del late[lead_id]
                moves[lead_id] = self._fold_on(playbooks, record, counted)

    async def _refold(
        self,
        by_lead: dict[str, list[LeadEvent]],
        late: dict[str, tuple[datetime, str, str]],
        moves: dict[str, list[Move]],
    ) -> dict[str, tuple[list[Move], dict[str, list[Past]], tuple[datetime, str, str]]]:
        """Fold the leads with late events again: from their stored events and the new ones.

        Those whose late events all lie beyond the horizon are no more `late`, and their `moves` go on.
        """
        stored = await store.events_of_leads(self._connection, list(late))
        self._leave_out(by_lead, stored, late, moves)
        ids = list(late)
        if not ids:
            return {}
        for lead_id in ids:
            stored[lead_id] += [(event, self._epoch) for event in by_lead[lead_id]]
        if any(epoch > self._shelf.epoch for id in ids for _, epoch in stored[id]):
            await self._shelf.load(self._connection)  # published while we waited for the lock
        past = await store.history(self._connection, ids)
        self._journal.told_before = await store.told_before(self._connection, ids)
        histories: dict[str, Any] = {}
        for lead_id in ids:
            record = self._records[lead_id]
            whole = funnel.refold(stored[lead_id], self._shelf.at)
            record.lead = whole.lead
            self.unevaluated += whole.unevaluated
            self._given[lead_id] = {
                (funnel.journey_name(str(e.data["playbook"]), e.deal), str(e.data["role"]))
                for e, _ in stored[lead_id]
                if offers.is_assignment(e)
            }
            self._handed[lead_id], self._rings[lead_id] = whole.handed, whole.rings
            histories[lead_id] = (whole.moves, past.get(lead_id, {}), late[lead_id])
        return histories

    async def _lock_rotations(
        self,
        moves: dict[str, list[Move]],
        histories: Mapping[str, Any],
        assigned: Mapping[str, list[LeadEvent]],
    ) -> None:
        """Lock the rotations of the roles that may need a person chosen."""
        for lead_id, made in [*moves.items(), *((i, h[0]) for i, h in histories.items())]:
            record = self._records[lead_id]
            for move in made:
                facts = record.facts.get(move.journey)
                for role in (move.role, *self._stage_alerts(move)):
                    owner = facts.owners.get(role) if facts is not None else None
                    if owner is None or self._assigner.person(owner.id) is None:
                        self._assigner.expect(role, record, self._playbook(move))
        for lead_id in histories:
            # A correction may bring back the first stage, which no move enters.
            for playbook in self._shelf.at(self._epoch).values():
                for stage in playbook.stages.values():
                    for role in (stage.responsible[0], *stage.alerts):
                        self._assigner.expect(role, self._records[lead_id], playbook)
        for lead_id, events in assigned.items():
            for event in events:
                playbook = self._shelf.at(self._epoch)[str(event.data["playbook"])]
                self._assigner.expect(str(event.data["role"]), self._records[lead_id], playbook)
        for lead_id, changes in self._handed.items():
            for change in changes:
                if change.offer.round > 1 and change.event.type == HANDOFF_REJECTED:
                    playbook = self._shelf.at(self._epoch)[change.playbook]
                    self._assigner.expect(change.offer.role, self._records[lead_id], playbook)
        await self._assigner.lock(self._connection)

    def _stage_alerts(self, move: Move) -> Sequence[str]:
        return self._playbook(move).stages[move.to_stage].alerts

    def _playbook(self, move: Move) -> Playbook:
        return self._shelf.version(move.playbook, move.version)

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

    def _hand_over(
        self, lead_id: str, events: list[LeadEvent], recorded: Mapping[str, Any] | None
    ) -> None:
        """Write down what became of a lead's handoffs and clocks; `recorded`: its history was told anew."""
        record, playbooks = self._records[lead_id], self._shelf.at(self._epoch)
        handed, rings = self._handed.get(lead_id, ()), self._rings.get(lead_id, ())
        is_asked = [e for e in events if offers.is_assignment(e)]
        if recorded is not None:
            self._handing.reconcile(record, playbooks, events, handed, rings, recorded)
        elif handed or rings or is_asked:
            self._handing.follow(record, playbooks, events, handed, rings)
        lead, before = record.lead, self._before[lead_id]
        assert lead is not None  # noqa: S101
        for event in is_asked:
            name = funnel.journey_name(str(event.data["playbook"]), event.deal)
            if name in lead.journeys:
                self._changed[lead_id, name] = record
        self._warn_of_answers(events, handed)
        rung = {(r.event.source, r.event.id) for r in rings}
        void = [e for e in events if offers.is_clock(e) and (e.source, e.id) not in rung]
        for name, journey in lead.journeys.items():
            ticking = record.facts[name].clocks
            if (
                (lead_id, name) not in self._changed
                and not void
                and not rings
                and not any(clock.step for clock in ticking.values())
            ):
                continue
            self._handing.clocks.wind(
                record,
                name,
                playbooks.get(journey.playbook),
                void,
                rings,
                again=recorded is not None,
            )
        if before is not None and recorded is not None:
            for name in before.journeys.keys() - lead.journeys.keys():
                self._handing.clocks.end_all(record, name, lead.last[0])

    def _warn_of_answers(self, events: Sequence[LeadEvent], handed: Sequence[Handed]) -> None:
        """Tell whoever answered a handoff what is odd about it: nothing waited, or a no without reason."""
        answers = [e for e in events if e.type in offers.ANSWERS and e.source != SOURCE]
        if not answers:
            return
        met = {(c.event.source, c.event.id) for c in handed}
        for event in answers:
            outcome = self._outcome(event)
            said = "no handoff waited for this answer: it is kept, and changes nothing"
            if (event.source, event.id) in met:
                reason = event.data.get("reason")
                is_odd = event.type == HANDOFF_REJECTED and not reason
                said = "a rejection without data.reason" if is_odd else None
            if said is not None:
                outcome.warning = "; ".join(filter(None, (outcome.warning, said)))

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
            self._tell(event, row, move)

    def _revise(
        self,
        record: Record,
        causes: Mapping[tuple[str, str], LeadEvent],
        moves: list[Move],
        past_by_journey: dict[str, list[Past]],
        last: tuple[Any, ...],
    ) -> None:
        """Record what late events, a merge or a parting change in the lead's history (I7)."""
        change = self._changes.get(record.id)
        if change is None:
            change = change_by(next(e for e in causes.values() if e.place < last))

        def is_new(move: Move) -> bool:
            event = causes.get((move.event_source, move.event_id))
            return event is not None and event.place > last

        before = self._before[record.id]
        for move in self._corrections.revise(
            record, before, moves, past_by_journey, is_new, change, self._tell
        ):
            self._transition(record, move, causes, change.cause)
        self._corrections.set_aside(record, moves, self._given[record.id])

    def _outcome(self, event: LeadEvent) -> Outcome:
        return self._outcomes[event.source, event.id]

    def _tell(self, event: LeadEvent, row: TransitionRow, move: Move) -> None:
        self._outcome(event).transitions.append(Brief(
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
        if self._handing.gone:
            await store_handoffs.withdraw(
                self._connection, self._handing.gone, self._journal.recorded_at
            )
        if self._corrections.ended:
            await store.end_journeys(self._connection, self._corrections.ended)
        if self._corrections.shifted:
            await store.shift_visits(self._connection, self._corrections.shifted)
        if written.replaced:
            await store.replace_transitions(self._connection, written.replaced)
        everything = store.Written(
            self.regrouping.claims, fresh, self._epoch, records, {r.id: self._score(r) for r in records},
            [
                (r, name, journey_id(r.id, name), self._holder(r, name))
                for (_, name), r in self._changed.items()
            ],
            written.rows, self._assigner.turns, written.messages,
        )  # fmt: skip
        await self._assigner.own_accounts(self._connection)
        beside = store_handoffs.beside(*self._handing.rows) if self._handing.has_rows else None
        self.published = await store.write(self._connection, everything, beside)
        if self.published is None:
            raise RacedError
        if self._beyond:
            await store.mark_beyond(self._connection, [(e.source, e.id) for e in self._beyond])

    def _holder(self, record: Record, name: str) -> str | None:
        """Give who works on a journey now: its stage's owner, while it is open or a customer's."""
        assert record.lead is not None  # noqa: S101
        journey = record.lead.journeys[name]
        playbook = self._shelf.version(journey.playbook, journey.version)
        stage = playbook.stages.get(journey.stage)
        if stage is None or stage.kind not in HELD_KINDS:
            return None
        owner = record.facts[name].owners.get(stage.responsible[0])
        return owner.id if owner else None

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
