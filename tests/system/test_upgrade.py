"""A live playbook is upgraded under load: nothing is lost, and nothing folded by a half of it.

``BATON_UPGRADE_S`` seconds of load (6 in CI).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.baton.verify import verify_database
from services.contracts import access
from services.contracts.yaml_source import SourceError
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.shelf import Shelf
from tests.system.running import BATCHED, ROOT, lead_event, stage_process

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SECONDS = float(os.environ.get("BATON_UPGRADE_S", "6"))
EVENTS_A_SECOND = 500
BATCH = 25
WAY = ("lead.created", "demo.requested", "page.viewed", "meeting.booked", "proposal.sent",
       "contract.sent", "deal.won")  # fmt: skip
SALES = (ROOT / "playbooks/sales.yaml").read_text()
RENAMED = re.sub(r"\bsql\b", "discovery", SALES)


@pytest.fixture
def replicas(database_url: str, tmp_path: Path) -> Iterator[list[str]]:
    """The URLs of two stage services on one database."""
    started = [stage_process(database_url, tmp_path / f"log-{n}") for n in range(2)]
    yield [url for _, url in started]
    for process, _ in started:
        process.send_signal(signal.SIGTERM)
    for process, _ in started:
        process.wait(20)
    assert all("Traceback" not in (tmp_path / f"log-{n}").read_text() for n in range(2))


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=3)
    yield pool
    await pool.close()


class Load:
    """Sends events of leads that go their way at a steady pace, to both in turn, until acknowledged."""

    def __init__(self, urls: list[str], key: str) -> None:
        headers = {"authorization": f"Bearer {key}", "content-type": BATCHED}
        self._clients = [httpx.AsyncClient(base_url=u, headers=headers, timeout=20) for u in urls]
        self._chance = random.Random(7)
        self._steps: dict[str, int] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self.acknowledged: set[str] = set()
        self.slowest_s: list[float] = []

    async def run(self, until: float) -> None:
        """Send until the loop's time `until`, then wait for the answers."""
        loop = asyncio.get_running_loop()
        due, number = loop.time(), 0
        while loop.time() < until:
            events = [self._event(number + n) for n in range(BATCH)]
            number += BATCH
            task = asyncio.create_task(self._send(self._clients[number // BATCH % 2], events))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
            due += BATCH / EVENTS_A_SECOND
            await asyncio.sleep(max(due - loop.time(), 0))
        await asyncio.gather(*self._sending)
        for client in self._clients:
            await client.aclose()

    def _event(self, number: int) -> dict[str, Any]:
        lead = f"l{self._chance.randrange(1 + number // 4)}@upgrade.example"
        step = self._steps[lead] = self._steps.get(lead, -1) + 1
        late = timedelta(seconds=self._chance.choice((0, 0, 0, 0, 0, 30)))
        return lead_event(
            f"e-{number}", WAY[step] if step < len(WAY) else "email.clicked", lead,
            time=(datetime.now(UTC) - late).isoformat(), employees=300,
        )  # fmt: skip

    async def _send(self, client: httpx.AsyncClient, events: list[dict[str, Any]]) -> None:
        began = time.perf_counter()
        while True:
            answer = await client.post("/v1/events", content=json.dumps(events))
            if answer.status_code == 200:
                break
            assert answer.status_code == 503, answer.text
        assert {r["status"] for r in answer.json()["results"]} <= {"applied", "duplicate"}
        self.acknowledged |= {e["id"] for e in events}
        self.slowest_s.append(time.perf_counter() - began)


def changed(text: str, threshold: int) -> Playbook:
    return parse_playbook(
        text.replace("score.total >= 60", f"score.total >= {threshold}"), "sales.yaml"
    )


async def upgrade(pool: asyncpg.Pool[Any], shelf: Shelf, rest_s: float) -> None:
    """Publish one version after another, each in another way; one is refused."""
    said = {"author": "ada", "message": "a live upgrade"}
    await asyncio.sleep(rest_s)
    await shelf.publish(pool, changed(SALES, 55), expected=1, **said)
    await asyncio.sleep(rest_s)
    with pytest.raises(SourceError, match="stage 'sql' of version 2 is gone"):
        await shelf.publish(pool, changed(RENAMED, 55), expected=2, **said)
    renamed = changed(RENAMED + "\nmigrate: {sql: discovery}\n", 55)
    await shelf.publish(pool, renamed, expected=2, **said)
    await asyncio.sleep(rest_s)
    at = datetime.now(UTC) + timedelta(seconds=rest_s / 2)
    later = changed(RENAMED + "\nmigrate: {sql: discovery}\n", 50)
    await shelf.schedule(pool, later, activate_at=at, expected=3, **said)
    async with asyncio.timeout_at(asyncio.get_running_loop().time() + rest_s / 2 + 1):
        while [s.state for s in await shelf.scheduled(pool)] != ["activated"]:
            await asyncio.sleep(0.02)
    await asyncio.sleep(rest_s)
    await shelf.load(pool)
    await shelf.publish_file(pool, changed(RENAMED + "\nmigrate: {sql: discovery}\n", 45))
    await asyncio.sleep(rest_s)
    await shelf.publish(pool, renamed, expected=5, restores=3, **said)


async def test_a_live_playbook_is_upgraded_under_load(
    database_url: str, replicas: list[str], pool: asyncpg.Pool[Any]
) -> None:
    _, key = await access.create_key(pool, "load", ("ingest",))
    shelf, loop = Shelf(), asyncio.get_running_loop()
    await shelf.load(pool)
    load = Load(replicas, key)
    _, _ = await asyncio.gather(load.run(loop.time() + SECONDS), upgrade(pool, shelf, SECONDS / 7))
    async with asyncio.timeout(30):
        while await pool.fetchval("SELECT count(*) FROM stage.journeys WHERE stage = 'sql'"):
            await asyncio.sleep(0.05)
    rows = await pool.fetch("SELECT id, epoch FROM stage.events WHERE source = '/test'")
    assert {r["id"] for r in rows} == load.acknowledged, "nothing is lost, nothing is there twice"
    assert {r["epoch"] for r in rows} == set(range(1, 7)), "each version had its events"
    versions = await shelf.versions(pool, "sales")
    assert [(v.version, v.restores) for v in versions] == [
        (6, 3), (5, None), (4, None), (3, None), (2, None), (1, None),
    ]  # fmt: skip
    moved = await pool.fetchval("SELECT count(*) FROM stage.transitions WHERE rule = 'migrate'")
    assert moved > 0
    assert not await pool.fetchval(
        "SELECT count(*) FROM stage.transitions WHERE to_stage = 'sql' AND playbook_version > 2"
    )
    report = await verify_database(database_url)
    assert report.findings == []
    slow = sorted(load.slowest_s)
    print(  # noqa: T201  what the full run reports
        f"{len(load.acknowledged)} events, {moved} renamed; a request at most {slow[-1]:.3f} s, "
        f"99 of 100 within {slow[len(slow) * 99 // 100]:.3f} s"
    )
