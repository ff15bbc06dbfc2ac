"""A feed's window of the newest messages, over a log in memory that answers when it is told to."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from services.contracts.events import TRANSITIONS_TOPIC
from services.stage_service.api import following
from services.stage_service.feed import WINDOW_BYTES_MAX, WINDOW_ROWS_MAX, Feed, Selection
from services.stage_service.pulse import Pulse

HEADERS = '{"ce_id": "m", "ce_type": "baton.stage.transitioned.v1"}'


class Log:
    """Stands for the database: what is in the log when a query begins is what it gives."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.deleted = 0
        """How many of the first are there no more."""
        self.queries = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def execute(self, query: str, *args: Any) -> str:
        """Nobody asks for this."""
        raise AssertionError("a feed writes nothing")

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """Answer one of the feed's two queries."""
        if "max(number)" in query:
            return [{"number": len(self.sizes)}]
        self.queries += 1
        _, after, rows_max, bytes_max = args
        found: list[dict[str, Any]] = []
        size = 0
        after = max(after, self.deleted)
        for number, length in enumerate(self.sizes[after : after + rows_max], after + 1):
            if size >= bytes_max:
                break
            size += length
            found.append({
                "position": number, "topic": TRANSITIONS_TOPIC, "key": "l", "headers": HEADERS,
                "value": b'{"n":"%s"}' % (b"x" * (length - 8)),
            })  # fmt: skip
        await asyncio.sleep(0)
        await self.may_answer.wait()
        return found


async def read_on(feed: Feed, after: int, last: int) -> list[int]:
    """The positions of a reader who goes on to `last`."""
    seen: list[int] = []
    while after < last:
        found, _ = await feed.read(after)
        seen += [e.position for e in found]
        after = seen[-1] if found else after
    return seen


async def test_what_was_deleted_is_not_passed_over_in_silence() -> None:
    """Who asks for it is told; who is past it reads on."""
    log = Log()
    log.sizes, log.deleted = [10] * 5, 3
    feed = Feed(log, TRANSITIONS_TOPIC)
    with pytest.raises(LookupError, match="nothing between 1 and 4"):
        await feed.read(1)
    assert await read_on(feed, 3, 5) == [4, 5]


async def test_who_asks_during_a_read_gets_what_came_after_it_began() -> None:
    """A read that has begun may have missed what its reader was just told of."""
    log = Log()
    log.sizes = [10]
    feed = Feed(log, TRANSITIONS_TOPIC)
    assert await feed.last() == 1
    log.may_answer.clear()
    early = asyncio.create_task(feed.read(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    log.sizes.append(10)
    late = [asyncio.create_task(feed.read(1)) for _ in range(100)]
    await asyncio.sleep(0)
    log.may_answer.set()
    assert (await early)[0] == []
    for found, _ in await asyncio.gather(*late):
        assert [e.position for e in found] == [2]
    assert log.queries == 2


async def test_a_reader_who_leaves_takes_nothing_from_the_others() -> None:
    log = Log()
    feed = Feed(log, TRANSITIONS_TOPIC)
    await feed.last()
    log.may_answer.clear()
    early = asyncio.create_task(feed.read(0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    log.sizes.append(10)
    leaving, staying = (asyncio.create_task(feed.read(0)) for _ in range(2))
    await asyncio.sleep(0)
    log.may_answer.set()
    await early
    log.may_answer.clear()  # both wait for one read now
    for _ in range(3):
        await asyncio.sleep(0)
    assert log.queries == 2
    leaving.cancel()
    await asyncio.sleep(0)
    log.may_answer.set()
    assert [e.position for e in (await staying)[0]] == [1]


@pytest.mark.parametrize("seed", range(20))
async def test_every_reader_sees_every_position(seed: int) -> None:
    """From any place, at any time, whatever the window has let go of meanwhile."""
    chance = random.Random(seed)
    log = Log()
    feed = Feed(log, TRANSITIONS_TOPIC)
    if chance.random() < 0.5:
        await feed.last()
    sizes = [10, 10, 1000, 300_000] if seed % 2 else [10, 20]
    places: list[int] = [0] * 5
    for _ in range(300):
        for _ in range(chance.choice([0, 1, 3, 40])):
            log.sizes.append(chance.choice(sizes))
        reader = chance.randrange(5)
        if chance.random() < 0.05:
            places[reader] = chance.randint(0, len(log.sizes))
        found, _ = await feed.read(places[reader])
        positions = [e.position for e in found]
        assert positions == list(range(places[reader] + 1, places[reader] + 1 + len(positions)))
        assert positions or places[reader] == len(log.sizes)
        places[reader] += len(positions)
        assert len(feed._window) <= WINDOW_ROWS_MAX
        assert sum(len(e.item) for e in feed._window) <= WINDOW_BYTES_MAX
    for place in places:
        assert await read_on(feed, place, len(log.sizes)) == list(
            range(place + 1, len(log.sizes) + 1)
        )


async def test_a_page_says_whether_it_is_the_last() -> None:
    log = Log()
    log.sizes = [10] * 5
    feed = Feed(log, TRANSITIONS_TOPIC)
    page = await feed.page(0, Selection(), 3)
    assert (page.position, page.at_end) == (3, False)
    page = await feed.page(3, Selection(), 3)
    assert (page.position, page.at_end) == (5, True)
    page = await feed.page(0, Selection(facts={"stage": "sql"}), 3)
    assert (page.entries, page.position, page.at_end) == ([], 5, True)


async def test_what_one_read_brought_may_be_more_than_one_gives() -> None:
    """Items are longer than the values that the database counts: the rest must not wait for other news."""
    log = Log()
    log.sizes = [10]
    feed = Feed(log, TRANSITIONS_TOPIC)
    await feed.last()
    log.sizes += [640] * 400
    found, more = await feed.read(1)
    assert 0 < len(found) < 400
    assert more
    other = Feed(log, TRANSITIONS_TOPIC)
    other._end = other._before_window = 1
    page = await other.page(1, Selection(facts={"stage": "sql"}), 1000)
    assert (page.position, page.at_end) == (401, True)


class NoKey:
    """Stands for the gatekeeper: the key was revoked."""

    async def authenticate(self, token: str | None) -> None:
        """Know nobody."""


def with_no_key(count: int) -> following.Following:
    """Streams of a log of `count` messages; the key is looked at before each read, and is none."""
    log = Log()
    log.sizes = [1000] * count
    return following.Following(
        log, Pulse(""), NoKey(), asyncio.Event(),  # type: ignore[arg-type]
        streams_max=1, streams_per_key_max=1, stall_s=1.0, look_s=0.0,
    )  # fmt: skip


async def test_who_is_far_behind_loses_the_stream_with_the_key_too() -> None:
    streams = with_no_key(5000)
    feed = streams.feeds[TRANSITIONS_TOPIC]
    told = [piece async for piece in streams.events(feed, 0, Selection(), "key")]
    assert b"id: 1\n" in told[1]
    assert sum(map(len, told)) < 2_000_000


async def test_a_long_export_breaks_off_when_its_key_is_revoked() -> None:
    """It is not whole then, and must not look so."""
    streams = with_no_key(5000)
    body = streams.lines(streams.feeds[TRANSITIONS_TOPIC], 0, 5000, Selection(), "key")
    told: list[bytes] = []

    async def drain() -> None:
        async for piece in body:
            told.append(piece)

    with pytest.raises(following.CutOffError):
        await drain()
    assert sum(map(len, told)) < 2_000_000
