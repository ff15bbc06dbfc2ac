"""Baton as processes of its own, on a PostgreSQL of its own: killed at any moment and started again.

They share the made-up time with the test. `settle` waits until everything that is due is done, whoever has
to be started again for it; a claim that a killed process left behind is waited for by moving the time on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import httpx
import msgspec

from services.baton.embedded import EmbeddedPostgres
from services.contracts import access, postgres_log
from services.contracts.cloudevents import BATCHED
from services.contracts.database import DATABASE_AWAY
from services.contracts.events import (
    ASSIGNED_BY_HAND,
    HANDOFFS_TOPIC,
    TRANSITIONS_TOPIC,
    LeadEvent,
    Message,
    rfc3339,
)
from services.stage_service import people
from tests.integration.kafka_broker import KafkaBroker
from tests.system.quarter.checks import TOLD_TYPES
from tests.system.quarter.desk import HAND, HELD, NEXT, STUCK
from tests.system.quarter.process import SharedClock
from tests.system.running import ROOT, free_port

WITHIN_S = 180.0
"""More than all the patience within: a publisher's 20 s, a reader's 30 s, a broker's slow start."""
CLAIMS_STUCK_S = 1.0
"""How long nothing may move before a claim is taken for one that a killed process left."""
T = TypeVar("T")

_BUSY = """
SELECT (SELECT count(*) FROM bus.pending)
  + (SELECT count(*) FROM stage.clocks WHERE state = 'running' AND due_at <= $1)
  + (SELECT count(*) FROM notifier.deliveries
     WHERE status = 'claimed' OR status = 'pending' AND due_at <= $1)
  + (SELECT count(*) FROM notifier.escalations WHERE ended_at IS NULL AND due_at <= $1)
"""
_CLAIMED = """
SELECT least((SELECT min(claimed_until) FROM stage.clocks WHERE state = 'running' AND claimed_until > $1),
  (SELECT min(claimed_until) FROM notifier.deliveries WHERE status = 'claimed' AND claimed_until > $1))
"""


