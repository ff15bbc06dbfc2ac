"""Whoever reads a feed, however, sees each position exactly once, while four processes write at full speed.

Ids given out by a sequence become visible out of order when several processes commit: a reader who keeps
"the last id" misses rows. Positions must not have that trap. Readers begin at any time, are cut off at any
point, and go on at another process; a stage process is killed in the middle.

``BATON_FEED_TRANSITIONS`` is how many transitions are written (2,000), ``BATON_FEED_SEED`` names the run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from httpx_sse import aconnect_sse

from baton.client import AsyncClient, Event, UnreachableError
from services.contracts import access
from services.contracts.events import TRANSITIONS_TOPIC
from tests.system.running import stage_process

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

TRANSITIONS = int(os.environ.get("BATON_FEED_TRANSITIONS", "2000"))
SEED = int(os.environ.get("BATON_FEED_SEED", "1"))
PROCESSES = 4
WRITERS = 8
BATCH = 20
CUTS = 20
"""How often each reader is cut off at some place, beside the moments at which it is."""
ON_THE_WAY_S = 300.0
"""How long after the last write a reader may take to see it, on a machine that is busy with other things."""

Found = tuple[int, str]
Way = Callable[[httpx.AsyncClient, int], AsyncIterator[Found]]


async def poll(client: httpx.AsyncClient, after: int, **asked: Any) -> AsyncIterator[Found]:
    """Pages, asked for again and again."""
    while True:
        answer = await client.get("/v1/transitions", params={"after": after, "limit": 300, **asked})
        answer.raise_for_status()
        page = answer.json()
        for item in page["items"]:
            yield item["position"], item["message_id"]
        if page["next_cursor"] is None and not asked:
            await asyncio.sleep(0.02)
        after = int(page["next_cursor"] or after)


def long_poll(client: httpx.AsyncClient, after: int) -> AsyncIterator[Found]:
    """Pages that are waited for."""
    return poll(client, after, wait=20)


async def stream(client: httpx.AsyncClient, after: int) -> AsyncIterator[Found]:
    """Server-sent events, by a client that knows nothing of Baton."""
    headers = {"last-event-id": str(after)}
    async with aconnect_sse(
        client, "GET", "/v1/transitions/stream?after=0", headers=headers
    ) as source:
        source.response.raise_for_status()
        async for event in source.aiter_sse():
            item = json.loads(event.data)
            assert str(item["position"]) == event.id
            yield item["position"], item["message_id"]


async def export(client: httpx.AsyncClient, after: int) -> AsyncIterator[Found]:
    """NDJSON, again and again."""
    while True:
        async with client.stream(
            "GET", "/v1/transitions", params={"after": after},
            headers={"accept": "application/x-ndjson"},
        ) as answer:  # fmt: skip
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                item = json.loads(line)
                after = item["position"]
                yield after, item["message_id"]
        await asyncio.sleep(0.02)


WAYS: dict[str, Way] = {"poll": poll, "long poll": long_poll, "sse": stream, "ndjson": export}


class Reader:
    """Reads to the end, cut off at random points; `seen` is what it has written down."""

    def __init__(self, name: str, urls: list[str], key: str, seed: int, start: int = 0) -> None:
        self.name = name
        self.start = start
        self.seen: list[Found] = []
        self.cuts = 0
        self._way = WAYS[name]
        self._urls = urls
        self._key = key
        self._chance = random.Random(seed)

    async def until_cut(self, last: asyncio.Future[int]) -> bool:
        """Read at some process, from where it is; True when it has seen the last position."""
        async with httpx.AsyncClient(
            base_url=self._chance.choice(self._urls), timeout=60,
            headers={"authorization": f"Bearer {self._key}"},
        ) as client:  # fmt: skip
            after = self.seen[-1][0] if self.seen else self.start
            async for found in self._way(client, after):
                self.seen.append(found)
                if last.done() and found[0] >= last.result():
                    return True
                if self._chance.random() < CUTS / TRANSITIONS:
                    return False  # in the middle of a page, a chunk, a line
        return False

    async def run(self, last: asyncio.Future[int]) -> None:
        """Read until the last position, with cuts at moments and at places."""
        while True:
            try:
                async with asyncio.timeout(self._chance.uniform(0.2, 4)):
                    if await self.until_cut(last):
                        return
            except (TimeoutError, httpx.HTTPError):
                pass
            self.cuts += 1
            if last.done() and (self.seen[-1][0] if self.seen else 0) >= last.result():
                return


async def write(urls: list[str], key: str, writer: int, count: int, written: list[int]) -> None:
    """Write transitions by batches, through any process, with Baton's client; count them in `written`."""
    chance = random.Random(SEED * 100 + writer)
    clients = [AsyncClient(url, key, give_up_s=2, timeout_s=20) for url in urls]
    for number in range(0, count, BATCH):
        events = [
            Event("demo.requested", f"/w{writer}", {"email": f"l{writer}-{n}@feed.example"}, id=str(n))
            for n in range(number, min(number + BATCH, count))
        ]  # fmt: skip
        while True:
            try:
                results = await chance.choice(clients).send_many(events)
                break
            except UnreachableError:
                continue  # the process that was killed: another takes them
        assert all(r.is_kept for r in results)
        written.append(len(results))
    for client in clients:
        await client.close()


