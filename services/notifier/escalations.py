"""Escalation: an alert nobody acknowledges in time climbs to the stand-in, the role's lead, sales leadership.

What waits is a row; whoever holds the row's lock fires its step, in the transaction that records the new
alert, so each step fires once, whatever number of processes run and whenever one dies. A step that came due
while nobody ran fires at the start, and says that it is late.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from services.contracts import calendars
from services.contracts.rounds import Round
from services.contracts.team import Person, Team
from services.notifier import metrics
from services.notifier.alerts import (
    FALLBACK_ROLE,
    SUBJECT_CHARACTERS_MAX,
    first_deliveries,
    seen_from,
)
from services.notifier.harmless import one_line
from services.notifier.plans import may_disturb
from services.notifier.roster import Roster

POLL_S = 0.5
STEPS_AT_ONCE_MAX = 100
LATE_AFTER = timedelta(seconds=5)

_WAIT = re.compile(r"([1-9]\d{0,4})(m|h|d)")
_ROLE = re.compile(r"\*|[a-z][a-z0-9_]{0,63}")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}

_DUE = """
SELECT e.alert_id, e.after_s, e.due_at, e.told, a.transition_id, a.lead_id, a.role, a.person_id,
  a.person_name, a.addressee_id, a.subject, a.body, a.stage, a.company, a.journey_id, a.urgent,
  a.status, a.created_at, a.handoff_id, m.created_by AS muted_by
FROM notifier.escalations e JOIN notifier.alerts a ON a.id = e.alert_id
  LEFT JOIN notifier.mutes m ON m.person_id = a.addressee_id AND m.lead_id = a.lead_id
    AND (m.until IS NULL OR m.until > $1)
WHERE e.ended_at IS NULL AND e.due_at <= $1
ORDER BY e.due_at LIMIT $2 FOR UPDATE OF e SKIP LOCKED
"""

_INSERT = """
INSERT INTO notifier.alerts (id, transition_id, recipient, lead_id, role, person_id, person_name,
  addressee_id, status, subject, body, stage, company, journey_id, urgent, kind, escalated_from, why,
  created_at, handoff_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $6, $8, $9, $10, $11, $12, $13, $14, 'escalation', $15, $16, $17, $18)
ON CONFLICT (transition_id, recipient) DO NOTHING RETURNING id
"""

_DELIVER = """
INSERT INTO notifier.deliveries (alert_id, channel, attempt, last_attempt, status, due_at, addressee_id,
  why, gather, finished_at, latency_ms)
SELECT $1, d.channel, 1, $2, d.status, d.due_at, $3, d.why, d.gather,
  CASE WHEN d.status = 'delivered' THEN $4::timestamptz END,
  CASE WHEN d.status = 'delivered' THEN 0 END
FROM unnest($5::text[], $6::text[], $7::timestamptz[], $8::text[], $9::boolean[])
  AS d (channel, status, due_at, why, gather)
