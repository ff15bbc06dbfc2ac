"""What a board asks beyond its cards: owners of the deal before, scores under its playbook, last moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

MOVES_OF_ONE = 3
"""So many last moves of one journey are looked at."""

_OWNERS = text("""
SELECT lead_id, key, owners FROM stage.journeys
WHERE playbook = :playbook AND lead_id = ANY(CAST(:leads AS uuid[]))
""")

_STATES = text("SELECT id, state FROM stage.leads WHERE id = ANY(CAST(:leads AS uuid[]))")

_MOVES = text("""
SELECT t.id AS transition_id, t.recorded_at, t.explanation, t.kind, t.lead_id, l.name, l.company, l.email
FROM stage.journeys j
  JOIN LATERAL (
    SELECT * FROM stage.transitions WHERE journey_id = j.id ORDER BY sequence DESC LIMIT :each) t ON true
  JOIN stage.leads l ON l.id = j.lead_id
WHERE j.playbook = :playbook AND j.lead_id = ANY(CAST(:leads AS uuid[]))
ORDER BY t.recorded_at DESC, t.id DESC LIMIT :most
""")


async def owners_in(
    engine: AsyncEngine, playbook: str, leads: Sequence[str]
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Give the owners by role of the journeys of `leads` through `playbook`, by (lead id, key)."""
    async with engine.connect() as connection:
        rows = await connection.execute(_OWNERS, {"playbook": playbook, "leads": list(leads)})
        return {(str(r.lead_id), r.key): r.owners for r in rows}


async def states_of(engine: AsyncEngine, leads: Sequence[str]) -> dict[str, bytes]:
    """Give the packed fold states of `leads` by their id."""
    async with engine.connect() as connection:
        rows = await connection.execute(_STATES, {"leads": list(leads)})
        return {str(r.id): r.state for r in rows if r.state is not None}


async def last_moves_of(
    engine: AsyncEngine, playbook: str, leads: Sequence[str], most: int
) -> Sequence[RowMapping]:
    """Give the last moves of the journeys of `leads` through `playbook`, newest first."""
    asked = {"playbook": playbook, "leads": list(leads), "each": MOVES_OF_ONE, "most": most}
    async with engine.connect() as connection:
        return (await connection.execute(_MOVES, asked)).mappings().all()
