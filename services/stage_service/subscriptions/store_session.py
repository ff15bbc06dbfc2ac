"""The SQL of what a process reads and writes of the subscriptions it delivers for: places, rows, results.

All of it is for the one session whose locks say that they are its own (`shares`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import Message
from services.stage_service.subscriptions.store_deliveries import (
    PROMOTE,
    Connection,
    message_of_test,
)
from services.stage_service.subscriptions.window import OPEN_LEADS_MAX, Delivery

ATTEMPTS_KEPT_MAX = 30
PRUNE_ROWS_MAX = 2000
FOLLOWERS_MAX = 15
"""How many that wait behind one that is due come with it."""
_PLACE = """
SELECT c.run, c.position, greatest(s.failing_since, s.state_at) AS since, s.failing_since
FROM stage.subscription_cursors c JOIN stage.subscriptions s ON s.id = c.subscription_id
WHERE c.subscription_id = $1::uuid
"""

# Rows whose lead has an earlier one that is open come later, whatever their own time says. What is here
# already does not come again. What waits right behind comes along, so that a lead's backlog does not cost a
# round trip each; should the first fail, it is forgotten here, and its row still waits. Nothing comes along
# past one that is due itself, as of several that were resent.
_DUE = """
WITH heads AS (
  SELECT d.*, w.ordered FROM unnest($1::uuid[], $2::int[], $3::boolean[], $4::boolean[])
    AS w (subscription_id, wanted, ordered, early)
  CROSS JOIN LATERAL (
    SELECT * FROM stage.deliveries d
    WHERE d.subscription_id = w.subscription_id AND d.state = 'due' AND (w.early OR d.next_at <= $5)
      AND d.id <> ALL($6::uuid[])
      AND NOT (w.ordered AND d.position IS NOT NULL AND EXISTS (
        SELECT FROM stage.deliveries e WHERE e.subscription_id = d.subscription_id
          AND e.lead_id = d.lead_id AND e.state IN ('waiting', 'due') AND e.position < d.position))
    ORDER BY d.next_at, d.position LIMIT w.wanted) AS d),
found AS (
  SELECT id, next_at AS at, true AS is_head FROM heads
  UNION ALL
  SELECT f.id, h.next_at, false FROM heads h CROSS JOIN LATERAL (
    SELECT f.id FROM stage.deliveries f
    WHERE f.subscription_id = h.subscription_id AND f.lead_id = h.lead_id AND f.state = 'waiting'
      AND f.position > h.position AND f.id <> ALL($6::uuid[])
      AND NOT EXISTS (
        SELECT FROM stage.deliveries e WHERE e.subscription_id = h.subscription_id
          AND e.lead_id = h.lead_id AND e.state = 'due' AND e.position > h.position
          AND e.position < f.position)
    ORDER BY f.position LIMIT $7) AS f
  WHERE h.ordered AND h.position IS NOT NULL)
SELECT d.subscription_id::text, d.id::text, d.run, d.position, d.lead_id, d.tries, d.created_at, d.body,
  jsonb_array_length(d.attempts) AS attempted, o.topic, o.key, o.headers, o.value, l.published_at, is_head
FROM found JOIN stage.deliveries d ON d.id = found.id
LEFT JOIN bus.log l ON l.position = d.position LEFT JOIN bus.outbox o ON o.id = l.outbox_id
ORDER BY found.at, d.position
"""

_LOST = """
UPDATE stage.deliveries SET state = 'failed', next_at = NULL, done_at = $2,
  attempts = attempts || jsonb_build_array(jsonb_build_object('number', jsonb_array_length(attempts) + 1,
    'at', $2::timestamptz, 'ok', false, 'duration_ms', 0, 'reason', 'the log no longer has this event'))
WHERE id = ANY($1::uuid[]) AND state = 'due'
"""
_LOCK_CURSORS = """
SELECT subscription_id::text AS id, run FROM stage.subscription_cursors
WHERE subscription_id = ANY($1::uuid[]) ORDER BY subscription_id FOR UPDATE
"""
_INSERT = """
INSERT INTO stage.deliveries AS d (id, subscription_id, run, position, event_id, event_type, lead_id, state,
  attempts, tries, next_at, created_at, done_at)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::bigint[], $5::text[], $6::text[], $7::text[],
  $8::text[], $9::jsonb[], $10::int[], $11::timestamptz[], $12::timestamptz[], $13::timestamptz[])
ON CONFLICT (subscription_id, run, position) WHERE position IS NOT NULL DO UPDATE
SET state = excluded.state, attempts = d.attempts || excluded.attempts, tries = excluded.tries,
  next_at = excluded.next_at, done_at = excluded.done_at
