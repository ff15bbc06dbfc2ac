"""What a key may ingest for, how often it may ask, and how an Idempotency-Key is read; no database."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from throttled import utils as throttled_utils

from services.contracts.access import Principal, bound_sources
from services.contracts.idempotency import KEY_CHARACTERS_MAX, fingerprint_of, key_of
from services.contracts.problems import (
    KeyMalformedError,
    RateLimitedError,
    UnavailableError,
    answer_headers,
)
from services.contracts.rates import RateLimits, quota_of


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of the rate limits' library, which passes when told to."""
    it = SimpleNamespace(now=1000.0, monotonic=lambda: it.now)
    monkeypatch.setattr(throttled_utils, "time", it)
    return it


def who(id: str = "k", rate: str | None = None, event_rate: str | None = None) -> Principal:
    """Somebody who may ingest."""
    return Principal(id, id, frozenset({"ingest"}), None, rate, event_rate)


def admitted(limits: RateLimits, principal: Principal, times: int, events: int = 0) -> int:
    """How many of `times` requests pass."""
    passed = 0
    for _ in range(times):
        try:
            limits.admit(principal, events)
        except RateLimitedError:
            continue
        passed += 1
    return passed


@pytest.mark.parametrize(
    ("bound", "source", "may"),
    [
        (None, "/anything", True),
        (["hubspot"], "hubspot", True),
        (["hubspot"], "/sources/hubspot", True),
        (["hubspot"], "/sources/hubspot2", False),
        (["hubspot"], "HubSpot", False),
        (["hubspot"], "/hubspot", False),
        (["/website"], "/website", True),
        (["/website"], "/sources/website", False),
        (["/website"], "website", False),
        (["a", "/b"], "/b", True),
    ],
)
def test_a_bound_key_ingests_for_its_sources(
    bound: list[str] | None, source: str, may: bool
) -> None:
    """A name without a slash stands for itself and /sources/<name>; with one, for exactly that."""
    sources = bound_sources(bound) if bound is not None else None
    assert Principal("k", "k", frozenset({"ingest"}), sources).may_ingest_for(source) is may
    assert not Principal("k", "k", frozenset({"read"}), sources).may_ingest_for(source)


def test_requests_pass_in_a_burst_then_at_the_rate(clock: SimpleNamespace) -> None:
    """8 a second with a burst of 16: sixteen at once, then one each eighth of a second."""
    limits = RateLimits("8/s burst 16")
    assert admitted(limits, who(), 50) == 16
    clock.now += 0.125
    assert admitted(limits, who(), 50) == 1
    clock.now += 1.0
    assert admitted(limits, who(), 50) == 8
    clock.now += 3600
    assert admitted(limits, who(), 50) == 16


def test_keys_are_counted_apart(clock: SimpleNamespace) -> None:
    """One key's flood leaves the others' bucket full."""
    limits = RateLimits("1/m burst 3")
    assert admitted(limits, who("a"), 10) == 3
    assert admitted(limits, who("b"), 10) == 3


def test_a_keys_own_rate_takes_the_settings_place(clock: SimpleNamespace) -> None:
    """Higher, lower, or off."""
    limits = RateLimits("1/m burst 3", "1/m burst 3")
    assert admitted(limits, who("a", rate="1/m burst 7", event_rate="off"), 10, 1) == 7
    assert admitted(limits, who("b", rate="off", event_rate="off"), 10, 1) == 10
    assert admitted(limits, who("c", rate="off"), 10, 1) == 3


def test_events_are_counted_beside_requests(clock: SimpleNamespace) -> None:
    """A batch takes as many as it has; one larger than the bucket takes all of it, and is not shut out."""
    limits = RateLimits(events="10/s burst 100")
    limits.admit(who(), 60)
    with pytest.raises(RateLimitedError) as refused:
        limits.admit(who(), 60)
    assert refused.value.limit == "events"
    assert refused.value.wait_s == 2
    clock.now += 2
    limits.admit(who(), 60)
    clock.now += 10
    limits.admit(who(), 1000)
    with pytest.raises(RateLimitedError):
        limits.admit(who(), 1)


def test_large_batches_do_not_outrun_the_rate(clock: SimpleNamespace) -> None:
    """10 events a second are 10, also for who sends a thousand whenever they are let in."""
    limits = RateLimits(events="10/s burst 100")
    passed = sum(
        admitted(limits, who(), 1, 1000) * 1000 for _ in _seconds(clock, 1000)
    )  # fmt: skip
    assert 9 * 1000 <= passed <= 10 * 1000 + 1000
    limits.admit(who(), 1000)
    with pytest.raises(RateLimitedError) as refused:
        limits.admit(who(), 1)
    clock.now += refused.value.wait_s
    limits.admit(who(), 1)
    limits.admit(who("b"), 1)


