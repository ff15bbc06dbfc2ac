"""The notifier's process: wires the parts, starts the consumer and the dispatcher, stops them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import structlog
import uuid_utils.compat
from fastapi import FastAPI

from services.contracts.access import Gatekeeper
from services.contracts.bus import open_bus
from services.contracts.database import STEADY_PLANS, nothing_to_reset
from services.contracts.idempotency import Once
from services.contracts.rates import RateLimits
from services.notifier.access import House, answer_problems
from services.notifier.api import router
from services.notifier.channels import Channels
from services.notifier.consumer import Consumer
from services.notifier.deliveries import SENDS_AT_ONCE_MAX, Dispatcher, Patience
from services.notifier.roster import Roster
from services.notifier.settings import NotifierSettings

CONNECT_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 30.0
POOL_CLOSE_WITHIN_S = 2.0

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
    channels = Channels(settings.smtp_url, settings.delivery_timeout_s, SENDS_AT_ONCE_MAX)
    patience = Patience(
        settings.delivery_tries, settings.delivery_window_s, settings.delivery_timeout_s
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        # No connection at the start: the database may come later than we do.
        pool = await asyncpg.create_pool(
            settings.database_url, min_size=0, max_size=settings.pool_connections_max,
            timeout=CONNECT_TIMEOUT_S, command_timeout=STATEMENT_TIMEOUT_S,
            server_settings={"application_name": "baton-notifier", **STEADY_PLANS},
            reset=nothing_to_reset,
        )  # fmt: skip
        dispatcher = Dispatcher(pool, channels, roster, patience, now, random)
        consumer = Consumer(
            lambda: open_bus(settings.database_url, settings.kafka_bootstrap_servers),
            pool, roster, settings.public_url, settings.delivery_tries, now, new_id,
            dispatcher.wake, channels.no_mail,
        )  # fmt: skip
        rates = RateLimits(settings.rate_limit_requests, failures=settings.rate_limit_failures)
        parts = House(
            pool, Gatekeeper(pool, rates), consumer, dispatcher, settings.delivery_tries, now,
            Once(pool, now, new_id, settings.idempotency_keep_s),
        )  # fmt: skip
        app.state.house = parts
        consumer.start()
        dispatcher.start()
        _log.info("notifier.started", bus="kafka" if settings.kafka_bootstrap_servers else "log")
        try:
            yield
        finally:
            parts.stopping.set()
            await asyncio.gather(consumer.stop(), dispatcher.stop())
            channels.close()
            try:
                async with asyncio.timeout(POOL_CLOSE_WITHIN_S):
                    await pool.close()
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pool.terminate()
            _log.info("notifier.stopped")

    app = FastAPI(title="Baton notifier", version="1", lifespan=lifespan)
    answer_problems(app)
    app.include_router(router)
    return app
