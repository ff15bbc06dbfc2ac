"""The SQL by which deliveries are claimed and finished: one message a lane at a time, whoever asks.

A lane is one person's deliveries by one channel. Its order is kept because no second message of a lane is
claimed before the first has ended, and because a failed one that comes again holds the ones behind it.
A claim is a lease: when a process dies between sending and recording, it runs out and somebody else sends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from services.contracts.team import Person
from services.notifier.breakers import FAILURES_MAX
from services.notifier.digests import Listed, write_digest
from services.notifier.plans import GROUP_MAX, HOUR, Plan, Sent, Waiting, plan_lane
from services.notifier.store import ACKNOWLEDGED, SETTLE

MUTED = "muted"

Status = Literal["delivered", "skipped", "suppressed", "failed", "dead"]


class OpenOffer(msgspec.Struct, frozen=True):
    """A handoff that waits for an answer, until when, and suggested reasons of a rejection."""

    handoff_id: UUID
    due_at: datetime | None
    reasons: tuple[str, ...]


class Parcel(msgspec.Struct, frozen=True):
    """One message of a lane that this process may send until `claimed_until`, and what it tells of."""

    id: UUID
    """The alert's id, or the digest's."""
    channel: str
    addressee_id: str | None
    delivery_ids: tuple[int, ...]
    alert_ids: tuple[UUID, ...]
    attempt: int
    last_attempt: int
    claimed_until: datetime
    created_at: datetime
    subject: str = ""
    body: str = ""
    lead_id: UUID | None = None
    journey_id: str | None = None
    settled: Literal["skipped", "suppressed"] | None = None
    """It is not sent at all, for the reason `why`."""
    why: str | None = None
    is_digest: bool = False
    is_repeat: bool = False
    """An attempt before this one may have arrived."""
    earlier: tuple[str, ...] = ()
    """Ids of the messages of the same journey before it, oldest first."""
    thread: str | None = None
    """What the service calls the first of them."""
    channel_failed: bool = False
    offer: OpenOffer | None = None
    """The handoff that waits for the answer of whom it goes to."""


class Lane(msgspec.Struct, frozen=True):
    """Who gets how much at once: free places by channel and by kind of channel, and those of the others."""

    lanes_max: int
    free: Mapping[str, int]
    channel_max: int
    kind_free: Mapping[str, int] = {}
    kind_max: int = 1000


_ANY_DUE = """
SELECT EXISTS (SELECT FROM notifier.deliveries
  WHERE status IN ('pending', 'claimed') AND coalesce(claimed_until, due_at) <= $1)
"""

_LANES = """
WITH due AS (
  SELECT channel, coalesce(addressee_id, alert_id::text) AS lane,
    min(coalesce(claimed_until, due_at)) AS since, min(id) AS first
  FROM notifier.deliveries
  WHERE status IN ('pending', 'claimed') AND coalesce(claimed_until, due_at) <= $1
  GROUP BY 1, 2),
free AS (
  SELECT d.*, c.failures, c.label IS NOT NULL AS failed,
    row_number() OVER (PARTITION BY d.channel ORDER BY since, first) AS place
  FROM due d LEFT JOIN notifier.channels c ON c.label = d.channel
  WHERE coalesce(c.rests_until, $1) <= $1
    AND NOT EXISTS (SELECT FROM notifier.deliveries b
      WHERE b.channel = d.channel AND coalesce(b.addressee_id, b.alert_id::text) = d.lane
        AND (b.status = 'claimed' AND b.claimed_until > $1
             OR b.status = 'pending' AND b.blocks AND b.due_at > $1))),
placed AS (
  SELECT *, split_part(channel, ':', 1) AS kind,
    row_number() OVER (PARTITION BY split_part(channel, ':', 1) ORDER BY since, first) AS kind_place
  FROM free
  WHERE place <= CASE WHEN failures >= $3 THEN 1
    ELSE coalesce(($4::jsonb ->> channel)::int, $5) END),
