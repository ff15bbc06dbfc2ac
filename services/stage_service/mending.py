"""Putting a lead right whose stored rows are not what its events fold to (`baton verify --repair`).

The lead's row is locked; everything is written in one transaction, the lane's own way (`Batch.mend`). What
is written is what the events prove; a lost record comes back as its published message tells it. What
nothing proves any more is left, and said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import CORRECTED, MAIN, TRANSITIONED, TRANSITIONS_TOPIC, LeadEvent
from services.contracts.published import StageTransitioned as Told
from services.contracts.roster import Roster
from services.stage_service import funnel, store
from services.stage_service.batch import Batch
from services.stage_service.clocks import Ticking
from services.stage_service.funnel import Journey, Lead, Move, Refolded, journey_name
from services.stage_service.identities import LEAD_IDENTITY, Policy, keys_of
from services.stage_service.journal import journey_id
from services.stage_service.shelf import Shelf
from services.stage_service.store import Connection, Facts, Owner, Record, TransitionRow, as_json

BECAUSE = "what was stored differed from the events, and was repaired"

_ROW = ", ".join(TransitionRow.__struct_fields__)
_COLUMNS = ", ".join(
    f"t.{n}::text" if n in ("id", "journey_id", "lead_id", "why") else f"t.{n}"
    for n in TransitionRow.__struct_fields__
).replace("t.replaces", "t.replaces::text[]")
_LOCK = """
SELECT state FROM stage.leads WHERE id = $1::uuid AND merged_into IS NULL FOR NO KEY UPDATE
"""
_NUMBERS = """
SELECT journey_id::text, array_agg(sequence ORDER BY sequence) AS numbers, max(sequence) AS newest
FROM stage.transitions WHERE journey_id = ANY($1::uuid[]) GROUP BY journey_id
"""
_UNTOLD = f"""
SELECT {_COLUMNS}, j.key AS journey_key FROM stage.transitions t
  LEFT JOIN stage.journeys j ON j.id = t.journey_id
WHERE t.id = ANY($1::uuid[])
  AND NOT EXISTS (SELECT FROM bus.outbox o WHERE o.message_id = t.id::text)
ORDER BY t.journey_id, t.sequence
"""  # noqa: S608
_RESTORE = f"""
INSERT INTO stage.transitions ({_ROW}, replaced_by)
SELECT k.*, (SELECT r.id FROM stage.transitions r
  WHERE r.journey_id = k.journey_id AND k.id = ANY(r.replaces) ORDER BY r.sequence LIMIT 1)
FROM unnest($1::stage.transition_row[]) AS k
"""  # noqa: S608
_CLOCKS = """
SELECT playbook, deal, key, id::text, since, deadline, step, due_at, person_id AS person,
  handoff_id::text, stage, begin
FROM stage.clocks WHERE lead_id = $1::uuid AND state = 'running'
"""
_decode = msgspec.json.Decoder(dict[str, Any]).decode


async def locked_record(connection: Connection, lead_id: str) -> Record | None:
    """Lock the lead and give its record; its `lead` is None when it cannot be read. None: no such lead.

    The facts are completed from the rows: who owns a journey, and how many records it has.
    """
    state = await connection.fetchval(_LOCK, lead_id)
    if state is None:
        return None
    try:
        record = store.unpack_record(lead_id, state)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError):
        record = Record(lead_id, None, {})
    for name, facts in (await _facts_of_rows(connection, lead_id)).items():
        record.facts.setdefault(name, facts)
    return record


async def _facts_of_rows(connection: Connection, lead_id: str) -> dict[str, Facts]:
    """Give what the rows know of the lead's facts: owners, and the clocks that run, by journey."""
    found: dict[str, Facts] = {}
    for row in await connection.fetch(
        "SELECT playbook, key, owners FROM stage.journeys WHERE lead_id = $1::uuid", lead_id
    ):
        owners = {
            role: Owner(o["id"], o["name"], o.get("why") or "")
            for role, o in msgspec.json.decode(row["owners"]).items()
        }
        found[journey_name(row["playbook"], row["key"])] = Facts(0, owners, {})
    for row in await connection.fetch(_CLOCKS, lead_id):
        clock = dict(row)
        name, key = journey_name(clock.pop("playbook"), clock.pop("deal")), clock.pop("key")
        running = found.setdefault(name, Facts(0, {}, {})).clocks
        # Whom its steps have told stands in the state alone.
        running[key] = Ticking(**clock, told=[])
    return found


