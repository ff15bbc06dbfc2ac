"""The consumer: from the bus to recorded alerts, exactly once each.

A fetched batch is recorded in one transaction, then its offsets are committed. Messages come at least
once; the alert's unique key (transition, recipient) answers the repeats. A message that cannot be read
is kept as a dead letter, and the messages after it go on. Nothing is ever skipped for want of a
database or a bus: the batch waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from services.contracts.bus import Bus, Received, Subscription
from services.contracts.events import (
    DEAD_LETTERS_TOPIC,
    HANDOFFS_TOPIC,
    SUBSCRIPTIONS_TOPIC,
    TRANSITIONS_TOPIC,
    Message,
    message_headers,
)
from services.notifier import metrics, store, subscriptions
from services.notifier.alerts import (
    NO_WAITS,
    Alert,
    alerts_of,
)
from services.notifier.errors import UnreadableError
from services.notifier.messages import (
    HandoffNews,
    Transition,
    handoff_news,
    read_transition,
    type_name,
)
from services.notifier.redaction import scrub
from services.notifier.roster import Roster
from services.notifier.templates import SHIPPED, Templates

GROUP = "notifier"
FETCH_MESSAGES_MAX = 500
COMMIT_EVERY_S = 0.1
"""How much is read again after a crash; alerts are recorded once however often they come."""
FETCH_WAIT_S = 0.5
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
STOP_WITHIN_S = 5.0
DEAD_TYPE = "baton.message.unreadable.v1"
"""The type of a dead letter whose own type is not known."""

_log = structlog.get_logger("baton.notifier")


class Reading:
    """What a batch of messages says: alerts to record, handoffs, messages that could not be read."""

    def __init__(
        self, write: Callable[[Transition], Iterable[Alert]],
        stopped: Callable[[Message], Alert] | None = None,
    ) -> None:  # fmt: skip
        self._write = write
        self._stopped = stopped
        self.alerts: list[Alert] = []
        self.handoffs: list[HandoffNews] = []
        self.dead: list[store.DeadMessage] = []
        self.newest: datetime | None = None

    def add(self, message: Message) -> None:
        """Read one message; whatever is wrong with it becomes a dead letter."""
        try:
            if self._stopped is not None and subscriptions.is_news(message):
                self.alerts.append(self._stopped(message))
                return
            transition = read_transition(message)
            if transition is None:
                return
            self.alerts.extend(self._write(transition))
            news = handoff_news(transition)
            if news is not None:
                self.handoffs.append(news)
            self.newest = max(self.newest or transition.recorded_at, transition.recorded_at)
        except UnreadableError as error:
            self.dead.append(dead_message(message, error.reason))
        except (
            Exception
        ) as error:  # a message that finds a mistake of ours must not stop the others
            _log.error("consumer.mistake", exc_info=error)
            self.dead.append(dead_message(message, f"{type_name(error)} while writing the alert"))


def dead_message(message: Message, reason: str) -> store.DeadMessage:
    """Make a dead letter of `message`, fit for the database whatever bytes it holds."""
    headers = {_storable(name): _storable(text) for name, text in message.headers.items()}
    digest = hashlib.sha256(message.key.encode() + b"\0" + message.value).hexdigest()
    kept = Message(_storable(message.topic), _storable(message.key), headers, message.value)
    return store.DeadMessage(headers.get("ce_id") or f"sha256:{digest}", kept, scrub(reason))


def _storable(text: str) -> str:
    # PostgreSQL's text cannot hold NUL, nor lone surrogates.
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


class Consumer:
    """Reads the bus until stopped. `recorded` is called when there are new deliveries to make."""

    def __init__(
        self,
        open_bus: Callable[[], Awaitable[Bus]],
        pool: asyncpg.Pool[Any],
        roster: Roster,
        public_url: str,
        tries: int,
        now: Callable[[], datetime],
        make_id: Callable[[], UUID],
        recorded: Callable[[], None],
        no_mail: str | None = None,
        templates: Templates = SHIPPED,
        escalate_after: Mapping[str, int] = NO_WAITS,
    ) -> None:
        self._escalate_after = escalate_after
        self._no_mail = no_mail
        self._templates = templates
        self._open_bus = open_bus
        self._pool = pool
        self._roster = roster
        self._public_url = public_url
        self._tries = tries
        self._now = now
        self._make_id = make_id
        self._recorded = recorded
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._bus: Bus | None = None
        self._subscription: Subscription | None = None
        self._failing_since: float | None = None
        self._uncommitted: dict[tuple[str, int], Received] = {}
        self._committed_at = 0.0

    @property
    def alive(self) -> bool:
        """Whether the loop runs (it may be waiting for the bus or the database)."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Start the loop."""
        self._task = asyncio.create_task(self._run(), name="consumer")

    async def stop(self, within_s: float = STOP_WITHIN_S) -> None:
        """Finish the batch in hand, at most `within_s` long, and leave the group."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=within_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(Exception):
            if self._subscription is not None:
                async with asyncio.timeout(within_s):
                    await self._commit_remembered()
        with contextlib.suppress(Exception):
            if self._subscription is not None:
                await self._subscription.close()
        with contextlib.suppress(Exception):
            if self._bus is not None:
                await self._bus.close()

    async def run_once(self, wait_s: float = 0.0) -> int:
        """Fetch one batch, record it and commit its offsets; gives how many messages it had.

        Raises what the bus or the database raises; the batch comes again or is already recorded.
        """
        received = await self._fetch(wait_s)
        if received:
            await self._handle(received)
            await self._commit(received)
        return len(received)

    async def take(self, messages: Sequence[Message]) -> store.DeadMessage | None:
        """Record `messages` outside the bus; gives the first that still cannot be read, if any."""
        reading = self._read(messages)
        if not reading.dead:
            await self._save(reading)
        return reading.dead[0] if reading.dead else None

    async def _run(self) -> None:
        backoff_s = BACKOFF_MIN_S
        held: list[Received] = []
        while not self._stopping.is_set():
            try:
                # A batch in hand is kept until it is recorded: a PostgreSQL subscription would not
                # give it again before its own connection is lost.
                if not held:
                    wait_s = COMMIT_EVERY_S if self._uncommitted else FETCH_WAIT_S
                    held = await self._fetch(wait_s)
                if held:
                    await self._handle(held)
                    done, held = held, []
                    self._remember(done)
                elif self._failing_since is None:
                    metrics.CONSUMER_LAG_SECONDS.set(0)
                if time.monotonic() - self._committed_at > COMMIT_EVERY_S:
                    await self._commit_remembered()
                if self._failing_since is not None:
                    after_s = round(time.monotonic() - self._failing_since)
                    _log.info("consumer.recovered", after_s=after_s)
                self._failing_since, backoff_s = None, BACKOFF_MIN_S
            except Exception as error:  # bus or database away: nothing is lost, try again
                metrics.CONSUMER_FAILURES.labels("consumer", type_name(error)).inc()
                if self._failing_since is None:
                    self._failing_since = time.monotonic()
                    _log.warning("consumer.failed", reason=scrub(f"{type_name(error)}: {error}"))
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), backoff_s)

    async def _fetch(self, wait_s: float) -> list[Received]:
        if self._bus is None:
            self._bus = await self._open_bus()
        if self._subscription is None:
            self._subscription = await self._bus.subscribe(
                GROUP, [TRANSITIONS_TOPIC, HANDOFFS_TOPIC, SUBSCRIPTIONS_TOPIC]
            )
        return await self._subscription.fetch(FETCH_MESSAGES_MAX, wait_s)

    def _remember(self, received: Sequence[Received]) -> None:
        """Note how far we are: committing at every batch would cost more than recording it."""
        for each in received:
            self._uncommitted[each.token[:2]] = each

    async def _commit_remembered(self) -> None:
        self._committed_at = time.monotonic()
        if self._uncommitted:
            await self._commit(list(self._uncommitted.values()))
            self._uncommitted.clear()

    async def _commit(self, received: Sequence[Received]) -> None:
        assert self._subscription is not None  # noqa: S101
        await self._subscription.commit(received)

    def _read(self, messages: Sequence[Message]) -> Reading:
        team, now = self._roster.team(), self._now()
        reading = Reading(
            lambda transition: alerts_of(
                transition, team, self._public_url, self._make_id, now, self._templates,
                self._escalate_after,
            ),
            lambda message: subscriptions.stopped_alert(
                message, team, self._public_url, self._make_id, now
            ),
        )  # fmt: skip
        for message in messages:
            reading.add(message)
        return reading

    async def _handle(self, received: Sequence[Received]) -> None:
        messages = [r.message for r in received]
        reading = self._read(messages)
        if reading.newest is not None:
            lag_s = (self._now() - reading.newest).total_seconds()
            metrics.CONSUMER_LAG_SECONDS.set(max(lag_s, 0))
        dead = reading.dead
        try:
            await self._save(reading)
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError):
            # The database refuses something in the batch for good: find it, let the others pass.
            dead = await self._save_apart(messages)
        if dead:
            # Before the offsets: published at least once, and again if we fail from here on.
            assert self._bus is not None  # noqa: S101
            await self._bus.publish([self._letter(d) for d in dead])

    async def _save_apart(self, messages: Sequence[Message]) -> list[store.DeadMessage]:
        dead: list[store.DeadMessage] = []
        for message in messages:
            reading = self._read([message])
            try:
                await self._save(reading)
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                reading = Reading(lambda _: ())
                reason = f"the database refuses it: {type_name(error)}"
                reading.dead.append(dead_message(message, reason))
                await self._save(reading)
            dead.extend(reading.dead)
        return dead

    async def _save(self, reading: Reading) -> None:
        if not reading.alerts and not reading.dead and not reading.handoffs:
            return
        saved = await store.save(
            self._pool, reading.alerts, reading.dead, self._now(), self._tries, self._no_mail,
            reading.handoffs,
        )  # fmt: skip
        for role, count in saved.alerts.items():
            metrics.ALERTS.labels(role).inc(count)
        if saved.letters:
            metrics.DEAD_LETTERS.labels("message").inc(saved.letters)
            _log.warning(
                "consumer.dead_letters", count=saved.letters, reason=reading.dead[0].reason
            )
        if saved.alerts and saved.pending:
            self._recorded()

    def _letter(self, dead: store.DeadMessage) -> Message:
        headers = message_headers(dead.id, DEAD_TYPE, self._now())
        headers.update(dead.message.headers)
        headers |= {"ce_id": dead.id, "baton_reason": dead.reason}
        headers["baton_topic"] = dead.message.topic
        return Message(DEAD_LETTERS_TOPIC, dead.message.key, headers, dead.message.value)
