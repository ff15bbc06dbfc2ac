"""How readers follow a feed: who may, how many, waiting for what is new, streams that end when they must.

A stream never holds more than one read of bounded size for its client. Who does not read what is sent is
dropped; their place is theirs, in ``Last-Event-ID`` or the position of the last line. A
database that goes away ends no stream: it goes on when the database is back. All end at once
when the process stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from typing import Any

import asyncpg
import structlog
from fastapi import Request
from sse_starlette import EventSourceResponse
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from services.contracts.access import Gatekeeper, required
from services.contracts.answers import token_of
from services.contracts.database import DATABASE_AWAY
from services.contracts.problems import NotAllowedError, NotAuthenticatedError
from services.stage_service import metrics
from services.stage_service.errors import OverloadedError, TooManyStreamsError
from services.stage_service.feed import READS_AT_ONCE_MAX, TYPES, Entry, Feed, Page, Selection
from services.stage_service.pulse import Pulse

PING_S = 15
RETRY_MS = 1000
"""What an EventSource waits before it connects again."""
LOOK_S = 5.0
"""A beat may be lost with a connection: then one looks by oneself. As often the key is looked at."""
PACE_S = 0.05
"""Between two rounds of a stream: what comes in between is one round."""
AWAY_S = 0.5
AWAY_MAX_S = 30.0
"""How long an export waits for a database that went away."""
CHUNK_BYTES = 64 * 1024
PASSED_OVER_MAX = 1000
"""Messages that a filter left out before the client is told how far it is."""
_PASSED = b'id: %d\nevent: baton.position\ndata: {"position":%d,"type":"baton.position"}\n\n'
_log = structlog.get_logger("baton.feed")


class Following:
    """The feeds of this process, and those who follow them; one a process, wired in ``app``."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        pulse: Pulse,
        gatekeeper: Gatekeeper,
        stopping: asyncio.Event,
        *,
        streams_max: int,
        streams_per_key_max: int,
        stall_s: float,
        look_s: float = LOOK_S,
    ) -> None:
        reads = asyncio.Semaphore(READS_AT_ONCE_MAX)
        self.feeds = {topic: Feed(pool, topic, reads) for topic in TYPES}
        # The kernel is the first to hang up (`baton.serve`), and leaves nothing behind.
        self.stall_s = 2 * stall_s
        self.stopping = stopping
        self._look_s = look_s
        self.streams = 0
        self._pulse = pulse
        self._gatekeeper = gatekeeper
        self._streams_max = streams_max
        self._per_key_max = streams_per_key_max
        self._by_key: Counter[str] = Counter()
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch for the stop of the process."""
        self._watch = asyncio.create_task(self._wake_at_stop(), name="following")

    async def stop(self) -> None:
        """End the watch."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _wake_at_stop(self) -> None:
        await self.stopping.wait()
        self._pulse.beat()

    @contextlib.contextmanager
    def seat(self, key_id: str) -> Generator[None]:
        """Take one of the places for whoever waits or streams.

        Raises TooManyStreamsError when the key has its share, OverloadedError when all are taken, or
        when the process stops.
        """
        if self.stopping.is_set():
            raise OverloadedError("the service is stopping", remedy="Connect again.")
        if self._by_key[key_id] >= self._per_key_max:
            raise TooManyStreamsError(
                f"this key has {self._per_key_max} streams and waiting requests open",
                remedy="Close one, follow with fewer, or use another key.",
            )
        if self.streams >= self._streams_max:
            raise OverloadedError(
                f"this process has {self._streams_max} streams and waiting requests open",
                remedy="Connect again later; ask without 'wait' meanwhile.",
            )
        self.streams += 1
        metrics.FEED_STREAMS.inc()
        self._by_key[key_id] += 1
        try:
            yield
        finally:
            self.streams -= 1
            metrics.FEED_STREAMS.dec()
            self._by_key[key_id] -= 1
            if not self._by_key[key_id]:
                del self._by_key[key_id]

    async def first_page(
        self, request: Request, feed: Feed, after: int, wanted: Selection, limit: int,
        through: int | None, wait_s: float,
    ) -> Page:  # fmt: skip
        """Give the next page; an empty one at the end only when `wait_s` have gone without news.

        It comes at once when the process stops or the client leaves. Raises NotAuthenticatedError or
        NotAllowedError when the key lost its scope in the meantime.
        """
        deadline = time.monotonic() + wait_s
        leaving: asyncio.Task[None] | None = None
        try:
            while True:
                news = self._pulse.next()
                page = await feed.page(after, wanted, limit, through)
                left = deadline - time.monotonic()
                over = left <= 0 or (through is not None and page.position >= through)
                if page.entries or over or self.stopping.is_set():
                    return page
                after = page.position
                if not page.at_end:
                    continue
                leaving = leaving or asyncio.create_task(_left(request))
                await _first(news, leaving, min(left, self._look_s))
                if leaving.done():
                    return page
                await self._check(token_of(request))
        finally:
            if leaving is not None:
                leaving.cancel()

    async def _check(self, token: str | None) -> None:
        """Raise when the key was revoked; a database that is away says nothing about it."""
        with contextlib.suppress(*DATABASE_AWAY):
            who = await self._gatekeeper.authenticate(token)
            if who is None:
                raise NotAuthenticatedError(
                    "the key is not valid any more", remedy="Use another key."
                )
            required(who, "read")

    async def events(
        self, feed: Feed, after: int, wanted: Selection, token: str | None
    ) -> AsyncIterator[bytes]:
        """Give the feed after `after` as server-sent events, for as long as the key may read."""
        yield b": connected\n\n"
        # In the first event: some clients take a block of its own for an event without data.
        retry = b"retry: %d\n" % RETRY_MS
        told, told_at = after, time.monotonic()
        checked_at = told_at
        while not self.stopping.is_set():
            news = self._pulse.next()
            try:
                found, more = await feed.read(after)
            except DATABASE_AWAY:
                await self._rest(AWAY_S)
                continue
            for chunk in _chunks(_event(e) for e in found if wanted.matches(e)):
                yield retry + chunk
                retry = b""
            if found:
                after = found[-1].position
                if wanted.matches(found[-1]):
                    told, told_at = after, time.monotonic()
            # Moves the place at which the client will go on.
            if after - told >= PASSED_OVER_MAX or (
                after > told and time.monotonic() - told_at > PING_S
            ):
                yield retry + _PASSED % (after, after)
                retry = b""
                told, told_at = after, time.monotonic()
            if not more:
                await self._rest(PACE_S)
                await _first(news, None, self._look_s)
            elif time.monotonic() - checked_at < self._look_s:
                continue
            try:
                await self._check(token)
            except (NotAuthenticatedError, NotAllowedError):
                return
            checked_at = time.monotonic()

    async def lines(
        self, feed: Feed, after: int, through: int, wanted: Selection, token: str | None
    ) -> AsyncIterator[bytes]:
        """Give the feed after `after`, up to `through`, one JSON object a line, while the key may read.

        Raises CutOffError when the process stops, the key lost its scope, or the database stays away: it is
        not whole then.
        """
        away_since: float | None = None
        checked_at = time.monotonic()
        while after < through:
            if self.stopping.is_set():
                raise CutOffError
            if time.monotonic() - checked_at >= self._look_s:
                try:
                    await self._check(token)
                except (NotAuthenticatedError, NotAllowedError):
                    raise CutOffError from None
                checked_at = time.monotonic()
            try:
                found, _ = await feed.read(after)
            except DATABASE_AWAY:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > AWAY_MAX_S:
                    raise CutOffError from None
                await self._rest(AWAY_S)
                continue
            away_since = None
            if not found:
                return  # the log ends before `through`: it was restored from a backup meanwhile
            here: Sequence[Entry] = [e for e in found if e.position <= through]
            for chunk in _chunks(e.item + b"\n" for e in here if wanted.matches(e)):
                yield chunk
            after = found[-1].position

    async def _rest(self, seconds: float) -> None:
        """Pause; not when the process stops."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)


class CutOffError(Exception):
    """A body ends before it is whole."""


class EventStream(EventSourceResponse):
    """Server-sent events for one client, with its seat; dropped when it does not read."""

    def __init__(
        self, content: AsyncIterator[bytes], seat: contextlib.AbstractContextManager[None], stall_s: float
    ) -> None:  # fmt: skip
        super().__init__(content, ping=PING_S, send_timeout=stall_s, sep="\n")
        self._seat = seat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the client (ASGI)."""
        with contextlib.ExitStack() as closing:
            closing.push(self._seat)
            try:
                await super().__call__(scope, receive, send)
            except TimeoutError:
                _log.info("feed.reader_dropped", form="sse", stall_s=self.send_timeout)


