"""Real history under a candidate playbook, in as many processes as asked for, writing nothing.

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
from datetime import datetime, timedelta
from itertools import pairwise

import asyncpg
import msgspec

from services.contracts.team import Person, Team
from services.stage_service.playbook import Playbook
from services.stage_service.shelf import Shelf
from services.stage_service.simulation import Simulation, Tally
from services.stage_service.simulations import history
from services.stage_service.store import Connection

LEADS_A_TIME = 500
LEADS_A_TASK = 2000
SINCE_DAYS_MAX = 36_500

Progress = Callable[[int, int], None]
"""Hears (leads done, leads at all): first of none done, at last of all."""


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


def since_of(text: str, now: datetime) -> datetime | None:
    """Read ``90d`` or a date; None for an empty text. Raises ValueError for anything else."""
    if not text:
        return None
    digits = text[:-1]
    if text[-1] == "d" and digits.isascii() and digits.isdigit() and len(digits) < 6:
        return now - timedelta(days=min(int(digits), SINCE_DAYS_MAX))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither days nor a date: write 90d, or 2026-09-01") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=now.tzinfo)


async def simulate(
    database_url: str,
    candidate: Playbook,
    file: str,
    hours: dict[str, Person],
    now: datetime,
    *,
    since: datetime | None = None,
    workers: int = 0,
    leads_a_task: int = LEADS_A_TASK,
    progress: Progress | None = None,
) -> Tally:
    """Fold history under `candidate`; gives the numbers of both sides. Writes nothing.

    `hours` as `hours_of` gives them. `since` leaves out leads without an event from then on, and counts only
    what was after it. `workers` is the number of processes; 0: one a core.
    Raises what the database raises.
    """
    connection = await asyncpg.connect(database_url)
    try:
        # As long as this transaction is open, the others can read what it sees.
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            snapshot = await history.share_snapshot(connection)
            edges = [history.NONE_YET, *await history.bounds(connection, since, leads_a_task), ""]
            total = await history.count_leads(connection, since)
            told = Told(database_url, snapshot, candidate.source, file, now, since, hours)
            return await _on_all(told, edges, workers or os.cpu_count() or 1, total, progress)
    finally:
        await connection.close()


async def _on_all(
    told: Told, edges: Sequence[str], workers: int, total: int, progress: Progress | None
) -> Tally:
    tasks = list(pairwise(edges))
    whole = Tally()
    if progress is not None:
        progress(0, total)
    # Started afresh, not forked: a connection and a loop of ours must not be theirs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _begin, (told,)) as pool:
        running: set[Future[Tally]] = {pool.submit(_task, after, until) for after, until in tasks}
        try:
            for done in asyncio.as_completed([asyncio.wrap_future(f) for f in running]):
                part = await done
                whole.add(part)
                if progress is not None and part.leads:
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
            await history.join_snapshot(connection, told.snapshot)
            shelf = Shelf()
            await shelf.load(connection)
            candidate = history.parse_candidate(told.source, told.file, shelf)
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
        while ids := await history.lead_ids(
            connection, self._told.since, after, until, LEADS_A_TIME
        ):
            told = await history.events_of(connection, ids)
            tally.add(simulation.run(told, await history.past_of(connection, ids)))
            after = ids[-1]
        return tally
