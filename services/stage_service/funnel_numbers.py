"""The funnel in numbers: how many reached each stage, how many went on, how long it took.

A journey has *reached* a stage of the path when it entered it or any later one; a stage it jumped over
is *skipped*, and passed at the moment of the jump. Times run from reaching a stage to reaching the next
one. Only history that holds counts: what was corrected is out. What was told of a stage under an earlier
name counts for it as it is called now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.stage_service.playbook import Playbook
from services.stage_service.stage_names import stored_names

GROUPS_MAX = 200

DEFINITION = {
    "journeys": "journeys of the playbook whose first event lies in [from, to)",
    "reached": "entered the stage or a later one of the path; a skipped stage counts",
    "skipped": "reached without ever entering",
    "current": "are in the stage now",
    "converted": "reached the next stage of the path",
    "rate": "converted / reached",
    "median_seconds": "from reaching the stage to reaching the next one, of those that entered both "
    "or skipped the next",
}


class Basis(NamedTuple):
    """What a funnel is counted over: the statement's CTEs up to ``reach``, and their parameters."""

    ctes: str
    parameters: dict[str, Any]


# positions: 0 for the first stage, which is reached when the journey starts.
_REACH = """
WITH path AS (
  SELECT position - 1 AS i FROM generate_series(1, CAST(:steps AS int)) AS p(position)),
named AS (
  SELECT * FROM unnest(CAST(:names AS text[]), CAST(:since AS int[]), CAST(:before AS int[]),
    CAST(:places AS int[])) AS n(stage, since, before, i)),
journey AS MATERIALIZED (
  SELECT j.id, j.stage, j.playbook_version AS version, j.started_at, {value} AS value
  FROM stage.journeys j {join}
  WHERE j.playbook = :playbook
    AND (CAST(:from AS timestamptz) IS NULL OR j.started_at >= :from)
    AND (CAST(:to AS timestamptz) IS NULL OR j.started_at < :to)),
entered AS (
  SELECT j.id, p.i, min(t.occurred_at) AS at
  FROM journey j JOIN stage.transitions t ON t.journey_id = j.id
  JOIN named p ON p.stage = t.to_stage AND t.playbook_version >= p.since AND t.playbook_version < p.before
  WHERE t.replaced_by IS NULL AND t.kind <> 'retraction'
  GROUP BY j.id, p.i
  UNION ALL SELECT id, 0, started_at FROM journey),
reach AS (
  SELECT j.id, j.value, p.i, bool_or(e.i = p.i) AS entered, min(e.at) AS at
  FROM journey j JOIN entered e ON e.id = j.id JOIN path p ON p.i <= e.i
  GROUP BY j.id, j.value, p.i)
"""

_FUNNEL = """,
step AS (
  SELECT id, value, i, entered, at, lead(at) OVER (PARTITION BY id ORDER BY i) AS next FROM reach)
SELECT value, i, count(*) AS reached, count(*) FILTER (WHERE NOT entered) AS skipped,
  count(next) AS converted,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM next - at))
    FILTER (WHERE entered AND next IS NOT NULL) AS median_seconds,
  percentile_cont(0.9) WITHIN GROUP (ORDER BY extract(epoch FROM next - at))
    FILTER (WHERE entered AND next IS NOT NULL) AS p90_seconds,
  grouping(value) AS whole
FROM step GROUP BY GROUPING SETS ((i), (value, i))
"""

_CURRENT = """
SELECT value, stage, version, count(*) AS current, grouping(value) AS whole
FROM journey GROUP BY GROUPING SETS ((stage, version), (value, stage, version))
"""

_PAIR = """
SELECT count(*) AS count,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM b.at - a.at)) AS median_seconds,
  percentile_cont(0.9) WITHIN GROUP (ORDER BY extract(epoch FROM b.at - a.at)) AS p90_seconds
FROM reach a JOIN reach b ON b.id = a.id WHERE a.i = :first AND b.i = :second
"""


def _reach(by: str | None) -> str:
    if by is None:
        return _REACH.format(value="CAST(NULL AS text)", join="")
    return _REACH.format(
        value="coalesce(l.attributes ->> :by, '(unknown)')",
        join="JOIN stage.leads l ON l.id = j.lead_id",
    )


def _parameters(
    playbook: Playbook, since: datetime | None, until: datetime | None, by: str | None
) -> dict[str, Any]:
    place_of = {key: place for place, key in enumerate(playbook.path)}
    # Where nobody said where the journeys of a stage went on, a later file may.
    places = [
        (name, place_of[now])
        for name in stored_names(playbook)
        if (now := playbook.migrate.get(name.now, name.now)) in place_of
    ]
    parameters: dict[str, Any] = {
        "steps": len(playbook.path), "names": [n.stage for n, _ in places],
        "since": [n.since for n, _ in places], "before": [n.before for n, _ in places],
        "places": [place for _, place in places],
        "playbook": playbook.name, "from": since, "to": until,
    }  # fmt: skip
    return parameters | ({"by": by} if by is not None else {})


