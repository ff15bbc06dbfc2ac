"""The simulations that this process runs for others: starting one, following it, ending it.

The work is done by other processes (`process`); here are only their messages and the records. What
is running when the service stops is ended at once, and recorded as failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import asyncpg
import msgspec
import structlog
import uuid_utils.compat

from services.contracts.database import DATABASE_AWAY
from services.contracts.team import Team
from services.contracts.yaml_source import SourceError
from services.stage_service.errors import OverloadedError, UnavailableError
from services.stage_service.simulations import records
from services.stage_service.simulations.pool import hours_of
from services.stage_service.simulations.process import (
    MESSAGE_BYTES_MAX,
    Begun,
    Done,
    Failed,
    Folded,
    Message,
    Refused,
    Wish,
)
from services.stage_service.simulations.records import Progress, Run

BEAT_S = 1.0
START_S = 30.0
"""How long the processes may take to begin, on a busy machine."""
ENDED = "its processes ended before they were done; the service's log may say why"
STOPPED = "the service that ran it was stopped"
_log = structlog.get_logger("baton.simulations")
# A line too long, a document cut off, no message.
_UNREADABLE = (ValueError, asyncio.IncompleteReadError, msgspec.MsgspecError)
_decode = msgspec.json.Decoder(Message).decode


@dataclass
class _Child:
    """The processes of one simulation, by the one that leads them."""

    process: Process
    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    progress: Progress = field(default_factory=lambda: Progress(0, None))

    async def message(self) -> tuple[Message, bytes]:
        """Give the next message, with the document that follows it. Raises what `_UNREADABLE` has."""
        line = await self.stdout.readline()
        if not line:
            return Failed(ENDED), b""
        told = _decode(line)
        size = told.size if isinstance(told, Done) else 0
        return told, await self.stdout.readexactly(size)

    async def last(self) -> tuple[Message, bytes]:
        """Give the last message; `progress` follows those before it."""
        while True:
            told, document = await self.message()
            if not isinstance(told, Folded):
                return told, document
            self.progress = Progress(told.done, told.total)

    @property
    def is_headless(self) -> bool:
        """Whether the process that leads is gone. The others wait for it for ever, with its stdout open."""
        return self.process.returncode is not None

    def kill(self) -> None:
        """Kill what is left of it, all of the group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def end(self) -> None:
        """Kill what is left of it, and wait for that."""
        self.kill()
        self.stdin.close()
        await self.process.wait()


