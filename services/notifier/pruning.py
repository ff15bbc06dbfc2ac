"""What is kept for a time only: links that were used, the texts of merged messages, what is long over.

Any number of processes may prune; what one of them deletes the others leave alone. A link's mark is
forgotten when the link itself has expired, so that it is never good for a second use.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from services.contracts.rounds import Round
from services.notifier import metrics

EVERY_S = 3600.0
OVER_KEEP = timedelta(days=90)
"""How long handoffs that were answered, escalations and mutes that ended are kept."""
ROWS_MAX = 1000
"""Rows a statement deletes: none holds its locks for long."""

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


# An alert about it that comes later than this would not be settled; the feed is read in days, not months.
_HANDOFFS = """
DELETE FROM notifier.handoffs WHERE id IN (
  SELECT id FROM notifier.handoffs h
  WHERE state IN ('accepted', 'rejected', 'withdrawn') AND told_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)
"""

# It says of the alerts that it made that somebody answers for them: it is kept while one is to be sent.
_ESCALATIONS = """
DELETE FROM notifier.escalations WHERE alert_id IN (
  SELECT alert_id FROM notifier.escalations e
  WHERE ended_at < $1 AND NOT EXISTS (
    SELECT FROM notifier.alerts a JOIN notifier.deliveries d ON d.alert_id = a.id
    WHERE a.lead_id = (SELECT lead_id FROM notifier.alerts WHERE id = e.alert_id)
      AND a.escalated_from = e.alert_id AND d.status IN ('pending', 'claimed'))
  LIMIT $2 FOR UPDATE SKIP LOCKED)
"""

_MUTES = """
DELETE FROM notifier.mutes WHERE (person_id, lead_id) IN (
  SELECT person_id, lead_id FROM notifier.mutes WHERE until < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)
"""


class Pruner:
    """Deletes what is past its time: its `round` does at the start and every hour."""

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
            (_HANDOFFS, OVER_KEEP),
            (_ESCALATIONS, OVER_KEEP),
            (_MUTES, OVER_KEEP),
        )
        self._now = now
        self.round = Round("pruner", self._tidy, EVERY_S, metrics.failed)

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

    async def _tidy(self) -> bool:
        await self.prune()
        return False
