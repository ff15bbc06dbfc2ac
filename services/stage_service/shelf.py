"""The playbook versions on record, and which of them an event is folded under.

Publishing a version makes a new epoch. An event keeps the epoch it was recorded in; `at` gives the
newest version of each playbook then, for ever the same. Who publishes, rolls back or schedules does it here:
each is a new version, and none ever changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import asyncpg
import msgspec
import structlog
import uuid_utils

from services.contracts.audit import Actor, Note, record
from services.contracts.postgres_log import Executor
from services.contracts.problems import BatonError
from services.contracts.yaml_source import SourceError
from services.stage_service import versions
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_diff import diff
from services.stage_service.playbook_succession import following, in_order, succession
from services.stage_service.prospects import Prospect, expect, prospects, refusal_of
from services.stage_service.store import Connection
from services.stage_service.versions import Publication, Scheduled, Version

FILE = Actor("playbook file", via="system")
_log = structlog.get_logger("baton.playbook")


class Shelf:
    """All published playbook versions, parsed once, by epoch."""

    def __init__(self) -> None:
        self._published: list[tuple[int, Playbook]] = []
        self._at: dict[int, dict[str, Playbook]] = {}
        self._versions: dict[tuple[str, int], Playbook] = {}
        self.epoch = 0

    @property
    def playbooks(self) -> dict[str, Playbook]:
        """The active playbooks by name."""
        return self.at(self.epoch)

    def at(self, epoch: int) -> dict[str, Playbook]:
        """Give the playbooks that were active at `epoch`, by name, in the order they first came.

        One that is entered from another comes after it.
        """
        if epoch > self.epoch:
            raise LookupError(f"epoch {epoch} is not loaded yet")
        if epoch not in self._at:
            self._at[epoch] = in_order({p.name: p for e, p in self._published if e <= epoch})
        return self._at[epoch]

    def version(self, name: str, version: int) -> Playbook:
        """Give the published `version` of the playbook `name`; KeyError when there is none."""
        return self._versions[name, version]

    def knows(self, name: str, version: int) -> bool:
        """Say whether the `version` of the playbook `name` is loaded."""
        return (name, version) in self._versions

    async def load(self, pool: Executor) -> None:
        """Read the versions published since the last call."""
        rows = await pool.fetch(
            "SELECT epoch, name, version, source, migrate FROM stage.playbook_versions WHERE epoch > $1 "
            "ORDER BY epoch",
            self.epoch,
        )
        for epoch, name, version, source, migrate in rows:
            if epoch <= self.epoch:
                continue  # another task was faster
            playbook = parse_playbook(source, f"{name} version {version}")
            before = self._versions.get((name, version - 1))
            versioned = following(playbook, before, version, msgspec.json.decode(migrate))
            self._published.append((epoch, versioned))
            self._versions[name, version] = versioned
            self.epoch = epoch

    async def publish_file(self, pool: asyncpg.Pool[Any], playbook: Playbook) -> int:
        """Publish a file at the start of a process, unless its text was published before.

        Gives its version number. A file that was published once does not come back by itself: a
        replica that starts with an older file leaves the newer version active. Raises SourceError when it
        cannot follow the active version.
        """
        async with pool.acquire() as connection, connection.transaction():
            await versions.lock(connection)  # two processes that start at once publish once
            known = await versions.with_digest(connection, playbook.name, playbook.digest)
            if known is None:
                known = (await self._add(connection, Publication(playbook), FILE)).version
        await self.load(pool)
        return known

    async def publish(
        self,
        pool: asyncpg.Pool[Any],
        playbook: Playbook,
        *,
        author: str,
        message: str,
        expected: int | None,
        restores: int | None = None,
        diff: object | None = None,
        migrate: Mapping[str, str] | None = None,
        by: Actor | None = None,
    ) -> Version:
        """Make `playbook` the active version of its name, and give it; it holds when this returns.

        `expected` is the version that must be the active one (0: none; None: whatever is), `restores` the
        version whose text it is, `migrate` adds to the file's own where journeys go on. Raises
        PlaybookChangedError when another version is active than `expected`, PlaybookUnchangedError when
        the active one has this text, SourceError when it cannot follow it.
        """
        what = Publication(playbook, author, message, restores, diff, migrate)
        async with pool.acquire() as connection, connection.transaction():
            await versions.lock(connection)
            await _expect(connection, playbook, expected)
            version = await self._add(connection, what, by or Actor(author, via="system"))
        await self.load(pool)
        return version

    async def versions(self, pool: Executor, name: str) -> list[Version]:
        """Give the versions of the playbook `name`, the newest first: the first is the active one."""
        return await versions.versions(pool, name)

    async def version_row(self, pool: Executor, name: str, version: int) -> Version:
        """Give one version of the playbook `name` as it was published; NotFoundError when there is none."""
        return await versions.version_row(pool, name, version)

    async def schedule(
        self,
        pool: asyncpg.Pool[Any],
        playbook: Playbook,
        *,
        author: str,
        message: str,
        activate_at: datetime,
        expected: int | None,
        restores: int | None = None,
        diff: object | None = None,
        migrate: Mapping[str, str] | None = None,
        by: Actor | None = None,
        id: str | None = None,
    ) -> Scheduled:
        """Have `playbook` published at the moment `activate_at` (at once when that is past).

        It is judged now as `publish` does, and again when it is due. `expected` is the version that must be
        the active one now and then; None: whatever is then. What was scheduled under the same `id`, and what
        waits with the same text for the same moment, is given as it is. Raises what `publish` raises.
        """
        what = Publication(playbook, author, message, restores, diff, migrate)
        async with pool.acquire() as connection, connection.transaction():
            await versions.lock(connection)  # the same that is sent twice at once is scheduled once
            id = id or str(uuid_utils.uuid7())
            known = await versions.waiting_like(connection, id, what, activate_at)
            if known is not None:
                return known
            await _expect(connection, playbook, expected)
            await self._moves(connection, what)
            planned = await versions.schedule(connection, id, what, expected, activate_at)
            await record(connection, by or Actor(author, via="system"), Note(
                "scheduled", "playbook", playbook.name, None,
                {"digest": playbook.digest, "active_at": activate_at, "message": message},
            ))  # fmt: skip
            return planned

    async def scheduled(self, pool: Executor, name: str | None = None) -> list[Scheduled]:
        """Give what was scheduled (of the playbook `name`): what waits, the next first, then what ended."""
        return await versions.scheduled(pool, name)

    async def still_open(self, pool: Executor, name: str | None = None) -> list[Scheduled]:
        """Give what waits (of the playbook `name`), then what was refused on top of what is active."""
        return await versions.still_open(pool, name)

    async def planned_like(
        self, pool: Executor, what: Publication, at: datetime, id: str | None
    ) -> Scheduled | None:
        """Give what was scheduled under `id`, or waits to be the same at the moment `at`; None: nothing."""
        return await versions.waiting_like(pool, id or str(uuid_utils.uuid7()), what, at)

    async def prospects(self, pool: Executor, instead: Playbook | None = None) -> list[Prospect]:
        """Give what will become of what waits, if nothing else is published; `instead`: were that active."""
        waiting = await versions.waiting(pool)
        if not waiting:
            return []
        active = self.playbooks
        if instead is not None:
            active = {**active, instead.name: instead}
        # A large file takes the YAML parser a second: others are served meanwhile.
        return await asyncio.to_thread(prospects, active, waiting)

    async def cancel(
        self,
        pool: asyncpg.Pool[Any],
        id: str,
        *,
        author: str,
        now: datetime | None = None,
        by: Actor | None = None,
    ) -> Scheduled:
        """Call a scheduled publication off, for `author`.

        Raises NotFoundError for an unknown `id`, ConflictError when it does not wait any more.
        """
        async with pool.acquire() as connection, connection.transaction():
            planned = await versions.cancel(connection, id, author, now or datetime.now(UTC))
            await record(connection, by or Actor(author, via="system"), Note(
                "cancelled", "playbook", planned.name,
                {"digest": planned.digest, "active_at": planned.activate_at},
            ))  # fmt: skip
            return planned

    async def activate_due(self, pool: asyncpg.Pool[Any], now: datetime) -> Scheduled | None:
        """Publish the first of what is due at the moment `now`; None: nothing is.

        It is judged again. What cannot be published any more is refused, and says why; so is what was
        scheduled on top of a version that is not the active one any more. All in one transaction: whenever
        a process dies, it is published once.
        """
        async with pool.acquire() as connection, connection.transaction():
            if not await versions.is_due(connection, now):
                return None
            # First: who took a row and then waited here could be overtaken by who took the next.
            await versions.lock(connection)
            due = await versions.claim_due(connection, now)
            if due is None:
                return None
            by = Actor("schedule", via="system", on_behalf_of=due.author)
            try:
                playbook = parse_playbook(due.source, due.name)
                what = Publication(
                    playbook, due.author, due.message, due.restores, due.diff, due.migrate,
                    due.created_at,
                )  # fmt: skip
                await _expect(connection, playbook, due.base_version)
                version = await self._add(connection, what, by)
            except (SourceError, BatonError) as error:  # raised before anything was written
                reason = refusal_of(error)
                await versions.end(connection, due.id, "refused", now, reason=reason)
                await record(connection, by, Note(
                    "refused", "playbook", due.name, None,
                    {"digest": due.digest, "active_at": due.activate_at, "reason": reason},
                ))  # fmt: skip
                _log.warning("playbook.schedule_refused", playbook=due.name, id=due.id)
            else:
                await versions.end(connection, due.id, "activated", now, version=version.version)
        await self.load(pool)
        return due

    async def _moves(self, connection: Connection, what: Publication) -> dict[str, str]:
        """Give where the journeys of stages go on that `what` takes away; raises SourceError."""
        await self.load(connection)
        return succession(what.playbook, self.playbooks, given=what.migrate, restored=what.restores)

    async def _add(self, connection: Connection, what: Publication, by: Actor) -> Version:
        """Write the next version of a playbook, which `by` published; the caller holds the lock."""
        moved = await self._moves(connection, what)
        before = self.playbooks.get(what.playbook.name)
        changes = await _told_on(before, what, moved)
        version = await versions.insert(connection, replace(what, migrate=moved, diff=changes))
        if moved or (before.enters if before is not None else None) != what.playbook.enters:
            await versions.begin_sweep(connection, version)
        number = version.version
        after = {"version": number, "digest": version.digest, "message": version.message}
        await record(connection, by, Note(
            "published", "playbook", version.name, {"version": number - 1} if number > 1 else None,
            after if version.restores is None else {**after, "back_to": version.restores},
        ))  # fmt: skip
        _log.info(
            "playbook.published", playbook=version.name, version=version.version,
            restores=version.restores,
        )  # fmt: skip
        return version


async def _told_on(
    before: Playbook | None, what: Publication, moved: Mapping[str, str]
) -> object | None:
    """Give the difference of `what` from the version `before` it, which it may not have been made on."""
    told = what.diff
    if not isinstance(told, Mapping):
        return told
    number = before.version if before is not None else None
    if cast("Mapping[str, Any]", told).get("before_version", number) == number:
        return cast("object", told)
    return (await asyncio.to_thread(diff, before, what.playbook, moved)).shown()


async def _expect(connection: Connection, playbook: Playbook, expected: int | None) -> None:
    """Hold that the active version is the `expected` one, and another text than the `playbook`."""
    expect(playbook, await versions.newest(connection, playbook.name), expected)
