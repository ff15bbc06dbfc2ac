"""The whole stage service in this process, on a real PostgreSQL: for tests over HTTP.

`running_stage` serves requests in memory; `serving_stage` listens on a real socket as well, for what only a
real client and a real HTTP parser show.
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import msgspec
import uvicorn
from fastapi import FastAPI

from services.baton.embedded import EmbeddedPostgres
from services.contracts import access
from services.contracts.tls import authorities
from services.stage_service.api.access import House
from services.stage_service.app import create_app, utc_now
from services.stage_service.settings import StageSettings

ROOT = Path(__file__).parents[2]
STRUCTURED = "application/cloudevents+json"
BATCHED = "application/cloudevents-batch+json"
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


class MadeUpTime:
    """A Wednesday at noon in winter, a millisecond later at each look; or `at`, while that is set."""

    def __init__(self) -> None:
        self.at: datetime | None = None
        self._moment = NOON

    def __call__(self) -> datetime:
        """Give the moment."""
        if self.at is not None:
            return self.at
        self._moment += timedelta(milliseconds=1)
        return self._moment


@dataclass
class Stage:
    """The running app, a client with a key of all scopes, and a connection to the app's database."""

    app: FastAPI
    url: str
    key: str
    client: httpx.AsyncClient
    connection: asyncpg.Connection[Any]

    @property
    def house(self) -> House:
        """The app's parts."""
        return self.app.state.house

    async def new_key(self, *scopes: str) -> tuple[str, str]:
        """Make a key with `scopes` and give (id, token)."""
        return await access.create_key(self.connection, "-".join(scopes), scopes)

    async def post(
        self, body: bytes | Iterable[bytes], content_type: str | None = STRUCTURED, **headers: str
    ) -> httpx.Response:
        """Post `body` as it is to ``/v1/events``; in `headers`, ``_`` stands for ``-``."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if content_type is not None:
            sent["content-type"] = content_type
        return await self.client.post("/v1/events", content=body, headers=sent)

    async def send(self, *events: dict[str, Any]) -> list[dict[str, Any]]:
        """Send valid events as one batch and give their results."""
        answer = await self.post(msgspec.json.encode(events), BATCHED)
        assert answer.status_code == 200, answer.text
        return answer.json()["results"]

    async def stored(self, source: str, id: str) -> dict[str, Any] | None:
        """Give the row of the event (`source`, `id`), or None; JSON columns are decoded."""
        row = await self.connection.fetchrow(
            "SELECT * FROM stage.events WHERE source = $1 AND id = $2", source, id
        )
        if row is None:
            return None
        return dict(row) | {
            "data": msgspec.json.decode(row["data"]),
            "envelope": msgspec.json.decode(row["envelope"] or "{}"),
        }

    async def count(self) -> int:
        """Give how many events are stored."""
        return await self.connection.fetchval("SELECT count(*) FROM stage.events")


@contextmanager
def fresh_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """Give the URL of a migrated database, for tests of one module that share it."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.statement(f"CREATE DATABASE {name} TEMPLATE template_baton STRATEGY FILE_COPY")
    yield postgres.url(name)
    postgres.statement(f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def running_stage(
    database_url: str, now: Callable[[], datetime] = utc_now, **settings: Any
) -> AsyncIterator[Stage]:
    """Run the stage service on `database_url`; `settings` go to `StageSettings`."""
    app = create_app(_settings(database_url, settings), now=now)
    async with app.router.lifespan_context(app):
        # As in production a mistake is answered 500, not raised into the client.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with _with_key(app, database_url, "http://stage.test", transport) as stage:
            yield stage


@asynccontextmanager
async def serving_stage(
    database_url: str, at_port: int = 0, **settings: Any
) -> AsyncIterator[Stage]:
    """Run the stage service on `database_url` behind a real socket of this machine, at a free port."""
    app = create_app(_settings(database_url, settings))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", server_header=False)
    )
    listening = socket.create_server(("127.0.0.1", at_port))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    task = asyncio.create_task(server._serve([listening]))  # not serve(): signals stay pytest's
    try:
        # The socket listens already: this waits in its backlog until the service has started.
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=authorities()) as client:
            (await client.get("/readyz")).raise_for_status()
        transport = httpx.AsyncHTTPTransport(verify=authorities())
        async with _with_key(app, database_url, url, transport) as stage:
            yield stage
    finally:
        if hasattr(app.state, "house"):
            app.state.house.stopping.set()  # as `baton serve` does at a signal
        server.should_exit = True
        await task
        listening.close()


def _settings(database_url: str, settings: dict[str, Any]) -> StageSettings:
    files = {
        "playbook_files": [ROOT / "playbooks" / "sales.yaml"],
        "team_file": ROOT / "playbooks" / "team.yaml",
        "sources_dir": ROOT / "sources",
        "notifier_url": "http://127.0.0.1:9",  # nobody listens there
    }
    return StageSettings(_env_file=None, database_url=database_url, **(files | settings))


@asynccontextmanager
async def _with_key(
    app: FastAPI, database_url: str, url: str, transport: httpx.AsyncBaseTransport
) -> AsyncIterator[Stage]:
    connection = await asyncpg.connect(database_url)
    try:
        _, key = await access.create_key(connection, "test", access.SCOPES)
        async with httpx.AsyncClient(
            transport=transport, base_url=url, headers={"authorization": f"Bearer {key}"},
            timeout=60,
        ) as client:  # fmt: skip
            yield Stage(app, url, key, client, connection)
    finally:
        await connection.close()
