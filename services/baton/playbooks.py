"""`baton playbook show`: draws a playbook's stages for the terminal, Mermaid or as SVG."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from services.stage_service.offers import WAITING_KINDS
from services.stage_service.playbook import (
    BAND_TITLES,
    ClockPlan,
    Playbook,
    Rule,
    Stage,
    parse_playbook,
)

FORMATS = ("terminal", "mermaid", "svg")
_BOX_W, _BOX_H, _GAP_X, _TOP, _EXIT_Y = 214, 80, 40, 60, 310
_COLORS = {"tofu": "#2563eb", "mofu": "#7c3aed", "bofu": "#c2410c", "post-sale": "#15803d",
           "exit": "#6b7280"}  # fmt: skip


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
        if stage.gate.require or stage.gate.reason:
            asked = [*stage.gate.require, *(["reason"] if stage.gate.reason else [])]
            branch.add(f"gate: {', '.join(asked)}")
        if stage.alerts:
            branch.add(f"alerts: {', '.join(playbook.roles[r].title for r in stage.alerts)}")
        for plan in plans_of(playbook, stage):
            branch.add(
                f"[yellow]{plan.title}[/]: {'; '.join((deadline_of(plan), *steps_told(plan)))}"
            )
        for rule in (r for r in playbook.rules if r.to == stage.key):
            branch.add(f"[dim]<-[/] {_from(playbook, rule)}  [cyan]{_trigger(rule)}[/]")
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


def plans_of(playbook: Playbook, stage: Stage) -> list[ClockPlan]:
    """Give the deadlines that begin as `stage` is entered: the handoff's, if one leads there, and clocks."""
    role = stage.responsible[0]
    handoff = playbook.handoffs.get(role)
    givers = {playbook.stages[s].responsible[0] for r in playbook.rules if r.to == stage.key
              for s in r.from_stages}  # fmt: skip
    offered = handoff is not None and stage.kind in WAITING_KINDS and givers - {role}
    plans = [handoff.clock] if handoff is not None and offered else []
    return [*plans, *(plan for plan in playbook.clocks if stage.key in plan.stages)]


def deadline_of(plan: ClockPlan) -> str:
    """Say how long a clock runs, and since when."""
    since = {"activity": " without activity", "entered": " in the stage"}.get(plan.since, "")
    return f"within {_length(plan.within_s)}{'' if plan.wall else ' of working time'}{since}"


def steps_told(plan: ClockPlan) -> list[str]:
    """Say what a clock does before and after its deadline, a line each."""
    steps = [f"reminder {_length(before)} before" for before in plan.remind_s]
    for rung in plan.escalate:
        when = f"{_length(rung.after_s)} after" if rung.after_s else "at the deadline"
        steps.append(f"{when}: {rung.to.replace('_', ' ')}")
    return steps


