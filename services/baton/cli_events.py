"""The commands `baton events ...`: lead events sent from a file, and all of them written out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.baton.command import DATA, STAGE_URL, Data, Url, api_key, database_url, fail, run

app = typer.Typer(no_args_is_help=True, help="Lead events: send, export.")


@app.command("export")
def events_export(
    parquet: Annotated[Path, typer.Option("--parquet", help="a new directory for the files")],
    data: Data = DATA,
) -> None:
    """Write all lead events as Parquet, with what a fold of them needs; for Spark, DuckDB and the like."""
    from services.baton import export

    try:
        export.command(parquet, database_url(data))
    except ImportError:
        fail(export.MISSING, 2)
    except FileExistsError as error:
        fail(str(error), 2)


@app.command("send")
def events_send(
    file: Annotated[Path, typer.Argument(help="JSON array or lines of CloudEvents; - is stdin")],
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Send CloudEvents from a file; exit 1 when one was rejected."""
    from services.baton.send import send_events

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        fail(f"{file}: {error.strerror}", 2)
    try:
        counts, rejected = run(send_events(url, api_key(data), text))
    except ValueError as error:
        fail(f"{file}: {error}", 2)
    print(" ".join(f"{status}={count}" for status, count in sorted(counts.items())) or "no events")
    for result in rejected:
        print(json.dumps(result), file=sys.stderr)
    if rejected:
        raise typer.Exit(1)
