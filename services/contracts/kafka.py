"""The bus on Apache Kafka, by aiokafka with the settings that do not lose data.

Two habits of the client are answered here. Its idempotent producer is stuck on a partition for ever
after any failure that is not retriable, and its batches never expire: publishing has its own deadline,
and after any failure the producer is thrown away. Its consumer can stall after a broker restart without
saying so: a subscription that makes no progress while there is something to read is built anew. Nor has it
a limit where it waits for partitions, or commits: here it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any

import structlog
from aiokafka import (  # pyright: ignore[reportMissingTypeStubs]
    AIOKafkaConsumer,
    AIOKafkaProducer,
    TopicPartition,
)
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # pyright: ignore[reportMissingTypeStubs]
from aiokafka.admin.config_resource import (  # pyright: ignore[reportMissingTypeStubs]
    ConfigResource,
    ConfigResourceType,
)
from aiokafka.errors import (  # pyright: ignore[reportMissingTypeStubs]
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    TopicAlreadyExistsError,
    UnknownMemberIdError,
    for_code,
)

from services.contracts.bus import Received
from services.contracts.events import Message
from services.contracts.topics import TOPICS, Found, differences

PUBLISH_DEADLINE_S = 20.0
CLOSE_DEADLINE_S = 3.0
JOIN_DEADLINE_S = 30.0
"""How long a member may be without partitions, or a commit take: a group shares them within some 10 s."""
STALLED_AFTER_S = 30.0

_log = structlog.get_logger("baton.kafka")


class KafkaBus:
    """`Bus` on Kafka: key is the lead's id, so a lead's messages share a partition."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._producer: Any = None
        self._checked = False

    @classmethod
    async def open(cls, bootstrap_servers: str) -> KafkaBus:
        """Name the cluster. Nothing is asked of it yet: a broker that is away stops nobody."""
        return cls(bootstrap_servers)

    async def create_topics(self) -> None:
        """Create the topics that do not exist; warn, once, of those that are not as they must be."""
        async with _admin(self._bootstrap_servers) as admin:
            await _create_missing(admin)
            if not self._checked:
                for difference in differences(await _look_at(admin)):
                    _log.warning("bus.topic_differs", said=difference.told())
                self._checked = True

    async def _started(self) -> Any:
        if self._producer is None:
            await self.create_topics()
            producer: Any = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap_servers,
                acks="all",
                enable_idempotence=True,
                linger_ms=0,
                max_batch_size=256 * 1024,
                max_request_size=2 * 1024 * 1024,
                request_timeout_ms=10_000,
                metadata_max_age_ms=30_000,
            )
            try:
                await producer.start()
            except BaseException:
                await _abandon(producer)
                raise
            self._producer = producer
        return self._producer

    async def publish(self, messages: Sequence[Message]) -> None:
        """Send `messages` in order and wait for every acknowledgement (`acks=all`).

        Raises KafkaError or TimeoutError (after 20 s) when that is not certain; the producer is then
        replaced, so the next call starts afresh. Sending all of them again in order is safe: readers
        see the first copies in order and drop repeats by id.
        """
        try:
            async with asyncio.timeout(PUBLISH_DEADLINE_S):
                producer = await self._started()
                sent = [
                    await producer.send(
                        m.topic,
                        value=m.value,
                        key=m.key.encode(),
                        headers=[(name, text.encode()) for name, text in m.headers.items()],
                    )
                    for m in messages
                ]
                for result in asyncio.as_completed(sent):
                    await result
        except BaseException:
            producer, self._producer = self._producer, None
            if producer is not None:
                await _abandon(producer)
            raise

    async def subscribe(self, group: str, topics: Sequence[str]) -> KafkaSubscription:
        """Join consumer group `group`; partitions are shared among its members."""
        return KafkaSubscription(self, self._bootstrap_servers, group, topics)

    async def close(self) -> None:
        """Flush and close the producer, within 3 s."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _abandon(producer)


@contextlib.asynccontextmanager
async def _admin(bootstrap_servers: str) -> AsyncGenerator[Any]:
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=10_000)
    try:
        await admin.start()
        yield admin
    finally:
        await _ended(admin.close())


async def _create_missing(admin: Any) -> None:
    existing = set(await admin.list_topics())
    wanted: list[Any] = [
        NewTopic(t.name, t.partitions, 1, topic_configs=dict(t.configs))
        for t in TOPICS
        if t.name not in existing
    ]
    for topic in wanted:
        # The broker's default replication; the client's constructor refuses to say it.
        topic.replication_factor = -1
    if not wanted:
        return
    answer = await admin.create_topics(wanted)
    for name, code, *_ in answer.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise error(f"topic {name}")


async def _look_at(admin: Any) -> dict[str, Found]:
    names = [t.name for t in TOPICS]
    existing = set(await admin.list_topics())
    there = [name for name in names if name in existing]
    if not there:
        return {}
    configs: dict[str, dict[str, str]] = {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in there]
    for answer in await admin.describe_configs(resources):
        for _, _, _, name, entries in answer.resources:
            configs[name] = {entry[0]: entry[1] for entry in entries}
    return {
        d["topic"]: Found(
            d["topic"],
            len(d["partitions"]),
            min((len(p["replicas"]) for p in d["partitions"]), default=0),
            configs.get(d["topic"], {}),
        )
        for d in await admin.describe_topics(there)
    }


async def topics_of(bootstrap_servers: str) -> dict[str, Found]:
    """Give Baton's topics as the cluster has them, by name; raises KafkaError when it does not answer."""
    async with asyncio.timeout(PUBLISH_DEADLINE_S), _admin(bootstrap_servers) as admin:
        return await _look_at(admin)


