"""What people do to subscriptions is seen within a second; processes share them, die, and stop."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import structlog
import uuid_utils
from aiohttp import web
from yarl import URL

from services.contracts.events import Message, message_headers
from services.stage_service.conditions import TypeName
from services.stage_service.encryption import Cipher
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.pulse import Pulse
from services.stage_service.subscriptions import store_deliveries, store_session
from services.stage_service.subscriptions.addresses import allowed_from
from services.stage_service.subscriptions.courses import Courses
from services.stage_service.subscriptions.dispatcher import OPEN_AGAIN_S, Dispatcher
from services.stage_service.subscriptions.pace import Pace
from services.stage_service.subscriptions.recorder import Recorder
from services.stage_service.subscriptions.sender import Sender
from services.stage_service.subscriptions.store_session import Record
from services.stage_service.subscriptions.tail import Tail
from services.stage_service.subscriptions.window import Delivery, Window
from tests.conftest import ROOT
from tests.integration.subscribing import (
    CIPHER,
    Clock,
    Log,
    Request,
    change,
    delivering,
    receiving,
    rows_of,
    subscribe,
    transition,
    until_in,
)
from tests.integration.test_subscriptions import (
    DELIVERED,
    answering,
    check_order,
    failing,
    ids_of,
    settled,
)

REFUSED = """SELECT count(DISTINCT objid) = $1 FROM pg_locks
WHERE locktype = 'advisory' AND classid = x'62617372'::int::oid
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
"""What processes said that they cannot deliver for."""
WITHIN_S = 1.5
"""A second, and what this machine is busy with."""


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[Log]:
    """The log of this test."""
    connection = await asyncpg.connect(database_url)
    yield Log(connection)
    await connection.close()


async def held(dispatcher: Dispatcher, count: int, within_s: float = 10.0) -> None:
    """Wait until `dispatcher` holds `count` subscriptions."""
    deadline = time.monotonic() + within_s
    while len(dispatcher.held) != count:
        assert time.monotonic() < deadline, f"{len(dispatcher.held)} held, not {count}"
        await asyncio.sleep(0.01)


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
        await change(log.connection, id, deleted_at=datetime.now(UTC))
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


def with_lead(**more: TypeName) -> Playbook:
    """The sales playbook with these attributes of leads besides its own."""
    declared = parse_playbook((ROOT / "playbooks" / "sales.yaml").read_text("utf-8"), "sales.yaml")
    lead = {**declared.attributes["lead"], **more}
    return replace(declared, attributes={**declared.attributes, "lead": lead})


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


async def test_what_all_refused_is_shared_again_when_playbooks_suit_it(
    database_url: str, log: Log
) -> None:
    """Also when one process learns of the playbook before the others, and takes everything."""
    lacking, suiting = {"sales": with_lead()}, {"sales": with_lead(size="int")}
    known = [suiting] * 3
    refusals = REFUSED.replace("count(DISTINCT objid)", "count(*)")
    ids = [
        await subscribe(log.connection, "http://127.0.0.1:1/", filter="lead.size > 5", name=f"s{n}")
        for n in range(15)
    ]
    async with AsyncExitStack() as stack:
        three = [
            await stack.enter_async_context(
                delivering(database_url, playbooks=lambda n=n: known[n])
            )
            for n in range(3)
        ]
        for each in three:
            await held(each, 5)
        known[:] = [lacking] * 3
        await until_in(log.connection, refusals, 45)
        known[0] = suiting
        await held(three[0], 15)
        known[:] = [suiting] * 3
        await until_in(log.connection, refusals, 0, within_s=OPEN_AGAIN_S / 2)
        for each in three:
            await held(each, 5)
        assert sorted(id for each in three for id in each.held) == sorted(ids)


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
        assert not await store_deliveries.resend(log.connection, id, other, datetime.now(UTC))
        assert not await store_deliveries.resend(
            log.connection, other, str(row["id"]), datetime.now(UTC)
        )


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
        moment = datetime.now(UTC)
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
        run = await store_deliveries.replay(log.connection, id, 0, datetime.now(UTC))
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
        assert await store_deliveries.replay(log.connection, id, 10**9, datetime.now(UTC)) == 2
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
        assert await store_deliveries.skip(log.connection, id, str(row["id"]), datetime.now(UTC))
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
        headers = message_headers("test-1", "baton.test.v1", datetime.now(UTC))
        message = Message("", "a", headers, b'{"hello": 1}')
        delivery = str(uuid_utils.uuid7())
        await store_deliveries.add_test(log.connection, id, delivery, message, datetime.now(UTC))
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


