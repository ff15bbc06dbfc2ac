"""The ground the benchmarks stand on: a durable PostgreSQL of their own, and services as processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import httpx

from bench.cost import Cpu, used
from services.baton.embedded import EmbeddedPostgres
from services.baton.migrations import migrate
from services.baton.places import PLAYBOOKS
from services.contracts.access import SCOPES, create_key

READY_S = 40.0
STOP_S = 15.0


class Ground:
    """A temporary directory with a PostgreSQL server (fsync on) and the processes started here."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="baton-bench-"))
        self.postgres = EmbeddedPostgres(self.directory / "pg")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pids: dict[str, int] = {}

    async def __aenter__(self) -> Ground:
        await asyncio.to_thread(self.postgres.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._clear)

    def stop_services(self) -> None:
        """Stop the processes started here, but not PostgreSQL."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _clear(self) -> None:
        self.stop_services()
        self.postgres.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.postgres.sockets.parent != self.postgres.data:
            shutil.rmtree(self.postgres.sockets, ignore_errors=True)

    async def database(self, name: str) -> tuple[str, str]:
        """Make the migrated database `name`; give its URL and an API key."""
        await asyncio.to_thread(self.postgres.ensure_database, name)
        url = self.postgres.url(name)
        await migrate(url)
        connection = await asyncpg.connect(url)
        try:
            durable = [
                await connection.fetchval(f"SHOW {setting}")
                for setting in ("fsync", "synchronous_commit", "full_page_writes")
            ]
            if durable != ["on", "on", "on"]:
                raise RuntimeError(f"PostgreSQL is not durable: {durable}")
            _, key = await create_key(connection, "bench", SCOPES)
        finally:
            await connection.close()
        return url, key

    async def service(self, name: str, database_url: str, **more: str) -> str:
        """Start the service `name` (stage or notifier) as `baton serve` does; give its URL."""
        port = free_port()
        environment = {
            "BATON_DATABASE_URL": database_url,
            "BATON_PORT": str(port),
            "BATON_NOTIFIER_PORT": str(port),
            "BATON_SUBSCRIPTIONS_PORT": str(port),
            "BATON_PLAYBOOK_FILES": f'["{PLAYBOOKS / "sales.yaml"}"]',
            "BATON_TEAM_FILE": str(PLAYBOOKS / "team.yaml"),
            "BATON_LOG_LEVEL": "warning",
            "BATON_SUPERVISED": "1",
            **more,
        }
        url = f"http://127.0.0.1:{port}"
        arguments = ["-m", "services.baton.cli", "serve", name]
        await self._ready(self._start(name, arguments, environment), f"{url}/readyz", name)
        return url

    async def baseline(self) -> str:
        """Start the endpoint that does nothing (`bench.noop`); give its URL."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        process = self._start("noop", ["-m", "bench.noop", str(port)], {"BATON_SUPERVISED": "1"})
        await self._ready(process, f"{url}/readyz", "noop")
        return url

    def _start(
        self, name: str, arguments: list[str], environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BATON_")}
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], env={**kept, **environment}, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
                cwd=Path(__file__).resolve().parents[1],
            )  # fmt: skip
        self._processes.append(process)
        self._pids[name] = process.pid
        return process

    def cpu(self, name: str) -> Cpu:
        """Give what the newest process `name` and PostgreSQL have used so far."""
        return used(self._pids.get(name), self.postgres.pid)

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    async def _ready(self, process: subprocess.Popen[bytes], url: str, name: str) -> None:
        deadline = time.monotonic() + READY_S
        async with httpx.AsyncClient(timeout=2) as client:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(url)).status_code == 200:
                        return
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = self._log(name).read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{name} did not become ready:\n{tail}")
                await asyncio.sleep(0.05)

    def complaints(self, *names: str) -> list[str]:
        """Say which services logged something (at warning or worse), with the last line of each."""
        found: list[str] = []
        for name in names:
            if self._log(name).exists():
                lines = self._log(name).read_text(errors="replace").splitlines()
                lines = [line for line in lines if line.strip()]
                if lines:
                    found.append(f"{name} logged {len(lines)} lines, the last: {lines[-1][:200]}")
        return found


async def settle(url: str) -> None:
    """Bring statistics up to date and write dirty pages, so that neither falls into a round."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("VACUUM ANALYZE", timeout=900)
        await connection.execute("CHECKPOINT", timeout=900)
    finally:
        await connection.close()


async def count(url: str, query: str) -> int:
    """Give the number that `query` counts."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def free_port() -> int:
    """Give a TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
