"""The SQL that writes and locks in the schema ``notifier``: alerts, deliveries, dead letters.

Every function is one step that may be repeated. Rows that several replicas may insert at once are
inserted in one order of their keys, so that replicas wait for each other but never deadlock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from services.contracts.audit import Actor, Note, record
from services.contracts.events import Message
from services.contracts.postgres_log import Executor
from services.notifier import handoffs
from services.notifier.alerts import Alert
from services.notifier.messages import HandoffNews

ACKNOWLEDGED = "acknowledged"
"""The reason of a delivery that was not sent because the alert had been seen."""

_encode = msgspec.json.encode
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


class DeadMessage(msgspec.Struct, frozen=True):
    """A message that could not be read, and why. `id` is its ``ce_id`` or a hash of it."""

    id: str
    message: Message
    reason: str


class Saved(msgspec.Struct):
    """What is new: alerts by role, their deliveries that are still to be made, dead letters."""

    alerts: dict[str, int]
    pending: int
    letters: int


# One statement: an alert, its deliveries and its escalation are there together, or were there before.
_ALERTS = """
WITH {noted}made AS (
  INSERT INTO notifier.alerts (id, transition_id, recipient, lead_id, role, person_id, person_name,
    addressee_id, status, subject, body, stage, company, journey_id, urgent, kind, handoff_id,
    can_answer, created_at)
  SELECT *, $16::timestamptz FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::uuid[], $5::text[],
    $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
    $13::text[], $14::text[], $15::boolean[], $29::text[], $30::uuid[], $31::boolean[])
    AS a (id, transition_id, recipient, lead_id, role, person_id, person_name, addressee_id, status,
      subject, body, stage, company, journey_id, urgent, kind, handoff_id, can_answer)
  {which}
  ON CONFLICT (transition_id, recipient) DO NOTHING
  RETURNING id, role, addressee_id),
delivered AS (
  INSERT INTO notifier.deliveries (alert_id, channel, attempt, last_attempt, status, due_at,
    addressee_id, why, gather, body, finished_at, latency_ms, reason)
  SELECT d.alert_id, d.channel, 1, $24::int, d.status, d.due_at, made.addressee_id, d.why, d.gather,
    d.body,
    CASE WHEN d.status <> 'pending' THEN $16::timestamptz END,
    CASE WHEN d.status <> 'pending' THEN 0 END,
    CASE WHEN d.status = 'skipped' THEN $25 END
  FROM unnest($17::uuid[], $18::text[], $19::text[], $20::timestamptz[], $21::text[], $22::boolean[],
      $23::text[]) AS d (alert_id, channel, status, due_at, why, gather, body)
    JOIN made ON made.id = d.alert_id),
waiting AS (
  INSERT INTO notifier.escalations (alert_id, after_s, due_at)
  SELECT e.alert_id, e.after_s, e.due_at
  FROM unnest($26::uuid[], $27::int[], $28::timestamptz[]) AS e (alert_id, after_s, due_at)
    JOIN made ON made.id = e.alert_id)
SELECT role, count(*) AS alerts FROM made GROUP BY role
"""
_INSERT = _ALERTS.format(noted="", which="")

# The handoffs that this batch offers are noted in the same statement, and locked, before any alert is made:
# counting them is done first. One that came back is not answered, so there is nothing to settle; who is about
# another is left out.
_OFFERED = "FROM noted WHERE state = 'offered'"
_LOCKED = "(SELECT count(*) FROM noted) >= 0"
_INSERT_OFFERED = f"""{
    _ALERTS.format(
        noted=f"noted AS ({handoffs.noting(32)} RETURNING id, state), ",
        which=f"WHERE {_LOCKED} AND (handoff_id IS NULL OR handoff_id IN (SELECT id {_OFFERED}))",
    )
} UNION ALL SELECT NULL, count(*) {_OFFERED}"""

_INSERT_DEAD = """
INSERT INTO notifier.dead_letters (topic, message_id, key, headers, value, reason, created_at)
SELECT *, $7::timestamptz
FROM unnest($1::text[], $2::text[], $3::text[], $4::jsonb[], $5::bytea[], $6::text[])
ON CONFLICT (topic, message_id, sha256(value)) DO NOTHING
RETURNING id
"""

# Delivered: by at least one channel, and none is still to come. Nobody reached: dead-lettered, unless it
# was meant so.
SETTLE = """
UPDATE notifier.alerts a SET status = s.status
FROM (SELECT alert_id,
        CASE WHEN count(*) FILTER (WHERE status IN ('pending', 'claimed')) > 0 THEN 'pending'
             WHEN count(*) FILTER (WHERE status = 'delivered') > 0 THEN 'delivered'
             WHEN count(*) FILTER (WHERE status = 'suppressed') > 0 THEN 'suppressed'
             ELSE 'dead_lettered' END AS status
      FROM notifier.deliveries WHERE alert_id = ANY($1) GROUP BY alert_id) s
