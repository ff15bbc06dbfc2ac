"""Writing to a compacted topic: the newest message of a key is the present state of what it names.

Two writers would be wrong here even for a moment: an older state written after a newer one stays. So each
writer opens with the same transactional id, which fences: from then on Kafka refuses whatever an earlier
writer, stalled or cut off, still sends. Who reads the state after opening therefore writes no older one
after a newer one, whoever else thinks it is the writer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from aiokafka import (  # pyright: ignore[reportMissingTypeStubs]
    AIOKafkaConsumer,
    AIOKafkaProducer,
    TopicPartition,
)
from aiokafka.admin import (  # pyright: ignore[reportMissingTypeStubs]
    AIOKafkaAdminClient,
)
from aiokafka.errors import (  # pyright: ignore[reportMissingTypeStubs]
    UnknownTopicOrPartitionError,
)

from services.contracts.events import Snapshot
from services.contracts.kafka import CLOSE_DEADLINE_S, KafkaBus

DEADLINE_S = 20.0
TRANSACTION_TIMEOUT_MS = 30_000
"""How long a writer that died in a transaction holds up readers, unless another opens before."""


class SnapshotWriter:
    """The one writer of a compacted topic; made by `snapshot_writer`."""

    def __init__(self, producer: Any, bootstrap_servers: str, topic: str) -> None:
        self._producer = producer
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._ends: dict[int, int] = {}
        """How far each partition reached when `is_new_topic` was asked last."""

    async def write(self, snapshots: Sequence[Snapshot]) -> None:
        """Write all of `snapshots`, or none that a reader of committed messages sees.

        Raises KafkaError or TimeoutError when that is not certain, ProducerFenced among them when
        another writer opened meanwhile; open anew then.
        """
        async with asyncio.timeout(DEADLINE_S), self._producer.transaction():
            sent = [
                await self._producer.send(
                    self._topic,
                    value=s.value,
                    key=s.key.encode(),
                    headers=[(name, text.encode()) for name, text in s.headers.items()],
                )
                for s in snapshots
            ]
            await asyncio.gather(*sent)

    async def is_new_topic(self) -> bool:
        """Tell whether nothing was ever written to the topic, or less than when this was asked before.

        Then it was deleted and made again meanwhile. Raises UnknownTopicOrPartitionError when it is not
        there at all: opening a writer makes it.
        """
        async with asyncio.timeout(DEADLINE_S):
            ends = await self._read_ends()
        before, self._ends = self._ends, ends
        return not any(ends.values()) or any(ends.get(n, 0) < end for n, end in before.items())

    async def _read_ends(self) -> dict[int, int]:
        # The list of all topics makes none; to ask for one by name may.
        await _refuse_missing(self._bootstrap_servers, self._topic)
        consumer: Any = AIOKafkaConsumer(self._topic, bootstrap_servers=self._bootstrap_servers)
        try:
            await consumer.start()
            numbers = consumer.partitions_for_topic(self._topic) or ()
            ends = await consumer.end_offsets([TopicPartition(self._topic, n) for n in numbers])
            return {place.partition: end for place, end in ends.items()}
        finally:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(consumer.stop(), CLOSE_DEADLINE_S)


async def _refuse_missing(bootstrap_servers: str, topic: str) -> None:
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        await admin.start()
        if topic not in await admin.list_topics():
            raise UnknownTopicOrPartitionError(topic)
    finally:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(admin.close(), CLOSE_DEADLINE_S)


@contextlib.asynccontextmanager
async def snapshot_writer(bootstrap_servers: str, topic: str) -> AsyncGenerator[SnapshotWriter]:
    """Open the writer of `topic`; every earlier one is fenced off when this begins.

    Raises KafkaError or TimeoutError when the cluster does not answer.
    """
    async with asyncio.timeout(DEADLINE_S):
        await (await KafkaBus.open(bootstrap_servers)).create_topics()
    producer: Any = AIOKafkaProducer(
        bootstrap_servers=bootstrap_servers,
        acks="all",
        transactional_id=topic,
        transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        max_batch_size=256 * 1024,
        max_request_size=2 * 1024 * 1024,
        request_timeout_ms=10_000,
        metadata_max_age_ms=30_000,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            await producer.start()
        yield SnapshotWriter(producer, bootstrap_servers, topic)
    finally:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(producer.stop(), CLOSE_DEADLINE_S)
