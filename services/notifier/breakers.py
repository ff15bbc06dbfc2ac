"""Channels that fail or were asked to wait rest, for all replicas; one that works has no row.

What waits for a resting channel stays as it is and uses up no tries. When the rest is over one message at a
time tries the channel; each failure then lengthens the rest. While it is tried, the rest is that message's
lease; a rest that is not the sender's own lease is somebody else's news, and only ever made longer.
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
  rests_until = greatest(CASE WHEN c.rests_until = $7 THEN NULL ELSE c.rests_until END,
    CASE WHEN c.failures + 1 >= $4 THEN $2
      + make_interval(secs => least($5 * power(2, least(c.failures + 1 - $4, 16)), $6)) END)
RETURNING failures
"""

_CHANNEL_RESTS = """
INSERT INTO notifier.channels AS c (label, failures, rests_until, reason, changed_at)
VALUES ($1, 0, $3, $4, $2)
ON CONFLICT (label) DO UPDATE SET reason = $4, changed_at = $2,
  rests_until = greatest($3, CASE WHEN c.rests_until = $5 THEN NULL ELSE c.rests_until END)
"""

_CHANNEL_WORKS = """
DELETE FROM notifier.channels
WHERE label = $1 AND (rests_until IS NULL OR rests_until <= $2 OR rests_until = $3)
"""


async def failed(
    pool: asyncpg.Pool[Any],
    label: str,
    reason: str | None,
    now: datetime,
    lease: datetime | None = None,
) -> int:
    """Count a failure of the channel itself; after some in a row it rests. Gives how many in a row.

    `lease`: until when the message that failed was claimed.
    """
    return await pool.fetchval(
        _CHANNEL_FAILED, label, now, reason, FAILURES_MAX, float(REST_S), float(REST_S_MAX), lease
    )


async def rest(
    pool: asyncpg.Pool[Any],
    label: str,
    for_s: float,
    reason: str | None,
    now: datetime,
    lease: datetime | None = None,
) -> None:
    """Let the channel rest as long as it asked for; `lease` as in `failed`."""
    until = now + timedelta(seconds=for_s)
    await pool.execute(_CHANNEL_RESTS, label, now, until, reason, lease)


async def works(pool: asyncpg.Pool[Any], label: str, now: datetime, lease: datetime) -> None:
    """Forget what the channel did wrong, unless it rests for what came up meanwhile."""
    await pool.execute(_CHANNEL_WORKS, label, now, lease)


async def untried(pool: asyncpg.Pool[Any], label: str, lease: datetime) -> None:
    """Let another message try the channel: the one that should have was not sent at all."""
    await pool.execute(
        "UPDATE notifier.channels SET rests_until = NULL WHERE label = $1 AND rests_until = $2",
        label, lease,
    )  # fmt: skip


async def states(pool: asyncpg.Pool[Any]) -> list[Any]:
    """Give the channels that fail or rest, by label."""
    return await pool.fetch(
        "SELECT label, failures, rests_until, reason, changed_at FROM notifier.channels ORDER BY label"
    )
