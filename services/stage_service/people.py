"""The roster's people in PostgreSQL: put, leave and import, each audited.

Every change locks the revision, so that changes come one after the other, and moves it in the same
transaction: both services take the roster over by it (`services.contracts.roster`). The audit is in that
transaction too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import msgspec

from services.contracts.audit import Actor, Note, record
from services.contracts.problems import ChangedMeanwhileError, NotFoundError
from services.contracts.team import read_person
from services.contracts.yaml_source import nearest
from services.stage_service.errors import InvalidRequestError
from services.stage_service.store import Connection, as_json


class Entry(msgspec.Struct, frozen=True):
    """One person as stored: the document, and the version that ``ETag`` tells."""

    id: str
    document: dict[str, Any]
    version: int


KIND = "person"
FILE = Actor("team file", via="system")


async def entries(connection: Connection) -> list[Entry]:
    """Give the people who are here, in the roster's order."""
    rows = await connection.fetch(
        "SELECT id, document, version FROM roster.people WHERE left_at IS NULL ORDER BY place, id"
    )
    return [Entry(r["id"], msgspec.json.decode(r["document"]), r["version"]) for r in rows]


async def entry(connection: Connection, id: str) -> Entry:
    """Give one person; raises NotFoundError."""
    found = await _here(connection, id)
    if found is None:
        raise NotFoundError(
            f"there is no person {id!r}", field="id", value=id, remedy="See GET /v1/people."
        )
    return found


async def put(
    pool: asyncpg.Pool[Any],
    document: Mapping[str, Any],
    by: Actor,
    *,
    version: int | None = None,
    is_new: bool = False,
) -> tuple[Entry, bool]:
    """Add or change the person that `document` tells (``schemas/team.schema.json``); tell if they are new.

    Raises SourceError for what is wrong in it, InvalidRequestError for an unknown stand-in, and
    ChangedMeanwhileError unless the present version is `version`, or there is none with `is_new`.
    """
    async with pool.acquire() as connection, connection.transaction():
        await _lock(connection)
        before = await _here(connection, str(document.get("id")))
        if (is_new and before is not None) or (
            version is not None and (before is None or before.version != version)
        ):
            raise _changed(before)
        known = {e.id for e in await entries(connection)} | {str(document.get("id"))}
        written = await _write(connection, document, before, known, by)
        await _moved(connection)
    return written, before is None


async def remove(
    connection: Connection, id: str, by: Actor, *, version: int | None = None
) -> Entry:
    """Take the person `id` off the roster, in a transaction of the caller; gives what they were.

    Raises NotFoundError, and ChangedMeanwhileError when `version` is not the present one.
    """
    await _lock(connection)
    before = await entry(connection, id)
    if version is not None and before.version != version:
        raise _changed(before)
    await connection.execute(
        "UPDATE roster.people SET left_at = now(), updated_at = now() WHERE id = $1", id
    )
    await record(connection, by, Note("left", KIND, id, before.document))
    await _moved(connection)
    return before


class Imported(msgspec.Struct):
    """What an import did, or would do: ids."""

    added: list[str]
    changed: list[str]
    unchanged: list[str]


async def import_people(
    pool: asyncpg.Pool[Any],
    documents: Sequence[Mapping[str, Any]],
    by: Actor,
    *,
    keep: Sequence[str] = (),
    dry_run: bool = False,
) -> Imported:
    """Add and change people, all or none; who is not named stays. With `dry_run` nothing is written.

    The keys `keep`, which the documents cannot tell, stay as they are of people who are here.

    The documents must be valid. Raises InvalidRequestError for an unknown stand-in.
    """
    imported = Imported([], [], [])
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await _lock(connection)
            present = {e.id: e for e in await entries(connection)}
            known = present.keys() | {str(d["id"]) for d in documents}
            for document in documents:
                before = present.get(str(document["id"]))
                if before is not None:
                    kept = {k: before.document[k] for k in keep if k in before.document}
                    document = kept | dict(document)  # noqa: PLW2901
                if before is not None and before.document == document:
                    imported.unchanged.append(before.id)
                    continue
                written = await _write(connection, document, before, known, by)
                (imported.changed if before else imported.added).append(written.id)
            if imported.added or imported.changed:
                await _moved(connection)
        except BaseException:
            await transaction.rollback()
            raise
        await (transaction.rollback() if dry_run else transaction.commit())
    return imported


async def take_file(
    pool: asyncpg.Pool[Any], documents: Sequence[Mapping[str, Any]], *, wins: bool
) -> None:
    """Bring the roster's file in: once, while nobody wrote yet; or, when the file `wins`, as it is now."""
    async with pool.acquire() as connection, connection.transaction():
        await _lock(connection)
        revision = await connection.fetchval("SELECT revision FROM roster.revision")
        if revision and not wins:
            return
        present = {e.id: e for e in await entries(connection)}
        ids = {str(d["id"]) for d in documents}
        changed = not revision
        for document in documents:
            before = present.get(str(document["id"]))
            if before is None or before.document != document:
                await _write(connection, document, before, ids, FILE)
                changed = True
        for id in present.keys() - ids:
            await connection.execute("UPDATE roster.people SET left_at = now() WHERE id = $1", id)
            await record(connection, FILE, Note("left", KIND, id, present[id].document))
            changed = True
        if changed:
            await _moved(connection)


async def _lock(connection: Connection) -> None:
    await connection.execute("SELECT revision FROM roster.revision FOR UPDATE")


async def _moved(connection: Connection) -> None:
    await connection.execute("UPDATE roster.revision SET revision = revision + 1")


async def _here(connection: Connection, id: str) -> Entry | None:
    row = await connection.fetchrow(
        "SELECT id, document, version FROM roster.people WHERE id = $1 AND left_at IS NULL", id
    )
    return row and Entry(row["id"], msgspec.json.decode(row["document"]), row["version"])


async def _write(
    connection: Connection,
    document: Mapping[str, Any],
    before: Entry | None,
    known: set[str],
    by: Actor,
) -> Entry:
    person = read_person(document)
    for away in person.away:
        if away.stand_in is not None and away.stand_in not in known:
            raise InvalidRequestError(
                f"the stand-in of {person.id}, {away.stand_in!r}, is not in the roster",
                field="away.stand_in", value=away.stand_in,
                remedy=nearest(away.stand_in, known) or "Name the id of somebody in the roster.",
            )  # fmt: skip
    # Who comes back keeps the version going: an old ETag must not fit by chance.
    version = await connection.fetchval(
        """INSERT INTO roster.people AS p (id, document) VALUES ($1, $2)
           ON CONFLICT (id) DO UPDATE SET document = excluded.document, version = p.version + 1,
             left_at = NULL, updated_at = now() RETURNING version""",
        person.id, as_json(document),
    )  # fmt: skip
    action = "changed" if before else "added"
    was = before.document if before else None
    await record(connection, by, Note(action, KIND, person.id, was, document))
    return Entry(person.id, dict(document), version)


def _changed(present: Entry | None) -> ChangedMeanwhileError:
    now = f"is at version {present.version}" if present else "does not exist"
    return ChangedMeanwhileError(f"the person {now}", remedy="Read it again and send its ETag.")
