"""What is kept for a time only: links that were used, and the texts of merged messages.

Any number of processes may prune; what one of them deletes the others leave alone. A link's mark is
forgotten when the link itself has expired, so that it is never good for a second use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import structlog

from services.notifier import metrics

EVERY_S = 3600.0
ROWS_MAX = 1000
"""Rows a statement deletes: none holds its locks for long."""
STOP_WITHIN_S = 2.0

_log = structlog.get_logger("baton.notifier")

_USED_LINKS = """
DELETE FROM notifier.used_links WHERE id IN (
  SELECT id FROM notifier.used_links WHERE used_at < $1 ORDER BY used_at LIMIT $2
  FOR UPDATE SKIP LOCKED)
"""

# One that is still to be sent is kept, however old.
_DIGESTS = """
DELETE FROM notifier.digests WHERE id IN (
  SELECT id FROM notifier.digests g
  WHERE created_at < $1 AND NOT EXISTS (SELECT FROM notifier.deliveries d
    WHERE d.digest_id = g.id AND d.status IN ('pending', 'claimed'))
  ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)
"""


class Pruner:
    """Deletes what is past its time, at the start and every hour, until stopped."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        link_valid_s: float,
        digest_keep_s: float,
        now: Callable[[], datetime],
    ) -> None:
        self._pool = pool
        self._keeps = (
            (_USED_LINKS, timedelta(seconds=link_valid_s)),
            (_DIGESTS, timedelta(seconds=digest_keep_s)),
        )
        self._now = now
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the loop."""
        self._loop = asyncio.create_task(self._run(), name="pruner")

    async def stop(self) -> None:
        """End the loop after the round it is in."""
        self._stopping.set()
        if self._loop is not None:
            await asyncio.wait({self._loop}, timeout=STOP_WITHIN_S)
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def prune(self) -> int:
        """Delete all that is past its time; gives how many rows those were."""
        deleted = 0
        for statement, keep in self._keeps:
            rows = ROWS_MAX
            while rows == ROWS_MAX:
                status = await self._pool.execute(statement, self._now() - keep, ROWS_MAX)
                rows = int(status.rpartition(" ")[2])
                deleted += rows
        return deleted

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                await self.prune()
            except Exception as error:  # the database is away: what is old is still old later
                metrics.CONSUMER_FAILURES.labels("pruner", type(error).__name__).inc()
                _log.warning("pruner.failed", reason=type(error).__name__)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), EVERY_S)
