"""When somebody works: opening hours, holidays, days away, quiet hours; and time counted in them. Pure.

Everything here takes a `Hours` (a person of the roster, or a company's `Calendar`). A shift belongs to the
day it begins on, by the wall clock of the calendar's time zone: one that runs over midnight into a holiday
is worked, one that would begin on a holiday is not. Where the clocks jump, hours are what they really
last: a shift over a skipped hour is an hour shorter. Being away is apart from hours: it stops no clock, it
only sends work to somebody else.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import accumulate
from typing import Protocol
from zoneinfo import ZoneInfo

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
LOOK_AHEAD_YEARS = 30
"""How far ahead an open moment is looked for; further is never."""

_SPAN = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")

Span = tuple[int, int]
"""Minutes of the day an interval begins on: from, until (over 1440: it ends on the next day)."""
Week = tuple[tuple[Span, ...], ...]
"""The spans of each weekday, Monday first."""

ALL_DAY: tuple[Span, ...] = ((0, DAY_MINUTES),)
ALWAYS: Week = (ALL_DAY,) * 7


@dataclass(frozen=True)
class Away:
    """Days or hours somebody does not work: from `start` until before `end`; `stand_in` takes over."""

    start: datetime
    end: datetime
    stand_in: str | None = None


class Hours(Protocol):
    """What the functions here ask of a person or a company."""

    @property
    def hours(self) -> Week | None:
        """Give the working week; None: always open (but for holidays)."""
        ...

    @property
    def time_zone(self) -> str:
        """Give the IANA time zone that the hours are read in."""
        ...

    @property
    def holidays(self) -> str | None:
        """Give the country, or country and part, whose public holidays are kept: DE, DE-BE."""
        ...

    @property
    def away(self) -> tuple[Away, ...]:
        """Give when they are away."""
        ...

    @property
    def quiet(self) -> tuple[Span, ...]:
        """Give the spans of every day in which nothing should ring."""
        ...


@dataclass(frozen=True)
class Calendar:
    """Hours that are no person's: a company's or a team's."""

    hours: Week | None = None
    time_zone: str = "UTC"
    holidays: str | None = None
    away: tuple[Away, ...] = ()
    quiet: tuple[Span, ...] = ()


