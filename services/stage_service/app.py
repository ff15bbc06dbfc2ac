"""Wires the stage service: settings in, an ASGI application out. Nothing else creates its parts."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import asyncpg
import httpx
import structlog
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.types import Message, Receive, Scope, Send

from services.contracts.access import Gatekeeper
from services.contracts.bus import Bus
from services.contracts.database import STEADY_PLANS, nothing_to_reset
from services.contracts.team import load_team
from services.stage_service import metrics
from services.stage_service.api import health, moves, reads
from services.stage_service.api.access import House, answer_problems
from services.stage_service.api.events import OPENAPI, PATH, EventsEndpoint
from services.stage_service.lane import Lane
from services.stage_service.pages import pages_router
from services.stage_service.playbook import parse_playbook
from services.stage_service.pulse import Pulse
from services.stage_service.relay import Relay
from services.stage_service.settings import StageSettings
from services.stage_service.shelf import Shelf

CONNECT_AGAIN_S = 0.1
_log = structlog.get_logger("baton.stage")


def create_app(settings: StageSettings) -> StageApp:
    """Build the stage service from `settings`.

    Reads playbooks and roster at once: raises SourceError or OSError when they are not right.
    """
    playbooks = [
        parse_playbook(path.read_text(encoding="utf-8"), str(path))
        for path in settings.playbook_files
    ]
    team = load_team(settings.team_file)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        pool = await _connected(settings)
        shelf = Shelf()
        await shelf.load(pool)
        for playbook in playbooks:
            await shelf.publish(pool, playbook)
        bus: Bus | None = None
        if settings.kafka_bootstrap_servers:
            from services.contracts.kafka import KafkaBus

            bus = await KafkaBus.open(settings.kafka_bootstrap_servers)
        pulse = Pulse(settings.database_url)
        relay = Relay(settings.database_url, bus, pulse.beat)
        lane = Lane(pool, shelf, team, committed=relay.wake)
        engine = create_async_engine(
            settings.database_url.replace("postgresql://", "postgresql+asyncpg://", 1),
            pool_size=5, pool_pre_ping=True,
        )  # fmt: skip
        notifier = httpx.AsyncClient(base_url=settings.notifier_url)
        gatekeeper = Gatekeeper(pool)
        house = House(
            pool, engine, gatekeeper, lane, pulse, notifier,
            settings.public_url or f"http://{settings.host}:{settings.port}",
        )  # fmt: skip
        app.state.house = house
        app.state.events = EventsEndpoint(gatekeeper, lane)
        pulse.start()
        lane.start()
        relay.start()
        # What is loaded now stays: the collector need not look at it again at every batch.
        gc.collect()
        gc.freeze()
        gc.set_threshold(200_000, 20, 100)
        _log.info("stage.started", playbooks=[f"{p.name} {p.version}" for p in
                                              shelf.playbooks.values()])  # fmt: skip
        try:
            yield
        finally:
            house.stopping.set()
            await lane.stop()
            await relay.stop()
            await pulse.stop()
            if bus is not None:
                await bus.close()
            await notifier.aclose()
            await engine.dispose()
            pool.terminate()
            _log.info("stage.stopped")

    app = StageApp(
        title="Baton",
        version=version("baton"),
        description="Carries a sales lead from hand to hand.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(health.router)
    app.include_router(reads.router)
    app.include_router(moves.router)
    app.include_router(pages_router())
    answer_problems(app)
    _describe_events(app)
    return app


async def _connected(settings: StageSettings) -> asyncpg.Pool[Any]:
    """Connect, and wait for a database that is still starting or not yet migrated."""
    told = ""
    while True:
        try:
            pool = await asyncpg.create_pool(
                settings.database_url, min_size=3, max_size=settings.pool_connections_max,
                timeout=5, command_timeout=30, reset=nothing_to_reset,
                server_settings={"application_name": "baton-stage", **STEADY_PLANS},
            )  # fmt: skip
            try:
                await pool.fetchval("SELECT max(epoch) FROM stage.playbook_versions")
            except BaseException:
                pool.terminate()
                raise
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if type(error).__name__ != told:
                told = type(error).__name__
                _log.warning("stage.waiting_for_database", reason=told)
            await asyncio.sleep(CONNECT_AGAIN_S)
        else:
            return pool


class StageApp(FastAPI):
    """The application: the hot path goes straight to its endpoint, past the framework."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
        elif scope["path"] == PATH and scope["method"] == "POST":
            await self.state.events(scope, receive, send)
        else:
            await super().__call__(scope, receive, _measured(scope, send))


def _measured(scope: Scope, send: Send) -> Callable[[Message], Any]:
    began = time.perf_counter()

    async def measured(message: Message) -> None:
        if message["type"] == "http.response.start":
            route = getattr(scope.get("route"), "path", "other")
            metrics.HTTP_SECONDS.labels(scope["method"], route, str(message["status"])).observe(
                time.perf_counter() - began
            )
        await send(message)

    return measured


def _describe_events(app: FastAPI) -> None:
    """Put the hot path, which is no route of the framework, into the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["paths"].setdefault(PATH, {})["post"] = OPENAPI
        components = document.setdefault("components", {})
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        return document

    app.openapi = openapi
