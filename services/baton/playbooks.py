"""`baton playbook show`: draws a playbook's stages for the terminal, Mermaid or as SVG."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from services.stage_service.playbook import BAND_TITLES, Playbook, Rule, parse_playbook
from services.stage_service.playbook_drawing import (
    deadline_of,
    demands_told,
    mermaid,
    plans_of,
    steps_told,
    svg,
)

FORMATS = ("terminal", "mermaid", "svg")


def draw(file: Path, format: str) -> None:
    """Print the playbook in `file`. Raises SourceError, OSError, or ValueError for another format."""
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: {', '.join(FORMATS)}")
    playbook = parse_playbook(file.read_text(encoding="utf-8"), str(file))
    if format == "mermaid":
        print(mermaid(playbook))
    elif format == "svg":
        print(svg(playbook))
    else:
        _terminal(playbook)


def _terminal(playbook: Playbook) -> None:
    console = Console(highlight=False)
    tree = Tree(f"[bold]{playbook.title}[/]  {' > '.join(playbook.path)}")
    for stage in playbook.stages.values():
        roles = ", ".join(playbook.roles[r].title for r in stage.responsible)
        branch = tree.add(
            f"[bold]{stage.title}[/] ({stage.key})  {BAND_TITLES[stage.band]}  {roles}"
        )
        branch.add(f"goal: {stage.goal}")
        demands = demands_told(stage)
        if demands:
            branch.add(f"[yellow]◆ demands {', '.join(demands)}[/]")
        if stage.alerts:
            branch.add(f"alerts: {', '.join(playbook.roles[r].title for r in stage.alerts)}")
        for plan in plans_of(playbook, stage):
            branch.add(
                f"[yellow]{plan.title}[/]: {'; '.join((deadline_of(plan), *steps_told(plan)))}"
            )
        for rule in (r for r in playbook.rules if r.to == stage.key):
            mark = " [yellow]◆[/]" if demands else ""
            branch.add(f"[dim]<-[/]{mark} {_from(playbook, rule)}  [cyan]{_trigger(rule)}[/]")
    console.print(tree)
    table = Table(title="Score", show_edge=False)
    for column in ("part", "points", "when"):
        table.add_column(column)
    for rule in playbook.fit:
        table.add_row("fit", str(rule.points), rule.because)
    for signal in playbook.signals_by_key.values():
        table.add_row(
            "intent", f"{signal.points:g}",
            f"{signal.because}: halves in {signal.half_life_days:g} days, at most {signal.cap:g}",
        )  # fmt: skip
    console.print(table)


def _from(playbook: Playbook, rule: Rule) -> str:
    return ", ".join(s for s in playbook.stages if s in rule.from_stages)


def _trigger(rule: Rule) -> str:
    parts = [", ".join(sorted(rule.on))] if rule.on else []
    if rule.when:
        parts.append(f"when {rule.when.text}")
    return " ".join(parts)
