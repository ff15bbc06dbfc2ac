"""All leads of one moment, judged under the active version of a playbook and under another. Reads only.

One snapshot of the database; some hundred leads are held at a time, so a million takes no more memory. The
judging runs beside the event loop, in short pieces: requests go on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import asyncpg

from services.stage_service.journeys import journey_name
from services.stage_service.playbook import Playbook
from services.stage_service.playbook_impact import Impact, ImpactTally
from services.stage_service.store import Connection, unpack_state

LEADS_A_TIME = 250
_FIRST = "00000000-0000-0000-0000-000000000000"
_LEADS = """
SELECT id::text AS id, state FROM stage.leads WHERE merged_into IS NULL AND id > $1::uuid ORDER BY id LIMIT $2
"""
# The record that holds with the highest number is the last move: corrections replace by number.
_BROUGHT = """
SELECT j.lead_id::text AS lead_id, j.key, t.rule FROM stage.journeys j
CROSS JOIN LATERAL (
  SELECT rule FROM stage.transitions
  WHERE journey_id = j.id AND replaced_by IS NULL AND kind <> 'retraction'
  ORDER BY sequence DESC LIMIT 1) t
WHERE j.lead_id = ANY($1::uuid[]) AND j.playbook = $2 AND j.stage = ANY($3) AND t.rule IS NOT NULL
"""


async def impact_of(
    pool: asyncpg.Pool[Any],
    before: Playbook,
    after: Playbook,
    now: datetime,
    moved: Mapping[str, str] | None = None,
) -> Impact:
    """Give what `after` in the place of `before`, a published version, means for the leads of now.

    `moved` says where the journeys of stages that are gone go on; None: as the file says.
    """
    tally = ImpactTally(before, after, now, moved)
    async with (
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        last = _FIRST
        while rows := await connection.fetch(_LEADS, last, LEADS_A_TIME):
            last = rows[-1]["id"]
            brought = await _brought(connection, [r["id"] for r in rows], before.name, tally)
            await asyncio.to_thread(_judge, tally, rows, brought)
    return tally.result()


def _judge(tally: ImpactTally, rows: Sequence[Any], brought: dict[str, dict[str, str]]) -> None:
    for row in rows:
        lead = unpack_state(row["state"])
        if lead is not None:
            tally.add(lead, brought.get(row["id"], {}))


async def _brought(
    connection: Connection, ids: Sequence[str], playbook: str, tally: ImpactTally
) -> dict[str, dict[str, str]]:
    """Give the rule of the last move of journeys that a changed rule may have brought where they are."""
    stages = sorted(set(tally.changed_rules.values()))
    if not stages:
        return {}
    found: dict[str, dict[str, str]] = {}
    for lead_id, key, rule in await connection.fetch(_BROUGHT, ids, playbook, stages):
        found.setdefault(lead_id, {})[journey_name(playbook, key)] = rule
    return found