async def test_processes_share_fairly_and_follow_each_other(database_url: str, log: Log) -> None:
    """Three share ten; when one loses its session for good, the others have all within two seconds."""
    ids = [await subscribe(log.connection, "http://127.0.0.1:1/", name=f"s{n}") for n in range(10)]
    async with AsyncExitStack() as stack:
        role = f"lost_{uuid.uuid4().hex}"
        await log.connection.execute(f"CREATE ROLE {role} SUPERUSER LOGIN")
        stack.push_async_callback(log.connection.execute, f"DROP ROLE {role}")
        as_role = str(URL(database_url).with_user(role))
        first = await stack.enter_async_context(delivering(as_role))
        await held(first, 10)
        second = await stack.enter_async_context(delivering(database_url))
        await held(first, 5)
        await held(second, 5)
        third = await stack.enter_async_context(delivering(database_url))
        await held(first, 4)
        await held(third, 2)
        all_of_them = [*first.held, *second.held, *third.held]
        assert sorted(all_of_them) == sorted(ids)
        # As by kill -9: its sessions end at once, and it does not come back.
        await log.connection.execute(f"ALTER ROLE {role} NOLOGIN")
        await log.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role
        )
        await held(second, 5, 2.0)
        await held(third, 5, 2.0)
        assert sorted([*second.held, *third.held]) == sorted(ids)
        await held(first, 0)


