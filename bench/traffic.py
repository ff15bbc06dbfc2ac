"""Lead events for batches and for the fold: made up, but in the shares of a real funnel."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lead.created", {
        "name": "Ada Albers", "company": "Northwind Logistics", "title": "Head of Operations",
        "employees": 250, "country": "DE", "origin": "organic_search",
    }),
    ("page.viewed", {"url": "https://example.com/pricing"}),
    ("demo.requested", {"form": "demo"}),
    ("email.clicked", {"campaign": "spring"}),
    ("meeting.booked", {"with_role": "ae"}),
)  # fmt: skip
"""The story of `post.lua`: two of its five events move the lead."""

_TITLES = ("Head of Operations", "VP Sales", "IT Manager", "Buyer", "Chief Financial Officer",
           "Team Lead", "Director of Logistics", "Engineer")  # fmt: skip
_TOUCHES = ("page.viewed", "page.viewed", "page.viewed", "page.viewed", "email.clicked",
            "content.downloaded", "webinar.attended", "form.submitted")  # fmt: skip
_WAY = ("demo.requested", "meeting.booked", "proposal.sent", "contract.sent", "deal.won")


def batches(
    prefix: str, number: int, size: int = 500, stories: int = 5000
) -> list[list[dict[str, Any]]]:
    """Make `number` batches of `size` events: `stories` leads side by side, step after step.

    A step comes `stories` events after the one before it, so that batches in flight together never
    hold two events of one lead.
    """
    start = datetime.now(UTC) - timedelta(hours=1)
    made: list[list[dict[str, Any]]] = []
    sent = 0
    for _ in range(number):
        batch: list[dict[str, Any]] = []
        for _ in range(size):
            type_, about = STEPS[sent // stories % len(STEPS)]
            lead = sent // (stories * len(STEPS)) * stories + sent % stories
            at = start + timedelta(milliseconds=sent)
            batch.append({
                "specversion": "1.0", "id": f"{prefix}-{sent}", "source": "/bench", "type": type_,
                "time": at.isoformat(), "data": {"email": f"{prefix}-{lead}@bench.example", **about},
            })  # fmt: skip
            sent += 1
        made.append(batch)
    return made


def encoded(batch: list[dict[str, Any]] | dict[str, Any]) -> bytes:
    """Write a batch, or one event, as its request body."""
    return msgspec.json.encode(batch)


def story(
    chance: random.Random, number: int, now: datetime
) -> Iterator[tuple[str, datetime, dict[str, Any]]]:
    """Tell one lead of the weeks before `now`: (type, time, data) in the order of time.

    Ten events and more: page views and clicks, updates that bring attributes, and the way through the
    stages as far as this lead comes.
    """
    email = f"lead-{number:07d}@fill.example"
    at = now - timedelta(days=chance.uniform(20, 60))

    def later(hours: float) -> datetime:
        nonlocal at
        at += timedelta(hours=chance.uniform(0.1, 1.9) * hours)
        return at

    yield "lead.created", at, {
        "email": email, "name": f"Person {number}", "company": f"Company {number % 4000}",
        "title": chance.choice(_TITLES), "origin": "organic_search",
        "country": chance.choice(("DE", "UK", "US", "NL")),
    }  # fmt: skip
    reach = chance.choices(range(6), weights=(40, 22, 18, 10, 6, 4))[0]
    for step in range(6):
        for _ in range(chance.randrange(1, 4)):
            yield chance.choice(_TOUCHES), later(10), {
                "email": email, "url": f"https://example.com/{chance.randrange(50)}",
                "anonymous_id": f"visitor-{number}",
            }  # fmt: skip
        if step == 1:
            yield "lead.updated", later(2), {
                "email": email, "phone": f"+49 30 {number}", "seniority": "director",
                "employees": chance.choice((8, 25, 60, 140, 250, 900, 4000)),
            }  # fmt: skip
        if step < reach:
            amount = {"amount": chance.randrange(4, 90) * 1000} if step > 1 else {}
            yield _WAY[step], later(20), {"email": email, **amount}
    if reach in (1, 2) and chance.random() < 0.3:
        yield "lead.recycled", later(30), {"email": email, "reason": "not the right moment"}
