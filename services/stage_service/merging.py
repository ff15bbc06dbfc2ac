"""Merging leads that are one person: the statements, and what they keep so that it can be undone.

A merge moves events and identities to the survivor and ends the merged lead's journeys; the fold and the
journal then correct the survivor's history. Everything needed to undo it stays: whose an event or identity
was (``own_lead_id``), the merged lead's state as it was, and the survivor's owners. Both leads are locked
before anything here writes, and ``leads.regrouped_by`` makes every batch that looked identities up before
the commit look again. None of this runs for a batch without links.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import (
    LEAD_MERGED,
    TRANSITIONS_TOPIC,
    LeadEvent,
    Message,
    message_headers,
)
from services.contracts.published import Cause, LeadMerged, LeadUnmerged
from services.stage_service import store
from services.stage_service.resolution import Link, Standing
from services.stage_service.store import Connection, Facts, Owner, Record, as_json

_encode = msgspec.json.Encoder().encode


class Change(msgspec.Struct):
    """Why a lead's history is told anew, and who held its journeys before.

    `held_by` gives (role, owner id) by journey name: nobody of them is alerted again. None: only the
    replaced records tell (a late event).
    """

    cause: LeadEvent
    because: str
    last: tuple[datetime, str, str]
    held_by: dict[str, set[tuple[str, str | None]]] | None = None


# What this transaction itself has written is left out, so that asking again after the locks gives the
# same answer when nobody else was faster.
_STANDING = """
SELECT i.lead_id::text, bool_or(i.kind = 'email' OR i.kind LIKE 'external:%'), count(*)::int
FROM stage.identities i
WHERE i.lead_id = ANY($1::uuid[]) AND i.xmin <> pg_current_xact_id()::xid GROUP BY i.lead_id
"""
_BARRED = """
SELECT one::text, other::text FROM stage.barriers
WHERE one = ANY($1::uuid[]) AND other = ANY($1::uuid[]) ORDER BY one, other
"""


async def standing_of(
    connection: Connection, leads: Collection[str]
) -> tuple[dict[str, Standing], list[tuple[str, str]]]:
    """Give what is known of each of `leads`, and which pairs of them were parted by hand."""
    ids = sorted(leads)
    found = {id: Standing(False, 0) for id in ids}
    for id, known, count in await connection.fetch(_STANDING, ids):
        found[id] = Standing(known, count)
    barred: list[tuple[str, str]] = []
    if len(ids) > 1:
        barred = [(one, other) for one, other in await connection.fetch(_BARRED, ids)]
    return found, barred


# Rows of this transaction are the batch's own events and claims: they came with the merge, not before it.
_ABSORB = """
WITH RECURSIVE member AS (SELECT * FROM unnest($1::uuid[], $2::uuid[]) AS m(lead, root)),
pair AS (
  SELECT * FROM unnest($3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::text[],
    $9::timestamptz[], $10::text[], $11::text[], $12::jsonb[], $13::text[])
    AS p(id, survivor, merged, source, event_id, type, at, identities, reason, owners, actor)),
told AS (
  UPDATE stage.events e SET lead_id = m.root, own_lead_id = coalesce(e.own_lead_id, m.lead)
  FROM member m WHERE e.lead_id = m.lead AND e.xmin <> pg_current_xact_id()::xid
    AND (m.lead <> m.root OR e.own_lead_id IS NULL)),
named AS (
  UPDATE stage.identities i SET lead_id = m.root, own_lead_id = coalesce(i.own_lead_id, m.lead)
  FROM member m WHERE i.lead_id = m.lead AND i.xmin <> pg_current_xact_id()::xid
    AND (m.lead <> m.root OR i.own_lead_id IS NULL)),
ended AS (
  DELETE FROM stage.journeys j USING pair p WHERE j.lead_id = p.merged),
withdrawn AS (
  UPDATE stage.handoffs h SET holds = false, updated_at = now(),
    state = CASE h.state WHEN 'offered' THEN 'withdrawn' ELSE h.state END,
    answered_at = CASE h.state WHEN 'offered' THEN $14 ELSE h.answered_at END,
    implied = h.state = 'offered' OR h.implied,
    reason = CASE h.state WHEN 'offered' THEN 'merged into another lead' ELSE h.reason END
  FROM pair p WHERE h.lead_id = p.merged AND h.holds),
stopped AS (
  UPDATE stage.clocks c SET due_at = NULL, ended_at = $14, claimed_until = NULL, updated_at = now(),
    state = CASE WHEN c.missed_at IS NULL THEN 'void' ELSE 'missed' END
  FROM pair p WHERE c.lead_id = p.merged AND c.state = 'running'),
lifted AS (
  DELETE FROM stage.barriers b USING pair p
  WHERE b.one = least(p.survivor, p.merged) AND b.other = greatest(p.survivor, p.merged)),
