"""Streams of a real process: a stop under open tabs, a database that comes back, clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx
import pytest
from httpx_sse import aconnect_sse

from services.baton.embedded import EmbeddedPostgres
from services.contracts import access, postgres_log
from services.contracts.events import TRANSITIONS_TOPIC, Message, message_headers
from tests.system.running import stage_process, until
from tests.system.test_late_database import baton

pytestmark = [pytest.mark.long]

TABS = 100
STALLED = 20


class Running:
    """A stage service in a process of its own, with a key."""

    def __init__(self, database_url: str, log: Path, **settings: str) -> None:
        self.database_url = database_url
        self.log = log
        self.process, self.url = stage_process(database_url, log, **settings)
        self.key = asyncio.run(self._new_key())

    async def _new_key(self) -> str:
        connection = await asyncpg.connect(self.database_url)
        try:
            return (await access.create_key(connection, "test", ["read"]))[1]
        finally:
            await connection.close()

    def client(self) -> httpx.AsyncClient:
        """A client with as many connections as it takes."""
        return httpx.AsyncClient(
            base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=60,
            limits=httpx.Limits(max_connections=None),
        )  # fmt: skip

    @property
    def memory(self) -> int:
        """The process's resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    @property
    def connections(self) -> int:
        """Established connections to its port that the kernel knows, on either side."""
        port = httpx.URL(self.url).port
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        ours = f":{port:04X}"
        # Field 1 is the local address, field 3 the state: 01 is established.
        return sum(
            fields[1].endswith(ours) and fields[3] == "01"
            for fields in (line.split() for line in lines)
        )

    def stop(self) -> float:
        """Stop it as an operator does; gives the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        return time.monotonic() - began


@contextlib.contextmanager
def running(database_url: str, log: Path, **settings: str) -> Iterator[Running]:
    """Run it; what it logged has no traceback."""
    it = Running(database_url, log, **settings)
    try:
        yield it
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            it.stop()
        it.process.kill()
        it.process.wait()
    assert "Traceback" not in log.read_text()
    assert '"level": "error"' not in log.read_text()


async def publish(database_url: str, count: int, padding: int = 0) -> None:
    """Put transitions into the outbox; the service's relay publishes them."""
    messages = [
        Message(
            TRANSITIONS_TOPIC, "lead",
            message_headers(str(uuid.uuid4()), "baton.stage.transitioned.v1", datetime.now(UTC)),
            json.dumps({"to": "mql", "explanation": "x" * padding}).encode(),
        )
        for _ in range(count)
    ]  # fmt: skip
    connection = await asyncpg.connect(database_url)
    try:
        await postgres_log.write(connection, messages)
    finally:
        await connection.close()


async def positions(
    client: httpx.AsyncClient, path: str, started: asyncio.Semaphore | None = None
) -> AsyncIterator[int]:
    """The positions that a real SSE client hears."""
    async with aconnect_sse(client, "GET", path) as source:
        source.response.raise_for_status()
        if started is not None:
            started.release()
        async for event in source.aiter_sse():
            yield int(event.id)


def test_a_stop_under_a_hundred_open_tabs(database_url: str, tmp_path: Path) -> None:
    """Streams and waiting polls end whole, within two seconds."""

    async def tabs(it: Running) -> tuple[float, list[object]]:
        started = asyncio.Semaphore(0)
        async with it.client() as client:

            async def tab() -> None:
                async for _ in positions(client, "/v1/transitions/stream", started):
                    raise AssertionError("nothing was published")

            async def poll() -> None:
                answer = await client.get("/v1/transitions", params={"wait": 60})
                assert answer.json() == {"items": [], "next_cursor": None}

            tasks = [asyncio.create_task(tab()) for _ in range(TABS - 20)]
            tasks += [asyncio.create_task(poll()) for _ in range(20)]
            for _ in range(TABS - 20):
                await started.acquire()
            async with asyncio.timeout(20):
                while it.connections < TABS:
                    await asyncio.sleep(0.02)
            took = await asyncio.to_thread(it.stop)
            return took, await asyncio.gather(*tasks, return_exceptions=True)

    with running(database_url, tmp_path / "log") as it:
        took, ended = asyncio.run(tabs(it))
    assert [e for e in ended if e is not None] == []
    assert took < 2


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this test's own, to be stopped and started."""
    directory = Path(tempfile.mkdtemp(prefix="baton-feed-"))
    server = EmbeddedPostgres(directory)
    try:
        server.start()
        server.ensure_database()
        baton(server.url(), "migrate")
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def test_a_stream_outlives_its_database(own_postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """The same connection goes on when the database is back, and has missed nothing."""

    async def follow(it: Running) -> list[int]:
        seen: list[int] = []
        async with it.client() as client:
            stream = positions(client, "/v1/transitions/stream?after=0")
            async with asyncio.timeout(60):
                await publish(it.database_url, 3)
                seen += [await anext(stream) for _ in range(3)]
                await asyncio.to_thread(own_postgres.stop)
                while (await client.get("/readyz")).status_code == 200:
                    await asyncio.sleep(0.02)
                answer = await client.get("/v1/transitions", params={"wait": 1})
                assert answer.status_code == 503
                await asyncio.to_thread(own_postgres.start)
                await publish(it.database_url, 3)
                seen += [await anext(stream) for _ in range(3)]
            await stream.aclose()
        return seen

    with running(own_postgres.url(), tmp_path / "log") as it:
        assert asyncio.run(follow(it)) == [1, 2, 3, 4, 5, 6]


def test_clients_that_do_not_read_cost_no_memory(database_url: str, tmp_path: Path) -> None:
    """Each is hung up on after the time allowed, its connection is gone, and others hear everything."""

    def stalled(it: Running, path: str) -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", httpx.URL(it.url).port))
        client.sendall(
            f"GET {path} HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {it.key}\r\n\r\n".encode()
        )
        return client

    async def one_reads(it: Running, count: int) -> list[int]:
        async with it.client() as client:
            stream = positions(client, "/v1/transitions/stream?after=0")
            async with asyncio.timeout(60):
                heard = [await anext(stream) for _ in range(count)]
            await stream.aclose()
            return heard

    with running(database_url, tmp_path / "log", stream_stall_s="2") as it:
        asyncio.run(publish(database_url, 400, padding=100_000))  # 40 MB
        assert asyncio.run(one_reads(it, 400)) == list(range(1, 401))
        before = it.memory
        clients = [stalled(it, "/v1/transitions/stream?after=0") for _ in range(STALLED)]
        clients += [stalled(it, "/v1/transitions/export") for _ in range(STALLED)]
        until(lambda: it.connections == 2 * STALLED, "all are connected")
        highest = 0

        def all_gone() -> bool:
            nonlocal highest
            highest = max(highest, it.memory)
            return it.connections == 0

        # Not closed by the clients: the kernel broke the connections off.
        until(all_gone, "all are hung up on", 30)
        assert asyncio.run(one_reads(it, 400)) == list(range(1, 401))
        for client in clients:
            client.close()
    assert highest - before < 40 * 1024 * 1024, f"{(highest - before) / 2**20:.0f} MiB"
