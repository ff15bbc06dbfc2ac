"""What every command shares: its options, its key and database, and how it ends when something is amiss."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

DATA = Path(".baton")
Data = Annotated[Path, typer.Option("--data", help="directory of `baton up`")]
Url = Annotated[str, typer.Option("--url", envvar="BATON_URL", help="the stage service")]
NotifierUrl = Annotated[
    str, typer.Option("--notifier-url", envvar="BATON_NOTIFIER_URL", help="the notifier")
]
STAGE_URL = "http://127.0.0.1:8080"
NOTIFIER_URL = "http://127.0.0.1:8081"

T = TypeVar("T")


def fail(reason: str, code: int = 1) -> NoReturn:
    """Print `reason` to stderr and exit with `code`."""
    print(reason, file=sys.stderr)
    raise typer.Exit(code)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; a service or database that does not answer ends with one clear line."""
    import asyncpg
    import httpx

    try:
        return asyncio.run(work)
    except httpx.HTTPError as error:
        fail(f"Baton does not answer: {error}. Is `baton up` running?")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        fail(f"the database cannot be used: {error}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def api_key(data: Path) -> str:
    """Give the key to use: ``BATON_API_KEY``, else the one `baton up` wrote."""
    key = os.environ.get("BATON_API_KEY")
    path = data / "api-key"
    if key:
        return key
    if not path.exists():
        fail(f"no API key: set BATON_API_KEY, or start `baton up` first (it writes {path})")
    return path.read_text().strip()


def database_url(data: Path) -> str:
    """Give the database to use: ``BATON_DATABASE_URL``, else the running `baton up`'s."""
    url = os.environ.get("BATON_DATABASE_URL")
    if url:
        return url
    from services.baton.embedded import EmbeddedError, EmbeddedPostgres

    if not (data / "postgres").exists():
        fail("no database: set BATON_DATABASE_URL, or start `baton up` first")
    try:
        return EmbeddedPostgres(data).url()
    except EmbeddedError as error:
        fail(str(error))
