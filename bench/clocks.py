"""(g) 10,000 clocks due in one minute, two stage services, two notifiers, one database, one Kafka."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from bench.ground import Ground, settle
from bench.load import Caller
from bench.measure import Figure, Options, Result, percentile
from bench.traffic import encoded
from services.baton.places import PLAYBOOKS
from services.contracts.cloudevents import BATCHED

KEY = "g"
TITLE = "Clocks due in one minute"
METHOD = (
    "{clocks:,} handoffs, offered by posted lead events, have their deadlines at random moments of one "
    "minute. Two stage services share one database and fire them, two notifiers read one Kafka and record "
    "who is told. Lateness: from the deadline to the transaction that records it (fired), and to the "
    "recorded alert (told). Baseline: the same number of lead events that move nothing, posted at such "
    "moments of a minute, from the post to their transaction, and to their commit as the client sees it."
)
CLOCKS = 10_000
WITHIN = timedelta(minutes=1)
LATE_MS_MAX = 2000.0
PEOPLE = 100
BATCH = 500
CALLERS = 4
WAIT_S = 180.0
HEAD_S = 60.0
"""From the first post to the first deadline; all handoffs must be offered and told by then."""

HANDOFFS = """\
handoffs:
  lead_agent:
    within: 1m
    time: wall
    escalate:
      - {after: 12h, to: sales_leadership}

"""
_TOLD = """
SELECT extract(epoch FROM (convert_from(o.value, 'UTF8')::jsonb ->> 'recorded_at')::timestamptz
    - (convert_from(o.value, 'UTF8')::jsonb ->> 'due_at')::timestamptz)::float8 AS fired,
  extract(epoch FROM a.created_at
    - (convert_from(o.value, 'UTF8')::jsonb ->> 'due_at')::timestamptz)::float8 AS told,
  a.transition_id
FROM bus.outbox o JOIN notifier.alerts a ON a.transition_id = o.message_id::uuid
WHERE o.topic = 'baton.handoffs' AND o.headers ->> 'ce_type' = 'baton.handoff.overdue.v1'
  AND o.id > $1
"""


def playbook() -> str:
    """Give the sales playbook with one handoff that has one deadline, a minute after the offer."""
    text = (PLAYBOOKS / "sales.yaml").read_text(encoding="utf-8")
    before, rest = text.split("handoffs:\n", 1)
    return before + HANDOFFS + rest[rest.index("# What rules may ask for") :]


def team(channel: str = "inbox") -> str:
    """Give `PEOPLE` lead agents who are always there; `channel` may hold ``{id}``."""
    lines = ["people:"]
    for number in range(PEOPLE):
        id = f"p{number}"
        lines.append(
            f"  - {{id: {id}, name: P{number}, roles: [lead_agent], channels: ['{channel.format(id=id)}'],"
            " alerts: {group_over: 10000, per_hour_max: 10000}}"
        )
    lines.append("  - {id: top, name: Top, roles: [sales_leadership], channels: [inbox]}")
    return "\n".join(lines) + "\n"


def offers(prefix: str, clocks: int, first_due: datetime, within_s: float) -> list[bytes]:
    """Give the bodies that offer `clocks` handoffs, due at random moments of `within_s` after `first_due`.

    Their events lie a little ahead: a deadline counts from when it was learned of, if that is later.
    """
    chance = random.Random(clocks)
    return list(_bodies({
        "specversion": "1.0", "id": f"{prefix}-{n}", "source": "/bench", "type": "demo.requested",
        "time": (first_due + timedelta(seconds=chance.uniform(0, within_s)) - WITHIN).isoformat(),
        "data": {"email": f"{prefix}-{n}@bench.example", "form": "demo"},
    } for n in range(clocks)))  # fmt: skip


def _bodies(events: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    some: list[dict[str, Any]] = []
    for event in events:
        some.append(event)
        if len(some) == BATCH:
            yield encoded(some)
            some = []
    if some:
        yield encoded(some)


async def post(urls: list[str], key: str, bodies: list[bytes]) -> None:
    """Post `bodies` to the services at `urls`, a few at once."""
    left = list(bodies)

    async def work(url: str) -> None:
        caller = await Caller.open(url, key, BATCHED)
        while left:
            await caller.post(left.pop())
        caller.close()

    await asyncio.gather(*(work(urls[n % len(urls)]) for n in range(CALLERS)))


async def until_count(
    connection: asyncpg.Connection[Any], query: str, wanted: int, *arguments: Any
) -> None:
    """Wait until `query` counts `wanted`; raises RuntimeError when that does not come."""
    deadline = time.monotonic() + WAIT_S
    while (found := await connection.fetchval(query, *arguments)) < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{found} of {wanted} in {WAIT_S} s: {query}")
        await asyncio.sleep(0.2)


class _Bench:
    """The services, and what a round does with them."""

    def __init__(self, urls: list[str], key: str, clocks: int, within_s: float) -> None:
        self._urls = urls
        self._key = key
        self._clocks = clocks
        self._within_s = within_s

    async def quiet(self) -> list[float]:
        """Post events that move nothing over a minute, at random moments; give each's milliseconds."""
        chance = random.Random(self._clocks)
        moments = sorted(chance.uniform(0, self._within_s) for _ in range(self._clocks))
        callers = [await Caller.open(u, self._key, BATCHED) for u in self._urls * CALLERS]
        prefix, began = secrets.token_hex(4), time.monotonic()
        taken: list[float] = []
        numbers = iter(range(self._clocks))

        async def work(caller: Caller) -> None:
            for n in numbers:
                wait_s = moments[n] - (time.monotonic() - began)
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                await caller.post(encoded([{
                    "specversion": "1.0", "id": f"{prefix}-{n}", "source": "/bench",
                    "type": "email.opened", "data": {"email": f"{prefix}-{n}@bench.example"},
                }]))  # fmt: skip
                taken.append((time.monotonic() - began - moments[n]) * 1000)

        await asyncio.gather(*(work(caller) for caller in callers))
        for caller in callers:
            caller.close()
        return taken

    async def due(
        self, connection: asyncpg.Connection[Any], head_s: float
    ) -> tuple[list[float], list[float]]:
        """Have clocks come due over a minute; give the milliseconds to its record and to its alert."""
        alerts = await connection.fetchval("SELECT count(*) FROM notifier.alerts")
        first = datetime.now(UTC) + timedelta(seconds=head_s)
        bodies = offers(secrets.token_hex(4), self._clocks, first, self._within_s)
        await post(self._urls, self._key, bodies)
        count = "SELECT count(*) FROM notifier.alerts"
        await until_count(connection, count, alerts + self._clocks)
        if datetime.now(UTC) > first:
            raise RuntimeError(f"{self._clocks} handoffs were not offered and told in {head_s} s")
        outbox = await connection.fetchval("SELECT max(id) FROM bus.outbox")
        await until_count(connection, count, alerts + 2 * self._clocks)
        await once(connection)
        rows = await connection.fetch(_TOLD, outbox)
        if len(rows) != self._clocks:
            raise RuntimeError(f"{len(rows)} alerts of {self._clocks} deadlines")
        return [r["fired"] * 1000 for r in rows], [r["told"] * 1000 for r in rows]


