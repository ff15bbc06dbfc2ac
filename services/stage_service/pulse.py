"""Tells everybody in this process that the published log has grown, whoever's relay made it grow."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import asyncpg
import structlog

from services.contracts.postgres_log import CHANNEL

RECONNECT_S = 1.0
_log = structlog.get_logger("baton.pulse")


class Pulse:
    """Beats at each growth of the log; `wait` gives the next beat."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._next = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._task = asyncio.create_task(self._listen(), name="pulse")

    async def stop(self) -> None:
        """Stop listening, and let everybody who waits go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.beat()

    def beat(self) -> None:
        """Wake everybody who waits."""
        self._next.set()
        self._next = asyncio.Event()

    def _hear(self, *_: object) -> None:
        self.beat()

    def next(self) -> asyncio.Event:
        """Give what the next beat sets: taken before a read, it tells of all that the read missed."""
        return self._next

    async def wait(self, within_s: float) -> None:
        """Wait for the next beat, at most `within_s` seconds: a beat may be lost with a connection."""
        # Not wait_for: before Python 3.12 it may swallow a cancellation.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._next.wait()

    async def _listen(self) -> None:
        while True:
            connection: asyncpg.Connection[Any] | None = None
            try:
                connection = await asyncpg.connect(self._database_url, timeout=5)
                gone = asyncio.Event()
                connection.add_termination_listener(lambda _, gone=gone: gone.set())
                await connection.add_listener(CHANNEL, self._hear)
                await gone.wait()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                _log.debug("pulse.lost", reason=type(error).__name__)
            finally:
                if connection is not None and not connection.is_closed():
                    connection.terminate()
            await asyncio.sleep(RECONNECT_S)