def _seconds(clock: SimpleNamespace, seconds: int) -> Iterator[int]:
    for second in range(seconds):
        yield second
        clock.now += 1


def test_what_is_off_counts_nothing() -> None:
    """By default no key is limited."""
    assert admitted(RateLimits(), who(), 10_000, 1000) == 10_000


def test_after_the_wait_it_passes(clock: SimpleNamespace) -> None:
    """Retry-After tells the truth, in whole seconds, at least one."""
    for rate in ("1/s", "7/m burst 2", "100/h burst 5", "1000/s burst 1"):
        limits = RateLimits(rate)
        admitted(limits, who(), 10)
        with pytest.raises(RateLimitedError) as refused:
            limits.admit(who())
        assert refused.value.wait_s >= 1
        clock.now += refused.value.wait_s
        limits.admit(who())


def test_the_headers_of_a_refusal(clock: SimpleNamespace) -> None:
    """Retry-After is an integer; RateLimit and RateLimit-Policy are those of the draft."""
    limits = RateLimits("30/m burst 1")
    limits.admit(who())
    with pytest.raises(RateLimitedError) as refused:
        limits.admit(who())
    assert answer_headers(refused.value, 429) == {
        "retry-after": "2",
        "ratelimit-policy": '"requests";q=30;w=60',
        "ratelimit": '"requests";r=0;t=2',
    }
    assert answer_headers(UnavailableError("away"), 503) == {"retry-after": "2"}


def test_wrong_keys_are_counted_by_address(clock: SimpleNamespace) -> None:
    """An IPv4 address, an IPv6 /64; another address is not touched."""
    limits = RateLimits(failures="6/m burst 2")
    for address in ("192.0.2.1", "2001:db8::1"):
        limits.failed(address)
        limits.may_try(address)
        limits.failed(address)
        with pytest.raises(RateLimitedError):
            limits.may_try(address)
    with pytest.raises(RateLimitedError):
        limits.may_try("2001:db8::ffff")
    for address in ("192.0.2.2", "2001:db8:0:1::1", None, "testclient"):
        limits.may_try(address)
    clock.now += 10
    limits.may_try("192.0.2.1")


@pytest.mark.parametrize(
    "text", ["", "fast", "0/s", "10", "10/x", "10/s burst 0", "1/s,2/m", "-1/s"]
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    """With a remedy."""
    with pytest.raises(ValueError, match="100/s"):
        quota_of(text)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ('"8e03978e-40d5-43dd-bc93-6894a57f9324"', "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        (r' "a \"quoted\" \\ key" ', r'a "quoted" \ key'),
        ('"key"; p=1', "key"),
        ("8e03978e-40d5-43dd", "8e03978e-40d5-43dd"),
        ('"' + "x" * KEY_CHARACTERS_MAX + '"', "x" * KEY_CHARACTERS_MAX),
    ],
)
def test_a_key_is_a_structured_string(header: str, key: str) -> None:
    """RFC 8941, section 3.3.3; unquoted as many clients send it."""
    assert key_of([header]) == key


@pytest.mark.parametrize(
    "headers",
    [[""], ['""'], ['"open'], ['open"'], ['"a\\b"'], ["a b"], ["grün"], ['"grün"'], ['"a", "b"'],
     ['"a"', '"a"'], ['"' + "x" * (KEY_CHARACTERS_MAX + 1) + '"'], ['"a\x7f"'], ["'a'"]],
)  # fmt: skip
def test_what_is_no_key_is_refused(headers: list[str]) -> None:
    """Also two headers: which one counts?"""
    with pytest.raises(KeyMalformedError):
        key_of(headers)


def test_no_header_is_no_key() -> None:
    """The header is optional."""
    assert key_of([]) is None


@given(st.lists(st.text(), min_size=4, max_size=4), st.lists(st.text(), min_size=4, max_size=4))
def test_a_fingerprint_tells_requests_apart(one: list[str], other: list[str]) -> None:
    """Parts do not run into each other."""
    first = fingerprint_of(one[0], one[1], one[2], one[3].encode())
    second = fingerprint_of(other[0], other[1], other[2], other[3].encode())
    assert (first == second) == (one == other)
