"""How much memory this process and its workers hold together, at most, while something runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

_STEP_S = 0.1


class Peak:
    """The largest sum of resident memory seen, MB."""

    def __init__(self) -> None:
        self.mb = 0.0


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[Peak]:
    """Watch the resident memory of this process and its children until the block ends."""
    peak = Peak()

    async def watch() -> None:
        while True:
            peak.mb = max(peak.mb, await asyncio.to_thread(_resident_mb))
            await asyncio.sleep(_STEP_S)

    watching = asyncio.create_task(watch())
    try:
        yield peak
    finally:
        watching.cancel()


def _resident_mb() -> float:
    pages = 0
    own = str(os.getpid())
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # The database's processes are children too, of `pg_ctl`'s starter, not of ours.
        if stat.parent.name == own or fields[1] == own:
            pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
