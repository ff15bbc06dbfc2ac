"""What subscribers get of what fails: tried again by the schedule, held up nowhere, and lost never."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from aiohttp import web

from services.contracts import postgres_log
from services.contracts.events import SUBSCRIPTIONS_TOPIC
from services.stage_service.people import Actor
from services.stage_service.subscriptions import changes, store_deliveries
from services.stage_service.subscriptions.schedule import FAILURES_MIN
from tests.fakes.clock import BEGAN, Clock
from tests.integration.certificates import certificates
from tests.integration.receiver import Request, answering, failing, ids_of, receiving
from tests.integration.subscribing import (
    DELIVERED,
    Log,
    change,
    delivering,
    log,
    rows_of,
    settled,
    subscribe,
    transition,
    until_in,
)

__all__ = ["log"]
STATE = "SELECT state = $2 FROM stage.subscriptions WHERE id = $1"


async def test_what_fails_is_tried_by_the_schedule_and_then_given_up(
    database_url: str, log: Log
) -> None:
    """Ten attempts over three days; the others of the subscription go through meanwhile."""
    clock = Clock()
    async with receiving() as receiver, delivering(database_url, clock):
        id = await subscribe(log.connection, receiver.url)
        bad, after = transition("a", 1), transition("a", 2)
        receiver.react = failing(bad.id)
        await log.put(bad, after)
        tried = "SELECT jsonb_array_length(attempts) = $2 FROM stage.deliveries WHERE event_id = $1"
        moments = [0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
        for number, wait_s in enumerate(moments, 1):
            clock.skip(seconds=wait_s + 1)
            await until_in(log.connection, tried, bad.id, number)
            if number == 1:
                await log.publish("b")
                await until_in(log.connection, DELIVERED, id, 1)
        await until_in(log.connection, "SELECT state = 'failed' FROM stage.deliveries WHERE event_id = $1",
                       bad.id)  # fmt: skip
        await receiver.until(lambda: after.id in ids_of(receiver.taken), "what waited behind it")
        (row,) = [r for r in await rows_of(log.connection, id) if r["event_id"] == bad.id]
        assert [a["number"] for a in row["attempts"]] == list(range(1, 11))
        assert {a["status"] for a in row["attempts"]} == {500}


async def test_retry_after_is_honoured_and_costs_no_try(database_url: str, log: Log) -> None:
    clock = Clock()
    async with receiving() as receiver, delivering(database_url, clock):
        id = await subscribe(log.connection, receiver.url)
        receiver.react = answering(429, retry_after="600")
        await log.publish("a", "b", "c")
        await until_in(log.connection, "SELECT count(*) > 0 FROM stage.deliveries")
        receiver.react = answering(200)
        before = len(receiver.requests)
        clock.skip(seconds=590)
        await log.publish("d")  # it rests as a whole
        await until_in(log.connection, "SELECT max(position) = 4 FROM bus.log")
        await settled()
        assert len(receiver.requests) == before
        clock.skip(seconds=20)
        await until_in(log.connection, DELIVERED, id, 4)
        assert {row["tries"] for row in await rows_of(log.connection, id)} == {1}


async def test_410_ends_the_subscription_and_its_contact_is_told(
    database_url: str, log: Log
) -> None:
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(log.connection, receiver.url, contact="maria")
        receiver.react = answering(410)
        (sent,) = await log.publish("a")
        await until_in(log.connection, STATE, id, "gone")
        while not (await postgres_log.stamp(log.connection))[0]:
            await asyncio.sleep(0.01)
        (message,) = await postgres_log.read(log.connection, 0, [SUBSCRIPTIONS_TOPIC], 10)
        told = json.loads(message.value)
        assert message.type == "baton.subscription.stopped.v1"
        assert (told["subscription_id"], told["state"], told["contact"]) == (id, "gone", "maria")
        assert "410" in told["reason"]
        await log.publish("a")
        await settled()
        assert len(receiver.requests) == 1
        # Resumed, it goes on where it stopped: what was answered 410 comes too.
        receiver.react = answering(200)
        await change(log.connection, id, state="active")
        await receiver.until(lambda: len(receiver.taken) == 2, "both")
        assert receiver.taken[0].id == sent.id


async def test_five_days_of_failures_stop_it_and_lose_nothing(database_url: str, log: Log) -> None:
    clock = Clock()
    async with receiving() as receiver, delivering(database_url, clock):
        id = await subscribe(log.connection, receiver.url, contact="maria")
        receiver.react = answering(503)
        sent = await log.publish(*"abcdefghij")
        for _ in range(400):
            if await log.connection.fetchval(STATE, id, "failing"):
                break
            clock.skip(hours=1)
            await asyncio.sleep(0.02)
        row = await log.connection.fetchrow("SELECT * FROM stage.subscriptions WHERE id = $1", id)
        assert row is not None
        assert row["state"] == "failing"
        assert row["state_at"] - row["failing_since"] >= timedelta(days=5)
        assert "503" in row["state_reason"]
        receiver.react = answering(200)
        await change(log.connection, id, state="active", state_at=clock())
        for _ in range(400):
            if len({r.id for r in receiver.taken}) == len(sent):
                break
            clock.skip(minutes=5)
            await asyncio.sleep(0.02)
        assert {r.id for r in receiver.taken} == {m.id for m in sent}


async def test_resumed_at_once_after_a_stop_it_has_five_days_again(
    database_url: str, log: Log
) -> None:
    """Before whoever delivers has looked: to him it was never stopped."""
    clock = Clock()
    async with receiving() as receiver, delivering(database_url, clock):
        id = await subscribe(log.connection, receiver.url)
        receiver.react = answering(503)
        await log.publish(*"abcdef")
        while not await log.connection.fetchval(STATE, id, "failing"):
            clock.skip(hours=1)
            await asyncio.sleep(0.02)
        async with log.connection.transaction():
            await changes.set_state(log.connection, id, "active", Actor("maria"), clock())
        so_far = len(receiver.requests)
        for _ in range(100):
            if len(receiver.requests) >= so_far + FAILURES_MIN + 2:
                break
            clock.skip(minutes=5)
            await asyncio.sleep(0.02)
        await until_in(log.connection, "SELECT failing_since >= state_at FROM stage.subscriptions")
        assert await log.connection.fetchval(STATE, id, "active")


async def test_while_it_is_down_one_at_a_time_tries_it_and_the_first_success_frees_all(
    database_url: str, log: Log
) -> None:
    clock = Clock()
    at_once = most = 0

    async def away(request: Request) -> web.Response:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return web.Response(status=503)

    async with receiving() as receiver, delivering(database_url, clock):
        id = await subscribe(log.connection, receiver.url, concurrency=8)
        receiver.react = away
        sent = await log.publish(*[f"lead-{n}" for n in range(300)])
        await receiver.until(lambda: len(receiver.requests) >= 8, "the first")
        await until_in(log.connection, "SELECT failing_since IS NOT NULL FROM stage.subscriptions")
        await settled()
        first, most = len(receiver.requests), 0
        for _ in range(30):  # half an hour
            clock.skip(minutes=1)
            await asyncio.sleep(0.12)
        probes = len(receiver.requests) - first
        assert 5 <= probes <= 31
        assert most == 1
        # The log keeps what was not tried: rows are few.
        assert (
            await log.connection.fetchval("SELECT count(*) FROM stage.deliveries") <= first + probes
        )
        receiver.react = answering(200)
        clock.skip(minutes=5)
        await receiver.until(lambda: len(receiver.taken) == 300, "all of them, without waiting")
        assert sorted(ids_of(receiver.taken)) == sorted(m.id for m in sent)
        await until_in(log.connection, DELIVERED, id, 300)
        assert await log.connection.fetchval("SELECT max(tries) FROM stage.deliveries") <= 2


async def test_a_hanging_endpoint_holds_up_nobody(database_url: str, log: Log) -> None:
    """It takes all its connections and never answers; the other one has everything meanwhile."""
    async with receiving() as receiver, delivering(database_url):
        never = asyncio.Event()

        async def hang(_: Request) -> web.Response:
            await never.wait()
            return web.Response()

        receiver.by_path["/hangs"] = hang
        await subscribe(log.connection, f"{receiver.url}/hangs", timeout_s=60.0)
        await subscribe(log.connection, f"{receiver.url}/well")
        await log.publish(*[f"lead-{n}" for n in range(600)])
        await receiver.until(lambda: len(receiver.taken) == 600, "all of the healthy one")
        assert sum(r.path == "/hangs" for r in receiver.requests) == 8
        never.set()


async def test_a_request_that_takes_too_long_is_cut_off(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        never = asyncio.Event()

        async def hang(_: Request) -> web.Response:
            await never.wait()
            return web.Response()

        receiver.react = hang
        id = await subscribe(log.connection, receiver.url, timeout_s=0.2)
        await log.publish("a")
        await until_in(
            log.connection, "SELECT count(*) = 1 FROM stage.deliveries WHERE state = 'due'"
        )
        (row,) = await rows_of(log.connection, id)
        assert row["attempts"][0]["reason"] == "no answer within 0.2 s"
        never.set()


async def test_a_redirect_is_a_failure_and_not_followed(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        receiver.by_path["/moved"] = lambda _: web.Response(
            status=307, headers={"location": f"{receiver.url}/elsewhere"}
        )
        id = await subscribe(log.connection, f"{receiver.url}/moved")
        await log.publish("a")
        await until_in(
            log.connection, "SELECT count(*) = 1 FROM stage.deliveries WHERE state = 'due'"
        )
        assert [r.path for r in receiver.requests] == ["/moved"]
        (row,) = await rows_of(log.connection, id)
        assert "redirects are not followed" in row["attempts"][0]["reason"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_an_address_that_is_not_allowed_is_never_connected_to(
    database_url: str, log: Log, host: str
) -> None:
    async with receiving() as receiver, delivering(database_url, allow=""):
        url = receiver.url.replace("127.0.0.1", host)
        id = await subscribe(log.connection, url)
        await log.publish("a")
        await until_in(
            log.connection, "SELECT count(*) = 1 FROM stage.deliveries WHERE state = 'due'"
        )
        assert receiver.requests == []
        (row,) = await rows_of(log.connection, id)
        assert "loopback" in row["attempts"][0]["reason"]


async def test_servers_are_verified(database_url: str, log: Log, tmp_path: Path) -> None:
    """A certificate of nobody we trust is a failure; of somebody we do, it is delivered."""
    server, client = certificates(tmp_path)
    async with receiving(server) as receiver:
        async with delivering(database_url):
            id = await subscribe(log.connection, receiver.url)
            await log.publish("a")
            await until_in(
                log.connection, "SELECT count(*) = 1 FROM stage.deliveries WHERE state = 'due'"
            )
            assert receiver.requests == []
            (row,) = await rows_of(log.connection, id)
            assert "TLS failed" in row["attempts"][0]["reason"]
        async with delivering(database_url, tls=client):
            await store_deliveries.resend(
                log.connection, id, str(row["id"]), BEGAN - timedelta(hours=1)
            )
            await receiver.until(lambda: receiver.taken, "the event")


async def test_no_secret_and_no_person_is_in_the_logs(database_url: str, log: Log) -> None:
    clock = Clock()
    with structlog.testing.capture_logs() as lines:
        async with receiving() as receiver, delivering(database_url, clock):
            receiver.react = lambda _: web.Response(
                status=410, text="no such person as ada@example.com"
            )
            id = await subscribe(
                log.connection, f"{receiver.url}/path?token=hunter2", headers={"X-Key": "hunter3"}
            )
            await log.publish("ada")
            await until_in(
                log.connection, "SELECT state = 'gone' FROM stage.subscriptions WHERE id = $1", id
            )
    text = json.dumps(lines, default=str)
    assert "subscription.stopped" in text
    for secret in ("hunter", "ada", "whsec", "/path"):
        assert secret not in text
