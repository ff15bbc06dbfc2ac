"""`baton audit`: show and export what people did, and check that nothing of it was changed or left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import asyncpg
import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from services.baton.command import RefusedError
from services.contracts.audit import Chain, Entry
from services.stage_service import reads_audit
from services.stage_service.reads_audit import Wanted

TIMEOUT_S = 60.0
_decode = msgspec.json.Decoder(Entry).decode


def _asked(url: str, key: str, path: str, query: Mapping[str, Any]) -> httpx.Request:
    params = {name: value for name, value in query.items() if value is not None}
    return httpx.Request(
        "GET", f"{url.rstrip('/')}{path}", params=params, headers={"authorization": f"Bearer {key}"}
    )


def _require_good(response: httpx.Response) -> None:
    if response.status_code != 200:
        body = response.json()
        raise RefusedError(f"{body.get('detail') or body.get('title')} {body.get('remedy') or ''}")


def show(url: str, key: str, query: Mapping[str, Any], console: Console) -> None:
    """Print the newest entries that match `query`. Raises RefusedError and httpx.HTTPError."""
    with httpx.Client(timeout=TIMEOUT_S) as client:
        response = client.send(_asked(url, key, "/v1/audit", query))
    _require_good(response)
    table = Table("id", "when", "who", "did", "to what", "before", "after", show_edge=False)
    for e in response.json()["items"]:
        acted_for = f" for {e['on_behalf_of']}" if e["on_behalf_of"] else ""
        table.add_row(
            str(e["id"]), e["at"][:19].replace("T", " "), f"{e['actor']} ({e['via']}){acted_for}",
            e["action"], f"{e['kind']} {e['subject']}", _brief(e["before"]), _brief(e["after"]),
        )  # fmt: skip
    console.print(table)


def _brief(document: Mapping[str, Any] | None) -> str:
    return "" if document is None else ", ".join(f"{n}={v}" for n, v in document.items())


def export(url: str, key: str, query: Mapping[str, Any], out: IO[bytes]) -> None:
    """Write every entry that matches `query` as a line. Raises RefusedError and httpx.HTTPError."""
    with httpx.Client(timeout=TIMEOUT_S) as client:
        response = client.send(_asked(url, key, "/v1/audit/export", query), stream=True)
        try:
            if response.status_code != 200:
                response.read()
            _require_good(response)
            for data in response.iter_bytes():
                out.write(data)
        finally:
            response.close()


class Noted:
    """An entry that an auditor noted before, ``ID:DIGEST``: the chain must still go through it."""

    def __init__(self, text: str) -> None:
        """Read `text`. Raises ValueError."""
        id, _, digest = text.partition(":")
        if not id.isdecimal() or len(digest) != 64:
            raise ValueError(
                f"--expect {text!r}: write ID:DIGEST, as 'baton audit verify' prints it"
            )
        self.id, self.digest = int(id), digest.lower()
        self.seen = False

    def look(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Pass `entries` on, looking for the noted one."""
        for entry in entries:
            self.seen = self.seen or (entry.id, entry.digest) == (self.id, self.digest)
            yield entry


async def verify_database(database_url: str, noted: Noted | None = None) -> Chain:
    """Follow the whole chain in one snapshot of the database, up to where its head says it ends.

    Raises what the database raises.
    """
    chain = Chain()
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            async for found in reads_audit.exported(connection, Wanted()):
                if not chain.follow(noted.look(found) if noted else found):
                    return chain
            end = await reads_audit.head(connection)
    finally:
        await connection.close()
    if end != (chain.seq, chain.digest.hex()):
        chain.broken = f"the chain ends at entry {chain.seq}, its head says {end[0]}"
    return _expected(chain, noted)


def verify_file(file: Path, noted: Noted | None = None) -> Chain:
    """Follow the chain of an export without filters. Raises OSError, and ValueError for what is none."""
    chain = Chain()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry = _decode(line)
            except msgspec.DecodeError as error:
                raise ValueError(f"{file}:{number}: not a line of an export: {error}") from None
            if not chain.follow(noted.look((entry,)) if noted else (entry,)):
                return chain
    return _expected(chain, noted)


def _expected(chain: Chain, noted: Noted | None) -> Chain:
    if chain.broken is None and noted is not None and not noted.seen:
        chain.broken = f"entry {noted.id} with the digest that was noted is not in the chain"
    return chain