async def published(database_url: str) -> list[Found]:
    """What the log holds in the end."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            """SELECT l.number, o.message_id FROM bus.log l JOIN bus.outbox o ON o.id = l.outbox_id
               WHERE l.topic = $1 ORDER BY l.number""",
            TRANSITIONS_TOPIC,
        )
        return [(r["number"], r["message_id"]) for r in rows]
    finally:
        await connection.close()


async def all_published(database_url: str) -> list[Found]:
    """Wait until nothing is left to publish."""
    connection = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(60):
            while await connection.fetchval("SELECT count(*) FROM bus.pending"):
                await asyncio.sleep(0.05)
    finally:
        await connection.close()
    return await published(database_url)


async def new_key(database_url: str) -> str:
    connection = await asyncpg.connect(database_url)
    try:
        return (await access.create_key(connection, "test", ["read", "ingest"]))[1]
    finally:
        await connection.close()


async def race(
    database_url: str, urls: list[str], victim: subprocess.Popen[bytes]
) -> tuple[list[Found], list[Reader]]:
    """Write and read at once; one process dies when half is written."""
    key = await new_key(database_url)
    chance = random.Random(SEED)
    last: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    readers: list[Reader] = []
    written: list[int] = []
    async with asyncio.TaskGroup() as reading:

        def begin(name: str, start: int = 0) -> None:
            reader = Reader(name, urls, key, chance.randrange(10**9), start)
            readers.append(reader)
            reading.create_task(reader.run(last))

        for name in WAYS:
            begin(name)
        async with asyncio.TaskGroup() as writing:
            tasks = [
                writing.create_task(write(urls, key, n, TRANSITIONS // WRITERS, written))
                for n in range(WRITERS)
            ]
            while not all(t.done() for t in tasks):
                await asyncio.sleep(0.2)
                far = max(r.seen[-1][0] if r.seen else 1 for r in readers)
                if sum(written) > TRANSITIONS * 0.3 and len(readers) == len(WAYS):
                    for name in WAYS:  # late ones: from the start, and from somewhere in the middle
                        begin(name)
                        begin(name, chance.randint(1, far))
                if sum(written) > TRANSITIONS * 0.5 and victim.poll() is None:
                    victim.kill()
        truth = await all_published(database_url)
        last.set_result(truth[-1][0])
        async with asyncio.timeout(ON_THE_WAY_S):
            while not all(r.seen and r.seen[-1] == truth[-1] for r in readers):
                await asyncio.sleep(0.1)
    return truth, readers


def test_each_position_is_seen_once(database_url: str, tmp_path: Path) -> None:
    """By polls, long polls, streams and exports."""
    settings = {"pool_connections_max": "6"}
    # One after the other: four that load their code at once are slow on a small machine.
    started: list[tuple[subprocess.Popen[bytes], str]] = []
    try:
        for n in range(PROCESSES):
            started.append(stage_process(database_url, tmp_path / f"log{n}", **settings))
        urls = [url for _, url in started]
        truth, readers = asyncio.run(race(database_url, urls, started[-1][0]))
    finally:
        for process, _ in started:
            process.terminate()
        for process, _ in started:
            process.wait(20)
    assert started[-1][0].returncode == -9, "the process was not killed in the middle"
    assert len(readers) == 3 * len(WAYS)
    assert [number for number, _ in truth] == list(range(1, TRANSITIONS // WRITERS * WRITERS + 1))
    for reader in readers:
        assert reader.seen == truth[reader.start :], f"{reader.name}, after {reader.cuts} cuts"
    assert sum(r.cuts for r in readers) > len(readers)
