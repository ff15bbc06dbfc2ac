"""A quarter's leads, made from a seed: what each does when, and how people answer what is handed to them."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from tests.system.quarter.roster import BEGIN, DAYS, ZONES

SLOT = timedelta(minutes=30)
"""Everything in the made-up world happens on the half hour: so a step of the simulation has many events."""
REGIONS = ("amer", "emea", "apac", "anz")
NEVER = 0.06
REJECTION = "Does not fit what we sell"

What = Literal["accept", "reject", "nothing"]


@dataclass(frozen=True, order=True)
class Told:
    """A lead event as a source tells it: it arrives at `arrives`, and happened at `time`."""

    arrives: datetime
    number: int
    time: datetime = field(compare=False)
    type: str = field(compare=False)
    email: str = field(compare=False)
    values: dict[str, Any] = field(compare=False)

    @property
    def id(self) -> str:
        """Give the event's id."""
        return f"q{self.number}"


def slot(at: datetime) -> datetime:
    """Give the first half hour at or after `at`."""
    over = (at - datetime(2028, 1, 1, tzinfo=UTC)) % SLOT
    return at if not over else at + (SLOT - over)


def stories(seed: int, leads: int) -> Iterator[Told]:
    """Give the events of `leads` leads in the order in which they arrive."""
    chance = random.Random(seed)
    begin = datetime(BEGIN.year, BEGIN.month, BEGIN.day, tzinfo=UTC)
    waiting: list[Told] = []
    number = 0
    starts = sorted(_arrival(chance, begin) for _ in range(leads))
    for index, start in enumerate(starts):
        while waiting and waiting[0].arrives < start:
            yield heapq.heappop(waiting)
        for told in _story(chance, index, start):
            heapq.heappush(waiting, Told(told.arrives, number, told.time, told.type, told.email,
                                         told.values))  # fmt: skip
            number += 1
    while waiting:
        yield heapq.heappop(waiting)


def _arrival(chance: random.Random, begin: datetime) -> datetime:
    """Draw when a lead first shows up: mostly on workdays, at any hour, in the first 85 days."""
    while True:
        at = begin + timedelta(minutes=30 * chance.randrange((DAYS - 5) * 48))
        if at.weekday() < 5 or chance.random() < 0.2:
            return at


def _story(chance: random.Random, index: int, start: datetime) -> Iterator[Told]:
    region = chance.randrange(len(ZONES))
    email = f"lead{index}@c{index // 3}.example"
    about = {
        "name": f"Lead {index}", "company": f"Company {index // 3}", "region": REGIONS[region],
        "employees": chance.choice([12, 60, 300, 2000]),
    }  # fmt: skip
    at = start

    def told(type: str, **values: Any) -> Told:
        late = chance.random() < 0.005
        arrives = slot(at + timedelta(hours=chance.randrange(1, 30))) if late else at
        return Told(arrives, 0, at, type, email, values)

    yield told("lead.created", **about)
    for _ in range(chance.choice([0, 0, 1, 2])):
        at = _later(chance, at, 0, 2)
        yield told("page.viewed", url="/pricing")
    if chance.random() < 0.45:
        return
    at = _later(chance, at, 0, 1)
    yield told("demo.requested")
    draw = chance.random()
    if draw < 0.35:
        at = _later(chance, at, 1, 5)
        yield told("meeting.booked", with_role="ae")
        for type, values in _deal(chance):
            at = _later(chance, at, 2, 9)
            yield told(type, **values)
    elif draw < 0.6:
        at = _later(chance, at, 1, 6)
        yield told("lead.disqualified", reason="no budget")
    elif draw < 0.8:
        at = _later(chance, at, 2, 8)
        yield told("lead.recycled")


def _deal(chance: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    if chance.random() < 0.8:
        yield "meeting.held", {}
    draw = chance.random()
    if draw < 0.2:
        yield "deal.lost", {"reason": "price"}
    elif draw < 0.75:
        yield "proposal.sent", {"amount": chance.randrange(5, 90) * 1000}
        if chance.random() < 0.6:
            yield "contract.sent", {}
            yield ("deal.won", {}) if chance.random() < 0.75 else ("deal.lost", {"reason": "time"})


def _later(chance: random.Random, at: datetime, days_min: int, days_max: int) -> datetime:
    """Draw a later half hour in somebody's day."""
    hours = chance.randrange(days_min * 24, days_max * 24 + 1)
    return slot(at + timedelta(hours=hours, minutes=30))


@dataclass(frozen=True)
class Answer:
    """What somebody will do about a handoff: `what`, after so many working seconds."""

    what: What
    after_s: float


def answer(seed: int, lead: str, role: str, times: int) -> Answer:
    """Draw how the `times`-th offer of a lead to a role is answered; the same for the same arguments.

    Mostly accepted in time, sometimes late, sometimes rejected, sometimes not at all.
    """
    chance = random.Random(f"{seed} {lead} {role} {times}")
    draw = chance.random()
    if draw < 0.7:
        return Answer("accept", 1800.0 * chance.randrange(0, 7))
    if draw < 0.84:
        return Answer("accept", 1800.0 * chance.randrange(9, 20))
    if draw < 1 - NEVER:
        return Answer("reject", 1800.0 * chance.randrange(1, 6))
    return Answer("nothing", 0.0)
