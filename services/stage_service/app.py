"""Wires the stage service: settings in, an ASGI application out. Nothing else creates its parts."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, cast

import asyncpg
import httpx
import structlog
import uuid_utils.compat
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.types import Message, Receive, Scope, Send

from services.contracts.access import Gatekeeper
from services.contracts.answers import database_away
from services.contracts.bus import Bus
from services.contracts.database import STEADY_PLANS, nothing_to_reset
from services.contracts.idempotency import Once
from services.contracts.links import ANSWER, Links
from services.contracts.rates import RateLimits
from services.contracts.roster import Roster, RosterWatch
from services.contracts.team import Team, documents_of, load_team
from services.contracts.tls import authorities
from services.stage_service import metrics, people
from services.stage_service.activation import Activation
from services.stage_service.api import (
    assign,
    audit,
    deliveries,
    feed,
    handoffs,
    health,
    merges,
    moves,
    quarantine,
    reads,
    simulations,
    subscription_answers,
    subscription_secrets,
    subscriptions,
    timeline,
    why,
)
from services.stage_service.api import people as people_api
from services.stage_service.api import playbooks as playbooks_api
from services.stage_service.api.access import House, answer_problems, problem_response
from services.stage_service.api.descriptions import descriptions_router
from services.stage_service.api.events import ONLY_POST, OPENAPI, PATH, EventsEndpoint
from services.stage_service.api.following import Following
from services.stage_service.api.openapi import completed
from services.stage_service.api.segment import CALLS, SegmentEndpoint
from services.stage_service.api.segment import PATHS as SEGMENT
from services.stage_service.api.segment import openapi as segment_openapi
from services.stage_service.api.webhooks import OPENAPI as WEBHOOKS_OPENAPI
from services.stage_service.api.webhooks import PREFIX as WEBHOOKS
from services.stage_service.api.webhooks import WebhooksEndpoint
from services.stage_service.delivering import start_delivering
from services.stage_service.encryption import read_cipher
from services.stage_service.intake import Intake
from services.stage_service.lane import Lane
from services.stage_service.pages import pages_router
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_findings import findings
from services.stage_service.playbook_succession import in_order
from services.stage_service.pulse import Pulse
from services.stage_service.relay import Relay
from services.stage_service.settings import StageSettings
from services.stage_service.shelf import Shelf
from services.stage_service.simulations.runs import Simulations
from services.stage_service.snapshots import forget, kafka_snapshots
from services.stage_service.source_secrets import SourceSecrets, given_secrets
from services.stage_service.sources.book import SourceBook
from services.stage_service.subscriptions.addresses import allowed_from
from services.stage_service.subscriptions.changes import Terms
from services.stage_service.subscriptions.connectors.book import ConnectorBook
from services.stage_service.subscriptions.connectors.checks import first_defect
from services.stage_service.subscriptions.connectors.echoes import Echoes
from services.stage_service.sweeping import Sweeper
from services.stage_service.ticker import Ticker

CONNECT_AGAIN_S = 0.1
_NOT_YET = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
_log = structlog.get_logger("baton.stage")


def utc_now() -> datetime:
    """Give the present moment."""
    return datetime.now(UTC)


def create_app(settings: StageSettings, *, now: Callable[[], datetime] = utc_now) -> StageApp:
    """Build the stage service from `settings`. It starts while the database is away, and waits for it.

    Reads playbooks, roster and secrets at once: raises SourceError, OSError or EncryptionError
    when they are not right, ValueError for a link key that can be guessed. A source file that is not right
    only stops its own source.
    """
    playbooks = [
        parse_playbook(path.read_text(encoding="utf-8"), str(path))
        for path in settings.playbook_files
    ]
    team = load_team(settings.team_file)
    key = settings.encryption_key
    cipher = read_cipher(key.get_secret_value() if key else None, settings.encryption_key_file)
    secrets = given_secrets(settings.source_secrets)
    allowed = allowed_from(settings.subscriptions_allow)
    book = ConnectorBook(settings.connectors_dir)
    terms = Terms(
        cipher, allowed, https_only=not settings.subscriptions_http,
        check_connector=lambda d: first_defect(book, d.connector or "", d.config, d.credentials),
    )  # fmt: skip
    _answer_links(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        opening = _Opening(
            cast("StageApp", app), settings, playbooks, team, SourceSecrets(secrets, cipher), now,
            terms,
        )  # fmt: skip
        await opening.begin()
        try:
            yield
        finally:
            await opening.close()

    app = StageApp(
        title="Baton",
        version=version("baton"),
        description="Carries a sales lead from hand to hand.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(health.router)
    app.include_router(descriptions_router(settings.kafka_bootstrap_servers))
    app.include_router(simulations.router)
    app.include_router(reads.router)
    app.include_router(timeline.router)
    app.include_router(why.router)
    # Before the handoffs: /v1/handoffs/feed is no handoff's id.
    app.include_router(feed.router)
    app.include_router(moves.router)
    app.include_router(quarantine.router)
    app.include_router(merges.router)
    app.include_router(assign.router)
    app.include_router(handoffs.router)
    app.include_router(people_api.router)
    app.include_router(playbooks_api.router)
    app.include_router(audit.router)
    app.include_router(subscriptions.router)
    app.include_router(subscription_secrets.router)
    app.include_router(deliveries.router)
    app.include_router(pages_router())
    answer_problems(app)
    _describe_events(app)
    return app


class _Opening:
    """Opens the house when the database is there; until then the app answers 503.

    What fails for want of the database is tried again. Another failure at the start ends the start; later,
    when the process listens already, it is told by readiness and tried again too.
    """

    def __init__(
        self,
        app: StageApp,
        settings: StageSettings,
        playbooks: list[Playbook],
        team: Team,
        secrets: SourceSecrets,
        now: Callable[[], datetime],
        terms: Terms,
    ) -> None:
        self._now = now
        self._terms = terms
        self._app = app
        self._secrets = secrets
        self._settings = settings
        self._playbooks = playbooks
        self._team = team
        self._parts = AsyncExitStack()
        self._waiting: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Open at once, or begin to wait for the database."""
        try:
            await self._open()
        except _NOT_YET as error:
            self._tell(error)
            self._waiting = asyncio.create_task(self._wait(), name="opening")

    async def close(self) -> None:
        """Stop waiting, and stop what was opened."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)
        await self._parts.aclose()
        _log.info("stage.stopped")

    async def _wait(self) -> None:
        while True:
            await asyncio.sleep(CONNECT_AGAIN_S)
            try:
                return await self._open()
            except Exception as error:  # whatever it is, the process listens and says so
                self._tell(error)

    def _tell(self, error: Exception) -> None:
        away = isinstance(error, _NOT_YET)
        reason = "the database does not answer, or is not migrated yet"
        if not away:
            reason = f"the service could not start: {type(error).__name__}"
        if getattr(self._app.state, "closed_because", "") != reason:
            self._app.state.closed_because = reason
            if away:
                _log.warning("stage.waiting_for_database", reason=type(error).__name__)
            else:
                _log.error("stage.cannot_start", exc_info=error)

    async def _open(self) -> None:
        async with AsyncExitStack() as parts:
            house = await _house(
                self._settings, self._playbooks, self._team, self._now, parts, self._terms
            )
            connectors = ConnectorBook(self._settings.connectors_dir)
            intake = Intake(
                house.pool, house.gatekeeper, house.lane, SourceBook(self._settings.sources_dir),
                self._secrets, echoes=Echoes(house.pool, connectors),
            )  # fmt: skip
            await intake.start()
            parts.push_async_callback(intake.stop)
            if self._settings.subscriptions == "here":
                await start_delivering(
                    self._settings,
                    house.pool,
                    house.pulse,
                    lambda: house.playbooks,
                    self._now,
                    parts,
                )
            public_url = self._settings.public_url
            self._app.state.intake = intake
            self._app.state.events = EventsEndpoint(house.gatekeeper, house.lane, self._now)
            self._app.state.webhooks = WebhooksEndpoint(intake, public_url)
            self._app.state.segment = SegmentEndpoint(intake, public_url)
            self._app.state.house = house
            self._app.is_open = True
            # What is loaded now stays: the collector need not look at it again at every batch.
            gc.collect()
            gc.freeze()
            gc.set_threshold(200_000, 20, 100)
            shown = [f"{p.name} {p.version}" for p in house.playbooks.values()]
            _log.info("stage.started", playbooks=shown)
            self._parts = parts.pop_all()


async def _house(
    settings: StageSettings,
    playbooks: list[Playbook],
    team: Team,
    now: Callable[[], datetime],
    parts: AsyncExitStack,
    terms: Terms,
) -> House:
    """Wire and start the parts; `parts` stops them, the last one started first."""
    pool = await _connected(settings)
    parts.callback(pool.terminate)
    shelf = Shelf()
    await shelf.load(pool)
    for playbook in in_order({p.name: p for p in playbooks}).values():
        await shelf.publish_file(pool, playbook)
    engine = create_async_engine(
        settings.database_url.replace("postgresql://", "postgresql+asyncpg://", 1),
        pool_size=5, pool_pre_ping=True,
    )  # fmt: skip
    parts.push_async_callback(engine.dispose)
    notifier = await parts.enter_async_context(
        httpx.AsyncClient(base_url=settings.notifier_url, verify=authorities())
    )
    bus: Bus | None = None
    if settings.kafka_bootstrap_servers:
        from services.contracts.kafka import KafkaBus

        bus = await KafkaBus.open(settings.kafka_bootstrap_servers)
        parts.push_async_callback(bus.close)
    pulse = Pulse(settings.database_url)
    relay = Relay(settings.database_url, bus, pulse.beat)
    roster = await _roster(settings, team, pool, parts)
    for playbook in playbooks:
        # The checks alone: names and places, `baton playbook validate` tells.
        told = await asyncio.to_thread(
            findings, playbook.source, playbook.name, team=roster.team
        )  # it may listen already
        if told:
            checks = sorted({finding.rule for finding in told})
            _log.warning(
                "playbook.warnings", playbook=playbook.name, count=len(told), checks=checks
            )
    lane = Lane(
        pool, shelf, roster, committed=relay.committed, now=now, policy=settings.identity_policy,
        late_within=settings.late_horizon,
    )  # fmt: skip
    rates = RateLimits(
        settings.rate_limit_requests, settings.rate_limit_events, settings.rate_limit_failures
    )
    gatekeeper = Gatekeeper(pool, rates)
    following = Following(
        pool, pulse, gatekeeper, asyncio.Event(), streams_max=settings.streams_max,
        streams_per_key_max=settings.streams_per_key_max, stall_s=settings.stream_stall_s,
    )  # fmt: skip
    simulations = Simulations(
        pool, settings.database_url, lambda: lane.team, now, following.stopping,
        workers_max=settings.simulation_workers, memory_mb=settings.simulation_memory_mb,
    )  # fmt: skip
    house = House(
        pool, engine, gatekeeper, lane, pulse, notifier,
        settings.public_url or f"http://{settings.host}:{settings.port}",
        Once(pool, now, uuid_utils.compat.uuid7, settings.idempotency_keep_s), following,
        simulations, now, roster_is_file=settings.roster == "file", answer_links=_answer_links(settings),
        terms=terms,
    )  # fmt: skip
    pulse.start()
    parts.push_async_callback(pulse.stop)
    relay.start()
    parts.push_async_callback(relay.stop)
    await _snapshots(settings, pool, engine, now, parts)
    lane.start()
    parts.push_async_callback(lane.stop)
    ticker = Ticker(pool, lane, now)
    ticker.start()
    parts.push_async_callback(ticker.stop)
    for work in (Activation(pool, shelf, now).round, Sweeper(pool, lane, now).round):
        work.start()
        parts.push_async_callback(work.stop)
    following.start()
    parts.push_async_callback(following.stop)
    parts.push_async_callback(simulations.stop)
    parts.callback(house.stopping.set)
    return house


async def _snapshots(
    settings: StageSettings,
    pool: asyncpg.Pool[Any],
    engine: AsyncEngine,
    now: Callable[[], datetime],
    parts: AsyncExitStack,
) -> None:
    """Publish leads as they are now, where there is a Kafka to publish them to."""
    if not settings.kafka_bootstrap_servers:
        await forget(pool)
        return
    snapshots = kafka_snapshots(
        settings.database_url, settings.kafka_bootstrap_servers, engine, now
    )
    snapshots.start()
    parts.push_async_callback(snapshots.stop)


def _answer_links(settings: StageSettings) -> Links | None:
    """Give what reads the links that the notifier makes; those say themselves until when they are valid."""
    key = settings.link_key
    return Links(ANSWER, key.get_secret_value(), "", 0) if key is not None else None


async def _roster(
    settings: StageSettings, team: Team, pool: asyncpg.Pool[Any], parts: AsyncExitStack
) -> Roster:
    """Bring the roster's file in, as the setting says, and keep the roster fresh."""
    file, wins = settings.team_file, settings.roster == "file"
    seen = file.stat().st_mtime_ns
    text = file.read_text(encoding="utf-8")
    await people.take_file(pool, documents_of(text, str(file)), wins=wins)
    roster = Roster(team)
    await roster.load(pool)

    async def look() -> None:
        nonlocal seen
        stamp = file.stat().st_mtime_ns if wins else seen
        if stamp != seen:
            text = file.read_text(encoding="utf-8")
            await people.take_file(pool, documents_of(text, str(file)), wins=True)
            seen = stamp
        await roster.look(pool)

    watch = RosterWatch(look)
    watch.start()
    parts.push_async_callback(watch.stop)
    return roster