class Mending:
    """Mends one locked lead at a time, in the transaction of `connection`."""

    def __init__(
        self,
        connection: Connection,
        shelf: Shelf,
        roster: Roster,
        policy: Policy,
        now: datetime,
        new_id: Callable[[], str],
    ) -> None:
        self._connection = connection
        self._shelf = shelf
        self._roster = roster
        self._policy = policy
        self._now = now
        self._new_id = new_id

    async def mend(
        self,
        record: Record,
        events: Sequence[tuple[LeadEvent, int]],
        untold_ids: Sequence[str] = (),
    ) -> int:
        """Put the lead of `record` right, from all its stored `events`; gives how many messages that made.

        `untold_ids` are its records that may have no message. There must be events. Raises what the fold
        or the database raises: then nothing can be done.
        """
        if any(epoch > self._shelf.epoch for _, epoch in events):
            await self._shelf.load(self._connection)
        whole = funnel.refold(events, self._shelf.at)
        assert whole.lead is not None  # noqa: S101  there are events
        if record.lead is not None and _place(record.lead) != _place(whole.lead):
            # The state is not of these events, and so are its facts not: the rows know better.
            record.lead, record.facts = None, await _facts_of_rows(self._connection, record.id)
        counted = {name: facts.sequence for name, facts in record.facts.items()}
        await self._claim(record.id, [event for event, _ in events])
        await self._restore_journeys(record, whole)
        await self._restore_records(record, whole, counted)
        untold = await self._untold(untold_ids)
        batch = Batch(
            self._connection, self._shelf, self._roster, self._now, self._new_id, self._policy
        )
        cause = max((event for event, _ in events), key=lambda e: e.place)
        made = await batch.mend(record, cause, BECAUSE, untold)
        await self._end_strange_clocks(record)
        return made

    async def _claim(self, lead_id: str, events: Sequence[LeadEvent]) -> None:
        """Claim what the lead's events name and nobody owns, when it owns nothing of what one names."""
        owned = {
            (r["kind"], r["value"])
            for r in await self._connection.fetch(
                "SELECT kind, value FROM stage.identities WHERE lead_id = $1::uuid", lead_id
            )
        }
        lost: set[tuple[str, str]] = set()
        for event in events:
            keys = {k for k in keys_of(event.identities, event.data, self._policy)[0]
                    if k[0] != LEAD_IDENTITY}  # fmt: skip
            if keys and keys.isdisjoint(owned):
                lost |= keys
        for kind, value in sorted(lost):
            await self._connection.execute(
                """INSERT INTO stage.identities (kind, value, lead_id) VALUES ($1, $2, $3::uuid)
                   ON CONFLICT (kind, value) DO NOTHING""",
                kind, value, lead_id,
            )  # fmt: skip

    async def _restore_journeys(self, record: Record, whole: Refolded) -> None:
        """Put back rows of journeys that are gone, and take away empty ones that the events do not know."""
        assert whole.lead is not None  # noqa: S101
        rows = await self._connection.fetch(
            """SELECT j.id::text, EXISTS (SELECT FROM stage.transitions t WHERE t.journey_id = j.id
                 AND t.replaced_by IS NULL) AS holds
               FROM stage.journeys j WHERE lead_id = $1::uuid""",
            record.id,
        )
        there = {row["id"] for row in rows}
        lost: dict[str, Journey] = {}
        for name, journey in whole.lead.journeys.items():
            record.facts.setdefault(name, Facts(0, {}))
            if journey_id(record.id, name) not in there:
                lost[name] = journey
        if lost:
            lead = msgspec.structs.replace(whole.lead, journeys=lost)
            again = Record(record.id, lead, record.facts)
            await store.restore_journeys(self._connection, again, journey_id)
        known = {
            journey_id(record.id, name)
            for lead in (whole.lead, record.lead) if lead is not None for name in lead.journeys
        }  # fmt: skip
        strange = [row["id"] for row in rows if row["id"] not in known and not row["holds"]]
        await store.end_journeys(self._connection, strange)

    async def _restore_records(
        self, record: Record, whole: Refolded, counted: Mapping[str, int]
    ) -> None:
        """Put back records that are gone, as their messages tell them; count them as they are then."""
        ids = {journey_id(record.id, name): name for name in record.facts}
        numbers = await self._numbers(ids)
        missing = {
            (id, n)
            for id, name in ids.items()
            for n in range(1, max([counted.get(name, 0), *numbers.get(id, [])]) + 1)
            if n not in numbers.get(id, ())
        }
        if missing:
            rows = await self._messages(record.id, missing, whole)
            await self._connection.execute(_RESTORE, [msgspec.structs.astuple(row) for row in rows])
            numbers = await self._numbers(ids)
        for id, name in ids.items():
            # The next record goes on from what is there: two of one number there cannot be.
            record.facts[name].sequence = max(numbers.get(id, [0]))

    async def _numbers(self, ids: Mapping[str, str]) -> dict[str, list[int]]:
        rows = await self._connection.fetch(_NUMBERS, list(ids))
        return {row["journey_id"]: row["numbers"] for row in rows}

    async def _messages(
        self, lead_id: str, missing: set[tuple[str, int]], whole: Refolded
    ) -> list[TransitionRow]:
        """Read lost records out of what was published of the lead."""
        found: list[TransitionRow] = []
        moves = {(journey_id(lead_id, m.journey), m.identity): m for m in whole.moves}
        for row in await self._connection.fetch(
            "SELECT headers, value FROM bus.outbox WHERE topic = $1 AND key = $2 ORDER BY id",
            TRANSITIONS_TOPIC, lead_id,
        ):  # fmt: skip
            type = _decode(row["headers"]).get("ce_type")
            if type not in (TRANSITIONED, CORRECTED):
                continue
            told = msgspec.json.decode(row["value"], type=Told)
            if (told.journey.id, told.sequence) in missing:
                restored = _row_of(lead_id, type, told, moves)
                if restored is not None:
                    found.append(restored)
        return found

    async def _untold(self, ids: Sequence[str]) -> list[tuple[TransitionRow, str, bool]]:
        rows = await self._connection.fetch(_UNTOLD, ids) if ids else []
        return [
            (TransitionRow(*row[:-1]), row["journey_key"] or MAIN, row["journey_key"] is None)
            for row in rows
        ]

    async def _end_strange_clocks(self, record: Record) -> None:
        """End clocks that no journey of the lead knows: as void, they count as neither met nor missed."""
        known = [clock.id for facts in record.facts.values() for clock in facts.clocks.values()]
        await self._connection.execute(
            """UPDATE stage.clocks SET state = CASE WHEN missed_at IS NULL THEN 'void' ELSE 'missed' END,
                 due_at = NULL, claimed_until = NULL, ended_at = $3, updated_at = now()
               WHERE lead_id = $1::uuid AND state = 'running' AND id <> ALL($2::uuid[])""",
            record.id, known, self._now,
        )  # fmt: skip