class Remote:
    """The processes, and a connection to look at what they do."""

    def __init__(
        self,
        directory: Path,
        clock: SharedClock,
        clock_file: Path,
        environment: dict[str, str],
        broker: KafkaBroker | None = None,
    ) -> None:
        """With a `broker`, which runs already, Kafka is the bus; else the log in PostgreSQL."""
        self.clock = clock
        self.broker = broker
        self._directory = directory
        self._clock_file = clock_file
        self._environment = environment
        self._postgres = EmbeddedPostgres(directory / "pg")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = {"stage": free_port(), "notifier": free_port()}
        self._killing = threading.Lock()
        self._connection: asyncpg.Connection[Any] | None = None
        self._position = 0
        self._expected: set[tuple[str, str]] = set()
        self._key = ""
        self._client = httpx.AsyncClient(timeout=10)
        self.claims_waited_for = 0
        self.refused = 0

    @property
    def url(self) -> str:
        """The database's URL."""
        return self._postgres.url("baton")

    async def start(self, documents: list[dict[str, Any]]) -> None:
        """Start PostgreSQL, bring the schema and the people in, and start the services."""
        await asyncio.to_thread(self._postgres.start)
        self._postgres.ensure_database("baton")
        self._run("-m", "services.baton.cli", "migrate")
        pool = await asyncpg.create_pool(self.url, min_size=1, max_size=1)
        await people.take_file(pool, documents, wins=False)
        async with pool.acquire() as connection:
            _, self._key = await access.create_key(connection, "quarter", access.SCOPES)
        await pool.close()
        for name in self._ports:
            self._spawn(name)

    async def stop(self) -> None:
        """End everything."""
        for process in self._processes.values():
            process.kill()
            process.wait()
        if self._connection is not None:
            self._connection.terminate()
        await self._client.aclose()
        await asyncio.to_thread(self._postgres.stop)

    def _run(self, *arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], cwd=ROOT, env=self._settings(), check=True)

    def _settings(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BATON_", "KAFKA_"))}
        if self.broker is not None:
            kept["BATON_KAFKA_BOOTSTRAP_SERVERS"] = self.broker.bootstrap_servers
        return kept | self._environment | {
            "BATON_DATABASE_URL": self.url, "BATON_LOG_LEVEL": "info",
            "BATON_PORT": str(self._ports["stage"]),
            "BATON_NOTIFIER_PORT": str(self._ports["notifier"]), "BATON_SUPERVISED": "1",
        }  # fmt: skip

    def _spawn(self, name: str) -> None:
        with (self._directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.system.quarter.process", name, self._clock_file],
                cwd=ROOT, env=self._settings(), stdout=log, stderr=log,
            )  # fmt: skip

    def log(self, name: str) -> str:
        """Give what a service logged."""
        return (self._directory / f"{name}.log").read_text()

    def kill(self, part: str) -> None:
        """Kill a part with -9 at whatever instruction it is, and start it again."""
        with self._killing:
            if part == "postgres":
                self._postgres.kill()
                self._postgres.start()
                return
            if part == "kafka":
                assert self.broker is not None
                self.broker.kill()
                self.broker.start()
                return
            process = self._processes[part]
            process.send_signal(signal.SIGKILL)
            process.wait()
            self._spawn(part)

    def be(self, moment: datetime) -> None:
        """Make it `moment`, unless waiting for a claim has made it later."""
        self.clock.be(max(moment, self.clock.now()))

    async def submit(self, events: list[LeadEvent]) -> None:
        """Send lead events, again until they are acknowledged, as a good client does."""
        for start in range(0, len(events), 500):
            some = events[start : start + 500]
            if some[0].type == ASSIGNED_BY_HAND:
                await self._until_answered(lambda e=some[0]: self._assign(e))
                continue
            body = msgspec.json.encode([_cloudevent(e) for e in some])
            answer = await self._until_answered(
                lambda b=body: self._post("/v1/events", b, {"content-type": BATCHED})
            )
            assert {r["status"] for r in answer["results"]} <= {"applied", "duplicate"}, answer

    async def _assign(self, event: LeadEvent) -> Any:
        data = event.data
        body = {"role": data["role"], "reason": data["reason"], "actor": data["actor"]}
        return await self._post(
            f"/v1/leads/{event.identities[0][1]}/assign", msgspec.json.encode(body),
            {"content-type": "application/json", "idempotency-key": f'"{event.id}"'},
        )  # fmt: skip

    async def _post(self, path: str, body: bytes, headers: dict[str, str]) -> Any:
        """Post it; None when it is to be sent again."""
        try:
            answer = await self._client.post(
                f"http://127.0.0.1:{self._ports['stage']}{path}", content=body,
                headers={"authorization": f"Bearer {self._key}", **headers},
            )  # fmt: skip
        except httpx.TransportError:
            return None
        if answer.status_code == 409 and "idempotency" in answer.text:
            # The process that had it in hand was killed: its claim runs out with the made-up time.
            self.be(self.clock.now() + timedelta(seconds=5))
            return None
        if answer.status_code >= 500:
            return None
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def _until_answered(self, ask: Callable[[], Awaitable[T | None]]) -> T:
        deadline = time.monotonic() + WITHIN_S
        while (answer := await ask()) is None:
            self.refused += 1
            assert time.monotonic() < deadline, self.log("stage")[-3000:]
            await asyncio.sleep(0.05)
        return answer

    async def put(self, document: dict[str, Any]) -> None:
        """Add or change a person, and wait until every service knows."""
        await self._query(lambda pool: people.put(pool, document, HAND))
        await self._known()

    async def take_off(self, id: str) -> None:
        """Take a person off the roster, and wait until every service knows."""

        async def remove(pool: asyncpg.Pool[Any]) -> None:
            async with pool.acquire() as connection, connection.transaction():
                await people.remove(connection, id, HAND)

        await self._query(remove)
        await self._known()

    async def _known(self) -> None:
        revision = await self._query(lambda p: p.fetchval("SELECT revision FROM roster.revision"))
        for name in self._ports:
            await self._until_answered(lambda n=name: self._has_read(n, revision))

    async def _has_read(self, name: str, revision: int) -> bool | None:
        return (
            f'"revision": {revision}' in self.log(name)
            or f'"revision":{revision}' in self.log(name)
            or None
        )

    async def held_by(self, id: str) -> list[tuple[str, str]]:
        """Give the lead and the role of each journey that the person holds."""
        rows = await self._query(lambda pool: pool.fetch(HELD, id))
        return [(r["lead_id"], r["role"]) for r in rows]

    async def next_due(self) -> datetime | None:
        """Give the next moment at which a clock, a delivery or an escalation is due."""
        return await self._query(lambda pool: pool.fetchval(NEXT))

    async def what_is_due(self) -> list[str]:
        """Name what is due, for whoever has to find out why it stays so."""
        rows = await self._query(lambda pool: pool.fetch(STUCK, self.clock.now()))
        return [str(dict(r)) for r in rows]

    async def settle(self) -> list[Message]:
        """Wait until what is due is done; give what was published meanwhile."""
        published: list[Message] = []
        deadline = time.monotonic() + WITHIN_S
        seen, since = (), time.monotonic()
        while True:
            published += await self._read()
            missing = await self._missing()  # first: what is recorded has deliveries
            busy = await self._query(lambda pool: pool.fetchval(_BUSY, self.clock.now()))
            if not busy and not missing:
                if not (more := await self._read()):
                    return published
                published += more
                continue
            if seen != (busy, missing):
                seen, since = (busy, missing), time.monotonic()
                deadline = since + WITHIN_S
            elif time.monotonic() - since > CLAIMS_STUCK_S:
                await self._past_claims()
                since = time.monotonic()
            assert time.monotonic() < deadline, (busy, missing, await self.what_is_due())
            await asyncio.sleep(0.005)

    async def _past_claims(self) -> None:
        """Move the time to where the first claim ends that nobody works on any more."""
        until = await self._query(lambda pool: pool.fetchval(_CLAIMED, self.clock.now()))
        if until is not None:
            self.claims_waited_for += 1
            self.be(until)

    async def _missing(self) -> int:
        """Give how many of the alerts that were wished are not recorded yet."""
        if not self._expected:
            return 0
        ids = [id for id, _ in self._expected]
        rows = await self._query(lambda pool: pool.fetch(
            "SELECT transition_id::text AS id, recipient FROM notifier.alerts "
            "WHERE transition_id = ANY($1::uuid[])", ids,
        ))  # fmt: skip
        self._expected -= {(r["id"], r["recipient"]) for r in rows}
        return len(self._expected)

    async def _read(self) -> list[Message]:
        """Read what was published, as a subscriber of the log does."""
        found: list[Message] = []
        topics = [TRANSITIONS_TOPIC, HANDOFFS_TOPIC]
        while some := await self._query(
            lambda pool: postgres_log.read(pool, self._position, topics, 1000)
        ):
            self._position = some[-1].position or 0
            found += some
        for message in found:
            if message.type in TOLD_TYPES:
                for wish in msgspec.json.decode(message.value).get("alerts", ()):
                    who = wish["person"]["id"] if wish["person"] else f"role:{wish['role']}"
                    self._expected.add((message.id, who))
        return found

    async def _query(self, ask: Callable[[Any], Awaitable[T]]) -> T:
        """Ask the database, again while it is away."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            try:
                return await ask(_One(await self._connected()))
            except (*DATABASE_AWAY, asyncpg.PostgresError, asyncpg.InternalClientError):
                assert time.monotonic() < deadline
                if self._connection is not None:
                    self._connection.terminate()
                self._connection = None
                await asyncio.sleep(0.02)

    async def _connected(self) -> asyncpg.Connection[Any]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self.url, timeout=5, command_timeout=30)
        return self._connection


class _One:
    """A pool of one connection, for those who want a pool."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def acquire(self) -> _One:
        """Give the connection."""
        return self

    async def __aenter__(self) -> asyncpg.Connection[Any]:
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        return None


def _cloudevent(event: LeadEvent) -> dict[str, Any]:
    return {
        "specversion": "1.0", "id": event.id, "source": event.source, "type": event.type,
        "time": rfc3339(event.time), "data": event.data,
    }  # fmt: skip