"""

_STEP = "UPDATE notifier.escalations SET due_at = $2, told = $3 WHERE alert_id = $1"
_END = "UPDATE notifier.escalations SET ended_at = $2, why = $3 WHERE alert_id = $1"


def waits_of(text: str) -> dict[str, int]:
    """Read ``ae=30m, csm=4h, *=1d`` (``*``: any other role): seconds by role. Raises ValueError."""
    found: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        role, _, wait = part.partition("=")
        match = _WAIT.fullmatch(wait.strip())
        if match is None or not _ROLE.fullmatch(role.strip()):
            raise ValueError(f"{part!r} is not a role and how long it waits: write ae=30m, csm=4h")
        found[role.strip()] = int(match[1]) * _SECONDS[match[2]]
    return found


def ladder(
    team: Team, addressee_id: str | None, role: str, now: datetime
) -> Iterator[tuple[Person, str]]:
    """Give who hears of an unacknowledged alert, in turn, and as what; after who is away, their stand-in."""
    addressee = team.by_id.get(addressee_id or "")
    deputy = _stand_in(team, addressee, now) if addressee is not None else None
    if deputy is not None:
        yield deputy, "stand-in"
    leads = [(p, f"lead of {role}") for p in team.people if role in p.leads]
    top = [(p, "sales leadership") for p in team.by_role.get(FALLBACK_ROLE, ())]
    for person, rung in (*leads, *top):
        yield person, rung
        deputy = _stand_in(team, person, now)
        if deputy is not None:
            yield deputy, f"stand-in of {one_line(person.name)}, {rung}"


def _stand_in(team: Team, person: Person, now: datetime) -> Person | None:
    """Give who is there for somebody away; None when they are not away, or nobody is."""
    found, passed = person, {person.id}
    while (absence := calendars.away_at(found, now)) is not None:
        following = team.by_id.get(absence.stand_in or "")
        if following is None or following.id in passed:
            return None
        found = following
        passed.add(found.id)
    return found if found is not person else None


def next_step(
    team: Team, addressee_id: str | None, role: str, told: Sequence[str], now: datetime
) -> tuple[Person, str] | None:
    """Give the next of the ladder who was not told yet; None at its end.

    Who is away is passed over while anybody else is left: they would read it after their vacation.
    """
    known = {addressee_id, *told}
    left = [s for s in ladder(team, addressee_id, role, now) if s[0].id not in known]
    there = (s for s in left if calendars.away_at(s[0], now) is None)
    return next(there, left[0] if left else None)


class Escalator:
    """Fires what is due, in each `round`. `recorded` is called when there are new deliveries to make."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        roster: Roster,
        tries: int,
        now: Callable[[], datetime],
        make_id: Callable[[], UUID],
        recorded: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._roster = roster
        self._tries = tries
        self._now = now
        self._make_id = make_id
        self._recorded = recorded
        self.round = Round("escalator", self._climb, POLL_S, metrics.failed)

    async def run_due(self) -> int:
        """Fire the steps that are due now, once; gives how many there were."""
        async with self._pool.acquire() as connection, connection.transaction():
            now = self._now()
            rows = await connection.fetch(_DUE, now, STEPS_AT_ONCE_MAX)
            for row in rows:
                await self._fire(connection, row, now)
        if rows:
            self._recorded()
        return len(rows)

    async def _climb(self) -> bool:
        return await self.run_due() == STEPS_AT_ONCE_MAX

    async def _fire(self, connection: PoolConnectionProxy[Any], row: Any, now: datetime) -> None:
        if row["status"] == "acknowledged":
            await connection.execute(_END, row["alert_id"], now, "acknowledged")
            return
        if row["muted_by"] is not None:
            await connection.execute(_END, row["alert_id"], now, f"muted by {row['muted_by']}")
            return
        team = self._roster.team()
        step = next_step(team, row["addressee_id"], row["role"], row["told"], now)
        if step is None:
            await connection.execute(_END, row["alert_id"], now, "the ladder is at its end")
            return
        person, rung = step
        due = first_deliveries(person, "escalation", row["role"], row["urgent"], now)
        why = _why(row, team, rung, now)
        id = self._make_id()
        statuses = ["delivered" if d.channel == "inbox" else "pending" for d in due]
        subject = one_line(f"Escalated: {row['subject']}", SUBJECT_CHARACTERS_MAX)
        recipient = f"escalation:{len(row['told']) + 1}:{row['alert_id']}"
        made = await connection.fetchval(
            _INSERT, id, row["transition_id"], recipient, row["lead_id"], row["role"], person.id,
            person.name, "pending" if "pending" in statuses else "delivered", subject,
            f"{why}\n\n{row['body']}", row["stage"], row["company"], row["journey_id"],
            row["urgent"], row["alert_id"], why, now, row["handoff_id"],
        )  # fmt: skip
        if made is not None:
            await connection.execute(
                _DELIVER, id, self._tries, person.id, now, [d.channel for d in due], statuses,
                [d.at for d in due], [d.why for d in due], [d.gather for d in due],
            )  # fmt: skip
            metrics.ALERTS.labels(row["role"]).inc()
        # Who is told next waits as long, from when this person could see it.
        seen_at = seen_from(person, "escalation", row["role"], row["urgent"], now)
        due_at = seen_at + timedelta(seconds=row["after_s"])
        await connection.execute(_STEP, row["alert_id"], due_at, [*row["told"], person.id])


def _why(row: Any, team: Team, rung: str, now: datetime) -> str:
    whom = row["person_name"] or "anybody"
    minutes = row["after_s"] // 60
    late = ", late" if now - row["due_at"] > LATE_AFTER else ""
    person = team.by_id.get(row["addressee_id"] or "")
    away = "" if person is None or may_disturb(person, now) <= now else " (not there now)"
    return f"not acknowledged by {one_line(whom)}{away} within {minutes} min{late}: to the {rung}"
