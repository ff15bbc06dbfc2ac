"""`baton sources`: list source files with what is wrong in them, try one on a sample, keep its secrets."""

from __future__ import annotations

from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

import asyncpg
import msgspec
from rich.console import Console
from rich.table import Table

from services.contracts.audit import Note, on_the_command_line, record
from services.contracts.yaml_source import SourceError
from services.stage_service import source_secrets
from services.stage_service.encryption import Cipher
from services.stage_service.sources.book import load_source
from services.stage_service.sources.mapping import Delivery, Mapped, shown_event
from services.stage_service.sources.source import Source

RECEIVED_AT = datetime(2030, 1, 1, tzinfo=UTC)
"""When a sample arrives, unless told: the same sample gives the same events at any time."""
KINDS = {"json": "application/json", "form": "application/x-www-form-urlencoded",
         "xml": "text/xml"}  # fmt: skip


def read_sample(file: Path, headers: dict[str, str]) -> Delivery:
    """Read a sample delivery: a body, or with the suffix ``.http`` a request with its headers.

    Raises OSError, or ValueError when an ``.http`` file has no empty line after its headers.
    """
    body = file.read_bytes()
    query: dict[str, str] = {}
    found = {"content-type": KINDS.get(file.suffix[1:], "")} if file.suffix[1:] in KINDS else {}
    if file.suffix == ".http":
        head, separator, body = body.replace(b"\r\n", b"\n").partition(b"\n\n")
        if not separator:
            raise ValueError(f"{file}: no empty line between headers and body")
        lines = head.decode("latin-1").splitlines()
        for line in lines[1:]:
            name, _, value = line.partition(":")
            found[name.strip().lower()] = value.strip()
        from urllib.parse import parse_qsl, urlsplit

        query = dict(parse_qsl(urlsplit(lines[0].split()[1]).query))
        body = body.rstrip(b"\n") if found.get("content-type", "").startswith("app") else body
    elif file.suffix == ".form":
        body = body.rstrip(b"\r\n")  # the editor's, not the vendor's
    found |= {name.lower(): value for name, value in headers.items()}
    return Delivery(body, RECEIVED_AT, found.get("content-type", ""), found, query)


def print_mapped(mapped: Mapped, console: Console) -> None:
    """Print the events of a sample as a table each, and what could not be mapped."""
    for event in mapped.events:
        table = Table(title=f"{event.type}", title_justify="left", show_header=False)
        for name, value in shown_event(event).items():
            if name == "data":
                for inner, each in value.items():
                    table.add_row(f"data.{inner}", msgspec.json.encode(each).decode())
            elif name == "identities":
                table.add_row(name, "\n".join(value) or "none: kept, about no lead")
            else:
                table.add_row(name, str(value))
        console.print(table, markup=False)
    for index, defect in mapped.defects:
        console.print(
            f"item {index} would be quarantined: {defect.field}: {defect.reason}. {defect.remedy}",
            markup=False, style="yellow",
        )  # fmt: skip
    events = "1 event" if len(mapped.events) == 1 else f"{len(mapped.events)} events"
    console.print(f"{events}, {len(mapped.defects)} quarantined, {mapped.ignored} ignored")


def source_named(directory: Path, name: str) -> Source:
    """Load the source `name`; raises SourceError, or ValueError when there is no such file."""
    path = Path(name) if name.endswith(".yaml") else directory / f"{name}.yaml"
    if path.is_file():
        return load_source(path)
    known = sorted(file.stem for file in directory.glob("*.yaml"))
    near = get_close_matches(path.stem, known, 1)
    remedy = f"Did you mean '{near[0]}'?" if near else f"Write {path}, or see 'baton sources list'."
    raise ValueError(f"there is no source '{path.stem}' in {path.parent}. {remedy}")


def print_list(directory: Path, stored: dict[str, int] | None, console: Console) -> bool:
    """Print the sources of `directory`; False when a file has mistakes, which are printed too.

    `stored` is how many secrets the database holds by source, None when there is no database.
    """
    table = Table("source", "title", "written after", "verified by", "secrets")
    given = source_secrets.given_secrets({})
    problems: list[str] = []
    for path in sorted(directory.glob("*.yaml"), key=lambda file: file.stem):
        try:
            source = load_source(path)
        except SourceError as error:
            problems += [str(problem) for problem in error.problems]
            continue
        methods = ", ".join(dict.fromkeys(type(m).__name__.lower() for m in source.verify))
        secrets = len(given.get(source.name, ())) + (stored or {}).get(source.name, 0)
        table.add_row(
            source.name, source.title, source.evidence, methods,
            str(secrets) if stored is not None else f"{secrets} (environment)",
        )  # fmt: skip
    console.print(table)
    console.print("Each is posted to /webhooks/{source}.", markup=False)
    for problem in problems:
        console.print(problem, markup=False, style="red", soft_wrap=True)
    return not problems


async def stored_counts(database_url: str) -> dict[str, int] | None:
    """Count the stored secrets by source; None when the database does not answer."""
    try:
        connection = await asyncpg.connect(database_url, timeout=5)
    except (OSError, asyncpg.PostgresError):
        return None
    try:
        return await source_secrets.stored_counts(connection)
    finally:
        await connection.close()


async def set_secret(
    database_url: str, cipher: Cipher, source: str, secret: str, *, keep: bool
) -> int:
    """Store a secret of `source` sealed; without `keep` it replaces the others. Gives how many went.

    Raises EncryptionError without an encryption key.
    """
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            id = await source_secrets.add_secret(connection, cipher, source, secret)
            gone = 0 if keep else await source_secrets.remove_secrets(connection, source, but=id)
            change = Note("secret set", "source", source, {"removed": gone}, {"added": 1})
            await record(connection, on_the_command_line(), change)
            return gone
    finally:
        await connection.close()


async def remove_secrets(database_url: str, source: str) -> int:
    """Remove the stored secrets of `source`; gives how many there were."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            gone = await source_secrets.remove_secrets(connection, source)
            if gone:
                change = Note("secrets removed", "source", source, {"removed": gone})
                await record(connection, on_the_command_line(), change)
            return gone
    finally:
        await connection.close()
