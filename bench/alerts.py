"""(c) From the POST to the recorded alert through real Kafka, against a bare Kafka round trip."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from bench.ground import Ground, settle
from bench.load import Caller
from bench.measure import Figure, Options, Result, percentile
from services.contracts.cloudevents import STRUCTURED

KEY = "c"
TITLE = "From the POST to the recorded alert"
RATE = 200
WARM_S = 4.0
WAIT_S = 15.0
VALUE_BYTES = 2300
"""About what a transition's message holds."""
METHOD = (
    f"{RATE} events a second, paced whatever the answers do (open loop), each `lead.marketing_qualified` "
    "for a new lead and so one alert. Ours: from just before the client writes the request until the "
    "client hears of the alert's commit; a row trigger on `notifier.alerts` says NOTIFY, which "
    "PostgreSQL sends out after the commit. Stage service, notifier, PostgreSQL and Apache Kafka are "
    "processes of their own. Baseline: aiokafka, `acks=all`, idempotent, from `send` until a consumer in "
    f"the same client has the message ({VALUE_BYTES} bytes), paced alike on the same broker. Both "
    "clocks are one: the client's monotonic clock."
)
_LISTEN = """
CREATE SCHEMA bench;
CREATE FUNCTION bench.tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_notify('bench_alert', NEW.transition_id::text); RETURN NULL; END $$;
CREATE TRIGGER tell AFTER INSERT ON notifier.alerts FOR EACH ROW EXECUTE FUNCTION bench.tell();
"""


async def paced(seconds: float, send: Callable[[int], Awaitable[None]]) -> None:
    """Start `send(0)`, `send(1)`, ... at RATE a second and wait for all; errors are raised."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * RATE)):
            delay = began + number / RATE - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            group.create_task(send(number))  # type: ignore[arg-type]


class _Ours:
    """Posts through Baton and hears of alerts."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key
        self._idle: list[Caller] = []
        self._heard: dict[str, float] = {}
        self.connections = 0
        self.answered: list[float] = []
        """Milliseconds from send to answer, of every event measured."""

    async def listen(self, database: str) -> asyncpg.Connection[Any]:
        connection = await asyncpg.connect(database)
        await connection.execute(_LISTEN)
        await connection.add_listener(
            "bench_alert",
            lambda _c, _p, _ch, payload: self._heard.setdefault(payload, time.perf_counter()),
        )
        return connection

    async def measure(self, seconds: float) -> list[float]:
        """Send for `seconds`; give the milliseconds from send to alert of every event."""
        sent: dict[str, float] = {}
        answered: list[float] = []
        prefix = uuid.uuid4().hex[:8]

        async def send(number: int) -> None:
            began = time.perf_counter()
            if self._idle:
                caller = self._idle.pop()
            else:
                caller = await Caller.open(self._url, self._key, STRUCTURED)
                self.connections += 1
            answer = await caller.post(msgspec.json.encode({
                "specversion": "1.0", "id": f"{prefix}-{number}", "source": "/bench",
                "type": "lead.marketing_qualified", "time": datetime.now(UTC).isoformat(),
                "data": {"email": f"{prefix}-{number}@bench.example", "name": "Ada Albers",
                         "company": "Northwind Logistics", "employees": 250},
            }))  # fmt: skip
            answered.append((time.perf_counter() - began) * 1000)
            self._idle.append(caller)
            transitions = msgspec.json.decode(answer)["results"][0]["transitions"]
            sent[transitions[0]["transition_id"]] = began

        await paced(seconds, send)
        deadline = time.monotonic() + WAIT_S
        while not sent.keys() <= self._heard.keys():
            if time.monotonic() > deadline:
                missing = len(sent.keys() - self._heard.keys())
                raise RuntimeError(
                    f"{missing} of {len(sent)} alerts were not recorded in {WAIT_S} s"
                )
            await asyncio.sleep(0.05)
        self.answered = answered
        return [(self._heard[id] - began) * 1000 for id, began in sent.items()]

    def close(self) -> None:
        for caller in self._idle:
            caller.close()