class Lines(StreamingResponse):
    """NDJSON for one client, with its seat; of a body that is not whole the connection breaks off."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        seat: contextlib.AbstractContextManager[None],
        stall_s: float,
        last_position: int,
    ) -> None:
        headers = {"cache-control": "no-store", "baton-last-position": str(last_position)}
        super().__init__(content, 200, headers, "application/x-ndjson")
        self._seat = seat
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the client (ASGI)."""
        with contextlib.ExitStack() as closing:
            closing.push(self._seat)
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send the body."""

        async def in_time(message: Message) -> None:
            async with asyncio.timeout(self._stall_s):
                await send(message)

        try:
            await super().stream_response(in_time)
        except CutOffError:
            _log.info("feed.export_cut_off")
        except TimeoutError:
            _log.info("feed.reader_dropped", form="ndjson", stall_s=self._stall_s)


def _event(entry: Entry) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (entry.position, entry.type.encode(), entry.item)


def _chunks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join small pieces: one send each costs more than the piece."""
    chunk = bytearray()
    for piece in pieces:
        chunk += piece
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    if chunk:
        yield bytes(chunk)


async def _first(news: asyncio.Event, leaving: asyncio.Task[None] | None, within_s: float) -> None:
    """Wait for news, or for the client to leave."""
    hearing = asyncio.create_task(news.wait())
    try:
        awaited: list[asyncio.Task[Any]] = [hearing] if leaving is None else [hearing, leaving]
        await asyncio.wait(awaited, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hearing.cancel()


async def _left(request: Request) -> None:
    """Wait until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