async def test_another_takes_over_within_two_seconds_and_nothing_is_lost(
    database_url: str, log: Log
) -> None:
    """The session of whoever delivers is ended again and again, in the middle of it."""
    async with receiving() as receiver, AsyncExitStack() as stack:
        for number in range(4):
            await subscribe(log.connection, f"{receiver.url}/{number}")
        for _ in range(2):
            await stack.enter_async_context(delivering(database_url))
        for round_ in range(6):
            await log.publish(*[f"lead-{n % 7}" for n in range(100)])
            await log.connection.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name = 'baton-subscriptions' AND datname = current_database()
                   LIMIT 1"""
            )
            before = time.monotonic()
            wanted = 400 * (round_ + 1)
            await receiver.until(
                lambda wanted=wanted: len({(r.path, r.id) for r in receiver.taken}) == wanted,
                "all of this round", 20,
            )  # fmt: skip
            assert time.monotonic() - before < 10
        for number in range(4):
            seen: dict[str, dict[str, None]] = {}
            for request in receiver.taken:
                if request.path == f"/{number}":
                    seen.setdefault(request.event["subject"], {})[request.id] = None
            assert {lead: list(of) for lead, of in seen.items()} == log.ids


async def test_a_process_that_stopped_without_dying_loses_its_subscriptions(
    database_url: str, log: Log
) -> None:
    """As by SIGSTOP: the session says nothing any more, and the server ends it."""
    id = await subscribe(log.connection, "http://127.0.0.1:1/")
    stuck = await asyncpg.connect(
        database_url,
        server_settings={"application_name": "stuck", "idle_session_timeout": "300ms"},
    )
    assert "idle_session_timeout" in store_session.SESSION
    assert await store_session.claim(stuck, [id]) == [id]
    async with delivering(database_url) as dispatcher:
        await held(dispatcher, 1)
    stuck.terminate()


async def test_a_stop_waits_for_no_hanging_endpoint(database_url: str, log: Log) -> None:
    async with receiving() as receiver:
        never = asyncio.Event()

        async def hang(_: Request) -> web.Response:
            await never.wait()
            return web.Response()

        receiver.react = hang
        async with delivering(database_url):
            await subscribe(log.connection, receiver.url, timeout_s=60.0)
            await log.publish(*[f"lead-{n}" for n in range(20)])
            await receiver.until(lambda: len(receiver.requests) == 8, "all hang")
            before = time.monotonic()
        assert time.monotonic() - before < 6
        never.set()
        receiver.react = answering(200)
        async with delivering(database_url):
            await receiver.until(lambda: len({r.id for r in receiver.taken}) == 20, "all")


async def test_a_clean_stop_repeats_nothing(database_url: str, log: Log) -> None:
    async with receiving() as receiver:
        await subscribe(log.connection, receiver.url)
        for _ in range(3):
            async with delivering(database_url):
                await log.publish(*[f"lead-{n}" for n in range(50)])
                await receiver.until(lambda: receiver.taken, "some")
        async with delivering(database_url):
            await receiver.until(lambda: len({r.id for r in receiver.taken}) == 150, "all")
        assert len(receiver.taken) == 150
        check_order(receiver, log)


async def test_one_that_cannot_be_opened_holds_up_nobody(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        await subscribe(log.connection, None, connector="no-such-crm")
        await subscribe(log.connection, receiver.url, filter="this is no filter", name="bad")
        await subscribe(log.connection, "http://[::1", name="stored by no version that checks")
        await subscribe(log.connection, receiver.url)
        await log.publish("a")
        await receiver.until(lambda: receiver.taken, "the good one's")
        await settled()
        assert len(receiver.taken) == 1


async def test_what_one_process_cannot_open_another_delivers(database_url: str, log: Log) -> None:
    """One lacks the key of the secrets: the other delivers for all, on top of what would be its share."""
    no_key = Cipher([bytes(range(32))])
    async with receiving() as receiver, delivering(database_url, cipher=no_key) as blind:
        ids = [await subscribe(log.connection, receiver.url) for _ in range(3)]
        bad = await subscribe(log.connection, receiver.url, filter="this is no filter")
        await until_in(log.connection, REFUSED, 4)
        assert blind.held == frozenset()
        async with delivering(database_url) as seeing:
            await held(seeing, 3)
            await log.publish("a")
            await receiver.until(lambda: len(receiver.taken) == 3, "each of them once")
            assert seeing.held == frozenset(ids)
            for id in (*ids, bad):
                await change(log.connection, id, state="paused")
            await until_in(log.connection, REFUSED, 0)


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


async def test_what_was_done_long_ago_is_forgotten_and_what_is_open_is_not(
    database_url: str, log: Log
) -> None:
    """By the moment in a delivery's id."""
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(log.connection, receiver.url)
        bad = transition("b", 1)
        receiver.react = failing(bad.id)
        await log.put(transition("a", 1), bad, transition("c", 1))
        await until_in(log.connection, DELIVERED, id, 2)
        await until_in(log.connection, "SELECT count(*) = 3 FROM stage.deliveries")
    early, late = (uuid.UUID(int=n << 80) for n in (1, 2**47))
    assert await store_session.prune(log.connection, id, str(early)) == 0
    assert await store_session.prune(log.connection, id, str(late)) == 2
    (row,) = await rows_of(log.connection, id)
    assert row["event_id"] == bad.id


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


async def put_row(log: Log, id: str, position: int, state: str, lead: str = "a") -> str:
    """Make a delivery's row; gives its id."""
    moment = datetime.now(UTC) - timedelta(seconds=1)
    made = str(uuid.UUID(int=position))
    await log.connection.execute(
        """INSERT INTO stage.deliveries (id, subscription_id, run, position, event_id, event_type, lead_id,
             state, next_at, created_at)
           VALUES ($1, $2, 0, $3, 'e', 't', $4, $5, CASE WHEN $5 = 'due' THEN $6::timestamptz END, $6)""",
        made, id, position, lead, state, moment,
    )  # fmt: skip
    return made


async def test_nothing_comes_along_past_one_that_is_due_itself(database_url: str, log: Log) -> None:
    """As when two of a lead were resent while a third waits."""
    id = await subscribe(log.connection, "http://127.0.0.1:1/")
    await log.publish("a", "a", "a", "b", "b")
    for position, state in enumerate(("due", "due", "waiting"), 1):
        await put_row(log, id, position, state)
    for position, state in enumerate(("due", "waiting"), 4):
        await put_row(log, id, position, state, "b")
    found = await store_session.due(log.connection, [(id, 10, True, False)], [], datetime.now(UTC))
    assert [delivery.position for _, delivery, _ in found] == [1, 4, 5]


