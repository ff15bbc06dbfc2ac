"""`baton playbook test`: runs the cases that lie beside a playbook, and says what they leave untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from services.contracts.yaml_source import read_yaml
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_cases import (
    Coverage,
    Outcome,
    coverage,
    read_cases,
    run_case,
)


@dataclass(frozen=True)
class Run:
    """What one file of cases came to."""

    file: Path
    playbook: Playbook
    outcomes: list[Outcome]


def case_files(paths: Sequence[Path]) -> list[Path]:
    """Give the files of cases in `paths`: files, and the ``*.yaml`` of directories, by name."""
    found: list[Path] = []
    for path in paths:
        found += sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    return found


def run_file(file: Path, playbook_file: Path | None = None) -> Run:
    """Run the cases of `file` on the playbook that it names, or on `playbook_file`.

    Raises SourceError with every mistake of either, OSError when one cannot be read.
    """
    text = file.read_text(encoding="utf-8")
    top = read_yaml(text, str(file)).mapping()
    if playbook_file is None:
        named = top.get("playbook")
        playbook_file = file.parent / (named.text() if named is not None else f"../{file.name}")
    playbook = _read(playbook_file)
    others = top["beside"].texts() if "beside" in top else ()
    beside = [
        p for p in (_read(file.parent / other) for other in others) if p.name != playbook.name
    ]
    cases = read_cases(text, str(file), playbook)
    return Run(file, playbook, [run_case(case, playbook, beside) for case in cases])


def _read(file: Path) -> Playbook:
    return parse_playbook(file.read_text(encoding="utf-8"), str(file))


def coverages(runs: Sequence[Run]) -> dict[str, Coverage]:
    """Give, by playbook, what all of `runs` together left untouched."""
    outcomes: dict[str, list[Outcome]] = {}
    playbooks: dict[str, Playbook] = {}
    for run in runs:
        outcomes.setdefault(run.playbook.name, []).extend(run.outcomes)
        playbooks[run.playbook.name] = run.playbook
    return {name: coverage(playbook, outcomes[name]) for name, playbook in playbooks.items()}


def as_json(runs: Sequence[Run]) -> dict[str, Any]:
    """Give the whole result as plain data."""
    return {
        "cases": [
            {
                "file": str(run.file), "line": o.case.line, "case": o.case.name, "ok": not o.failures,
                "failures": [
                    {"line": f.line, "what": f.what, "expected": f.wanted, "got": f.got}
                    for f in o.failures
                ],
            }
            for run in runs
            for o in run.outcomes
        ],
        "coverage": {
            name: {
                "share": round(c.share, 4), "stages_untouched": list(c.stages),
                "rules_untouched": list(c.rules), "clocks_untouched": list(c.clocks),
            }
            for name, c in coverages(runs).items()
        },
    }  # fmt: skip


def show(runs: Sequence[Run], console: Console) -> None:
    """Print each case, each failure with its place, and the coverage."""
    for run in runs:
        for outcome in run.outcomes:
            mark = "[red]FAILED[/]" if outcome.failures else "[green]ok[/]"
            console.print(f"{mark}  {escape(outcome.case.name)}")
            for failure in outcome.failures:
                console.print(
                    f"  {run.file}:{failure.line}: {failure}", markup=False, soft_wrap=True
                )
    for name, covered in coverages(runs).items():
        console.print(
            f"{name}: {covered.touched} of {covered.of} stages, rules and clocks touched "
            f"({covered.share:.0%})"
        )
        for what, left in (
            ("stages", covered.stages), ("rules", covered.rules), ("clocks", covered.clocks),
        ):  # fmt: skip
            if left:
                console.print(f"  {what} untouched: {', '.join(left)}", soft_wrap=True)
    failed = sum(1 for run in runs for o in run.outcomes if o.failures)
    total = sum(len(run.outcomes) for run in runs)
    console.print(f"{total - failed} of {total} cases ok")
