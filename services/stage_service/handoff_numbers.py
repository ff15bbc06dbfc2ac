"""Handoffs in numbers: answered how, deadlines met and missed, how long it took, and who has how much to do.

Every figure is of the handoffs offered in a span of time; `DEFINITION` says in words what each counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.contracts.team import Team
from services.stage_service.playbook import Playbook
from services.stage_service.reads_handoffs import clock_title

By = Literal["role", "person", "stage"]
GROUPS_MAX = 200
REASONS_MAX = 20

DEFINITION = {
    "handoffs": "handoffs of the playbook offered in [from, to); each round is one; what a corrected "
    "history does not know is out",
    "offered": "all of them; accepted + rejected + withdrawn + waiting",
    "accepted": "accepted by a word or a deed (an event that shows it, or the journey went on)",
    "rejected": "rejected with a reason",
    "withdrawn": "needed no answer any more: given to somebody else, or the journey went another way",
    "waiting": "without an answer now",
    "overdue": "waiting now although the deadline has passed",
    "deadlines": "met, answered before the deadline; missed, the deadline "
    "passed first; withdrawn ones and those that run within their time are neither",
    "time_to_accept": "seconds on the wall from offered to accepted; explicit: somebody said so, "
    "implied: a deed showed it",
    "speed_to_lead": "seconds from the event by which the lead asked for contact to the first "
    "acceptance of a handoff in the journey, counted where that handoff is; an explicit answer or a deed",
    "groups": "by=person: value null is nobody, ~history those that became known only when they were over",
    "reasons": "the rejections by reason, the most frequent first, at most 20",
    "clocks": "clocks of stages and of activity that began in [from, to), by key: met, ended in time; "
    "missed, the deadline passed; running, neither yet",
    "load": "everybody in the roster, now: open journeys held of the capacity, handoffs waiting for "
    "them, and of these the overdue ones; of all playbooks and times",
}

HISTORY = "~history"
"""Stands for a person where there was none to answer: no person's id begins so."""
_PERSON = f"""coalesce(h.person_id, CASE WHEN h.state <> 'offered' AND h.answered_at <= h.recorded_at
    THEN '{HISTORY}' END)"""

_COLUMNS = {
    "role": ("h.role", "c.role"), "person": (_PERSON, "c.person_id"), "stage": ("h.stage", "c.stage"),
}  # fmt: skip

_H = """
WITH h AS MATERIALIZED (
  SELECT h.*, {value} AS value FROM stage.handoffs h
  WHERE h.playbook = :playbook AND h.holds
    AND (CAST(:from AS timestamptz) IS NULL OR h.offered_at >= :from)
    AND (CAST(:to AS timestamptz) IS NULL OR h.offered_at < :to))
"""

_ANSWERS = """,
first AS (
  SELECT DISTINCT ON (a.journey_id) a.id, extract(epoch FROM a.answered_at - a.asked_at) AS took
  FROM stage.handoffs a
  WHERE a.lead_id IN (SELECT lead_id FROM h) AND a.playbook = :playbook AND a.state = 'accepted'
    AND a.holds
    AND a.answered_at >= a.asked_at
  ORDER BY a.journey_id, a.answered_at, a.id),
one AS (
  SELECT h.value, h.state, h.implied, f.took AS speed,
    h.state = 'offered' AND (h.overdue_at IS NOT NULL OR coalesce(h.due_at <= :now, false)) AS overdue,
    CASE WHEN h.state = 'accepted' THEN
      greatest(extract(epoch FROM h.answered_at - h.offered_at), 0) END AS took,
    h.state IN ('accepted', 'rejected') AND h.overdue_at IS NULL
      AND coalesce(h.answered_at <= h.due_at, false) AS met,
    h.overdue_at IS NOT NULL OR (h.state <> 'withdrawn'
      AND coalesce(coalesce(h.answered_at, :now) > h.due_at, false)) AS missed
  FROM h LEFT JOIN first f ON f.id = h.id)
SELECT value, grouping(value) AS whole, count(*) AS offered,
  count(*) FILTER (WHERE state = 'accepted') AS accepted,
  count(*) FILTER (WHERE state = 'rejected') AS rejected,
  count(*) FILTER (WHERE state = 'withdrawn') AS withdrawn,
  count(*) FILTER (WHERE state = 'offered') AS waiting,
  count(*) FILTER (WHERE overdue) AS overdue,
  count(*) FILTER (WHERE met) AS met, count(*) FILTER (WHERE missed) AS missed,
  {explicit}, {implied}, {speed}
FROM one GROUP BY GROUPING SETS ((), (value))
"""


