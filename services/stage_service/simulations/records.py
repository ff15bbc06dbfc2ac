"""Simulations as the table knows them: any replica finds, ends and lists them, whichever runs them.

One runs at a time in all replicas together (`one_simulation`, a unique index). Who runs one is heard of every
second; not heard of for half a minute, it counts as failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from services.contracts.postgres_log import Executor
from services.stage_service.errors import ConflictError, NotFoundError

KEPT_MAX = 50
LOST = "the process that ran it is gone"

_LOST = "state = 'running' AND beat_at < now() - interval '30 s'"
_COLUMNS = f"""
SELECT id::text, playbook, digest, since, workers, asked_by, leads_done, leads_total, started_at,
  CASE WHEN {_LOST} THEN 'failed' ELSE state END AS state,
  CASE WHEN {_LOST} THEN '{LOST}' ELSE reason END AS reason,
  CASE WHEN {_LOST} THEN beat_at ELSE ended_at END AS ended_at
FROM stage.simulations
"""  # noqa: S608  nothing in these comes from outside
_RUNNING = f"SELECT id::text FROM stage.simulations WHERE state = 'running' AND NOT ({_LOST})"  # noqa: S608
_END_LOST = f"""
UPDATE stage.simulations SET state = 'failed', reason = '{LOST}', ended_at = beat_at WHERE {_LOST}
"""  # noqa: S608


class Progress(msgspec.Struct, frozen=True):
    """Leads done of all; None: they are not counted yet."""

    leads_done: int
    leads_total: int | None


class Run(msgspec.Struct, frozen=True):
    """One simulation: what was asked, how far it is, how it ended.

    ``state`` is running, done, failed or cancelled; `reason` says why it failed.
    """

    id: str
    playbook: str
    digest: str
    state: str
    reason: str | None
    since: datetime | None
    workers: int
    asked_by: str
    started_at: datetime
    ended_at: datetime | None
    progress: Progress


def _run(row: Mapping[str, Any]) -> Run:
    return Run(
        row["id"], row["playbook"], row["digest"], row["state"], row["reason"], row["since"],
        row["workers"], row["asked_by"], row["started_at"], row["ended_at"],
        Progress(row["leads_done"], row["leads_total"]),
    )  # fmt: skip


def busy(id: str) -> ConflictError:
    """Give the error for a simulation that has to wait for `id`."""
    return ConflictError(
        "a simulation is running, and only one runs at a time", extra={"simulation": id},
        remedy=f"Wait for it (GET /v1/playbooks/simulations/{id}), or end it (DELETE).",
    )  # fmt: skip


def unknown(id: str) -> NotFoundError:
    """Give the error for a simulation that is not there."""
    return NotFoundError(
        f"there is no simulation {id[:80]!r}", field="id", value=id,
        remedy=f"GET /v1/playbooks/simulations lists the newest {KEPT_MAX}, which are kept.",
    )  # fmt: skip


async def running(executor: Executor) -> str | None:
    """Give the id of the simulation that runs, in whatever replica."""
    rows = await executor.fetch(_RUNNING)
    return rows[0]["id"] if rows else None


async def begin(pool: asyncpg.Pool[Any], run: Run, source: str) -> None:
    """Record `run` as running; the oldest beyond `KEPT_MAX` are forgotten. Raises ConflictError."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_END_LOST)
        made = await connection.fetchval(
            """INSERT INTO stage.simulations
                 (id, playbook, digest, source, since, workers, asked_by, state, started_at, beat_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, 'running', $8, now())
               ON CONFLICT (state) WHERE state = 'running' DO NOTHING RETURNING id""",
            run.id, run.playbook, run.digest, source, run.since, run.workers, run.asked_by,
            run.started_at,
        )  # fmt: skip
        if made is None:
            raise busy(await running(connection) or "")
        await connection.execute(
            """DELETE FROM stage.simulations WHERE id IN (
                 SELECT id FROM stage.simulations WHERE state <> 'running'
                 ORDER BY started_at DESC, id DESC OFFSET $1)""",
            KEPT_MAX - 1,
        )


async def beat(pool: asyncpg.Pool[Any], id: str, progress: Progress) -> bool:
    """Say that `id` is being worked on, and how far it is. False: it is to stop, somebody ended it."""
    return await pool.fetchval(
        "UPDATE stage.simulations SET beat_at = now(), leads_done = $2, leads_total = $3 "
        "WHERE id = $1 AND state = 'running' RETURNING true",
        id, progress.leads_done, progress.leads_total,
    ) or False  # fmt: skip


async def end(
    pool: asyncpg.Pool[Any], id: str, state: str, *, reason: str | None = None,
    result: bytes | None = None, progress: Progress | None = None,
) -> bool:  # fmt: skip
    """Record how `id` ended, unless it has ended; tell whether that was done."""
    return await pool.fetchval(
        """UPDATE stage.simulations SET state = $2, reason = $3, result = $4, ended_at = now(),
             leads_done = coalesce($5, leads_done), leads_total = coalesce($6, leads_total)
           WHERE id = $1 AND state = 'running' RETURNING true""",
        id, state, reason, result, progress and progress.leads_done,
        progress and progress.leads_total,
    ) or False  # fmt: skip


async def look(executor: Executor, id: str) -> Run | None:
    """Give a simulation, None when there is none of that id."""
    rows = await executor.fetch(_COLUMNS + "WHERE id = $1", id)
    return _run(rows[0]) if rows else None


async def find(executor: Executor, id: str) -> Run:
    """Give a simulation; raises NotFoundError."""
    found = await look(executor, id)
    if found is None:
        raise unknown(id)
    return found


async def newest(executor: Executor) -> list[Run]:
    """Give the simulations that are kept, newest first."""
    rows = await executor.fetch(_COLUMNS + "ORDER BY started_at DESC, id DESC LIMIT $1", KEPT_MAX)
    return [_run(row) for row in rows]


async def result(pool: asyncpg.Pool[Any], id: str) -> bytes | None:
    """Give the document of a simulation, as it was made; None: it has none."""
    return await pool.fetchval("SELECT result FROM stage.simulations WHERE id = $1", id)


async def source(pool: asyncpg.Pool[Any], id: str) -> str | None:
    """Give the text that was simulated."""
    return await pool.fetchval("SELECT source FROM stage.simulations WHERE id = $1", id)