async def test_it_recovers_again_while_that_it_recovered_is_being_recorded(
    database_url: str, log: Log
) -> None:
    """What failed in between is due at once too."""
    id = await subscribe(log.connection, "http://127.0.0.1:1/")
    now = datetime.now(UTC)
    news: list[None] = []
    recorder = Recorder(lambda: now, lambda: news.append(None))
    async with asyncpg.create_pool(database_url, min_size=1, max_size=2) as pool:
        courses = Courses(CIPHER, dict, allowed_from("127.0.0.0/8"))
        course = await courses.open(log.connection, id, now)
        assert course is not None
        pace = Pace(8, None, None, now.timestamp(), lambda: 0.5)
        sender = Sender(
            course, 0, Window(0, ordered=True), pace, Tail(pool, Pulse(database_url)), recorder,
            lambda: now, lambda: 0.5,
        )  # fmt: skip
        sender.recovered = True
        async with pool.acquire() as busy, pool.acquire() as connection:
            async with busy.transaction():
                await busy.execute("SELECT 1 FROM stage.subscription_cursors FOR UPDATE")
                writing = asyncio.create_task(recorder.flush(connection, {id: sender}))
                await until_in(
                    log.connection, "SELECT count(*) = 1 FROM pg_stat_activity WHERE "
                    "datname = current_database() AND wait_event_type = 'Lock'",
                )  # fmt: skip
                row = Delivery(str(uuid_utils.uuid7()), transition("a", 1), 1, "a", 0)
                row.created_at = now
                later = now + timedelta(hours=5)
                recorder.note(Record(id, row, "due", later, None, [], False))
                sender.recovered = True
            await writing
            await recorder.flush(connection, {id: sender})
        await sender.cut_off()
    (found,) = await rows_of(log.connection, id)
    assert found["next_at"] == now


async def test_where_the_log_was_cut_off_nothing_is_skipped_silently(
    database_url: str, log: Log
) -> None:
    """Baton deletes nothing of the log; where somebody did, it waits until it is told to go on without."""
    async with receiving() as receiver:
        id = await subscribe(log.connection, receiver.url)
        await log.publish("a", "a", "a", "b")
        await log.connection.execute("DELETE FROM bus.log WHERE position <= 2")
        with structlog.testing.capture_logs() as logs:
            async with delivering(database_url):
                await until_in(log.connection, REFUSED, 1)
                await settled()
                assert receiver.requests == []
                await store_deliveries.replay(log.connection, id, 2, datetime.now(UTC))
                await receiver.until(lambda: len(receiver.taken) == 2, "what is left", 15.0)
        reasons = [e["reason"] for e in logs if e["event"] == "subscription.cannot_deliver"]
        assert reasons == [
            "it is at position 0, and the log begins at 3: what lies between is gone. "
            "Replay it from 2 to go on without"
        ]


async def test_what_was_skipped_at_that_moment_is_not_made_due(database_url: str, log: Log) -> None:
    id = await subscribe(log.connection, "http://127.0.0.1:1/")
    made = await put_row(log, id, 1, "waiting")
    other = await asyncpg.connect(database_url)
    async with log.connection.transaction():
        await log.connection.execute("UPDATE stage.deliveries SET state = 'skipped'")
        opening = asyncio.create_task(store_session.open_leads(other, id, datetime.now(UTC)))
        waits = """SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        await until_in(log.connection, waits)
    await opening
    await other.close()
    state = await log.connection.fetchval("SELECT state FROM stage.deliveries WHERE id = $1", made)
    assert state == "skipped"


async def test_nothing_is_kept_for_ever_of_what_nobody_delivers_for(
    database_url: str, log: Log
) -> None:
    ids = [await subscribe(log.connection, "http://127.0.0.1:1/", name=f"s{n}") for n in range(3)]
    await change(log.connection, ids[1], state="paused")
    await change(log.connection, ids[2], deleted_at=datetime.now(UTC))
    assert sorted(await store_session.at_rest(log.connection)) == sorted(ids[1:])
    late = str(uuid.UUID(int=2**127))
    for number, (id, deleted) in enumerate(((ids[1], 1), (ids[2], 2))):
        await put_row(log, id, 2 * number + 1, "failed")
        await put_row(log, id, 2 * number + 2, "waiting")
        assert await store_session.prune(log.connection, id, late) == deleted
