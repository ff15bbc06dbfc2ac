"""`baton playbook diff`, `publish`, `versions`, `rollback`, `cancel`, `get`: the commands alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from services.baton.command import DATA, STAGE_URL, Data, Url, api_key, asked, fail

if TYPE_CHECKING:
    from services.baton.publishing import Api

app = typer.Typer()
T = TypeVar("T")
Message = Annotated[str, typer.Option(help="why, for the list of versions")]
AsJson = Annotated[bool, typer.Option("--json", help="print it as JSON")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]


@app.command("diff")
def playbook_diff(
    old: Annotated[str, typer.Argument(help="a file, or NAME[@VERSION]; alone: the new file")],
    new: Annotated[str | None, typer.Argument(help="the new file, or NAME@VERSION")] = None,
    impact: Annotated[bool, typer.Option(help="count the journeys of now it is about")] = True,
    as_json: AsJson = False,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Say what differs between two playbooks, or between a file and what is active, and for how many."""
    from rich.console import Console

    from services.baton import publishing

    local = new is not None and Path(old).is_file() and Path(new).is_file()
    api = None if local else _api(url, data)
    found = _asked(lambda: publishing.compare(api, old, new, impact=impact))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        publishing.show(found, Console(highlight=False))


@app.command("publish")
def playbook_publish(
    file: Annotated[Path, typer.Argument(help="the playbook")],
    message: Message = "",
    at: Annotated[str, typer.Option(help="when, as 2026-12-01T08:00+01:00; left out: now")] = "",
    expect: Annotated[
        int | None, typer.Option(min=1, help="the version that must be active; else the one shown")
    ] = None,
    yes: Yes = False,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Publish a playbook: shows what it changes, and asks before, where somebody can answer."""
    from rich.console import Console

    from services.baton import publishing

    moment = _moment(at) if at else None
    api = _api(url, data)
    text = _asked(lambda: file.read_text(encoding="utf-8"))
    found = _asked(lambda: publishing.compare(api, str(file), None, impact=not yes))
    publishing.show(found, Console(highlight=False))
    if sys.stdin.isatty() and not yes:
        if moment is None:
            publishing.forewarn(found, Console(highlight=False))
        typer.confirm("Publish it?", abort=True)
    before = found["before_version"]
    print(_asked(lambda: publishing.publish(api, text, before, message, moment, expect)))


@app.command("versions")
def playbook_versions(
    name: Annotated[str | None, typer.Argument(help="a playbook; left out: what is active")] = None,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """List the versions of a playbook: when, by whom, why, what changed; and what is to be published."""
    from rich.console import Console

    from services.baton import publishing

    api = _api(url, data)
    _asked(lambda: publishing.show_versions(api, name, Console(highlight=False)))


@app.command("rollback")
def playbook_rollback(
    name: Annotated[str, typer.Argument(help="a playbook")],
    version: Annotated[int, typer.Argument(min=1, help="the version that is to hold again")],
    message: Message = "",
    migrate: Annotated[
        list[str] | None,
        typer.Option(
            help="GONE=STAGE: where journeys of a stage it does not have go on; repeat it"
        ),
    ] = None,
    yes: Yes = False,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Publish an older text again, as a new version: shows what that changes, and asks before."""
    from rich.console import Console

    from services.baton import publishing

    moved = {gone: to for gone, _, to in (each.partition("=") for each in migrate or [])}
    api = _api(url, data)
    found = _asked(lambda: publishing.compare_back(api, name, version, impact=not yes))
    publishing.show(found, Console(highlight=False))
    if sys.stdin.isatty() and not yes:
        publishing.forewarn(found, Console(highlight=False))
        typer.confirm("Publish it again?", abort=True)
    before = found["before_version"]
    print(_asked(lambda: publishing.roll_back(api, name, version, before, message, moved)))


@app.command("cancel")
def playbook_cancel(
    id: Annotated[str, typer.Argument(help="of `baton playbook versions`")],
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Call a publication off that is to happen later."""
    from services.baton import publishing

    api = _api(url, data)
    print(_asked(lambda: publishing.cancel(api, id)))


@app.command("get")
def playbook_get(
    named: Annotated[str, typer.Argument(help="NAME, or NAME@VERSION")],
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Print the text of a published playbook."""
    api = _api(url, data)
    sys.stdout.write(_asked(lambda: api.text(named)))


def _api(url: str, data: Path) -> Api:
    from services.baton.publishing import Api

    return Api(url, api_key(data))


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        fail(f"{text!r} is no time: write it as 2026-12-01T08:00+01:00", 2)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _asked(ask: Callable[[], T]) -> T:
    """Do what was asked; what is refused, or that nobody answers, ends with a clear line."""
    from services.contracts.yaml_source import SourceError

    try:
        return asked(ask)
    except (SourceError, OSError, ValueError) as error:
        fail(str(error), 2)