def span(text: str) -> Span:
    """Read ``22:00-06:00``: an end before the start is on the next day, ``24:00`` is midnight.

    Raises ValueError, with what to write, when it is no span or an empty one.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} are not hours: write them as '09:00-17:30'")
    a, b, c, d = (int(g) for g in found.groups())
    start, end = a * 60 + b, c * 60 + d
    if start >= DAY_MINUTES or end > DAY_MINUTES or start == end:
        raise ValueError(f"{text!r} are not hours: write a start before 24:00 and another end")
    return (start, end) if start < end else (start, end + DAY_MINUTES)


def week(days: Iterable[tuple[str, Sequence[str]]]) -> Week:
    """Read the spans of each weekday (``mon`` to ``sun``; a day left out is closed).

    Raises ValueError for an unknown day, spans that overlap (also with the next day's), and a week
    without any.
    """
    spans: list[tuple[Span, ...]] = [()] * 7
    for name, texts in days:
        if name not in WEEKDAYS:
            raise ValueError(f"unknown day {name!r}: write {', '.join(WEEKDAYS)}")
        spans[WEEKDAYS.index(name)] = tuple(sorted(span(text) for text in texts))
    flat = [
        (i * DAY_MINUTES + a, i * DAY_MINUTES + b) for i, day in enumerate(spans) for a, b in day
    ]
    if not flat:
        raise ValueError("nobody is ever there: leave 'hours' out to be always open")
    first, week_minutes = flat[0], 7 * DAY_MINUTES
    following = [*flat[1:], (first[0] + week_minutes, first[1] + week_minutes)]
    for (_, end), (start, _) in zip(flat, following, strict=True):
        if start < end:
            day = WEEKDAYS[start // DAY_MINUTES % 7]
            raise ValueError(f"two spans of hours overlap on {day}: join them to one")
    return tuple(spans)


def is_open(who: Hours, at: datetime) -> bool:
    """Tell whether `at` is in working hours. Somebody who is away has hours all the same: `away_at`."""
    if _is_always(who):
        return True
    opening = _year(who, at.astimezone(UTC).year)
    index = bisect_right(opening.starts, at.timestamp()) - 1
    return index >= 0 and at.timestamp() < opening.ends[index]


def next_open(who: Hours, at: datetime) -> datetime | None:
    """Give the first open moment at or after `at`, in UTC.

    None when nobody is there within `LOOK_AHEAD_YEARS`: the caller says what then.
    """
    at = at.astimezone(UTC)
    if _is_always(who):
        return at
    moment = at.timestamp()
    for year in _years_from(at.year):
        opening = _year(who, year)
        index = bisect_right(opening.ends, moment)
        if index < len(opening.starts):
            return at if opening.starts[index] <= moment else _moment(opening.starts[index])
    return None


def business_seconds(who: Hours, start: datetime, end: datetime) -> float:
    """Give the seconds of working hours from `start` to `end`; 0 when `end` is not after it."""
    if end <= start:
        return 0.0
    if _is_always(who):
        return (end - start).total_seconds()
    return _elapsed(who, end) - _elapsed(who, start) + _whole_years(who, start, end)


def add_business(who: Hours, start: datetime, seconds: float) -> datetime | None:
    """Give the earliest moment by which `seconds` of working hours have passed since `start`, in UTC.

    With 0 seconds that is `start`. None when it does not come within `LOOK_AHEAD_YEARS`.
    """
    start = start.astimezone(UTC)
    if seconds <= 0:
        return start
    if _is_always(who):
        return start + timedelta(seconds=seconds)
    wanted = seconds + _elapsed(who, start)
    for year in _years_from(start.year):
        opening = _year(who, year)
        if wanted <= opening.total:
            index = bisect_left(opening.before, wanted) - 1
            return _moment(opening.starts[index] + wanted - opening.before[index])
        wanted -= opening.total
    return None


def away_at(who: Hours, at: datetime) -> Away | None:
    """Give the absence that covers `at`, the longest when there are several."""
    covering = [a for a in who.away if a.start <= at < a.end]
    return max(covering, key=lambda a: a.end) if covering else None


def is_quiet(who: Hours, at: datetime) -> bool:
    """Tell whether `at` is in their quiet hours, by their wall clock, every day."""
    local = at.astimezone(ZoneInfo(who.time_zone))
    minute = local.hour * 60 + local.minute
    return any(a <= minute < b or minute < b - DAY_MINUTES for a, b in who.quiet)


def after_quiet(who: Hours, at: datetime) -> datetime | None:
    """Give the first moment at or after `at` outside the quiet hours, in UTC; None: it is always quiet."""
    at = at.astimezone(UTC)
    if not is_quiet(who, at):
        return at
    zone = ZoneInfo(who.time_zone)
    day = at.astimezone(zone).date()
    ends = sorted(
        _instant(day + timedelta(days=d), b % DAY_MINUTES, zone)
        for d in (0, 1, 2)
        for _, b in who.quiet
    )
    return next(
        (m for e in ends if e > at.timestamp() and not is_quiet(who, m := _moment(e))), None
    )


def absence(start: date, until: date, time_zone: str, stand_in: str | None = None) -> Away:
    """Make the absence from the day (or wall-clock time) `start` through `until`, the last day included.

    Raises ValueError when it ends before it begins.
    """
    zone = ZoneInfo(time_zone)
    begins = _wall(start, zone)
    ends = _wall(until if isinstance(until, datetime) else until + timedelta(days=1), zone)
    if ends <= begins:
        raise ValueError("it ends before it begins: 'until' is the last day away")
    return Away(begins, ends, stand_in)


def check_holidays(region: str) -> None:
    """Raise ValueError, with what to write, unless the public holidays of `region` are known."""
    import holidays

    country, _, part = region.partition("-")
    known = holidays.list_supported_countries()
    if country not in known:
        raise ValueError(f"unknown country {country!r}: write its ISO 3166-1 code, such as DE")
    if "-" in region and part not in known[country]:
        parts = ", ".join(known[country][:20]) or "none"
        raise ValueError(f"{country} has no part {part!r} with holidays of its own: {parts}")


def _wall(day: date, zone: ZoneInfo) -> datetime:
    if isinstance(day, datetime):
        return (day if day.tzinfo else day.replace(tzinfo=zone)).astimezone(UTC)
    return _moment(_instant(day, 0, zone))


def _is_always(who: Hours) -> bool:
    return who.hours is None and who.holidays is None


def _years_from(year: int) -> range:
    return range(year, min(year + LOOK_AHEAD_YEARS, 9998) + 1)


def _moment(timestamp: float) -> datetime:
    # Not fromtimestamp: it rounds half to even where adding microseconds does not.
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=timestamp)


@dataclass(frozen=True)
class _Opening:
    """The open intervals of one UTC year: POSIX seconds, apart and in order, and the seconds before each."""

    starts: list[float]
    ends: list[float]
    before: list[float]
    total: float


def _elapsed(who: Hours, at: datetime) -> float:
    """Give the open seconds of the UTC year of `at` that lie before it."""
    opening = _year(who, at.astimezone(UTC).year)
    moment = at.timestamp()
    index = bisect_right(opening.starts, moment) - 1
    if index < 0:
        return 0.0
    return opening.before[index] + min(moment, opening.ends[index]) - opening.starts[index]


def _whole_years(who: Hours, start: datetime, end: datetime) -> float:
    years = range(start.astimezone(UTC).year, end.astimezone(UTC).year)
    return sum(_year(who, year).total for year in years)


def _year(who: Hours, year: int) -> _Opening:
    return _opening(who.hours or ALWAYS, who.time_zone, who.holidays, year)


@lru_cache(maxsize=4096)
def _opening(hours: Week, time_zone: str, region: str | None, year: int) -> _Opening:
    """Lay out one year once; a roster has few calendars and every question is then a look-up."""
    zone = ZoneInfo(time_zone)
    closed = _holidays(region, year - 1) | _holidays(region, year) | _holidays(region, year + 1)
    first, last = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
    low, high = first.timestamp(), last.timestamp()
    starts: list[float] = []
    ends: list[float] = []
    day = first.date() - timedelta(days=3)
    while day <= last.date() + timedelta(days=1):
        for a, b in () if day in closed else _lasting(hours[day.weekday()], day, zone):
            start, end = max(low, a), min(high, b)
            if ends and start <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            elif start < end:
                starts.append(start)
                ends.append(end)
        day += timedelta(days=1)
    sums = list(accumulate((e - s for s, e in zip(starts, ends, strict=True)), initial=0.0))
    return _Opening(starts, ends, sums[:-1], sums[-1])


def _lasting(spans: tuple[Span, ...], day: date, zone: ZoneInfo) -> list[tuple[float, float]]:
    """Give the spans of `day` as POSIX seconds."""
    if not spans:
        return []
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    if midnight.utcoffset() == (midnight + timedelta(days=2)).utcoffset():  # the clocks do not jump
        base = midnight.timestamp()
        return [(base + 60 * a, base + 60 * b) for a, b in spans]
    return [(_instant(day, a, zone), _instant(day, b, zone)) for a, b in spans]


@lru_cache(maxsize=1024)
def _holidays(region: str | None, year: int) -> frozenset[date]:
    """Give the public holidays of `region`, and the days they are observed on instead of a weekend."""
    if region is None:
        return frozenset()
    import holidays  # a third of a second to load: only who keeps holidays waits for it

    country, _, part = region.partition("-")
    return frozenset(holidays.country_holidays(country, subdiv=part or None, years=year))


def _instant(day: date, minute: int, zone: ZoneInfo) -> float:
    """Give the POSIX time at which the wall clock of `zone` first reaches `minute` of `day`.

    A time the clocks skip is the moment they jump.
    """
    naive = datetime(day.year, day.month, day.day) + timedelta(minutes=minute)  # noqa: DTZ001
    early = naive.replace(tzinfo=zone)
    late = naive.replace(tzinfo=zone, fold=1)
    before, after = early.timestamp(), late.timestamp()
    if before <= after:  # an ordinary time, or one that comes twice: the first
        return before
    # Skipped: the jump lies between the two readings; `early` reads with the offset before it.
    offset = early.utcoffset()
    low, high = after, before
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return high
