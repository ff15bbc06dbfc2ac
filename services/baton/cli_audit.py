"""The commands `baton audit ...`: who did what, all of it as a file, and whether it is untouched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from services.baton.command import (
    DATA,
    STAGE_URL,
    Data,
    Url,
    api_key,
    asked,
    database_url,
    fail,
    run,
)

app = typer.Typer(no_args_is_help=True, help="What people did: list, export, verify.")

Actor = Annotated[str | None, typer.Option(help="a name, or a key's id")]
Action = Annotated[str | None, typer.Option(help="what was done, like moved or revoked")]
Object = Annotated[str | None, typer.Option("--object", help="to what: subscription, person/nina")]
Lead = Annotated[str | None, typer.Option("--lead", help="id of a lead")]
Since = Annotated[str | None, typer.Option("--from", help="a moment or date")]
Until = Annotated[str | None, typer.Option("--to", help="a moment or date")]


@app.command("list")
def audit_list(
    actor: Actor = None,
    action: Action = None,
    object: Object = None,
    lead: Lead = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Show the newest entries."""
    from rich.console import Console

    from services.baton import audit

    query = {"actor": actor, "action": action, "object": object, "lead_id": lead, "from": since,
             "to": until, "limit": limit}  # fmt: skip
    asked(lambda: audit.show(url, api_key(data), query, Console(highlight=False, markup=False)))


@app.command("export")
def audit_export(
    file: Annotated[Path | None, typer.Argument(help="written anew; left out: stdout")] = None,
    actor: Actor = None,
    action: Action = None,
    object: Object = None,
    lead: Lead = None,
    since: Since = None,
    until: Until = None,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Write all entries, oldest first, as JSON lines; without filters the chain can be checked."""
    from services.baton import audit

    query = {"actor": actor, "action": action, "object": object, "lead_id": lead, "from": since,
             "to": until}  # fmt: skip
    try:
        if file is None:
            asked(lambda: audit.export(url, api_key(data), query, sys.stdout.buffer))
        else:
            with file.open("wb") as out:
                asked(lambda: audit.export(url, api_key(data), query, out))
    except OSError as error:
        fail(f"{file}: {error.strerror}", 2)


@app.command("verify")
def audit_verify(
    file: Annotated[
        Path | None, typer.Option(help="an export without filters, instead of the database")
    ] = None,
    expect: Annotated[
        str | None, typer.Option(help="an entry noted before, ID:DIGEST: it must still be there")
    ] = None,
    data: Data = DATA,
) -> None:
    """Check that no entry was changed, left out or slipped in.

    Exit 0: untouched; 1: it was touched; 2: it could not be checked.
    """
    import asyncpg

    from services.baton import audit

    try:
        noted = audit.Noted(expect) if expect is not None else None
        if file is not None:
            chain = audit.verify_file(file, noted)
        else:
            chain = run(audit.verify_database(database_url(data), noted))
    except (ValueError, OSError, asyncpg.PostgresError) as error:
        fail(str(error), 2)
    if chain.broken is not None:
        fail(chain.broken)
    print(f"{chain.seq} entries, untouched. Note this for the next time:")
    print(f"--expect {chain.seq}:{chain.digest.hex()}")
