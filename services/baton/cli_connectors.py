"""The commands `baton connectors ...`; what they do is in `connectors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from services.baton.command import fail

app = typer.Typer(no_args_is_help=True, help="Connectors to CRMs: list, validate, try.")

Directory = Annotated[
    Path | None, typer.Option("--dir", envvar="BATON_CONNECTORS_DIR", help="the connector files")
]


def _directory(given: Path | None) -> Path:
    from services.baton.places import CONNECTORS

    if given is not None:
        return given
    return Path("connectors") if Path("connectors").is_dir() else CONNECTORS


@app.command("list")
def connectors_list(directory: Directory = None) -> None:
    """List the connectors; print every mistake in their files, and exit 1 when there is one."""
    from rich.console import Console

    from services.baton import connectors

    found = _directory(directory)
    connectors.print_list(found, Console(highlight=False))
    _refuse(connectors.problems_in(sorted(found.glob("*.yaml"))))


@app.command("validate")
def connectors_validate(
    files: Annotated[list[Path], typer.Argument(help="connector files")],
) -> None:
    """Check connector files; print every mistake with its place and remedy, and exit 1 on one."""
    from services.baton import connectors

    try:
        _refuse(connectors.problems_in(files))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", 2)
    print(f"{len(files)} right" if len(files) > 1 else f"{files[0]}: right")


@app.command("try")
def connectors_try(
    name: Annotated[str, typer.Argument(help="a connector, or the path of its .yaml file")],
    event: Annotated[Path, typer.Argument(help="an event, as the feed or a webhook has it")],
    config: Annotated[
        Path | None, typer.Option(help="the subscription's config, a JSON file")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help='JSON file: {"step": {"status": 200, "body": {}}}')
    ] = None,
    known: Annotated[
        list[str] | None, typer.Option(help="SYSTEM=ID of the lead; repeat it")
    ] = None,
    owner_email: Annotated[str | None, typer.Option(help="the owner's e-mail address")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    directory: Directory = None,
) -> None:
    """Show the requests that an event would make; nothing is sent. Exit 1 when it would be refused."""
    from rich.console import Console

    from services.baton import connectors
    from services.contracts.yaml_source import SourceError

    try:
        connector = connectors.connector_named(_directory(directory), name)
        message = connectors.read_event(event)
        settings = _object(config)
        told = _object(answers)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", 2)
    except (SourceError, ValueError) as error:
        fail(str(error), 2)
    ids = {system: id for system, _, id in (pair.partition("=") for pair in known or ())}
    asked, finished = connectors.try_out(connector, message, settings, told, ids, owner_email)
    base = connector.base.render({"config": connector.configured(settings)}) or ""
    if as_json:
        print(json.dumps(connectors.shown(base, asked, finished), indent=2, ensure_ascii=False))
    else:
        connectors.print_tried(base, asked, finished, Console(highlight=False))
    if finished.verdict == "refused":
        raise typer.Exit(1)


def _object(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a JSON object")
    return found


def _refuse(problems: list[str]) -> None:
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
