"""The bus between Baton and whoever listens: one small interface, two implementations.

Promises, the same on Kafka and on the PostgreSQL log (``tests/contracts/test_bus.py`` runs on both):

- what `publish` returned for is durable;
- messages with the same key reach every group in the order they were published;
- a group gets each message at least once: one not committed comes again, to another member if need be;
- a group that is new starts at the oldest message kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from services.contracts.events import Message


class Received(msgspec.Struct, frozen=True):
    """One message as a subscription got it; `token` tells `commit` how far the group is."""

    message: Message
    token: tuple[str, int, int]


class Subscription(Protocol):
    """A group's reading end. Not for use by two tasks at once."""

    async def fetch(self, messages_max: int, wait_s: float) -> list[Received]:
        """Give the next messages, at most `messages_max`; wait up to `wait_s` for the first."""
        ...

    async def commit(self, received: Sequence[Received]) -> None:
        """Say that the group is done with `received`: call it after the work is durable."""
        ...

    async def close(self) -> None:
        """Leave the group, so that another member takes over at once."""
        ...


class Bus(Protocol):
    """Where published events go."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Make `messages` durable in their order; raises when that is not certain.

        After an exception any of them may have been published: publish them again in order.
        """
        ...

    async def subscribe(self, group: str, topics: Sequence[str]) -> Subscription:
        """Join `group` as one member reading `topics`."""
        ...

    async def close(self) -> None:
        """Flush and let go of connections."""
        ...


async def open_bus(database_url: str, kafka_bootstrap_servers: str | None) -> Bus:
    """Open the bus of this deployment: Kafka when servers are named, else the PostgreSQL log.

    `kafka_bootstrap_servers` is ``host:port[,host:port]``. Raises when it cannot be reached.
    """
    if kafka_bootstrap_servers:
        from services.contracts.kafka import KafkaBus

        return await KafkaBus.open(kafka_bootstrap_servers)
    from services.contracts.postgres_log import PostgresLog

    return await PostgresLog.open(database_url)
