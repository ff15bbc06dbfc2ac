"""Keys from the command line, straight in the database: no key is needed to make the first."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from services.contracts.access import create_key, list_keys, revoke_key


@asynccontextmanager
async def _connected(database_url: str) -> AsyncGenerator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def create(
    database_url: str,
    name: str,
    scopes: Sequence[str],
    sources: Sequence[str] = (),
    *,
    rate: str | None = None,
    event_rate: str | None = None,
) -> tuple[str, str]:
    """Create a key and give (id, token); ValueError for what `contracts.access.create_key` refuses."""
    async with _connected(database_url) as connection:
        return await create_key(
            connection, name, scopes, sources=sources, rate=rate, event_rate=event_rate
        )


async def listed(database_url: str) -> list[dict[str, Any]]:
    """List the keys, newest first."""
    async with _connected(database_url) as connection:
        return await list_keys(connection)


async def revoke(database_url: str, id: str) -> bool:
    """Revoke a key; False when there is no such active one."""
    async with _connected(database_url) as connection:
        return await revoke_key(connection, id)
