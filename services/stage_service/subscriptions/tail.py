"""Reads the published log for all subscriptions of this process, once.

The end of the log is kept in memory as pages, in order; whoever is further behind asks for earlier pages,
which those that are equally far behind share. A page remembers what of it each filter lets through. Memory is
bounded however long the log is, and however far behind a subscription.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import asyncpg
import msgspec
import structlog

from services.contracts.database import DATABASE_AWAY
from services.contracts.events import HANDOFFS_TOPIC, TRANSITIONS_TOPIC, Message
from services.contracts.postgres_log import Executor
from services.stage_service.pulse import Pulse

TOPICS = (TRANSITIONS_TOPIC, HANDOFFS_TOPIC)
"""What can be subscribed to; snapshots and dead letters cannot."""
READ_MESSAGES_MAX = 500
BLOCK_POSITIONS = 256
LIVE_BYTES_MAX = 8_000_000
BLOCKS_BYTES_MAX = 16_000_000
POLL_S = 1.0
GATHER_S = 0.01
"""At least so long between two readings: the log may grow a thousand times a second."""
AGAIN_S = 0.5
IDLE_S = 0.1
"""How soon it begins to read once somebody subscribes."""

_READ = """
SELECT l.position, l.published_at, o.topic, o.key, o.headers, o.value
FROM bus.log l JOIN bus.outbox o ON o.id = l.outbox_id
WHERE l.position > $1 AND l.position <= $2 AND l.topic = ANY($3) ORDER BY l.position LIMIT $4
"""
_FAR = 2**62

_log = structlog.get_logger("baton.subscriptions")
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


class PrunedError(Exception):
    """The log does not reach back to where somebody is: going on from there would skip what is gone."""

    def __init__(self, position: int, first: int) -> None:
        super().__init__(
            f"it is at position {position}, and the log begins at {first}: what lies between is gone. "
            f"Replay it from {first - 1} to go on without"
        )


class Entry(NamedTuple):
    """A message of the log, and when it was published."""

    message: Message
    published_at: datetime


class Matches(Protocol):
    """Tells whether a message is for a subscription. Hashable: equal ones give equal answers."""

    def __call__(self, message: Message) -> bool:
        """Tell it."""
        ...


class Page:
    """Everything that can be subscribed to with a position over `after` and up to `last`.

    `first` is where the log began when it was read.
    """

    __slots__ = ("_selected", "after", "bytes", "entries", "first", "last")

    def __init__(self, after: int, last: int, entries: list[Entry], first: int = 1) -> None:
        self.after = after
        self.last = last
        self.first = first
        self.entries = entries
        self.bytes = sum(len(e.message.value) + 500 for e in entries)
        self._selected: dict[Matches, list[Entry]] = {}

    def selected(self, matches: Matches) -> list[Entry]:
        """Give the entries that `matches` lets through, asking it once."""
        found = self._selected.get(matches)
        if found is None:
            found = self._selected[matches] = [e for e in self.entries if matches(e.message)]
        return found


class Tail:
    """Follows the log. `grown` is called after each new page; without `wanted` nothing is read."""

    def __init__(
        self, pool: asyncpg.Pool[Any], pulse: Pulse, grown: Callable[[], None] = lambda: None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        self._pool = pool
        self._pulse = pulse
        self.grown = grown
        self.wanted = wanted
        self._live: deque[Page] = deque()
        self._live_bytes = 0
        self._blocks: OrderedDict[int, Page] = OrderedDict()
        self._blocks_bytes = 0
        self._reading: dict[int, asyncio.Task[Page]] = {}
        self._task: asyncio.Task[None] | None = None
        self.head = -1
        """The last position read; -1 while nothing is read."""

    def start(self) -> None:
        """Begin to follow."""
        self._task = asyncio.create_task(self._follow(), name="tail")

    async def stop(self) -> None:
        """Stop following."""
        tasks: list[asyncio.Task[Any]] = list(self._reading.values())
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def live_page(self, position: int) -> Page | None:
        """Give the page in memory with what follows `position`; None: not in memory, or not there yet."""
        if not self._live or position < self._live[0].after:
            return None
        for page in reversed(self._live):  # most readers are at the end
            if page.last <= position:
                return None
            if page.after <= position:
                return page
        return None

    def is_behind(self, position: int) -> bool:
        """Tell whether what follows `position` has to be asked for by `earlier_page`."""
        first = self._live[0].after if self._live else self.head
        return 0 <= position < first

    async def earlier_page(self, position: int) -> Page:
        """Read the page with what follows `position`, which `is_behind`.

        Raises PrunedError, and what the database raises.
        """
        page = await self._block(position // BLOCK_POSITIONS)
        refuse_pruned(position, page.first)
        return page

    async def _block(self, number: int) -> Page:
        page = self._blocks.get(number)
        if page is not None:
            self._blocks.move_to_end(number)
            return page
        reading = self._reading.get(number)
        if reading is None:
            reading = asyncio.create_task(self._read_block(number), name="tail-block")
            self._reading[number] = reading
            reading.add_done_callback(lambda _: self._reading.pop(number, None))
        return await asyncio.shield(reading)

    async def _read_block(self, number: int) -> Page:
        after = number * BLOCK_POSITIONS
        whole = after + BLOCK_POSITIONS
        last = min(whole, self.head)
        entries = await read_log(self._pool, after, last, BLOCK_POSITIONS)
        page = Page(after, last, entries, await first_position(self._pool))
        if last == whole:
            self._blocks[number] = page
            self._blocks_bytes += page.bytes
            while self._blocks_bytes > BLOCKS_BYTES_MAX and len(self._blocks) > 1:
                self._blocks_bytes -= self._blocks.popitem(last=False)[1].bytes
        return page

    async def _follow(self) -> None:
        told = False
        while True:
            try:
                if not self.wanted():
                    self._forget_live()
                    await asyncio.sleep(IDLE_S)
                    continue
                if self.head < 0:
                    self.head = await self._pool.fetchval(
                        "SELECT coalesce(max(position), 0) FROM bus.log"
                    )
                    self.grown()
                while await self._read_on():
                    pass
                told = False
                await self._pulse.wait(POLL_S)
                await asyncio.sleep(GATHER_S)
            except DATABASE_AWAY as error:
                if not told:
                    told = True
                    _log.warning("tail.waiting_for_database", reason=type(error).__name__)
                await asyncio.sleep(AGAIN_S)
            except Exception:  # whatever it is, all subscriptions of the process wait for it
                if not told:
                    told = True
                    _log.exception("tail.failed")
                await asyncio.sleep(AGAIN_S)

    def _forget_live(self) -> None:
        self.head = -1
        self._live.clear()
        self._live_bytes = 0

    async def _read_on(self) -> bool:
        """Read the next page; tell whether there may be more."""
        entries = await read_log(self._pool, self.head, _FAR, READ_MESSAGES_MAX)
        if not entries:
            return False
        last = entries[-1].message.position or 0
        page = Page(self.head, last, entries)
        self.head = last
        self._live.append(page)
        self._live_bytes += page.bytes
        while self._live_bytes > LIVE_BYTES_MAX and len(self._live) > 1:
            self._live_bytes -= self._live.popleft().bytes
        self.grown()
        return len(entries) == READ_MESSAGES_MAX


def refuse_pruned(position: int, first: int) -> None:
    """Raise PrunedError when a log that begins at `first` lacks something that follows `position`."""
    if position + 1 < first:
        raise PrunedError(position, first)


async def first_position(connection: Executor) -> int:
    """Give the first position that the log has; 1 when it is empty."""
    rows = await connection.fetch("SELECT coalesce(min(position), 1) AS first FROM bus.log")
    return rows[0]["first"]


async def read_log(connection: Executor, after: int, last: int, messages_max: int) -> list[Entry]:
    """Give what can be subscribed to with a position over `after` and up to `last`, in order."""
    rows = await connection.fetch(_READ, after, last, list(TOPICS), messages_max)
    return [
        Entry(
            Message(r["topic"], r["key"], _decode_headers(r["headers"]), r["value"], r["position"]),
            r["published_at"],
        )
        for r in rows
    ]
