"""Work that takes a core or the database for long is done for one request at a time in a process.

A key that may only read can ask for it, so it must not be able to take all there is. A few may wait where
the wait is short; everybody else is told at once, and keeps no connection open.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from services.stage_service.errors import BusyError


class Turns:
    """One turn at a time for `what`; at most `waiting_max` wait for theirs."""

    def __init__(self, what: str, waiting_max: int) -> None:
        self._what = what
        self._places = 1 + waiting_max
        self._taken = 0
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Hold a turn, in the order they were asked for. Raises BusyError when too many wait already."""
        if self._taken >= self._places:
            raise BusyError(f"{self._what} already", remedy="Send it again after Retry-After.")
        self._taken += 1
        try:
            async with self._lock:
                yield
        finally:
            self._taken -= 1