def _times(name: str, column: str, which: str) -> str:
    """Give the count, median and p90 of `column` where `which` holds, as columns that begin with `name`."""
    told = f"FILTER (WHERE {column} IS NOT NULL AND {which})"
    return (
        f"count({column}) {told} AS {name}_count,"
        f" percentile_cont(0.5) WITHIN GROUP (ORDER BY {column}) {told} AS {name}_median,"
        f" percentile_cont(0.9) WITHIN GROUP (ORDER BY {column}) {told} AS {name}_p90"
    )


_ANSWERED = _ANSWERS.format(
    explicit=_times("explicit", "took", "NOT implied"), implied=_times("implied", "took", "implied"),
    speed=_times("speed", "speed", "true"),
)  # fmt: skip

_REASONS = """
SELECT value, grouping(value) AS whole, reason, count(*) AS count
FROM h WHERE state = 'rejected' GROUP BY GROUPING SETS ((reason), (value, reason))
ORDER BY count DESC, reason
"""

_CLOCKS = """
WITH c AS (
  SELECT {value} AS value, c.key, c.kind,
    CASE WHEN c.state = 'running' AND c.missed_at IS NOT NULL THEN 'missed' ELSE c.state END AS state
  FROM stage.clocks c
  WHERE c.playbook = :playbook AND c.kind <> 'handoff'
    AND (CAST(:from AS timestamptz) IS NULL OR c.since >= :from)
    AND (CAST(:to AS timestamptz) IS NULL OR c.since < :to))
SELECT value, grouping(value) AS whole, key, min(kind) AS kind,
  count(*) FILTER (WHERE state = 'met') AS met, count(*) FILTER (WHERE state = 'missed') AS missed,
  count(*) FILTER (WHERE state = 'running') AS running
FROM c GROUP BY GROUPING SETS ((key), (value, key)) ORDER BY key
"""

_LOAD = text("""
SELECT coalesce(j.id, w.id) AS id, coalesce(j.open, 0) AS open_journeys,
  coalesce(w.waiting, 0) AS waiting, coalesce(w.overdue, 0) AS overdue
FROM (SELECT holder AS id, count(*) AS open FROM stage.journeys WHERE holder IS NOT NULL
      GROUP BY holder) j
FULL JOIN (
  SELECT person_id AS id, count(*) AS waiting,
    count(*) FILTER (WHERE overdue_at IS NOT NULL OR due_at <= :now) AS overdue
  FROM stage.handoffs WHERE state = 'offered' AND person_id IS NOT NULL GROUP BY person_id) w
ON w.id = j.id
""")


