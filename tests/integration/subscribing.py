"""Subscriptions for tests: a log to write to, who delivers from it, and how far that is."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg
import msgspec
import pytest

from services.contracts import postgres_log
from services.contracts.events import TRANSITIONED, TRANSITIONS_TOPIC, Message, message_headers
from services.stage_service.encryption import Cipher
from services.stage_service.pulse import Pulse
from services.stage_service.subscriptions.addresses import allowed_from
from services.stage_service.subscriptions.courses import Courses
from services.stage_service.subscriptions.dispatcher import Dispatcher
from services.stage_service.subscriptions.secrets import add_secret, seal_values
from services.stage_service.subscriptions.tail import Tail
from tests.fakes.clock import BEGAN, Clock
from tests.integration.receiver import Receiver

CIPHER_TEXT = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
CIPHER = Cipher([base64.b64decode(CIPHER_TEXT)])
DELIVERED = (
    "SELECT count(*) = $2 FROM stage.deliveries WHERE subscription_id = $1 AND state = 'delivered'"
)
REFUSED = """SELECT count(DISTINCT objid) = $1 FROM pg_locks
WHERE locktype = 'advisory' AND classid = x'62617372'::int::oid
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
"""What processes said that they cannot deliver for."""
WITHIN_S = 1.5
"""A second, and what this machine is busy with."""


def transition(lead: str, sequence: int, /, **more: Any) -> Message:
    """Make a published event of `lead` as short as can be, numbered `sequence`."""
    id = str(uuid.uuid4())
    value = msgspec.json.encode({
        "transition_id": id, "sequence": sequence,
        "lead": {"id": lead, "email": f"{lead}@example.com", "name": "Ada"},
        "journey": {"id": f"j-{lead}", "playbook": "sales", "key": "main"}, "from": "lead", "to": "mql",
        **more,
    })  # fmt: skip
    headers = message_headers(id, TRANSITIONED, BEGAN, subject=lead)
    return Message(TRANSITIONS_TOPIC, lead, headers, value)


class Log:
    """The published log, written as the relay does."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.sequences: dict[str, int] = {}
        self.ids: dict[str, list[str]] = {}

    async def publish(self, *leads: str, **more: Any) -> list[Message]:
        """Publish one transition of each of `leads`, in order."""
        messages: list[Message] = []
        for lead in leads:
            self.sequences[lead] = self.sequences.get(lead, 0) + 1
            messages.append(transition(lead, self.sequences[lead], **more))
            self.ids.setdefault(lead, []).append(messages[-1].id)
        await self.put(*messages)
        return messages

    async def put(self, *messages: Message) -> None:
        """Publish these."""
        for start in range(0, len(messages), 500):
            await postgres_log.write(self.connection, messages[start : start + 500])
        while (await postgres_log.stamp(self.connection))[0]:
            pass


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[Log]:
    """The log of this test."""
    connection = await asyncpg.connect(database_url)
    yield Log(connection)
    await connection.close()


async def subscribe(connection: asyncpg.Connection, url: str | None, **wished: Any) -> str:
    """Store a subscription from the present end of the log, with a v1 secret; gives its id."""
    id = str(uuid.uuid4())
    values = {
        "name": "crm", "types": [], "filter": None, "payload": "full", "ordered": True, "contact": None,
        "timeout_s": 5.0, "concurrency": 8, "rate_per_s": None, "state": "active", "headers": {},
        "position": None, "secret": True, "connector": None, "config": {},
    } | wished  # fmt: skip
    await connection.execute(
        """INSERT INTO stage.subscriptions (id, name, connector, url, types, filter, payload, ordered,
             headers, config, contact, timeout_s, concurrency, rate_per_s, state, state_at, created_at,
             created_by, updated_at)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $16,
             'test', $16)""",
        id, values["name"], values["connector"], url, values["types"], values["filter"],
        values["payload"], values["ordered"], seal_values(CIPHER, id, "headers", values["headers"]),
        json.dumps(values["config"]), values["contact"], values["timeout_s"], values["concurrency"],
        values["rate_per_s"], values["state"], BEGAN,
    )  # fmt: skip
    await connection.execute(
        """INSERT INTO stage.subscription_cursors (subscription_id, position)
           VALUES ($1, coalesce($2, (SELECT max(position) FROM bus.log), 0))""",
        id, values["position"],
    )  # fmt: skip
    if values["secret"]:
        await add_secret(connection, CIPHER, id, "v1", BEGAN)
    return id


async def change(connection: asyncpg.Connection, id: str, **columns: Any) -> None:
    """Change a subscription by hand."""
    sets = ", ".join(f"{name} = ${n}" for n, name in enumerate(columns, 2))
    await connection.execute(
        f"UPDATE stage.subscriptions SET {sets}, version = version + 1 WHERE id = $1", id, *columns.values()
    )  # fmt: skip


async def rows_of(connection: asyncpg.Connection, id: str) -> list[dict[str, Any]]:
    """The deliveries of a subscription, by position, with their attempts decoded."""
    rows = await connection.fetch(
        "SELECT * FROM stage.deliveries WHERE subscription_id = $1 ORDER BY position, run", id
    )
    return [dict(r) | {"attempts": json.loads(r["attempts"])} for r in rows]


async def until_in(
    connection: asyncpg.Connection, query: str, *values: Any, within_s: float = 20.0
) -> Any:
    """Wait until `query` gives something true, and give that."""
    deadline = time.monotonic() + within_s
    while not (found := await connection.fetchval(query, *values)):
        assert time.monotonic() < deadline, f"not within {within_s} s: {query}"
        await asyncio.sleep(0.01)
    return found


@asynccontextmanager
async def delivering(
    database_url: str,
    now: Callable[[], datetime] | None = None,
    *,
    playbooks: Callable[[], Mapping[str, Any]] = dict,
    allow: str = "127.0.0.0/8",
    tls: ssl.SSLContext | None = None,
    random: Callable[[], float] = lambda: 0.5,
    cipher: Cipher = CIPHER,
) -> AsyncIterator[Dispatcher]:
    """Run what one process delivers by."""
    async with asyncpg.create_pool(database_url, min_size=1, max_size=3) as pool:
        pulse = Pulse(database_url)
        tail = Tail(pool, pulse)
        courses = Courses(cipher, playbooks, allowed_from(allow), tls)
        dispatcher = Dispatcher(database_url, courses, tail, now or Clock(), random)
        tail.grown, tail.wanted = dispatcher.grown, lambda: bool(dispatcher.held)
        pulse.start()
        tail.start()
        dispatcher.start()
        try:
            yield dispatcher
        finally:
            await dispatcher.stop()
            await tail.stop()
            await pulse.stop()


async def held(dispatcher: Dispatcher, count: int, within_s: float = 10.0) -> None:
    """Wait until `dispatcher` holds `count` subscriptions."""
    deadline = time.monotonic() + within_s
    while len(dispatcher.held) != count:
        assert time.monotonic() < deadline, f"{len(dispatcher.held)} held, not {count}"
        await asyncio.sleep(0.01)


async def settled() -> None:
    """Let what could happen at once happen: several looks and ticks."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 0.7
    done = asyncio.Event()
    loop.call_at(end, done.set)
    await done.wait()


def check_order(receiver: Receiver, log: Log) -> None:
    """Each lead's events came in order, without gap, once repeats are dropped by id."""
    seen: dict[str, dict[str, None]] = {}
    for request in receiver.taken:
        seen.setdefault(request.event["subject"], {})[request.id] = None
    assert {lead: list(ids) for lead, ids in seen.items()} == log.ids
