"""What people do to be left alone: snooze an alert, mute a lead. The SQL of both."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from services.contracts import audit
from services.contracts.audit import Actor, Note, record
from services.contracts.events import rfc3339

_LOCK_ALERT = "SELECT status, lead_id, snoozed_until FROM notifier.alerts WHERE id = $1 FOR UPDATE"

_SNOOZE = "UPDATE notifier.alerts SET snoozed_until = $2, status = 'pending' WHERE id = $1"

_HOLD_PENDING = """
UPDATE notifier.deliveries SET due_at = $2, why = $3, blocks = false
WHERE alert_id = $1 AND status = 'pending' RETURNING channel
"""

# What has reached the person comes again; the inbox has it anyhow, unless there is nothing else.
_AGAIN = """
INSERT INTO notifier.deliveries (alert_id, channel, attempt, last_attempt, status, due_at, addressee_id,
  why, body)
SELECT alert_id, channel, max(attempt) + 1, max(attempt) + $4::int, 'pending', $2,
  (SELECT addressee_id FROM notifier.alerts WHERE id = $1), $3, max(body)
FROM notifier.deliveries
WHERE alert_id = $1 AND channel <> 'inbox' AND channel <> ALL($5::text[])
GROUP BY alert_id, channel HAVING bool_or(status = 'delivered')
RETURNING channel
"""

_LATER_ESCALATION = """
UPDATE notifier.escalations SET due_at = greatest(due_at, $2::timestamptz + make_interval(secs => after_s))
WHERE ended_at IS NULL AND alert_id IN (
  SELECT coalesce(escalated_from, id) FROM notifier.alerts WHERE id = $1)
"""

_LOCK_MUTE = "SELECT until FROM notifier.mutes WHERE person_id = $1 AND lead_id = $2 FOR UPDATE"

_MUTE = """
INSERT INTO notifier.mutes (person_id, lead_id, until, created_at, created_by)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (person_id, lead_id) DO UPDATE SET until = $3, created_at = $4, created_by = $5
"""

# Whoever does not want to hear of a lead is not told on for it: its handoffs have the playbook's own ladder.
_END_ESCALATIONS = """
UPDATE notifier.escalations e SET ended_at = $3, why = $4 FROM notifier.alerts a
WHERE a.id = e.alert_id AND a.addressee_id = $1 AND a.lead_id = $2 AND e.ended_at IS NULL
"""

_MUTES = """
SELECT person_id, lead_id, until, created_at, created_by FROM notifier.mutes
WHERE ($1::text IS NULL OR person_id = $1) AND (until IS NULL OR until > $2)
ORDER BY person_id, lead_id LIMIT $3
"""


async def snooze(
    pool: asyncpg.Pool[Any], id: UUID, until: datetime, by: Actor, now: datetime, tries: int
) -> bool:
    """Let the alert come (again) at `until`, on every channel but the inbox. False: it was acknowledged.

    Its escalation waits until then and its own time more.
    """
    why = f"snoozed until {rfc3339(until)} by {by.name}"
    async with pool.acquire() as connection, connection.transaction():
        alert = await connection.fetchrow(_LOCK_ALERT, id)
        if alert is None or alert["status"] == "acknowledged":
            return False
        held = await connection.fetch(_HOLD_PENDING, id, until, why)
        again = await connection.fetch(_AGAIN, id, until, why, tries, [r["channel"] for r in held])
        if held or again:
            await connection.execute(_SNOOZE, id, until)
        else:  # only the inbox: it shows until when
            await connection.execute(
                "UPDATE notifier.alerts SET snoozed_until = $2 WHERE id = $1", id, until
            )
        await connection.execute(_LATER_ESCALATION, id, until)
        before = {"status": alert["status"], "until": alert["snoozed_until"]}
        note = Note("snoozed", "alert", str(id), before, {"until": until}, str(alert["lead_id"]))
        await record(connection, by, note)
    return True


async def mute(
    pool: asyncpg.Pool[Any],
    person: str,
    lead_id: UUID,
    until: datetime | None,
    by: Actor,
    now: datetime,
) -> None:
    """Suppress what the lead would tell `person` from now on, until `until` or for ever.

    What they have not acknowledged is not escalated any more, nor is what comes while the mute holds.
    """
    async with pool.acquire() as connection, connection.transaction():
        before = await connection.fetchrow(_LOCK_MUTE, person, lead_id)
        await connection.execute(_MUTE, person, lead_id, until, now, by.name)
        await connection.execute(_END_ESCALATIONS, person, lead_id, now, f"muted by {by.name}")
        was = {"person": person, "until": before["until"]} if before is not None else None
        became = {"person": person, "until": until}
        await record(connection, by, Note("muted", "mute", person, was, became, str(lead_id)))


async def unmute(pool: asyncpg.Pool[Any], person: str, lead_id: UUID, by: Actor) -> bool:
    """End a mute; False: there was none."""
    rows = await audit.done(
        pool,
        "DELETE FROM notifier.mutes WHERE person_id = $1 AND lead_id = $2 RETURNING person_id",
        (person, lead_id), by,
        Note("unmuted", "mute", person, {"person": person}, None, str(lead_id)),
    )  # fmt: skip
    return bool(rows)


async def list_mutes(
    pool: asyncpg.Pool[Any], person: str | None, now: datetime, limit: int
) -> list[dict[str, Any]]:
    """Give the mutes that hold, of `person` or of all."""
    return [
        {
            "person": r["person_id"], "lead_id": str(r["lead_id"]),
            "until": rfc3339(r["until"]) if r["until"] is not None else None,
            "created_at": rfc3339(r["created_at"]), "created_by": r["created_by"],
        }
        for r in await pool.fetch(_MUTES, person, now, limit)
    ]  # fmt: skip
