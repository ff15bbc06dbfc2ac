"""What `baton playbook simulate` shows and writes: tables for people, JSON and CSV for tools."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.table import Table

from services.stage_service.playbook import Playbook
from services.stage_service.simulation import Side, Tally

SHOWN_MAX = 10
CSV_COLUMNS = (
    "lead_id", "journey", "today", "candidate", "at", "event_type", "event_source", "event_id",
    "rule_today", "rule", "why",
)  # fmt: skip


def show(tally: Tally, playbook: Playbook, console: Console) -> None:
    """Print both sides beside each other, and the first journeys that differ."""
    console.print(
        f"{tally.events:,} events of {tally.leads:,} leads folded under the candidate; nothing was written. "
        f"{tally.differing:,} of {tally.journeys:,} journeys would differ."
    )
    console.print(_stages(tally, playbook))
    console.print(_roles(tally))
    for one in tally.differences[:SHOWN_MAX]:
        console.print(
            f"{one.lead_id} {one.journey}: {_way(one.today)}  ->  {_way(one.candidate)}\n"
            f"  at {one.at:%Y-%m-%d %H:%M} {one.event_type}: {one.why}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    if tally.differing > SHOWN_MAX:
        console.print(f"... and {tally.differing - SHOWN_MAX:,} more: --csv FILE has them")


def _way(stages: list[str]) -> str:
    return " > ".join(stages) or "no move"


def _stages(tally: Tally, playbook: Playbook) -> Table:
    table = Table(title="Stages: today / candidate", show_edge=False)
    table.add_column("stage")
    for name in ("reached", "rate", "entered", "in it now"):
        table.add_column(name, justify="right")
    path = playbook.path
    for key in [*playbook.stages, *(k for k in tally.today.stages if k not in playbook.stages)]:
        was, would = tally.today.stage(key), tally.candidate.stage(key)
        rates = ("", "")
        if key in path and key != path[-1]:
            onward = path[path.index(key) + 1]
            rates = (_rate(tally.today, key, onward), _rate(tally.candidate, key, onward))
        table.add_row(
            key, _pair(was.reached, would.reached), " / ".join(rates) if any(rates) else "",
            _pair(was.entered, would.entered), _pair(was.current, would.current),
        )  # fmt: skip
    return table


def _rate(side: Side, key: str, onward: str) -> str:
    reached = side.stage(key).reached
    return f"{side.stage(onward).reached / reached:.0%}" if reached else "-"


def _pair(was: int, would: int) -> str:
    return f"{was:,} / {would:,}" if was == would else f"{was:,} / [bold]{would:,}[/]"


def _roles(tally: Tally) -> Table:
    table = Table(title="Roles: today / candidate", show_edge=False)
    table.add_column("role")
    for name in ("alerts", "on the busiest day", "handoffs", "deadlines missed", "waiting"):
        table.add_column(name, justify="right")
    sides = (tally.today, tally.candidate)
    roles = sorted({r for s in sides for r in (*s.alerts, *s.handoffs)})
    for role in roles:
        days = [list(s.alerts.get(role, {}).values()) or [0] for s in sides]
        table.add_row(
            role,
            _pair(sum(days[0]), sum(days[1])),
            _pair(max(days[0]), max(days[1])),
            *(
                _pair(was.get(role, 0), would.get(role, 0))
                for was, would in (
                    (tally.today.handoffs, tally.candidate.handoffs),
                    (tally.today.missed, tally.candidate.missed),
                    (tally.today.waiting, tally.candidate.waiting),
                )
            ),
        )
    return table


def as_json(tally: Tally, playbook: Playbook) -> dict[str, Any]:
    """Give the result as plain data; ``differences`` has the first thousand by lead."""
    plain: Mapping[str, Any] = msgspec.to_builtins(tally)
    return {"playbook": playbook.name, "digest": playbook.digest, **plain}


def write_csv(tally: Tally, file: TextIO) -> None:
    """Write the journeys that differ, one a line, the stages joined by ``>``."""
    writer = csv.writer(file)
    writer.writerow(CSV_COLUMNS)
    for one in tally.differences:
        row = msgspec.to_builtins(one)
        row["today"], row["candidate"] = ">".join(one.today), ">".join(one.candidate)
        writer.writerow([_harmless(row[name]) for name in CSV_COLUMNS])


def _harmless(value: object) -> object:
    """Keep a spreadsheet from reading a value as a formula (OWASP: CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
