"""The published messages of one topic as readers of the feed see them: pages, a filter, the newest in memory.

A position is a message's number in its topic: 1, 2, 3 ..., in the order in which they were published, for
ever. Whoever has read up to a position and asks for what comes after it misses nothing and gets nothing
twice. All readers at the end of the log share one query and one copy of what is new, so that a
hundred open tabs ask the database as one does; who lags reads for himself, in pieces of bounded size.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime

import msgspec

from services.contracts import postgres_log
from services.contracts.events import (
    CORRECTED,
    HANDOFFS_TOPIC,
    LEAD_MERGED,
    LEAD_UNMERGED,
    OWNER_CHANGED,
    TRANSITIONED,
    TRANSITIONS_TOPIC,
    Message,
)
from services.contracts.handoffs import (
    ACCEPTED,
    CLOCK_RANG,
    OFFERED,
    OVERDUE,
    REJECTED,
    WITHDRAWN,
)

READ_ROWS_MAX = 500
READ_BYTES_MAX = 256 * 1024
"""What one read brings, and a stream holds for a client that is slow. A message alone may be as large."""
PAGE_BYTES_MAX = 4 * 1024 * 1024
SCAN_MAX = 5000
"""Messages that one page looks at when a filter passes few: the page ends there, its cursor is ahead."""
WINDOW_ROWS_MAX = 2000
WINDOW_BYTES_MAX = 4 * 1024 * 1024
READS_AT_ONCE_MAX = 3
"""Queries of the feeds of a process at one time: the lane has the same pool."""

TYPES: dict[str, tuple[str, ...]] = {
    TRANSITIONS_TOPIC: (TRANSITIONED, CORRECTED, LEAD_MERGED, LEAD_UNMERGED),
    HANDOFFS_TOPIC: (OFFERED, ACCEPTED, REJECTED, OVERDUE, WITHDRAWN, CLOCK_RANG, OWNER_CHANGED),
}
"""The types of events in each feed."""

_text = msgspec.json.Encoder().encode


class _Keyed(msgspec.Struct, gc=False):
    """What carries a key: a stage's guide."""

    key: str | None = None


class _Person(msgspec.Struct, gc=False):
    id: str | None = None


class _Responsible(msgspec.Struct, gc=False):
    role: str | None = None
    owner: _Person | None = None


class _Journey(msgspec.Struct, gc=False):
    playbook: str | None = None
    key: str | None = None


class _Told(msgspec.Struct, gc=False, rename={"from_": "from"}):
    """What filters look at, of all types of events; the rest of a message is not decoded."""

    journey: _Journey | None = None
    from_: str | None = None
    to: str | None = None
    stage: str | _Keyed | None = None
    responsible: _Responsible | None = None
    owner: _Person | None = None
    role: str | None = None


_told = msgspec.json.Decoder(_Told).decode


class Entry:
    """One message of a feed; `item` is its JSON as the feed gives it."""

    __slots__ = ("_facts", "item", "key", "position", "type")

    def __init__(self, message: Message) -> None:
        self.position = message.position or 0
        self.type = message.type
        self.key = message.key
        # Put before the members that are there: nothing is decoded for a reader without a filter.
        rest = message.value[1:] if message.value == b"{}" else b"," + message.value[1:]
        self.item = b'{"position":%d,"type":%s,"message_id":%s%s' % (
            self.position, _text(message.type), _text(message.id), rest,
        )  # fmt: skip
        self._facts: dict[str, str | None] | None = None

    @property
    def facts(self) -> dict[str, str | None]:
        """What filters look at, by the name of the filter."""
        if self._facts is None:
            told = _told(self.item)
            who = told.responsible or _Responsible(told.role, told.owner)
            stage = told.stage.key if isinstance(told.stage, _Keyed) else told.stage
            self._facts = {
                "lead_id": self.key,
                "playbook": told.journey and told.journey.playbook,
                "key": told.journey and told.journey.key,
                "from": told.from_,
                "stage": told.to or stage,
                "role": who.role,
                "owner": who.owner and who.owner.id,
            }
        return self._facts


class Selection(msgspec.Struct, frozen=True):
    """What a reader wants to see: events of these types (none: all), with these facts.

    A type may end with ``*``: all that begin so.
    """

    types: tuple[str, ...] = ()
    facts: dict[str, str] = {}

    def __bool__(self) -> bool:
        """Tell whether there is anything that it leaves out."""
        return bool(self.types or self.facts)

    def matches(self, entry: Entry) -> bool:
        """Tell whether the reader wants `entry`."""
        if self.types and not any(is_of(entry.type, wanted) for wanted in self.types):
            return False
        return all(entry.facts[name] == value for name, value in self.facts.items())


def is_of(type: str, wanted: str) -> bool:
    """Tell whether `type` is `wanted`, or begins with it up to its ``*``."""
    return type.startswith(wanted[:-1]) if wanted.endswith("*") else type == wanted


class Page(msgspec.Struct, frozen=True):
    """Entries that match, and how far the page looked: everything up to `position` is in it or left out.

    `at_end`: nothing lay behind `position` at the time of the read.
    """

    entries: list[Entry]
    position: int
    at_end: bool


