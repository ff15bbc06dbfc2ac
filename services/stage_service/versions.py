"""The rows of playbook versions, of those to be published later, and of the sweeps that follow: SQL alone.

Nothing here commits. Who writes a version holds the table's lock (`lock`) until the commit, so that epochs
are given in the order of commits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.postgres_log import Executor
from services.stage_service.errors import ConflictError, NotFoundError
from services.stage_service.playbook import Playbook
from services.stage_service.store import Connection, as_json

VERSIONS_MAX = 1000
"""How many versions of one playbook a list gives: the newest."""


@dataclass(frozen=True)
class Version:
    """One published version of a playbook; it never changes.

    `epoch` numbers the publications of all playbooks; `version` those of one, from 1. `author` None: a file
    at the start of a process. `diff` is what the publisher said it changes; `migrate` where the journeys of
    stages that are gone go on; `restores` the older version whose text it is.
    """

    name: str
    version: int
    epoch: int
    digest: str
    source: str
    author: str | None
    message: str | None
    diff: Any
    migrate: Mapping[str, str]
    published_at: datetime
    activated_at: datetime
    restores: int | None


@dataclass(frozen=True)
class Scheduled:
    """A publication that is to happen at `activate_at`, or what became of it.

    `state` is ``waiting``, ``activated`` (as `version`), ``cancelled`` or ``refused`` (for `reason`).
    `base_version` is the version that must be the active one then; None: whatever is. `open`: it waits, or
    was refused and no version was published since.
    """

    id: str
    name: str
    digest: str
    source: str
    author: str
    message: str
    diff: Any
    migrate: Mapping[str, str]
    restores: int | None
    base_version: int | None
    activate_at: datetime
    state: str
    reason: str | None
    version: int | None
    created_at: datetime
    ended_at: datetime | None
    ended_by: str | None
    open: bool


@dataclass(frozen=True)
class Publication:
    """What is to be published: by whom and why, and when they asked for it (None: now)."""

    playbook: Playbook
    author: str | None = None
    message: str | None = None
    restores: int | None = None
    diff: object | None = None
    migrate: Mapping[str, str] | None = None
    published_at: datetime | None = None


_VERSION = (
    "name, version, epoch, digest, source, author, message, diff, migrate, published_at, activated_at,"
    " restores"
)
_SCHEDULED = (
    "id::text, name, digest, source, author, message, diff, migrate, restores, base_version, activate_at,"
    " state, reason, version, created_at, ended_at, ended_by,"
    # By numbers: the clocks of two processes, or of one transaction that waited, say nothing of the order.
    " state = 'waiting' OR state = 'refused' AND coalesce(active_version = coalesce((SELECT max(v.version)"
    " FROM stage.playbook_versions v WHERE v.name = scheduled_publications.name), 0), false) AS open"
)


async def lock(connection: Connection) -> None:
    """Let nobody else publish until the transaction ends; readers go on."""
    await connection.execute("LOCK TABLE stage.playbook_versions IN SHARE ROW EXCLUSIVE MODE")


async def insert(connection: Connection, what: Publication) -> Version:
    """Write the next version of a playbook; it holds from the commit on.

    It is active since the lock was got, not since the transaction began, which may have waited for another
    publication: so these times rise with the epochs, and a past moment has the epoch that it had.
    """
    playbook = what.playbook
    row = await connection.fetchrow(
        f"""INSERT INTO stage.playbook_versions
              (name, version, digest, source, author, message, diff, migrate, restores, published_at,
               activated_at)
            SELECT $1, coalesce(max(version), 0) + 1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, now()),
              clock_timestamp()
            FROM stage.playbook_versions WHERE name = $1 RETURNING {_VERSION}""",  # noqa: S608
        playbook.name, playbook.digest, playbook.source, what.author, what.message,
        as_json(what.diff) if what.diff is not None else None, as_json(dict(what.migrate or {})),
        what.restores, what.published_at,
    )  # fmt: skip
    assert row is not None  # noqa: S101  an insert that returns
    return _version(row)


async def newest(connection: Executor, name: str) -> Version | None:
    """Give the active version of the playbook `name`; None when nobody published it."""
    rows = await connection.fetch(
        f"SELECT {_VERSION} FROM stage.playbook_versions WHERE name = $1 "  # noqa: S608
        "ORDER BY version DESC LIMIT 1",
        name,
    )
    return _version(rows[0]) if rows else None


async def with_digest(connection: Executor, name: str, digest: str) -> int | None:
    """Give the newest version of the playbook `name` with this text; None when it was never published."""
    rows = await connection.fetch(
        "SELECT max(version) AS version FROM stage.playbook_versions WHERE name = $1 AND digest = $2",
        name, digest,
    )  # fmt: skip
    return rows[0]["version"]


async def versions(connection: Executor, name: str) -> list[Version]:
    """Give the versions of the playbook `name`, the newest first; none when nobody published it."""
    rows = await connection.fetch(
        f"SELECT {_VERSION} FROM stage.playbook_versions WHERE name = $1 "  # noqa: S608
        "ORDER BY version DESC LIMIT $2",
        name, VERSIONS_MAX,
    )  # fmt: skip
    return [_version(row) for row in rows]


async def version_row(connection: Executor, name: str, version: int) -> Version:
    """Give one version of the playbook `name`; NotFoundError when there is none."""
    rows = await connection.fetch(
        f"SELECT {_VERSION} FROM stage.playbook_versions WHERE name = $1 AND version = $2",  # noqa: S608
        name, version,
    )  # fmt: skip
    if not rows:
        raise NotFoundError(
            f"there is no version {version} of the playbook {name!r}", field="version", value=version,
            remedy="See the list of its versions.",
        )  # fmt: skip
    return _version(rows[0])


async def schedule(
    connection: Connection, id: str, what: Publication, base: int | None, at: datetime
) -> Scheduled:
    """Write down that `what` is to be published at the moment `at`, on top of the version `base`."""
    row = await connection.fetchrow(
        f"""INSERT INTO stage.scheduled_publications
              (id, name, digest, source, author, message, diff, migrate, restores, base_version, activate_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING {_SCHEDULED}""",  # noqa: S608
        id, what.playbook.name, what.playbook.digest, what.playbook.source, what.author, what.message,
        as_json(what.diff) if what.diff is not None else None, as_json(dict(what.migrate or {})),
        what.restores, base, at,
    )  # fmt: skip
    assert row is not None  # noqa: S101
    return _scheduled(row)


async def waiting_like(
    connection: Executor, id: str, what: Publication, at: datetime
) -> Scheduled | None:
    """Give what was scheduled under `id`, or what waits to be the same at the same moment; None: nothing."""
    playbook = what.playbook
    rows = await connection.fetch(
        f"""SELECT {_SCHEDULED} FROM stage.scheduled_publications
            WHERE id = $1 OR (state = 'waiting' AND name = $2 AND digest = $3 AND activate_at = $4)
            ORDER BY id <> $1, id""",  # noqa: S608
        id, playbook.name, playbook.digest, at,
    )  # fmt: skip
    found = (_scheduled(row) for row in rows)
    same = (s for s in found if s.id == id or s.migrate == dict(what.migrate or {}))
    return next(same, None)


async def scheduled(connection: Executor, name: str | None = None) -> list[Scheduled]:
    """Give what was scheduled (of the playbook `name`), what waits first, then the newest ended."""
    rows = await connection.fetch(
        f"""SELECT {_SCHEDULED} FROM stage.scheduled_publications WHERE $1::text IS NULL OR name = $1
            ORDER BY state <> 'waiting', CASE WHEN state = 'waiting' THEN activate_at END,
              ended_at DESC, id LIMIT $2""",  # noqa: S608
        name, VERSIONS_MAX,
    )  # fmt: skip
    return [_scheduled(row) for row in rows]


async def waiting(connection: Executor) -> list[Scheduled]:
    """Give what waits of all playbooks, in the order in which it will be published."""
    rows = await connection.fetch(
        f"""SELECT {_SCHEDULED} FROM stage.scheduled_publications WHERE state = 'waiting'
            ORDER BY activate_at, id LIMIT $1""",  # noqa: S608
        VERSIONS_MAX,
    )
    return [_scheduled(row) for row in rows]


async def still_open(connection: Executor, name: str | None = None) -> list[Scheduled]:
    """Give what waits (of the playbook `name`), the next first, then what was refused on what is active."""
    rows = await connection.fetch(
        f"""SELECT * FROM (SELECT {_SCHEDULED} FROM stage.scheduled_publications
              WHERE state IN ('waiting', 'refused') AND ($1::text IS NULL OR name = $1)) s
            WHERE s.open ORDER BY state DESC, activate_at, id LIMIT $2""",  # noqa: S608
        name, VERSIONS_MAX,
    )  # fmt: skip
    return [_scheduled(row) for row in rows]


async def is_due(connection: Connection, now: datetime) -> bool:
    """Say whether a publication is due, without a lock."""
    return await connection.fetchval(
        """SELECT EXISTS (SELECT FROM stage.scheduled_publications
                          WHERE state = 'waiting' AND activate_at <= $1)""",
        now,
    )


async def claim_due(connection: Connection, now: datetime) -> Scheduled | None:
    """Give the first publication that is due and nobody else has in hand, locked; None: there is none."""
    row = await connection.fetchrow(
        f"""SELECT {_SCHEDULED} FROM stage.scheduled_publications
            WHERE state = 'waiting' AND activate_at <= $1
            ORDER BY activate_at, id LIMIT 1 FOR UPDATE SKIP LOCKED""",  # noqa: S608
        now,
    )
    return _scheduled(row) if row else None


async def end(
    connection: Connection,
    id: str,
    state: str,
    now: datetime,
    *,
    reason: str | None = None,
    version: int | None = None,
    by: str | None = None,
) -> None:
    """Write down what became of a scheduled publication, and which version is the active one now."""
    await connection.execute(
        """UPDATE stage.scheduled_publications s
           SET state = $2, ended_at = $3, reason = $4, version = $5, ended_by = $6,
             active_version = coalesce(
               (SELECT max(v.version) FROM stage.playbook_versions v WHERE v.name = s.name), 0)
           WHERE id = $1""",
        id, state, now, reason, version, by,
    )  # fmt: skip


async def cancel(connection: Connection, id: str, by: str, now: datetime) -> Scheduled:
    """Call a scheduled publication off; NotFoundError, or ConflictError when it waits no more."""
    row = await connection.fetchrow(
        "SELECT state FROM stage.scheduled_publications WHERE id = $1 FOR UPDATE", id
    )
    if row is None:
        raise NotFoundError(
            f"there is no scheduled publication {id!r}", field="id", value=id,
            remedy="See the list of those that wait.",
        )  # fmt: skip
    if row["state"] != "waiting":
        raise ConflictError(
            f"the publication is {row['state']} already", field="id", value=id,
            remedy="To turn back what was activated, publish the version before it again.",
        )  # fmt: skip
    await end(connection, id, "cancelled", now, by=by)
    rows = await connection.fetch(
        f"SELECT {_SCHEDULED} FROM stage.scheduled_publications WHERE id = $1",  # noqa: S608
        id,
    )
    return _scheduled(rows[0])


@dataclass(frozen=True)
class Sweep:
    """A publication of which the leads after the id `after` still have to hear, in pass `number`."""

    epoch: int
    name: str
    version: int
    after: str | None
    number: int


async def begin_sweep(connection: Connection, version: Version) -> None:
    """Note that leads have to hear of `version`."""
    await connection.execute(
        "INSERT INTO stage.playbook_sweeps (epoch, name, version) VALUES ($1, $2, $3)",
        version.epoch, version.name, version.version,
    )  # fmt: skip


async def claim_sweep(connection: Connection) -> Sweep | None:
    """Give the oldest sweep that is due and that nobody else has in hand, locked; None: there is none."""
    row = await connection.fetchrow(
        """SELECT epoch, name, version, after::text, pass FROM stage.playbook_sweeps
           WHERE done_at IS NULL AND due_at <= clock_timestamp()
           ORDER BY epoch LIMIT 1 FOR UPDATE SKIP LOCKED"""
    )
    return Sweep(*row) if row else None


async def note_swept(connection: Connection, sweep: Sweep, after: str, leads: int) -> None:
    """Write down that `leads` more heard, up to the id `after`."""
    await connection.execute(
        "UPDATE stage.playbook_sweeps SET after = $2, moved = moved + $3 WHERE epoch = $1",
        sweep.epoch, after, leads,
    )  # fmt: skip


async def end_pass(connection: Connection, sweep: Sweep, again_in_s: float | None) -> None:
    """End a pass: the next begins in `again_in_s` seconds; None: that was the last."""
    await connection.execute(
        """UPDATE stage.playbook_sweeps SET after = NULL, pass = pass + 1,
             due_at = clock_timestamp() + make_interval(secs => coalesce($2, 0)),
             done_at = CASE WHEN $2::float8 IS NULL THEN clock_timestamp() END WHERE epoch = $1""",
        sweep.epoch, again_in_s,
    )  # fmt: skip


def _decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(row)
    fields["diff"] = msgspec.json.decode(row["diff"]) if row["diff"] is not None else None
    fields["migrate"] = msgspec.json.decode(row["migrate"])
    return fields


def _version(row: Mapping[str, Any]) -> Version:
    return Version(**_decoded(row))


def _scheduled(row: Mapping[str, Any]) -> Scheduled:
    return Scheduled(**_decoded(row))
