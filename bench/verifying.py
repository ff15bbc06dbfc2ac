"""(l) `baton verify` over what went through the service: events a second on all cores, and its memory."""

from __future__ import annotations

import asyncio
import os
import time

from bench.ground import Ground, count, settle
from bench.load import Caller
from bench.measure import Figure, Options, Result, alternate
from bench.memory import watched
from bench.simulating import refold
from bench.traffic import batches, encoded
from services.baton.verify import verify_database
from services.contracts.cloudevents import BATCHED

KEY = "l"
TITLE = "Verify"
EVENTS_A_LEAD = 5
BATCH = 500
IN_FLIGHT = 4
WAITED_S = 120.0
METHOD = (
    "{leads:,} leads with {events:,} events that went through the stage service in batches (two of five move "
    "the lead), with the records, handoffs, clocks and messages that came of them. `baton verify` folds all "
    "of it again and compares everything stored, in one process a core ({cores}), over one snapshot; timed "
    "from the call to the answer, the start of the processes and the checks of the whole database included. "
    "Baseline: a plain re-fold in one process (500 leads a query), that compares nothing. Memory is the "
    "largest sum of the resident memory of this process and its workers while it ran."
)
MEMORY_TARGET_MB = 500.0


async def run(options: Options) -> Result:
    """Measure it."""
    result = Result(KEY, TITLE, METHOD)
    leads = options.leads or (4_000 if options.quick else 40_000)
    leads = max(BATCH, leads // BATCH * BATCH)
    async with Ground() as ground:
        url, key = await ground.database("verified")
        await _fill(await ground.service("stage", url), key, leads)
        await _published(url)
        ground.stop_services()
        await settle(url)
        events = await count(url, "SELECT count(*) FROM stage.events")
        options.say(f"  {leads:,} leads with {events:,} events stored")
        memory: list[tuple[float, float]] = []

        async def ours(_: int) -> float:
            async with watched() as peak:
                began = time.perf_counter()
                report = await verify_database(url, workers=0)
                seconds = time.perf_counter() - began
            if not report.clean or (report.leads, report.events) != (leads, events):
                raise RuntimeError(
                    f"it is not clean, or not all of it was seen: {report.lines()[:5]}"
                )
            memory.append((MEMORY_TARGET_MB, peak.mb))
            return events / seconds

        async def baseline(_: int) -> float:
            began = time.perf_counter()
            return await refold(url) / (time.perf_counter() - began)

        rounds = await alternate(options.times(3), baseline, ours, options.say)
    result.method = METHOD.format(leads=leads, events=events, cores=os.cpu_count())
    result.figures = [
        Figure("throughput", "events/s", "a plain re-fold in one process", rounds),
        Figure("memory at most", "MB", "the limit", memory[1:], target=MEMORY_TARGET_MB,
               at_most=True, absolute=True),
    ]  # fmt: skip
    result.notes.append("every run saw every event, and found nothing.")
    return result


async def _fill(service: str, key: str, leads: int) -> None:
    """Send the events of `leads` leads through the service."""
    bodies = [encoded(b) for b in batches("l", leads * EVENTS_A_LEAD // BATCH, BATCH, leads)]
    callers = [await Caller.open(service, key, BATCHED) for _ in range(IN_FLIGHT)]

    async def send(caller: Caller) -> None:
        while bodies:
            await caller.post(bodies.pop(0))
        caller.close()

    await asyncio.gather(*(send(caller) for caller in callers))


async def _published(url: str) -> None:
    """Wait until nothing waits for the relay."""
    deadline = time.monotonic() + WAITED_S
    while await count(url, "SELECT count(*) FROM bus.pending"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not everything was published within {WAITED_S:.0f} s")
        await asyncio.sleep(0.2)
