"""Rows of deliveries on real PostgreSQL: what is due, what waits, and what is forgotten."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

import asyncpg
import uuid_utils

from services.stage_service.pulse import Pulse
from services.stage_service.subscriptions import store_session
from services.stage_service.subscriptions.addresses import allowed_from
from services.stage_service.subscriptions.courses import Courses
from services.stage_service.subscriptions.pace import Pace
from services.stage_service.subscriptions.recorder import Recorder
from services.stage_service.subscriptions.sender import Sender
from services.stage_service.subscriptions.store_session import Record
from services.stage_service.subscriptions.tail import Tail
from services.stage_service.subscriptions.window import Delivery, Window
from tests.fakes.clock import BEGAN
from tests.integration.receiver import failing, receiving
from tests.integration.subscribing import (
    CIPHER,
    DELIVERED,
    Log,
    change,
    delivering,
    log,
    rows_of,
    subscribe,
    transition,
    until_in,
)

__all__ = ["log"]


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


async def put_row(log: Log, id: str, position: int, state: str, lead: str = "a") -> str:
    """Make a delivery's row; gives its id."""
    moment = BEGAN - timedelta(seconds=1)
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
    found = await store_session.due(log.connection, [(id, 10, True, False)], [], BEGAN)
    assert [delivery.position for _, delivery, _ in found] == [1, 4, 5]


async def test_it_recovers_again_while_that_it_recovered_is_being_recorded(
    database_url: str, log: Log
) -> None:
    """What failed in between is due at once too."""
    id = await subscribe(log.connection, "http://127.0.0.1:1/")
    now = BEGAN
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


async def test_what_was_skipped_at_that_moment_is_not_made_due(database_url: str, log: Log) -> None:
    id = await subscribe(log.connection, "http://127.0.0.1:1/")
    made = await put_row(log, id, 1, "waiting")
    other = await asyncpg.connect(database_url)
    async with log.connection.transaction():
        await log.connection.execute("UPDATE stage.deliveries SET state = 'skipped'")
        opening = asyncio.create_task(store_session.open_leads(other, id, BEGAN))
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
    await change(log.connection, ids[2], deleted_at=BEGAN)
    assert sorted(await store_session.at_rest(log.connection)) == sorted(ids[1:])
    late = str(uuid.UUID(int=2**127))
    for number, (id, deleted) in enumerate(((ids[1], 1), (ids[2], 2))):
        await put_row(log, id, 2 * number + 1, "failed")
        await put_row(log, id, 2 * number + 2, "waiting")
        assert await store_session.prune(log.connection, id, late) == deleted
