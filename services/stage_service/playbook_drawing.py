"""A playbook drawn: stages, rules between them, gates and deadlines in words; as Mermaid or SVG. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from services.stage_service.offers import WAITING_KINDS
from services.stage_service.playbook import ClockPlan, Playbook, Stage

_BOX_W, _BOX_H, _GAP_X, _TOP, _EXIT_Y = 214, 98, 40, 60, 328
_WIDE = 34
"""So many characters fit into a line of a box."""
_COLORS = {"tofu": "#2563eb", "mofu": "#7c3aed", "bofu": "#c2410c", "post-sale": "#15803d",
           "exit": "#6b7280"}  # fmt: skip


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
    return f"within {length_told(plan.within_s)}{'' if plan.wall else ' of working time'}{since}"


def steps_told(plan: ClockPlan) -> list[str]:
    """Say what a clock does before and after its deadline, a line each."""
    steps = [f"reminder {length_told(before)} before" for before in plan.remind_s]
    for rung in plan.escalate:
        when = f"{length_told(rung.after_s)} after" if rung.after_s else "at the deadline"
        steps.append(f"{when}: {rung.to.replace('_', ' ')}")
    return steps


def demands_told(stage: Stage) -> list[str]:
    """Say what a stage demands on entry: ``the deal's amount``, ``a reason``; nothing without a gate."""
    told = [attribute_told(name) for name in stage.gate.require]
    return [*told, "a reason"] if stage.gate.reason else told


def attribute_told(name: str) -> str:
    """Name an attribute as people do: ``lead.budget`` is the lead's budget."""
    room, _, attribute = name.partition(".")
    return f"the {room}'s {attribute.replace('_', ' ')}"


def moves_told(playbook: Playbook) -> list[tuple[Stage, Stage, list[str]]]:
    """Give each move that rules make, as (from, to, the rules' keys), in the order of the drawing."""
    of = playbook.stages
    return [(of[from_], of[to], keys) for (from_, to), keys in _edges(playbook)]


def length_told(seconds: float) -> str:
    """Say a length of time in its largest whole unit: ``4 h``."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def mermaid(playbook: Playbook) -> str:
    """Draw the stage graph as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {playbook.first_stage}"]
    lines += [f'    state "{_in_a_line(s.title)}" as {s.key}' for s in playbook.stages.values()]
    for (from_, to), keys in _edges(playbook):
        mark = " ◆" if demands_told(playbook.stages[to]) else ""
        lines.append(f"    {from_} --> {to}: {', '.join(keys)}{mark}")
    for stage in playbook.stages.values():
        plans, demands = plans_of(playbook, stage), demands_told(stage)
        if plans or demands:
            lines.append(f"    note right of {stage.key}")
            if demands:
                lines.append(f"      ◆ demands {', '.join(demands)}")
            for plan in plans:
                told = "; ".join((deadline_of(plan), *steps_told(plan)))
                # A colon or a semicolon may end a statement of Mermaid's.
                lines.append(
                    f"      {_in_a_line(plan.title)} - {told}".replace(":", " -").replace(";", ",")
                )
            lines.append("    end note")
    lines += [f"    {s.key} --> [*]" for s in playbook.stages.values() if s.kind in ("won", "lost")]
    return "\n".join(lines)


def _in_a_line(text: str) -> str:
    """Give `text` as Mermaid takes a name: in one line, and without the quotes that would end it."""
    return " ".join(text.split()).replace('"', "'")


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
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_EXIT_Y + 132}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(_in_short(playbook))}">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#6b7280"/></marker>'
        '<marker id="g" viewBox="0 0 16 8" refX="16" refY="4" markerWidth="16" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto"><path d="M8 0L16 4L8 8z" fill="#6b7280"/>'
        '<path d="M0 4L4 0L8 4L4 8z" fill="#b45309"/></marker></defs>',
        f'<text x="{_GAP_X}" y="34" font-size="20" font-weight="600">{escape(playbook.title)}</text>',
    ]
    for (from_, to), keys in _edges(playbook):
        parts.append(_arrow(playbook, at, from_, to, ", ".join(keys)))
    parts += [_box(playbook, stage, *at[stage.key]) for stage in playbook.stages.values()]
    if any(demands_told(stage) for stage in playbook.stages.values()):
        parts.append(
            f'<text x="{width - _GAP_X}" y="34" font-size="12" text-anchor="end" fill="#92400e">'
            "◆ demands something on entry</text>"
        )
    return "\n".join([*parts, "</svg>"])


def _in_short(playbook: Playbook) -> str:
    """Give the text for who does not see the drawing."""
    way = ", ".join(playbook.stages[key].title for key in playbook.path)
    gated = [
        f"{s.title} demands {', '.join(demands)}"
        for s in playbook.stages.values()
        if (demands := demands_told(s))
    ]
    return ". ".join([playbook.title, f"The path: {way}", *gated])


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
    demands = demands_told(playbook.stages[to])
    also = f"; demands {', '.join(demands)}" if demands else ""
    told = f"{playbook.stages[from_].title} to {playbook.stages[to].title}: {label}{also}"
    return (
        f'<path d="{line}" fill="none" stroke="#6b7280" stroke-opacity=".45" '
        f'marker-end="url(#{"g" if demands else "a"})"><title>{escape(told)}</title></path>'
    )


def _box(playbook: Playbook, stage: Stage, x: int, y: int) -> str:
    color = _COLORS[stage.band]
    plans = plans_of(playbook, stage)
    waits = ", ".join(
        f"{'answer' if p.since == 'offered' else p.title} {length_told(p.within_s)}" for p in plans
    )
    title, waits = _cut(stage.title, 31), _cut(waits, _WIDE)
    role = _cut(", ".join(playbook.roles[r].title for r in stage.responsible), _WIDE - 3)
    squeezed = (
        f' textLength="{_BOX_W - 24}" lengthAdjust="spacingAndGlyphs"' if len(title) > 25 else ""
    )
    demands = demands_told(stage)
    gate = _cut(f"◆ {', '.join(demands)}", _WIDE) if demands else ""
    told = [f"{p.title}: {'; '.join((deadline_of(p), *steps_told(p)))}." for p in plans]
    if demands:
        told.insert(0, f"Demands {', '.join(demands)}.")
    return (
        f'<g><rect x="{x}" y="{y}" width="{_BOX_W}" height="{_BOX_H}" rx="8" fill="#fff" '
        f'stroke="{color}" stroke-width="2"/>'
        f'<text x="{x + 12}" y="{y + 27}" font-size="13" font-weight="600"{squeezed}>{escape(title)}</text>'
        f'<text x="{x + 12}" y="{y + 48}" font-size="11" fill="{color}">{escape(role)}</text>'
        f'<text x="{x + 12}" y="{y + 68}" font-size="11" fill="#56606e">{escape(waits)}</text>'
        f'<text x="{x + 12}" y="{y + 87}" font-size="11" fill="#92400e">{escape(gate)}</text>'
        f"<title>{escape(' '.join((f'{stage.title} ({stage.key}).', stage.focus, stage.goal, *told)))}"
        "</title></g>"
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
