"""100,000 events from ten tools, 30 % of them repeats and 20 % out of order, sent twice: as once in order."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from services.baton.embedded import EmbeddedPostgres
from services.contracts.events import MAIN, LeadEvent, identities_of
from services.contracts.problems import Defect
from services.stage_service.lane import Lane
from tests.integration.stage import fresh_database
from tests.integration.test_merging import STATE
from tests.integration.wired import clean, retried, wired

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

EVENTS = 100_000
REPEATED = 0.3
OUT_OF_ORDER = 0.2
SOURCES = tuple(f"tool{n}" for n in range(10))
PEOPLE = 2_500
START = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = ("page.viewed", "page.viewed", "email.clicked", "content.downloaded", "webinar.attended",
         "form.submitted", "lead.updated", "demo.requested", "meeting.booked", "proposal.sent",
         "deal.won", "deal.lost", "lead.recycled")  # fmt: skip


def names(person: int, source: int, chance: random.Random) -> dict[str, Any]:
    """How a tool names a person: by its own id, a browser, an address, or two of these.

    Each tool has its own ids, and tells some day that its id has this address; two tools tell a second
    one. A browser is seen with the address it belongs to.
    """
    own = {"external_ids": {SOURCES[source]: f"{source}-{person}"}}
    email = {"email": f"p{person}@company{person % 400}.example"}
    match chance.randrange(10):
        case 0 | 1 | 2 | 3:
            return own
        case 4 | 5:
            return email
        case 6:
            return {"anonymous_id": f"browser-{person}-{source % 3}"}
        case 7:
            return {"anonymous_id": f"browser-{person}-{source % 3}"} | email
        case 8 if source < 2:
            return own | {"email": f"p{person}@private{person % 7}.example"}
        case 9 if source == 2:
            return {"external_ids": {"tool2": [f"2-{person}", f"old-{person}"]}}
        case _:
            return own | email


def generated(seed: int) -> list[LeadEvent]:
    """The events without repeats, in the order of time."""
    chance = random.Random(seed)
    events: list[LeadEvent] = []
    for n in range(int(EVENTS * (1 - REPEATED))):
        source, person = chance.randrange(len(SOURCES)), chance.randrange(PEOPLE)
        data = names(person, source, chance)
        if chance.random() < 0.2:
            data["employees"] = chance.choice((5, 50, 300, 4000))
        if chance.random() < 0.1:
            data |= {"reason": "no budget", "company": f"Company {person % 400}"}
        identities = identities_of(data)
        assert not isinstance(identities, Defect)
        time = START + timedelta(seconds=60 * n + chance.randrange(60))
        events.append(LeadEvent(
            f"e{n}", f"/{SOURCES[source]}", chance.choice(TYPES), time, time, None, identities,
            "D-1" if chance.random() < 0.05 else MAIN, data, {},
        ))  # fmt: skip
    return sorted(events, key=lambda e: e.place)


def delivered(events: list[LeadEvent], seed: int) -> list[LeadEvent]:
    """The same as it arrives: some late by up to 5,000 others, some again."""
    chance = random.Random(seed)
    repeats = chance.choices(events, k=EVENTS - len(events))
    arrivals = [(n + (chance.uniform(0, 5000) if chance.random() < OUT_OF_ORDER else 0), e)
                for n, e in enumerate(events)]  # fmt: skip
    place = {(e.source, e.id): n for n, e in arrivals}
    arrivals += [(place[e.source, e.id] + chance.uniform(0, 5000), e) for e in repeats]
    return [e for _, e in sorted(arrivals, key=lambda pair: pair[0])]


async def send(lane: Lane, events: list[LeadEvent], size: int) -> list[str]:
    """Send in requests of `size`, eight at a time; give each event's status."""
    requests = [events[n : n + size] for n in range(0, len(events), size)]
    statuses: list[str] = []
    for n in range(0, len(requests), 8):
        answers = await asyncio.gather(*(retried(lane, some) for some in requests[n : n + 8]))
        statuses += [o.status for outcomes in answers for o in outcomes]
    return statuses


async def state(url: str) -> list[Any]:
    """Who is who, and all that is known of them."""
    async with wired(url) as it:
        return [tuple(r.values()) for r in await it.pool.fetch(STATE)]


async def test_sent_twice_in_any_order_is_as_sent_once(postgres: EmbeddedPostgres) -> None:
    """I2, I4, I7, over a hundred thousand events that merge thousands of leads."""
    events = generated(1)
    arriving = delivered(events, 2)
    assert len(arriving) == EVENTS
    late = sum(a.place > b.place for a, b in itertools.pairwise(arriving))
    assert late > EVENTS * OUT_OF_ORDER / 2
    with fresh_database(postgres) as one, fresh_database(postgres) as other:
        async with wired(one) as it:
            statuses = await send(it.lane, arriving, 125)
            assert statuses.count("applied") == len(events)
            again = await send(it.lane, arriving[::-1], 500)
            assert set(again) == {"duplicate"}
            merges = await it.pool.fetchval("SELECT count(*) FROM stage.merges")
            assert merges > PEOPLE
        await clean(one)
        async with wired(other) as it:
            for n in range(0, len(events), 500):
                await retried(it.lane, events[n : n + 500])
        await clean(other)
        found, expected = await state(one), await state(other)
        assert len(found) == len(expected)
        differing = [(a, b) for a, b in zip(found, expected, strict=True) if a != b]
        assert differing == [], msgspec.json.encode(differing[:1]).decode()
