"""The funnel as it was at a past moment: from the events that had arrived and the records made by then.

One pass over the events finds which journeys there were and when each began; the records say where they
were. What merges have since put elsewhere is put back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.contracts.events import (
    ASSIGNED_BY_HAND,
    MERGED_BY_HAND,
    MOVED_BY_HAND,
    PLAYBOOK_PUBLISHED,
    SOURCE,
    UNMERGED_BY_HAND,
)
from services.stage_service.funnel import journey_name
from services.stage_service.funnel_numbers import Basis
from services.stage_service.journal import journey_id
from services.stage_service.lead_facts import ATTRIBUTE_CHARACTERS_MAX, RESERVED
from services.stage_service.offers import ANSWERS, CLOCK_EVENTS
from services.stage_service.past_entered import Begun
from services.stage_service.playbook import Playbook

# Leads that a merge, or its undoing, has changed since: what journeys they may have had whose rows are gone.
_MOVED_SINCE = text("""
WITH RECURSIVE lead AS (
  SELECT unnest(ARRAY[survivor, merged]) AS id FROM stage.merges
  WHERE recorded_at > :at OR undone_at > :at),
holder(id) AS (
  SELECT id FROM lead
  UNION SELECT l.merged_into FROM holder h JOIN stage.leads l ON l.id = h.id
  WHERE l.merged_into IS NOT NULL),
deal AS (SELECT DISTINCT e.deal FROM stage.events e WHERE e.lead_id IN (SELECT id FROM holder))
SELECT DISTINCT lead.id::text AS lead_id, deal.deal FROM lead CROSS JOIN deal
WHERE NOT EXISTS (SELECT FROM stage.journeys j
  WHERE j.lead_id = lead.id AND j.playbook = :playbook AND j.key = deal.deal)
""")
_OWN = [
    ASSIGNED_BY_HAND,
    MERGED_BY_HAND,
    UNMERGED_BY_HAND,
    PLAYBOOK_PUBLISHED,
    *sorted(CLOCK_EVENTS),
]
_FIRST_EPOCH = text("SELECT min(epoch) FROM stage.playbook_versions WHERE name = :playbook")

_LEADS = """
WITH RECURSIVE path AS (
  SELECT position - 1 AS i FROM generate_series(1, CAST(:steps AS int)) AS p(position)),
named AS (
  SELECT * FROM unnest(CAST(:names AS text[]), CAST(:since AS int[]), CAST(:before AS int[]),
    CAST(:places AS int[])) AS n(stage, since, before, i)),
held AS (
  SELECT merged, survivor FROM stage.merges
  WHERE recorded_at <= :at AND (undone_at IS NULL OR undone_at > :at)),
way(id, root) AS (
  SELECT merged, survivor FROM held
  UNION ALL SELECT w.id, h.survivor FROM way w JOIN held h ON h.merged = w.root),
part AS (SELECT id, root FROM way w WHERE NOT EXISTS (SELECT FROM held h WHERE h.merged = w.root)),
"""
# Events of Baton's own that tell nothing of a lead begin no journey (`own_events`); a move by hand and an
# answer begin one in the playbook that they name. Nor does one that is placed before an event of before the
# playbook: it is folded as of then (`funnel.in_place`).
_BEGUN = """
before AS MATERIALIZED (
  SELECT DISTINCT ON (1) coalesce(p.root, e.own_lead_id, e.lead_id) AS lead_id, e.time, e.source, e.id
  FROM stage.events e LEFT JOIN part p ON p.id = coalesce(e.own_lead_id, e.lead_id)
  WHERE e.recorded_at <= :at AND e.lead_id IS NOT NULL AND NOT e.beyond_horizon AND e.epoch < :first_epoch
  ORDER BY 1, e.time DESC, e.source COLLATE "C" DESC, e.id COLLATE "C" DESC),
begun AS MATERIALIZED (
  SELECT coalesce(p.root, e.own_lead_id, e.lead_id) AS lead_id, e.deal AS key, min(e.time) AS started_at
  FROM stage.events e LEFT JOIN part p ON p.id = coalesce(e.own_lead_id, e.lead_id)
    LEFT JOIN before o ON o.lead_id = coalesce(p.root, e.own_lead_id, e.lead_id)
  WHERE e.recorded_at <= :at AND e.lead_id IS NOT NULL AND NOT e.beyond_horizon AND e.epoch >= :first_epoch
    AND (o.lead_id IS NULL OR (e.time, e.source COLLATE "C", e.id COLLATE "C") > (o.time, o.source, o.id))
    AND NOT (e.source = :source AND e.type = ANY(CAST(:own AS text[])))
    AND (NOT (e.type = ANY(CAST(:answers AS text[])) OR e.type = :by_hand AND e.source = :source)
      OR NOT jsonb_exists(e.data, 'playbook') OR e.data ->> 'playbook' = :playbook)
  GROUP BY 1, 2),
"""
_ENTERED = """
begun AS MATERIALIZED (
  SELECT * FROM unnest(CAST(:gone_leads AS uuid[]), CAST(:gone_keys AS text[]),
    CAST(:begun_at AS timestamptz[])) AS b(lead_id, key, started_at)),
"""
_GONE = """
gone AS (
  SELECT * FROM unnest(CAST(:gone_leads AS uuid[]), CAST(:gone_keys AS text[]), CAST(:gone_ids AS uuid[]))
    AS g(lead_id, key, id)),