def _length(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def mermaid(playbook: Playbook) -> str:
    """Draw the stage graph as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {playbook.first_stage}"]
    lines += [f'    state "{s.title}" as {s.key}' for s in playbook.stages.values()]
    for (from_, to), keys in _edges(playbook):
        lines.append(f"    {from_} --> {to}: {', '.join(keys)}")
    for stage in playbook.stages.values():
        plans = plans_of(playbook, stage)
        if plans:
            lines.append(f"    note right of {stage.key}")
            for plan in plans:
                told = "; ".join((deadline_of(plan), *steps_told(plan)))
                # A colon or a semicolon may end a statement of Mermaid's.
                lines.append(f"      {plan.title} - {told}".replace(":", " -").replace(";", ","))
            lines.append("    end note")
    lines += [f"    {s.key} --> [*]" for s in playbook.stages.values() if s.kind in ("won", "lost")]
    return "\n".join(lines)


def _edges(playbook: Playbook) -> Iterable[tuple[tuple[str, str], list[str]]]:
    edges: dict[tuple[str, str], list[str]] = {}
    for rule in playbook.rules:
        for stage in playbook.stages:
            if stage in rule.from_stages:
                edges.setdefault((stage, rule.to), []).append(rule.key)
    return edges.items()


def svg(playbook: Playbook) -> str:
    """Draw the path, its jumps and the exits as an SVG document."""
    path = [playbook.stages[key] for key in playbook.path]
    exits = [s for s in playbook.stages.values() if s.path_index is None]
    width = len(path) * (_BOX_W + _GAP_X) + _GAP_X
    at = {s.key: (_GAP_X + i * (_BOX_W + _GAP_X), _TOP + 60) for i, s in enumerate(path)}
    step = width / (len(exits) + 1)
    at |= {s.key: (round(step * (i + 1) - _BOX_W / 2), _EXIT_Y) for i, s in enumerate(exits)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_EXIT_Y + 100}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(playbook.title)}">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#6b7280"/></marker></defs>',
        f'<text x="{_GAP_X}" y="34" font-size="20" font-weight="600">{escape(playbook.title)}</text>',
    ]
    for (from_, to), keys in _edges(playbook):
        parts.append(_arrow(playbook, at, from_, to, ", ".join(keys)))
    parts += [_box(playbook, stage, *at[stage.key]) for stage in playbook.stages.values()]
    return "\n".join([*parts, "</svg>"])


def _arrow(
    playbook: Playbook, at: dict[str, tuple[int, int]], from_: str, to: str, label: str
) -> str:
    (x1, y1), (x2, y2) = at[from_], at[to]
    first, second = playbook.stages[from_].path_index, playbook.stages[to].path_index
    if first is not None and second is not None:
        if second == first + 1:
            line = f"M{x1 + _BOX_W} {y1 + _BOX_H // 2}L{x2} {y2 + _BOX_H // 2}"
        else:  # a jump: an arc above the path
            height = y1 - 10 * abs(second - first) - 8
            line = f"M{x1 + _BOX_W * 0.7} {y1}C{x1 + _BOX_W} {height} {x2} {height} {x2 + 30} {y2}"
    elif first is not None:
        line = f"M{x1 + _BOX_W // 2} {y1 + _BOX_H}L{x2 + _BOX_W // 2} {y2}"
    elif second is not None:
        line = f"M{x1 + _BOX_W * 0.3} {y1}L{x2 + _BOX_W * 0.3} {y2 + _BOX_H}"
    else:  # from exit to exit: an arc below
        low = y1 + _BOX_H + 40
        line = f"M{x1 + _BOX_W // 2} {y1 + _BOX_H}C{x1 + _BOX_W} {low} {x2} {low} {x2 + 30} {y2 + _BOX_H}"
    return (
        f'<path d="{line}" fill="none" stroke="#6b7280" stroke-opacity=".45" marker-end="url(#a)">'
        f"<title>{escape(from_)} to {escape(to)}: {escape(label)}</title></path>"
    )


def _box(playbook: Playbook, stage: Stage, x: int, y: int) -> str:
    color = _COLORS[stage.band]
    plans = plans_of(playbook, stage)
    waits = ", ".join(
        f"{'answer' if p.since == 'offered' else p.title} {_length(p.within_s)}" for p in plans
    )
    waits = waits if len(waits) < 36 else waits[:34] + "…"
    told = [f"{p.title}: {'; '.join((deadline_of(p), *steps_told(p)))}" for p in plans]
    return (
        f'<g><rect x="{x}" y="{y}" width="{_BOX_W}" height="{_BOX_H}" rx="8" fill="#fff" '
        f'stroke="{color}" stroke-width="2"/>'
        f'<text x="{x + 12}" y="{y + 27}" font-size="13" font-weight="600">'
        f"{escape(stage.title if len(stage.title) < 32 else stage.title[:30] + '…')}</text>"
        f'<text x="{x + 12}" y="{y + 48}" font-size="12" fill="{color}">{escape(stage.key)} · '
        f"{escape(', '.join(stage.responsible))}</text>"
        f'<text x="{x + 12}" y="{y + 68}" font-size="11" fill="#6b7280">{escape(waits)}</text>'
        f"<title>{escape(' '.join((stage.focus, stage.goal, *told)))}</title></g>"
    )
