"""`baton playbook simulate`: real history under a candidate playbook, on all cores, writing nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from services.baton import simulated
from services.baton.command import run
from services.contracts.simulations import encoded
from services.contracts.team import load_team
from services.stage_service.playbook import parse_playbook
from services.stage_service.simulations.pool import hours_of, simulate, since_of
from services.stage_service.simulations.report import report, write_csv


def command(
    file: Path,
    since: str,
    workers: int,
    team_file: Path,
    json_file: Path | None,
    csv_file: Path | None,
    database_url: str,
) -> None:
    """Run `baton playbook simulate`: progress and tables on the terminal, files where asked for.

    Raises SourceError, OSError, or ValueError for a `since` that is neither days nor a date.
    """
    now = datetime.now(UTC)
    candidate = parse_playbook(file.read_text(encoding="utf-8"), str(file))
    begin = _since(since, now)
    console = Console(highlight=False)
    with Progress(console=console, transient=True) as bar:
        row = bar.add_task("folding history", total=None)
        tally = run(simulate(
            database_url, candidate, str(file), hours_of(load_team(team_file)), now, since=begin,
            workers=workers,
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        ))  # fmt: skip
    document = report(tally, candidate, now, begin)
    simulated.show(document, console)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(encoded(document)) + b"\n")
    if csv_file is not None:
        with csv_file.open("w", newline="", encoding="utf-8") as out:
            write_csv(document.differences, out)


def _since(text: str, now: datetime) -> datetime | None:
    try:
        return since_of(text, now)
    except ValueError as error:
        raise ValueError(f"--since {error}") from None
