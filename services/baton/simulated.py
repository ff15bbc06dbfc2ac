"""What `baton playbook simulate` shows: tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from services.contracts.simulations import Simulated

SHOWN_MAX = 10


def show(tally: Simulated, console: Console) -> None:
    """Print both sides beside each other, and the first journeys that differ."""
    console.print(
        f"{tally.events:,} events of {tally.leads:,} leads folded under the candidate; nothing was written. "
        f"{tally.differing:,} of {tally.journeys:,} journeys would differ."
    )
    console.print(_stages(tally))
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


def _stages(tally: Simulated) -> Table:
    table = Table(title="Stages: today / candidate", show_edge=False)
    table.add_column("stage")
    for name in ("reached", "rate", "entered", "in it now"):
        table.add_column(name, justify="right")
    for stage in tally.stages:
        was, would = tally.today.stages[stage.stage], tally.candidate.stages[stage.stage]
        has_rate = was.rate is not None or would.rate is not None
        table.add_row(
            stage.stage, _pair(was.reached, would.reached),
            f"{_rate(was.rate)} / {_rate(would.rate)}" if has_rate else "",
            _pair(was.entered, would.entered), _pair(was.current, would.current),
        )  # fmt: skip
    return table


def _rate(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _pair(was: int, would: int) -> str:
    return f"{was:,} / {would:,}" if was == would else f"{was:,} / [bold]{would:,}[/]"


def _roles(tally: Simulated) -> Table:
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