async def once(connection: asyncpg.Connection[Any]) -> None:
    """See that each clock fired once and each handoff is overdue once; raises RuntimeError otherwise."""
    fired, steps = await connection.fetchrow(
        """SELECT count(*), count(DISTINCT (lead_id, data ->> 'clock', data ->> 'since', data ->> 'step'))
           FROM stage.events WHERE type = 'baton.clock.fired'"""
    )  # pyright: ignore[reportGeneralTypeIssues]
    overdue = await connection.fetchval(
        "SELECT count(*) FROM stage.handoffs WHERE overdue_at = due_at"
    )
    told, handoffs = await connection.fetchrow(
        """SELECT count(*), count(DISTINCT convert_from(value, 'UTF8')::jsonb ->> 'handoff_id')
           FROM bus.outbox WHERE headers ->> 'ce_type' = 'baton.handoff.overdue.v1'"""
    )  # pyright: ignore[reportGeneralTypeIssues]
    if not fired == steps == overdue == told == handoffs:
        raise RuntimeError(
            f"{fired} firings of {steps} steps; {overdue} handoffs overdue, told {told} times"
            f" of {handoffs}"
        )


async def run(options: Options) -> Result:
    """Measure it."""
    from tests.integration.kafka_broker import KafkaBroker, available

    clocks = CLOCKS // 10 if options.quick else CLOCKS
    result = Result(KEY, TITLE, METHOD.format(clocks=clocks))
    usable, what = available()
    if not usable:
        result.skipped = f"no Kafka: {what}"
        return result
    within_s, head_s = options.seconds(60, 10), options.seconds(HEAD_S, 15)
    rounds: list[tuple[list[float], list[float], list[float]]] = []
    async with Ground() as ground:
        with KafkaBroker(ground.directory / "kafka") as broker:
            database, key = await ground.database("bench")
            more = _settings(ground.directory, broker.bootstrap_servers)
            urls = [await ground.service("stage", database, **more) for _ in range(2)]
            for _ in range(2):
                await ground.service("notifier", database, **more)
            bench = _Bench(urls, key, clocks, within_s)
            connection = await asyncpg.connect(database)
            for number in range(options.times(3)):
                await settle(database)
                quiet = await bench.quiet()
                rounds.append((quiet, *await bench.due(connection, head_s)))
                options.say(f"  round {number + 1}: " + "  ".join(
                    f"{name} p50 {percentile(taken, 0.5):.1f} ms p99 {percentile(taken, 0.99):.1f} ms"
                    f" max {max(taken):.1f} ms"
                    for name, taken in zip(("baseline", "fired", "told"), rounds[-1], strict=True)
                ))  # fmt: skip
            await connection.close()
            result.notes += ground.complaints("stage", "notifier")
            await asyncio.to_thread(ground.stop_services)
    result.figures = list(_figures(rounds))
    result.notes.append(
        f"{clocks * len(rounds):,} clocks in {len(rounds)} rounds: each fired once, each handoff was"
        " overdue once and told once."
    )
    return result


def _settings(directory: Path, servers: str) -> dict[str, str]:
    (directory / "clocks.yaml").write_text(playbook())
    (directory / "clocks-team.yaml").write_text(team())
    return {
        "BATON_KAFKA_BOOTSTRAP_SERVERS": servers,
        "BATON_PLAYBOOK_FILES": f'["{directory / "clocks.yaml"}"]',
        "BATON_TEAM_FILE": str(directory / "clocks-team.yaml"),
    }


def _figures(rounds: list[tuple[list[float], list[float], list[float]]]) -> Iterator[Figure]:
    name = "a lead event that moves nothing, posted then"
    for which, index in (("fired", 1), ("told", 2)):
        for share in (0.5, 0.99, 1.0):
            said = "max" if share == 1 else f"p{share * 100:.0f}"
            yield Figure(
                f"{which}, {said}", "ms", name,
                [(percentile(r[0], share), percentile(r[index], share)) for r in rounds],
                target=LATE_MS_MAX if share == 0.99 else None, at_most=True, absolute=share == 0.99,
            )  # fmt: skip
