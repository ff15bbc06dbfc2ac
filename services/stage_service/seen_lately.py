"""What events brought lately, for the checks of a playbook: a query over the event table."""

from __future__ import annotations

from services.contracts.postgres_log import Executor
from services.stage_service.playbook_seen import Seen


async def seen_lately(executor: Executor, days: int) -> Seen:
    """Give the event types, and the attributes that had a value, of the last `days` days."""
    rows = await executor.fetch(
        """WITH lately AS (SELECT type, data FROM stage.events
                           WHERE recorded_at >= now() - make_interval(days => $1))
           SELECT true AS is_type, type AS name FROM lately GROUP BY type
           UNION ALL
           SELECT false, key FROM lately, jsonb_each(data) WHERE value <> 'null' GROUP BY key""",
        days,
    )
    return Seen(
        days,
        frozenset(row["name"] for row in rows if row["is_type"]),
        frozenset(row["name"] for row in rows if not row["is_type"]),
    )