chosen AS MATERIALIZED (
  SELECT * FROM placed WHERE kind_place <= coalesce(($6::jsonb ->> kind)::int, $7)
  ORDER BY since, first LIMIT $2)
SELECT channel, lane, failed, coalesce(failures >= $3, false) AS probes FROM chosen
WHERE pg_try_advisory_xact_lock(hashtextextended(channel || ' ' || lane, 8))
ORDER BY since, first
"""

_ROWS = """
SELECT l.channel, l.lane, d.id, d.alert_id, d.attempt, d.last_attempt, d.gather, d.digest_id, d.why,
  a.lead_id, a.company, a.urgent, a.subject, a.created_at, a.addressee_id, a.journey_id,
  a.status = 'acknowledged' AS acknowledged, m.person_id IS NOT NULL AS muted,
  coalesce(e.why LIKE 'acknowledged%', false) AS answered,
  d.status = 'claimed' OR EXISTS (SELECT FROM notifier.deliveries p
    WHERE p.alert_id = d.alert_id AND p.channel = d.channel AND p.ambiguous) AS is_repeat
FROM unnest($1::text[], $2::text[]) AS l (channel, lane)
  CROSS JOIN LATERAL (
    SELECT * FROM notifier.deliveries d
    WHERE d.channel = l.channel AND coalesce(d.addressee_id, d.alert_id::text) = l.lane
      AND d.status IN ('pending', 'claimed') AND coalesce(d.claimed_until, d.due_at) <= $3
    ORDER BY d.alert_id LIMIT $4 FOR UPDATE SKIP LOCKED) d
  JOIN notifier.alerts a ON a.id = d.alert_id
  LEFT JOIN notifier.escalations e ON e.alert_id = a.escalated_from
  LEFT JOIN notifier.mutes m ON m.person_id = a.addressee_id AND m.lead_id = a.lead_id
    AND (m.until IS NULL OR m.until > $3)
WHERE NOT EXISTS (SELECT FROM notifier.deliveries b
  WHERE b.channel = l.channel AND coalesce(b.addressee_id, b.alert_id::text) = l.lane
    AND (b.status = 'claimed' AND b.claimed_until > $3
         OR b.status = 'pending' AND b.blocks AND b.due_at > $3))
ORDER BY d.alert_id, d.attempt
"""

_SENT = """
SELECT l.channel, l.lane, max(d.finished_at) AS at, array_agg(DISTINCT a.lead_id) AS leads,
  array_remove(array_agg(DISTINCT a.company), NULL) AS companies
FROM unnest($1::text[], $2::text[]) AS l (channel, lane)
  CROSS JOIN LATERAL (
    SELECT * FROM notifier.deliveries d
    WHERE d.channel = l.channel AND d.addressee_id = l.lane AND d.status = 'delivered'
      AND d.finished_at > $3
    ORDER BY d.finished_at DESC LIMIT 1000) d
  JOIN notifier.alerts a ON a.id = d.alert_id
GROUP BY l.channel, l.lane, coalesce(d.digest_id, d.alert_id), d.attempt ORDER BY at
"""

_TAKE = """
UPDATE notifier.deliveries d SET status = 'claimed', claimed_until = $4, digest_id = t.digest_id,
  why = coalesce(t.why, d.why), ambiguous = d.ambiguous OR d.status = 'claimed'
FROM unnest($1::bigint[], $2::uuid[], $3::text[]) AS t (id, digest_id, why) WHERE d.id = t.id
"""

_HOLD = """
UPDATE notifier.deliveries d SET status = 'pending', claimed_until = NULL, due_at = t.until,
  why = t.why, gather = d.gather OR t.gather, blocks = false
