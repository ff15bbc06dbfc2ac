"""What subscribers get: signed, in order, at least once, whatever either side does."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import standardwebhooks
import svix
from aiohttp import web

from services.contracts import postgres_log
from services.contracts.events import SUBSCRIPTIONS_TOPIC
from services.stage_service.people import Actor
from services.stage_service.subscriptions import changes, store_deliveries
from services.stage_service.subscriptions.schedule import FAILURES_MIN
from services.stage_service.subscriptions.secrets import add_secret, rotate, shown
from services.stage_service.subscriptions.signing import verify_ed25519
from tests.integration.subscribing import (
    CIPHER,
    Clock,
    Log,
    Receiver,
    Request,
    change,
    delivering,
    receiving,
    rows_of,
    subscribe,
    transition,
    until_in,
)

DELIVERED = (
    "SELECT count(*) = $2 FROM stage.deliveries WHERE subscription_id = $1 AND state = 'delivered'"
)
CURSOR = "SELECT position = 4 FROM stage.subscription_cursors WHERE subscription_id = $1"
STATE = "SELECT state = $2 FROM stage.subscriptions WHERE id = $1"


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[Log]:
    """The log of this test."""
    connection = await asyncpg.connect(database_url)
    yield Log(connection)
    await connection.close()


def answering(status: int, **headers: str) -> Callable[[Request], web.Response]:
    """Give a reaction that always answers so."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: web.Response(status=status, headers=named)


def failing(*ids: str) -> Callable[[Request], web.Response]:
    """Give a reaction that refuses the events with `ids`."""
    return lambda request: web.Response(status=500 if request.id in ids else 200)


def ids_of(requests: list[Request]) -> list[str]:
    """The events' ids in the order they came."""
    return [request.id for request in requests]


