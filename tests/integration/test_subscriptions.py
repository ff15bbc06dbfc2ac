"""What subscribers get: signed, in order, at least once, whatever either side does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import standardwebhooks
import svix
from aiohttp import web

from services.stage_service.subscriptions import store_deliveries
from services.stage_service.subscriptions.secrets import add_secret, rotate, shown
from services.stage_service.subscriptions.signing import verify_ed25519
from tests.fakes.clock import Clock, wall
from tests.integration.receiver import Request, failing, ids_of, receiving
from tests.integration.subscribing import (
    CIPHER,
    DELIVERED,
    Log,
    change,
    check_order,
    delivering,
    log,
    rows_of,
    subscribe,
    transition,
    until_in,
)

__all__ = ["log"]
CURSOR = "SELECT position = 4 FROM stage.subscription_cursors WHERE subscription_id = $1"


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
    """The receiver changes over when he likes while the old secret signs too; then the kind changes.

    The libraries refuse what was signed long ago by the wall's clock.
    """
    async with receiving() as receiver, delivering(database_url, wall):
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

        old = (await add_secret(log.connection, CIPHER, id, "v1", wall())).secret
        await changed()
        await wait_for(next_one, lambda r: "webhook-signature" in r.headers)
        assert good(old, await next_one())
        new = (await rotate(log.connection, CIPHER, id, wall(), keep_s=3600)).secret
        await changed()
        await wait_for(next_one, lambda r: good(new, r))
        assert good(old, receiver.taken[-1])
        v1a = await rotate(log.connection, CIPHER, id, wall(), kind="v1a", keep_s=3600)
        await changed()
        await wait_for(next_one, lambda r: "v1a," in r.headers["webhook-signature"])
        request = receiver.taken[-1]
        assert good(new, request)
        assert good(old, request)
        public = next(
            s.public_key for s in await shown(log.connection, id, wall()) if s.id == v1a.id
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
