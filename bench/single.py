"""(a) One durable event a request, against an endpoint of FastAPI and pydantic that does nothing."""

from __future__ import annotations

import secrets

from bench import cost
from bench.ground import Ground, count, settle
from bench.load import WRK_MISSING, Load, has_wrk, wrk
from bench.measure import Figure, Options, Result, alternate

KEY = "a"
TITLE = "Single events, durable"
METHOD = (
    "wrk, 1 thread, {connections} keep-alive connections, every body a new structured CloudEvent. "
    "Stories of five events a lead (created, page viewed, demo requested, e-mail clicked, meeting "
    "booked), two of which move it. Ours: key checked, event validated, rules, transition, outbox, "
    "commit with fsync, answer. Baseline: the same body validated by pydantic in FastAPI, answered at "
    "once, the same server settings, one worker each."
)
WARM_S = 3


async def run(options: Options) -> Result:
    """Measure it."""
    result = Result(KEY, TITLE, METHOD.format(connections=options.connections))
    if not has_wrk():
        result.skipped = WRK_MISSING
        return result
    seconds = options.seconds(8, 3)
    loads: list[tuple[Load, Load]] = []
    seen: list[Load] = []
    spent: list[cost.Cpu] = []
    nothing: list[cost.Cpu] = []
    async with Ground() as ground:
        database, key = await ground.database("bench")
        ours_url = await ground.service("stage", database)
        noop_url = await ground.baseline()

        async def measure(url: str, number: int) -> float:
            name, costs = ("stage", spent) if url == ours_url else ("noop", nothing)
            before = ground.cpu(name)
            load = await wrk(
                url, key, f"r{number}-{secrets.token_hex(3)}",
                seconds=seconds if number else WARM_S, connections=options.connections,
            )  # fmt: skip
            seen.append(load)
            if number:
                costs.append(ground.cpu(name).since(before))
            return load.rate

        async def ours(number: int) -> float:
            rate = await measure(ours_url, number)
            if number:
                loads.append((seen[-2], seen[-1]))
            else:
                await settle(database)
            return rate

        rounds = await alternate(options.times(), lambda n: measure(noop_url, n), ours, options.say)
        answered = sum(load.requests for load in seen[1::2])
        stored = await count(database, "SELECT count(*) FROM stage.events")
        moved = await count(database, "SELECT count(*) FROM stage.transitions")
        late = await count(
            database, "SELECT count(*) FROM stage.transitions WHERE kind <> 'transition'"
        )
        result.notes += ground.complaints("stage", "noop")
    if stored < answered:
        raise RuntimeError(f"{answered} events were answered 200, but only {stored} are stored")
    result.figures = [
        Figure("throughput", "requests/s", "FastAPI and pydantic, nothing done", rounds,
               target=0.6, goal=1.0),
        Figure("p50", "ms", "FastAPI and pydantic, nothing done",
               [(b.p50_ms, o.p50_ms) for b, o in loads], at_most=True),
        Figure("p99", "ms", "FastAPI and pydantic, nothing done",
               [(b.p99_ms, o.p99_ms) for b, o in loads], at_most=True),
    ]  # fmt: skip
    result.notes.append(
        f"{answered:,} events answered 200 and {stored:,} stored; {moved / stored:.0%} moved a lead; "
        f"{late:,} corrections of history."
    )
    result.notes.append(
        f"{cost.note(cost.total(spent), sum(o.requests for _, o in loads))} The baseline: "
        f"{1e6 * cost.total(nothing).service_s / sum(b.requests for b, _ in loads):.0f}."
    )
    return result
