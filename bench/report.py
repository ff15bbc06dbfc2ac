"""The figures as a table on the terminal, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.measure import Figure, Result

HERE = Path(__file__).resolve().parent


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _limit(figure: Figure, limit: float | None) -> str:
    if limit is None:
        return ""
    shown = f"{limit:,.0f}" if figure.absolute else f"{limit:g}"
    return f"{'≤' if figure.at_most else '≥'} {shown}"


def _verdict(figure: Figure) -> str:
    if figure.meets(figure.target) is None:
        return ""
    if figure.meets(figure.goal):
        return "goal met"
    return "met" if figure.meets(figure.target) else "MISSED"


def _row(result: Result, figure: Figure) -> list[str]:
    low, high = figure.spread
    return [
        f"({result.key}) {result.title}: {figure.name}",
        f"{_number(figure.ours)} {figure.unit}",
        f"{_number(figure.baseline)} {figure.unit}",
        f"{figure.ratio:.2f} ({low:.2f}-{high:.2f})",
        str(len(figure.rounds)),
        _limit(figure, figure.target),
        _limit(figure, figure.goal),
        _verdict(figure),
    ]


_HEAD = ("figure", "ours", "baseline", "ratio (min-max)", "rounds", "target", "goal", "verdict")


def table(results: Sequence[Result]) -> Table:
    """Give the figures as a Rich table."""
    shown = Table(title="Baton, measured")
    for index, name in enumerate(_HEAD):
        shown.add_column(name, justify="left" if index in (0, 7) else "right")
    for result in results:
        if result.skipped:
            shown.add_row(f"({result.key}) {result.title}", "", "", "", "", "", "", "skipped")
        for figure in result.figures:
            row = _row(result, figure)
            style = {"MISSED": "red", "": "dim"}.get(row[-1], "green")
            shown.add_row(*row[:-1], f"[{style}]{row[-1]}[/]")
    return shown


def earlier(directory: Path, but: Sequence[Result]) -> list[Result]:
    """Give the results in ``results.json`` of `directory` of other benchmarks than `but`."""
    path = directory / "results.json"
    if not path.exists():
        return []
    known = {f.name for f in dataclasses.fields(Figure)}
    found: list[Result] = []
    for one in json.loads(path.read_text(encoding="utf-8"))["results"]:
        if one["key"] in {r.key for r in but}:
            continue
        figures = [Figure(**{k: v for k, v in f.items() if k in known}) for f in one.pop("figures")]
        found.append(Result(**one, figures=figures))
    return found


def markdown(results: Sequence[Result], machine: dict[str, Any]) -> str:
    """Write the figures as ``RESULTS.md``."""
    lines = [
        "# Benchmarks: results",
        "",
        "Written by the benchmarks themselves; do not edit. A run replaces the figures of the benchmarks",
        "that it ran; each says below when it was measured, and with which command.",
        "",
        "Each ratio is the median over rounds of ours to the baseline measured just before it, on the",
        "same machine in the same run; in brackets the smallest and largest of a round. Absolute speeds",
        "are of this machine only.",
        "",
        "| " + " | ".join(_HEAD) + " |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for result in results:
        if result.skipped:
            lines.append(
                f"| ({result.key}) {result.title} | | | | | | | skipped: {result.skipped} |"
            )
        lines += ["| " + " | ".join(_row(result, f)) + " |" for f in result.figures]
    lines += ["", "## Machine", ""]
    names = {
        "cpu": "CPU", "cores": "Cores", "ram_gb": "RAM, GiB", "system": "System",
        "load_average_1m": "Load average at the start", "python": "Python",
        "postgresql": "PostgreSQL (embedded, fsync on)", "kafka": "Apache Kafka",
        "uvicorn": "uvicorn (one worker)", "fastapi": "FastAPI", "pydantic": "pydantic",
        "asyncpg": "asyncpg", "aiokafka": "aiokafka",
        "fsync_ms_median": "8 KiB write and fdatasync, median ms",
        "fsync_ms_p99": "8 KiB write and fdatasync, p99 ms",
    }  # fmt: skip
    lines += ["| | |", "|---|---|"]
    lines += [f"| {names.get(key, key)} | {value} |" for key, value in machine.items()]
    lines += ["", "## What was measured", ""]
    for result in results:
        lines += [f"### ({result.key}) {result.title}", "", result.method, ""]
        lines += [f"Measured {result.measured}.", ""]
        for figure in result.figures:
            pairs = ", ".join(f"{_number(b)} / {_number(o)}" for b, o in figure.rounds)
            lines.append(f"- {figure.name}, {figure.unit}, baseline ({figure.baseline_name}) / ours "
                         f"by round: {pairs}")  # fmt: skip
        lines += [f"- {note}" for note in result.notes]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def save(
    console: Console, results: Sequence[Result], machine: dict[str, Any], command: str, date: str,
    directory: Path = HERE,
) -> None:  # fmt: skip
    """Print the table, and write ``RESULTS.md`` and ``results.json`` into `directory`.

    What was measured before by other benchmarks stays in both.
    """
    for result in results:
        load = machine["load_average_1m"]
        result.measured = f"{date} with `{command}`, load average {load} at the start"
    console.print(table(results))
    for result in results:
        for note in [*result.notes, result.skipped]:
            if note:
                console.print(f"[dim]({result.key})[/] {escape(note)}", highlight=False)
    results = sorted([*earlier(directory, results), *results], key=lambda r: r.key)
    text = markdown(results, machine)
    (directory / "RESULTS.md").write_text(text, encoding="utf-8")
    document = {
        "machine": machine,
        "results": [
            {
                **{k: v for k, v in dataclasses.asdict(r).items() if k != "figures"},
                "figures": [
                    {
                        **dataclasses.asdict(f), "baseline": f.baseline, "ours": f.ours,
                        "ratio": f.ratio, "met": f.meets(f.target), "goal_met": f.meets(f.goal),
                    }
                    for f in r.figures
                ],
            }
            for r in results
        ],
    }  # fmt: skip
    (directory / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {directory / 'RESULTS.md'}, {directory / 'results.json'}")
