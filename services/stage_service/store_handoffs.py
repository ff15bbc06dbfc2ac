"""The statements that write handoffs and clocks, and find what is due. None of them commits.

Rows of a lead are written while it is locked. A due clock is claimed for some seconds: who claims it submits
its lead event, and the lane, which writes the row with the event, ends the claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from services.stage_service.store import Beside, Connection

CLAIM_S = 10


class HandoffRow(msgspec.Struct, frozen=True):
    """One row of ``stage.handoffs``."""

    id: str
    journey_id: str
    lead_id: str
    playbook: str
    key: str
    stage: str
    role: str
    from_role: str
    round: int
    person_id: str | None
    person_name: str | None
    giver_id: str | None
    transition_id: str | None
    offered_at: datetime
    recorded_at: datetime
    asked_at: datetime | None
    due_at: datetime | None
    state: str
    overdue_at: datetime | None
    answered_at: datetime | None
    answered_by: str | None
    implied: bool
    reason: str | None


class ClockRow(msgspec.Struct, frozen=True):
    """One row of ``stage.clocks`` as the lane writes it: running."""

    id: str
    journey_id: str
    lead_id: str
    playbook: str
    deal: str
    key: str
    kind: str
    stage: str
    role: str
    person_id: str | None
    handoff_id: str | None
    since: datetime
    begin: datetime
    deadline: datetime
    step: int
    due_at: datetime | None
    missed_at: datetime | None


class Closing(msgspec.Struct, frozen=True):
    """How a clock ends: at `at`; `void`: it counts as neither met nor missed."""

    id: str
    at: datetime
    void: bool
    missed_at: datetime | None


class DueClock(msgspec.Struct, frozen=True):
    """A clock that was found due and is claimed."""

    id: str
    lead_id: str
    playbook: str
    deal: str
    key: str
    kind: str
    stage: str
    role: str
    person_id: str | None
    handoff_id: str | None
    round: int | None
    since: datetime
    begin: datetime
    deadline: datetime
    step: int
    due_at: datetime
    missed_at: datetime | None
    state: bytes | None
    """The lead's state, where the clock counts from its last activity."""


_HANDED = ", ".join(HandoffRow.__struct_fields__)
_WOUND = ", ".join(ClockRow.__struct_fields__)

_CTES = f"""
handed AS (
  INSERT INTO stage.handoffs AS h ({_HANDED})
  SELECT {_HANDED} FROM unnest($14::stage.handoff_row[])
  ON CONFLICT (id) DO UPDATE SET state = excluded.state, overdue_at = excluded.overdue_at,
    answered_at = excluded.answered_at, answered_by = excluded.answered_by,
    implied = excluded.implied, reason = excluded.reason,
    asked_at = coalesce(excluded.asked_at, h.asked_at),
    person_id = coalesce(excluded.person_id, h.person_id),
    person_name = coalesce(excluded.person_name, h.person_name),
    due_at = coalesce(excluded.due_at, h.due_at), holds = true, updated_at = now()),
wound AS (
  INSERT INTO stage.clocks AS c ({_WOUND}, state)
  SELECT {_WOUND}, 'running' FROM unnest($15::stage.clock_row[])
  ON CONFLICT (id) DO UPDATE SET role = excluded.role,
    person_id = excluded.person_id, since = excluded.since,
    begin = excluded.begin,
    deadline = excluded.deadline, step = excluded.step, due_at = excluded.due_at, state = 'running',
    missed_at = coalesce(c.missed_at, excluded.missed_at), ended_at = NULL, claimed_until = NULL,
    updated_at = now()),
ended AS (
UPDATE stage.clocks c SET ended_at = k.at, due_at = NULL, claimed_until = NULL, updated_at = now(),
  missed_at = coalesce(c.missed_at, k.missed),
  state = CASE WHEN coalesce(c.missed_at, k.missed) IS NOT NULL THEN 'missed'
    WHEN k.void THEN 'void' ELSE 'met' END
FROM (
  SELECT w.id, w.at, w.void,
    coalesce(w.missed, CASE WHEN NOT w.void AND w.at > d.deadline THEN d.deadline END) AS missed
  FROM unnest($16::uuid[], $17::timestamptz[], $18::boolean[], $19::timestamptz[])
    AS w(id, at, void, missed) JOIN stage.clocks d ON d.id = w.id) AS k
WHERE c.id = k.id AND c.state = 'running')
"""  # noqa: S608

