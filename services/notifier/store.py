"""The SQL that writes and locks in the schema ``notifier``: alerts, deliveries, dead letters.

Every function is one step that may be repeated. Rows that several replicas may insert at once are
inserted in one order of their keys, so that replicas wait for each other but never deadlock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from services.contracts.events import Message
from services.contracts.postgres_log import Executor
from services.notifier.alerts import Alert

ACKNOWLEDGED = "acknowledged"
"""The reason of a delivery that was not sent because the alert had been seen."""

_encode = msgspec.json.encode
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


class DeadMessage(msgspec.Struct, frozen=True):
    """A message that could not be read, and why. `id` is its ``ce_id`` or a hash of it."""

    id: str
    message: Message
    reason: str


class Claim(msgspec.Struct, frozen=True):
    """One delivery that this process may attempt until `claimed_until`."""

    delivery_id: int
    alert_id: UUID
    channel: str
    attempt: int
    last_attempt: int
    claimed_until: datetime
    addressee_id: str | None
    subject: str
    body: str
    is_acknowledged: bool = False


class Saved(msgspec.Struct):
    """What is new: alerts by role, their deliveries that are still to be made, dead letters."""

    alerts: dict[str, int]
    pending: int
    letters: int


# One statement: an alert and its deliveries are there together, or were there before.
_INSERT = """
WITH made AS (
  INSERT INTO notifier.alerts (id, transition_id, recipient, lead_id, role, person_id, person_name,
    addressee_id, status, subject, body, stage, company, created_at)
  SELECT *, $14::timestamptz FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::uuid[], $5::text[],
    $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
    $13::text[])
  ON CONFLICT (transition_id, recipient) DO NOTHING
  RETURNING id, role),
delivered AS (
  INSERT INTO notifier.deliveries
    (alert_id, channel, attempt, last_attempt, status, due_at, finished_at, latency_ms, reason)
  SELECT d.alert_id, d.channel, 1, $18::int, d.status, $14,
    CASE WHEN d.status <> 'pending' THEN $14::timestamptz END,
    CASE WHEN d.status <> 'pending' THEN 0 END,
    CASE WHEN d.status = 'skipped' THEN $19 END
  FROM unnest($15::uuid[], $16::text[], $17::text[]) AS d (alert_id, channel, status)
    JOIN made ON made.id = d.alert_id)
SELECT role, count(*) AS alerts FROM made GROUP BY role
"""

_INSERT_DEAD = """
INSERT INTO notifier.dead_letters (topic, message_id, key, headers, value, reason, created_at)
SELECT *, $7::timestamptz
FROM unnest($1::text[], $2::text[], $3::text[], $4::jsonb[], $5::bytea[], $6::text[])
ON CONFLICT (topic, message_id, sha256(value)) DO NOTHING
RETURNING id
"""

_CLAIM = """
WITH due AS (
  SELECT id FROM notifier.deliveries
  WHERE status IN ('pending', 'claimed') AND coalesce(claimed_until, due_at) <= $1
  ORDER BY coalesce(claimed_until, due_at) LIMIT $3
  FOR UPDATE SKIP LOCKED),
claimed AS (
  UPDATE notifier.deliveries d SET status = 'claimed', claimed_until = $2
  FROM due WHERE d.id = due.id
  RETURNING d.id, d.alert_id, d.channel, d.attempt, d.last_attempt, d.claimed_until)
SELECT c.*, a.status, a.addressee_id, a.subject, a.body
FROM claimed c JOIN notifier.alerts a ON a.id = c.alert_id
"""

# The lease's end is the fence: whoever claimed the delivery after us has another one.
_FINISH = """
UPDATE notifier.deliveries SET status = $3, claimed_until = NULL, finished_at = $4, reason = $5,
  latency_ms = $6
WHERE id = $1 AND status = 'claimed' AND claimed_until = $2
RETURNING id
"""

_NEXT_ATTEMPT = """
INSERT INTO notifier.deliveries (alert_id, channel, attempt, last_attempt, status, due_at)
VALUES ($1, $2, $3, $4, 'pending', $5) ON CONFLICT (alert_id, channel, attempt) DO NOTHING
"""

# Delivered: by at least one channel, and none is still to come. Nobody reached: dead-lettered.
_SETTLE = """
UPDATE notifier.alerts a SET status = s.status
FROM (SELECT CASE WHEN count(*) FILTER (WHERE status IN ('pending', 'claimed')) > 0 THEN 'pending'
             WHEN count(*) FILTER (WHERE status = 'delivered') > 0 THEN 'delivered'
             ELSE 'dead_lettered' END AS status
      FROM notifier.deliveries WHERE alert_id = $1) s
