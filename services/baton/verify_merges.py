"""What `baton verify` checks of merged leads: nothing is lost between two leads, and all can be undone."""

from __future__ import annotations

from collections.abc import Callable

from services.contracts.events import LEAD_MERGED, LEAD_UNMERGED
from services.stage_service import store
from services.stage_service.journal import journey_id
from services.stage_service.store import Connection

# Each lead with the one it is part of in the end. A lead in a circle, or behind one that is gone, has none.
_ROOTS = """
WITH RECURSIVE part(lead, root) AS (
  SELECT id, id FROM stage.leads WHERE merged_into IS NULL
  UNION ALL SELECT l.id, p.root FROM stage.leads l JOIN part p ON l.merged_into = p.lead)
"""

_COUNTS = {
    "{count} merged leads lead nowhere": """
        SELECT count(*) FROM stage.leads l WHERE NOT EXISTS (SELECT FROM part p WHERE p.lead = l.id)""",
    "{count} leads are merged, and no merge says so": """
        SELECT count(*) FROM stage.leads l WHERE merged_into IS NOT NULL AND NOT EXISTS
          (SELECT FROM stage.merges m WHERE m.merged = l.id AND m.survivor = l.merged_into
           AND m.undone_at IS NULL)""",
    "{count} merges hold, and their leads are apart": """
        SELECT count(*) FROM stage.merges m WHERE undone_at IS NULL AND NOT EXISTS
          (SELECT FROM stage.leads l WHERE l.id = m.merged AND l.merged_into = m.survivor)""",
    "{count} rows of stage.events are of a merged lead": """
        SELECT count(*) FROM stage.events e JOIN stage.leads l ON l.id = e.lead_id
        WHERE l.merged_into IS NOT NULL""",
    "{count} rows of stage.identities are of a merged lead": """
        SELECT count(*) FROM stage.identities i JOIN stage.leads l ON l.id = i.lead_id
        WHERE l.merged_into IS NOT NULL""",
    "{count} rows of stage.journeys are of a merged lead": """
        SELECT count(*) FROM stage.journeys j JOIN stage.leads l ON l.id = j.lead_id
        WHERE l.merged_into IS NOT NULL""",
    "{count} events are not with the lead they were of before a merge": """
        SELECT count(*) FROM stage.events e WHERE own_lead_id IS NOT NULL AND NOT EXISTS
          (SELECT FROM part p WHERE p.lead = e.own_lead_id AND p.root = e.lead_id)""",
    "{count} identities are not with the lead they were of before a merge": """
        SELECT count(*) FROM stage.identities i WHERE own_lead_id IS NOT NULL AND NOT EXISTS
          (SELECT FROM part p WHERE p.lead = i.own_lead_id AND p.root = i.lead_id)""",
    "{count} merges name an event that is not stored": """
        SELECT count(*) FROM stage.merges m WHERE NOT EXISTS
          (SELECT FROM stage.events e WHERE e.source = m.event_source AND e.id = m.event_id)""",
    "{count} merges were undone by an event that is not stored": """
        SELECT count(*) FROM stage.merges m WHERE undone_event_id IS NOT NULL AND NOT EXISTS
          (SELECT FROM stage.events e WHERE e.source = 'baton' AND e.id = m.undone_event_id)""",
}  # fmt: skip

_UNTOLD = """
SELECT (SELECT 2 * count(*) + 2 * count(undone_at) FROM stage.merges) -
  (SELECT count(*) FROM bus.outbox WHERE headers ->> 'ce_type' IN ($1, $2))
"""


async def check_merges(connection: Connection, found: Callable[[str], None]) -> int:
    """Look at all merges; `found` hears of what is wrong. Gives how many there are."""
    merges = await connection.fetchval("SELECT count(*) FROM stage.merges")
    for finding, query in _COUNTS.items():
        count = await connection.fetchval(_ROOTS + query)
        if count:
            found(finding.format(count=count))
    untold = await connection.fetchval(_UNTOLD, LEAD_MERGED, LEAD_UNMERGED)
    if untold:
        found(f"merges and what was published of them differ by {untold} messages")
    await _ended(connection, found)
    return merges


async def _ended(connection: Connection, found: Callable[[str], None]) -> None:
    """Check that the records of merged leads are still there, numbered as when they were merged."""
    async for id, state in connection.cursor(
        "SELECT id::text, state FROM stage.leads WHERE merged_into IS NOT NULL ORDER BY id"
    ):
        record = store.unpack_record(id, state)
        names = {journey_id(id, name): facts.sequence for name, facts in record.facts.items()}
        rows = await connection.fetch(
            """SELECT journey_id::text, count(*), max(sequence) FROM stage.transitions
               WHERE journey_id = ANY($1::uuid[]) GROUP BY journey_id""",
            list(names),
        )
        counted = {journey: (count, newest) for journey, count, newest in rows}
        for journey, sequence in names.items():
            if counted.get(journey, (0, 0)) != (sequence, sequence):
                found(
                    f"journey {journey} of a merged lead: its records are not numbered to {sequence}"
                )
