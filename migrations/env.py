"""Alembic's environment: runs the revisions on asyncpg, one process at a time."""

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

_LOCK = 0x6261746F_0003
_IN_THE_WAY = ("55P03", "40P01")
"""A lock did not come in time; a deadlock."""
_TRIES_MAX = 60
_TRY_AGAIN_S = 1.0


def _run(connection: Connection) -> None:
    # Two services that start at once migrate once: the second waits, then finds nothing to do.
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    # While a change of a table waits for a long transaction, everybody else waits behind it: shorter than a
    # sender waits for an answer, then again.
    connection.execute(text("SET LOCAL lock_timeout = '1s'"))
    context.configure(connection=connection, transaction_per_migration=False)
    with context.begin_transaction():
        context.run_migrations()


async def _migrate() -> None:
    url = context.config.attributes["database_url"]
    engine = create_async_engine(url, poolclass=pool.NullPool)
    try:
        for left in reversed(range(_TRIES_MAX)):
            try:
                async with engine.begin() as connection:
                    await connection.run_sync(_run)
                return
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in _IN_THE_WAY or not left:
                    raise
            await asyncio.sleep(_TRY_AGAIN_S)
    finally:
        await engine.dispose()


asyncio.run(_migrate())
