"""Channels that fail or were asked to wait rest, for all replicas; one that works has no row.

What waits for a resting channel stays as it is and uses up no tries. When the rest is over one message at a
time tries the channel; each failure then lengthens the rest.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import asyncpg

FAILURES_MAX = 3
"""After so many in a row a channel rests, and only one message at a time tries it."""
REST_S = 5
REST_S_MAX = 300

_CHANNEL_FAILED = """
INSERT INTO notifier.channels AS c (label, failures, reason, changed_at) VALUES ($1, 1, $3, $2)
ON CONFLICT (label) DO UPDATE SET failures = c.failures + 1, reason = $3, changed_at = $2,
  rests_until = CASE WHEN c.failures + 1 < $4 THEN NULL ELSE $2
    + make_interval(secs => least($5 * power(2, least(c.failures + 1 - $4, 16)), $6)) END
RETURNING failures
"""

_CHANNEL_RESTS = """
INSERT INTO notifier.channels AS c (label, failures, rests_until, reason, changed_at)
VALUES ($1, 0, $3, $4, $2)
ON CONFLICT (label) DO UPDATE SET rests_until = $3, reason = $4, changed_at = $2
"""


async def failed(pool: asyncpg.Pool[Any], label: str, reason: str | None, now: datetime) -> int:
    """Count a failure of the channel itself; after some in a row it rests. Gives how many in a row."""
    return await pool.fetchval(
        _CHANNEL_FAILED, label, now, reason, FAILURES_MAX, float(REST_S), float(REST_S_MAX)
    )


async def rest(
    pool: asyncpg.Pool[Any], label: str, for_s: float, reason: str | None, now: datetime
) -> None:
    """Let the channel rest as long as it asked for."""
    await pool.execute(_CHANNEL_RESTS, label, now, now + timedelta(seconds=for_s), reason)


async def works(pool: asyncpg.Pool[Any], label: str) -> None:
    """Forget what the channel did wrong."""
    await pool.execute("DELETE FROM notifier.channels WHERE label = $1", label)


async def states(pool: asyncpg.Pool[Any]) -> list[Any]:
    """Give the channels that fail or rest, by label."""
    return await pool.fetch(
        "SELECT label, failures, rests_until, reason, changed_at FROM notifier.channels ORDER BY label"
    )
