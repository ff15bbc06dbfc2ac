"""(j) A candidate playbook on real history: events a second on all cores, and the memory it takes."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime

import asyncpg

from bench.ground import Ground, count, settle
from bench.measure import Figure, Options, Result, alternate
from bench.memory import watched
from bench.million import TEMPLATES, fill
from services.baton.places import PLAYBOOKS
from services.contracts.team import load_team
from services.stage_service import funnel, store
from services.stage_service.playbook import parse_playbook
from services.stage_service.simulation import Tally
from services.stage_service.simulations.pool import hours_of, simulate

KEY = "j"
TITLE = "Simulation of another threshold"
EVENTS = 1_000_000
LEADS_A_TIME = 500
METHOD = (
    "{leads:,} leads with {events:,} stored events, copies of {templates} that went through the service "
    "(see (e)). The simulation folds all of them under the sales playbook with an MQL threshold of 40 "
    "instead of 60, compares with the recorded moves and counts both sides, in one process a core "
    "({cores}); timed from the call to the answer, the start of the processes included. Baseline: a plain "
    "re-fold in one process, as `baton verify` reads (500 leads a query), that compares and counts nothing. "
    "The target is absolute. Memory is the largest sum of the resident memory of this process and its "
    "workers while it ran."
)
MEMORY_TARGET_MB = 500.0


async def run(options: Options) -> Result:
    """Measure it."""
    result = Result(KEY, TITLE, METHOD)
    path = PLAYBOOKS / "sales.yaml"
    text = path.read_text(encoding="utf-8")
    candidate = parse_playbook(text.replace("score.total >= 60", "score.total >= 40"), str(path))
    hours = hours_of(load_team(PLAYBOOKS / "team.yaml"))
    async with Ground() as ground:
        url, key = await ground.database("history")
        service = await ground.service("stage", url)
        leads = options.leads or (20_000 if options.quick else EVENTS // 5)
        await fill(url, service, key, leads)
        ground.stop_services()
        await settle(url)
        events = await count(url, "SELECT count(*) FROM stage.events")
        options.say(f"  {leads:,} leads with {events:,} events stored")
        tallies: list[Tally] = []
        memory: list[tuple[float, float]] = []

        async def ours(_: int) -> float:
            async with watched() as peak:
                began = time.perf_counter()
                tally = await simulate(url, candidate, str(path), hours, datetime.now(UTC))
                seconds = time.perf_counter() - began
            memory.append((MEMORY_TARGET_MB, peak.mb))
            tallies.append(tally)
            return tally.events / seconds

        async def baseline(_: int) -> float:
            began = time.perf_counter()
            folded = await refold(url)
            return folded / (time.perf_counter() - began)

        rounds = await alternate(options.times(3), baseline, ours, options.say)
    first = tallies[0]
    if any(t != first for t in tallies) or first.events != events or not first.differing:
        raise RuntimeError("the simulations differ from each other, or saw not every event")
    result.method = METHOD.format(
        leads=leads, events=events, templates=TEMPLATES, cores=os.cpu_count()
    )
    result.figures = [
        Figure("throughput", "events/s", "a plain re-fold in one process", rounds, target=60_000,
               absolute=True),
        Figure("memory at most", "MB", "the limit", memory[1:], target=MEMORY_TARGET_MB,
               at_most=True, absolute=True),
    ]  # fmt: skip
    result.notes.append(
        f"{first.differing:,} of {first.journeys:,} journeys would differ; every run gave the same answer."
    )
    return result


async def refold(url: str) -> int:
    """Fold all stored events in this process, and give how many there are; compares nothing."""
    text = (PLAYBOOKS / "sales.yaml").read_text(encoding="utf-8")
    active = {"sales": replace(parse_playbook(text, "sales.yaml"), version=1)}
    connection = await asyncpg.connect(url)
    events, last = 0, "00000000-0000-0000-0000-000000000000"
    try:
        while rows := await connection.fetch(
            "SELECT id::text FROM stage.leads WHERE id > $1::uuid ORDER BY id LIMIT $2",
            last, LEADS_A_TIME,
        ):  # fmt: skip
            ids = [r["id"] for r in rows]
            for told in (await store.events_of_leads(connection, ids)).values():
                events += len(told)
                funnel.refold(told, lambda _: active)
            last = ids[-1]
    finally:
        await connection.close()
    return events
