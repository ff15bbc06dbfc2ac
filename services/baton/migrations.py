"""Bringing a database to the newest schema, with Alembic run from here: no alembic.ini to find."""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.baton.places import MIGRATIONS


def newest_revision() -> str:
    """Give the newest revision that this version of Baton brings (revisions are numbered)."""
    return max(path.name.partition("_")[0] for path in Path(MIGRATIONS, "versions").glob("*.py"))


async def current_revision(database_url: str) -> str | None:
    """Give the revision of the database, None when it is empty; raises when it is away."""
    import asyncpg  # not before it is needed: `baton up` starts its children first

    connection = await asyncpg.connect(database_url, timeout=5)
    try:
        return await connection.fetchval("SELECT version_num FROM public.alembic_version")
    except asyncpg.UndefinedTableError:
        return None
    finally:
        await connection.close()


async def migrate(database_url: str) -> str:
    """Bring the database to the newest revision and give it; waits for another process that does.

    `database_url` is ``postgresql://...``. Raises what the database raises.
    """
    newest = newest_revision()
    if (await current_revision(database_url) or "") < newest:
        # Alembic is synchronous and starts a loop of its own.
        await asyncio.to_thread(_upgrade, database_url)
    return newest


def _upgrade(database_url: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["database_url"] = database_url.replace(
        "postgresql://", "postgresql+asyncpg://", 1
    )
    command.upgrade(config, "head")
