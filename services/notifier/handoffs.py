"""The SQL by which a handoff's answer settles the alerts about it.

A handoff and the alerts about it come on different topics, in any order. Both sides first write the
handoff's row, whose lock makes them take turns: an alert recorded after the answer is settled at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from asyncpg.pool import PoolConnectionProxy

from services.notifier.messages import HandoffNews

BY_ITSELF = "baton"
"""Who answered a handoff that nobody answered in words."""

# The message recorded last says how it is; of two recorded at once the answer. Whatever `WHERE` says, the
# row is locked.
_NOTE = """
INSERT INTO notifier.handoffs AS h (id, due_at, reasons, state, answered_by, implied, why, told_at)
SELECT id, due_at, ARRAY(SELECT jsonb_array_elements_text(reasons)), state, by, implied, why,
  CASE WHEN state IS NOT NULL THEN told_at END
FROM unnest({}) AS n (id, due_at, reasons, state, by, implied, why, told_at)
ORDER BY id
ON CONFLICT (id) DO UPDATE SET due_at = coalesce(excluded.due_at, h.due_at),
  reasons = CASE WHEN excluded.reasons = '{{}}' THEN h.reasons ELSE excluded.reasons END,
  state = excluded.state, answered_by = excluded.answered_by, implied = excluded.implied,
  why = excluded.why, told_at = excluded.told_at
WHERE excluded.state IS NOT NULL AND (h.state IS NULL
  OR (excluded.told_at, excluded.state <> 'offered') >= (h.told_at, h.state <> 'offered'))
"""
_TYPES = ("uuid", "timestamptz", "jsonb", "text", "text", "boolean", "text", "timestamptz")

_ANSWERED = """
SELECT id FROM notifier.handoffs
WHERE id = ANY($1) AND state IN ('accepted', 'rejected', 'withdrawn')
"""

# A journey that went on took its handoffs up. What its transitions told is told all the same, as of any
# other; only what asks for an answer is over.
_LOCK_ALERTS = """
SELECT a.id FROM notifier.alerts a JOIN notifier.handoffs h ON h.id = a.handoff_id
WHERE a.handoff_id = ANY($1) AND a.status <> 'acknowledged'
  AND NOT (h.state = 'accepted' AND h.implied AND a.kind = 'transition')
ORDER BY a.id FOR UPDATE OF a
"""

_ACKNOWLEDGE = """
UPDATE notifier.alerts a SET status = 'acknowledged', acknowledged_at = $2,
  acknowledged_by = coalesce(h.answered_by, $3), acknowledged_why = h.why
FROM notifier.handoffs h
WHERE a.id = ANY($1) AND h.id = a.handoff_id AND a.status <> 'acknowledged'
"""

# A delivery under way is left to end; it is not tried again.
_SKIP = """
UPDATE notifier.deliveries d SET status = 'skipped', finished_at = $2, reason = a.acknowledged_why,
  latency_ms = 0
FROM notifier.alerts a WHERE a.id = ANY($1) AND d.alert_id = a.id AND d.status = 'pending'
"""

_END_ESCALATIONS = """
UPDATE notifier.escalations e SET ended_at = $2, why = h.why
FROM notifier.alerts a JOIN notifier.handoffs h ON h.id = a.handoff_id
WHERE a.handoff_id = ANY($1) AND e.alert_id = a.id AND e.ended_at IS NULL
"""


def noting(first: int) -> str:
    """Give the statement that records news of handoffs, its parameters (`rows_of`) numbered from `first`."""
    return _NOTE.format(", ".join(f"${first + n}::{type}[]" for n, type in enumerate(_TYPES)))


_NOTE_ALONE = noting(1)


def rows_of(news: Iterable[HandoffNews]) -> tuple[list[Any], ...]:
    """Give the newest of the `news` of each handoff as the parameters of `noting`: first the ids."""
    found: dict[UUID, HandoffNews] = {}
    for each in news:
        before = found.get(each.id)
        if before is None or _place(each) >= _place(before):
            found[each.id] = each
    newest = found.values()
    return (
        list(found),
        [n.due_at for n in newest],
        [msgspec.json.encode(n.reasons).decode() for n in newest],
        [n.state for n in newest],
        [n.by for n in newest],
        [n.implied for n in newest],
        [n.why for n in newest],
        [n.told_at for n in newest],
    )


async def note(connection: PoolConnectionProxy[Any], news: Iterable[HandoffNews]) -> list[UUID]:
    """Record what messages say of handoffs; gives those of them that are answered now."""
    rows = rows_of(news)
    await connection.execute(_NOTE_ALONE, *rows)
    return [r["id"] for r in await connection.fetch(_ANSWERED, rows[0])]


def _place(news: HandoffNews) -> tuple[bool, datetime, bool]:
    return news.state is not None, news.told_at, news.state != "offered"


async def settle(
    connection: PoolConnectionProxy[Any], ids: Sequence[UUID], now: datetime
) -> list[UUID]:
    """Acknowledge the alerts about the answered handoffs `ids`, as who answered; gives these alerts.

    What is pending is skipped, with how it was answered as its reason, and nothing is escalated any more.
    """
    alerts = [r["id"] for r in await connection.fetch(_LOCK_ALERTS, ids)]
    if alerts:
        await connection.execute(_ACKNOWLEDGE, alerts, now, BY_ITSELF)
        await connection.execute(_SKIP, alerts, now)
    await connection.execute(_END_ESCALATIONS, ids, now)
    return alerts