WHERE a.id = $1 AND a.status <> 'acknowledged' AND a.status <> s.status
"""

# Who has seen the alert need not be told again. A delivery under way is left to end.
_CANCEL = """
UPDATE notifier.deliveries SET status = 'skipped', finished_at = $2, reason = $3, latency_ms = 0
WHERE alert_id = $1 AND status = 'pending'
"""

_LOCK_ALERT = "SELECT status FROM notifier.alerts WHERE id = $1 FOR UPDATE"

_ACKNOWLEDGE = """
UPDATE notifier.alerts SET status = 'acknowledged', acknowledged_at = $2, acknowledged_by = $3
WHERE id = $1 AND status <> 'acknowledged'
"""

# What ended undelivered becomes one failed attempt among others, and its channel begins anew.
_RETRY = """
WITH ended AS (
  UPDATE notifier.deliveries SET status = 'failed'
  WHERE alert_id = $1 AND status IN ('dead', 'skipped')
    AND NOT EXISTS (SELECT FROM notifier.alerts WHERE id = $1 AND status = 'acknowledged')
  RETURNING channel, attempt)
INSERT INTO notifier.deliveries (alert_id, channel, attempt, last_attempt, status, due_at)
SELECT $1, channel, max(attempt) + 1, max(attempt) + $3::int, 'pending', $2
FROM ended GROUP BY channel
RETURNING channel
"""


async def save(
    pool: asyncpg.Pool[Any],
    alerts: Sequence[Alert],
    dead: Sequence[DeadMessage],
    now: datetime,
    tries: int,
    no_mail: str | None = None,
) -> Saved:
    """Record `alerts` with their first deliveries, and `dead`, in one transaction.

    The inbox is delivered by being recorded. With `no_mail`, the reason why no e-mail can be sent,
    e-mail is recorded as skipped at once.

    What was recorded before stays as it is.
    """
    saved = Saved({}, 0, 0)
    async with pool.acquire() as connection:
        if not dead:  # one statement is a transaction by itself, without two more round trips
            await _save_alerts(connection, alerts, now, tries, no_mail, saved)
            return saved
        async with connection.transaction():
            await _save_alerts(connection, alerts, now, tries, no_mail, saved)
            saved.letters = await _save_dead(connection, dead, now)
    return saved


async def _save_alerts(
    connection: PoolConnectionProxy[Any],
    alerts: Sequence[Alert],
    now: datetime,
    tries: int,
    no_mail: str | None,
    saved: Saved,
) -> None:
    if not alerts:
        return
    rows = sorted(alerts, key=lambda a: (a.transition_id, a.recipient))
    settled = {"inbox": "delivered"} | ({"email": "skipped"} if no_mail else {})
    deliveries = [
        (a.id, channel, settled.get(channel, "pending")) for a in rows for channel in a.channels
    ]
    made = await connection.fetch(
        _INSERT,
        [a.id for a in rows],
        [a.transition_id for a in rows],
        [a.recipient for a in rows],
        [a.lead_id for a in rows],
        [a.role for a in rows],
        [a.person_id for a in rows],
        [a.person_name for a in rows],
        [a.addressee_id for a in rows],
        [_first_status(a.channels, settled) for a in rows],
        [a.subject for a in rows],
        [a.body for a in rows],
        [a.stage for a in rows],
        [a.company for a in rows],
        now,
        [id for id, _, _ in deliveries],
        [channel for _, channel, _ in deliveries],
        [status for _, _, status in deliveries],
        tries,
        no_mail,
    )
    saved.alerts = {r["role"]: r["alerts"] for r in made}
    saved.pending = sum(status == "pending" for _, _, status in deliveries)


async def _save_dead(
    connection: PoolConnectionProxy[Any], dead: Sequence[DeadMessage], now: datetime
) -> int:
    ordered = sorted(dead, key=lambda d: (d.message.topic, d.id))
    rows = await connection.fetch(
        _INSERT_DEAD,
        [d.message.topic for d in ordered],
        [d.id for d in ordered],
        [d.message.key for d in ordered],
        [_encode(d.message.headers).decode() for d in ordered],
        [d.message.value for d in ordered],
        [d.reason for d in ordered],
        now,
    )
    return len(rows)


def _first_status(channels: Sequence[str], settled: Mapping[str, str]) -> str:
    """Give the status of a new alert, of whose channels some are `settled` by being recorded."""
    if any(channel not in settled for channel in channels):
        return "pending"
    reached = any(settled[channel] == "delivered" for channel in channels)
    return "delivered" if reached else "dead_lettered"


async def claim(
    pool: asyncpg.Pool[Any], now: datetime, until: datetime, deliveries_max: int
) -> list[Claim]:
    """Take due deliveries, at most `deliveries_max`, for this process alone until `until`."""
    rows = await pool.fetch(_CLAIM, now, until, deliveries_max)
    return [
        Claim(
            r["id"], r["alert_id"], r["channel"], r["attempt"], r["last_attempt"],
            r["claimed_until"], r["addressee_id"], r["subject"], r["body"],
            r["status"] == ACKNOWLEDGED,
        )
        for r in rows
    ]  # fmt: skip


async def finish(
    pool: asyncpg.Pool[Any],
    claim: Claim,
    status: str,
    reason: str | None,
    latency_ms: int,
    now: datetime,
    next_due_at: datetime | None,
) -> bool:
    """Record how an attempt ended, the next attempt if `next_due_at`, and the alert's status.

    False: the lease ran out and another process has the delivery; nothing is changed then.
    """
    async with pool.acquire() as connection, connection.transaction():
        # Two channels of one alert may end at once: the alert's row makes them take turns.
        alert_status = await connection.fetchval(_LOCK_ALERT, claim.alert_id)
        finished = await connection.fetchval(
            _FINISH, claim.delivery_id, claim.claimed_until, status, now, reason, latency_ms
        )
        if finished is None:
            return False
        if next_due_at is not None and alert_status != ACKNOWLEDGED:
            await connection.execute(
                _NEXT_ATTEMPT, claim.alert_id, claim.channel, claim.attempt + 1,
                claim.last_attempt, next_due_at,
            )  # fmt: skip
        await connection.execute(_SETTLE, claim.alert_id)
    return True


async def acknowledge(pool: asyncpg.Pool[Any], id: UUID, by: str, now: datetime) -> None:
    """Record that `by` has seen the alert; the first acknowledgement stays. What is pending is skipped."""
    async with pool.acquire() as connection, connection.transaction():
        # The alert first, as whoever finishes a delivery does.
        await connection.execute(_ACKNOWLEDGE, id, now, by)
        await connection.execute(_CANCEL, id, now, ACKNOWLEDGED)


async def retry(
    pool: asyncpg.Pool[Any],
    id: UUID,
    now: datetime,
    tries: int,
    mark: Callable[[Executor], Awaitable[None]] | None = None,
) -> list[str]:
    """Begin anew on every channel of the alert that ended undelivered; gives their labels.

    Nothing is sent once the alert is acknowledged. `mark` records in the same transaction that it was done.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_LOCK_ALERT, id)
        rows = await connection.fetch(_RETRY, id, now, tries)
        await connection.execute(_SETTLE, id)
        if rows and mark is not None:
            await mark(connection)
    return [r["channel"] for r in rows]


async def dead_message(pool: asyncpg.Pool[Any], id: int) -> Message | None:
    """Give the message of dead letter `id`."""
    row = await pool.fetchrow(
        "SELECT topic, key, headers, value FROM notifier.dead_letters WHERE id = $1", id
    )
    if row is None:
        return None
    return Message(row["topic"], row["key"], _decode_headers(row["headers"]), row["value"])


async def mark_retried(pool: asyncpg.Pool[Any], id: int, now: datetime) -> None:
    """Record that dead letter `id` was read after all."""
    await pool.execute("UPDATE notifier.dead_letters SET retried_at = $2 WHERE id = $1", id, now)
