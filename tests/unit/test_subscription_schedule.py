"""When deliveries are tried again, and how fast an endpoint is sent to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.stage_service.subscriptions.pace import DOWN_AFTER, Pace
from services.stage_service.subscriptions.schedule import (
    FAILING_FOR,
    FAILURES_MIN,
    PROBE_MAX_S,
    PROBE_MIN_S,
    RETRY_AFTER_MAX_S,
    RETRY_AFTER_TRIES_S,
    THROTTLE_MAX_S,
    has_failed_for_good,
    probe_in_s,
    retry_after_s,
    retry_in_s,
    throttle_s,
)
from services.stage_service.subscriptions.subscription import Outcome

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
chances = st.floats(0, 1, exclude_max=True)


def test_the_schedule_is_that_of_the_standard() -> None:
    """Without jitter: ten attempts over 75 hours, 35 minutes and 5 seconds."""
    waits = [retry_in_s(tries, 0.5) for tries in range(1, 10)]
    assert waits == [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert sum(RETRY_AFTER_TRIES_S) == timedelta(hours=75, minutes=35, seconds=5).total_seconds()
    assert retry_in_s(10, 0.5) is None


@given(st.integers(0, 9), chances)
def test_jitter_stays_within_a_fifth(tries: int, random: float) -> None:
    plain = RETRY_AFTER_TRIES_S[max(tries, 1) - 1]
    wait = retry_in_s(tries, random)
    assert wait is not None
    assert 0.8 * plain <= wait <= 1.2 * plain


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0), ("0", 0.0), (" 7 ", 7.0), ("1.5", 1.5),
        ("315360000", RETRY_AFTER_MAX_S), ("9" * 400, RETRY_AFTER_MAX_S), ("9" * 401, None),
        (format_datetime(NOW + timedelta(minutes=5), usegmt=True), 300.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0.0),
        (format_datetime(NOW + timedelta(days=3650), usegmt=True), RETRY_AFTER_MAX_S),
        ("Tue Nov 24 12:05:00 2026", 300.0),
        ("Tuesday, 24-Nov-26 12:05:00 GMT", 300.0),
        ("-5", None), ("soon", None), ("", None), (None, None), ("１２", None), ("nan", None),
        ("inf", None), ("1e9", None), ("Tue, 99 Foo 2026 25:61:61 GMT", None), ("\0", None),
    ],
)  # fmt: skip
def test_retry_after_is_read_and_clamped(text: str | None, seconds: float | None) -> None:
    assert retry_after_s(text, NOW) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_is_an_error(text: str) -> None:
    found = retry_after_s(text, NOW)
    assert found is None or 0 <= found <= RETRY_AFTER_MAX_S


@given(st.floats(0, 1e9), chances)
def test_an_endpoint_that_is_down_is_tried_ever_more_rarely(down_s: float, random: float) -> None:
    wait = probe_in_s(down_s, random)
    assert 0.8 * PROBE_MIN_S <= wait <= 1.2 * PROBE_MAX_S
    assert probe_in_s(down_s * 2, random) >= wait


def test_a_throttled_endpoint_rests_longer_each_time() -> None:
    rests = [throttle_s(times, 0.5) for times in range(1, 9)]
    assert rests == sorted(rests)
    assert rests[0] == 2.0
    assert rests[-1] == THROTTLE_MAX_S


def test_five_days_of_failures_are_enough_but_not_of_absence() -> None:
    since = NOW - FAILING_FOR
    assert has_failed_for_good(since, NOW, FAILURES_MIN)
    assert not has_failed_for_good(since + timedelta(seconds=1), NOW, 1000)
    assert not has_failed_for_good(since, NOW, FAILURES_MIN - 1)


# How fast an endpoint is sent to.

REFUSED = Outcome(False, 500, down=True)


def pace(concurrency: int = 8, rate: float | None = None, since: float | None = None) -> Pace:
    """A pace that begins at second 0."""
    return Pace(concurrency, rate, since, 0.0, lambda: 0.5)


def test_one_delivery_that_never_goes_through_brings_nothing_down() -> None:
    it = pace()
    for n in range(20):
        it.failed("poison", REFUSED, float(n))
    assert not it.down
    assert it.free(20.0, 0) == 8


def test_several_in_a_row_bring_it_down_and_one_success_up_again() -> None:
    it = pace()
    for n in range(DOWN_AFTER - 1):
        it.failed(f"e{n}", REFUSED, 100.0)
    assert not it.down
    it.failed("last", REFUSED, 100.0)
    assert it.down
    assert it.free(100.0, 0) == 0
    assert it.free(103.0, 0) == 1
    assert it.free(103.0, 1) == 0
    assert it.went_through()
    assert it.free(103.0, 0) == 8
    assert it.failing_since is None


def test_a_success_between_keeps_it_up() -> None:
    it = pace()
    for n in range(50):
        it.failed(f"e{n}", REFUSED, float(n))
        if n % (DOWN_AFTER - 1) == DOWN_AFTER - 2:
            it.went_through()
    assert not it.down


def test_too_much_is_answered_by_a_rest_and_half_as_many() -> None:
    it = pace()
    it.failed("a", Outcome(False, 429, retry_after_s=10.0, down=True), 100.0)
    assert it.free(109.0, 0) == 0
    assert it.free(111.0, 0) == 4
    it.failed("b", Outcome(False, 504, down=True), 111.0)
    assert it.free(112.0, 0) == 0
    assert it.free(120.0, 0) == 2
    for _ in range(100):
        it.went_through()
    assert it.free(120.0, 0) == 8


def test_too_much_never_counts_as_down() -> None:
    it = pace()
    for n in range(100):
        it.failed(f"e{n}", Outcome(False, 429, down=True), float(n * 100))
    assert not it.down
    assert it.free(1e6, 0) == 1


def test_the_rate_caps_what_begins() -> None:
    it = pace(rate=10.0)
    begun = 0
    for tick in range(200):  # 20 seconds
        for _ in range(it.free(tick / 10, 0)):
            it.began()
            begun += 1
    assert 200 <= begun <= 220


def test_who_takes_over_a_failing_endpoint_begins_with_one() -> None:
    it = pace(since=-86_400.0)
    assert it.free(0.0, 0) == 1


def test_a_clock_set_back_holds_nobody_for_ever() -> None:
    it = pace()
    it.failed("a", Outcome(False, 429, retry_after_s=60.0, down=True), 1e9)
    assert it.free(0.0, 0) == 4


@given(
    st.lists(
        st.tuples(st.sampled_from(["ok", "500", "429", "none"]), st.floats(0, 500)), max_size=80
    )
)
def test_whatever_happens_it_goes_on_in_time(happened: list[tuple[str, float]]) -> None:
    """After any history something may begin within the longest rest; never more at once than allowed."""
    it = pace(4)
    moment = 0.0
    for n, (what, passed) in enumerate(happened):
        moment += passed
        assert it.free(moment, 0) <= 4
        if what == "ok":
            it.went_through()
        elif what == "none":
            it.failed(f"e{n}", Outcome(False, None, down=True), moment)
        else:
            it.failed(f"e{n}", Outcome(False, int(what), down=True), moment)
    assert it.free(moment + 1.2 * PROBE_MAX_S, 0) >= 1


def test_one_locked_record_lets_the_others_go_on() -> None:
    it = pace()
    it.failed("a", Outcome(False, 400, retry_after_s=60.0, apart=True), 100.0)
    assert it.free(100.0, 0) == 8
