"""The roster read a second time: who is there at a moment, by the text of their document alone.

Shares no code with `services.contracts.calendars` or `services.notifier.plans`: it asks the wall clock of the
person's zone, minute by minute as a person would, and knows the days and spans of `roster`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import holidays

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@cache
def _kept(region: str, year: int) -> frozenset[date]:
    country, _, part = region.partition("-")
    return frozenset(holidays.country_holidays(country, subdiv=part or None, years=year))


def _minutes(text: str) -> int:
    hour, minute = text.split(":")
    return int(hour) * 60 + int(minute)


class Reading:
    """One person's document, as somebody reads it who does the counting by hand."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.zone = ZoneInfo(document.get("time_zone", "UTC"))
        self.alerts: dict[str, Any] = document.get("alerts", {})

    def keeps(self, day: date) -> bool:
        """Tell whether `day` is a holiday that they keep."""
        region = self.document.get("holidays")
        return region is not None and day in _kept(region, day.year)

    def works(self, at: datetime) -> bool:
        """Tell whether `at` is in their working hours, away or not."""
        local = at.astimezone(self.zone)
        if self.keeps(local.date()):
            return False
        if "hours" not in self.document:
            return True
        minute = local.hour * 60 + local.minute
        spans = self.document["hours"].get(DAYS[local.weekday()], [])
        return any(_minutes(a) <= minute < _minutes(b) for a, b in (s.split("-") for s in spans))

    def away(self, at: datetime) -> dict[str, Any] | None:
        """Give the vacation that covers `at`."""
        day = at.astimezone(self.zone).date()
        for away in self.document.get("away", []):
            if date.fromisoformat(away["from"]) <= day <= date.fromisoformat(away["until"]):
                return away
        return None

    def is_quiet(self, at: datetime) -> bool:
        """Tell whether `at` is in their quiet hours."""
        local = at.astimezone(self.zone)
        minute = local.hour * 60 + local.minute
        for span in self.document.get("quiet", []):
            a, b = (_minutes(t) for t in span.split("-"))
            if (a <= minute < b) if a < b else (minute >= a or minute < b):
                return True
        return False

    def may_be_told(self, at: datetime) -> bool:
        """Tell whether an alert that is not urgent may reach them at `at`, as they wish it."""
        wish = self.alerts.get("hours", "working")
        if wish == "always":
            return True
        if self.is_quiet(at):
            return False
        return wish == "quiet-only" or (self.works(at) and self.away(at) is None)

    def deadline(self, start: datetime, seconds: float) -> datetime:
        """Give the moment by which `seconds` of their working hours have passed since `start`."""
        left = timedelta(seconds=seconds)
        for begin, end in self._open(start):
            if end - begin >= left:
                return begin + left
            left -= end - begin
        raise AssertionError(self.document["id"])

    def _open(self, start: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Give the intervals in which they work from `start` on."""
        day = start.astimezone(self.zone).date() - timedelta(days=1)
        for _ in range(400):
            for a, b in () if self.keeps(day) else self._spans(day):
                if b > start:
                    yield max(a, start), b
            day += timedelta(days=1)

    def _spans(self, day: date) -> Iterator[tuple[datetime, datetime]]:
        if "hours" not in self.document:
            following = day + timedelta(days=1)
            yield self._moment(day, 0), self._moment(following, 0)
            return
        for span in self.document["hours"].get(DAYS[day.weekday()], []):
            a, b = span.split("-")
            yield self._moment(day, _minutes(a)), self._moment(day, _minutes(b))

    def _moment(self, day: date, minute: int) -> datetime:
        wall = datetime.combine(day, time(minute // 60, minute % 60), self.zone)
        return wall.astimezone(UTC)


class Book:
    """Everybody's documents over time: who was in the roster when, as it was then."""

    def __init__(self) -> None:
        self._versions: dict[str, list[tuple[datetime, Reading | None]]] = {}

    def put(self, at: datetime, document: dict[str, Any]) -> None:
        """Note a new or changed person from `at` on."""
        self._versions.setdefault(document["id"], []).append((at, Reading(document)))

    def leave(self, at: datetime, id: str) -> None:
        """Note that somebody is gone from `at` on."""
        self._versions[id].append((at, None))

    def person(self, id: str, at: datetime) -> Reading | None:
        """Give the person `id` as they were at `at`; None: not in the roster."""
        found = None
        for since, reading in self._versions.get(id, ()):
            if since <= at:
                found = reading
        return found

    def everybody(self) -> list[Reading]:
        """Give whoever was in the roster at any time."""
        return [r for versions in self._versions.values() for _, r in versions if r is not None]

    def of_role(self, role: str, at: datetime) -> list[Reading]:
        """Give everybody who had `role` at `at`."""
        people = (self.person(id, at) for id in self._versions)
        return [p for p in people if p is not None and role in p.document["roles"]]

    def taker(self, person: Reading, at: datetime) -> Reading | None:
        """Give who takes the turn of `person` at `at`: they, who stands in, or nobody."""
        seen = {person.document["id"]}
        while (away := person.away(at)) is not None:
            following = self.person(away.get("stand_in", ""), at)
            if following is None or following.document["id"] in seen:
                return None
            person = following
            seen.add(person.document["id"])
        return person
