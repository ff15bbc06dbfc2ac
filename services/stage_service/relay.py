"""The relay: from the outbox to the published log, and on to Kafka, in order per lead.

Two loops, each led by one process at a time (a session advisory lock; when a leader dies its session
does, and another takes over within a second). The sequencer gives each committed message its position:
feed, streams and the PostgreSQL bus read the log by it. The publisher sends the log to Kafka from a
stored cursor. When one process leads both and the publisher has caught up, a message is sent while it
gets its position, not after; what this process committed itself is sent at once, if all that was committed
before it for the same leads is in Kafka. A broker that is away stops only the publisher; a failed send is
sent again from the cursor, so readers may see repeats, but never a gap or, but for repeats, another order.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import asyncpg
import structlog

from services.contracts import postgres_log
from services.contracts.bus import Bus
from services.contracts.database import STEADY_PLANS
from services.contracts.events import (
    DEAD_LETTERS_TOPIC,
    HANDOFFS_TOPIC,
    LEADS_TOPIC,
    SUBSCRIPTIONS_TOPIC,
    TRANSITIONS_TOPIC,
)
from services.contracts.postgres_log import Fresh
from services.stage_service import metrics

POLL_S = 0.05
"""How long a commit of another process may wait; our own wakes the relay at once."""
STANDBY_POLL_S = 0.5
PUBLISH_MESSAGES_MAX = 500
AT_ONCE_MAX = 50
"""So many are sent from memory: handing more to the client would hold up the answer to their sender."""
BACKOFF_MAX_S = 2.0
ALL_TOPICS = (
    TRANSITIONS_TOPIC, HANDOFFS_TOPIC, LEADS_TOPIC, SUBSCRIPTIONS_TOPIC, DEAD_LETTERS_TOPIC
)  # fmt: skip
KAFKA_CURSOR = "relay:kafka"
SAVE_CURSOR_EVERY_S = 0.1

_SEQUENCER_LOCK = 0x6261746F_0001
_PUBLISHER_LOCK = 0x6261746F_0002

_log = structlog.get_logger("baton.relay")

Step: TypeAlias = "Callable[[asyncpg.Connection[Any]], Awaitable[bool]]"


class Relay:
    """Runs both loops until stopped; say after each commit that it was `committed`.

    `bus` is Kafka, or None when the log itself is the bus. `published` is called whenever the log
    has grown.
    """

    def __init__(
        self, database_url: str, bus: Bus | None, published: Callable[[], None] = lambda: None
    ) -> None:
        self._database_url = database_url
        self._bus = bus
        self._published = published
        self._news = asyncio.Event()
        self._is_idle = False
        """Whether the sequencer leads and waits for news."""
        self._unsent = False
        """Whether something was committed that was not sent at once."""
        self._grown = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._position = -1
        self._saved = -1
        self._saved_at = 0.0
        self._stamped = -1
        self._ahead: _Ahead | None = None

    def start(self) -> None:
        """Start the loops."""
        self._tasks = [
            asyncio.create_task(
                self._lead(_SEQUENCER_LOCK, self._news, self._stamp), name="sequencer"
            )
        ]
        if self._bus is not None:
            self._tasks.append(
                asyncio.create_task(
                    self._lead(_PUBLISHER_LOCK, self._grown, self._send), name="publisher"
                )
            )

    def committed(self, fresh: Fresh | None) -> None:
        """Say that something was committed, by this process `fresh` messages.

        These are sent at once when everything before them is in Kafka. That is so when nothing waited for a
        position as the statement that wrote them began, with their leads locked, and the publisher was done
        with the log as it was then: whoever committed anything of these leads before did so before that.
        """
        caught_up = 0 <= self._position == self._stamped and self._ahead is None and self._is_idle
        is_next = fresh is not None and fresh.is_next and fresh.after <= self._position
        if fresh and caught_up and is_next and len(fresh.messages) <= AT_ONCE_MAX:
            assert self._bus is not None  # noqa: S101  the publisher has a position
            sending = asyncio.create_task(self._bus.publish(fresh.messages))
            self._ahead = _Ahead(sending, fresh.outbox_ids)
        else:
            self._unsent = True
        self._news.set()

    async def stop(self, within_s: float = 5.0) -> None:
        """Publish what is committed, at most `within_s` long, and let go of the leadership."""
        self._stopping.set()
        self._news.set()
        self._grown.set()
        _, left = await asyncio.wait(self._tasks, timeout=within_s) if self._tasks else ((), ())
        if self._ahead is not None:
            left = {*left, self._ahead.sending}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _lead(self, lock: int, news: asyncio.Event, step: Step) -> None:
        """Hold the leadership and step; whatever fails, begin again with a new session."""
        leading = metrics.RELAY_LEADER.labels("sequencer" if news is self._news else "publisher")
        backoff_s = POLL_S
        failing_since: float | None = None
        while not self._stopping.is_set():
            connection: asyncpg.Connection[Any] | None = None
            try:
                connection = await asyncpg.connect(
                    self._database_url, timeout=5, command_timeout=30,
                    server_settings=STEADY_PLANS,
                )  # fmt: skip
                while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", lock):
                    if await _within(self._stopping, STANDBY_POLL_S):
                        return
                leading.set(1)
                while True:
                    news.clear()
                    more = await step(connection)
                    if failing_since is not None:
                        _log.info(
                            "relay.recovered", after_s=round(time.monotonic() - failing_since)
                        )
                        failing_since, backoff_s = None, POLL_S
                    if more:
                        continue
                    if self._stopping.is_set():
                        return
                    if news is self._news:
                        self._is_idle = True
                    await _within(news, POLL_S)
            except Exception as error:  # database or broker away: nothing is lost, try again
                if failing_since is None:
                    failing_since = time.monotonic()
                    _log.warning("relay.failed", step=step.__name__, reason=repr(error)[:200])
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
                self._forget(news)
                await _within(self._stopping, backoff_s)
            finally:
                leading.set(0)
                self._forget(news)
                if connection is not None:
                    with contextlib.suppress(Exception):
                        await connection.close(timeout=2)

    def _forget(self, news: asyncio.Event) -> None:
        """Forget how far the loop with `news` is: whoever leads meanwhile may send or stamp more."""
        if news is self._grown:
            self._position = -1
        else:
            self._is_idle, self._stamped = False, -1
            if self._ahead is not None:
                self._ahead.got(None)

    async def _stamp(self, connection: asyncpg.Connection[Any]) -> bool:
        """Give positions to what was committed; True when there may be more."""
        self._is_idle = False
        if self._ahead is not None and not self._ahead.stamped.done():
            stamped = await self._stamp_sent(connection, self._ahead)
            most = stamped if self._unsent else 0
        elif self._ahead is None and 0 <= self._position == self._stamped:
            self._unsent = False
            stamped = await self._stamp_ahead(connection)
            most = postgres_log.PENDING_ROWS_MAX
        else:
            self._unsent = False
            stamped, last = await postgres_log.stamp(connection)
            self._stamped = last if stamped else self._stamped
            most = postgres_log.STAMP_ROWS_MAX
        if stamped:
            metrics.PUBLISHED_POSITION.set(self._stamped)
            self._published()
            self._grown.set()
        return stamped == most

    async def _stamp_ahead(self, connection: asyncpg.Connection[Any]) -> int:
        """Send what is pending to Kafka while it gets its positions; gives how many messages.

        Only while the publisher, in this process, has nothing else to send; it waits for the end.
        """
        assert self._bus is not None  # noqa: S101
        ids, messages = await postgres_log.pending(connection)
        if not ids:
            return 0
        if self._ahead is not None or self._position != self._stamped:
            return 0  # the publisher failed, or another leads, while we asked
        self._ahead = _Ahead(asyncio.create_task(self._bus.publish(messages)), ids)
        return await self._stamp_sent(connection, self._ahead)

    async def _stamp_sent(self, connection: asyncpg.Connection[Any], ahead: _Ahead) -> int:
        """Give positions to what is on its way to Kafka already; gives how many messages."""
        position: int | None = None
        try:
            position = self._stamped = await postgres_log.stamp_these(connection, ahead.outbox_ids)
        finally:
            ahead.got(position)
        return len(ahead.outbox_ids)

    async def _send(self, connection: asyncpg.Connection[Any]) -> bool:
        """Send the next messages of the log to Kafka and move the cursor; True when there are more."""
        assert self._bus is not None  # noqa: S101
        more = False
        if self._ahead is not None:
            ahead = self._ahead
            position = await ahead.stamped
            try:
                await ahead.sending
            finally:
                self._ahead = None
            # What was sent as a session before this one ended says nothing of what others sent since.
            if position is not None and self._position >= 0:
                self._position = position
            more = self._position < 0
        elif self._position < 0:
            self._position = self._saved = await postgres_log.cursor(connection, KAFKA_CURSOR)
            more = True
        else:
            messages = await postgres_log.read(
                connection, self._position, ALL_TOPICS, PUBLISH_MESSAGES_MAX
            )
            if self._ahead is not None:
                return True  # these are on their way already
            if messages:
                await self._bus.publish(messages)
                self._position = messages[-1].position or 0
            more = len(messages) == PUBLISH_MESSAGES_MAX
        metrics.KAFKA_POSITION.set(self._position)
        if time.monotonic() - self._saved_at > SAVE_CURSOR_EVERY_S or self._stopping.is_set():
            await self._save_cursor(connection)
        return more

    async def _save_cursor(self, connection: asyncpg.Connection[Any]) -> None:
        """Move the stored cursor to what Kafka has; what lies behind it is sent again after a crash.

        On the session that holds the lock: a leader that lost it cannot move the cursor.
        """
        self._saved_at = time.monotonic()
        if self._saved < self._position:
            await postgres_log.advance(connection, KAFKA_CURSOR, self._position)
            self._saved = self._position


class _Ahead:
    """Messages on their way to Kafka, and the last position they get: None when they got none."""

    def __init__(self, sending: asyncio.Task[None], outbox_ids: Sequence[int]) -> None:
        self.sending = sending
        self.outbox_ids = outbox_ids
        self.stamped: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    def got(self, position: int | None) -> None:
        """Say which position came last, or that they got none; the first word counts."""
        if not self.stamped.done():
            self.stamped.set_result(position)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for `event` at most `seconds`; tell whether it came."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
