"""The end of the log is followed whatever happens."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from services.stage_service.subscriptions.tail import Tail


class Pool:
    """A pool whose first question fails in a way that is no outage."""

    def __init__(self) -> None:
        self.asked = 0

    async def fetchval(self, _: str) -> int:
        """Give the end of the log."""
        self.asked += 1
        if self.asked == 1:
            raise asyncpg.InvalidPasswordError("changed meanwhile")
        return 7

    async def fetch(self, *_: object) -> list[Any]:
        """Nothing follows."""
        return []


class NoPulse:
    """A pulse that never beats."""

    async def wait(self, within_s: float) -> None:
        """Wait."""
        await asyncio.sleep(within_s)


async def test_an_unknown_failure_ends_nothing() -> None:
    pool: Any = Pool()
    pulse: Any = NoPulse()
    grown = asyncio.Event()
    tail = Tail(pool, pulse, grown.set)
    tail.start()
    async with asyncio.timeout(5):
        await grown.wait()
    await tail.stop()
    assert tail.head == 7
