"""Publishes what was scheduled when it is due, and follows what other processes publish.

Whichever process finds it first publishes it, once: row and version are one transaction. A process without
events would hear of a new version with its next batch only; so it looks here too.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import asyncpg

from services.contracts.rounds import Round
from services.stage_service.shelf import Shelf

EVERY_S = 0.25


class Activation:
    """Its `round` publishes what is due; `now` gives the present moment."""

    def __init__(self, pool: asyncpg.Pool[Any], shelf: Shelf, now: Callable[[], datetime]) -> None:
        self._pool = pool
        self._shelf = shelf
        self._now = now
        self.round = Round("activation", self._look, EVERY_S)

    async def run_due(self) -> int:
        """Publish, or refuse, all that is due now; gives how many those were."""
        done = 0
        while await self._shelf.activate_due(self._pool, self._now()) is not None:
            done += 1
        return done

    async def _look(self) -> bool:
        row = await self._pool.fetchrow(
            """SELECT (SELECT max(epoch) FROM stage.playbook_versions) AS epoch, EXISTS (
                 SELECT FROM stage.scheduled_publications
                 WHERE state = 'waiting' AND activate_at <= $1) AS is_due""",
            self._now(),
        )
        assert row is not None  # noqa: S101  an aggregate
        if row["is_due"]:
            await self.run_due()
        if (row["epoch"] or 0) > self._shelf.epoch:
            await self._shelf.load(self._pool)
        return False
