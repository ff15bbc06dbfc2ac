"""The notifier's process: wires the parts, starts the consumer and the dispatcher, stops them."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import structlog
import uuid_utils.compat
from fastapi import FastAPI
from pydantic import SecretStr

from services.contracts.access import Gatekeeper
from services.contracts.bus import open_bus
from services.contracts.database import STEADY_PLANS, nothing_to_reset
from services.contracts.idempotency import Once
from services.contracts.links import ANSWER, SEEN, Links
from services.contracts.rates import RateLimits
from services.contracts.roster import Roster as SharedRoster
from services.contracts.roster import RosterWatch
from services.contracts.tls import authorities
from services.notifier import callbacks, slack_actions
from services.notifier.access import House, answer_problems
from services.notifier.api import router
from services.notifier.api_attention import router as attention_router
from services.notifier.channels import Channels
from services.notifier.claims import Parcel
from services.notifier.consumer import Consumer
from services.notifier.deliveries import Dispatcher, Patience
from services.notifier.escalations import Escalator, waits_of
from services.notifier.openapi import describe
from services.notifier.previews import sample_values
from services.notifier.pruning import Pruner
from services.notifier.roster import Roster
from services.notifier.settings import NotifierSettings
from services.notifier.templates import Templates

CONNECT_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 30.0
POOL_CLOSE_WITHIN_S = 2.0
COLLECT_AT = (50_000, 20, 100)
"""After how many new objects the collector looks at the young, and how seldom at the older ones."""
THREADS = 64
"""For what blocks (SMTP, Apprise): more than one slow channel may hold."""

_log = structlog.get_logger("baton.notifier")


def utc_now() -> datetime:
    """Give the present moment."""
    return datetime.now(UTC)


def new_id() -> UUID:
    """Make an id that sorts by the moment it was made (UUIDv7)."""
    return uuid_utils.compat.uuid7()


def create_app(
    settings: NotifierSettings,
    *,
    now: Callable[[], datetime] = utc_now,
    random: Callable[[], float] = random.random,
) -> FastAPI:
    """Make the notifier. It starts while the database or the bus is away, and waits for them.

    Raises OSError or SourceError when the roster cannot be read, ValueError for a bad mail server.
    """
    roster = Roster(settings.team_file)
    slack_secret = _secret(settings.slack_signing_secret)
    channels = Channels(
        settings.smtp_url, settings.delivery_timeout_s, THREADS, now=now,
        buttons=slack_secret is not None,
    )  # fmt: skip
    templates = Templates(settings.templates_dir)
    templates.check(sample_values(settings.public_url))
    links = _links(settings)
    answer_links = _answer_links(settings)
    patience = Patience(
        settings.delivery_tries, settings.delivery_window_s, settings.delivery_timeout_s,
        settings.delivery_keep_s,
    )  # fmt: skip

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        pool = await _pool(settings)
        dispatcher = Dispatcher(
            pool, channels, roster, patience, now, random, new_id, settings.public_url,
            partial(_seen_link, links), answer_links,
        )  # fmt: skip
        escalator = Escalator(pool, roster, settings.delivery_tries, now, new_id, dispatcher.wake)
        pruner = Pruner(pool, settings.link_valid_s, settings.digest_keep_s, now)
        consumer = Consumer(
            lambda: open_bus(settings.database_url, settings.kafka_bootstrap_servers),
            pool, roster, settings.public_url, settings.delivery_tries, now, new_id,
            dispatcher.wake, channels.no_mail, templates, waits_of(settings.escalate_after),
        )  # fmt: skip
        client = httpx.AsyncClient(
            follow_redirects=False, trust_env=False, verify=authorities(trust_env=False)
        )
        rates = RateLimits(settings.rate_limit_requests, failures=settings.rate_limit_failures)
        parts = House(
            pool, Gatekeeper(pool, rates), consumer, dispatcher, settings.delivery_tries, now,
            Once(pool, now, new_id, settings.idempotency_keep_s), roster, channels, templates, client,
            settings.url or settings.public_url, settings.slack_reply_url, links, slack_secret,
        )  # fmt: skip
        app.state.house = parts
        shared = SharedRoster(roster.team())

        async def look() -> None:
            if await shared.look(pool):
                roster.adopt(shared.team)

        watch = RosterWatch(look)
        watch.start()
        consumer.start()
        dispatcher.start()
        escalator.round.start()
        pruner.round.start()
        # What is loaded now stays: the collector need not look at it again while somebody waits.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT_AT)
        _log.info("notifier.started", bus="kafka" if settings.kafka_bootstrap_servers else "log")
        try:
            yield
        finally:
            parts.stopping.set()
            await asyncio.gather(
                consumer.stop(), dispatcher.stop(), escalator.round.stop(), pruner.round.stop(),
                watch.stop(),
            )  # fmt: skip
            await channels.aclose()
            await client.aclose()
            await _close(pool)
            _log.info("notifier.stopped")

    return _with_routes(lifespan)


async def _pool(settings: NotifierSettings) -> asyncpg.Pool[Any]:
    # No connection at the start: the database may come later than we do.
    return await asyncpg.create_pool(
        settings.database_url, min_size=0, max_size=settings.pool_connections_max,
        timeout=CONNECT_TIMEOUT_S, command_timeout=STATEMENT_TIMEOUT_S,
        server_settings={"application_name": "baton-notifier", **STEADY_PLANS},
        reset=nothing_to_reset,
    )  # fmt: skip


async def _close(pool: asyncpg.Pool[Any]) -> None:
    try:
        async with asyncio.timeout(POOL_CLOSE_WITHIN_S):
            await pool.close()
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        pool.terminate()


def _with_routes(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> FastAPI:
    app = FastAPI(
        title="Baton notifier", version=version("baton"), lifespan=lifespan,
        description="Tells the person who now holds a lead.",
        generate_unique_id_function=lambda route: route.name, docs_url=None, redoc_url=None,
    )  # fmt: skip
    answer_problems(app)
    app.include_router(router)
    app.include_router(attention_router)
    app.include_router(callbacks.router)
    app.include_router(slack_actions.router)
    describe(app)
    return app


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value is not None else None


def _links(settings: NotifierSettings) -> Links | None:
    key = _secret(settings.link_key)
    if key is None or settings.notifier_public_url is None:
        return None
    return Links(SEEN, key, settings.notifier_public_url, settings.link_valid_s)


def _answer_links(settings: NotifierSettings) -> Links | None:
    key = _secret(settings.link_key)
    if key is None:
        return None
    return Links(ANSWER, key, settings.public_url, settings.link_valid_s)


def _seen_link(links: Links | None, parcel: Parcel, now: datetime) -> str | None:
    if links is None or parcel.addressee_id is None:
        return None
    return links.url(links.token(parcel.id, parcel.addressee_id, now))
