"""What a simulation reads of real history: the events of leads, and what was recorded of their journeys.

All reads of one simulation see one snapshot, in whatever process they run. The leads are those that did
something since a moment, or all; merged ones are part of the lead they were merged into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec

from services.contracts import events as contracts
from services.contracts.events import LeadEvent
from services.stage_service.funnel import journey_name
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.shelf import Shelf
from services.stage_service.simulation import Past, Step
from services.stage_service.store import Connection

NONE_YET = "00000000-0000-0000-0000-000000000000"
"""Before every lead's id."""

_LEADS = """
FROM stage.leads l WHERE merged_into IS NULL
  AND ($1::timestamptz IS NULL OR EXISTS (
    SELECT FROM stage.events e WHERE e.lead_id = l.id AND e.time >= $1))
"""
_EVENTS = """
SELECT lead_id::text AS lead_id, source, id, type, time, recorded_at, deal, data, epoch
FROM stage.events WHERE lead_id = ANY($1::uuid[]) AND NOT beyond_horizon
"""
_MOVES = """
SELECT journey_id, occurred_at, from_stage, to_stage, coalesce(rule, 'by-hand') AS rule, event_type,
  event_source, event_id
FROM stage.transitions
WHERE journey_id = ANY($1::uuid[]) AND replaced_by IS NULL AND kind <> 'retraction'
ORDER BY journey_id, sequence
"""
_JOURNEYS = """
SELECT id, lead_id::text AS lead_id, playbook, key, stage, furthest_stage FROM stage.journeys
WHERE lead_id = ANY($1::uuid[])
"""
_HANDOFFS = """
SELECT h.journey_id, h.role, h.offered_at, h.answered_at FROM stage.handoffs h
WHERE h.lead_id = ANY($1::uuid[])
  -- What a corrected history does not know was answered by people, and is no part of it. What was offered by
  -- an assignment, within its role, has no transition.
  AND (h.round > 1 OR h.role = h.from_role OR EXISTS (
    SELECT FROM stage.transitions t
    WHERE t.journey_id = h.journey_id AND t.replaced_by IS NULL AND t.kind <> 'retraction'
      AND t.handoff AND t.to_stage = h.stage AND t.occurred_at = h.offered_at))
"""
_BOUNDS = f"""
SELECT id::text FROM (SELECT id, row_number() OVER (ORDER BY id) AS n {_LEADS}) AS leads
WHERE n % $2 = 0 ORDER BY id
"""  # noqa: S608  nothing here comes from outside
_NEXT = f"""
SELECT id::text {_LEADS} AND id > $2::uuid AND ($3 = '' OR id <= nullif($3, '')::uuid)
ORDER BY id LIMIT $4
"""
_decode = msgspec.json.Decoder(dict[str, Any]).decode


async def share_snapshot(connection: Connection) -> str:
    """Give the name by which others see what the open transaction of `connection` sees, while it is open."""
    return await connection.fetchval("SELECT pg_export_snapshot()")


async def join_snapshot(connection: Connection, snapshot: str) -> None:
    """Begin a read-only transaction of `connection` that sees what `share_snapshot` named."""
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    await connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")


async def count_leads(connection: Connection, since: datetime | None) -> int:
    """Give how many leads there are to fold."""
    return await connection.fetchval("SELECT count(*)" + _LEADS, since)


async def bounds(connection: Connection, since: datetime | None, every: int) -> list[str]:
    """Give the ids that cut the leads in pieces of `every`, in order."""
    rows = await connection.fetch(_BOUNDS, since, every)
    return [r["id"] for r in rows]


async def lead_ids(
    connection: Connection, since: datetime | None, after: str, until: str, limit: int
) -> list[str]:
    """Give the next ids after `after` up to `until` (an empty one: to the end), in order."""
    rows = await connection.fetch(_NEXT, since, after, until, limit)
    return [r["id"] for r in rows]


def parse_candidate(source: str, file: str, shelf: Shelf) -> Playbook:
    """Read the candidate as the version after the newest of its name. Raises SourceError."""
    candidate = parse_playbook(source, file)
    known = shelf.playbooks.get(candidate.name)
    return replace(candidate, version=known.version + 1 if known is not None else 1)


async def event_rows(connection: Connection, ids: Sequence[str]) -> list[Any]:
    """Give the stored events of leads, one row each, in no order."""
    return await connection.fetch(_EVENTS, ids)


def event_of(
    source: str, id: str, type: str, time: datetime, recorded_at: datetime, deal: str,
    data: bytes | str,
) -> LeadEvent:  # fmt: skip
    """Give a stored event as the fold takes it; `data` is JSON."""
    content = _decode(data)
    identities = contracts.identities_of(content)
    return LeadEvent(
        id, source, type, time, recorded_at, None,
        identities if isinstance(identities, tuple) else (), deal, content, {},
    )  # fmt: skip


async def events_of(
    connection: Connection, ids: Sequence[str]
) -> dict[str, list[tuple[LeadEvent, int]]]:
    """Give the events of leads with their epochs, by lead."""
    found: dict[str, list[tuple[LeadEvent, int]]] = {id: [] for id in ids}
    for lead_id, *told, epoch in await event_rows(connection, ids):
        found[lead_id].append((event_of(*told), epoch))
    return found


async def past_of(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, Past]]:
    """Give what was recorded of the journeys of leads, by lead and the journey's name."""
    journeys = await connection.fetch(_JOURNEYS, ids)
    moves: dict[Any, list[Step]] = {j["id"]: [] for j in journeys}
    handoffs: dict[Any, list[tuple[str, datetime, datetime | None]]] = {
        j["id"]: [] for j in journeys
    }
    for journey_id, *step in await connection.fetch(_MOVES, list(moves)):
        moves[journey_id].append(Step(*step))
    for journey_id, role, offered_at, answered_at in await connection.fetch(_HANDOFFS, ids):
        if journey_id in handoffs:
            handoffs[journey_id].append((role, offered_at, answered_at))
    found: dict[str, dict[str, Past]] = {}
    for j in journeys:
        name = journey_name(j["playbook"], j["key"])
        found.setdefault(j["lead_id"], {})[name] = Past(
            j["playbook"],
            j["key"],
            j["stage"],
            j["furthest_stage"],
            moves[j["id"]],
            handoffs[j["id"]],
        )
    return found
