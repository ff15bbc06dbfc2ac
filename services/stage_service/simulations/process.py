"""A simulation in processes of its own, beside a live service: low in priority, bounded in memory.

``python -m services.stage_service.simulations.process`` reads one `Wish` from stdin and tells on stdout
what comes of it, one message a line; `Done` is followed by the document. It leads a process group of
its own, and all of it ends when the asker's end of stdin closes, however that came about.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime

import asyncpg
import msgspec

from services.contracts.simulations import encoded
from services.contracts.team import Person
from services.contracts.yaml_source import Problem, SourceError
from services.stage_service.playbook import parse_playbook
from services.stage_service.simulations.pool import simulate
from services.stage_service.simulations.report import report

CANDIDATE = "candidate.yaml"
"""What the problems of a text without a file name as their file."""
NICENESS = 10
PROBLEMS_MAX = 50
"""How many mistakes of a candidate are told."""
TEXT_CHARACTERS_MAX = 1000
MESSAGE_BYTES_MAX = 2**20
"""Longer than any message: above all, all those mistakes."""


class Wish(msgspec.Struct, frozen=True):
    """What is asked for; it goes by stdin, since everybody can read a command line."""

    database_url: str
    source: str
    now: datetime
    since: datetime | None
    workers: int
    hours: dict[str, Person]
    memory_bytes: int
    """What each process may take for its data."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The candidate is no playbook: its first mistakes; nothing more comes."""

    problems: list[Problem]


class Begun(msgspec.Struct, frozen=True, tag=True):
    """The candidate is one; the folding begins."""

    playbook: str
    digest: str


class Folded(msgspec.Struct, frozen=True, tag=True):
    """How many leads are done."""

    done: int
    total: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """It is done; the document of `size` bytes follows."""

    size: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It ended without a result; nothing more comes."""

    reason: str


Message = Refused | Begun | Folded | Done | Failed


def _tell(message: Message, document: bytes = b"") -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n" + document)
    sys.stdout.buffer.flush()


def _shortened(problem: Problem) -> Problem:
    """Give `problem` with texts of bounded length: they quote the candidate."""
    most = TEXT_CHARACTERS_MAX
    return msgspec.structs.replace(
        problem, message=problem.message[:most], remedy=problem.remedy[:most]
    )


def _end_with_asker() -> None:
    """End the whole group once stdin ends. Past Python's buffer, whose lock would be held at the exit."""
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


def _run(wish: Wish) -> None:
    try:
        candidate = parse_playbook(wish.source, CANDIDATE)
    except SourceError as error:
        return _tell(Refused([_shortened(p) for p in error.problems[:PROBLEMS_MAX]]))
    _tell(Begun(candidate.name, candidate.digest))
    try:
        tally = asyncio.run(simulate(
            wish.database_url, candidate, CANDIDATE, wish.hours, wish.now, since=wish.since,
            workers=wish.workers, progress=lambda done, total: _tell(Folded(done, total)),
        ))  # fmt: skip
        document = encoded(report(tally, candidate, wish.now, wish.since))
    except (MemoryError, BrokenProcessPool):
        # A process without memory may have no chance to say so.
        most = wish.memory_bytes // 2**20
        return _tell(Failed(f"a process of it ended, most likely for want of memory ({most} MB)"))
    except asyncpg.ConnectionDoesNotExistError:
        # The client also breaks off a connection whose answer it has no memory for.
        most = wish.memory_bytes // 2**20
        return _tell(Failed(
            f"its connection to the database ended: PostgreSQL went away, or {most} MB were too little"
        ))  # fmt: skip
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # The class alone: what the database says may name hosts and values.
        return _tell(Failed(f"the database could not be read ({type(error).__name__})"))
    return _tell(Done(len(document)), document)


def main() -> None:
    """Serve one wish."""
    wish = msgspec.json.decode(sys.stdin.buffer.readline(), type=Wish)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_DATA, (wish.memory_bytes, wish.memory_bytes))
    threading.Thread(target=_end_with_asker, daemon=True).start()
    _run(wish)
    sys.stdout.close()
    # Nothing is left to do, and a thread still waits for stdin.
    os._exit(0)


if __name__ == "__main__":
    main()
