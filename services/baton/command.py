"""What every command shares: its options, its key and database, and how it ends when something is amiss."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    import httpx

DATA = Path(".baton")
URL_FILE = "url"
NOTIFIER_URL_FILE = "notifier-url"
STAGE_URL = NOTIFIER_URL = ""
"""Where nothing else is said: where `baton up` of the data directory listens, else its default ports."""

T = TypeVar("T")


def _address(file: str, otherwise: str) -> Callable[[typer.Context, str], str]:
    def found(context: typer.Context, given: str) -> str:
        if given:
            return given
        written = Path(context.params.get("data") or DATA) / file
        return written.read_text().strip() if written.is_file() else otherwise

    return found


# Read before the addresses, which are looked for in it.
Data = Annotated[Path, typer.Option("--data", help="directory of `baton up`", is_eager=True)]
Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="BATON_URL", help="the stage service",
        callback=_address(URL_FILE, "http://127.0.0.1:8080"), show_default="that of `baton up`",
    ),
]  # fmt: skip
NotifierUrl = Annotated[
    str,
    typer.Option(
        "--notifier-url", envvar="BATON_NOTIFIER_URL", help="the notifier",
        callback=_address(NOTIFIER_URL_FILE, "http://127.0.0.1:8081"),
        show_default="that of `baton up`",
    ),
]  # fmt: skip


class RefusedError(Exception):
    """A service refused what it was asked; the text says why and what to do, `code` which kind it is."""

    code: str | None = None


def fail(reason: str, code: int = 1) -> NoReturn:
    """Print `reason` to stderr and exit with `code`."""
    print(reason, file=sys.stderr)
    raise typer.Exit(code)


def told(problem: Mapping[str, Any]) -> str:
    """Give the reason and the remedy of an error that a service answered, as sentences."""
    parts = [str(problem.get(name) or "").strip() for name in ("detail", "remedy")]
    return " ".join(p if p.endswith((".", "!", "?")) else f"{p}." for p in parts if p)


def _asked(error: httpx.HTTPError) -> str:
    try:
        url = error.request.url
    except RuntimeError:  # it happened before there was a request
        return ""
    return f" at {url.scheme}://{url.netloc.decode()} (--url, BATON_URL)"


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; a service or database that does not answer ends with one clear line."""
    import asyncpg
    import httpx

    try:
        return asyncio.run(work)
    except httpx.HTTPError as error:
        fail(f"Baton does not answer{_asked(error)}: {error}. Is `baton up` running?")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        fail(f"the database cannot be used: {error}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def asked(ask: Callable[[], T]) -> T:
    """Ask a service; what it refuses, or that it does not answer, ends with a clear line."""
    import httpx

    try:
        return ask()
    except RefusedError as error:
        fail(str(error))
    except httpx.HTTPError as error:
        fail(f"Baton does not answer: {error}. Is `baton up` running?")


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
