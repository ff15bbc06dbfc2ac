"""What people do to subscriptions is seen within a second."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import uuid_utils
from aiohttp import web

from services.contracts.events import Message, message_headers
from services.stage_service.conditions import TypeName
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.subscriptions import store_deliveries
from services.stage_service.subscriptions.dispatcher import OPEN_AGAIN_S
from tests.conftest import ROOT
from tests.fakes.clock import BEGAN
from tests.integration.receiver import Request, answering, failing, ids_of, receiving
from tests.integration.subscribing import (
    DELIVERED,
    REFUSED,
    WITHIN_S,
    Log,
    change,
    check_order,
    delivering,
    held,
    log,
    rows_of,
    settled,
    subscribe,
    transition,
    until_in,
)

__all__ = ["log"]


async def test_paused_it_gets_nothing_and_resumed_everything(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url) as dispatcher:
        id = await subscribe(log.connection, receiver.url)
        await held(dispatcher, 1)
        await change(log.connection, id, state="paused")
        await held(dispatcher, 0, WITHIN_S)
        await log.publish("a", "a", "b")
        await settled()
        assert receiver.requests == []
        await change(log.connection, id, state="active")
        await receiver.until(lambda: len(receiver.taken) == 3, "what came meanwhile", WITHIN_S)
        check_order(receiver, log)


async def test_deleted_it_gets_nothing_more(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url) as dispatcher:
        id = await subscribe(log.connection, receiver.url)
        await held(dispatcher, 1)
        await change(log.connection, id, deleted_at=BEGAN)
        await held(dispatcher, 0, WITHIN_S)
        await log.publish("a")
        await settled()
        assert receiver.requests == []


async def test_a_changed_address_is_used_within_a_second(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        receiver.by_path["/old"] = answering(500)
        id = await subscribe(log.connection, f"{receiver.url}/old")
        await log.publish("a")
        await receiver.until(lambda: receiver.requests, "the first attempt")
        await change(log.connection, id, url=f"{receiver.url}/new")
        await settled()
        await log.publish("b")
        await receiver.until(lambda: receiver.taken, "the next event", WITHIN_S)
        assert receiver.taken[0].path == "/new"


async def test_a_changed_filter_holds_for_what_was_not_sent_yet(
    database_url: str, log: Log
) -> None:
    async with receiving() as receiver, delivering(database_url):
        answers = asyncio.Event()

        async def slow(_: Request) -> web.Response:
            await answers.wait()
            return web.Response()

        receiver.react = slow
        id = await subscribe(log.connection, receiver.url, concurrency=1)
        await log.publish("a", "b", "c", "d")
        await receiver.until(lambda: receiver.requests, "the first")
        await change(log.connection, id, filter="lead.id == 'd'")
        await settled()
        answers.set()
        await until_in(log.connection, "SELECT position = 4 FROM stage.subscription_cursors")
        assert [r.event["subject"] for r in receiver.taken] == ["a", "d"]


async def test_running_filters_follow_the_playbooks(database_url: str, log: Log) -> None:
    """An attribute becomes a number, then is declared no more, then again: nothing is skipped."""
    text = (ROOT / "playbooks" / "sales.yaml").read_text("utf-8")
    declared = parse_playbook(text, "sales.yaml")
    kinds = declared.attributes["lead"]
    published: list[dict[str, Playbook]] = []

    def publish(lead: dict[str, TypeName]) -> None:
        attributes = {**declared.attributes, "lead": lead}
        published.append({"sales": replace(declared, attributes=attributes)})

    def told(value: str) -> dict[str, Any]:
        return {"lead": {"id": "a", "attributes": {"size": value}}}

    publish({**kinds, "size": "string"})
    async with (
        receiving() as receiver,
        delivering(database_url, playbooks=lambda: published[-1]) as dispatcher,
    ):
        await subscribe(log.connection, receiver.url, filter="lead.size > 5")
        await until_in(log.connection, REFUSED, 1)
        publish({**kinds, "size": "int"})
        await held(dispatcher, 1, OPEN_AGAIN_S / 2)
        await log.publish("a", **told("10"))
        await receiver.until(lambda: receiver.taken, "as a number it is over 5")
        publish(kinds)
        await held(dispatcher, 0)
        await log.publish("a", **told("11"))
        publish({**kinds, "size": "int"})
        await receiver.until(
            lambda: len(receiver.taken) == 2, "what came meanwhile", OPEN_AGAIN_S / 2
        )


async def test_one_delivery_is_sent_again(database_url: str, log: Log) -> None:
    """Under the same id, at once, also when it went through."""
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(log.connection, receiver.url)
        (sent,) = await log.publish("a")
        await until_in(log.connection, DELIVERED, id, 1)
        (row,) = await rows_of(log.connection, id)
        assert await store_deliveries.resend(log.connection, id, str(row["id"]), row["created_at"])
        await receiver.until(lambda: len(receiver.taken) == 2, "it again", WITHIN_S)
        await until_in(log.connection, DELIVERED, id, 1)
        assert ids_of(receiver.taken) == [sent.id, sent.id]
        await until_in(
            log.connection, "SELECT jsonb_array_length(attempts) = 2 FROM stage.deliveries"
        )
        other = str(uuid.uuid4())
        assert not await store_deliveries.resend(log.connection, id, other, BEGAN)
        assert not await store_deliveries.resend(log.connection, other, str(row["id"]), BEGAN)


async def test_all_that_failed_in_a_while_are_sent_again(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(log.connection, receiver.url)
        await log.publish("a", "a", "b")
        await until_in(log.connection, DELIVERED, id, 3)
        await log.connection.execute("UPDATE stage.deliveries SET state = 'failed'")
        rows = await rows_of(log.connection, id)
        since, until = rows[0]["created_at"], rows[-1]["created_at"] + timedelta(seconds=1)
        nothing = await store_deliveries.resend_failed(log.connection, id, until, until, until)
        assert nothing == 0
        moment = BEGAN
        assert await store_deliveries.resend_failed(log.connection, id, since, until, moment) == 3
        await receiver.until(lambda: len(receiver.taken) == 6, "all again", WITHIN_S)
        check_order(receiver, log)
        again = [r for r in receiver.taken[3:] if r.event["subject"] == "a"]
        assert [r.event["data"]["sequence"] for r in again] == [1, 2]


async def test_a_replay_sends_all_again_from_there(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(log.connection, receiver.url)
        first, second, third = await log.publish("a", "a", "a")
        receiver.react = failing(second.id)
        await log.publish()
        await receiver.until(lambda: receiver.requests, "an attempt")
        await until_in(log.connection, "SELECT count(*) >= 1 FROM stage.deliveries")
        receiver.react = answering(200)
        run = await store_deliveries.replay(log.connection, id, 0, BEGAN)
        assert run == 1
        await until_in(
            log.connection,
            "SELECT count(*) = 3 FROM stage.deliveries WHERE run = 1 AND state = 'delivered'",
        )
        got = ids_of(receiver.taken)
        assert got[-3:] == [first.id, second.id, third.id]
        assert not await log.connection.fetchval(
            "SELECT count(*) FROM stage.deliveries WHERE state IN ('waiting', 'due')"
        )
        # A place past the end is the end.
        assert await store_deliveries.replay(log.connection, id, 10**9, BEGAN) == 2
        await log.publish("a")
        await receiver.until(
            lambda: len(receiver.taken) == len(got) + 1, "what comes next", WITHIN_S
        )


async def test_a_skipped_delivery_lets_the_next_of_its_lead_go(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(log.connection, receiver.url)
        bad, good = transition("a", 1), transition("a", 2)
        receiver.react = failing(bad.id)
        await log.put(bad, good)
        await until_in(log.connection, "SELECT count(*) = 2 FROM stage.deliveries")
        row = (await rows_of(log.connection, id))[0]
        assert await store_deliveries.skip(log.connection, id, str(row["id"]), BEGAN)
        await receiver.until(lambda: receiver.taken, "the next", WITHIN_S)
        assert ids_of(receiver.taken) == [good.id]
        await until_in(log.connection, DELIVERED, id, 1)
        assert (await rows_of(log.connection, id))[0]["state"] == "skipped"
        await log.publish("a")
        await until_in(log.connection, DELIVERED, id, 2)


async def test_a_test_event_goes_to_one_subscription_and_waits_for_nobody(
    database_url: str, log: Log
) -> None:
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(log.connection, f"{receiver.url}/this")
        await subscribe(log.connection, f"{receiver.url}/other")
        bad = transition("a", 1)
        receiver.react = failing(bad.id)
        await log.put(bad)
        await receiver.until(lambda: len(receiver.requests) == 2, "both failed")
        headers = message_headers("test-1", "baton.test.v1", BEGAN)
        message = Message("", "a", headers, b'{"hello": 1}')
        delivery = str(uuid_utils.uuid7())
        await store_deliveries.add_test(log.connection, id, delivery, message, BEGAN)
        await receiver.until(lambda: receiver.taken, "the test event", WITHIN_S)
        (request,) = receiver.taken
        assert (request.path, request.id, request.event["data"]) == (
            "/this",
            "test-1",
            {"hello": 1},
        )
        assert "position" not in request.event
        await until_in(
            log.connection,
            "SELECT state = 'delivered' FROM stage.deliveries WHERE id = $1",
            delivery,
        )


async def test_when_it_is_ordered_no_more_nothing_waits(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(log.connection, receiver.url)
        bad, *others = [transition("a", n) for n in range(1, 5)]
        receiver.react = failing(bad.id)
        await log.put(bad, *others)
        await until_in(log.connection, "SELECT count(*) = 4 FROM stage.deliveries")
        await change(log.connection, id, ordered=False)
        await until_in(log.connection, DELIVERED, id, 3, within_s=5)
        assert sorted(ids_of(receiver.taken)) == sorted(each.id for each in others)