async def test_an_event_is_posted_signed_and_recorded(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(
            log.connection, f"{receiver.url}/hook?key=k",
            headers={"X-Team": "sales", "Webhook-Id": "forged", "Content-Type": "text/plain"},
        )  # fmt: skip
        (sent,) = await log.publish("ada")
        await receiver.until(lambda: receiver.taken, "the event")
        (request,) = receiver.requests
        assert request.id == sent.id
        assert request.headers["x-team"] == "sales"
        assert request.headers["content-type"] == "application/cloudevents+json"
        assert request.path == "/hook"
        await until_in(log.connection, "SELECT position = 1 FROM stage.subscription_cursors")
        (row,) = await rows_of(log.connection, id)
        assert (row["state"], row["tries"], row["lead_id"]) == ("delivered", 1, "ada")
        (attempt,) = row["attempts"]
        assert (attempt["status"], attempt["response"]) == (200, "thanks")
        assert "key=k" not in attempt["request"]


async def test_the_body_satisfies_cloudevents_and_standard_webhooks(
    database_url: str, log: Log
) -> None:
    async with receiving() as receiver, delivering(database_url):
        await subscribe(log.connection, f"{receiver.url}/full")
        await subscribe(log.connection, f"{receiver.url}/thin", payload="thin")
        (sent,) = await log.publish("ada")
        await receiver.until(lambda: len(receiver.taken) == 2, "both")
        by_path = {request.path: request for request in receiver.taken}
        full, thin = by_path["/full"].event, by_path["/thin"].event
        for event in (full, thin):
            assert event["specversion"] == "1.0"
            assert event["id"] == sent.id
            assert event["type"] == "baton.stage.transitioned.v1"
            assert event["source"] == "baton"
            assert event["subject"] == "ada"
            assert event["time"] == event["timestamp"] == sent.headers["ce_time"]
            assert event["position"] == 1
        assert full["data"] == json.loads(sent.value)
        assert thin["data"] == {
            "transition_id": sent.id, "sequence": 1, "from": "lead", "to": "mql", "lead": {"id": "ada"},
            "journey": {"id": "j-ada", "playbook": "sales", "key": "main"},
        }  # fmt: skip
        assert b"ada@example.com" not in by_path["/thin"].body


async def test_both_libraries_verify_what_comes_through_a_rotation(
    database_url: str, log: Log
) -> None:
    """The receiver changes over when he likes while the old secret signs too; then the kind changes."""
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(log.connection, receiver.url, secret=False)

        async def next_one() -> Request:
            before = len(receiver.taken)
            await log.publish("ada")
            await receiver.until(lambda: len(receiver.taken) > before, "the next event")
            return receiver.taken[-1]

        def good(secret: str | None, request: Request) -> bool:
            assert secret is not None
            try:
                svix.Webhook(secret).verify(request.body, request.headers)
                standardwebhooks.Webhook(secret).verify(request.body, request.headers)
            except (svix.WebhookVerificationError, standardwebhooks.WebhookVerificationError):
                return False
            return True

        async def changed() -> None:
            await change(log.connection, id, name="changed")
            await store_deliveries.notify(log.connection, id)
            await asyncio.sleep(0)

        old = (await add_secret(log.connection, CIPHER, id, "v1", datetime.now(UTC))).secret
        await changed()
        await wait_for(next_one, lambda r: "webhook-signature" in r.headers)
        assert good(old, await next_one())
        new = (await rotate(log.connection, CIPHER, id, datetime.now(UTC), keep_s=3600)).secret
        await changed()
        await wait_for(next_one, lambda r: good(new, r))
        assert good(old, receiver.taken[-1])
        v1a = await rotate(log.connection, CIPHER, id, datetime.now(UTC), kind="v1a", keep_s=3600)
        await changed()
        await wait_for(next_one, lambda r: "v1a," in r.headers["webhook-signature"])
        request = receiver.taken[-1]
        assert good(new, request)
        assert good(old, request)
        public = next(
            s.public_key
            for s in await shown(log.connection, id, datetime.now(UTC))
            if s.id == v1a.id
        )
        assert public is not None
        timestamp = request.headers["webhook-timestamp"]
        signature = request.headers["webhook-signature"].split()[0]
        assert verify_ed25519(public, request.id, timestamp, request.body, signature)


async def wait_for(ask: Any, condition: Callable[[Any], bool], times: int = 200) -> None:
    """Ask until the answer satisfies `condition`."""
    for _ in range(times):
        if condition(await ask()):
            return
    raise AssertionError("it never did")


async def test_an_event_waits_for_the_earlier_ones_of_its_lead_only(
    database_url: str, log: Log
) -> None:
    clock = Clock()
    async with receiving() as receiver, delivering(database_url, clock):
        id = await subscribe(log.connection, receiver.url)
        first, other, second, third = [transition(lead, n) for lead, n in
                                       (("a", 1), ("b", 1), ("a", 2), ("a", 3))]  # fmt: skip
        receiver.react = failing(first.id)
        await log.put(first, other, second)
        await until_in(log.connection, DELIVERED, id, 1)
        await log.put(third)
        await until_in(log.connection, CURSOR, id)
        states = {row["position"]: row["state"] for row in await rows_of(log.connection, id)}
        assert states == {1: "due", 2: "delivered", 3: "waiting", 4: "waiting"}
        receiver.react = failing()
        clock.skip(seconds=10)
        await until_in(log.connection, DELIVERED, id, 4)
        assert ids_of(receiver.taken) == [other.id, first.id, second.id, third.id]


async def test_unordered_nothing_waits(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(log.connection, receiver.url, ordered=False)
        first, second = transition("a", 1), transition("a", 2)
        receiver.react = failing(first.id)
        await log.put(first, second)
        await until_in(log.connection, DELIVERED, id, 1)
        assert ids_of(receiver.taken) == [second.id]


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


async def settled() -> None:
    """Let what could happen at once happen: several looks and ticks."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 0.7
    done = asyncio.Event()
    loop.call_at(end, done.set)
    await done.wait()


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


async def test_answers_are_read_no_further_than_needed(database_url: str, log: Log) -> None:
    """A body as if without end, and one that PostgreSQL could not store as it is."""

    async with receiving() as receiver, delivering(database_url):
        receiver.by_path["/endless"] = lambda _: web.Response(body=b"x" * 30_000_000)
        receiver.by_path["/odd"] = lambda _: web.Response(body=b"a\0b\xff\xed\xa0\x80")
        endless_id = await subscribe(log.connection, f"{receiver.url}/endless")
        odd_id = await subscribe(log.connection, f"{receiver.url}/odd")
        await log.publish("a", "b")
        for id in (endless_id, odd_id):
            await until_in(log.connection, DELIVERED, id, 2)
        row = (await rows_of(log.connection, endless_id))[0]
        assert row["attempts"][0]["response"] == "x" * 1024
        row = (await rows_of(log.connection, odd_id))[0]
        assert row["attempts"][0]["response"].startswith("ab")


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
                log.connection, id, str(row["id"]), datetime.now(UTC) - timedelta(hours=1)
            )
            await receiver.until(lambda: receiver.taken, "the event")


def certificates(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make a certificate for 127.0.0.1: contexts of a server with it, and of a client that trusts it."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    moment = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(moment - timedelta(days=1))
        .not_valid_after(moment + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                       critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    file = directory / "server.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                            serialization.NoEncryption())
    )  # fmt: skip
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=str(file))


async def test_types_choose_what_is_heard(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        await subscribe(log.connection, f"{receiver.url}/all", types=["baton.stage.*"])
        await subscribe(log.connection, f"{receiver.url}/none", types=["baton.handoff.accepted.v1"])
        await subscribe(log.connection, f"{receiver.url}/late", filter="sequence > 2")
        await log.publish("a", "a", "a")
        await until_in(
            log.connection, "SELECT count(*) = 3 FROM stage.subscription_cursors WHERE position = 3"
        )
        assert sorted(r.path for r in receiver.taken) == ["/all", "/all", "/all", "/late"]


async def test_who_is_far_behind_catches_up(database_url: str, log: Log) -> None:
    """From the beginning of the log, while it grows, each lead in order."""
    leads = [f"lead-{n % 40}" for n in range(2000)]
    await log.publish(*leads)
    async with receiving() as receiver, delivering(database_url):
        await subscribe(log.connection, receiver.url, position=0, concurrency=32)
        await log.publish(*leads[:500])
        await receiver.until(lambda: len(receiver.taken) == 2500, "everything", 60)
    check_order(receiver, log)


def check_order(receiver: Receiver, log: Log) -> None:
    """Each lead's events came in order, without gap, once repeats are dropped by id."""
    seen: dict[str, dict[str, None]] = {}
    for request in receiver.taken:
        seen.setdefault(request.event["subject"], {})[request.id] = None
    assert {lead: list(ids) for lead, ids in seen.items()} == log.ids


async def test_a_lead_with_more_than_fits_holds_up_no_other(database_url: str, log: Log) -> None:
    """The first of it hangs, and what waits behind it fills the window: the other leads' events go out."""
    async with receiving() as receiver, delivering(database_url):
        answers = asyncio.Event()

        async def slow(request: Request) -> web.Response:
            if request.event["subject"] == "hot":
                await answers.wait()
            return web.Response()

        receiver.react = slow
        id = await subscribe(log.connection, receiver.url, timeout_s=60.0, concurrency=2)
        await log.publish(*["hot"] * 600, *[f"cool-{n}" for n in range(50)])
        await receiver.until(lambda: len(receiver.taken) == 50, "the others", 30)
        assert sum(r.event["subject"] == "hot" for r in receiver.requests) == 1
        answers.set()
        await receiver.until(lambda: len(receiver.taken) == 650, "the rest", 60)
        await until_in(log.connection, DELIVERED, id, 650)
        assert len(receiver.requests) == 650
    check_order(receiver, log)


async def test_what_the_log_no_longer_has_is_given_up(database_url: str, log: Log) -> None:
    clock = Clock()
    async with receiving() as receiver, delivering(database_url, clock):
        id = await subscribe(log.connection, receiver.url)
        bad, good = transition("a", 1), transition("a", 2)
        receiver.react = failing(bad.id)
        await log.put(bad, good)
        await until_in(log.connection, "SELECT count(*) = 2 FROM stage.deliveries")
        await log.connection.execute("DELETE FROM bus.log WHERE position = 1")
        clock.skip(seconds=10)
        await until_in(log.connection, DELIVERED, id, 1)
        row = (await rows_of(log.connection, id))[0]
        assert row["state"] == "failed"
        assert row["attempts"][-1]["reason"] == "the log no longer has this event"
