"""What is done in rounds, beside everything else: what is due now, a rest, and again, until stopped.

A round that fails is logged once a kind of error, and the rests grow while it fails: what was due stays due.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

BACKOFF_MAX_S = 5.0
STOP_WITHIN_S = 5.0

_log = structlog.get_logger("baton.rounds")


def _unheard(name: str, error: Exception) -> None:
    """Do nothing about a failure."""


class Round:
    """Does `work` every `every_s` seconds, at once again while it gives True: there is more.

    `failed` hears the round's name and the error of each failure, which the log does not repeat.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[bool]],
        every_s: float,
        failed: Callable[[str, Exception], None] = _unheard,
    ) -> None:
        self._name = name
        self._work = work
        self._every_s = every_s
        self._failed = failed
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin with the first round."""
        self._loop = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """End after the round in hand, which is given up after `STOP_WITHIN_S`."""
        self._stopping.set()
        if self._loop is not None:
            await asyncio.wait({self._loop}, timeout=STOP_WITHIN_S)
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def _run(self) -> None:
        rest_s, failing = self._every_s, ""
        while not self._stopping.is_set():
            more = False
            try:
                more = await self._work()
                rest_s, failing = self._every_s, ""
            except Exception as error:  # the database is away, or a mistake: the next may succeed
                self._failed(self._name, error)
                if failing != type(error).__name__:
                    failing = type(error).__name__
                    _log.warning(f"{self._name}.failed", reason=failing)
                # A round that comes seldom anyhow comes as ever.
                rest_s = min(rest_s * 2, max(self._every_s, BACKOFF_MAX_S))
            if not more:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), rest_s)
