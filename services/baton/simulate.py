"""`baton playbook simulate`: real history under a candidate playbook, on all cores, writing nothing.

All processes read one snapshot of the database, so the answer is the same whatever goes on meanwhile and
however many processes there are. A process holds the events of some hundred leads at a time.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from rich.console import Console
from rich.progress import Progress

from services.baton import simulated
from services.baton.command import run
from services.contracts import events as contracts
from services.contracts.events import LeadEvent
from services.contracts.team import Person, Team, load_team
from services.stage_service.funnel import journey_name
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.shelf import Shelf
from services.stage_service.simulation import Past, Simulation, Step, Tally
from services.stage_service.store import Connection

LEADS_A_TIME = 500
LEADS_A_TASK = 2000
NONE_YET = "00000000-0000-0000-0000-000000000000"

_EVENTS = """
SELECT lead_id::text AS lead_id, source, id, type, time, recorded_at, deal, data, epoch
FROM stage.events WHERE lead_id = ANY($1::uuid[]) AND NOT beyond_horizon
"""
_MOVES = """
SELECT journey_id, occurred_at, from_stage, to_stage, coalesce(rule, 'by-hand') AS rule, event_type,
  event_source, event_id
FROM stage.transitions
WHERE journey_id = ANY($1::uuid[]) AND replaced_by IS NULL AND kind <> 'retraction'
ORDER BY journey_id, sequence
"""
_JOURNEYS = """
SELECT id, lead_id::text AS lead_id, playbook, key, stage, furthest_stage FROM stage.journeys
WHERE lead_id = ANY($1::uuid[])
"""
_HANDOFFS = """
SELECT h.journey_id, h.role, h.offered_at, h.answered_at FROM stage.handoffs h
WHERE h.lead_id = ANY($1::uuid[])
  -- What a corrected history does not know was answered by people, and is no part of it. What was offered by
  -- an assignment, within its role, has no transition.
  AND (h.round > 1 OR h.role = h.from_role OR EXISTS (
    SELECT FROM stage.transitions t
    WHERE t.journey_id = h.journey_id AND t.replaced_by IS NULL AND t.kind <> 'retraction'
      AND t.handoff AND t.to_stage = h.stage AND t.occurred_at = h.offered_at))
"""
_BOUNDS = """
SELECT id::text FROM (
  SELECT id, row_number() OVER (ORDER BY id) AS n FROM stage.leads WHERE merged_into IS NULL) AS leads
WHERE n % $1 = 0 ORDER BY id
"""
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Told(msgspec.Struct, frozen=True):
    """What a simulation needs beside the database: for the worker processes."""

    database_url: str
    snapshot: str
    source: str
    file: str
    now: datetime
    since: datetime | None
    hours: dict[str, Person]


def hours_of(team: Team) -> dict[str, Person]:
    """Give, by role, the person whose working hours stand for the role's: the first by id."""
    return {
        role: min(people, key=lambda p: p.id) for role, people in team.by_role.items() if people
    }


def command(
    file: Path,
    since: str,
    workers: int,
    team_file: Path,
    json_file: Path | None,
    csv_file: Path | None,
    database_url: str,
) -> None:
    """Run `baton playbook simulate`: progress and tables on the terminal, files where asked for.

    Raises SourceError, OSError, or ValueError for a `since` that is neither days nor a date.
    """
    now = datetime.now(UTC)
    candidate = parse_playbook(file.read_text(encoding="utf-8"), str(file))
    begin = since_of(since, now)
    console = Console(highlight=False)
    with Progress(console=console, transient=True) as bar:
        row = bar.add_task("folding history", total=None)
        tally = run(simulate(
            database_url, candidate, str(file), load_team(team_file), now, since=begin, workers=workers,
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        ))  # fmt: skip
    simulated.show(tally, candidate, console)
    if json_file is not None:
        text = msgspec.json.format(msgspec.json.encode(simulated.as_json(tally, candidate)))
        json_file.write_bytes(text + b"\n")
    if csv_file is not None:
        with csv_file.open("w", newline="", encoding="utf-8") as out:
            simulated.write_csv(tally, out)


def since_of(text: str, now: datetime) -> datetime | None:
    """Read ``90d`` or a date; None for an empty text. Raises ValueError for anything else."""
    if not text:
        return None
    if text[:-1].isdigit() and text[-1] == "d":
        return now - timedelta(days=int(text[:-1]))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"--since {text!r} is neither days nor a date: write 90d, or 2026-09-01"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


async def simulate(
    database_url: str,
    candidate: Playbook,
    file: str,
    team: Team,
    now: datetime,
    *,
    since: datetime | None = None,
    workers: int = 0,
    leads_a_task: int = LEADS_A_TASK,
    progress: Callable[[int, int], None] | None = None,
) -> Tally:
    """Fold history under `candidate`; gives the numbers of both sides. Writes nothing.

    `since` leaves out leads without an event from then on, and counts only what was after it. `workers` is
    the number of processes; 0: one a core. `progress` hears (leads done, leads at all).
    Raises what the database raises.
    """
    connection = await asyncpg.connect(database_url)
    try:
        # As long as this transaction is open, the others can read what it sees.
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
            bounds = [r["id"] for r in await connection.fetch(_BOUNDS, leads_a_task)]
            total = await connection.fetchval(
                "SELECT count(*) FROM stage.leads WHERE merged_into IS NULL"
            )
            told = Told(database_url, snapshot, candidate.source, file, now, since, hours_of(team))
            return await _on_all(told, bounds, workers or os.cpu_count() or 1, total, progress)
    finally:
        await connection.close()


