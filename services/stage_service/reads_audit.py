"""The audit as it is read: filtered and page by page, newest first; or from an entry on, for an export."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import NamedTuple

from services.contracts.audit import COLUMNS, Entry, entry_of
from services.contracts.postgres_log import Executor

PAGE_MAX = 200
EXPORT_AT_ONCE = 1000
NEWEST = 2**62
KNOWN_BY = 2000
"""So many of the newest entries say what a form offers."""


class Wanted(NamedTuple):
    """Which entries: all that is None is not asked for. From `since`, to before `until`."""

    actor: str | None = None
    action: str | None = None
    kind: str | None = None
    subject: str | None = None
    lead_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


# A name finds who was acted for too.
_MATCHES = """($1::text IS NULL OR actor = $1 OR on_behalf_of = $1 OR key_id = $1)
  AND ($2::text IS NULL OR action = $2) AND ($3::text IS NULL OR kind = $3)
  AND ($4::text IS NULL OR subject = $4) AND ($5::text IS NULL OR lead_id = $5::uuid)
  AND ($6::timestamptz IS NULL OR at >= $6) AND ($7::timestamptz IS NULL OR at < $7)"""


async def entries(
    connection: Executor, wanted: Wanted, *, before: int = NEWEST, limit: int
) -> list[Entry]:
    """Give the newest entries with an id below `before`."""
    rows = await connection.fetch(
        f"""SELECT {COLUMNS} FROM audit.entries e WHERE {_MATCHES} AND seq < $8
            ORDER BY seq DESC LIMIT $9""",  # noqa: S608  constants
        *wanted, before, limit,
    )  # fmt: skip
    return [entry_of(row) for row in rows]


async def known(connection: Executor) -> dict[str, list[str]]:
    """Give what the newest entries have, for a form to offer: ``actors``, ``actions`` and ``kinds``."""
    [row] = await connection.fetch(
        """SELECT array_agg(DISTINCT actor) AS actors, array_agg(DISTINCT action) AS actions,
             array_agg(DISTINCT kind) AS kinds
           FROM (SELECT actor, action, kind FROM audit.entries ORDER BY seq DESC LIMIT $1) newest""",
        KNOWN_BY,
    )
    return {name: sorted(values or ()) for name, values in row.items()}


async def exported(
    connection: Executor, wanted: Wanted, after: int = 0, until: int = NEWEST
) -> AsyncIterator[list[Entry]]:
    """Give the entries after the id `after` up to `until`, oldest first, some at a time."""
    while True:
        rows = await connection.fetch(
            f"""SELECT {COLUMNS} FROM audit.entries e WHERE {_MATCHES} AND seq > $8 AND seq <= $9
                ORDER BY seq LIMIT $10""",  # noqa: S608  constants
            *wanted, after, until, EXPORT_AT_ONCE,
        )  # fmt: skip
        if not rows:
            return
        found = [entry_of(row) for row in rows]
        yield found
        after = found[-1].id


async def head(connection: Executor) -> tuple[int, str]:
    """Give the id and digest where the chain ends."""
    [row] = await connection.fetch("SELECT seq, encode(digest, 'hex') AS digest FROM audit.head")
    return row["seq"], row["digest"]