"""
_VALUE = """
known AS (
  SELECT DISTINCT ON (1) coalesce(p.root, e.own_lead_id, e.lead_id) AS lead_id, e.data ->> :by AS value
  FROM stage.events e LEFT JOIN part p ON p.id = coalesce(e.own_lead_id, e.lead_id)
  WHERE e.recorded_at <= :at AND e.lead_id IS NOT NULL AND NOT e.beyond_horizon AND NOT :by_reserved
    AND jsonb_typeof(e.data -> :by) <> 'null' AND length(e.data ->> :by) <= :characters_max
    AND NOT (e.source = :source AND e.type = ANY(CAST(:own AS text[])))
    AND NOT (e.type = ANY(CAST(:answers AS text[])) OR e.type = :by_hand AND e.source = :source)
    AND (e.deal = 'main' OR NOT :by_of_deal)
  ORDER BY 1, e.time DESC, e.source COLLATE "C" DESC, e.id COLLATE "C" DESC),
"""
_REACH = """
journey AS MATERIALIZED (
  SELECT coalesce(j.id, g.id) AS id, b.started_at, {value} AS value,
    coalesce(l.to_stage, :first_stage) AS stage, coalesce(l.playbook_version, :version) AS version
  FROM begun b
    LEFT JOIN stage.journeys j ON j.lead_id = b.lead_id AND j.playbook = :playbook AND j.key = b.key
    LEFT JOIN gone g ON g.lead_id = b.lead_id AND g.key = b.key
    LEFT JOIN LATERAL (SELECT t.to_stage, t.playbook_version FROM stage.transitions t
      WHERE t.journey_id = coalesce(j.id, g.id) AND t.recorded_at <= :at AND {holds}
      ORDER BY t.sequence DESC LIMIT 1) l ON true {join}
  WHERE (CAST(:from AS timestamptz) IS NULL OR b.started_at >= :from)
    AND (CAST(:to AS timestamptz) IS NULL OR b.started_at < :to)),
entered AS (
  SELECT j.id, p.i, min(t.occurred_at) AS at
  FROM journey j JOIN stage.transitions t ON t.journey_id = j.id
  JOIN named p ON p.stage = t.to_stage AND t.playbook_version >= p.since AND t.playbook_version < p.before
  WHERE t.recorded_at <= :at AND t.kind <> 'retraction' AND {holds}
  GROUP BY j.id, p.i
  UNION ALL SELECT id, 0, started_at FROM journey),
reach AS (
  SELECT j.id, j.value, p.i, bool_or(e.i = p.i) AS entered, min(e.at) AS at
  FROM journey j JOIN entered e ON e.id = j.id JOIN path p ON p.i <= e.i
  GROUP BY j.id, j.value, p.i)
"""
_HOLDS = """(t.replaced_by IS NULL OR NOT EXISTS (SELECT FROM stage.transitions r
  WHERE r.journey_id = t.journey_id AND r.id = t.replaced_by AND r.recorded_at <= :at))"""


async def basis_at(
    engine: AsyncEngine,
    playbook: Playbook,
    at: datetime,
    by: str | None,
    playbooks: Mapping[str, Playbook],
    entered: Sequence[Begun] | None = None,
) -> Basis:
    """Give what the funnel of `playbook` is counted over as it was at the moment `at`.

    `playbook` is the version of then, `playbooks` all of then; `by` an attribute to group by; `entered`
    the journeys there were, where they do not begin with a lead's first event (`past_entered.begun_at`).
    """
    parameters: dict[str, Any] = {
        "at": at, "first_stage": playbook.first_stage, "version": playbook.version, "source": SOURCE,
        "own": _OWN,
        "answers": sorted(ANSWERS), "by_hand": MOVED_BY_HAND,
    }  # fmt: skip
    if entered is None:
        moved, parameters["first_epoch"] = await _begun_by_events(engine, playbook, at)
        sql = _LEADS + _BEGUN + _GONE
    else:
        moved, parameters["begun_at"] = [b[:2] for b in entered], [b.started_at for b in entered]
        sql = _LEADS + _ENTERED + _GONE
    parameters |= {
        "gone_leads": [lead for lead, _ in moved], "gone_keys": [key for _, key in moved],
        "gone_ids": [journey_id(lead, journey_name(playbook.name, key)) for lead, key in moved],
    }  # fmt: skip
    if by is None:
        sql += _REACH.format(value="CAST(NULL AS text)", join="", holds=_HOLDS)
        return Basis(sql, parameters)
    of_deal = {name for each in playbooks.values() for name in each.attributes["deal"]}
    parameters |= {
        "by_reserved": by in RESERVED, "by_of_deal": by in of_deal,
        "characters_max": ATTRIBUTE_CHARACTERS_MAX,
    }  # fmt: skip
    sql += _VALUE + _REACH.format(
        value="coalesce(k.value, '(unknown)')", holds=_HOLDS,
        join="LEFT JOIN known k ON k.lead_id = b.lead_id",
    )  # fmt: skip
    return Basis(sql, parameters)


async def _begun_by_events(
    engine: AsyncEngine, playbook: Playbook, at: datetime
) -> tuple[list[tuple[str, str]], int]:
    """Give the (lead, key) whose journeys' rows may be gone, and the first epoch of `playbook`."""
    wanted = {"at": at, "playbook": playbook.name}
    async with engine.connect() as connection:
        moved = (await connection.execute(_MOVED_SINCE, wanted)).all()
        first_epoch = await connection.scalar(_FIRST_EPOCH, {"playbook": playbook.name})
    return [(lead, key) for lead, key in moved], first_epoch or 0
