"""(k) Single events beside a simulation: what a live service's senders notice of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import httpx

from bench.alerts import RATE, paced
from bench.ground import Ground, settle
from bench.load import Caller
from bench.measure import Figure, Options, Result, percentile
from bench.million import fill
from bench.traffic import encoded
from services.baton.places import PLAYBOOKS
from services.contracts.cloudevents import STRUCTURED

KEY = "k"
TITLE = "Single events beside a simulation"
LEADS = 100_000
METHOD = (
    "{rate} single events a second to a stage service with {leads:,} leads stored, paced whatever the "
    "answers do (open loop, timed from when each was due), in turn with nothing else going on (the baseline) "
    "and while the service runs a simulation over all of them that was asked for over HTTP, with as many "
    "processes as the service allows by itself (half the cores); one that ends begins anew. No target: the "
    "machine is shared by all of it, the load generator too."
)
_POLL_S = 0.2
_RUNS = "/v1/playbooks/simulations"


async def run(options: Options) -> Result:
    """Measure it."""
    result = Result(KEY, TITLE, METHOD)
    seconds = options.seconds(10.0, 3.0)
    candidate = (PLAYBOOKS / "sales.yaml").read_text(encoding="utf-8")
    candidate = candidate.replace("score.total >= 60", "score.total >= 40")
    async with Ground() as ground:
        url, key = await ground.database("beside")
        service = await ground.service("stage", url)
        leads = options.leads or (10_000 if options.quick else LEADS)
        await fill(url, service, key, leads)
        await settle(url)
        pairs: list[tuple[list[float], list[float]]] = []
        for number in range(options.times(3) + 1):
            alone = await _latencies(service, key, f"alone-{number}", seconds)
            async with _simulating(service, key, candidate) as begun:
                beside = await _latencies(service, key, f"beside-{number}", seconds)
            if number:
                pairs.append((alone, beside))
                options.say(f"  round {number}: p99 {percentile(alone, 0.99):.1f} ms alone, "
                            f"{percentile(beside, 0.99):.1f} ms beside {len(begun)} simulations")  # fmt: skip
    result.method = METHOD.format(rate=RATE, leads=leads)
    result.figures = [
        Figure(f"p{share * 100:.0f}", "ms", "alone",
               [(percentile(a, share), percentile(b, share)) for a, b in pairs], at_most=True)
        for share in (0.5, 0.99)
    ]  # fmt: skip
    return result


async def _latencies(url: str, key: str, prefix: str, seconds: float) -> list[float]:
    """Give how long each answer took, in milliseconds, from when its request was due."""
    idle: list[Caller] = []
    took: list[float] = []
    began = time.perf_counter()

    async def send(number: int) -> None:
        caller = idle.pop() if idle else await Caller.open(url, key, STRUCTURED)
        body = encoded({
            "specversion": "1.0", "id": f"{prefix}-{number}", "source": "/bench",
            "type": "page.viewed", "data": {"email": f"{prefix}-{number}@bench.example"},
        })  # fmt: skip
        await caller.post(body)
        took.append((time.perf_counter() - began - number / RATE) * 1000)
        idle.append(caller)

    await paced(seconds, send)
    for caller in idle:
        caller.close()
    return took


@contextlib.asynccontextmanager
async def _simulating(url: str, key: str, candidate: str) -> AsyncIterator[list[str]]:
    """Have a simulation run all the time; give the ids of those that began."""
    begun: list[str] = []
    headers = {"authorization": f"Bearer {key}", "content-type": "application/yaml"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:

        async def begin() -> None:
            answer = await client.post("/v1/playbooks/simulate", content=candidate)
            answer.raise_for_status()
            begun.append(answer.json()["id"])

        async def keep() -> None:
            while True:
                await asyncio.sleep(_POLL_S)
                run = (await client.get(_RUNS)).json()["items"][0]
                if run["state"] == "failed":
                    raise RuntimeError(f"a simulation failed: {run['reason']}")
                if run["state"] == "done":
                    await begin()

        await begin()
        keeping = asyncio.create_task(keep())
        try:
            yield begun
        finally:
            if keeping.done():
                keeping.result()
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await client.delete(f"{_RUNS}/{begun[-1]}")
