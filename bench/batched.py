"""(b) Batches of 500 events, against the same rows inserted straight into ``stage.events``."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import uuid_utils

from bench import cost, floor
from bench.ground import Ground, count, settle
from bench.load import Caller
from bench.measure import Figure, Options, Result, alternate
from bench.traffic import batches, encoded
from services.contracts.cloudevents import BATCHED

KEY = "b"
TITLE = "Batches of 500 events"
IN_FLIGHT = 4
METHOD = (
    f"{IN_FLIGHT} keep-alive connections post `application/cloudevents-batch+json` bodies of 500 events "
    "made beforehand (two of five events move a lead); timed from the first byte to the last answer. "
    "Baseline: rows of the same content, also made beforehand, inserted by asyncpg on one connection "
    "with `INSERT ... SELECT * FROM unnest(...)`, 500 rows a transaction, into the same table of a "
    "second database on the same server. The floor, against the same baseline: what batches write in all "
    "(events, leads, identities, journeys, transitions, handoffs, clocks, rotations, messages), made "
    "beforehand and sent to an empty database by the lane's own writing statement, on one connection, and "
    "nothing else: no rules, no look-up, no message built."
)
SIZE = 500
FLOOR_BATCHES = 20
FLOOR_STORIES = 2000
"""All five steps of so many leads: in the floor's batches as many events move a lead as in ours."""
_INSERT = """
INSERT INTO stage.events
  (source, id, type, time, recorded_at, lead_id, deal, subject, data, envelope, epoch)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[],
  $6::uuid[], $7::text[], $8::text[], $9::jsonb[], $10::jsonb[], $11::int[])
"""


def columns(batch: list[dict[str, Any]], leads: dict[str, str]) -> list[list[Any]]:
    """Give the rows of `batch` as the lane writes them, column by column; `leads` grows."""
    now = datetime.now(UTC)
    return [
        [e["source"] for e in batch],
        [e["id"] for e in batch],
        [e["type"] for e in batch],
        [datetime.fromisoformat(e["time"]) for e in batch],
        [now] * len(batch),
        [leads.setdefault(e["data"]["email"], str(uuid_utils.uuid7())) for e in batch],
        ["main"] * len(batch),
        [None] * len(batch),
        [msgspec.json.encode(e["data"]).decode() for e in batch],
        [None] * len(batch),
        [1] * len(batch),
    ]


async def run(options: Options) -> Result:
    """Measure it."""
    number_of_batches = 40 if options.quick else 100
    async with Ground() as ground:
        database, key = await ground.database("bench")
        straight, _ = await ground.database("straight")
        url = await ground.service("stage", database)
        recording = await floor.Recording.open((await ground.database("recorded"))[0])
        bare, _ = await ground.database("floor")
        connection, other = await asyncpg.connect(straight), await asyncpg.connect(bare)
        callers = [await Caller.open(url, key, BATCHED) for _ in range(IN_FLIGHT)]

        spent: list[cost.Cpu] = []
        bare_spent: list[cost.Cpu] = []

        async def insert(number: int, prefix: str = "r", most: int = number_of_batches) -> float:
            leads: dict[str, str] = {}
            rows = [columns(batch, leads) for batch in batches(f"{prefix}{number}", most)]
            statement = await connection.prepare(_INSERT)
            before, began = ground.cpu("stage"), time.perf_counter()
            for row in rows:
                async with connection.transaction():
                    await statement.fetch(*row)
            seconds = time.perf_counter() - began
            if number and prefix == "f":
                bare_spent.append(ground.cpu("stage").since(before))
            return SIZE * most / seconds

        async def post(number: int) -> float:
            bodies = [encoded(batch) for batch in batches(f"r{number}", number_of_batches)]

            async def send(caller: Caller) -> None:
                while bodies:
                    await caller.post(bodies.pop(0))

            before = ground.cpu("stage")
            began = time.perf_counter()
            await asyncio.gather(*(send(caller) for caller in callers))
            rate = SIZE * number_of_batches / (time.perf_counter() - began)
            if number:
                spent.append(ground.cpu("stage").since(before))
            else:
                await settle(database)
                await settle(straight)
            return rate

        floor_spent: list[cost.Cpu] = []

        async def rows_only(number: int) -> float:
            sent = await recording.of(f"f{number}", FLOOR_BATCHES, FLOOR_STORIES)
            before = ground.cpu("stage")
            seconds = await floor.send(other, sent)
            if number:
                floor_spent.append(ground.cpu("stage").since(before))
            else:
                await settle(bare)
            return SIZE * FLOOR_BATCHES / seconds

        rounds = await alternate(options.times(), insert, post, options.say)
        options.say("  the floor:")
        lowest = await alternate(
            options.times(), lambda n: insert(n, "f", FLOOR_BATCHES), rows_only, options.say
        )
        stored = await count(database, "SELECT count(*) FROM stage.events")
        moved = await count(database, "SELECT count(*) FROM stage.transitions")
        resent = sum(caller.resent for caller in callers)
        for each in (connection, other, recording):
            await each.close()
        for caller in callers:
            caller.close()
        complaints = ground.complaints("stage")
    expected = SIZE * number_of_batches * (len(rounds) + 1)
    if stored != expected:
        raise RuntimeError(f"{expected} events were answered 200, but {stored} are stored")
    figure = Figure(
        "throughput", "events/s", "asyncpg unnest, straight into stage.events", rounds,
        target=0.25, goal=0.5,
    )  # fmt: skip
    bottom = Figure(
        "the floor: all rows of a batch, made beforehand", "events/s",
        "asyncpg unnest, straight into stage.events", lowest,
    )  # fmt: skip
    note = (
        f"{stored:,} events stored; {moved / stored:.0%} moved a lead; {resent} batches sent again "
        "after 503."
    )
    whole = cost.note(cost.total(spent), SIZE * number_of_batches * len(spent))
    bare, least = (
        1e6 * cost.total(each).postgres_s / (SIZE * FLOOR_BATCHES * len(each))
        for each in (bare_spent, floor_spent)
    )
    notes = [note, whole, f"PostgreSQL's CPU us an event: baseline {bare:.0f}, floor {least:.0f}."]
    return Result(KEY, TITLE, METHOD, [figure, bottom], [*complaints, *notes])
