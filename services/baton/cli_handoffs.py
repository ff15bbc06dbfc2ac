"""The commands `baton handoffs ...`: over the stage service's API."""

from __future__ import annotations

from typing import Annotated

import typer

from services.baton.command import DATA, STAGE_URL, Data, Url, api_key, asked

app = typer.Typer(no_args_is_help=True, help="Handoffs that wait: list, accept, reject.")
Person = Annotated[
    str | None, typer.Option(help="id of who answers; without it, whom it was offered to")
]


@app.command("list")
def handoffs_list(
    state: Annotated[
        str, typer.Option(help="offered (they wait), accepted, rejected, withdrawn; all")
    ] = "offered",
    overdue: Annotated[bool, typer.Option("--overdue", help="only those past their deadline")] = False,
    role: Annotated[str | None, typer.Option(help="key of a role")] = None,
    person: Annotated[str | None, typer.Option(help="id of a person")] = None,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:  # fmt: skip
    """List handoffs; those that wait with the longest waiting first, others with the newest first."""
    from services.baton.handoffs import show

    wished = {
        "state": None if state == "all" else state, "overdue": True if overdue else None,
        "role": role, "person": person,
    }  # fmt: skip
    query = {name: value for name, value in wished.items() if value is not None}
    asked(lambda: show(url, api_key(data), query))


@app.command("accept")
def handoffs_accept(
    id: str, person: Person = None, url: Url = STAGE_URL, data: Data = DATA
) -> None:
    """Accept a handoff that waits."""
    from services.baton.handoffs import answer

    print(asked(lambda: answer(url, api_key(data), id, "accept", person)))


@app.command("reject")
def handoffs_reject(
    id: str,
    reason: Annotated[str, typer.Option(help="why; it goes on to whoever gets it next")],
    person: Person = None,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Reject a handoff that waits; it goes where the playbook says, or to somebody else."""
    from services.baton.handoffs import answer

    print(asked(lambda: answer(url, api_key(data), id, "reject", person, reason)))
