"""The bus's promises, the same tests on both implementations (see `services.contracts.bus`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener

from services.contracts import postgres_log
from services.contracts.bus import Bus, Received, Subscription, open_bus
from services.contracts.events import TRANSITIONS_TOPIC, Message, message_headers
from services.contracts.kafka import KafkaBus, KafkaSubscription
from services.stage_service.lane import new_id
from tests.integration.kafka_broker import KafkaBroker

# One broker for all: which tests ask for it is known only as they run.
pytestmark = pytest.mark.xdist_group("tests/contracts/test_bus.py")
KINDS = [
    pytest.param("postgres_log"),
    pytest.param("kafka", marks=pytest.mark.kafka),
]


def message(key: str, text: str = "{}") -> Message:
    from datetime import UTC, datetime

    id = new_id()
    headers = message_headers(
        id, "baton.test.v1", datetime(2026, 1, 1, tzinfo=UTC), "00-" + "1" * 32
    )
    return Message(TRANSITIONS_TOPIC, key, headers, text.encode())


@contextlib.asynccontextmanager
async def sequencer(database_url: str) -> AsyncIterator[None]:
    """Stamp the log as the relay does."""
    connection = await asyncpg.connect(database_url)

    async def run() -> None:
        while True:
            await postgres_log.stamp(connection)
            await asyncio.sleep(0.005)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()


@pytest.fixture(params=KINDS)
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    """A bus of each kind, empty but for earlier tests' messages."""
    database_url: str = request.getfixturevalue("database_url")
    if request.param == "kafka":
        broker: KafkaBroker = request.getfixturevalue("kafka")
        opened = await open_bus(database_url, broker.bootstrap_servers)
        yield opened
        await opened.close()
    else:
        async with sequencer(database_url):
            opened = await open_bus(database_url, None)
            yield opened
            await opened.close()


@pytest.fixture
def group() -> str:
    """A consumer group that nobody used before."""
    return f"test-{uuid.uuid4()}"


async def fetch_all(
    subscription: Subscription, ids: set[str], commit: bool = True
) -> list[Received]:
    """Fetch until all messages of `ids` came; gives those."""
    got: list[Received] = []
    async with asyncio.timeout(60):
        while not ids <= {r.message.id for r in got}:
            received = await subscription.fetch(100, 0.5)
            got += [r for r in received if r.message.id in ids]
            if commit:
                await subscription.commit(received)
    return got


async def test_what_was_published_is_received_whole(bus: Bus, group: str) -> None:
    sent = message("lead-1", '{"ä": "☃"}')
    await bus.publish([sent])
    subscription = await bus.subscribe(group, [TRANSITIONS_TOPIC])
    try:
        [got] = await fetch_all(subscription, {sent.id})
    finally:
        await subscription.close()
    assert (got.message.topic, got.message.key, got.message.value) == (
        sent.topic, sent.key, sent.value,
    )  # fmt: skip
    assert {k: v for k, v in got.message.headers.items() if k != "content-type"} == {
        k: v for k, v in sent.headers.items() if k != "content-type"
    }


async def test_messages_of_a_key_keep_their_order(bus: Bus, group: str) -> None:
    sent = [message(f"lead-{n % 7}") for n in range(700)]
    for start in range(0, len(sent), 50):
        await bus.publish(sent[start : start + 50])
    subscription = await bus.subscribe(group, [TRANSITIONS_TOPIC])
    try:
        got = await fetch_all(subscription, {m.id for m in sent})
    finally:
        await subscription.close()
    for key in {m.key for m in sent}:
        assert [r.message.id for r in got if r.message.key == key] == [
            m.id for m in sent if m.key == key
        ]


async def test_what_was_not_committed_comes_again(bus: Bus, group: str) -> None:
    first, second = message("lead-1"), message("lead-1")
    await bus.publish([first])
    subscription = await bus.subscribe(group, [TRANSITIONS_TOPIC])
    await fetch_all(subscription, {first.id})
    await bus.publish([second])
    await fetch_all(subscription, {second.id}, commit=False)
    await subscription.close()
    again = await bus.subscribe(group, [TRANSITIONS_TOPIC])
    try:
        got = await fetch_all(again, {second.id})
    finally:
        await again.close()
    assert first.id not in {r.message.id for r in got}


async def test_groups_do_not_disturb_each_other(bus: Bus, group: str) -> None:
    sent = message("lead-1")
    await bus.publish([sent])
    for name in (group, group + "-b"):
        subscription = await bus.subscribe(name, [TRANSITIONS_TOPIC])
        try:
            assert len(await fetch_all(subscription, {sent.id})) == 1
        finally:
            await subscription.close()


async def test_another_member_takes_over(bus: Bus, group: str) -> None:
    sent = [message(f"lead-{n}") for n in range(20)]
    one = await bus.subscribe(group, [TRANSITIONS_TOPIC])
    two = await bus.subscribe(group, [TRANSITIONS_TOPIC])
    await bus.publish(sent[:10])
    await fetch_all(one, {m.id for m in sent[:10]})
    standby = asyncio.create_task(fetch_all(two, {m.id for m in sent[10:]}))
    await one.close()
    await bus.publish(sent[10:])
    got = await standby
    await two.close()
    assert {r.message.id for r in got} == {m.id for m in sent[10:]}


