"""The floor of (b): the rows that a batch has to leave behind, all made beforehand, and only inserted.

What `services.stage_service.batch` hands to its one writing statement is recorded, in a database of its own,
and then sent to an empty one: the same rows, the same `unnest`, no rules, no reading, no messages built. A
lane that computed in no time would be as fast as this, and no faster.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from bench.traffic import batches, encoded
from services.baton.places import PLAYBOOKS
from services.contracts import cloudevents
from services.contracts.events import LeadEvent, lead_event
from services.contracts.roster import Roster
from services.contracts.team import load_team
from services.stage_service.batch import Batch
from services.stage_service.identities import Policy
from services.stage_service.lane import new_id
from services.stage_service.playbook import parse_playbook
from services.stage_service.shelf import Shelf

Sent = list[tuple[str, tuple[Any, ...]]]
"""The writing statement of each batch, with its values."""


class _Recorder:
    """A connection that keeps what the lane's writing statements were sent."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection
        self.sent: Sent = []

    async def fetchrow(self, query: str, *values: Any) -> Any:
        self.sent.append((query, values))
        return await self._connection.fetchrow(query, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class Recording:
    """The lane's work on a database of its own, to find out what it writes."""

    def __init__(self, connection: asyncpg.Connection[Any], shelf: Shelf, roster: Roster) -> None:
        self._connection = connection
        self._shelf = shelf
        self._roster = roster

    @classmethod
    async def open(cls, url: str) -> Recording:
        """Connect to the migrated, empty database at `url` and publish the playbook of the other rounds."""
        connection = await asyncpg.connect(url)
        shelf = Shelf()
        await shelf.load(connection)
        file = PLAYBOOKS / "sales.yaml"
        playbook = parse_playbook(file.read_text(encoding="utf-8"), file.name)
        async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
            await shelf.publish_file(pool, playbook)
        return cls(connection, shelf, Roster(load_team(PLAYBOOKS / "team.yaml")))

    async def of(self, prefix: str, number: int, stories: int) -> Sent:
        """Apply `number` batches, see `bench.traffic.batches`, and give what was written for them."""
        recorder = _Recorder(self._connection)
        for batch in batches(prefix, number, stories=stories):
            events = [_read(encoded(event)) for event in batch]
            async with self._connection.transaction():
                await Batch(
                    recorder,  # pyright: ignore[reportArgumentType]
                    self._shelf, self._roster, datetime.now(UTC), new_id, Policy(),
                ).apply(events)  # fmt: skip
        return recorder.sent

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()


async def send(connection: asyncpg.Connection[Any], sent: Sent) -> float:
    """Write what was recorded, a batch a transaction; gives the seconds it took."""
    began = time.perf_counter()
    for query, values in sent:
        async with connection.transaction():
            await connection.fetchrow(query, *values)
    return time.perf_counter() - began


def _read(body: bytes) -> LeadEvent:
    event = cloudevents.check(msgspec.json.decode(body))
    assert isinstance(event, cloudevents.CloudEvent)
    read = lead_event(event, datetime.now(UTC))
    assert isinstance(read, LeadEvent)
    return read
