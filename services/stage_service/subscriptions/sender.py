"""Delivers for one subscription: reads the log into its window, begins attempts, and says what came of them.

No task of its own: `pump` begins what may begin now, and is called when the log has grown, when an attempt
ended, when rows came, and ten times a second. What is to be recorded goes to a `Book`; nothing here writes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog
import uuid_utils

from services.contracts.database import DATABASE_AWAY
from services.contracts.events import rfc3339
from services.stage_service.subscriptions import metrics
from services.stage_service.subscriptions.filters import Words
from services.stage_service.subscriptions.pace import Pace
from services.stage_service.subscriptions.schedule import (
    asked_s,
    has_failed_for_good,
    last_retry_s,
    retry_in_s,
    tries_within,
)
from services.stage_service.subscriptions.store_session import Record
from services.stage_service.subscriptions.subscription import Outcome, Subscription, Target
from services.stage_service.subscriptions.tail import Entry, Matches, Page, PrunedError, Tail
from services.stage_service.subscriptions.webhook_target import readable
from services.stage_service.subscriptions.window import Delivery, Window

BEYOND_TIMEOUT_S = 5.0
"""A target that does not keep its own time limit is cut off so long after it."""
_log = structlog.get_logger("baton.subscriptions")


class Book(Protocol):
    """Where results are noted down to be recorded."""

    @property
    def is_full(self) -> bool:
        """Whether so much is to be recorded that nothing more should be begun."""
        ...

    def note(self, record: Record) -> None:
        """Take a result."""
        ...


@dataclass(frozen=True, slots=True)
class Course:
    """What a subscription is delivered by, as read at one version of it.

    `words` is what its filter could speak of then; None: it has no filter.
    """

    subscription: Subscription
    target: Target
    matches: Matches
    words: Words | None = None


class Sender:
    """One subscription in the hands of this process. `stopped`: (state, reason) once it is to be stopped."""

    def __init__(
        self, course: Course, run: int, window: Window, pace: Pace, tail: Tail,
        book: Book, now: Callable[[], datetime], random: Callable[[], float],
    ) -> None:  # fmt: skip
        self.course = course
        self.run = run
        self.window = window
        self.pace = pace
        self.stopped: tuple[str, str] | None = None
        self.recovered = False
        """The endpoint is up again, and those that wait for their next try are not due yet."""
        self.due_at: datetime | None = None
        """When a row is due that is not here, as far as known."""
        self.is_told = False
        """That it stopped is recorded."""
        self.closing = False
        self.is_broken = False
        """A mistake of ours left it in a state that nobody knows: it begins anew from what is recorded."""
        self.log_held = False
        """The log is not read: too many leads have something open to know them all."""
        self.saved_cursor = window.cursor
        self.saved_at = 0.0
        self.saved_failing = pace.failing_since
        self._tail = tail
        self._book = book
        self._now = now
        self._random = random
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._entries: list[Entry] = []
        self._place = 0
        self._page_last = window.head
        self._closers: dict[asyncio.Task[None], Target] = {}
        """What closes the targets of before, once nothing is under way by them."""

    @property
    def id(self) -> str:
        """The subscription's id."""
        return self.course.subscription.id

    @property
    def is_idle(self) -> bool:
        """Whether no attempt is under way."""
        return not self._tasks

    def _fill(self) -> None:
        """Read the log into the window, as far as it takes more."""
        window = self.window
        while not self.log_held:
            while self._place < len(self._entries):
                if not window.takes_more:
                    return
                self._add(self._entries[self._place])
                self._place += 1
            window.pass_over(self._page_last)
            page = self._tail.live_page(window.head)
            if page is None:
                if self._reading is None and self._tail.is_behind(window.head):
                    self._reading = asyncio.create_task(self._read_earlier(), name="earlier-page")
                return
            self._open_page(page)

    def _open_page(self, page: Page) -> None:
        head = self.window.head
        found = page.selected(self.course.matches)
        if page.after < head:
            found = [e for e in found if (e.message.position or 0) > head]
        self._entries, self._place, self._page_last = found, 0, page.last

    async def _read_earlier(self) -> None:
        try:
            page = await self._tail.earlier_page(self.window.head)
            if self.window.head < page.last:
                self._open_page(page)
        except DATABASE_AWAY:
            await asyncio.sleep(1.0)
        except PrunedError:
            self.is_broken = True  # who opens it anew is told what is missing
        finally:
            self._reading = None
        self.pump()

    def _add(self, entry: Entry) -> None:
        message = entry.message
        delivery = Delivery(
            str(uuid_utils.uuid7()), message, message.position, message.key, self.run,
            published_at=entry.published_at,
        )  # fmt: skip
        if self.window.add(delivery) is not None:
            self._wait(delivery)

    def _wait(self, delivery: Delivery) -> None:
        delivery.created_at = delivery.created_at or self._now()
        self._note(delivery, "waiting")

    def _spill(self) -> None:
        """Give what holds up the window rows of its own."""
        sending, behind = self.window.spill()
        now = self._now()
        for delivery in sending:
            self._note(delivery, "due", next_at=now)
        for delivery in behind:
            self._wait(delivery)

    def reconfigure(self, course: Course) -> None:
        """Go on with changed settings; what is under way ends as it began."""
        old, self.course = self.course, course
        self.stopped, self.is_told = None, False
        self.pace.configure(course.subscription.concurrency, course.subscription.rate_per_s)
        if course.matches != old.matches:
            self.window.drop(lambda d: not course.matches(d.message))
            # What of the page was not read yet is chosen anew: the old filter may have left out some of it.
            self._entries, self._place, self._page_last = [], 0, self.window.head
        closer = asyncio.create_task(self._close_after(old.target, set(self._tasks)))
        self._closers[closer] = old.target
        closer.add_done_callback(lambda done: self._closers.pop(done, None))

    def pump(self) -> None:
        """Read on, and begin the attempts that may begin now. Never raises: others wait for the caller."""
        try:
            self._pump()
        except Exception:
            self.is_broken = True
            _log.exception("subscription.broken", subscription=self.id)

    def _pump(self) -> None:
        if self.closing or self.is_broken or self.stopped is not None or self._book.is_full:
            return
        window = self.window
        self._fill()
        if window.is_stuck and self.pace.free(self._now().timestamp(), len(window.sending)) > 0:
            self._spill()
            self._fill()
        if not window.can_send:
            return
        now = self._now()
        free = self.pace.free(now.timestamp(), len(window.sending))
        while free > 0:
            delivery = window.next()
            if delivery is None:
                return
            free -= 1
            self.pace.began()
            delivery.attempted += 1
            delivery.created_at = delivery.created_at or now
            task = asyncio.create_task(self._attempt(delivery, self.course))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            if not window.can_send:
                self._fill()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.is_broken = True
            _log.error("subscription.broken", subscription=self.id, exc_info=task.exception())

    async def _attempt(self, delivery: Delivery, course: Course) -> None:
        now = self._now()
        limit_s = course.subscription.timeout_s + BEYOND_TIMEOUT_S
        try:
            async with asyncio.timeout(limit_s):
                outcome = await course.target.deliver(delivery.message, delivery.attempted, now)
        except TimeoutError:
            outcome = Outcome(False, reason=f"no end within {limit_s:g} s", down=True)
        except Exception as error:  # a target's mistake: this delivery's failure, not everybody's
            _log.exception("subscription.target_failed", subscription=self.id)
            outcome = Outcome(False, reason=f"a mistake in Baton: {type(error).__name__}")
        metrics.ATTEMPT_SECONDS.observe(outcome.duration_ms / 1000)
        self._settle(delivery, outcome, now)
        self.pump()

    def _settle(self, delivery: Delivery, outcome: Outcome, began: datetime) -> None:
        """Decide what an attempt's end means."""
        now = self._now()
        delivery.attempts.append(_told(outcome, delivery.attempted, began))
        if outcome.ok:
            delivery.tries += 1
            self.recovered = self.pace.went_through() or self.recovered
            self._done(delivery, "delivered", now)
        elif outcome.final:
            delivery.tries += 1
            self._done(delivery, "failed", now)
        elif outcome.gone:
            self.stopped = ("gone", "the endpoint answered 410 Gone")
            self._again(delivery, now)
        else:
            self._retry_or_give_up(delivery, outcome, now)

    def _retry_or_give_up(self, delivery: Delivery, outcome: Outcome, now: datetime) -> None:
        # What fails while nothing gets through, or because there was too much, is not this event's doing: it
        # costs none of its tries.
        if not self.pace.down and outcome.status != 429:
            delivery.tries += 1
        began = (delivery.created_at or now).timestamp()
        if outcome.down:
            # Each time it comes back what waits is due at once, ahead of the schedule: an endpoint that comes
            # and goes must not use up an event's days in minutes.
            delivery.tries = min(delivery.tries, tries_within(now.timestamp() - began))
        self.pace.failed(delivery.message.id, outcome, now.timestamp())
        wait_s = retry_in_s(delivery.tries, self._random())
        if wait_s is None:
            failing_since = self.pace.failing_since or 0.0
            if failing_since > began:  # others got through since it was first tried
                self._done(delivery, "failed", now)
                return
            wait_s = last_retry_s(self._random())
        self._again(delivery, now + timedelta(seconds=max(wait_s, asked_s(outcome.retry_after_s))))
        since = self.pace.failing_since
        if since is not None and has_failed_for_good(
            datetime.fromtimestamp(since, now.tzinfo), now, self.pace.failures
        ):
            reason = outcome.reason or "no reason told"
            self.stopped = ("failing", f"nothing went through for five days; the last: {reason}")

    def _done(self, delivery: Delivery, state: str, now: datetime) -> None:
        metrics.DELIVERIES.labels(self.id, state).inc()
        self.window.done(delivery)
        self._note(delivery, state, done_at=now)

    def _again(self, delivery: Delivery, next_at: datetime) -> None:
        metrics.DELIVERIES.labels(self.id, "retried").inc()
        followers = self.window.again(delivery)
        self._note(delivery, "due", next_at=next_at)
        self.due_at = min(self.due_at or next_at, next_at)
        for each in followers:
            self._wait(each)

    def _note(
        self, delivery: Delivery, state: str, *,
        next_at: datetime | None = None, done_at: datetime | None = None,
    ) -> None:  # fmt: skip
        attempts, delivery.attempts = delivery.attempts, []
        self._book.note(
            Record(self.id, delivery, state, next_at, done_at, attempts, delivery.exists)
        )
        delivery.exists = True

    async def wait_idle(self, within_s: float) -> None:
        """Begin nothing more; let what is under way end within `within_s`, and cut off the rest."""
        self.closing = True
        if self._tasks and within_s > 0:
            await asyncio.wait(set(self._tasks), timeout=within_s)
        await self.cut_off()

    async def cut_off(self) -> None:
        """Begin nothing more, and give up what is under way: somebody sends it again."""
        self.closing = True
        targets = [self.course.target, *self._closers.values()]
        tasks: list[asyncio.Task[Any]] = [*self._tasks, *self._closers]
        if self._reading is not None:
            tasks.append(self._reading)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for target in targets:
            with contextlib.suppress(Exception):
                await target.close()
        for gauge in (metrics.DOWN, metrics.LAG_POSITIONS, metrics.LAG_SECONDS):
            with contextlib.suppress(KeyError):
                gauge.remove(self.id)

    async def _close_after(self, target: Target, tasks: set[asyncio.Task[None]]) -> None:
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            with contextlib.suppress(Exception):
                await target.close()

    def measure(self) -> None:
        """Set the gauges."""
        oldest = self.window.oldest
        lag_s = 0.0
        if oldest is not None and oldest.published_at is not None:
            lag_s = max(0.0, (self._now() - oldest.published_at).total_seconds())
        metrics.LAG_SECONDS.labels(self.id).set(lag_s)
        metrics.LAG_POSITIONS.labels(self.id).set(max(0, self._tail.head - self.window.cursor))
        metrics.DOWN.labels(self.id).set(1 if self.pace.down else 0)


def _told(outcome: Outcome, number: int, began: datetime) -> dict[str, Any]:
    """Give an attempt as people read it."""
    told: dict[str, Any] = {"number": number, "at": rfc3339(began), "ok": outcome.ok}
    told["duration_ms"] = outcome.duration_ms
    for name in ("status", "reason", "response", "request", "retry_after_s"):
        value = getattr(outcome, name)
        if value is not None:
            told[name] = readable(value) if isinstance(value, str) else value
    return told
