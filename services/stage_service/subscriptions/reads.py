"""Reading subscriptions: as whoever delivers needs them, and as people see them, with their health.

Functions take asyncpg's connection or pool. Ids are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import Message
from services.contracts.postgres_log import Executor
from services.stage_service.encryption import Cipher, EncryptionError
from services.stage_service.subscriptions.secrets import open_values
from services.stage_service.subscriptions.store_deliveries import message_of_test
from services.stage_service.subscriptions.subscription import Payload, State, Subscription

PAGE_MAX = 200
RECENT = 1000
"""Deliveries that the numbers of the health are taken from: the newest."""
PENDING_MAX = 100_000
"""Counted no further."""

COLUMNS = """s.id::text, s.name, s.connector, s.url, s.types, s.filter, s.payload, s.ordered, s.headers,
 s.credentials, s.config, s.contact, s.timeout_s, s.concurrency, s.rate_per_s, s.state, s.state_reason,
 s.state_at, s.failing_since, s.version, s.created_at, s.created_by, s.updated_at"""

_LIST = f"""
SELECT {COLUMNS}, c.position, c.run, c.moved_at, log.last,
  p.pending, p.next_at, p.oldest_at, r.recent, r.last_success_at
FROM stage.subscriptions s
JOIN stage.subscription_cursors c ON c.subscription_id = s.id
CROSS JOIN (SELECT coalesce(max(position), 0) AS last FROM bus.log) AS log
CROSS JOIN LATERAL (
  SELECT count(*) AS pending, min(next_at) AS next_at, min(created_at) AS oldest_at FROM (
    SELECT next_at, created_at FROM stage.deliveries d
    WHERE d.subscription_id = s.id AND d.state IN ('waiting', 'due') LIMIT {PENDING_MAX}) AS open) AS p
CROSS JOIN LATERAL (
  SELECT jsonb_object_agg(state, n) AS recent,
    max(last) FILTER (WHERE state = 'delivered') AS last_success_at FROM (
    SELECT state, count(*) AS n, max(done_at) AS last FROM (
      SELECT state, done_at FROM stage.deliveries d
      WHERE d.subscription_id = s.id ORDER BY id DESC LIMIT {RECENT}) AS newest
    GROUP BY state) AS by_state) AS r
WHERE s.deleted_at IS NULL AND ($1::uuid IS NULL OR s.id = $1) AND ($2::uuid IS NULL OR s.id < $2)
  AND ($3::text IS NULL OR s.state = $3)
ORDER BY s.id DESC LIMIT $4
"""  # noqa: S608

_DELIVERY = """d.id::text, d.position, d.run, d.event_id, d.event_type, d.lead_id, d.state, d.tries,
 d.attempts, d.next_at, d.created_at, d.done_at"""

_DELIVERIES = f"""
SELECT {_DELIVERY} FROM stage.deliveries d
WHERE d.subscription_id = $1::uuid AND ($2::text IS NULL OR d.state = $2)
  AND ($3::text IS NULL OR d.lead_id = $3) AND ($4::text IS NULL OR d.event_type = $4)
  AND ($5::timestamptz IS NULL OR d.created_at >= $5) AND ($6::timestamptz IS NULL OR d.created_at < $6)
  AND ($7::uuid IS NULL OR d.id < $7)
