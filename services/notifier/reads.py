"""What the API shows: alerts with their deliveries, and everything that ended undelivered."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.contracts.events import rfc3339
from services.notifier.errors import InvalidRequestError

_ALERT = """
SELECT id, lead_id, transition_id, role, person_id, person_name, addressee_id, status, subject, body,
  created_at, acknowledged_at, acknowledged_by, stage, company, kind, journey_id, urgent,
  snoozed_until, escalated_from, why, handoff_id, acknowledged_why,
  EXISTS (SELECT FROM notifier.mutes m WHERE m.person_id = addressee_id AND m.lead_id = alerts.lead_id
    AND (m.until IS NULL OR m.until > now())) AS muted,
  (SELECT jsonb_build_object('due_at', CASE WHEN e.ended_at IS NULL THEN e.due_at END, 'told', e.told,
    'ended_at', e.ended_at, 'why', e.why) FROM notifier.escalations e WHERE e.alert_id = alerts.id)::text
    AS escalation
FROM notifier.alerts
"""

_DELIVERIES = """
SELECT alert_id, channel, attempt, status, due_at, finished_at, reason, latency_ms, why, digest_id,
  ambiguous
FROM notifier.deliveries WHERE alert_id = ANY($1) ORDER BY id
"""

_DEAD_MESSAGES = """
SELECT created_at, 'message' AS kind, id, message_id, topic, reason,
  NULL::uuid AS alert_id, NULL::uuid AS lead_id, NULL AS channel, NULL::int AS attempt
FROM notifier.dead_letters WHERE retried_at IS NULL
"""

# A skipped delivery counts only when nothing else reached the person, and nothing of an alert that was seen.
_DEAD_DELIVERIES = """
SELECT d.finished_at, 'delivery', d.id, NULL, NULL, d.reason, d.alert_id, a.lead_id, d.channel,
  d.attempt
FROM notifier.deliveries d JOIN notifier.alerts a ON a.id = d.alert_id
WHERE a.status <> 'acknowledged'
  AND (d.status = 'dead' OR (d.status = 'skipped' AND a.status = 'dead_lettered'))