WHERE d.state IN ('waiting', 'due') OR excluded.state = 'delivered'
"""
# A row that was skipped meanwhile stays so, unless it got through.
_UPDATE = f"""
UPDATE stage.deliveries d
SET state = r.state, tries = r.tries, next_at = r.next_at, done_at = r.done_at,
  attempts = CASE WHEN jsonb_array_length(d.attempts) >= {ATTEMPTS_KEPT_MAX} THEN d.attempts - 1
    ELSE d.attempts END || r.attempts
FROM unnest($1::uuid[], $2::text[], $3::jsonb[], $4::int[], $5::timestamptz[], $6::timestamptz[])
  AS r (id, state, attempts, tries, next_at, done_at)
WHERE d.id = r.id AND (d.state IN ('waiting', 'due') OR r.state = 'delivered')
"""  # noqa: S608
_CURSORS = """
UPDATE stage.subscription_cursors c SET position = r.position, moved_at = now()
FROM unnest($1::uuid[], $2::int[], $3::bigint[]) AS r (id, run, position)
WHERE c.subscription_id = r.id AND c.run = r.run AND c.position < r.position
"""
_FAILING = """
UPDATE stage.subscriptions s SET failing_since = r.since
FROM unnest($1::uuid[], $2::timestamptz[]) AS r (id, since)
WHERE s.id = r.id AND s.failing_since IS DISTINCT FROM r.since
"""
_RECOVERED = """
UPDATE stage.deliveries SET next_at = $2
WHERE subscription_id = ANY($1::uuid[]) AND state = 'due' AND next_at > $2
"""
_STOP = """
UPDATE stage.subscriptions SET state = $3, state_reason = $4, state_at = $5, updated_at = $5
WHERE id = $1::uuid AND version = $2 AND state = 'active' AND deleted_at IS NULL
RETURNING name, contact, failing_since
"""
_PRUNE = f"""
DELETE FROM stage.deliveries WHERE id IN (
  SELECT id FROM stage.deliveries WHERE subscription_id = $1::uuid AND id < $2::uuid
    AND (state IN ('delivered', 'skipped', 'failed') OR EXISTS (
      SELECT FROM stage.subscriptions s WHERE s.id = $1::uuid AND s.deleted_at IS NOT NULL))
    LIMIT {PRUNE_ROWS_MAX})
"""  # noqa: S608

_decode_headers = msgspec.json.Decoder(dict[str, str]).decode
_encode = msgspec.json.encode


@dataclass(slots=True)
class Record:
    """What a delivery has come to, to be written."""

    subscription_id: str
    delivery: Delivery
    state: str
    next_at: datetime | None
    done_at: datetime | None
    attempts: list[dict[str, Any]]
    exists: bool


@dataclass(slots=True)
class Place:
    """Where a subscription is in the log, and since when nothing goes through to it."""

    run: int
    position: int
    failing_since: datetime | None


async def place(connection: Connection, subscription_id: str) -> Place | None:
    """Give where a subscription is; one that somebody resumed has been failing since then at most."""
    row = await connection.fetchrow(_PLACE, subscription_id)
    if row is None:
        return None
    since = row["since"] if row["failing_since"] is not None else None
    return Place(row["run"], row["position"], since)


async def recorded_after(
    connection: Connection, subscription_id: str, run: int, position: int
) -> list[int]:
    """Give the positions after the cursor that have a row of this run already."""
    rows = await connection.fetch(
        """SELECT position FROM stage.deliveries
           WHERE subscription_id = $1::uuid AND run = $2 AND position > $3""",
        subscription_id, run, position,
    )  # fmt: skip
    return [row["position"] for row in rows]


async def open_leads(connection: Connection, subscription_id: str, now: datetime) -> list[str]:
    """Give the leads with a delivery that is not done, one more than `OPEN_LEADS_MAX` at most.

    Makes those due whose turn has come and that nobody made so.
    """
    rows = await connection.fetch(
        """SELECT DISTINCT lead_id FROM stage.deliveries
           WHERE subscription_id = $1::uuid AND state IN ('waiting', 'due') AND position IS NOT NULL
           LIMIT $2""",
        subscription_id, OPEN_LEADS_MAX + 1,
    )  # fmt: skip
    leads = [row["lead_id"] for row in rows]
    if leads:
        await connection.execute(PROMOTE, [subscription_id] * len(leads), leads, now)
    return leads


async def end_waiting(connection: Connection, subscription_id: str, now: datetime) -> None:
    """Make due what waits for earlier ones of its lead, of a subscription that is not ordered any more."""
    await connection.execute(
        """UPDATE stage.deliveries SET state = 'due', next_at = $2
           WHERE subscription_id = $1::uuid AND state = 'waiting'""",
        subscription_id, now,
    )  # fmt: skip


async def due(
    connection: Connection,
    wanted: Sequence[tuple[str, int, bool, bool]],
    here: Sequence[str],
    now: datetime,
) -> list[tuple[str, Delivery, bool]]:
    """Load deliveries that are due, the longest due first, each with what waits behind it in its lead.

    Gives (subscription, delivery, whether it is due itself), without those `here`.

    `wanted` are (subscription, how many at most, whether it is ordered, whether not yet due ones too).
    """
    ids, most, ordered, early = zip(*wanted, strict=True)
    rows = await connection.fetch(
        _DUE, list(ids), list(most), list(ordered), list(early), now, list(here), FOLLOWERS_MAX
    )
    found: list[tuple[str, Delivery, bool]] = []
    lost: list[Any] = []
    for row in rows:
        if row["body"] is not None:
            message = message_of_test(row["body"])
        elif row["value"] is not None:
            message = Message(
                row["topic"], row["key"], _decode_headers(row["headers"]), row["value"], row["position"]
            )  # fmt: skip
        else:
            lost.append(row)
            continue
        found.append((row["subscription_id"], Delivery(
            row["id"], message, row["position"], row["lead_id"], row["run"], exists=True,
            tries=row["tries"], attempted=row["attempted"], created_at=row["created_at"],
            published_at=row["published_at"],
        ), row["is_head"]))  # fmt: skip
    if lost:  # the log does not reach back so far any more
        await connection.execute(_LOST, [row["id"] for row in lost], now)
        await promote(connection, [(row["subscription_id"], row["lead_id"]) for row in lost], now)
    return found


async def lock_cursors(connection: Connection, subscription_ids: Sequence[str]) -> dict[str, int]:
    """Lock the cursors for this transaction; gives each one's run."""
    rows = await connection.fetch(_LOCK_CURSORS, list(subscription_ids))
    return {row["id"]: row["run"] for row in rows}