kept_apart(lead, other, merge_id, inherited_by) AS (
  SELECT p.survivor, CASE WHEN b.one = p.merged THEN b.other ELSE b.one END, b.merge_id, p.id
  FROM pair p JOIN stage.barriers b ON p.merged IN (b.one, b.other)
  UNION ALL SELECT p.survivor, k.other, k.merge_id, p.id
  FROM kept_apart k JOIN pair p ON p.merged = k.lead),
inherited AS (
  INSERT INTO stage.barriers (one, other, merge_id, inherited_by)
  SELECT least(lead, other), greatest(lead, other), merge_id, inherited_by
  FROM kept_apart WHERE lead <> other
  ON CONFLICT (one, other) DO NOTHING),
recorded AS (
  INSERT INTO stage.merges (id, survivor, merged, event_source, event_id, event_type, occurred_at,
    recorded_at, identities, reason, owners, actor)
  SELECT id, survivor, merged, source, event_id, type, at, $14, string_to_array(identities, E'\\n'),
    reason, owners, actor FROM pair)
UPDATE stage.leads l SET regrouped_by = pg_current_xact_id(),
  merged_into = (SELECT p.survivor FROM pair p WHERE p.merged = l.id)
FROM member m WHERE l.id = m.lead
"""

# A lead that owners came to, and that became part of another in the same batch, keeps them.
_KEEP = """
UPDATE stage.leads l SET state = k.state FROM unnest($1::uuid[], $2::bytea[]) AS k(id, state)
WHERE l.id = k.id
"""


async def absorb(
    connection: Connection,
    links: Sequence[Link],
    records: dict[str, Record],
    root: Callable[[str], str],
    recorded_at: datetime,
    new_id: Callable[[], str],
) -> list[Message]:
    """Write the merges of `links` whose leads are locked as `records`; give what is published of them.

    The merged leads' records go, their owners stick to the survivors' journeys that have none for the
    role. `root` gives the lead that a lead is part of in the end.
    """
    rows: list[tuple[Any, ...]] = []
    messages: list[Message] = []
    grown: set[str] = set()
    for link in links:
        survivor, merged = records[link.survivor], records[link.merged]
        id, cause = new_id(), link.cause
        actor = actor_of(cause)
        rows.append((
            id, link.survivor, link.merged, cause.source, cause.id, cause.type, cause.time,
            "\n".join(link.linked), link.reason, as_json(owners_of(survivor)), actor,
        ))  # fmt: skip
        inherit(survivor, merged)
        grown.add(link.survivor)
        messages += told_of(LEAD_MERGED, LeadMerged(
            id, link.merged, link.survivor, link.merged, link.reason, link.linked,
            Cause(cause.id, cause.source, cause.type, None, actor), cause.time, recorded_at,
        ), cause, new_id)  # fmt: skip
    members = sorted({lead for link in links for lead in (link.survivor, link.merged)})
    await connection.execute(
        _ABSORB, members, [root(lead) for lead in members],
        *([row[i] for row in rows] for i in range(len(rows[0]))), recorded_at,
    )  # fmt: skip
    between = [r for r in (records[link.merged] for link in links) if r.id in grown and r.lead]
    if between:
        await connection.execute(
            _KEEP, [r.id for r in between],
            [store.pack_state(r.lead, r.facts) for r in between if r.lead],
        )  # fmt: skip
    for link in links:
        del records[link.merged]
    return messages


def actor_of(cause: LeadEvent) -> str | None:
    """Give who did it, of one of Baton's own events."""
    actor = cause.data.get("actor") if cause.source == "baton" else None
    return actor if isinstance(actor, str) else None


def owners_of(record: Record) -> dict[str, dict[str, Owner]]:
    """Give the owners of each journey of `record`, by role."""
    return {name: dict(facts.owners) for name, facts in record.facts.items() if facts.owners}


def inherit(survivor: Record, merged: Record) -> None:
    """Let owners stick: those of the merged lead hold where the survivor has none for the role."""
    for name, facts in merged.facts.items():
        mine = survivor.facts.get(name) or Facts(0, {})
        survivor.facts[name] = Facts(
            mine.sequence,
            {**facts.owners, **mine.owners},
            mine.clocks,
            {**facts.aside, **mine.aside},
        )


def told_of(
    type: str, event: LeadMerged | LeadUnmerged, cause: LeadEvent, new_id: Callable[[], str]
) -> list[Message]:
    """Give the message in the order of each lead: the merged one's last, or first, is among them."""
    return [
        Message(
            TRANSITIONS_TOPIC, lead,
            message_headers(new_id(), type, event.recorded_at, cause.traceparent, lead),
            _encode(msgspec.structs.replace(event, lead_id=lead)),
        )
        for lead in (event.merged, event.survivor)
    ]  # fmt: skip
