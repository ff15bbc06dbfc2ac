"""Which process delivers for which subscription: the locks of the one session that it delivers by.

A subscription's advisory lock is held by this session, and every result is written on it (`store_session`): a
process that lost its session can write nothing, and what it held is free. Sessions that say nothing are ended
by the server (`SESSION`), so a process that was stopped without dying does not keep its subscriptions.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from services.contracts.database import STEADY_PLANS
from services.stage_service.subscriptions.store_deliveries import CHANNEL, Connection

SESSION = {
    "application_name": "baton-subscriptions",
    "idle_session_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
    **STEADY_PLANS,
}
_SUBSCRIPTION_LOCKS = 0x62617375  # 'basu'
_MEMBERS_LOCK = 0x6261736D  # 'basm'
_REFUSED_LOCKS = 0x62617372  # 'basr'
"""Shared, by those who tried a subscription and cannot deliver for it."""

_LOOK = """
SELECT s.id::text, s.version, c.run, c.position,
  (SELECT min(next_at) FROM stage.deliveries d WHERE d.subscription_id = s.id AND d.state = 'due') AS due_at
FROM stage.subscriptions s JOIN stage.subscription_cursors c ON c.subscription_id = s.id
WHERE s.state = 'active' AND s.deleted_at IS NULL
"""
_LOCKS = """
SELECT classid::bigint AS class, objid::bigint AS key FROM pg_locks
WHERE locktype = 'advisory' AND granted AND classid = ANY($1::bigint[]::oid[]) AND objsubid = 2
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@dataclass(slots=True)
class Seen:
    """An active subscription as the last look found it."""

    id: str
    version: int
    run: int
    position: int
    due_at: datetime | None


@dataclass(slots=True)
class Look:
    """What a look found: processes that deliver, lock keys that are held, active subscriptions.

    `refused`: lock keys of those that some process cannot deliver for.
    """

    members: int
    locked: set[int]
    refused: set[int]
    active: list[Seen]


async def open_session(database_url: str, told: Any) -> asyncpg.Connection[Any]:
    """Connect as a member of those who deliver; `told` is called when something was changed by hand."""
    connection = await asyncpg.connect(
        database_url, timeout=5, command_timeout=10, server_settings=SESSION
    )
    try:
        await connection.execute("SELECT pg_advisory_lock_shared($1, 0)", _MEMBERS_LOCK)
        await connection.add_listener(CHANNEL, told)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def look(connection: Connection) -> Look:
    """Look at who delivers, what is delivered, and what is to be delivered."""
    locks = await connection.fetch(_LOCKS, [_MEMBERS_LOCK, _SUBSCRIPTION_LOCKS, _REFUSED_LOCKS])
    rows = await connection.fetch(_LOOK)
    return Look(
        sum(lock["class"] == _MEMBERS_LOCK for lock in locks),
        {_signed(lock["key"]) for lock in locks if lock["class"] == _SUBSCRIPTION_LOCKS},
        {_signed(lock["key"]) for lock in locks if lock["class"] == _REFUSED_LOCKS},
        [Seen(*row.values()) for row in rows],
    )


def _signed(key: int) -> int:
    return key - 2**32 if key >= 2**31 else key


def lock_key(subscription_id: str) -> int:
    """Give the advisory lock's second key of a subscription. Two that share one are always one process's."""
    return zlib.crc32(subscription_id.encode()) - 2**31


async def claim(connection: Connection, subscription_ids: Sequence[str]) -> list[str]:
    """Take the locks of those that nobody holds; gives which."""
    rows = await connection.fetch(
        "SELECT id, pg_try_advisory_lock($1, key) AS held FROM unnest($2::text[], $3::int[]) AS s (id, key)",
        _SUBSCRIPTION_LOCKS, list(subscription_ids), [lock_key(id) for id in subscription_ids],
    )  # fmt: skip
    return [row["id"] for row in rows if row["held"]]


async def release(connection: Connection, subscription_id: str) -> None:
    """Let a subscription go."""
    await connection.execute(
        "SELECT pg_advisory_unlock($1, $2)", _SUBSCRIPTION_LOCKS, lock_key(subscription_id)
    )


async def refuse(connection: Connection, subscription_id: str) -> None:
    """Say, for as long as the session lasts, that this process cannot deliver for a subscription."""
    await connection.execute(
        "SELECT pg_advisory_lock_shared($1, $2)", _REFUSED_LOCKS, lock_key(subscription_id)
    )


async def refuse_no_more(connection: Connection, subscription_id: str) -> None:
    """Take back what `refuse` said."""
    await connection.execute(
        "SELECT pg_advisory_unlock_shared($1, $2)", _REFUSED_LOCKS, lock_key(subscription_id)
    )
