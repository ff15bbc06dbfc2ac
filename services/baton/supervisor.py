"""`baton up`: PostgreSQL, the stage service and the notifier as processes of one supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from services.baton.command import NOTIFIER_URL_FILE, URL_FILE
from services.baton.embedded import EmbeddedError, EmbeddedPostgres
from services.baton.encryption_key import ensure_key_file, ensure_link_key, key_file
from services.baton.migrations import migrate, newest_revision
from services.baton.places import CONNECTORS, PLAYBOOKS, SOURCES
from services.baton.ports import port_taken
from services.contracts.access import LOGIN_MINUTES, SCOPES, create_key

READY_S = 40.0
STOP_S = 12.0
RESTART_MAX_S = 10.0
RESTART_FRESH_S = 30.0


class UpError(RuntimeError):
    """`baton up` cannot go on; the text says why and what to do."""


class Supervised:
    """One child process: started again when it dies, with growing pauses."""

    def __init__(
        self, name: str, arguments: list[str], environment: dict[str, str], log: Path
    ) -> None:
        self.name = name
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self.stopping = False

    async def run(self, told: Callable[[str], None]) -> None:
        """Keep the process running until `stop`."""
        pause_s = 0.1
        while not self.stopping:
            began = time.monotonic()
            with self._log.open("ab") as out:
                self._process = await asyncio.create_subprocess_exec(
                    *self._arguments, env=self._environment, stdout=out, stderr=out,
                    stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            code = await self._process.wait()
            if self.stopping:
                return
            pause_s = 0.1 if time.monotonic() - began > RESTART_FRESH_S else pause_s * 2
            told(f"{self.name} ended with code {code}; started again (its log: {self._log})")
            await asyncio.sleep(min(pause_s, RESTART_MAX_S))

    async def stop(self) -> None:
        """Ask the process to stop; after 12 s make it."""
        self.stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


class System:
    """The whole of Baton on this machine."""

    def __init__(
        self, data: Path, port: int, notifier_port: int, *, demo: bool, console: Console
    ) -> None:
        self.data = data.resolve()
        self.port = port
        self.notifier_port = notifier_port
        self.demo = demo
        self.console = console
        self.url = f"http://127.0.0.1:{port}"
        self.notifier_url = f"http://127.0.0.1:{notifier_port}"
        self._postgres: EmbeddedPostgres | None = None
        self._postgres_task: asyncio.Task[None] | None = None
        self._children: list[Supervised] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def up(self) -> None:
        """Start everything, say where it is, and run until a signal comes."""
        began = time.monotonic()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signal_ in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signal_, stop.set)
        self._check_ports()
        self.data.mkdir(parents=True, exist_ok=True)
        lock = self._lock_data()
        (self.data / URL_FILE).write_text(self.url)
        (self.data / NOTIFIER_URL_FILE).write_text(self.notifier_url)
        try:
            starting = asyncio.ensure_future(self._start())
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                login = await starting
                self._greet(time.monotonic() - began, login)
                await stopped
            else:
                starting.cancel()
        finally:
            await self.down()
            os.close(lock)

    def _check_ports(self) -> None:
        for port, option in ((self.port, "--port"), (self.notifier_port, "--notifier-port")):
            if port_taken("127.0.0.1", port):
                raise UpError(
                    f"port {port} is taken by another program. "
                    f"Stop it, or choose another port: baton up {option} {port + 10}"
                )

    def _lock_data(self) -> int:
        import fcntl

        handle = os.open(self.data / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise UpError(
                f"another `baton up` uses {self.data}. Stop it, or choose another --data directory."
            ) from None
        return handle

    async def _start(self) -> str:
        database_url = os.environ.get("BATON_DATABASE_URL")
        schema = self.data / "schema"
        started_early = False
        ensure_key_file(self.data)
        if not database_url:
            try:
                self._postgres = EmbeddedPostgres(self.data)
                database_url = self._postgres.url()
                if schema.exists() and schema.read_text() == newest_revision():
                    # Nothing to migrate: the services load their code while PostgreSQL starts.
                    self._serve(database_url)
                    started_early = True
                await asyncio.sleep(0)  # the children's start goes first
                await asyncio.to_thread(self._postgres.start)
                await asyncio.to_thread(self._postgres.ensure_database)
            except EmbeddedError as error:
                raise UpError(str(error)) from None
            self._postgres_task = asyncio.create_task(self._watch_postgres(self._postgres))
        import asyncpg  # while the children load theirs

        try:
            revision = await migrate(database_url)
        except (OSError, asyncpg.PostgresError) as error:
            raise UpError(f"the database cannot be used: {error}") from None
        if self._postgres is not None:
            schema.write_text(revision)
        key, login = await self._keys(database_url)
        environment = self._environment(database_url)
        if not started_early:
            self._serve(database_url)
        await self._ready()
        if self.demo:
            arguments = [sys.executable, "-m", "services.baton.cli", "demo"]
            self._child("demo", arguments, environment | {"BATON_API_KEY": key})
            await self._first_leads(key)
        return login

    def _serve(self, database_url: str) -> None:
        for name in ("stage", "notifier"):
            arguments = [sys.executable, "-m", "services.baton.cli", "serve", name]
            self._child(name, arguments, self._environment(database_url))

    def _environment(self, database_url: str) -> dict[str, str]:
        environment = dict(os.environ)
        defaults = {
            "BATON_PLAYBOOK_FILES": f'["{PLAYBOOKS / "sales.yaml"}"]',
            "BATON_TEAM_FILE": str(PLAYBOOKS / "team.yaml"),
            "BATON_SOURCES_DIR": str(SOURCES),
            "BATON_CONNECTORS_DIR": str(CONNECTORS),
        }
        if "BATON_ENCRYPTION_KEY" not in environment:
            defaults["BATON_ENCRYPTION_KEY_FILE"] = str(key_file(self.data))
        return {
            **defaults,
            **environment,
            "BATON_SUPERVISED": "1",
            "BATON_DATABASE_URL": database_url,
            "BATON_PORT": str(self.port),
            "BATON_NOTIFIER_PORT": str(self.notifier_port),
            "BATON_URL": self.url,
            "BATON_NOTIFIER_URL": self.notifier_url,
            "BATON_PUBLIC_URL": environment.get("BATON_PUBLIC_URL", self.url),
            "BATON_NOTIFIER_PUBLIC_URL": environment.get(
                "BATON_NOTIFIER_PUBLIC_URL", self.notifier_url
            ),
            "BATON_LINK_KEY": environment.get("BATON_LINK_KEY") or ensure_link_key(self.data),
        }

    def _child(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        child = Supervised(name, arguments, environment, self.data / f"{name}.log")
        self._children.append(child)
        self._tasks.append(
            asyncio.create_task(child.run(lambda line: self.console.print(f"[yellow]{line}[/]")))
        )

    async def _watch_postgres(self, postgres: EmbeddedPostgres) -> None:
        while not self._stopping:
            await asyncio.sleep(0.2)
            if postgres.pid is None and not self._stopping:
                self.console.print("[yellow]PostgreSQL ended; started again[/]")
                try:
                    await asyncio.to_thread(postgres.start)
                except EmbeddedError as error:
                    self.console.print(f"[red]{error}[/]")

    async def _keys(self, database_url: str) -> tuple[str, str]:
        """Give the all-scopes key in the data directory, made on the first start, and a login token."""
        import asyncpg

        path = self.data / "api-key"
        connection = await asyncpg.connect(database_url)
        try:
            key = path.read_text().strip() if path.exists() else ""
            if not key or not await connection.fetchval(
                "SELECT true FROM access.keys WHERE id = $1 AND revoked_at IS NULL",
                key.split("_")[1],
            ):
                _, key = await create_key(connection, "baton up", SCOPES)
                handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
                with os.fdopen(handle, "w") as file:
                    file.write(key + "\n")
            _, login = await create_key(
                connection, "browser", SCOPES, kind="login", lifetime_s=LOGIN_MINUTES * 60
            )
        finally:
            await connection.close()
        return key, login

    async def _ready(self) -> None:
        import httpx

        deadline = time.monotonic() + READY_S
        async with httpx.AsyncClient(timeout=2) as client:
            for url in (self.url, self.notifier_url):
                while True:
                    with contextlib.suppress(httpx.HTTPError):
                        if (await client.get(f"{url}/readyz")).status_code == 200:
                            break
                    if time.monotonic() > deadline:
                        raise UpError(
                            f"{url} did not become ready in {READY_S:.0f} s. "
                            f"The logs are in {self.data}."
                        )
                    await asyncio.sleep(0.05)

    async def _first_leads(self, key: str) -> None:
        """Wait until the board shows somebody."""
        import httpx

        async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}) as client:
            for _ in range(200):
                with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                    if (await client.get(f"{self.url}/v1/leads?limit=1")).json()["items"]:
                        return
                await asyncio.sleep(0.05)

    def _greet(self, seconds: float, login: str) -> None:
        where = os.environ.get("BATON_KAFKA_BOOTSTRAP_SERVERS")
        self.console.print(f"\n[bold green]Baton is up[/] after {seconds:.1f} s\n")
        rows = (
            ("Board", f"{self.url}/login#{login}"),
            ("", f"[dim]logs your browser in once, within {LOGIN_MINUTES} minutes; "
             "`baton login` makes another[/]"),
            ("API", f"{self.url}   key in {self.data / 'api-key'}"),
            ("Alerts", self.notifier_url),
            ("Bus", f"Kafka at {where}" if where else "PostgreSQL (BATON_KAFKA_BOOTSTRAP_SERVERS: Kafka)"),
            ("Logs", str(self.data)),
        )  # fmt: skip
        for name, text in rows:
            self.console.print(f"  [bold]{name:8}[/] {text}", soft_wrap=True, highlight=False)
        self.console.print("\nStop with Ctrl-C.", highlight=False)

    async def down(self) -> None:
        """Stop everything in order: traffic, services, PostgreSQL."""
        self._stopping = True
        for child in reversed(self._children):
            child.stopping = True
        await asyncio.gather(*(child.stop() for child in self._children))
        for task in self._tasks:
            task.cancel()
        if self._postgres_task is not None:
            self._postgres_task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._postgres is not None:
            await asyncio.to_thread(self._postgres.stop)