class _Bare:
    """Produces to Kafka and consumes what it produced."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._heard: dict[bytes, float] = {}

    async def start(self) -> None:
        from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        await admin.create_topics([NewTopic("bench.bare", 6, 1)])
        await admin.close()
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._servers, acks="all", enable_idempotence=True, linger_ms=0
        )
        self._consumer = AIOKafkaConsumer(
            "bench.bare", bootstrap_servers=self._servers, group_id="bench",
            enable_auto_commit=False, auto_offset_reset="earliest",
        )  # fmt: skip
        await self._producer.start()
        await self._consumer.start()
        self._task = asyncio.create_task(self._consume())

    async def _consume(self) -> None:
        while True:
            for records in (await self._consumer.getmany(timeout_ms=500)).values():
                now = time.perf_counter()
                for record in records:
                    self._heard[record.key] = now

    async def measure(self, seconds: float) -> list[float]:
        """Send for `seconds`; give the milliseconds of every round trip."""
        sent: dict[bytes, float] = {}
        prefix = uuid.uuid4().hex
        value = b"x" * VALUE_BYTES

        async def send(number: int) -> None:
            key = f"{prefix}-{number}".encode()
            sent[key] = time.perf_counter()
            await self._producer.send_and_wait("bench.bare", value=value, key=key)

        await paced(seconds, send)
        deadline = time.monotonic() + WAIT_S
        while not sent.keys() <= self._heard.keys():
            if time.monotonic() > deadline:
                raise RuntimeError("the bare round trip lost messages")
            await asyncio.sleep(0.05)
        return [(self._heard[key] - began) * 1000 for key, began in sent.items()]

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for client in (self._producer, self._consumer):
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.stop(), 5)


async def run(options: Options) -> Result:
    """Measure it."""
    from tests.integration.kafka_broker import KafkaBroker, available

    result = Result(KEY, TITLE, METHOD)
    usable, what = available()
    if not usable:
        result.skipped = f"no Kafka: {what}"
        return result
    seconds = options.seconds(20, 5)
    rounds: list[tuple[list[float], list[float]]] = []
    answers: list[float] = []
    async with Ground() as ground:
        with KafkaBroker(ground.directory / "kafka") as broker:
            database, key = await ground.database("bench")
            servers = broker.bootstrap_servers
            url = await ground.service("stage", database, BATON_KAFKA_BOOTSTRAP_SERVERS=servers)
            await ground.service("notifier", database, BATON_KAFKA_BOOTSTRAP_SERVERS=servers)
            bare, ours = _Bare(servers), _Ours(url, key)
            await bare.start()
            listener = await ours.listen(database)
            for number in range(options.times(3) + 1):
                length = seconds if number else WARM_S
                pair = (await bare.measure(length), await ours.measure(length))
                if number:
                    rounds.append(pair)
                    answers += ours.answered
                    options.say(f"  round {number}: " + "  ".join(
                        f"{name} p50 {percentile(taken, 0.5):.2f} ms p99 {percentile(taken, 0.99):.2f} ms"
                        for name, taken in zip(("bare", "ours"), pair, strict=True)
                    ))  # fmt: skip
                else:
                    await settle(database)
            alerts = await listener.fetchval("SELECT count(*) FROM notifier.alerts")
            await listener.close()
            ours.close()
            await bare.stop()
            result.notes += ground.complaints("stage", "notifier")
            await asyncio.to_thread(ground.stop_services)
    result.figures = [
        Figure(
            f"p{share * 100:.0f}", "ms", "bare aiokafka round trip",
            [(percentile(b, share), percentile(o, share)) for b, o in rounds],
            target=5.0, goal=2.0, at_most=True,
        )
        for share in (0.5, 0.99)
    ]  # fmt: skip
    result.notes += [
        f"{sum(len(o) for _, o in rounds):,} events timed, {alerts:,} alerts recorded in all; at most "
        f"{ours.connections} connections at once.",
        "Of ours, from the send until the client has the answer, which comes after the commit and while "
        f"the message is on its way: p50 {percentile(answers, 0.5):.2f} ms, "
        f"p99 {percentile(answers, 0.99):.2f} ms.",
    ]
    return result