class Simulations:
    """The simulations of one process of the service; one at a time. Wired in ``app``."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        database_url: str,
        team: Callable[[], Team],
        now: Callable[[], datetime],
        stopping: asyncio.Event,
        *,
        workers_max: int,
        memory_mb: int,
    ) -> None:
        self.workers_max = workers_max
        self._pool = pool
        self._database_url = database_url
        self._team = team
        self._now = now
        self._memory_bytes = memory_mb * 2**20
        self._starting = asyncio.Lock()
        self._stopping = stopping
        self._child: _Child | None = None
        self._id = ""
        self._task: asyncio.Task[None] | None = None

    async def start(
        self, source: str, since: datetime | None, workers: int, by: str, id: str | None = None
    ) -> Run:
        """Begin to simulate the playbook `source` with `workers` processes, for `by`.

        With `id` it gets that id; when there is one of that id it is given as it is.

        Raises SourceError when it is no playbook, ConflictError when a simulation runs already, here or
        elsewhere, OverloadedError when the service stops, UnavailableError when no process can be started.
        """
        async with self._starting:
            if self._stopping.is_set():
                raise OverloadedError("the service is stopping", remedy="Ask again.")
            if id is not None and (found := await records.look(self._pool, id)) is not None:
                return found
            if (other := await records.running(self._pool)) is not None:
                raise records.busy(other)
            if self._task is not None:  # ended in the table, and about to end here
                await asyncio.wait({self._task})
            child = await self._begun(Wish(
                self._database_url, source, self._now(), since, workers, hours_of(self._team()),
                self._memory_bytes,
            ))  # fmt: skip
            try:
                told = await self._first(child)
                run = Run(
                    id or str(uuid_utils.compat.uuid7()), told.playbook, told.digest, "running", None,
                    since, workers, by, self._now(), None, child.progress,
                )  # fmt: skip
                await records.begin(self._pool, run, source)
            except BaseException:
                await child.end()
                raise
            self._id, self._child = run.id, child
            self._task = asyncio.create_task(self._follow(run.id, child), name="simulation")
            _log.info("simulation.started", id=run.id, playbook=run.playbook, workers=workers)
            return run

    async def _first(self, child: _Child) -> Begun:
        """Wait until the candidate is read. Raises SourceError, UnavailableError."""
        try:
            told, _ = await asyncio.wait_for(child.message(), START_S)
        except (TimeoutError, *_UNREADABLE) as error:
            _log.warning("simulation.unreadable", reason=type(error).__name__)
            told = None
        if isinstance(told, Refused):
            raise SourceError(told.problems)
        if not isinstance(told, Begun):
            raise UnavailableError("the simulation did not begin", remedy="Ask again.")
        return told

    async def cancel(self, id: str) -> bool:
        """End the simulation `id`, wherever it runs, here at once; False: it had ended."""
        if not await records.end(self._pool, id, "cancelled"):
            return False
        child, task = self._child, self._task
        if self._id == id and child is not None and task is not None:
            await child.end()
            await asyncio.wait({task})
        return True

    async def stop(self) -> None:
        """Wait until what runs here has ended: it does when `stopping` is set."""
        async with self._starting:
            if self._task is not None:
                await asyncio.wait({self._task})

    async def _begun(self, wish: Wish) -> _Child:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.stage_service.simulations.process",
                stdin=PIPE, stdout=PIPE, start_new_session=True, limit=MESSAGE_BYTES_MAX,
            )  # fmt: skip
        except OSError as error:
            _log.warning("simulation.no_process", reason=type(error).__name__)
            raise UnavailableError("no process can be started", remedy="Ask again.") from None
        child = _Child(
            process,
            cast("asyncio.StreamWriter", process.stdin),
            cast("asyncio.StreamReader", process.stdout),
        )
        # Left open: its end is how the processes know that this one is gone.
        child.stdin.write(msgspec.json.encode(wish) + b"\n")
        with contextlib.suppress(ConnectionError):
            await child.stdin.drain()
        return child

    async def _follow(self, id: str, child: _Child) -> None:
        reading = asyncio.create_task(child.last())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while not (reading.done() or stopping.done()):
                await asyncio.wait(
                    (reading, stopping), timeout=BEAT_S, return_when=asyncio.FIRST_COMPLETED
                )
                if child.is_headless:
                    child.kill()  # so stdout ends, after what it told
                with contextlib.suppress(*DATABASE_AWAY):
                    if not await records.beat(self._pool, id, child.progress):
                        _log.info("simulation.cancelled", id=id)
                        return
            last = None
            if reading.done() and (error := reading.exception()) is not None:
                _log.warning("simulation.unreadable", id=id, reason=type(error).__name__)
                last = Failed(ENDED), b""
            elif reading.done():
                last = reading.result()
            await self._ended(id, child, last)
        finally:
            stopping.cancel()
            await child.end()
            reading.cancel()
            await asyncio.gather(reading, stopping, return_exceptions=True)
            self._task = self._child = None

    async def _ended(self, id: str, child: _Child, last: tuple[Message, bytes] | None) -> None:
        state, reason, document = "failed", STOPPED, None
        if last is not None:
            told, text = last
            reason = told.reason if isinstance(told, Failed) else None
            if isinstance(told, Done):
                state, document = "done", text
        try:
            if not await records.end(
                self._pool, id, state, reason=reason, result=document, progress=child.progress
            ):
                state, reason = "cancelled", None
        except DATABASE_AWAY as error:
            _log.warning("simulation.not_recorded", id=id, reason=type(error).__name__)
        _log.info("simulation.ended", id=id, state=state, reason=reason)