async def funnel(
    engine: AsyncEngine,
    playbook: Playbook,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    by: str | None = None,
    basis: Basis | None = None,
) -> dict[str, Any]:
    """Give the funnel of `playbook`: definition, stages, exits, and with `by` (an attribute) groups.

    Times are in seconds. At most 200 groups, the largest first. `basis`: counted over that, not over what
    is now.
    """
    ctes, more = basis or Basis(_reach(by), {})
    parameters = _parameters(playbook, since, until, by) | more
    async with engine.connect() as connection:
        steps = (await connection.execute(text(ctes + _FUNNEL), parameters)).mappings().all()
        now = (await connection.execute(text(ctes + _CURRENT), parameters)).mappings().all()
    whole_steps = {r["i"]: r for r in steps if r["whole"]}
    whole_now = _current(playbook, [r for r in now if r["whole"]])
    answer: dict[str, Any] = {
        "playbook": playbook.name,
        "definition": DEFINITION,
        "stages": _stages(playbook, whole_steps, whole_now),
        "exits": _exits(playbook, whole_now),
    }
    if by is not None:
        answer["groups"] = _groups(playbook, steps, now)
    return answer


def _groups(
    playbook: Playbook, steps: Sequence[RowMapping], now: Sequence[RowMapping]
) -> list[dict[str, Any]]:
    values = {r["value"]: r["reached"] for r in steps if not r["whole"] and r["i"] == 0}
    largest = sorted(values, key=lambda v: (-values[v], v))[:GROUPS_MAX]
    return [
        {
            "value": value,
            "stages": _stages(
                playbook,
                {r["i"]: r for r in steps if not r["whole"] and r["value"] == value},
                _current(playbook, [r for r in now if not r["whole"] and r["value"] == value]),
            ),
        }
        for value in largest
    ]


def _current(playbook: Playbook, rows: Sequence[RowMapping]) -> dict[str, int]:
    """Give how many are in each stage, those too that are stored under the name it had before."""
    found: dict[str, int] = {}
    for row in rows:
        stage = playbook.current(row["stage"], row["version"])
        found[stage] = found.get(stage, 0) + row["current"]
    return found


def _stages(
    playbook: Playbook, steps: Mapping[int, RowMapping], now: Mapping[str, int]
) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = []
    for i, key in enumerate(playbook.path):
        step = steps.get(i)
        is_last = i == len(playbook.path) - 1
        reached = step["reached"] if step else 0
        converted = None if is_last else (step["converted"] if step else 0)
        stages.append({
            "stage": key,
            "title": playbook.stages[key].title,
            "reached": reached,
            "skipped": step["skipped"] if step else 0,
            "current": now.get(key, 0),
            "converted": converted,
            "rate": converted / reached if reached and converted is not None else None,
            "median_seconds": _seconds(step["median_seconds"] if step else None),
            "p90_seconds": _seconds(step["p90_seconds"] if step else None),
        })  # fmt: skip
    return stages


def _exits(playbook: Playbook, now: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {"stage": s.key, "title": s.title, "current": now.get(s.key, 0)}
        for s in playbook.stages.values()
        if s.path_index is None
    ] + [  # stages that an earlier version had, and somebody is still in
        {"stage": key, "title": key, "current": count}
        for key, count in sorted(now.items())
        if key not in playbook.stages
    ]


def _seconds(value: Any) -> float | None:
    return None if value is None else float(value)


async def durations(
    engine: AsyncEngine,
    playbook: Playbook,
    first: str,
    second: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    basis: Basis | None = None,
) -> dict[str, Any]:
    """Give how long journeys took from reaching stage `first` to reaching `second` (keys of the path).

    Gives ``count``, ``median_seconds`` and ``p90_seconds``; a skipped stage was reached when it was
    jumped over. `basis` as for the funnel.
    """
    ctes, more = basis or Basis(_reach(None), {})
    parameters = _parameters(playbook, since, until, None) | more | {
        "first": playbook.path.index(first), "second": playbook.path.index(second)
    }  # fmt: skip
    async with engine.connect() as connection:
        row = (await connection.execute(text(ctes + _PAIR), parameters)).mappings().one()
    return {
        "playbook": playbook.name, "from_stage": first, "to_stage": second, "count": row["count"],
        "median_seconds": _seconds(row["median_seconds"]),
        "p90_seconds": _seconds(row["p90_seconds"]),
    }  # fmt: skip
