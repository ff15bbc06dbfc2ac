"""One subscription in the hands of a process: what an attempt's end means, and what a mistake reaches."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.contracts.events import Message
from services.stage_service.subscriptions.pace import DOWN_AFTER, Pace
from services.stage_service.subscriptions.schedule import RETRY_AFTER_MAX_S, tries_within
from services.stage_service.subscriptions.sender import Course, Sender
from services.stage_service.subscriptions.store_session import Record
from services.stage_service.subscriptions.subscription import Outcome, Subscription
from services.stage_service.subscriptions.tail import Entry, Matches, Page
from services.stage_service.subscriptions.window import MESSAGES_MAX, Delivery, Window

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Notes:
    """A `Book` that keeps all."""

    is_full = False

    def __init__(self) -> None:
        self.records: list[Record] = []

    def note(self, record: Record) -> None:
        """Keep it."""
        self.records.append(record)


class Answering:
    """A `Target` that always gives the same outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.closed = False

    async def deliver(self, message: Message, attempt: int, now: datetime) -> Outcome:
        """Give it."""
        return self.outcome

    async def close(self) -> None:
        """Note it."""
        self.closed = True


class OnePage:
    """A `Tail` that has one page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.head = page.last

    def live_page(self, position: int) -> Page | None:
        """Give it to who is not past it."""
        return self.page if position < self.page.last else None

    def is_behind(self, position: int) -> bool:
        """Nobody is."""
        return False


def message(position: int) -> Message:
    """The log's message at `position`, of a lead of its own."""
    return Message("t", f"lead-{position}", {"ce_id": f"e{position}"}, b"{}", position)


def everything(message: Message) -> bool:
    """A filter that lets all through."""
    return True


def sender(outcome: Outcome, matches: Matches, count: int) -> tuple[Sender, Any]:
    """A sender before a log of `count` messages, and its records."""
    wanted = Subscription(
        id="s", name="crm", connector=None, url="https://crm.example.com", types=(), filter=None,
        payload="full", ordered=True, headers={}, credentials={}, config={}, contact=None,
        timeout_s=5.0, concurrency=8, rate_per_s=None, state="active", version=1,
    )  # fmt: skip
    page = Page(0, count, [Entry(message(n), NOW) for n in range(1, count + 1)])
    notes: Any = Notes()
    tail: Any = OnePage(page)
    pace = Pace(8, None, None, NOW.timestamp(), lambda: 0.5)
    course = Course(wanted, Answering(outcome), matches)
    return Sender(
        course, 0, Window(0, ordered=True), pace, tail, notes, lambda: NOW, lambda: 0.5
    ), notes


async def settled(it: Sender) -> None:
    """Let all attempts end."""
    while not it.is_idle:
        await asyncio.sleep(0)


@pytest.mark.parametrize("asked", [1e18, float("inf"), float("nan"), -5.0, 1.7e12])
async def test_whatever_is_asked_for_the_next_try_is_within_the_hour(asked: float) -> None:
    """A connector reads it from a header of the CRM's: a moment in milliseconds is no number of seconds."""
    it, notes = sender(Outcome(False, 503, retry_after_s=asked, down=True), everything, 1)
    it.pump()
    await settled(it)
    assert not it.is_broken
    (record,) = notes.records
    assert record.state == "due"
    assert record.next_at <= NOW + timedelta(seconds=RETRY_AFTER_MAX_S)


@pytest.mark.parametrize(
    ("age", "down", "state"),
    [
        (timedelta(minutes=10), True, "due"),
        (timedelta(hours=76), True, "failed"),
        (timedelta(minutes=10), False, "failed"),
    ],
)
async def test_an_endpoint_that_comes_and_goes_uses_up_no_days_in_minutes(
    age: timedelta, down: bool, state: str
) -> None:
    """Each time it comes back what waits is due at once; what it refuses itself is given up all the same."""
    it, notes = sender(Outcome(False, 503 if down else 400, down=down), everything, 0)
    row = Delivery("d", message(1), 1, "a", 0, exists=True, tries=9, created_at=NOW - age)
    it.window.take_row(row)
    it.pump()
    await settled(it)
    (record,) = notes.records
    assert record.state == state
    if state == "due":
        assert record.next_at <= NOW + timedelta(hours=1)


def test_the_schedule_left_alone_is_not_shortened() -> None:
    moment = 0.0
    for number, wait_s in enumerate(
        (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400), 1
    ):
        assert tries_within(moment) >= number
        moment += wait_s * 0.8
    assert tries_within(moment + 1) == 10


async def test_a_changed_filter_holds_for_all_that_was_not_read_yet() -> None:
    """Also for what the old filter had left out of the page."""
    last = MESSAGES_MAX + 50

    def but_the_last(message: Message) -> bool:
        return message.position != last

    it, notes = sender(Outcome(True, 200), but_the_last, last)
    for number in range(DOWN_AFTER):
        it.pace.failed(f"e{number}", Outcome(False, 503, down=True), NOW.timestamp())
    it.pump()  # it is down: the window fills
    assert it.window.head == MESSAGES_MAX
    it.reconfigure(Course(it.course.subscription, it.course.target, everything))
    it.pace.went_through()
    it.pump()
    await settled(it)
    assert sorted(r.delivery.position for r in notes.records) == list(range(1, last + 1))


async def test_a_mistake_of_ours_is_one_subscriptions() -> None:
    def fails(message: Message) -> bool:
        raise RuntimeError

    it, _ = sender(Outcome(True, 200), fails, 1)
    it.pump()
    assert it.is_broken


async def test_targets_of_before_are_closed_too_when_it_is_cut_off() -> None:
    """At once after a change, before what closes them has begun."""
    it, _ = sender(Outcome(True, 200), everything, 0)
    before: Any = it.course.target
    after = Answering(Outcome(True, 200))
    it.reconfigure(Course(it.course.subscription, after, it.course.matches))
    await it.cut_off()
    assert (before.closed, after.closed) == (True, True)