class Feed:
    """The messages of one topic, to be read after any position."""

    def __init__(
        self, pool: postgres_log.Executor, topic: str, reads: asyncio.Semaphore | None = None
    ) -> None:
        self.topic = topic
        self._pool = pool
        self._reads = reads or asyncio.Semaphore(READS_AT_ONCE_MAX)
        self._window: list[Entry] = []
        self._window_bytes = 0
        self._before_window = 0
        self._end: int | None = None
        """Where the window ends; None while there is none. It is empty when nothing came since."""
        self._refresh: asyncio.Task[bool] | None = None

    async def last(self) -> int:
        """Give the position of the newest message; 0 when there is none."""
        last = await postgres_log.last_number(self._pool, self.topic)
        if self._end is None:
            self._before_window = self._end = last
        return last

    async def position_before(self, moment: datetime) -> int:
        """Give the position of the last message published before `moment`; 0 when there is none."""
        return await postgres_log.number_before(self._pool, self.topic, moment)

    async def read(self, after: int) -> tuple[Sequence[Entry], bool]:
        """Give some of the messages after `after`, in order, and whether there may be more.

        What was committed when it is called is seen: not less than the newest that the caller heard of.
        """
        found = self._in_window(after)
        if found:
            return found, True
        if after == self._end:
            more = await self._renewed(after)
            found = self._in_window(after)
            if found:
                # Items are longer than the values of which the read brought so many: it may be two of ours.
                return found, more or found[-1].position != self._end
            if after == self._end:
                return found, False
        entries, more = await self._fetch(after)
        self._keep(after, entries, more)
        return entries, more

    async def page(
        self, after: int, selection: Selection, limit: int, through: int | None = None
    ) -> Page:
        """Give at most `limit` entries after `after` that match, none behind `through`.

        May give fewer, or none, with more to come: `SCAN_MAX` messages were looked at, or the page is large.
        """
        entries: list[Entry] = []
        position, scanned, size, more = after, 0, 0, True
        while more and scanned < SCAN_MAX:
            found, more = await self.read(position)
            for entry in found:
                if through is not None and entry.position > through:
                    return Page(entries, position, at_end=True)
                position = entry.position
                scanned += 1
                if selection.matches(entry):
                    entries.append(entry)
                    size += len(entry.item)
                    if len(entries) >= limit or size >= PAGE_BYTES_MAX:
                        return Page(entries, position, at_end=False)
        return Page(entries, position, at_end=not more)

    def _in_window(self, after: int) -> list[Entry]:
        if self._end is None or not self._before_window <= after < self._end:
            return []
        start = bisect_right(self._window, after, key=lambda e: e.position)
        size, end = 0, start
        while end < len(self._window) and end - start < READ_ROWS_MAX and size < READ_BYTES_MAX:
            size += len(self._window[end].item)
            end += 1
        return self._window[start:end]

    async def _renewed(self, after: int) -> bool:
        """Read what is new into the window, once for all who ask; gives whether there may be more.

        A read that began before we asked may have missed what we were told of: then another begins.
        """
        running = self._refresh
        if running is not None:
            await asyncio.wait([running])
            if self._in_window(after):
                return True
        if self._refresh is None:
            self._refresh = asyncio.create_task(self._extend(), name="feed")
            self._refresh.add_done_callback(self._renewed_once)
        # Whoever of the readers leaves, the read goes on for the others.
        return await asyncio.shield(self._refresh)

    def _renewed_once(self, task: asyncio.Task[bool]) -> None:
        if self._refresh is task:
            self._refresh = None
        if not task.cancelled():
            task.exception()  # its readers have it; when all of them left, nobody has

    async def _extend(self) -> bool:
        after = self._end or 0
        entries, more = await self._fetch(after)
        self._keep(after, entries, more)
        return more

    async def _fetch(self, after: int) -> tuple[list[Entry], bool]:
        async with self._reads:
            messages = await postgres_log.read_topic(
                self._pool, after, self.topic, READ_ROWS_MAX, READ_BYTES_MAX
            )
        if messages and messages[0].position != after + 1:
            # Numbers have no gaps: somebody deleted what is asked for, and nobody may take that for all.
            raise LookupError(
                f"{self.topic} has nothing between {after} and {messages[0].position}"
            )
        more = len(messages) == READ_ROWS_MAX or (
            sum(len(m.value) for m in messages) >= READ_BYTES_MAX
        )
        return [Entry(m) for m in messages], more

    def _keep(self, after: int, entries: list[Entry], more: bool) -> None:
        """Keep the newest entries; `entries` follow `after` without a gap."""
        if not entries:
            return
        if self._end is not None and after <= self._end:
            entries = entries[bisect_right(entries, self._end, key=lambda e: e.position) :]
        elif not more:
            self._window, self._window_bytes, self._before_window = [], 0, after
        else:
            return  # somewhere in the middle of the log
        if entries:
            self._end = entries[-1].position
        self._window += entries
        self._window_bytes += sum(len(e.item) for e in entries)
        cut = max(len(self._window) - WINDOW_ROWS_MAX, 0)
        self._window_bytes -= sum(len(e.item) for e in self._window[:cut])
        while self._window_bytes > WINDOW_BYTES_MAX and cut < len(self._window):
            self._window_bytes -= len(self._window[cut].item)
            cut += 1
        if cut:
            self._before_window = self._window[cut - 1].position
            del self._window[:cut]
