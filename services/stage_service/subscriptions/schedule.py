"""When a delivery is tried again, and when an endpoint has failed for too long. Pure.

The schedule is the one Standard Webhooks 1.0 suggests ("Deliverability and reliability"), with jitter.
Moments are aware datetimes, durations seconds; `random` is a number from 0 to below 1.
"""

from __future__ import annotations

import itertools
import math
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

RETRY_AFTER_TRIES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""The wait after the 1st, 2nd, ... 9th failed attempt; after the 10th a delivery is given up."""
JITTER = 0.2
"""A wait is up to this share shorter or longer: what failed together does not come again together."""
RETRY_AFTER_MAX_S = 3600.0
"""What an endpoint may ask for: one that says "in ten years" is asked again after an hour."""
THROTTLE_MIN_S = 2.0
THROTTLE_MAX_S = 60.0
THROTTLED = frozenset({429, 502, 504})
"""Statuses that ask a sender to slow down, as Standard Webhooks lists them."""
PROBE_MIN_S = 2.0
PROBE_MAX_S = 300.0
PROBE_SHARE = 20
"""An endpoint that is down is tried after a twentieth of the time it has been down."""
FAILING_FOR = timedelta(days=5)
"""An endpoint that took nothing for so long is stopped."""
FAILURES_MIN = 3
"""And not before so many attempts: Baton itself may have been away most of the time."""

_SECONDS = re.compile(r"[0-9]{1,400}(?:\.[0-9]{1,400})?", re.ASCII)


def jittered(seconds: float, random: float) -> float:
    """Spread `seconds` by `JITTER` to both sides."""
    return seconds * (1 - JITTER + 2 * JITTER * random)


def retry_in_s(tries: int, random: float) -> float | None:
    """Give the seconds until the next attempt after `tries` (from 1) failed; None: there is none."""
    if tries > len(RETRY_AFTER_TRIES_S):
        return None
    return jittered(RETRY_AFTER_TRIES_S[max(tries, 1) - 1], random)


def tries_within(seconds: float) -> int:
    """Give how many tries the schedule has in a delivery's first `seconds`, with the shortest jitter."""
    cumulated = itertools.accumulate(wait * (1 - JITTER) for wait in RETRY_AFTER_TRIES_S)
    return 1 + sum(moment <= seconds for moment in cumulated)


def last_retry_s(random: float) -> float:
    """Give the longest wait of the schedule: of what is not given up because nothing gets through."""
    return jittered(RETRY_AFTER_TRIES_S[-1], random)


def retry_after_s(text: str | None, now: datetime) -> float | None:
    """Read a ``Retry-After`` header (RFC 9110, 10.2.3): seconds or an HTTP date.

    Gives seconds from `now`, at least 0 and at most `RETRY_AFTER_MAX_S`; None for what is neither.
    """
    text = (text or "").strip()
    if not text:
        return None
    if _SECONDS.fullmatch(text):
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        moment = parsedate_to_datetime(text[:100])
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        wait_s = (moment - now).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(wait_s, 0.0), RETRY_AFTER_MAX_S)


def asked_s(seconds: float | None) -> float:
    """Give what an endpoint asked for, however it was read: at least 0, at most `RETRY_AFTER_MAX_S`."""
    return min(seconds, RETRY_AFTER_MAX_S) if seconds is not None and seconds > 0 else 0.0


def throttle_s(times: int, random: float) -> float:
    """Give how long an endpoint rests that asked to slow down `times` (from 1) in a row, unasked how long."""
    doubled = THROTTLE_MIN_S * 2 ** min(max(times, 1) - 1, 16)
    return jittered(min(doubled, THROTTLE_MAX_S), random)


def probe_in_s(down_s: float, random: float) -> float:
    """Give the seconds until an endpoint that has been down for `down_s` is tried again."""
    share = down_s / PROBE_SHARE if math.isfinite(down_s) else PROBE_MAX_S
    return jittered(min(max(share, PROBE_MIN_S), PROBE_MAX_S), random)


def has_failed_for_good(failing_since: datetime, now: datetime, failures: int) -> bool:
    """Tell whether an endpoint is to be stopped: only failures, for five days, `failures` seen here."""
    return now - failing_since >= FAILING_FOR and failures >= FAILURES_MIN
