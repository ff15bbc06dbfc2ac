"""Which journeys there were, at a past moment, of a playbook that is entered from another.

They begin where the other's journey stands in a stage: only the fold says when. Leads that heard nothing
since are as their rows say; the others are folded again from what had arrived, a few at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from services.contracts.events import LeadEvent
from services.stage_service import funnel, store
from services.stage_service.errors import InvalidRequestError
from services.stage_service.playbook import Playbook
from services.stage_service.shelf import Shelf
from services.stage_service.store import Connection

LEADS_FOLDED_MAX = 20_000
"""More leads are not folded again for one answer."""
LEADS_A_TIME = 50

# A merge holds from the batch that made it until the batch that undid it (`as_of`).
_HELD = """
held AS (
  SELECT merged, survivor FROM stage.merges
  WHERE recorded_at <= $1 AND (undone_at IS NULL OR undone_at > $1)),
way(id, root) AS (
  SELECT merged, survivor FROM held
  UNION ALL SELECT w.id, h.survivor FROM way w JOIN held h ON h.merged = w.root),
part AS (SELECT id, root FROM way w WHERE NOT EXISTS (SELECT FROM held h WHERE h.merged = w.root))"""
# Leads of then that anything happened to since.
_CHANGED = f"""
WITH RECURSIVE {_HELD},
changed AS MATERIALIZED (
  SELECT DISTINCT coalesce(p.root, c.id) AS id FROM (
    SELECT unnest(ARRAY[lead_id, own_lead_id]) AS id FROM stage.events WHERE recorded_at > $1
    UNION SELECT unnest(ARRAY[survivor, merged]) FROM stage.merges
      WHERE recorded_at > $1 OR undone_at > $1) c LEFT JOIN part p ON p.id = c.id
  WHERE c.id IS NOT NULL)"""  # noqa: S608
_AS_STORED = f"""{_CHANGED}
SELECT j.lead_id::text, j.key, j.started_at FROM stage.journeys j LEFT JOIN part p ON p.id = j.lead_id
WHERE j.playbook = $2 AND NOT EXISTS (SELECT FROM changed c WHERE c.id = coalesce(p.root, j.lead_id))
"""  # noqa: S608
# Those of them that may have entered: that ever were in a stage it is entered from, corrected or not.
_TO_FOLD = f"""{_CHANGED},
stood AS (
  SELECT DISTINCT coalesce(p.root, t.lead_id) AS id
  FROM stage.transitions t LEFT JOIN part p ON p.id = t.lead_id
  WHERE t.recorded_at <= $1 AND t.playbook = ANY($2) AND t.to_stage = ANY($3))
SELECT c.id::text FROM changed c
WHERE $4 OR EXISTS (SELECT FROM stood s WHERE s.id = c.id)
ORDER BY c.id LIMIT $5
"""  # noqa: S608
_MEMBERS = f"""
WITH RECURSIVE {_HELD}
SELECT id::text, root::text FROM part WHERE root = ANY($2::uuid[])
"""  # noqa: S608


class Begun(NamedTuple):
    """A journey of then: whose, with which key, and since when."""

    lead_id: str
    key: str
    started_at: datetime


class _Doors(NamedTuple):
    """Where a playbook is entered from, in any of its versions."""

    playbooks: set[str]
    stages: set[str]
    everybody: bool
    """Some begin without having moved to any of `stages`."""


async def begun_at(
    connection: Connection, shelf: Shelf, playbook: Playbook, at: datetime
) -> list[Begun] | None:
    """Give the journeys of `playbook` as they were known at the moment `at`.

    `playbook` is its version of then. None: no version so far is entered from another,
    so its journeys begin with a lead's first event. Raises InvalidRequestError where too many leads would
    have to be folded. Reads several tables: run it in one snapshot.
    """
    doors = _doors(shelf, playbook)
    if doors is None:
        return None
    rows = await connection.fetch(_AS_STORED, at, playbook.name)
    found = [Begun(*row) for row in rows]
    rows = await connection.fetch(
        _TO_FOLD,
        at,
        list(doors.playbooks),
        list(doors.stages),
        doors.everybody,
        LEADS_FOLDED_MAX + 1,
    )
    if len(rows) > LEADS_FOLDED_MAX:
        raise InvalidRequestError(
            f"more than {LEADS_FOLDED_MAX} leads that may have entered {playbook.name!r} by then "
            "have changed since", field="at", value=at.isoformat(),
            remedy="Ask for a moment nearer to now, or for one when there were fewer.",
        )  # fmt: skip
    for first in range(0, len(rows), LEADS_A_TIME):
        ids = [row["id"] for row in rows[first : first + LEADS_A_TIME]]
        for lead_id, told in (await _arrived(connection, ids, at)).items():
            found += await _folded(connection, shelf, playbook, lead_id, told)
    return found


async def _arrived(
    connection: Connection, roots: Iterable[str], at: datetime
) -> Mapping[str, list[tuple[LeadEvent, int]]]:
    """Give what had arrived by then of each of the leads that `roots` were then."""
    root_of = {id: id for id in roots}
    root_of |= dict(await connection.fetch(_MEMBERS, at, list(root_of)))
    found: dict[str, list[tuple[LeadEvent, int]]] = {}
    for own, event, epoch in await store.own_events_by_then(connection, list(root_of), at):
        found.setdefault(root_of[own], []).append((event, epoch))
    return found


async def _folded(
    connection: Connection, shelf: Shelf, playbook: Playbook, lead_id: str,
    told: list[tuple[LeadEvent, int]],
) -> list[Begun]:  # fmt: skip
    if any(epoch > shelf.epoch for _, epoch in told):
        await shelf.load(connection)
    lead = funnel.refold(told, shelf.at).lead
    await asyncio.sleep(0)  # events that come meanwhile are not kept waiting
    journeys = lead.journeys.values() if lead is not None else ()
    return [Begun(lead_id, j.key, j.started_at) for j in journeys if j.playbook == playbook.name]


def _doors(shelf: Shelf, playbook: Playbook) -> _Doors | None:
    """Give all stages that any version of `playbook` is entered from, under all their names.

    None: none up to this one is entered from another.
    """
    until = [shelf.version(playbook.name, n) for n in range(1, playbook.version + 1)]
    if all(version.enters is None for version in until):
        return None
    doors = _Doors(set(), set(), any(version.enters is None for version in until))
    everybody = doors.everybody
    for version in _versions(shelf, playbook.name):
        if version.enters is None:
            continue
        doors.playbooks.add(version.enters.playbook)
        for theirs in _versions(shelf, version.enters.playbook):
            stages = {version.enters.stage, theirs.named(version.enters.stage)}
            doors.stages.update(stages)
            everybody = everybody or theirs.first_stage in stages
    return doors._replace(everybody=everybody)


def _versions(shelf: Shelf, name: str) -> list[Playbook]:
    newest = shelf.playbooks.get(name)
    return [shelf.version(name, n) for n in range(1, newest.version + 1)] if newest else []
