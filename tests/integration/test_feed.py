"""The feeds over HTTP: pages, filters, long poll, NDJSON, SSE and their limits; nobody loses a place."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from services.baton.embedded import EmbeddedPostgres
from services.contracts import access, postgres_log
from services.contracts.events import (
    HANDOFFS_TOPIC,
    LEAD_SNAPSHOT,
    SUBSCRIPTION_STOPPED,
    TRANSITIONS_TOPIC,
    Message,
    message_headers,
)
from services.contracts.schemas import STRUCTS
from services.stage_service.feed import READ_ROWS_MAX, SCAN_MAX, TYPES, Feed, Selection
from tests.fakes.clock import BEGAN
from tests.integration.stage import Stage, fresh_database, serving_stage

MOVED = "baton.stage.transitioned.v1"
OFFERED = "baton.handoff.offered.v1"
ADA, BOB = str(uuid.uuid4()), str(uuid.uuid4())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(postgres: EmbeddedPostgres) -> AsyncIterator[Stage]:
    """One stage service behind a socket for the module."""
    with fresh_database(postgres) as url:
        async with serving_stage(url, streams_per_key_max=6, streams_max=9, stream_stall_s=1) as it:
            yield it


pytestmark = pytest.mark.asyncio(loop_scope="module")


def moved(lead: str = ADA, **more: Any) -> Message:
    """A transition as it is published, with what filters look at."""
    value = {
        "transition_id": str(uuid.uuid4()), "sequence": 1, "lead": {"id": lead},
        "journey": {"id": lead, "playbook": "sales", "key": "main"}, "from": "lead", "to": "mql",
        "responsible": {"role": "lead_agent", "owner": {"id": "jonas", "name": "Jonas"}, "why": None},
        "stage": {"key": "mql"},
    }  # fmt: skip
    return published(MOVED, TRANSITIONS_TOPIC, lead, value | more)


def published(type: str, topic: str, lead: str, value: dict[str, Any]) -> Message:
    """A message for the outbox."""
    headers = message_headers(str(uuid.uuid4()), type, BEGAN)
    return Message(topic, lead, headers, msgspec.json.encode(value))


async def end_of(stage: Stage, topic: str = TRANSITIONS_TOPIC) -> int:
    """The position of the newest message."""
    return await postgres_log.last_number(stage.connection, topic)


async def publish(stage: Stage, *messages: Message) -> int:
    """Publish `messages` and wait until they have positions; gives the one before the first."""
    before = {t: await end_of(stage, t) for t in TYPES}
    await postgres_log.write(stage.connection, messages)
    async with asyncio.timeout(10):
        for topic, last in before.items():
            count = sum(m.topic == topic for m in messages)
            while await end_of(stage, topic) < last + count:
                await asyncio.sleep(0.01)
    return before[messages[0].topic]


async def page(stage: Stage, path: str = "/v1/transitions", /, **asked: Any) -> dict[str, Any]:
    """One page."""
    asked = {name.rstrip("_"): value for name, value in asked.items()}
    answer = await stage.client.get(path, params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def positions(items: list[dict[str, Any]]) -> list[int]:
    """Where the items stand."""
    return [item["position"] for item in items]


async def sse(lines: AsyncIterator[str], count: int) -> list[dict[str, str]]:
    """Read `count` blocks that have an id."""
    found: list[dict[str, str]] = []
    block: dict[str, str] = {}
    async with asyncio.timeout(20):
        async for line in lines:
            name, _, value = line.partition(": ")
            if line and not line.startswith(":"):
                block[name] = value
            elif not line:
                if "id" in block:
                    found.append(block)
                block = {}
                if len(found) == count:
                    break
    return found


@contextlib.asynccontextmanager
async def stream(
    stage: Stage, path: str = "/v1/transitions/stream", **headers: str
) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of a stream that began."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with stage.client.stream("GET", path, headers=sent) as answer:
        assert answer.status_code == 200, await answer.aread()
        lines = answer.aiter_lines()
        assert await anext(lines) == ": connected"
        yield lines


async def test_each_feed_has_its_types(stage: Stage) -> None:
    """A type that is published and stands in no feed is noticed here."""
    others = {LEAD_SNAPSHOT, SUBSCRIPTION_STOPPED}  # on topics of their own, which are no feed
    assert set(STRUCTS) - others == {type for types in TYPES.values() for type in types}


async def test_items_are_what_was_published(stage: Stage) -> None:
    message = moved(explanation="ä ☃ \u2028")
    after = await publish(stage, message)
    [item] = (await page(stage, after=after))["items"]
    assert item == {
        "position": after + 1, "type": MOVED, "message_id": message.id,
        **msgspec.json.decode(message.value),
    }  # fmt: skip


async def test_handoffs_have_a_feed_of_their_own(stage: Stage) -> None:
    """Positions count in each feed by themselves."""
    told = published(OFFERED, HANDOFFS_TOPIC, ADA, {"handoff_id": "h", "stage": "mql", "role": "ae",
        "owner": {"id": "elena"}, "journey": {"playbook": "sales", "key": "main"}})  # fmt: skip
    owner = published("baton.owner.changed.v1", HANDOFFS_TOPIC, BOB, {"change_id": "c",
        "stage": {"key": "sql"}, "role": "ae", "owner": None,
        "journey": {"playbook": "sales", "key": "main"}})  # fmt: skip
    after = await publish(stage, told, owner)
    path = "/v1/handoffs/feed"
    found = await page(stage, path, after=after)
    assert positions(found["items"]) == [after + 1, after + 2]
    for asked in ({"stage": "mql"}, {"owner": "elena"}, {"type": "baton.handoff.*"}):
        assert positions((await page(stage, path, after=after, **asked))["items"]) == [after + 1]
    assert positions((await page(stage, path, after=after, stage="sql"))["items"]) == [after + 2]
    async with stream(stage, f"{path}/stream?after={after}") as lines:
        assert [b["event"] for b in await sse(lines, 2)] == [OFFERED, "baton.owner.changed.v1"]
    answer = await stage.client.get(f"{path}/export", params={"after": after})
    assert len(answer.text.splitlines()) == 2


FILTERS = [
    ({"type": MOVED}, "abcde"),
    ({"type": ["baton.lead.merged.v1", "baton.transition.*"]}, "f"),
    ({"type": "baton.*"}, "abcdef"),
    ({"playbook": "expansion"}, "b"),
    ({"key": "deal-7"}, "c"),
    ({"to": "sql"}, "d"),
    ({"stage": "sql"}, "d"),
    ({"from_": "mql"}, "d"),
    ({"lead_id": BOB}, "ef"),
    ({"lead_id": BOB.upper()}, "ef"),
    ({"owner": "maya"}, "c"),
    ({"role": "ae"}, "d"),
    ({"role": "ae", "owner": "jonas"}, "d"),
    ({"role": "ae", "owner": "maya"}, ""),
]


@pytest.mark.parametrize(("asked", "wanted"), FILTERS)
async def test_filters_leave_out_and_the_cursor_goes_on(
    stage: Stage, asked: dict[str, Any], wanted: str
) -> None:
    """What does not match is passed over once: the cursor stands behind it."""
    journey = {"id": "j", "playbook": "sales", "key": "main"}
    after = await publish(
        stage, moved(), moved(journey={**journey, "playbook": "expansion"}),
        moved(journey={**journey, "key": "deal-7"},
              responsible={"role": "lead_agent", "owner": {"id": "maya"}}),
        moved(to="sql", **{"from": "mql"}, stage={"key": "sql"},
              responsible={"role": "ae", "owner": {"id": "jonas"}}),
        moved(BOB, responsible={"role": "csm", "owner": None}),
        published("baton.lead.merged.v1", TRANSITIONS_TOPIC, BOB, {"merge_id": "m"}),
    )  # fmt: skip
    found = await page(stage, after=after, **asked)
    assert "".join("abcdef"[p - after - 1] for p in positions(found["items"])) == wanted
    assert found["next_cursor"] == str(after + 6)
    assert await page(stage, after=after + 6, **asked) == {"items": [], "next_cursor": None}


async def test_a_page_that_found_nothing_says_how_far_it_looked(stage: Stage) -> None:
    """A filter that matches little is not looked for in one request without end."""
    rare = moved(to="rare")
    after = await publish(stage, *[moved() for _ in range(SCAN_MAX + 700)], rare)
    first = await page(stage, after=after, to="rare", wait=0)
    assert first["items"] == []
    assert after + SCAN_MAX <= int(first["next_cursor"]) < after + SCAN_MAX + READ_ROWS_MAX
    second = await page(stage, after=first["next_cursor"], to="rare")
    assert positions(second["items"]) == [after + SCAN_MAX + 701]
    # With a wait the page goes on looking instead.
    waited = await page(stage, after=after, to="rare", wait=30)
    assert positions(waited["items"]) == [after + SCAN_MAX + 701]


async def test_pages_end_at_their_limit(stage: Stage) -> None:
    after = await publish(stage, *[moved() for _ in range(5)])
    first = await page(stage, after=after, limit=2)
    assert (positions(first["items"]), first["next_cursor"]) == (
        [after + 1, after + 2], str(after + 2),
    )  # fmt: skip
    rest = await page(stage, after=after + 2, through=after + 4)
    assert (positions(rest["items"]), rest["next_cursor"]) == (
        [after + 3, after + 4], str(after + 4),
    )  # fmt: skip
    done = await page(stage, after=after + 4, through=after + 4, wait=30)
    assert done == {"items": [], "next_cursor": None}


async def test_large_messages_make_short_pages(stage: Stage) -> None:
    """A page is bounded in bytes, and so is what one query brings."""
    after = await publish(stage, *[moved(explanation="x" * 250_000) for _ in range(40)])
    seen: list[int] = []
    cursor: int | str = after
    while found := await page(stage, after=cursor, limit=1000):
        if found["next_cursor"] is None:
            break
        assert len(found["items"]) <= 20
        seen += positions(found["items"])
        cursor = found["next_cursor"]
    assert seen == list(range(after + 1, after + 41))
    for bytes_max, count in ((1, 1), (600_000, 3), (10**8, 40)):
        read = await postgres_log.read_topic(
            stage.connection, after, TRANSITIONS_TOPIC, 100, bytes_max
        )
        assert [m.position for m in read] == list(range(after + 1, after + 1 + count))


async def test_moments_are_positions_too(stage: Stage) -> None:
    """`since` and `until` name the messages published from a moment on, and before one."""
    await publish(stage, moved(), moved())
    between = await stage.connection.fetchval("SELECT clock_timestamp()")
    after = await publish(stage, moved(), moved())
    later = await stage.connection.fetchval("SELECT clock_timestamp()")
    last = await publish(stage, moved()) + 1
    assert positions((await page(stage, since=between.isoformat()))["items"]) == [
        after + 1, after + 2, last,
    ]  # fmt: skip
    both = await page(stage, since=between.isoformat(), until=later.isoformat())
    assert positions(both["items"]) == [after + 1, after + 2]
    ahead = (later + timedelta(days=1)).isoformat()
    assert await page(stage, since=ahead) == {"items": [], "next_cursor": str(last)}
    assert positions((await page(stage, since="1970-01-01T00:00:00Z", limit=1))["items"]) == [1]


async def test_every_moment_finds_its_position(stage: Stage) -> None:
    """The halving search against the table, also where numbers are missing."""
    await publish(stage, *[moved() for _ in range(20)])
    rows = await stage.connection.fetch(
        "SELECT number, published_at FROM bus.log WHERE topic = $1 ORDER BY number DESC LIMIT 60",
        TRANSITIONS_TOPIC,
    )
    feed = Feed(stage.house.pool, TRANSITIONS_TOPIC)
    for row in rows:
        for moment in (row["published_at"], row["published_at"] + timedelta(microseconds=1)):
            expected = await stage.connection.fetchval(
                "SELECT coalesce(max(number), 0) FROM bus.log WHERE topic = $1 AND published_at < $2",
                TRANSITIONS_TOPIC, moment,
            )  # fmt: skip
            assert await feed.position_before(moment) == expected


async def test_a_long_poll_comes_with_the_news(stage: Stage) -> None:
    """It waits for an item that matches, not for any."""
    after = await end_of(stage)
    began = time.monotonic()
    waiting = asyncio.create_task(page(stage, after=after, to="sql", wait=30))
    await publish(stage, moved())
    await publish(stage, moved(to="sql"))
    found = await waiting
    assert positions(found["items"]) == [after + 2]
    assert time.monotonic() - began < 10


async def test_a_long_poll_without_news_ends_in_time(stage: Stage) -> None:
    """What was passed over meanwhile is behind the cursor."""
    after = await publish(stage, moved())
    found = await page(stage, after=after, to="sql", wait=0.3)
    assert found == {"items": [], "next_cursor": str(after + 1)}
    assert await page(stage, after=after + 1, wait=0.3) == {"items": [], "next_cursor": None}


async def none_follows(stage: Stage) -> None:
    """Wait until all seats are free."""
    async with asyncio.timeout(10):
        while stage.house.following.streams:
            await asyncio.sleep(0.01)


async def some_follow(stage: Stage, count: int) -> None:
    """Wait until so many seats are taken."""
    async with asyncio.timeout(10):
        while stage.house.following.streams < count:
            await asyncio.sleep(0.01)


async def test_who_leaves_gives_the_place_back(stage: Stage) -> None:
    """A client that hangs up in a long poll or a stream holds nothing any more."""
    await none_follows(stage)
    after = await end_of(stage)
    polls = [asyncio.create_task(page(stage, after=after, wait=60)) for _ in range(2)]
    await some_follow(stage, 2)
    for poll in polls:
        poll.cancel()
    await asyncio.gather(*polls, return_exceptions=True)
    await none_follows(stage)
    async with stream(stage):
        await some_follow(stage, 1)
    await none_follows(stage)
    after = await publish(stage, *[moved(explanation="x" * 250_000) for _ in range(60)])
    export = f"/v1/transitions/export?after={after}"
    async with stage.client.stream("GET", export) as answer:
        await anext(answer.aiter_bytes())
        assert stage.house.following.streams == 1
    await none_follows(stage)


async def test_streams_are_limited(stage: Stage) -> None:
    """429 to a key with its share, 503 when the process has no place left; both say when to come again."""
    await none_follows(stage)
    _, other = await access.create_key(stage.connection, "other", ["read"])
    async with contextlib.AsyncExitStack() as open_streams:
        for _ in range(6):
            await open_streams.enter_async_context(stream(stage))
        for path in ("/v1/transitions/stream", "/v1/transitions?wait=1", "/v1/transitions/export"):
            answer = await stage.client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (429, "too-many-streams"), path
            assert answer.headers["retry-after"] == "2"
        assert (await stage.client.get("/v1/transitions")).status_code == 200
        for _ in range(3):
            await open_streams.enter_async_context(stream(stage, authorization=f"Bearer {other}"))
        answer = await stage.client.get(
            "/v1/transitions/stream", headers={"authorization": f"Bearer {other}"}
        )
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    await none_follows(stage)


async def test_a_stream_ends_with_its_key(stage: Stage) -> None:
    """Revoking a key ends what was opened with it (I11)."""
    id, token = await stage.new_key("read")
    async with stream(stage, authorization=f"Bearer {token}") as lines:
        await access.revoke_key(stage.connection, id)
        async with asyncio.timeout(15):
            async for _ in lines:
                pass  # until it ends
    await none_follows(stage)


async def test_an_export_is_all_there_was(stage: Stage) -> None:
    """It ends at the position at which it began, and says which that is."""
    after = await publish(stage, *[moved() for _ in range(1200)])
    items: list[dict[str, Any]] = []
    async with stage.client.stream("GET", "/v1/transitions/export", params={"after": after}) as got:
        assert got.headers["content-type"] == "application/x-ndjson"
        assert got.headers["baton-last-position"] == str(after + 1200)
        lines = got.aiter_lines()
        items.append(msgspec.json.decode(await anext(lines)))
        await publish(stage, moved())
        items += [msgspec.json.decode(line) async for line in lines]
    assert positions(items) == list(range(after + 1, after + 1201))


async def test_the_feed_as_ndjson(stage: Stage) -> None:
    """The same by `Accept`, with filters and ends."""
    after = await publish(stage, moved(), moved(to="sql"), moved(to="sql"), moved(to="sql"))
    got = await stage.client.get(
        "/v1/transitions", params={"after": after, "through": after + 3, "to": "sql"},
        headers={"accept": "application/x-ndjson"},
    )  # fmt: skip
    items = [msgspec.json.decode(line) for line in got.text.splitlines()]
    assert positions(items) == [after + 2, after + 3]
    assert got.headers["baton-last-position"] == str(after + 3)


async def test_the_stream_goes_on_after_the_last_event(stage: Stage) -> None:
    """`Last-Event-ID` counts more than `after`: an EventSource keeps the address it began with."""
    after = await publish(stage, *[moved() for _ in range(4)])
    path = f"/v1/transitions/stream?after={after}"
    async with stream(stage, path, last_event_id=str(after + 2)) as lines:
        blocks = await sse(lines, 2)
    assert [b["id"] for b in blocks] == [str(after + 3), str(after + 4)]
    assert blocks[0]["event"] == MOVED
    assert msgspec.json.decode(blocks[0]["data"])["position"] == after + 3


async def test_a_stream_begins_with_what_comes_next(stage: Stage) -> None:
    async with stream(stage) as lines:
        after = await publish(stage, moved())
        assert [b["id"] for b in await sse(lines, 1)] == [str(after + 1)]


async def test_a_filtered_stream_tells_how_far_it_is(stage: Stage) -> None:
    """Else who connects again would look at all that did not match once more."""
    after = await publish(stage, *[moved() for _ in range(1500)], moved(to="sql"))
    async with stream(stage, f"/v1/transitions/stream?after={after}&to=sql") as lines:
        blocks = await sse(lines, 2)
    assert blocks[0]["event"] == "baton.position"
    assert msgspec.json.decode(blocks[0]["data"])["position"] == int(blocks[0]["id"])
    assert blocks[0]["retry"] == "1000"
    assert after + 1000 <= int(blocks[0]["id"]) <= after + 1500
    assert blocks[1]["id"] == str(after + 1501)


async def test_many_streams_share_one_read(stage: Stage) -> None:
    """All see each position once; who is behind catches up beside those at the end."""
    after = await publish(stage, *[moved() for _ in range(700)])
    last = after + 1400

    async def follow(start: int) -> list[int]:
        async with stream(stage, f"/v1/transitions/stream?after={start}") as lines:
            return [int(b["id"]) for b in await sse(lines, last - start)]

    starts = [after, after + 350, after + 700, after + 700, after + 700]
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(follow(start)) for start in starts]
        for _ in range(14):
            await publish(stage, *[moved() for _ in range(50)])
    for start, seen in zip(starts, following, strict=True):
        assert seen.result() == list(range(start + 1, last + 1))


async def test_the_window_loses_nothing_at_its_edges(stage: Stage) -> None:
    """Readers at any place, while large messages push others out of memory."""
    feed = Feed(stage.house.pool, TRANSITIONS_TOPIC)
    after = await feed.last()
    wanted = Selection()

    async def follow(start: int, last: int, limit: int) -> list[int]:
        seen: list[int] = []
        position = start
        while position < last:
            found = await feed.page(position, wanted, limit)
            seen += [e.position for e in found.entries]
            position = found.position
        return seen

    last = after + 900
    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(follow(after, last, limit)) for limit in (1, 7, 100, 1000)]
        for n in range(30):
            await publish(stage, *[moved(explanation="x" * 20_000 * (n % 3)) for _ in range(30)])
    for reader in readers:
        assert reader.result() == list(range(after + 1, last + 1))


async def test_who_does_not_read_is_dropped(stage: Stage) -> None:
    """After `stream_stall_s` the seat is free; the place is the client's."""
    await none_follows(stage)
    after = await publish(stage, *[moved(explanation="x" * 250_000) for _ in range(60)])
    port = httpx.URL(stage.url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(
        f"GET /v1/transitions/stream?after={after} HTTP/1.1\r\nhost: t\r\n"
        f"authorization: Bearer {stage.key}\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")  # and then nothing more
    await some_follow(stage, 1)
    await none_follows(stage)
    writer.close()
