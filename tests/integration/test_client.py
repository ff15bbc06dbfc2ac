"""`baton.client` against a running stage service: it sends, follows, looks up, and outlives a restart."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from baton.client import AsyncClient, Client, CursorAheadError, Event, RefusedError
from services.baton.embedded import EmbeddedPostgres
from tests.integration.stage import Stage, fresh_database, serving_stage

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(postgres: EmbeddedPostgres) -> AsyncIterator[Stage]:
    """One stage service behind a socket for the module."""
    with fresh_database(postgres) as url:
        async with serving_stage(url) as it:
            yield it


def demo(name: str) -> Event:
    """An event that moves a new lead."""
    return Event("demo.requested", "/client", {"email": f"{name}@example.com", "company": "X"})


async def test_sending_and_looking_up(stage: Stage) -> None:
    """What the blocking client gives is typed; a repeat is a duplicate."""
    event = Event(
        "demo.requested", "/client", {"email": "ada@example.com", "name": "Ada"},
        time=datetime.now(UTC) - timedelta(minutes=1), subject="ada",
    )  # fmt: skip

    def act() -> None:
        with Client(stage.url, stage.key) as client:
            result = client.send(event)
            assert result.status == "applied"
            assert result.lead_id is not None
            [move] = result.transitions
            assert (move.sequence, move.playbook, move.key, move.from_, move.to) == (
                1, "sales", "main", "lead", "mql",
            )  # fmt: skip
            assert "demo" in (move.explanation or "")
            assert client.send(event).status == "duplicate"
            lead = client.lead(result.lead_id)
            assert (lead.email, lead.stage(), lead.stage("other")) == (
                "ada@example.com",
                "mql",
                None,
            )
            assert lead.data["attributes"]["name"] == "Ada"
            found = client.lead_by_email("Ada@Example.com")
            assert found is not None
            assert found.id == lead.id
            assert client.lead_by_email("nobody@example.com") is None
            with pytest.raises(RefusedError) as refused:
                client.lead(str(uuid.UUID(int=0)))
            assert (refused.value.status, refused.value.code) == (404, "not-found")

    await asyncio.to_thread(act)


async def test_invalid_events_are_results(stage: Stage) -> None:
    """Beside valid ones, and alone."""
    async with AsyncClient(stage.url, stage.key) as client:
        good, bad = demo("good"), Event("", "/client", {})
        results = await client.send_many([good, bad])
        assert [r.status for r in results] == ["applied", "rejected"]
        assert (results[1].error or {})["field"] == "type"
        assert (await client.send(bad)).status == "rejected"


async def test_following_with_filters(stage: Stage) -> None:
    """Both feeds; what was there and what comes."""
    async with AsyncClient(stage.url, stage.key) as client:
        before = await client.send(demo("before"))
        after = [i.position async for i in client.transitions()][-1] - 1
        feed = client.transitions(after, follow=True, stage="mql")
        assert (await anext(feed)).lead_id == before.lead_id
        waiting = asyncio.ensure_future(anext(feed))
        later = await client.send(demo("later"))
        item = await waiting
        assert (item.lead_id, item.from_, item.to, item.email) == (
            later.lead_id, "lead", "mql", "later@example.com",
        )  # fmt: skip
        assert item.transition.sequence == 1
        assert item.id == item.data["transition_id"]
        assert feed.cursor == item.position - 1
        only = client.transitions(lead_id=later.lead_id)
        assert [i.position async for i in only] == [item.position]
        assert only.cursor == item.position
        offered = client.handoffs(lead_id=later.lead_id, types=["baton.handoff.*"])
        assert [i.type async for i in offered] == ["baton.handoff.offered.v1"]
        with pytest.raises(CursorAheadError) as ahead:
            await anext(client.transitions(after=10**6, follow=True))
        assert ahead.value.last_position == item.position


async def test_since_a_moment(stage: Stage) -> None:
    async with AsyncClient(stage.url, stage.key) as client:
        await client.send(demo("old"))
        [*_, last] = [i async for i in client.transitions()]
        now = await stage.connection.fetchval("SELECT clock_timestamp()")
        feed = client.transitions(since=now)
        assert [i async for i in feed] == []
        assert feed.cursor == last.position
        await client.send(demo("new"))
        assert [i.email async for i in client.transitions(since=now)] == ["new@example.com"]


async def test_following_outlives_a_restart(postgres: EmbeddedPostgres) -> None:
    """The service goes away and comes back at the same address; the reader hears everything, once."""
    seen: list[int] = []
    with fresh_database(postgres) as url:
        async with serving_stage(url) as first:
            async with AsyncClient(first.url, first.key) as client:
                await client.send(demo("first"))
            reader = Client(
                first.url, first.key, give_up_s=0.1, sleep=lambda s: time.sleep(min(s, 0.1))
            )
            port = int(first.url.rpartition(":")[2])
            enough = threading.Event()

            def follow() -> None:
                for item in reader.transitions(follow=True):
                    seen.append(item.position)
                    if len(seen) == 3:
                        break
                enough.set()

            following = asyncio.create_task(asyncio.to_thread(follow))
            async with asyncio.timeout(10):
                while not seen:
                    await asyncio.sleep(0.01)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
        async with serving_stage(url, at_port=port) as again:
            async with AsyncClient(again.url, first.key) as client:
                await client.send_many([demo("second"), demo("third")])
            async with asyncio.timeout(30):
                await following
        reader.close()
    assert enough.is_set()
    assert seen == [1, 2, 3]