async def test_a_waiting_member_hears_at_once(bus: Bus, group: str) -> None:
    """`fetch` returns when something comes, not when its time is over."""
    subscription = await bus.subscribe(group, [TRANSITIONS_TOPIC])
    try:
        first = message("lead-1")
        await bus.publish([first])
        await fetch_all(subscription, {first.id})
        while await subscription.fetch(500, 1.0):
            continue  # what earlier tests left on the topic
        waiting = asyncio.create_task(subscription.fetch(10, 600.0))
        sent = message("lead-1")
        await bus.publish([sent])
        received = await asyncio.wait_for(waiting, 60)
    finally:
        await subscription.close()
    assert [r.message.id for r in received] == [sent.id]


@pytest.mark.kafka
async def test_committing_what_another_member_has_taken_over_is_no_error(
    database_url: str, kafka: KafkaBroker, group: str
) -> None:
    """A second notifier starts between recording and commit: the first must not fail for ever."""
    bus = await open_bus(database_url, kafka.bootstrap_servers)
    sent = [message(f"lead-{n}") for n in range(60)]
    await bus.publish(sent)
    one = await bus.subscribe(group, [TRANSITIONS_TOPIC])
    two = await bus.subscribe(group, [TRANSITIONS_TOPIC])
    got = await fetch_all(one, {m.id for m in sent}, commit=False)
    again: list[Received] = []
    nothing = 0
    async with asyncio.timeout(60):
        while not again or nothing < 4:  # all that is theirs by now, not the first of it
            found = await two.fetch(100, 0.5)
            again += found
            nothing = 0 if found else nothing + 1
            await one.fetch(100, 0.1)
    theirs = {r.token[:2] for r in again}
    await one.commit(got)
    await two.commit(again)
    assert theirs < {r.token[:2] for r in got}
    for subscription in (one, two):
        await subscription.close()
    third = await bus.subscribe(group, [TRANSITIONS_TOPIC])
    later = [message(f"lead-{n}") for n in range(60)]
    await bus.publish(later)
    left, rest = {m.id for m in later}, list[Received]()
    async with asyncio.timeout(60):
        while left:  # in each partition they come after whatever was not committed
            rest += (found := await third.fetch(100, 0.5))
            left -= {r.message.id for r in found}
    await third.close()
    await bus.close()
    # What the first still held is committed all the same.
    again_told = {m.id for m in sent}
    assert {r.token[:2] for r in rest if r.message.id in again_told} <= theirs


@pytest.mark.kafka
async def test_a_killed_broker_loses_nothing(
    database_url: str, kafka: KafkaBroker, group: str
) -> None:
    """What `publish` returned for is there after a crash; what it raised for can be sent again."""
    if os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        pytest.skip("a broker that is not ours cannot be killed")
    bus = await open_bus(database_url, kafka.bootstrap_servers)
    sent = [message(f"lead-{n % 3}") for n in range(60)]
    await bus.publish(sent[:20])
    subscription = await bus.subscribe(group, [TRANSITIONS_TOPIC])
    await fetch_all(subscription, {m.id for m in sent[:20]})
    kafka.kill()
    publishing = asyncio.create_task(_until_published(lambda: bus.publish(sent[20:])))
    await asyncio.to_thread(kafka.start)
    await publishing
    got: list[Any] = []
    async with asyncio.timeout(120):
        while not {m.id for m in sent[20:]} <= {r.message.id for r in got}:
            with contextlib.suppress(Exception):
                got += await subscription.fetch(100, 0.5)
    await subscription.close()
    await bus.close()
    for key in {m.key for m in sent}:
        order = list(dict.fromkeys(r.message.id for r in got if r.message.key == key))
        assert order[-len([m for m in sent[20:] if m.key == key]) :] == [
            m.id for m in sent[20:] if m.key == key
        ]


class Holding(ConsumerRebalanceListener):
    """A member that does not let its partitions go until it is `released`."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.released.set()

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Wait, as one does that commits its work first."""
        await self.released.wait()

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Go on."""


async def refused(member: Subscription) -> None:
    """Fetch until that raises."""
    while True:
        await member.fetch(10, 0.1)


@pytest.mark.kafka
async def test_a_group_that_is_never_done_sharing_is_not_waited_for_without_end(
    database_url: str, kafka: KafkaBroker, group: str
) -> None:
    """Who has no partitions for too long says so, and rejoins: nobody waits in silence."""
    servers = kafka.bootstrap_servers
    bus = await KafkaBus.open(servers)
    member = KafkaSubscription(bus, servers, group, [TRANSITIONS_TOPIC], 1.0)
    holding = Holding()
    other: Any = AIOKafkaConsumer(
        bootstrap_servers=servers, group_id=group, rebalance_timeout_ms=120_000,
        heartbeat_interval_ms=500, enable_auto_commit=False,
    )  # fmt: skip
    other.subscribe([TRANSITIONS_TOPIC], listener=holding)
    joining = asyncio.create_task(other.start())
    async with asyncio.timeout(60):
        while not joining.done():
            with contextlib.suppress(TimeoutError):
                await member.fetch(10, 0.1)
    holding.released.clear()
    third = KafkaSubscription(bus, servers, group, [TRANSITIONS_TOPIC])
    waiting = asyncio.create_task(third.fetch(10, 0.1))
    async with asyncio.timeout(60):
        with pytest.raises(TimeoutError):
            await refused(member)
    holding.released.set()
    await waiting
    await other.stop()
    await third.close()
    await bus.close()


async def _until_published(publish: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                await publish()
            except Exception:
                continue
            return