_CLAIM = """
UPDATE stage.clocks c SET claimed_until = $1::timestamptz + make_interval(secs => $3)
FROM (
  SELECT id FROM stage.clocks WHERE state = 'running' AND due_at <= $1
    AND (claimed_until IS NULL OR claimed_until <= $1)
  ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED) AS due
WHERE c.id = due.id
RETURNING c.id::text, c.lead_id::text, c.playbook, c.deal, c.key, c.kind, c.stage, c.role, c.person_id,
  c.handoff_id::text,
  (SELECT h.round FROM stage.handoffs h WHERE h.id = c.handoff_id) AS round,
  c.since, c.begin, c.deadline, c.step, c.due_at, c.missed_at,
  CASE WHEN c.kind = 'activity' THEN (SELECT l.state FROM stage.leads l WHERE l.id = c.lead_id) END AS state
"""


def beside(
    handoffs: Sequence[HandoffRow], clocks: Sequence[ClockRow], closings: Sequence[Closing]
) -> Beside:
    """Give what writes handoffs and running clocks, and ends others, in the batch's one statement."""
    return Beside(_CTES, (
        [msgspec.structs.astuple(row) for row in handoffs],
        [msgspec.structs.astuple(row) for row in clocks], [c.id for c in closings], [c.at for c in closings],
        [c.void for c in closings], [c.missed_at for c in closings],
    ))  # fmt: skip


async def handoffs_of(connection: Connection, leads: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give what is recorded of the handoffs of `leads`: {lead id: {handoff id: row}}."""
    rows = await connection.fetch(
        """SELECT h.*, h.id::text AS id, h.journey_id::text AS journey_id, h.lead_id::text AS lead_id
           FROM stage.handoffs h WHERE h.lead_id = ANY($1::uuid[])""",
        leads,
    )
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["lead_id"], {})[row["id"]] = dict(row)
    return found


async def withdraw(connection: Connection, ids: Sequence[str], at: datetime) -> None:
    """Take back handoffs that the corrected history does not know: they count no more, and wait no more.

    An answer that was given stays on the row.
    """
    await connection.execute(
        """UPDATE stage.handoffs SET holds = false, updated_at = now(),
             state = CASE state WHEN 'offered' THEN 'withdrawn' ELSE state END,
             answered_at = CASE state WHEN 'offered' THEN $2 ELSE answered_at END,
             implied = state = 'offered' OR implied,
             reason = CASE state WHEN 'offered' THEN 'the history was corrected' ELSE reason END
           WHERE id = ANY($1::uuid[])""",
        ids, at,
    )  # fmt: skip


async def claim_due(connection: Connection, now: datetime, most: int) -> list[DueClock]:
    """Claim at most `most` clocks that are due and that nobody else has in hand."""
    rows = await connection.fetch(_CLAIM, now, most, CLAIM_S)
    return [DueClock(**dict(row)) for row in rows]


async def put_off(
    connection: Connection, moved: Sequence[tuple[str, datetime, datetime, datetime]]
) -> None:
    """Move clocks whose lead was active meanwhile: (id, since, deadline, due_at).

    One that a batch is writing is left to its claim's end.
    """
    await connection.execute(
        """UPDATE stage.clocks c SET since = k.since, deadline = k.deadline, due_at = k.due,
             claimed_until = NULL, updated_at = now()
           FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[])
             AS k(id, since, deadline, due)
           WHERE c.id = k.id AND c.id IN (SELECT id FROM stage.clocks
             WHERE id = ANY($1::uuid[]) AND state = 'running' FOR UPDATE SKIP LOCKED)""",
        *([m[i] for m in moved] for i in range(4)),
    )  # fmt: skip


async def release(connection: Connection, ids: Sequence[str], at: datetime, *, void: bool) -> None:
    """End the claims made at `at`; with `void`, the clocks stand for nothing any more and end.

    Another's claim of a next step is left alone, and so is a row that a batch is writing: to wait for
    one while holding others is a deadlock.
    """
    await connection.execute(
        """UPDATE stage.clocks SET claimed_until = NULL, updated_at = now(),
             state = CASE WHEN $2 THEN CASE WHEN missed_at IS NULL THEN 'void' ELSE 'missed' END
               ELSE state END,
             due_at = CASE WHEN $2 THEN NULL ELSE due_at END,
             ended_at = CASE WHEN $2 THEN $3::timestamptz ELSE ended_at END
           WHERE id IN (SELECT id FROM stage.clocks
             WHERE id = ANY($1::uuid[]) AND state = 'running'
               AND claimed_until = $3::timestamptz + make_interval(secs => $4)
             FOR UPDATE SKIP LOCKED)""",
        ids, void, at, CLAIM_S,
    )  # fmt: skip
