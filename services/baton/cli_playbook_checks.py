"""The commands `baton playbook validate`, `show`, `test`, `simulate`: a file before it is published."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.baton.command import DATA, Data, database_url, fail, run

app = typer.Typer()


@app.command("validate")
def playbook_validate(
    files: Annotated[list[Path], typer.Argument(help="playbook files")],
    team: Annotated[
        Path | None,
        typer.Option(
            envvar="BATON_TEAM_FILE", help="the roster: whom it does not have is warned of"
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="text, json or sarif")] = "text",
    level: Annotated[str, typer.Option(help="tell from here on: warning or error")] = "warning",
    strict: Annotated[bool, typer.Option("--strict", help="a warning fails too")] = False,
    seen: Annotated[
        str, typer.Option(help="ask the database what events brought lately: 90d")
    ] = "",
    data: Data = DATA,
) -> None:
    """Check playbooks: errors, which are refused, and warnings, each with its place, reason and remedy.

    Exit 0 without errors, 1 with one (with --strict a warning too), 2 when the checks cannot be made.
    """
    from services.baton import validate
    from services.contracts.team import load_team
    from services.contracts.yaml_source import SourceError

    if format not in validate.FORMATS or level not in validate.LEVELS:
        fail(
            f"--format is {', '.join(validate.FORMATS)}; --level is {', '.join(validate.LEVELS)}", 2
        )
    try:
        days = validate.days_in(seen) if seen else 0
        roster = load_team(team) if team is not None else None
        lately, held = run(validate.asked_of(database_url(data), days)) if days else (None, None)
        all_found = [
            f for file in files for f in validate.findings_of(file, held or roster, lately)
        ]
    except (SourceError, OSError, ValueError) as error:
        fail(str(error), 2)
    found = [f for f in all_found if level == "warning" or f.level == "error"]
    failed = any(strict or f.level == "error" for f in found)
    if format == "json":
        print(validate.as_json(files, found))
    elif format == "sarif":
        print(validate.as_sarif(found, Path.cwd()))
    else:
        for line in validate.as_text(found):
            print(line, file=sys.stderr)
        if lately is not None and not lately.types:
            print(
                f"no event came in the last {days} days: nothing is known of them", file=sys.stderr
            )
        if not failed:
            print(f"{', '.join(str(f) for f in files)}: valid")
    if failed:
        raise typer.Exit(1)


@app.command("show")
def playbook_show(
    file: Annotated[Path, typer.Argument()] = Path("playbooks/sales.yaml"),
    format: Annotated[str, typer.Option(help="terminal, mermaid or svg")] = "terminal",
) -> None:
    """Draw a playbook's stages and the rules between them."""
    from services.baton.playbooks import draw
    from services.contracts.yaml_source import SourceError

    try:
        draw(file, format)
    except (SourceError, OSError, ValueError) as error:
        fail(str(error), 2)


@app.command("test")
def playbook_test(
    files: Annotated[
        list[Path] | None, typer.Argument(help="files of cases, or directories of them")
    ] = None,
    playbook: Annotated[
        Path | None, typer.Option(help="test this playbook instead of the one the file names")
    ] = None,
    fail_under: Annotated[
        float, typer.Option(min=0, max=100, help="percent of stages, rules and clocks to touch")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Run a playbook's tests; exit 1 when one fails or too little is touched, 2 for a bad file."""
    from rich.console import Console

    from services.baton import playbook_tests
    from services.contracts.yaml_source import SourceError

    found = playbook_tests.case_files(files or [Path("playbooks/tests")])
    if not found:
        fail("no files of cases there: write one, as docs/playbook.md shows", 2)
    try:
        runs = [playbook_tests.run_file(file, playbook) for file in found]
    except (SourceError, OSError) as error:
        fail(str(error), 2)
    if as_json:
        print(json.dumps(playbook_tests.as_json(runs), indent=1))
    else:
        playbook_tests.show(runs, Console(highlight=False))
    too_little = any(c.share * 100 < fail_under for c in playbook_tests.coverages(runs).values())
    if too_little or any(o.failures for r in runs for o in r.outcomes):
        raise typer.Exit(1)


@app.command("simulate")
def playbook_simulate(
    file: Annotated[Path, typer.Argument(help="the candidate playbook")],
    since: Annotated[
        str, typer.Option(help="only leads that did something since then: 90d, or 2026-09-01")
    ] = "",
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: one a core")] = 0,
    team: Annotated[Path, typer.Option(help="the roster whose hours count")] = Path(
        "playbooks/team.yaml"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the whole result here")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="write the journeys that differ here")
    ] = None,
    data: Data = DATA,
) -> None:
    """Fold real history under another playbook and show what would differ; writes and sends nothing."""
    from services.baton import simulate
    from services.contracts.yaml_source import SourceError

    try:
        simulate.command(file, since, workers, team, json_file, csv_file, database_url(data))
    except (SourceError, OSError, ValueError) as error:
        fail(str(error), 2)
