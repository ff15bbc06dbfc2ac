"""(i) Webhooks out: deliveries a second against a bare httpx loop, lag at 1,000 transitions/s, isolation."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime

import asyncpg
import httpx
import msgspec

from bench.ground import Ground, free_port
from bench.measure import Figure, Options, Result, alternate, percentile
from services.contracts import postgres_log
from services.contracts.events import TRANSITIONED, TRANSITIONS_TOPIC, Message, message_headers
from services.stage_service.subscriptions.payload import CONTENT_TYPE, body_of
from tests.integration.subscribing import CIPHER_TEXT, subscribe

KEY = "i"
TITLE = "Webhooks out"
BURST_SUBSCRIPTIONS = 10
IN_FLIGHT = 32
SUBSCRIPTIONS = 100
RATE = 1000
HEALTHY = 19
ISOLATION_RATE = 200
METHOD = (
    "A receiver that answers at once, in a process of its own; 'baton serve subscriptions' in another; "
    "events of 2 kB, signed (v1), written to the log as the relay does. Throughput: a backlog for "
    f"{BURST_SUBSCRIPTIONS} subscriptions is delivered, and each result recorded in PostgreSQL, until the "
    "receiver has all; baseline: one httpx client posts the same bodies to the same receiver, "
    f"{IN_FLIGHT} at a time, and records nothing. Lag: {RATE} transitions/s for {SUBSCRIPTIONS} "
    "subscriptions with a CEL filter each, so that each event is for one of them: from just before it is "
    "published until the receiver has it; baseline: the first third of the same run, so a ratio over 1 is a "
    f"lag that grows. Isolation: {ISOLATION_RATE} events/s to {HEALTHY} healthy subscriptions and one more, "
    "which is healthy too (baseline), hangs (takes requests and never answers), or answers 500."
)


_DELIVERED = "SELECT count(*) FROM stage.deliveries WHERE state = 'delivered'"


def transition(lead: str, owner: str) -> Message:
    """Make an event of the size of a real one."""
    id = str(uuid.uuid4())
    value = msgspec.json.encode({
        "transition_id": id, "sequence": 1,
        "lead": {"id": lead, "email": f"{lead}@example.com", "name": "Ada Ortiz", "company": "Example",
                 "attributes": {f"attribute_{n}": "some value of an attribute" for n in range(30)}},
        "journey": {"id": f"j-{lead}", "playbook": "sales", "key": "main"}, "from": "lead", "to": "mql",
        "responsible": {"role": "lead_agent", "owner": {"id": owner, "name": "Jonas Weber"}},
        "explanation": "Moved from Lead Generation to Lead Qualification because they asked for a demo.",
    })  # fmt: skip
    headers = message_headers(id, TRANSITIONED, datetime.now(UTC), subject=lead)
    return Message(TRANSITIONS_TOPIC, lead, headers, value)


class Stand:
    """A database, a receiver, and who delivers."""

    def __init__(self, ground: Ground, database: str, receiver: str) -> None:
        self.ground = ground
        self.database = database
        self.receiver = receiver
        self.connection: asyncpg.Connection = None  # type: ignore[assignment]
        self.client = httpx.AsyncClient(base_url=receiver, timeout=60)

    async def publish(self, messages: list[Message]) -> None:
        """Put `messages` into the log."""
        for start in range(0, len(messages), 500):
            await postgres_log.write(self.connection, messages[start : start + 500])
        while (await postgres_log.stamp(self.connection))[0]:
            pass

    async def came(self) -> list[tuple[str, str, float]]:
        """Give what came since the last call."""
        return [tuple(each) for each in (await self.client.get("/came")).json()]

    async def remove_all(self) -> None:
        """Delete all subscriptions, and wait until nobody delivers for them."""
        await self.connection.execute("UPDATE stage.subscriptions SET deleted_at = now()")
        await asyncio.sleep(1.5)
        await self.came()


async def _stand(ground: Ground) -> Stand:
    database, _ = await ground.database("bench")
    port = free_port()
    process = ground._start(
        "receiver", ["-m", "bench.receiver", str(port)], {"BATON_SUPERVISED": "1"}
    )
    url = f"http://127.0.0.1:{port}"
    await ground._ready(process, f"{url}/readyz", "receiver")
    stand = Stand(ground, database, url)
    stand.connection = await asyncpg.connect(database)
    await ground.service(
        "subscriptions", database,
        BATON_SUBSCRIPTIONS_ALLOW="127.0.0.0/8", BATON_ENCRYPTION_KEY=CIPHER_TEXT,
    )  # fmt: skip
    return stand


async def _throughput(stand: Stand, options: Options) -> list[tuple[float, float]]:
    events = 400 if options.quick else 2000
    total = events * BURST_SUBSCRIPTIONS

    async def bare(_: int) -> float:
        messages = [transition(f"lead-{n % 500}", "p") for n in range(events)]
        bodies = [(m.id, body_of(m, "full")) for m in messages] * BURST_SUBSCRIPTIONS
        limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
        async with httpx.AsyncClient(limits=limits, timeout=30) as client:
            began = time.monotonic()
            rest = iter(bodies)

            async def post() -> None:
                for id, body in rest:
                    await client.post(
                        f"{stand.receiver}/well", content=body,
                        headers={"content-type": CONTENT_TYPE, "webhook-id": id},
                    )  # fmt: skip

            await asyncio.gather(*(post() for _ in range(IN_FLIGHT)))
            passed = time.monotonic() - began
        await stand.came()
        return total / passed

    async def ours(_: int) -> float:
        end = await stand.connection.fetchval("SELECT coalesce(max(position), 0) FROM bus.log")
        await stand.publish([transition(f"lead-{n % 500}", "p") for n in range(events)])
        began = time.monotonic()
        for number in range(BURST_SUBSCRIPTIONS):
            await subscribe(stand.connection, f"{stand.receiver}/well/{number}", position=end)
        await stand.connection.execute("NOTIFY baton_subscriptions")
        count, first, last = 0, 0.0, 0.0
        while count < total:
            for _, _, at in await stand.came():
                count += 1
                first, last = first or at, max(last, at)
            if time.monotonic() - began > 300:
                raise RuntimeError(f"{count} of {total} came")
            await asyncio.sleep(0.05)
        while (
            await stand.connection.fetchval(
                "SELECT count(*) FROM stage.deliveries WHERE state = 'delivered'"
            )
            < total
        ):
            await asyncio.sleep(0.05)
        await stand.connection.execute("TRUNCATE stage.deliveries")
        await stand.remove_all()
        return total / (last - first)

    return await alternate(options.times(), bare, ours, options.say)


async def _paced(stand: Stand, seconds: float, rate: int, owners: int) -> list[tuple[float, float]]:
    """Publish `rate` events a second, each for one of `owners` healthy subscriptions.

    Gives (second of publishing, ms until a healthy one had it) of each.
    """
    sent: dict[str, float] = {}
    began = time.monotonic()
    number = 0
    while (passed := time.monotonic() - began) < seconds:
        due = range(number, int(passed * rate))
        if due:
            number = due.stop
            messages = [transition(f"lead-{n % 5000}", f"p{n % owners}") for n in due]
            moment = time.monotonic()
            sent.update((m.id, moment) for m in messages)
            await stand.publish(messages)
        await asyncio.sleep(0.005)
    found: dict[str, tuple[float, float]] = {}
    deadline = time.monotonic() + 180
    while len(found) < number:
        for path, id, at in await stand.came():
            if path.startswith("/well/") and id in sent:
                found.setdefault(id, (sent[id] - began, (at - sent[id]) * 1000))
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(found)} of {number} came")
        await asyncio.sleep(0.05)
    return list(found.values())


async def _lag(stand: Stand, options: Options, result: Result) -> list[Figure]:
    seconds = options.seconds(60, 9)
    for number in range(SUBSCRIPTIONS):
        await subscribe(
            stand.connection, f"{stand.receiver}/well/{number}", filter=f"owner.id == 'p{number}'",
            types=["baton.stage.*"],
        )  # fmt: skip
    await stand.connection.execute("NOTIFY baton_subscriptions")
    await asyncio.sleep(3)
    found = await _paced(stand, seconds, RATE, SUBSCRIPTIONS)
    early = [ms for at, ms in found if at < seconds / 3]
    late = [ms for at, ms in found if at >= 2 * seconds / 3]
    all_ms = [ms for _, ms in found]
    result.notes.append(
        f"{SUBSCRIPTIONS} subscriptions, {RATE} transitions/s for {seconds:g} s: {len(found):,} deliveries, "
        f"median {percentile(all_ms, 0.5):.0f} ms, p99 {percentile(all_ms, 0.99):.0f} ms, "
        f"longest {max(all_ms):.0f} ms."
    )
    await stand.remove_all()
    return [
        Figure(f"median lag at {RATE}/s, last third", "ms", "the first third",
               [(percentile(early, 0.5), percentile(late, 0.5))], target=2.0, at_most=True),
        Figure(f"p99 lag at {RATE}/s", "ms", "the median",
               [(percentile(all_ms, 0.5), percentile(all_ms, 0.99))], target=1000.0, at_most=True,
               absolute=True),
    ]  # fmt: skip


async def _isolation(stand: Stand, options: Options) -> list[Figure]:
    seconds = options.seconds(10, 3)
    rounds: dict[str, list[tuple[float, float]]] = {"hangs": [], "fails": []}

    async def beside(other: str) -> float:
        for number in range(HEALTHY):
            await subscribe(
                stand.connection,
                f"{stand.receiver}/well/{number}",
                filter=f"owner.id == 'p{number}'",
            )
        await subscribe(
            stand.connection, f"{stand.receiver}/{other}/other", timeout_s=3.0,
            filter="owner.id != 'p0'",
        )  # fmt: skip
        await stand.connection.execute("NOTIFY baton_subscriptions")
        await asyncio.sleep(1.5)
        found = await _paced(stand, seconds, ISOLATION_RATE, HEALTHY)
        await stand.remove_all()
        return percentile([ms for _, ms in found], 0.99)

    await beside("well-other")
    for _ in range(options.times()):
        for trouble, pairs in rounds.items():
            pairs.append((await beside("well-other"), await beside(trouble)))
            before, after = pairs[-1]
            options.say(f"  beside one that {trouble}: p99 {before:.1f} -> {after:.1f} ms")
    return [
        Figure(f"healthy p99 beside one that {trouble}", "ms", "all healthy", rounds[trouble],
               target=target, at_most=True)
        for trouble, target in (("hangs", 1.10), ("fails", 1.50))
    ]  # fmt: skip


async def run(options: Options) -> Result:
    """Measure it."""
    result = Result(KEY, TITLE, METHOD)
    async with Ground() as ground:
        stand = await _stand(ground)
        try:
            rounds = await _throughput(stand, options)
            lag = await _lag(stand, options, result)
            isolation = await _isolation(stand, options)
        finally:
            await stand.client.aclose()
            await stand.connection.close()
        result.notes += ground.complaints("subscriptions")
    result.figures = [
        Figure("throughput", "deliveries/s", "a bare httpx loop", rounds, target=0.5),
        *lag, *isolation,
    ]  # fmt: skip
    return result