ORDER BY d.id DESC LIMIT $8
"""  # noqa: S608

_ONE = f"""
SELECT {_DELIVERY}, d.body, o.key, o.headers, o.value
FROM stage.deliveries d
LEFT JOIN bus.log l ON l.position = d.position LEFT JOIN bus.outbox o ON o.id = l.outbox_id
WHERE d.subscription_id = $1::uuid AND d.id = $2::uuid
"""  # noqa: S608

_json = msgspec.json.decode


class Health(msgspec.Struct, frozen=True):
    """How a subscription fares.

    `position` is its place in the published log, `lag` how many messages (also such as are not for it) come
    after it. `pending` deliveries wait or are due, the first of them since `oldest_pending_at`, the next
    attempt is at `next_attempt_at`. `recent` counts its newest 1,000 deliveries by state;
    `last_success_at` is taken from them too.
    """

    position: int
    run: int
    lag: int
    pending: int
    oldest_pending_at: datetime | None
    next_attempt_at: datetime | None
    last_success_at: datetime | None
    failing_since: datetime | None
    recent: dict[str, int]


class Shown(msgspec.Struct, frozen=True):
    """A subscription as people see it: without its secrets, with its health."""

    id: str
    name: str
    connector: str | None
    url: str | None
    types: list[str]
    filter: str | None
    payload: Payload
    ordered: bool
    header_names: list[str] | None
    """None: they cannot be opened here."""
    credential_names: list[str] | None
    config: dict[str, Any]
    contact: str | None
    timeout_s: float
    concurrency: int
    rate_per_s: float | None
    state: State
    state_reason: str | None
    state_at: datetime
    version: int
    created_at: datetime
    created_by: str
    updated_at: datetime
    health: Health


class DeliveryShown(msgspec.Struct, frozen=True):
    """What became of one event for one subscription, with each attempt."""

    id: str
    event_id: str
    event_type: str
    lead_id: str | None
    """None for a test event."""
    position: int | None
    run: int
    state: str
    tries: int
    attempts: list[dict[str, Any]]
    next_at: datetime | None
    created_at: datetime
    done_at: datetime | None


class Wanted(msgspec.Struct, frozen=True):
    """Which deliveries are asked for; None: any."""

    state: str | None = None
    lead_id: str | None = None
    event_type: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def subscription_of(row: Any, cipher: Cipher) -> Subscription:
    """Make what delivers from a row with `COLUMNS`. Raises EncryptionError."""
    id = row["id"]
    return Subscription(
        id, row["name"], row["connector"], row["url"], tuple(row["types"]), row["filter"],
        row["payload"], row["ordered"], open_values(cipher, id, "headers", row["headers"]),
        open_values(cipher, id, "credentials", row["credentials"]), _json(row["config"]),
        row["contact"], row["timeout_s"], row["concurrency"], row["rate_per_s"], row["state"],
        row["version"],
    )  # fmt: skip


async def versions(connection: Executor) -> dict[str, int]:
    """Give the version of every subscription that is delivered to: what changed since is read again."""
    rows = await connection.fetch(
        """SELECT id::text, version FROM stage.subscriptions
           WHERE deleted_at IS NULL AND state = 'active'"""
    )
    return {row["id"]: row["version"] for row in rows}


async def subscription(connection: Executor, cipher: Cipher, id: str) -> Subscription | None:
    """Give one subscription, opened; None when it is not there. Raises EncryptionError."""
    rows = await connection.fetch(
        f"""SELECT {COLUMNS} FROM stage.subscriptions s
            WHERE s.id = $1::uuid AND s.deleted_at IS NULL""",  # noqa: S608
        id,
    )
    return subscription_of(rows[0], cipher) if rows else None


async def list_subscriptions(
    connection: Executor,
    cipher: Cipher,
    *,
    id: str | None = None,
    before: str | None = None,
    state: str | None = None,
    limit: int = PAGE_MAX,
) -> list[Shown]:
    """Give subscriptions as people see them, the newest first: those before the id `before`."""
    rows = await connection.fetch(_LIST, id, before, state, limit)
    return [_shown(row, cipher) for row in rows]


def _shown(row: Any, cipher: Cipher) -> Shown:
    health = Health(
        row["position"], row["run"], max(0, row["last"] - row["position"]), row["pending"],
        row["oldest_at"], row["next_at"], row["last_success_at"], row["failing_since"],
        _json(row["recent"]) if row["recent"] else {},
    )  # fmt: skip
    return Shown(
        row["id"], row["name"], row["connector"], row["url"], list(row["types"]), row["filter"],
        row["payload"], row["ordered"], _names(cipher, row, "headers"),
        _names(cipher, row, "credentials"), _json(row["config"]), row["contact"], row["timeout_s"],
        row["concurrency"], row["rate_per_s"], row["state"], row["state_reason"], row["state_at"],
        row["version"], row["created_at"], row["created_by"], row["updated_at"], health,
    )  # fmt: skip


def _names(cipher: Cipher, row: Any, column: Any) -> list[str] | None:
    try:
        return sorted(open_values(cipher, row["id"], column, row[column]))
    except EncryptionError:
        return None


async def list_deliveries(
    connection: Executor,
    subscription_id: str,
    wanted: Wanted,
    *,
    before: str | None = None,
    limit: int = 50,
) -> list[DeliveryShown]:
    """Give deliveries with their attempts, the newest first: those before the id `before`."""
    rows = await connection.fetch(
        _DELIVERIES, subscription_id, wanted.state, wanted.lead_id, wanted.event_type, wanted.since,
        wanted.until, before, limit,
    )  # fmt: skip
    return [_delivery(row) for row in rows]


async def get_delivery(
    connection: Executor, subscription_id: str, id: str
) -> tuple[DeliveryShown, Message | None] | None:
    """Give one delivery and the event it carries; None when it is not there.

    The event is None when the log does not reach back to it any more.
    """
    rows = await connection.fetch(_ONE, subscription_id, id)
    if not rows:
        return None
    row = rows[0]
    message: Message | None = None
    if row["body"] is not None:
        message = message_of_test(row["body"])
    elif row["value"] is not None:
        message = Message("", row["key"], _json(row["headers"]), row["value"], row["position"])
    return _delivery(row), message


def _delivery(row: Any) -> DeliveryShown:
    return DeliveryShown(
        row["id"], row["event_id"], row["event_type"],
        None if row["position"] is None else row["lead_id"], row["position"], row["run"],
        row["state"], row["tries"], _json(row["attempts"]), row["next_at"], row["created_at"],
        row["done_at"],
    )  # fmt: skip


async def position_before(connection: Executor, moment: datetime) -> int:
    """Give the last position of the log that was published before `moment` (0: there is none).

    Positions are gapless and published in order, so halving finds it without an index on the time.
    """
    rows = await connection.fetch(
        "SELECT coalesce(min(position), 1) AS first, coalesce(max(position), 0) AS last FROM bus.log"
    )
    low, high = rows[0]["first"] - 1, rows[0]["last"]
    while low < high:
        middle = (low + high + 1) // 2
        found = await connection.fetch(
            "SELECT published_at < $2 AS earlier FROM bus.log WHERE position = $1", middle, moment
        )
        if found and found[0]["earlier"]:
            low = middle
        else:
            high = middle - 1
    return low


async def last_position(connection: Executor) -> int:
    """Give the last position of the log."""
    rows = await connection.fetch("SELECT coalesce(max(position), 0) AS last FROM bus.log")
    return rows[0]["last"]


def page_of(items: Sequence[Any], limit: int) -> tuple[list[Any], str | None]:
    """Give at most `limit` of `items`, of which one more was asked for, and the cursor to go on from."""
    kept = list(items[:limit])
    return kept, kept[-1].id if len(items) > limit and kept else None
