"""Real history under a candidate playbook, in as many processes as asked for, writing nothing.

All processes read one snapshot of the database, so the answer is the same whatever goes on meanwhile and
however many processes there are. A process holds the events of some hundred leads at a time.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise

import asyncpg
import msgspec

from services.contracts.team import Person, Team
from services.stage_service.playbook import Playbook
from services.stage_service.shelf import Shelf
from services.stage_service.simulation import Simulation, Tally
from services.stage_service.simulations import history
from services.stage_service.simulations.workers import spread
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
    with spread(partial(_opened, told), tasks, min(workers, len(tasks))) as running:
        for done in asyncio.as_completed(running):
            part = await done
            whole.add(part)
            if progress is not None and part.leads:
                progress(whole.leads, total)
    return whole


async def _opened(told: Told) -> Callable[[str, str], Awaitable[Tally]]:
    """Open one process's part: its connection in the common snapshot, and its simulation."""
    connection = await asyncpg.connect(told.database_url)
    await history.join_snapshot(connection, told.snapshot)
    shelf = Shelf()
    await shelf.load(connection)
    candidate = history.parse_candidate(told.source, told.file, shelf)
    active = {epoch: shelf.at(epoch) for epoch in range(shelf.epoch + 1)}
    simulation = Simulation(candidate, active, told.hours, told.now, told.since)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    return partial(_range, connection, simulation, told.since)


async def _range(
    connection: Connection, simulation: Simulation, since: datetime | None, after: str, until: str
) -> Tally:
    """Give the numbers of the leads with ids after `after` up to `until` ("": to the end)."""
    tally = Tally()
    while ids := await history.lead_ids(connection, since, after, until, LEADS_A_TIME):
        told = await history.events_of(connection, ids)
        tally.add(simulation.run(told, await history.past_of(connection, ids)))
        after = ids[-1]
    return tally
