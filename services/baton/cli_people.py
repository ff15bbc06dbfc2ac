"""The commands `baton people ...`: over the stage service's API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.baton.command import DATA, STAGE_URL, Data, Url, api_key, asked, fail

app = typer.Typer(no_args_is_help=True, help="The roster: list, import, leave.")


@app.command("list")
def people_list(url: Url = STAGE_URL, data: Data = DATA) -> None:
    """List the roster: who holds how many journeys, who is there, whose turn is next."""
    from services.baton.people import show

    asked(lambda: show(url, api_key(data)))


@app.command("import")
def people_import(
    file: Annotated[Path, typer.Argument(help="CSV: id, name, roles and more; lists with ;")],
    dry_run: Annotated[bool, typer.Option(help="check and say what would change")] = False,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Add and change people from CSV, all or none; every mistake is told with its line."""
    from services.baton.people import import_file

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: {error}", 2)
    print(asked(lambda: import_file(url, api_key(data), text, str(file), dry_run=dry_run)))


@app.command("leave")
def people_leave(
    id: str,
    to: Annotated[
        str, typer.Option(help="who takes over their open journeys, or `rebalance`: by routing")
    ] = "rebalance",
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Take somebody off the roster and give their open journeys to others."""
    from services.baton.people import leave

    taker = None if to == "rebalance" else to
    print(asked(lambda: leave(url, api_key(data), id, taker)))
