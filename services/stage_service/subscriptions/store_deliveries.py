"""What people do to deliveries, as SQL: resend, replay, skip, send a test. Whoever delivers notices at once.

Every function locks the subscription's cursor before it looks, as whoever records results does: neither
works on what the other is about to change. Each runs in a transaction of its own, or in the caller's.
`connection` is asyncpg's; ids are text; `now` is aware.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeAlias

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from services.contracts.events import Message
from services.contracts.postgres_log import Executor

CHANNEL = "baton_subscriptions"
"""Notified whenever a subscription or its deliveries were changed by hand; the payload is its id."""
TEST_TOPIC = "baton.tests"

Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"
"""asyncpg's connection, also as a pool lends it."""

_LOCK = "SELECT run FROM stage.subscription_cursors WHERE subscription_id = $1::uuid FOR UPDATE"

PROMOTE = """
WITH leads AS (SELECT DISTINCT * FROM unnest($1::uuid[], $2::text[]) AS l (subscription_id, lead_id)),
heads AS (
  SELECT l.subscription_id, l.lead_id, first.id, first.state
  FROM leads l LEFT JOIN LATERAL (
    SELECT d.id, d.state FROM stage.deliveries d
    WHERE d.subscription_id = l.subscription_id AND d.lead_id = l.lead_id
      AND d.state IN ('waiting', 'due') ORDER BY d.position NULLS FIRST, d.run LIMIT 1) AS first ON true),
promoted AS (
  UPDATE stage.deliveries d SET state = 'due', next_at = $3 FROM heads h
  WHERE d.id = h.id AND h.state = 'waiting' AND d.state = 'waiting')
SELECT subscription_id::text, lead_id, id IS NOT NULL AS is_open, state = 'waiting' AS promoted FROM heads
"""
"""Makes the first open delivery of each lead due, if it still waits; tells which leads have one."""


async def notify(connection: Executor, subscription_id: str) -> None:
    """Tell whoever delivers that something of the subscription has changed."""
    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, subscription_id)


async def resend(
    connection: Connection, subscription_id: str, delivery_id: str, now: datetime
) -> bool:
    """Make one delivery due at once, whatever became of it; False when it is not there, or waits its turn."""
    async with connection.transaction():
        await connection.execute(_LOCK, subscription_id)
        found = await connection.fetchval(
            """UPDATE stage.deliveries SET state = 'due', next_at = $3, tries = 0, done_at = NULL
               WHERE id = $2::uuid AND subscription_id = $1::uuid AND state <> 'waiting' RETURNING id""",
            subscription_id, delivery_id, now,
        )  # fmt: skip
        if found is not None:
            await notify(connection, subscription_id)
        return found is not None


async def resend_failed(
    connection: Connection, subscription_id: str, since: datetime, until: datetime, now: datetime
) -> int:
    """Make all deliveries due that were given up and were first made from `since` to before `until`.

    Gives how many.
    """
    async with connection.transaction():
        await connection.execute(_LOCK, subscription_id)
        count = await connection.fetchval(
            """WITH again AS (
                 UPDATE stage.deliveries SET state = 'due', next_at = $4, tries = 0, done_at = NULL
                 WHERE subscription_id = $1::uuid AND state = 'failed'
                   AND created_at >= $2 AND created_at < $3 RETURNING 1)
               SELECT count(*) FROM again""",
            subscription_id, since, until, now,
        )  # fmt: skip
        if count:
            await notify(connection, subscription_id)
        return count


async def replay(
    connection: Connection, subscription_id: str, position: int, now: datetime
) -> int | None:
    """Deliver everything after `position` of the log (again); gives the number of the new run.

    What was open is skipped: the new run comes by it. A `position` past the end is the end. None: there is
    no such subscription.
    """
    async with connection.transaction():
        await connection.execute(_LOCK, subscription_id)
        run = await connection.fetchval(
            """UPDATE stage.subscription_cursors SET run = run + 1, moved_at = $3, position = greatest(0,
                 least($2, (SELECT coalesce(max(position), 0) FROM bus.log)))
               WHERE subscription_id = $1::uuid RETURNING run""",
            subscription_id, position, now,
        )  # fmt: skip
        if run is not None:
            await connection.execute(
                """UPDATE stage.deliveries SET state = 'skipped', next_at = NULL, done_at = $2
                   WHERE subscription_id = $1::uuid AND state IN ('waiting', 'due')
                     AND position IS NOT NULL""",
                subscription_id, now,
            )  # fmt: skip
            await notify(connection, subscription_id)
        return run


async def skip(
    connection: Connection, subscription_id: str, delivery_id: str, now: datetime
) -> bool:
    """Give one delivery up, so that the next of its lead goes out; False when it is not open or failed."""
    async with connection.transaction():
        await connection.execute(_LOCK, subscription_id)
        lead = await connection.fetchval(
            """UPDATE stage.deliveries SET state = 'skipped', next_at = NULL, done_at = $3
               WHERE id = $2::uuid AND subscription_id = $1::uuid
                 AND state IN ('waiting', 'due', 'failed') RETURNING lead_id""",
            subscription_id, delivery_id, now,
        )  # fmt: skip
        if lead is not None:
            await connection.execute(PROMOTE, [subscription_id], [lead], now)
            await notify(connection, subscription_id)
        return lead is not None


async def add_test(
    connection: Connection, subscription_id: str, id: str, message: Message, now: datetime
) -> None:
    """Deliver `message`, which is in no log, to this subscription only, as the delivery `id` (a UUIDv7).

    Its value must be JSON. It is nobody's turn: it neither waits for others nor holds them up.
    """
    body = msgspec.json.encode(
        {"key": message.key, "headers": message.headers, "value": msgspec.Raw(message.value)}
    )
    async with connection.transaction():
        await connection.execute(
            """INSERT INTO stage.deliveries (id, subscription_id, run, event_id, event_type, lead_id, body,
                 state, next_at, created_at)
               SELECT $2::uuid, $1::uuid, 0, $3, $4, $5, $6::jsonb, 'due', $7, $7""",
            subscription_id, id, message.id, message.type, f"test:{id}", body.decode(), now,
        )  # fmt: skip
        await notify(connection, subscription_id)


def message_of_test(body: str | bytes) -> Message:
    """Read a test event's message back from its delivery's body."""
    read = msgspec.json.decode(body, type=_TestBody)
    return Message(TEST_TOPIC, read.key, read.headers, bytes(read.value))


class _TestBody(msgspec.Struct, frozen=True):
    key: str
    headers: dict[str, str]
    value: msgspec.Raw