async def write(connection: Connection, records: Sequence[Record]) -> None:
    """Write results, each delivery once."""
    new = [r for r in records if not r.exists]
    if new:
        await connection.execute(
            _INSERT, [r.delivery.id for r in new], [r.subscription_id for r in new],
            [r.delivery.run for r in new], [r.delivery.position for r in new],
            [r.delivery.message.id for r in new], [r.delivery.message.type for r in new],
            [r.delivery.lead for r in new], [r.state for r in new],
            [_encode(r.attempts).decode() for r in new], [r.delivery.tries for r in new],
            [r.next_at for r in new], [r.delivery.created_at for r in new], [r.done_at for r in new],
        )  # fmt: skip
    old = [r for r in records if r.exists]
    if old:
        await connection.execute(
            _UPDATE, [r.delivery.id for r in old], [r.state for r in old],
            [_encode(r.attempts).decode() for r in old], [r.delivery.tries for r in old],
            [r.next_at for r in old], [r.done_at for r in old],
        )  # fmt: skip


async def promote(
    connection: Connection, leads: Sequence[tuple[str, str]], now: datetime
) -> list[tuple[str, str, bool, bool]]:
    """Make the next delivery of each (subscription, lead) due.

    Gives (subscription, lead, whether one is open, whether one was made due).
    """
    rows = await connection.fetch(PROMOTE, [s for s, _ in leads], [lead for _, lead in leads], now)
    return [(r["subscription_id"], r["lead_id"], r["is_open"], bool(r["promoted"])) for r in rows]


async def move_cursors(connection: Connection, cursors: Sequence[tuple[str, int, int]]) -> None:
    """Move cursors: (subscription, run, position). One of an earlier run does not move."""
    ids, runs, positions = zip(*cursors, strict=True)
    await connection.execute(_CURSORS, list(ids), list(runs), list(positions))


async def note_failing(
    connection: Connection, since: Sequence[tuple[str, datetime | None]]
) -> None:
    """Note since when nothing goes through to a subscription; None: something does."""
    await connection.execute(_FAILING, [id for id, _ in since], [moment for _, moment in since])


async def make_due(connection: Connection, subscription_ids: Sequence[str], now: datetime) -> None:
    """Make everything due at once that waits for its next try."""
    await connection.execute(_RECOVERED, list(subscription_ids), now)


async def stop(
    connection: Connection,
    subscription_id: str,
    version: int,
    state: str,
    reason: str,
    now: datetime,
) -> Any:
    """Stop one that nobody changed since `version`; gives its name, contact, failing_since, or None."""
    return await connection.fetchrow(_STOP, subscription_id, version, state, reason, now)


async def at_rest(connection: Connection) -> list[str]:
    """Give the subscriptions that nobody delivers for: paused, stopped, removed."""
    rows = await connection.fetch(
        """SELECT id::text FROM stage.subscriptions
           WHERE state <> 'active' OR deleted_at IS NOT NULL"""
    )
    return [row["id"] for row in rows]


async def prune(connection: Connection, subscription_id: str, before_id: str) -> int:
    """Delete up to `PRUNE_ROWS_MAX` deliveries with ids before `before_id`; gives how many.

    Those that are done; of a subscription that was removed the others too.
    """
    done = await connection.execute(_PRUNE, subscription_id, before_id)
    return int(done.rpartition(" ")[2])
