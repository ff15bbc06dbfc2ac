"""Ranges of leads worked on in several processes, each opened once and used for range after range.

What a process opens, a connection in a common snapshot say, stays its own until all is done.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Part = TypeVar("Part")


@contextmanager
def spread(
    opening: Callable[[], Awaitable[Callable[[str, str], Awaitable[Part]]]],
    ranges: Sequence[tuple[str, str]],
    workers: int,
) -> Generator[list[asyncio.Future[Part]]]:
    """Give the parts to come, one for each of `ranges`, in their order.

    `opening` is sent to each of `workers` processes; what it gives there is called with a range: ids of leads
    after the first, up to the second ("": to the end). Once the body fails, no further range is begun.
    """
    # Started afresh, not forked: a connection and a loop of ours must not be theirs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (opening,)) as pool:
        try:
            yield [asyncio.wrap_future(pool.submit(_task, *each)) for each in ranges]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_workers: list[_Worker] = []
"""This process's, when it is one of the pool."""


def _begin(opening: Callable[[], Awaitable[Any]]) -> None:
    _workers.append(_Worker(opening))


def _task(after: str, until: str) -> Any:
    return _workers[0].run(after, until)


class _Worker:
    """One process's part: its loop, and what it opened."""

    def __init__(self, opening: Callable[[], Awaitable[Any]]) -> None:
        self._opening = opening
        self._loop = asyncio.new_event_loop()
        self._work: Any = None

    def run(self, after: str, until: str) -> Any:
        """Work on a range of leads."""
        return self._loop.run_until_complete(self._range(after, until))

    async def _range(self, after: str, until: str) -> Any:
        if self._work is None:
            self._work = await self._opening()
        return await self._work(after, until)