async def _connected(settings: StageSettings) -> asyncpg.Pool[Any]:
    """Connect; raises one of `_NOT_YET` while the database is away or not migrated."""
    pool = await asyncpg.create_pool(
        settings.database_url, min_size=3, max_size=settings.pool_connections_max,
        timeout=5, command_timeout=30, reset=nothing_to_reset,
        server_settings={"application_name": "baton-stage", **STEADY_PLANS},
    )  # fmt: skip
    try:
        await pool.fetchval("SELECT max(epoch) FROM stage.playbook_versions")
        await pool.fetchval("SELECT count(sources) FROM access.keys WHERE false")
        await pool.fetchval("SELECT count(*) FROM stage.source_secrets WHERE false")
        await pool.fetchval("SELECT count(*) FROM stage.clocks WHERE false")
        await pool.fetchval("SELECT count(*) FROM stage.snapshot_feed WHERE false")
        await pool.fetchval("SELECT count(*) FROM stage.deliveries WHERE false")
        await pool.fetchval("SELECT count(*) FROM stage.playbook_sweeps WHERE false")
        await pool.fetchval("SELECT count(*) FROM stage.simulations WHERE false")
    except BaseException:
        pool.terminate()
        raise
    return pool


class StageApp(FastAPI):
    """The application: the hot path goes straight to its endpoint, past the framework."""

    is_open = False
    """Set when the database was there and the parts run."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
        elif not self.is_open and scope["path"] not in health.WITHOUT_DATABASE:
            away = problem_response(database_away())
            await away(scope, receive, _measured(scope, send))
        elif scope["path"] == PATH and scope["method"] == "POST":
            await self.state.events(scope, receive, send)
        elif scope["path"] == PATH:
            await ONLY_POST(scope, receive, _measured(scope, send))
        elif scope["path"].startswith(WEBHOOKS):
            await self.state.webhooks(scope, receive, send)
        elif scope["path"] in SEGMENT:
            await self.state.segment(scope, receive, send)
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
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = generate()
        document["paths"].setdefault(PATH, {})["post"] = deepcopy(OPENAPI)
        document["paths"].setdefault("/webhooks/{source}", {})["post"] = deepcopy(WEBHOOKS_OPENAPI)
        for call in sorted(set(CALLS.values())):
            document["paths"].setdefault(f"/v1/{call}", {})["post"] = deepcopy(
                segment_openapi(call)
            )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(subscription_answers.schemas())
        return completed(app, document)

    app.openapi = openapi
