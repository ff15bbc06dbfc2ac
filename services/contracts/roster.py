"""The roster as both services see it: schema ``roster`` in PostgreSQL, read again when its revision moves.

`Roster` holds the team in memory. Whoever changes people (`services.stage_service.people`) moves the
revision in the same transaction; `load` reads the people anew, and `look` does so only when it moved.
Before anybody wrote to the schema the revision is 0 and the team is the file's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from services.contracts.postgres_log import Executor
from services.contracts.team import Person, Team, read_person, team_of
from services.contracts.yaml_source import SourceError

LOOK_EVERY_S = 1.0
"""So a change is known everywhere within two seconds; whoever chooses an owner looks at that moment."""

_log = structlog.get_logger("baton.roster")


class Roster:
    """The team as of `revision`; starts as the one given."""

    def __init__(self, team: Team, revision: int = 0) -> None:
        self.team = team
        self.revision = revision

    async def look(self, executor: Executor) -> bool:
        """Take the roster over if it changed; tell whether it did."""
        rows = await executor.fetch("SELECT revision FROM roster.revision")
        if rows[0]["revision"] <= self.revision:
            return False
        await self.load(executor)
        return True

    async def load(self, executor: Executor) -> None:
        """Read the people of the newest revision; nothing changes while there is none.

        Somebody whose entry this version of Baton cannot read is left out and logged.
        """
        rows = await executor.fetch(
            """SELECT r.revision, p.document FROM roster.revision r
               LEFT JOIN roster.people p ON p.left_at IS NULL ORDER BY p.place, p.id"""
        )
        revision = rows[0]["revision"]
        if revision == 0:
            return
        people: list[Person] = []
        for row in rows:
            if row["document"] is None:
                continue
            try:
                people.append(read_person(msgspec.json.decode(row["document"])))
            except SourceError as error:
                _log.error("roster.person_unreadable", problems=len(error.problems))
        self.team = team_of(tuple(people))
        self.revision = revision
        _log.info("roster.read", people=len(people), revision=revision)


class RosterWatch:
    """Does `look` every second until stopped; what fails is logged once, and tried again."""

    def __init__(self, look: Callable[[], Awaitable[object]]) -> None:
        self._look = look
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start looking."""
        self._task = asyncio.create_task(self._run(), name="roster")

    async def stop(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        failing = ""
        while True:
            try:
                await self._look()
                failing = ""
            except Exception as error:  # the database is away: the last good roster holds
                if failing != type(error).__name__:
                    failing = type(error).__name__
                    _log.warning("roster.unreadable", reason=failing)
            await asyncio.sleep(LOOK_EVERY_S)
