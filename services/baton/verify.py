"""`baton verify`: fold every stored event again and compare with what is stored (I1-I5, I7).

All processes read one snapshot of the database, so it can run beside live traffic, and says the same however
many processes there are. A process holds the events of some hundred leads at a time. It writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from itertools import pairwise

import asyncpg

from services.baton.verify_leads import check_leads
from services.baton.verify_merges import check_merges
from services.baton.verify_whole import check_alerts, check_bus, check_orphans
from services.contracts.verification import Verification
from services.stage_service.shelf import Shelf
from services.stage_service.simulations import history
from services.stage_service.simulations.workers import spread
from services.stage_service.store import Connection

Report = Verification
LEADS_A_TIME = 500
LEADS_A_TASK = 2000

Progress = Callable[[int, int], None]
"""Hears (leads done, leads at all)."""


async def verify_database(
    database_url: str,
    *,
    workers: int = 1,
    leads_a_task: int = LEADS_A_TASK,
    progress: Progress | None = None,
) -> Verification:
    """Check the database and give the report, the same with any number of `workers`.

    `workers` is the number of processes; 1: this one, 0: one a core. Raises what the database raises.
    """
    connection = await asyncpg.connect(database_url)
    try:
        # As long as this transaction is open, the others can read what it sees.
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            report = Verification()
            await check_orphans(connection, report)
            await check_bus(connection, report)
            await check_alerts(connection, report)
            report.merges = await check_merges(connection, report.add_finding)
            total = await history.count_leads(connection, None)
            bounds = await history.bounds(connection, None, leads_a_task)
            tasks = list(pairwise([history.NONE_YET, *bounds, ""]))
            number = min(workers or os.cpu_count() or 1, len(tasks))
            parts = (
                _here(connection, tasks) if number == 1
                else _on_all(connection, database_url, tasks, number)
            )  # fmt: skip
            async for part in parts:
                report.add(part)
                if progress is not None:
                    progress(report.leads, total)
    finally:
        await connection.close()
    return report


async def _here(
    connection: Connection, tasks: Sequence[tuple[str, str]]
) -> AsyncIterator[Verification]:
    shelf = Shelf()
    await shelf.load(connection)
    for after, until in tasks:
        yield await _range(connection, shelf, after, until)


async def _on_all(
    connection: Connection, database_url: str, tasks: Sequence[tuple[str, str]], workers: int
) -> AsyncIterator[Verification]:
    """Give the parts in the order of `tasks`, whichever ends first: so the report is always the same."""
    snapshot = await history.share_snapshot(connection)
    with spread(partial(_opened, database_url, snapshot), tasks, workers) as running:
        for part in running:
            yield await part


async def _range(connection: Connection, shelf: Shelf, after: str, until: str) -> Verification:
    """Check the leads with ids after `after` up to `until` ("": to the end)."""
    report = Verification()
    while ids := await history.lead_ids(connection, None, after, until, LEADS_A_TIME):
        report.add(await check_leads(connection, shelf, ids))
        after = ids[-1]
    return report


async def _opened(
    database_url: str, snapshot: str
) -> Callable[[str, str], Awaitable[Verification]]:
    """Open one process's part: its connection in the common snapshot, and the playbooks."""
    connection = await asyncpg.connect(database_url)
    await history.join_snapshot(connection, snapshot)
    shelf = Shelf()
    await shelf.load(connection)
    return partial(_range, connection, shelf)