FROM unnest($1::bigint[], $2::timestamptz[], $3::text[], $4::boolean[]) AS t (id, until, why, gather)
WHERE d.id = t.id
"""

_PROBE = "UPDATE notifier.channels SET rests_until = $2 WHERE label = ANY($1)"

_INSERT_DIGEST = """
INSERT INTO notifier.digests (id, addressee_id, channel, subject, body, why, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""

_DIGESTS = "SELECT id, subject, body FROM notifier.digests WHERE id = ANY($1)"

# The messages of the journey before this one that stand alone in the lane: its thread.
_LETTERS = """
SELECT l.n, coalesce(o.body, a.body) AS body, t.ids, t.ref, h.id AS handoff_id, h.due_at, h.reasons
FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS l (alert_id, channel, n)
  JOIN notifier.alerts a ON a.id = l.alert_id
  LEFT JOIN notifier.deliveries o
    ON o.alert_id = a.id AND o.channel = l.channel AND o.status = 'claimed'
  LEFT JOIN notifier.handoffs h ON h.id = a.handoff_id AND h.state = 'offered' AND a.can_answer
  LEFT JOIN LATERAL (
    SELECT array_agg(e.id::text ORDER BY e.id) AS ids,
      (array_agg(e.ref ORDER BY e.id) FILTER (WHERE e.ref IS NOT NULL))[1] AS ref
    FROM (SELECT p.id, d.provider_ref AS ref
      FROM notifier.alerts p JOIN notifier.deliveries d ON d.alert_id = p.id
      WHERE p.journey_id = a.journey_id AND p.addressee_id = a.addressee_id AND p.id < a.id
        AND d.channel = l.channel AND d.status = 'delivered' AND d.digest_id IS NULL
      ORDER BY p.id LIMIT 50) e) t ON a.journey_id IS NOT NULL
"""

_LOCK_ALERTS = "SELECT id, status FROM notifier.alerts WHERE id = ANY($1) ORDER BY id FOR UPDATE"

# The lease's end is the fence: whoever claimed the delivery after us has another one.
_FINISH = """
UPDATE notifier.deliveries SET status = $3, claimed_until = NULL, finished_at = $4, reason = $5,
  latency_ms = $6, ambiguous = ambiguous OR $7, provider_ref = $8, blocks = false
WHERE id = ANY($1) AND status = 'claimed' AND claimed_until = $2
RETURNING id
"""

_NEXT_ATTEMPTS = """
INSERT INTO notifier.deliveries (alert_id, channel, attempt, last_attempt, status, due_at,
  addressee_id, why, gather, digest_id, body, blocks)
SELECT d.alert_id, d.channel, d.attempt + 1, d.last_attempt + CASE WHEN $3 THEN 0 ELSE 1 END,
  'pending', $2, d.addressee_id, d.why, d.gather, d.digest_id, d.body, true
FROM notifier.deliveries d JOIN notifier.alerts a ON a.id = d.alert_id
WHERE d.id = ANY($1) AND a.status <> 'acknowledged'
ON CONFLICT (alert_id, channel, attempt) DO NOTHING
"""


async def claim(
    pool: asyncpg.Pool[Any],
    now: datetime,
    until: datetime,
    room: Lane,
    person_of: Callable[[str | None], Person | None],
    make_id: Callable[[], UUID],
    public_url: str,
) -> tuple[list[Parcel], int]:
    """Take the next message of each lane that has one due; gives them, and how many deliveries were held."""
    if not await pool.fetchval(_ANY_DUE, now):
        return [], 0
    async with pool.acquire() as connection, connection.transaction():
        lanes = await connection.fetch(
            _LANES, now, room.lanes_max, FAILURES_MAX,
            msgspec.json.encode(dict(room.free)).decode(), room.channel_max,
            msgspec.json.encode(dict(room.kind_free)).decode(), room.kind_max,
        )  # fmt: skip
        if not lanes:
            return [], 0
        asked = [r["channel"] for r in lanes], [r["lane"] for r in lanes]
        rows = await connection.fetch(_ROWS, *asked, now, GROUP_MAX)
        sent = await connection.fetch(_SENT, *asked, now - HOUR)
        work = _Work(now, until, person_of, make_id, public_url, rows, sent)
        for lane in lanes:
            work.plan(lane["channel"], lane["lane"], lane["failed"])
        await _write(connection, work)
        sending = {p.channel for p in work.parcels if p.settled is None}
        probing = [r["channel"] for r in lanes if r["probes"] and r["channel"] in sending]
        if probing:
            await connection.execute(_PROBE, probing, until)
        return await _with_letters(connection, work.parcels), work.held


class _Work:
    """What a round of claims does, lane by lane; nothing is written here."""

    def __init__(
        self,
        now: datetime,
        until: datetime,
        person_of: Callable[[str | None], Person | None],
        make_id: Callable[[], UUID],
        public_url: str,
        rows: Sequence[Any],
        sent: Sequence[Any],
    ) -> None:
        self._now = now
        self._until = until
        self._person_of = person_of
        self._make_id = make_id
        self._public_url = public_url
        self._rows: dict[tuple[str, str], list[Any]] = {}
        self._sent: dict[tuple[str, str], list[Sent]] = {}
        for row in rows:
            self._rows.setdefault((row["channel"], row["lane"]), []).append(row)
        for row in sent:
            message = Sent(row["at"], frozenset(row["leads"]), frozenset(row["companies"]))
            self._sent.setdefault((row["channel"], row["lane"]), []).append(message)
        self.parcels: list[Parcel] = []
        self.taken: list[tuple[int, UUID | None, str | None]] = []
        self.holds: list[tuple[int, datetime, str, bool]] = []
        self.digests: list[tuple[Any, ...]] = []

    @property
    def held(self) -> int:
        """How many deliveries were held."""
        return len(self.holds)

    def plan(self, channel: str, lane: str, channel_failed: bool) -> None:
        """Plan one lane."""
        rows = self._rows.get((channel, lane), [])
        if not rows:
            return
        person = self._person_of(rows[0]["addressee_id"])
        waiting = [_waiting(r) for r in rows]
        sent = self._sent.get((channel, lane), [])
        plan = plan_lane(waiting, sent, person, channel, self._now)
        of_id = {r["id"]: r for r in rows}
        for hold in plan.holds:
            self.holds += [(w.delivery_id, hold.until, hold.why, hold.gather) for w in hold.rows]
        for settled, group, why in (
            ("skipped", plan.skip, ACKNOWLEDGED), ("suppressed", plan.suppress, MUTED),
            ("suppressed", plan.answered, ACKNOWLEDGED),
        ):  # fmt: skip
            if group:
                found = [of_id[w.delivery_id] for w in group]
                self._add(found, None, settled=settled, why=why, channel_failed=False)
        if plan.send:
            self._send(plan, [of_id[w.delivery_id] for w in plan.send], person, channel_failed)

    def _send(
        self, plan: Plan, rows: list[Any], person: Person | None, channel_failed: bool
    ) -> None:
        digest_id: UUID | None = rows[0]["digest_id"]
        if digest_id is not None:
            self._add(rows, digest_id, why=plan.why, channel_failed=channel_failed)
        elif plan.why is None:
            self._add(rows, None, channel_failed=channel_failed)
        else:
            digest_id = self._make_id()
            listed = [
                Listed(r["alert_id"], r["lead_id"], r["subject"], r["company"], r["created_at"])
                for r in rows
            ]
            zone = person.time_zone if person is not None else "UTC"
            subject, body = write_digest(listed, zone, plan.why, self._public_url)
            first = rows[0]
            self.digests.append(
                (digest_id, first["addressee_id"], first["channel"], subject, body, plan.why,
                 self._now)
            )  # fmt: skip
            self._add(rows, digest_id, subject, body, why=plan.why, channel_failed=channel_failed)

    def _add(
        self,
        rows: list[Any],
        digest_id: UUID | None,
        subject: str | None = None,
        body: str = "",
        *,
        why: str | None = None,
        settled: Any = None,
        channel_failed: bool,
    ) -> None:
        first = rows[0]
        self.taken += [
            (r["id"], digest_id if settled is None else r["digest_id"], None if settled else why)
            for r in rows
        ]
        self.parcels.append(
            Parcel(
                digest_id or first["alert_id"], first["channel"], first["addressee_id"],
                tuple(r["id"] for r in rows), tuple(r["alert_id"] for r in rows),
                max(r["attempt"] for r in rows), min(r["last_attempt"] for r in rows), self._until,
                min(r["created_at"] for r in rows), subject or first["subject"], body,
                first["lead_id"], first["journey_id"], settled, why, digest_id is not None,
                any(r["is_repeat"] for r in rows), channel_failed=channel_failed,
            )
        )  # fmt: skip


def _waiting(row: Any) -> Waiting:
    return Waiting(
        row["id"], row["alert_id"], row["lead_id"], row["company"], row["attempt"], row["urgent"],
        row["gather"], row["muted"], row["acknowledged"], row["answered"], row["digest_id"],
        row["why"],
    )  # fmt: skip


async def _write(connection: PoolConnectionProxy[Any], work: _Work) -> None:
    if work.digests:
        await connection.executemany(_INSERT_DIGEST, work.digests)
    if work.taken:
        ids, digests, whys = zip(*work.taken, strict=True)
        until = work.parcels[0].claimed_until
        await connection.execute(_TAKE, list(ids), list(digests), list(whys), until)
    if work.holds:
        ids, untils, whys, gathers = zip(*work.holds, strict=True)
        await connection.execute(_HOLD, list(ids), list(untils), list(whys), list(gathers))


async def _with_letters(
    connection: PoolConnectionProxy[Any], parcels: list[Parcel]
) -> list[Parcel]:
    """Give the parcels with their texts and threads."""
    alone = [p for p in parcels if p.settled is None and not p.is_digest]
    again = [p.id for p in parcels if p.settled is None and p.is_digest and not p.body]
    texts: dict[UUID, dict[str, Any]] = {}
    if again:
        for row in await connection.fetch(_DIGESTS, again):
            texts[row["id"]] = {"subject": row["subject"], "body": row["body"]}
    letters: dict[tuple[UUID, str], dict[str, Any]] = {}
    if alone:
        found = await connection.fetch(_LETTERS, [p.id for p in alone], [p.channel for p in alone])
        for row in found:
            parcel = alone[row["n"] - 1]
            letters[parcel.id, parcel.channel] = {
                "body": row["body"], "earlier": tuple(row["ids"] or ()), "thread": row["ref"],
                "offer": OpenOffer(row["handoff_id"], row["due_at"], tuple(row["reasons"]))
                if row["handoff_id"] is not None else None,
            }  # fmt: skip
    return [
        msgspec.structs.replace(p, **texts.get(p.id, {}), **letters.get((p.id, p.channel), {}))
        if p.settled is None
        else p
        for p in parcels
    ]


class Ending(msgspec.Struct, frozen=True):
    """How an attempt ended. `next_due_at`: it is tried again then, `counted` or not among its tries."""

    status: Status
    reason: str | None
    latency_ms: int
    now: datetime
    next_due_at: datetime | None = None
    counted: bool = True
    ambiguous: bool = False
    ref: str | None = None


async def finish(pool: asyncpg.Pool[Any], parcel: Parcel, ending: Ending) -> bool:
    """Record how an attempt ended, the next attempt if there is one, and the status of its alerts.

    False: the lease ran out and another process has the deliveries; nothing is changed then.
    """
    alert_ids = list(parcel.alert_ids)
    async with pool.acquire() as connection, connection.transaction():
        # Two channels of one alert may end at once: the alert's row makes them take turns.
        await connection.fetch(_LOCK_ALERTS, alert_ids)
        finished = await connection.fetch(
            _FINISH, list(parcel.delivery_ids), parcel.claimed_until, ending.status, ending.now,
            ending.reason, ending.latency_ms, ending.ambiguous, ending.ref,
        )  # fmt: skip
        if not finished:
            return False
        if ending.next_due_at is not None:
            ids = [r["id"] for r in finished]
            await connection.execute(_NEXT_ATTEMPTS, ids, ending.next_due_at, ending.counted)
        await connection.execute(SETTLE, alert_ids)
    return True