"""


async def list_alerts(
    pool: asyncpg.Pool[Any],
    *,
    role: str | None,
    person: str | None,
    status: str | None,
    lead_id: UUID | None,
    before: UUID | None,
    limit: int,
) -> tuple[list[dict[str, Any]], str | None]:
    """Give alerts, newest first, and the cursor of the next page (None: there is none).

    `person` finds what reaches that person, also alerts for a role nobody was eligible for.
    """
    wanted = {
        "role =": role, "addressee_id =": person, "status =": status, "lead_id =": lead_id,
        "id <": before,
    }  # fmt: skip
    conditions: list[str] = []
    values: list[Any] = []
    for test, value in wanted.items():
        if value is not None:
            values.append(value)
            conditions.append(f"{test} ${len(values)}")
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    rows = await pool.fetch(f"{_ALERT} {where} ORDER BY id DESC LIMIT {limit + 1}", *values)
    items = await _with_deliveries(pool, rows[:limit])
    return items, items[-1]["id"] if len(rows) > limit else None


async def get_alert(pool: asyncpg.Pool[Any], id: UUID) -> dict[str, Any] | None:
    """Give one alert with its deliveries."""
    rows = await pool.fetch(f"{_ALERT} WHERE id = $1", id)
    items = await _with_deliveries(pool, rows)
    return items[0] if items else None


async def list_dead_letters(
    pool: asyncpg.Pool[Any], cursor: str | None, limit: int
) -> tuple[list[dict[str, Any]], str | None]:
    """Give undelivered deliveries and unreadable messages, newest first, and the next cursor.

    Raises InvalidRequestError for a cursor that is not ours.
    """
    after_messages = after_deliveries = ""
    values: list[Any] = []
    if cursor is not None:
        values = list(_open_cursor(cursor))
        bound = "< ($1::timestamptz, $2::text, $3::bigint)"
        after_messages = f"AND (created_at, 'message', id) {bound}"
        after_deliveries = f"AND (d.finished_at, 'delivery', d.id) {bound}"
    rows = await pool.fetch(
        f"""({_DEAD_MESSAGES} {after_messages} ORDER BY created_at DESC, id DESC LIMIT {limit + 1})
            UNION ALL
            ({_DEAD_DELIVERIES} {after_deliveries}
             ORDER BY d.finished_at DESC, d.id DESC LIMIT {limit + 1})
            ORDER BY 1 DESC, 2 DESC, 3 DESC LIMIT {limit + 1}""",
        *values,
    )
    items = [_dead_letter(r) for r in rows[:limit]]
    last = rows[limit - 1] if len(rows) > limit else None
    return items, _cursor(last) if last is not None else None


def _dead_letter(row: Any) -> dict[str, Any]:
    item: dict[str, Any] = {
        "id": row["id"],
        "kind": row["kind"],
        "reason": row["reason"],
        "created_at": rfc3339(row["created_at"]),
    }
    if row["kind"] == "message":
        return item | {"message_id": row["message_id"], "topic": row["topic"]}
    return item | {
        "alert_id": str(row["alert_id"]),
        "lead_id": str(row["lead_id"]),
        "channel": row["channel"],
        "attempt": row["attempt"],
    }


def _cursor(row: Any) -> str:
    text = f"{row['created_at'].isoformat()} {row['kind']} {row['id']}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def _open_cursor(cursor: str) -> tuple[datetime, str, int]:
    try:
        moment, kind, id = base64.urlsafe_b64decode(cursor.encode()).decode().split(" ")
        time, number = datetime.fromisoformat(moment), int(id)
        if time.tzinfo is None or kind not in ("message", "delivery") or not 0 <= number < 2**63:
            raise ValueError(cursor)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequestError(
            "cursor: not one of ours", field="cursor", value=cursor,
            remedy="Send next_cursor of the page before, unchanged.",
        ) from error  # fmt: skip
    return time, kind, number


async def _with_deliveries(pool: asyncpg.Pool[Any], rows: Sequence[Any]) -> list[dict[str, Any]]:
    deliveries: dict[UUID, list[dict[str, Any]]] = {r["id"]: [] for r in rows}
    for row in await pool.fetch(_DELIVERIES, list(deliveries)) if rows else ():
        deliveries[row["alert_id"]].append(
            {
                "channel": row["channel"],
                "attempt": row["attempt"],
                "status": row["status"],
                "due_at": rfc3339(row["due_at"]),
                "finished_at": _moment(row["finished_at"]),
                "reason": row["reason"],
                "latency_ms": row["latency_ms"],
                "why": row["why"],
                "digest_id": str(row["digest_id"]) if row["digest_id"] is not None else None,
                "ambiguous": row["ambiguous"],
            }
        )
    return [_alert(r, deliveries[r["id"]]) for r in rows]


def _alert(row: Any, deliveries: list[dict[str, Any]]) -> dict[str, Any]:
    person = {"id": row["person_id"], "name": row["person_name"]}
    return {
        "id": str(row["id"]),
        "lead_id": str(row["lead_id"]),
        "transition_id": str(row["transition_id"]),
        "role": row["role"],
        "person": person if row["person_id"] is not None else None,
        "addressee_id": row["addressee_id"],
        "status": row["status"],
        "subject": row["subject"],
        "body": row["body"],
        "stage": row["stage"],
        "company": row["company"],
        "created_at": rfc3339(row["created_at"]),
        "acknowledged_at": _moment(row["acknowledged_at"]),
        "acknowledged_by": row["acknowledged_by"],
        "acknowledged_why": row["acknowledged_why"],
        "handoff_id": str(row["handoff_id"]) if row["handoff_id"] is not None else None,
        "kind": row["kind"],
        "journey_id": row["journey_id"],
        "urgent": row["urgent"],
        "snoozed_until": _moment(row["snoozed_until"]),
        "escalated_from": str(row["escalated_from"]) if row["escalated_from"] is not None else None,
        "why": row["why"],
        "muted": row["muted"],
        "escalation": _escalation(row["escalation"]),
        "deliveries": deliveries,
    }


def _escalation(text: str | None) -> dict[str, Any] | None:
    """Give when an alert that nobody acknowledges goes on, to whom it did, and why it does no more."""
    if text is None:
        return None
    found = msgspec.json.decode(text, type=dict[str, Any])
    for name in ("due_at", "ended_at"):
        found[name] = _moment(datetime.fromisoformat(found[name]) if found[name] else None)
    return found


def _moment(value: datetime | None) -> str | None:
    return rfc3339(value) if value is not None else None


async def get_digest(pool: asyncpg.Pool[Any], id: UUID) -> dict[str, Any] | None:
    """Give a message that told several alerts."""
    row = await pool.fetchrow(
        "SELECT id, addressee_id, channel, subject, body, why, created_at FROM notifier.digests "
        "WHERE id = $1", id,
    )  # fmt: skip
    if row is None:
        return None
    alerts = await pool.fetch(
        "SELECT DISTINCT alert_id FROM notifier.deliveries WHERE digest_id = $1 ORDER BY alert_id",
        id,
    )
    return {
        "id": str(row["id"]), "addressee_id": row["addressee_id"], "channel": row["channel"],
        "subject": row["subject"], "body": row["body"], "why": row["why"],
        "created_at": rfc3339(row["created_at"]), "alerts": [str(r["alert_id"]) for r in alerts],
    }  # fmt: skip
