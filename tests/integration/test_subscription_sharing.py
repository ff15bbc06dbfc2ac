"""Processes share the subscriptions, take over from one another, and stop; nothing is lost by that."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import replace

import asyncpg
import structlog
from aiohttp import web
from yarl import URL

from services.stage_service.conditions import TypeName
from services.stage_service.encryption import Cipher
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.subscriptions import shares, store_deliveries
from services.stage_service.subscriptions.dispatcher import OPEN_AGAIN_S
from tests.conftest import ROOT
from tests.fakes.clock import BEGAN
from tests.integration.receiver import Request, answering, receiving
from tests.integration.subscribing import (
    REFUSED,
    Log,
    change,
    check_order,
    delivering,
    held,
    log,
    settled,
    subscribe,
    until_in,
)

__all__ = ["log"]


def with_lead(**more: TypeName) -> Playbook:
    """The sales playbook with these attributes of leads besides its own."""
    declared = parse_playbook((ROOT / "playbooks" / "sales.yaml").read_text("utf-8"), "sales.yaml")
    lead = {**declared.attributes["lead"], **more}
    return replace(declared, attributes={**declared.attributes, "lead": lead})


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
    assert "idle_session_timeout" in shares.SESSION
    assert await shares.claim(stuck, [id]) == [id]
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
                await store_deliveries.replay(log.connection, id, 2, BEGAN)
                await receiver.until(lambda: len(receiver.taken) == 2, "what is left", 15.0)
        reasons = [e["reason"] for e in logs if e["event"] == "subscription.cannot_deliver"]
        assert reasons == [
            "it is at position 0, and the log begins at 3: what lies between is gone. "
            "Replay it from 2 to go on without"
        ]
