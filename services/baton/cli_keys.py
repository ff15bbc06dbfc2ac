"""The commands `baton keys ...`: who may use Baton, and for what."""

from __future__ import annotations

from typing import Annotated

import typer

from services.baton.command import DATA, Data, database_url, fail, run

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")


@app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="whose key it is")],
    scope: Annotated[list[str], typer.Option(help="ingest, read, move or admin; repeat it")],
    source: Annotated[
        list[str] | None, typer.Option(help="ingest for this source only; repeat it")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="requests, like '100/s burst 200', or off")
    ] = None,
    event_rate: Annotated[str | None, typer.Option(help="events, like 1000/s, or off")] = None,
    data: Data = DATA,
) -> None:
    """Create a key and show it, this once."""
    from services.baton import access

    try:
        id, token = run(
            access.create(
                database_url(data), name, scope, source or [], rate=rate, event_rate=event_rate
            )
        )
    except ValueError as error:
        fail(str(error), 2)
    print(f"id   {id}\nkey  {token}\nIt is not shown again.")


@app.command("list")
def keys_list(data: Data = DATA) -> None:
    """List the keys, without their secrets."""
    from services.baton import access

    for key in run(access.listed(database_url(data))):
        state = "revoked" if key["revoked_at"] else "active"
        bounds = [f"source={','.join(key['sources'])}"] if key["sources"] else []
        bounds += [f"{n.replace('_', '-')}={key[n]}" for n in ("rate", "event_rate") if key[n]]
        line = f"{key['id']}  {state:8} {','.join(key['scopes']):24} {key['name']}"
        print("  ".join([line, *bounds]))


@app.command("revoke")
def keys_revoke(id: str, data: Data = DATA) -> None:
    """Revoke a key; it stops working within 5 seconds."""
    from services.baton import access

    if not run(access.revoke(database_url(data), id)):
        fail(f"there is no active key {id!r}")
    print(f"revoked {id}")
