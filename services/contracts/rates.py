"""How often somebody may ask: requests and events a key, failed authentications an address.

A limit is written ``100/s burst 200`` (also ``/m``, ``/h``, ``/d``; without ``burst`` it is the number
itself) or ``off``. The algorithm is GCRA, the token bucket that keeps one number a key, of the library
throttled-py. Counts are this process's own: with n replicas, n times the rate may pass.
"""

from __future__ import annotations

import ipaddress
from typing import Protocol

from prometheus_client import Counter
from throttled import MemoryStore, Quota, Throttled
from throttled.exceptions import DataError
from throttled.rate_limiter.quota_parser import parse
from throttled.utils import now_mono_f

from services.contracts.problems import RateLimitedError

OFF = "off"
FAILURES = "60/m burst 100"
"""Failed authentications an address, unless told otherwise."""
KEYS_MAX = 10_000
"""Of so many keys or addresses a limit remembers the count; the one unseen longest is forgotten first."""

RATE_LIMITED = Counter(
    "baton_rate_limited_total",
    "Requests refused by a rate limit: requests, events, failures",
    ["limit"],
)


class Limited(Protocol):
    """Somebody with an id, and perhaps limits of their own."""

    @property
    def id(self) -> str:
        """What is counted."""
        ...

    @property
    def rate(self) -> str | None:
        """The limit of requests; None: that of the settings."""
        ...

    @property
    def event_rate(self) -> str | None:
        """The limit of events; None: that of the settings."""
        ...


def quota_of(text: str) -> Quota | None:
    """Give the quota that `text` says, None for ``off``. Raises ValueError when it says none."""
    if text.strip().lower() == OFF:
        return None
    try:
        quotas = parse(text)
    except DataError:
        quotas = []
    if len(quotas) != 1 or quotas[0].rate.limit < 1 or quotas[0].burst < 1:
        raise ValueError(f"{text!r} is no rate: write 100/s, 100/s burst 200, or off")
    return quotas[0]


class _Limit:
    """One quota, counted apart for each name."""

    def __init__(self, kind: str, quota: Quota) -> None:
        self._kind = kind
        self._quota = quota
        self._throttled = Throttled(
            using="gcra", quota=quota, store=MemoryStore(options={"MAX_SIZE": KEYS_MAX})
        )
        self._closed_until: dict[str, float] = {}

    def take(self, name: str, cost: int) -> None:
        # More than the bucket holds could never pass: it takes all of it, and nothing else passes before
        # the rate has caught up with it.
        now = now_mono_f()
        until = self._closed_until.pop(name, now)
        if until > now:
            self._closed_until[name] = until
            raise self._refusal(until - now)
        taken = self._throttled.limit(name, min(cost, self._quota.burst))
        if taken.limited:
            raise self._refusal(taken.state.retry_after)
        if cost > self._quota.burst:
            self._closed_until[name] = now + cost * self._quota.emission_interval

    def check(self, name: str) -> None:
        state = self._throttled.peek(name)
        if state.remaining < 1:
            raise self._refusal(state.retry_after)

    def spend(self, name: str) -> None:
        self._throttled.limit(name, 1)

    def _refusal(self, wait_s: float) -> RateLimitedError:
        RATE_LIMITED.labels(self._kind).inc()
        quota = self._quota
        unit = f"{quota.period_sec} s" if quota.period_sec > 1 else "second"
        return RateLimitedError(
            f"more than {quota.rate.limit} {_SAID[self._kind]} a {unit}".replace("a 60 s", "a minute"),
            limit=self._kind, quota=quota.rate.limit, window_s=quota.period_sec, wait_s=wait_s,
        )  # fmt: skip


_SAID = {
    "requests": "requests with this key",
    "events": "events with this key",
    "failures": "requests with a wrong key from this address",
}


class RateLimits:
    """The limits of one process. Each of them may be ``off``; a key's own take the place of the first two.

    Raises ValueError for what is no rate.
    """

    def __init__(self, requests: str = OFF, events: str = OFF, failures: str = FAILURES) -> None:
        self._limits: dict[tuple[str, str], _Limit | None] = {}
        self._requests = self._limit("requests", requests)
        self._events = self._limit("events", events)
        self._failures = self._limit("failures", failures)

    def admit(self, who: Limited, events: int = 0) -> None:
        """Count one request of `who`, and `events` in it. Raises RateLimitedError when it is too many."""
        limit = self._requests if who.rate is None else self._limit("requests", who.rate)
        if limit is not None:
            limit.take(who.id, 1)
        if events:
            self.admit_events(who, events)

    def admit_events(self, who: Limited, events: int) -> None:
        """Count `events` of a request admitted already. Raises RateLimitedError: take none of them."""
        limit = self._events if who.event_rate is None else self._limit("events", who.event_rate)
        if limit is not None and events:
            limit.take(who.id, events)

    def may_try(self, address: str | None) -> None:
        """Raise RateLimitedError when `address` sent too many wrong keys."""
        if self._failures is not None and address is not None:
            self._failures.check(_network(address))

    def failed(self, address: str | None) -> None:
        """Count a wrong key from `address`."""
        if self._failures is not None and address is not None:
            self._failures.spend(_network(address))

    def _limit(self, kind: str, text: str) -> _Limit | None:
        known = self._limits.get((kind, text), self)
        if known is self:
            quota = quota_of(text)
            known = self._limits[kind, text] = None if quota is None else _Limit(kind, quota)
        assert known is None or isinstance(known, _Limit)  # noqa: S101  `self` only says unknown
        return known


def _network(address: str) -> str:
    """Give what one sender can hardly change: the IPv4 address, of IPv6 the /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
