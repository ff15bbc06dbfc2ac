"""The commands `baton leads ...`: why a lead is where it is, two leads made one, leads published again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.baton.command import DATA, STAGE_URL, Data, Url, api_key, database_url, fail, run

app = typer.Typer(no_args_is_help=True, help="Leads: why, merge, unmerge, publish again.")


Reason = Annotated[str, typer.Option("--reason", help="shown in the timeline")]


@app.command("merge")
def leads_merge(
    lead: Annotated[str, typer.Argument(help="id of a lead")],
    other: Annotated[str, typer.Argument(help="id of the other; the older of both survives")],
    reason: Reason,
    data: Data = DATA,
    url: Url = STAGE_URL,
) -> None:
    """Say that two leads are one person."""
    _regroup(url, data, "merge", lead, other, reason)


@app.command("unmerge")
def leads_unmerge(
    lead: Annotated[str, typer.Argument(help="id of the lead that survived")],
    merged: Annotated[str, typer.Argument(help="id of the lead that was merged into it")],
    reason: Reason,
    data: Data = DATA,
    url: Url = STAGE_URL,
) -> None:
    """Undo a merge: both get back what was theirs, and no event merges them again."""
    _regroup(url, data, "unmerge", lead, merged, reason)


def _regroup(url: str, data: Path, deed: str, lead: str, other: str, reason: str) -> None:
    from services.baton.leads import regroup

    try:
        print(run(regroup(url, api_key(data), deed, lead, other, reason)))
    except ValueError as error:
        fail(str(error))


@app.command("why")
def leads_why(
    lead: Annotated[str, typer.Argument(help="the lead's id or e-mail address")],
    at: Annotated[
        str | None, typer.Option(help="as Baton knew it at this moment: 2026-09-01T09:30:00Z")
    ] = None,
    data: Data = DATA,
    url: Url = STAGE_URL,
) -> None:
    """Say what would move a lead, and of each rule why it does not."""
    from services.baton.leads import why

    try:
        for line in run(why(url, api_key(data), lead, at)):
            print(line)
    except ValueError as error:
        fail(str(error))


@app.command("snapshot")
def leads_snapshot(data: Data = DATA) -> None:
    """Publish every lead to the Kafka topic baton.leads again."""
    from services.baton.leads import snapshot_again

    count = run(snapshot_again(database_url(data)))
    if count is None:
        fail("no stage service publishes to Kafka: set BATON_KAFKA_BOOTSTRAP_SERVERS for it")
    print(f"{count} leads are published to baton.leads once more")