_ending: set[asyncio.Task[None]] = set()


async def _abandon(client: Any) -> None:
    """Stop a client that may never stop, nor let itself be cancelled: after 3 s its parts are stopped.

    They would go on by themselves: a consumer fetching, a producer sending what is old by then.
    """
    if await _ended(client.stop()):
        return
    if hasattr(client, "_sender"):
        parts: list[Any] = [client._sender and client._sender.close, client.client.close]
    else:
        coordinator, fetcher = client._coordinator, client._fetcher
        parts = [
            coordinator and coordinator._stop_heartbeat_task,
            coordinator and coordinator._stop_commit_offsets_refresh_task,
            fetcher and fetcher.close, client._client.close,
        ]  # fmt: skip
    for part in parts:
        if part:
            await _ended(part())


async def _ended(work: Coroutine[Any, Any, None]) -> bool:
    """Wait for `work` at most 3 s, not even for it to be cancelled then; tell whether it is done."""
    task = asyncio.create_task(work)
    _ending.add(task)
    task.add_done_callback(_heard)
    done, _ = await asyncio.wait([task], timeout=CLOSE_DEADLINE_S)
    if not done:
        task.cancel()
    return bool(done)


def _heard(task: asyncio.Task[None]) -> None:
    _ending.discard(task)
    if not task.cancelled():
        task.exception()  # of no use: the client is thrown away


class KafkaSubscription:
    """A member of a consumer group; offsets are committed by hand, after the work."""

    def __init__(
        self,
        bus: KafkaBus,
        bootstrap_servers: str,
        group: str,
        topics: Sequence[str],
        join_within_s: float = JOIN_DEADLINE_S,
    ) -> None:
        self._bus = bus
        self._join_within_s = join_within_s
        self._bootstrap_servers = bootstrap_servers
        self._group = group
        self._topics = list(topics)
        self._consumer: Any = None
        self._last_progress = time.monotonic()

    async def _started(self) -> Any:
        if self._consumer is None:
            await self._bus.create_topics()
            consumer: Any = AIOKafkaConsumer(
                *self._topics,
                bootstrap_servers=self._bootstrap_servers,
                group_id=self._group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                session_timeout_ms=6_000,
                heartbeat_interval_ms=2_000,
                max_poll_interval_ms=120_000,
                request_timeout_ms=15_000,
                metadata_max_age_ms=30_000,
                fetch_max_wait_ms=250,
            )
            try:
                await consumer.start()
            except BaseException:
                await _abandon(consumer)
                raise
            self._consumer = consumer
            self._last_progress = time.monotonic()
        return self._consumer

    async def fetch(self, messages_max: int, wait_s: float) -> list[Received]:
        """Give the next messages of the assigned partitions; raises KafkaError when it cannot.

        TimeoutError when it has had no partitions for 30 s. After an exception the member rejoins at the
        next call, from the last commit.
        """
        try:
            async with asyncio.timeout(self._join_within_s):
                consumer = await self._started()
            async with asyncio.timeout(wait_s + self._join_within_s):
                batches = await consumer.getmany(
                    timeout_ms=int(wait_s * 1000), max_records=messages_max
                )
            if not batches and await self._stalled():
                raise KafkaError("the consumer makes no progress; it is built anew")
        except BaseException:
            await self.close()
            raise
        received = [
            Received(_message(record), (tp.topic, tp.partition, record.offset))
            for tp, records in batches.items()
            for record in records
        ]
        if received:
            self._last_progress = time.monotonic()
        return received

    async def _stalled(self) -> bool:
        if time.monotonic() - self._last_progress < STALLED_AFTER_S:
            return False
        self._last_progress = time.monotonic()
        assigned = self._consumer.assignment()
        if not assigned:
            return True
        async with asyncio.timeout(PUBLISH_DEADLINE_S):
            ends = await self._consumer.end_offsets(assigned)
            for tp, end in ends.items():
                if end > await self._consumer.position(tp):
                    return True
        return False

    async def commit(self, received: Sequence[Received]) -> None:
        """Commit the offsets after `received`.

        When the partitions have gone to another member meanwhile, nothing is committed and the
        messages come again there: the effect has to be idempotent anyway. Raises KafkaError, or TimeoutError
        (after 30 s): the member rejoins then.
        """
        if self._consumer is None or not received:
            return
        offsets: dict[Any, int] = {}
        for r in received:
            tp = TopicPartition(r.token[0], r.token[1])
            offsets[tp] = max(offsets.get(tp, 0), r.token[2] + 1)
        # One that is another's by now would refuse them all, at every try.
        held = self._consumer.assignment()
        offsets = {tp: offset for tp, offset in offsets.items() if tp in held}
        if not offsets:
            return
        try:
            async with asyncio.timeout(self._join_within_s):
                await self._consumer.commit(offsets)
        except TimeoutError:
            await self.close()
            raise
        except (
            CommitFailedError,
            IllegalGenerationError,
            IllegalStateError,
            RebalanceInProgressError,
            UnknownMemberIdError,
        ) as error:
            _log.warning("bus.commit_lost", group=self._group, reason=type(error).__name__)

    async def close(self) -> None:
        """Leave the group, within 3 s."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await _abandon(consumer)


def _message(record: Any) -> Message:
    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers if value}
    key = (record.key or b"").decode("utf-8", "replace")
    return Message(record.topic, key, headers, record.value or b"")
