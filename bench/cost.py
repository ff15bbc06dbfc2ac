"""What an event costs in CPU time: of one process, and of PostgreSQL with all its backends (Linux).

A ratio of speeds depends on who else uses the machine; CPU time hardly does, and says where it went.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Cpu(NamedTuple):
    """CPU seconds (user and system) that a service and PostgreSQL have used so far."""

    service_s: float
    postgres_s: float

    def since(self, before: Cpu) -> Cpu:
        """Give what was used since `before`."""
        return Cpu(self.service_s - before.service_s, self.postgres_s - before.postgres_s)


def used(service_pid: int | None, postgres_pid: int | None) -> Cpu:
    """Give what the process `service_pid`, and the server `postgres_pid` with its backends, have used.

    0 for what does not run, or where there is no ``/proc``.
    """
    return Cpu(_used(service_pid, alone=True), _used(postgres_pid, alone=False))


def total(spent: Iterable[Cpu]) -> Cpu:
    """Give the sum of what was `spent` in several rounds."""
    each = list(spent)
    return Cpu(sum(c.service_s for c in each), sum(c.postgres_s for c in each))


def note(spent: Cpu, events: int) -> str:
    """Give the costs of `events` as a line for people: microseconds an event."""
    service, postgres = (1e6 * s / max(1, events) for s in spent)
    return f"CPU us an event: service {service:.0f}, PostgreSQL {postgres:.0f}."


def _used(pid: int | None, *, alone: bool) -> float:
    if pid is None or not (_PROC / str(pid) / "stat").exists():
        return 0.0
    ticks = 0
    for each in [pid] if alone else [pid, *_children(pid)]:
        fields = _stat(each)
        # utime and stime; of the server also those of backends that have ended (cutime, cstime).
        ticks += sum(map(int, fields[11 : 13 if alone or each != pid else 15]))
    return ticks / _TICKS_A_SECOND


def _children(pid: int) -> list[int]:
    ids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    return [id for id in ids if (fields := _stat(id)) and fields[1] == str(pid)]


def _stat(pid: int) -> list[str]:
    """Give the fields of ``/proc/PID/stat`` from the state on (proc_pid_stat(5)); none when it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