WHERE a.id = s.alert_id AND a.status <> 'acknowledged' AND a.status <> s.status
"""

# Who has seen the alert need not be told again. A delivery under way is left to end.
_CANCEL = """
UPDATE notifier.deliveries SET status = 'skipped', finished_at = $2, reason = $3, latency_ms = 0
WHERE alert_id = $1 AND status = 'pending'
"""

# Whoever acknowledges an escalation answers for the alert it came from.
_END_ESCALATION = """
UPDATE notifier.escalations SET ended_at = $2, why = $3
WHERE ended_at IS NULL AND alert_id IN (
  SELECT coalesce(escalated_from, id) FROM notifier.alerts WHERE id = $1)
"""

_USE_LINK = (
    "INSERT INTO notifier.used_links (id, used_at) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING"
)

_LOCK_ALERT = "SELECT status, lead_id FROM notifier.alerts WHERE id = $1 FOR UPDATE"

_ACKNOWLEDGE = """
UPDATE notifier.alerts SET status = 'acknowledged', acknowledged_at = $2, acknowledged_by = $3
WHERE id = $1 AND status <> 'acknowledged'
"""

# What ended undelivered becomes one failed attempt among others, and its channel begins anew, unless it has
# something to come still.
_RETRY = """
WITH ended AS (
  UPDATE notifier.deliveries d SET status = 'failed'
  WHERE alert_id = $1 AND status IN ('dead', 'skipped')
    AND NOT EXISTS (SELECT FROM notifier.alerts WHERE id = $1 AND status = 'acknowledged')
    AND NOT EXISTS (SELECT FROM notifier.deliveries w WHERE w.alert_id = $1 AND w.channel = d.channel
      AND w.status IN ('pending', 'claimed'))
  RETURNING channel)
INSERT INTO notifier.deliveries (alert_id, channel, attempt, last_attempt, status, due_at,
  addressee_id, body)
SELECT $1, d.channel, max(d.attempt) + 1, max(d.attempt) + $3::int, 'pending', $2,
  (SELECT addressee_id FROM notifier.alerts WHERE id = $1), max(d.body)
