"""The playbook versions on record, and which of them an event is folded under.

Publishing a version makes a new epoch. An event keeps the epoch it was recorded in; `at` gives the
newest version of each playbook then, for ever the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import asyncpg
import structlog

from services.contracts.audit import Actor, Note, record
from services.contracts.postgres_log import Executor
from services.stage_service.playbook import Playbook, parse_playbook

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
        """Give the playbooks that were active at `epoch`, by name, in the order they first came."""
        if epoch > self.epoch:
            raise LookupError(f"epoch {epoch} is not loaded yet")
        if epoch not in self._at:
            self._at[epoch] = {p.name: p for e, p in self._published if e <= epoch}
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
            "SELECT epoch, name, version, source FROM stage.playbook_versions WHERE epoch > $1 "
            "ORDER BY epoch",
            self.epoch,
        )
        for row in rows:
            file = f"{row['name']} version {row['version']}"
            playbook = parse_playbook(row["source"], file)
            versioned = replace(playbook, version=row["version"])
            self._published.append((row["epoch"], versioned))
            self._versions[row["name"], row["version"]] = versioned
            self.epoch = row["epoch"]

    async def publish(self, pool: asyncpg.Pool[Any], playbook: Playbook) -> int:
        """Record `playbook` as the active version of its name, unless it was published before.

        Gives its version number. A file that was published once does not come back by itself: a
        replica that starts with an older file leaves the newer version active.
        """
        async with pool.acquire() as connection, connection.transaction():
            # Two processes that start at once publish once.
            await connection.execute(
                "LOCK TABLE stage.playbook_versions IN SHARE ROW EXCLUSIVE MODE"
            )
            version = await connection.fetchval(
                "SELECT max(version) FROM stage.playbook_versions WHERE name = $1 AND digest = $2",
                playbook.name, playbook.digest,
            )  # fmt: skip
            if version is None:
                version = await connection.fetchval(
                    """INSERT INTO stage.playbook_versions (name, version, digest, source)
                       SELECT $1, coalesce(max(version), 0) + 1, $2, $3
                       FROM stage.playbook_versions WHERE name = $1 RETURNING version""",
                    playbook.name, playbook.digest, playbook.source,
                )  # fmt: skip
                await record(connection, FILE, Note(
                    "published", "playbook", playbook.name,
                    {"version": version - 1} if version > 1 else None,
                    {"version": version, "digest": playbook.digest},
                ))  # fmt: skip
                _log.info("playbook.published", playbook=playbook.name, version=version)
        await self.load(pool)
        return version
