"""From the tally of a simulation to the document that everybody gets, and its journeys as CSV. Pure."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from datetime import datetime
from typing import TextIO

import msgspec

from services.contracts.simulations import (
    Difference,
    Simulated,
    SimulatedSide,
    SimulatedStage,
    StageNumbers,
)
from services.stage_service.playbook import Playbook
from services.stage_service.simulation import Side, Tally

CSV_COLUMNS = (
    "lead_id", "journey", "today", "candidate", "at", "event_type", "event_source", "event_id",
    "rule_today", "rule", "why",
)  # fmt: skip
_RATE_DIGITS = 6


def report(
    tally: Tally, candidate: Playbook, until: datetime, since: datetime | None = None
) -> Simulated:
    """Give the document of `tally`, folded under `candidate` until `until`, counted since `since`."""
    # A stage that only the playbooks before have is told too, by its key.
    left = sorted(tally.today.stages.keys() - candidate.stages.keys())
    stages = [SimulatedStage(k, s.title, k in candidate.path) for k, s in candidate.stages.items()]
    stages += [SimulatedStage(key, key, on_path=False) for key in left]
    keys = [s.stage for s in stages]
    return Simulated(
        candidate.name, candidate.digest, since, until, tally.leads, tally.events, tally.journeys,
        tally.differing, stages, _side(tally.today, keys, candidate.path),
        _side(tally.candidate, keys, candidate.path), tally.differences,
    )  # fmt: skip


def _side(side: Side, keys: Iterable[str], path: tuple[str, ...]) -> SimulatedSide:
    numbers: dict[str, StageNumbers] = {}
    for key in keys:
        one = side.stage(key)
        rate = None
        if key in path and key != path[-1] and one.reached:
            onward = side.stage(path[path.index(key) + 1])
            rate = round(onward.reached / one.reached, _RATE_DIGITS)
        numbers[key] = StageNumbers(one.reached, one.entered, one.current, rate)
    return SimulatedSide(
        numbers, side.alerts, side.due, side.overdue, side.handoffs, side.missed, side.waiting
    )


def write_csv(differences: Iterable[Difference], file: TextIO) -> None:
    """Write journeys that differ, one a line, the stages joined by ``>``."""
    writer = csv.writer(file)
    writer.writerow(CSV_COLUMNS)
    for one in differences:
        row = msgspec.to_builtins(one)
        row["today"], row["candidate"] = ">".join(one.today), ">".join(one.candidate)
        writer.writerow([_harmless(row[name]) for name in CSV_COLUMNS])


def _harmless(value: object) -> object:
    """Keep a spreadsheet from reading a value as a formula (OWASP: CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