async def handoff_numbers(
    engine: AsyncEngine,
    playbook: Playbook,
    team: Team,
    now: datetime,
    *,
    by: By = "role",
    since: datetime | None = None,
    until: datetime | None = None,
) -> dict[str, Any]:
    """Give what became of the handoffs of `playbook` offered in [since, until), as a whole and `by` group.

    At most 200 groups, those with the most handoffs first. Times in seconds. With the load of everybody now.
    """
    of_handoff, of_clock = _COLUMNS[by]
    parameters = {"playbook": playbook.name, "from": since, "to": until}
    chosen = _H.format(value=of_handoff)
    async with engine.connect() as connection:
        answers = await _read(connection, chosen + _ANSWERED, parameters | {"now": now})
        reasons = await _read(connection, chosen + _REASONS, parameters)
        clocks = await _read(connection, _CLOCKS.format(value=of_clock), parameters)
        load = await _load(connection, team, now)
    groups = {
        value: _group(playbook, [a for a in answers if not a["whole"] and a["value"] == value],
                      [r for r in reasons if not r["whole"] and r["value"] == value],
                      [c for c in clocks if not c["whole"] and c["value"] == value])
        for value in {r["value"] for r in (*answers, *clocks) if not r["whole"]}
    }  # fmt: skip
    largest = sorted(groups, key=lambda v: (-groups[v]["offered"], v is None, v or ""))
    return {
        "playbook": playbook.name, "definition": DEFINITION, "by": by,
        "total": _group(playbook, *([r for r in rows if r["whole"]] for rows in (
            answers, reasons, clocks))),
        "groups": [
            {"value": v, "title": _title(by, v, playbook, team), **groups[v]}
            for v in largest[:GROUPS_MAX]
        ],
        "load": load,
    }  # fmt: skip


async def _read(
    connection: AsyncConnection, query: str, parameters: dict[str, Any]
) -> list[dict[str, Any]]:
    return [dict(r) for r in (await connection.execute(text(query), parameters)).mappings()]


def _title(by: By, value: str | None, playbook: Playbook, team: Team) -> str:
    if value is None:
        return "nobody"
    if by == "role":
        return playbook.roles[value].title if value in playbook.roles else value
    if by == "stage":
        stage = playbook.stages.get(playbook.named(value))
        return stage.title if stage is not None else value
    if value == HISTORY:
        return "nobody: known only when it was over"
    return team.by_id[value].name if value in team.by_id else value


_NONE: Mapping[str, Any] = {}


def _group(
    playbook: Playbook,
    answers: Sequence[Mapping[str, Any]],
    reasons: Sequence[Mapping[str, Any]],
    clocks: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    row = answers[0] if answers else _NONE
    counts = ("offered", "accepted", "rejected", "withdrawn", "waiting", "overdue")
    return {
        **{name: row.get(name, 0) for name in counts},
        "deadlines": {"met": row.get("met", 0), "missed": row.get("missed", 0)},
        "time_to_accept": {n: _time(row, n) for n in ("explicit", "implied")},
        "speed_to_lead": _time(row, "speed"),
        "reasons": [
            {"reason": r["reason"], "count": r["count"]} for r in reasons[:REASONS_MAX]
        ],
        "clocks": [
            {"key": c["key"], "title": clock_title(playbook, c["key"]), "kind": c["kind"],
             "met": c["met"], "missed": c["missed"], "running": c["running"]}
            for c in clocks
        ],
    }  # fmt: skip


def _time(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    seconds = [row.get(f"{name}_{which}") for which in ("median", "p90")]
    median, p90 = (None if s is None else float(s) for s in seconds)
    return {"count": row.get(f"{name}_count", 0), "median_seconds": median, "p90_seconds": p90}


async def _load(connection: AsyncConnection, team: Team, now: datetime) -> list[dict[str, Any]]:
    rows = (await connection.execute(_LOAD, {"now": now})).mappings().all()
    known = {r["id"]: r for r in rows}
    gone = [id for id in known if id not in team.by_id]
    return [
        {
            "id": id,
            "name": team.by_id[id].name if id in team.by_id else id,
            "roles": list(team.by_id[id].roles) if id in team.by_id else [],
            "open_journeys": known[id]["open_journeys"] if id in known else 0,
            "capacity": team.by_id[id].capacity if id in team.by_id else None,
            "waiting": known[id]["waiting"] if id in known else 0,
            "overdue": known[id]["overdue"] if id in known else 0,
        }
        for id in (*team.by_id, *sorted(gone))
    ]
