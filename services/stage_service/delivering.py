"""Delivering to subscriptions: in the stage service, or in a process of its own that does nothing else.

Any number of either share the work. The process of its own (`baton serve subscriptions`) answers ``/livez``,
``/readyz`` and ``/metrics``; it starts while the database is away, and waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg
import structlog
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.contracts.database import DATABASE_AWAY, STEADY_PLANS, nothing_to_reset
from services.stage_service.encryption import read_cipher
from services.stage_service.playbook import Playbook
from services.stage_service.pulse import Pulse
from services.stage_service.settings import StageSettings
from services.stage_service.shelf import Shelf
from services.stage_service.subscriptions.addresses import allowed_from
from services.stage_service.subscriptions.connectors.book import ConnectorBook
from services.stage_service.subscriptions.connectors.making import Connectors
from services.stage_service.subscriptions.courses import Courses
from services.stage_service.subscriptions.dispatcher import Dispatcher
from services.stage_service.subscriptions.tail import Tail

CONNECTIONS_MAX = 4
CONNECT_AGAIN_S = 0.5
PLAYBOOKS_EVERY_S = 5.0
_NOT_YET = (*DATABASE_AWAY, asyncpg.PostgresError)
_log = structlog.get_logger("baton.subscriptions")


def utc_now() -> datetime:
    """Give the present moment."""
    return datetime.now(UTC)


async def start_delivering(
    settings: StageSettings, pool: asyncpg.Pool[Any], pulse: Pulse,
    playbooks: Callable[[], Mapping[str, Playbook]], now: Callable[[], datetime], parts: AsyncExitStack,
) -> Dispatcher:  # fmt: skip
    """Start what delivers; `parts` stops it. Raises EncryptionError or OSError for keys not to be read."""
    key = settings.encryption_key
    cipher = read_cipher(key.get_secret_value() if key else None, settings.encryption_key_file)
    connectors = Connectors(ConnectorBook(settings.connectors_dir), pool)
    allowed = allowed_from(settings.subscriptions_allow)
    courses = Courses(cipher, playbooks, allowed, connectors=connectors)
    tail = Tail(pool, pulse)
    dispatcher = Dispatcher(settings.database_url, courses, tail, now)
    tail.grown, tail.wanted = dispatcher.grown, lambda: bool(dispatcher.held)
    tail.start()
    parts.push_async_callback(tail.stop)
    dispatcher.start()
    parts.push_async_callback(dispatcher.stop)
    return dispatcher


@dataclass
class _Process:
    """What the process of its own consists of."""

    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    dispatcher: Dispatcher | None = None


def create_delivering_app(
    settings: StageSettings, *, now: Callable[[], datetime] = utc_now
) -> FastAPI:
    """Build the process that only delivers. Raises EncryptionError or OSError for keys not to be read."""
    key = settings.encryption_key
    read_cipher(key.get_secret_value() if key else None, settings.encryption_key_file)
    process = _Process()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        app.state.house = process  # where the server looks for what to tell of a stop
        async with AsyncExitStack() as parts:
            opening = asyncio.create_task(_open(settings, process, now, parts), name="opening")
            try:
                yield
            finally:
                process.stopping.set()
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)
        _log.info("subscriptions.stopped")

    app = FastAPI(title="Baton subscriptions", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.get("/livez")
    async def livez() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """Tell that the process runs its loop."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Tell whether it delivers: not while stopping, nor without the database."""
        if process.stopping.is_set():
            return JSONResponse({"status": "stopping"}, 503)
        if process.dispatcher is None or not process.dispatcher.is_member:
            reason = "the database does not answer, or is not migrated yet"
            return JSONResponse({"status": "unavailable", "reason": reason}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        """Give the metrics in Prometheus' text format."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


async def _open(
    settings: StageSettings, process: _Process, now: Callable[[], datetime], parts: AsyncExitStack
) -> None:
    """Start delivering once the database is there, and follow the playbooks, which filters speak of."""
    pool = await asyncpg.create_pool(
        settings.database_url, min_size=0, max_size=CONNECTIONS_MAX, timeout=5, command_timeout=30,
        reset=nothing_to_reset,
        server_settings={"application_name": "baton-subscriptions-reader", **STEADY_PLANS},
    )  # fmt: skip
    parts.callback(pool.terminate)
    shelf = Shelf()
    pulse = Pulse(settings.database_url)
    while not process.stopping.is_set():
        try:
            await shelf.load(pool)
            if process.dispatcher is None:
                pulse.start()
                parts.push_async_callback(pulse.stop)
                process.dispatcher = await start_delivering(
                    settings, pool, pulse, lambda: shelf.playbooks, now, parts
                )
                _log.info("subscriptions.started")
            wait_s = PLAYBOOKS_EVERY_S
        except _NOT_YET as error:
            if process.dispatcher is None:
                _log.warning("subscriptions.waiting_for_database", reason=type(error).__name__)
            wait_s = CONNECT_AGAIN_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await process.stopping.wait()