FROM notifier.deliveries d
WHERE d.alert_id = $1 AND d.channel IN (SELECT channel FROM ended)
GROUP BY d.channel
RETURNING channel
"""


async def save(
    pool: asyncpg.Pool[Any],
    alerts: Sequence[Alert],
    dead: Sequence[DeadMessage],
    now: datetime,
    tries: int,
    no_mail: str | None = None,
    news: Sequence[HandoffNews] = (),
) -> Saved:
    """Record `alerts` with their first deliveries, `dead` and what is new of handoffs, in one transaction.

    The inbox is delivered by being recorded. With `no_mail`, the reason why no e-mail can be sent,
    e-mail is recorded as skipped at once.

    What was recorded before stays as it is; but an alert about a handoff that is answered is settled.
    """
    saved = Saved({}, 0, 0)
    async with pool.acquire() as connection:
        # One statement is a transaction by itself, without four more round trips.
        if not dead and not news:
            await _save_alerts(connection, alerts, now, tries, no_mail, saved)
            return saved
        offered = handoffs.rows_of(news) if not dead and _only_offer(alerts, news) else None
        if offered is not None and await _save_alerts(
            connection, alerts, now, tries, no_mail, saved, offered
        ):
            return saved
        async with connection.transaction():
            answered = await handoffs.note(connection, news) if news else []
            await _save_alerts(connection, alerts, now, tries, no_mail, saved)
            if answered:
                await handoffs.settle(connection, answered, now)
            if dead:
                saved.letters = await _save_dead(connection, dead, now)
    return saved


def _only_offer(alerts: Sequence[Alert], news: Sequence[HandoffNews]) -> bool:
    """Tell whether all `news` are offers, and no alert is about a handoff that they do not name."""
    offered = {n.id for n in news}
    return all(n.state == "offered" for n in news) and all(
        a.handoff_id is None or a.handoff_id in offered for a in alerts
    )


async def _save_alerts(
    connection: PoolConnectionProxy[Any],
    alerts: Sequence[Alert],
    now: datetime,
    tries: int,
    no_mail: str | None,
    saved: Saved,
    offered: tuple[list[Any], ...] = (),
) -> bool:
    """Record `alerts`, and note the handoffs `offered` before them.

    False: one of those is not open any more, as it came again or was answered meanwhile. What is about it
    was left out then.
    """
    if not alerts and not offered:
        return True
    rows = sorted(alerts, key=lambda a: (a.transition_id, a.recipient))
    settled = {"inbox": "delivered"} | ({"email": "skipped"} if no_mail else {})
    deliveries = [(a.id, d, settled.get(d.channel, "pending")) for a in rows for d in a.deliveries]
    waiting = [
        (a.id, a.escalate_after_s, _escalates_at(a, now)) for a in rows if a.escalate_after_s
    ]
    made = await connection.fetch(
        _INSERT_OFFERED if offered else _INSERT,
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
        [a.journey_id for a in rows],
        [a.urgent for a in rows],
        now,
        [id for id, _, _ in deliveries],
        [due.channel for _, due, _ in deliveries],
        [status for _, _, status in deliveries],
        [due.at for _, due, _ in deliveries],
        [due.why if status == "pending" else None for _, due, status in deliveries],
        [due.gather for _, due, _ in deliveries],
        [due.body for _, due, _ in deliveries],
        tries,
        no_mail,
        [id for id, _, _ in waiting],
        [after_s for _, after_s, _ in waiting],
        [due_at for _, _, due_at in waiting],
        [a.kind for a in rows],
        [a.handoff_id for a in rows],
        [a.can_answer for a in rows],
        *offered,
    )
    open_offers = 0
    for role, count in made:
        if role is None:
            open_offers = count
        else:
            saved.alerts[role] = saved.alerts.get(role, 0) + count
    saved.pending = sum(status == "pending" for _, _, status in deliveries)
    return not offered or open_offers == len(offered[0])


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


def _escalates_at(alert: Alert, now: datetime) -> datetime:
    """Give when an alert nobody acknowledges is escalated."""
    assert alert.escalate_after_s is not None  # noqa: S101
    return (alert.waits_from or now) + timedelta(seconds=alert.escalate_after_s)


def _first_status(channels: Sequence[str], settled: Mapping[str, str]) -> str:
    """Give the status of a new alert, of whose channels some are `settled` by being recorded."""
    if any(channel not in settled for channel in channels):
        return "pending"
    reached = any(settled[channel] == "delivered" for channel in channels)
    return "delivered" if reached else "dead_lettered"


async def acknowledge(pool: asyncpg.Pool[Any], id: UUID, by: Actor, now: datetime) -> None:
    """Record that `by` has seen the alert; the first acknowledgement stays. What is pending is skipped,
    and nothing is escalated any more."""
    async with pool.acquire() as connection, connection.transaction():
        await _acknowledge(connection, id, by, now)


async def use_link(pool: asyncpg.Pool[Any], link: str, id: UUID, by: Actor, now: datetime) -> bool:
    """Acknowledge alert `id` by a link that is good for one use; False: it was used before."""
    async with pool.acquire() as connection, connection.transaction():
        status = await connection.execute(_USE_LINK, link, now)
        if status.endswith(" 0"):
            return False
        await _acknowledge(connection, id, by, now)
    return True


async def _acknowledge(
    connection: PoolConnectionProxy[Any], id: UUID, by: Actor, now: datetime
) -> None:
    # The alert first, as whoever finishes a delivery does.
    before = await connection.fetchrow(_LOCK_ALERT, id)
    await connection.execute(_ACKNOWLEDGE, id, now, by.name)
    await connection.execute(_CANCEL, id, now, ACKNOWLEDGED)
    await connection.execute(_END_ESCALATION, id, now, f"{ACKNOWLEDGED} by {by.name}")
    if before is not None and before["status"] != ACKNOWLEDGED:
        was, became = {"status": before["status"]}, {"status": ACKNOWLEDGED}
        note = Note(ACKNOWLEDGED, "alert", str(id), was, became, str(before["lead_id"]))
        await record(connection, by, note)


async def retry(
    pool: asyncpg.Pool[Any],
    id: UUID,
    now: datetime,
    tries: int,
    by: Actor,
    mark: Callable[[Executor], Awaitable[None]] | None = None,
) -> list[str]:
    """Begin anew on every channel of the alert that ended undelivered; gives their labels.

    Nothing is sent once the alert is acknowledged. `mark` records in the same transaction that it was done.
    """
    async with pool.acquire() as connection, connection.transaction():
        before = await connection.fetchrow(_LOCK_ALERT, id)
        rows = await connection.fetch(_RETRY, id, now, tries)
        await connection.execute(SETTLE, [id])
        if rows and before is not None:
            again = {"channels": [r["channel"] for r in rows]}
            was = {"status": before["status"]}
            note = Note("retried", "alert", str(id), was, again, str(before["lead_id"]))
            await record(connection, by, note)
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