async def _on_all(
    told: Told,
    bounds: Sequence[str],
    workers: int,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> Tally:
    edges = [NONE_YET, *bounds, ""]
    tasks = list(pairwise(edges))
    whole = Tally()
    # Started afresh, not forked: a connection and a loop of ours must not be theirs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _begin, (told,)) as pool:
        running: set[Future[Tally]] = {pool.submit(_task, after, until) for after, until in tasks}
        try:
            for done in asyncio.as_completed([asyncio.wrap_future(f) for f in running]):
                whole.add(await done)
                if progress is not None:
                    progress(whole.leads, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return whole


_workers: list[_Worker] = []
"""This process's, when it is one of the pool."""


def _begin(told: Told) -> None:
    _workers.append(_Worker(told))


def _task(after: str, until: str) -> Tally:
    return _workers[0].run(after, until)


class _Worker:
    """One process's part: its connection in the common snapshot, and its simulation."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._loop = asyncio.new_event_loop()
        self._connection: Connection | None = None
        self._simulation: Simulation | None = None

    def run(self, after: str, until: str) -> Tally:
        """Give the numbers of the leads with ids after `after` up to `until` ("": to the end)."""
        return self._loop.run_until_complete(self._range(after, until))

    async def _open(self) -> tuple[Connection, Simulation]:
        if self._connection is None or self._simulation is None:
            told = self._told
            connection = await asyncpg.connect(told.database_url)
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            await connection.execute(f"SET TRANSACTION SNAPSHOT '{told.snapshot}'")
            shelf = Shelf()
            await shelf.load(connection)
            candidate = parse_candidate(told.source, told.file, shelf)
            active = {epoch: shelf.at(epoch) for epoch in range(shelf.epoch + 1)}
            self._connection = connection
            self._simulation = Simulation(candidate, active, told.hours, told.now, told.since)
            gc.collect()
            gc.freeze()
            gc.set_threshold(100_000, 20, 100)
        return self._connection, self._simulation

    async def _range(self, after: str, until: str) -> Tally:
        connection, simulation = await self._open()
        tally = Tally()
        while True:
            rows = await connection.fetch(
                """SELECT id::text FROM stage.leads l
                   WHERE id > $1::uuid AND ($2 = '' OR id <= nullif($2, '')::uuid)
                     AND merged_into IS NULL
                     AND ($3::timestamptz IS NULL OR EXISTS (
                       SELECT FROM stage.events e WHERE e.lead_id = l.id AND e.time >= $3))
                   ORDER BY id LIMIT $4""",
                after, until, self._told.since, LEADS_A_TIME,
            )  # fmt: skip
            if not rows:
                return tally
            ids = [r["id"] for r in rows]
            tally.add(simulation.run(await _events(connection, ids), await _past(connection, ids)))
            after = ids[-1]


def parse_candidate(source: str, file: str, shelf: Shelf) -> Playbook:
    """Read the candidate as the version after the newest of its name. Raises SourceError."""
    candidate = parse_playbook(source, file)
    known = shelf.playbooks.get(candidate.name)
    return replace(candidate, version=known.version + 1 if known is not None else 1)


async def _events(
    connection: Connection, ids: Sequence[str]
) -> dict[str, list[tuple[LeadEvent, int]]]:
    found: dict[str, list[tuple[LeadEvent, int]]] = {id: [] for id in ids}
    for lead_id, source, id, type, time, recorded_at, deal, data, epoch in await connection.fetch(
        _EVENTS, ids
    ):
        content = _decode(data)
        identities = contracts.identities_of(content)
        event = LeadEvent(
            id, source, type, time, recorded_at, None,
            identities if isinstance(identities, tuple) else (), deal, content, {},
        )  # fmt: skip
        found[lead_id].append((event, epoch))
    return found


async def _past(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, Past]]:
    journeys = await connection.fetch(_JOURNEYS, ids)
    moves: dict[Any, list[Step]] = {j["id"]: [] for j in journeys}
    handoffs: dict[Any, list[tuple[str, datetime, datetime | None]]] = {
        j["id"]: [] for j in journeys
    }
    for journey_id, *step in await connection.fetch(_MOVES, list(moves)):
        moves[journey_id].append(Step(*step))
    for journey_id, role, offered_at, answered_at in await connection.fetch(_HANDOFFS, ids):
        if journey_id in handoffs:
            handoffs[journey_id].append((role, offered_at, answered_at))
    found: dict[str, dict[str, Past]] = {}
    for j in journeys:
        name = journey_name(j["playbook"], j["key"])
        found.setdefault(j["lead_id"], {})[name] = Past(
            j["playbook"],
            j["key"],
            j["stage"],
            j["furthest_stage"],
            moves[j["id"]],
            handoffs[j["id"]],
        )
    return found