def _place(lead: Lead) -> tuple[Any, ...]:
    return (lead.first_seen_at, *lead.last)


def _row_of(
    lead_id: str, type: str, told: Told, moves: Mapping[tuple[str, Any], Move]
) -> TransitionRow | None:
    """Give the record that a message told of; None when its visit is not known any more."""
    cause = told.cause
    identity = (
        told.from_, told.to, told.occurred_at, cause.event_source, cause.event_id, cause.rule
    )  # fmt: skip
    move = moves.get((told.journey.id, identity))
    kind = "transition" if type == TRANSITIONED else "correction"
    if told.from_ == told.to and type == CORRECTED:
        kind, entered, why = "retraction", told.occurred_at, {"retracted": told.replaces}
    elif move is not None:
        entered, why = move.visit_entered_at, move.why
    else:
        return None
    owner = told.responsible.owner
    return TransitionRow(
        told.journey.id, told.sequence, told.transition_id, lead_id, kind, told.journey.playbook,
        told.playbook_version, told.from_, told.to, entered, told.occurred_at, told.recorded_at,
        cause.event_source, cause.event_id, cause.event_type, cause.rule, cause.actor,
        told.responsible.role, owner.id if owner else None, told.handoff, told.skipped,
        told.explanation, as_json(why), told.replaces,
    )  # fmt: skip
