"""`baton connectors`: list connector files with what is wrong in them, show what an event would ask."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import msgspec
from rich.console import Console
from rich.table import Table

from services.contracts.events import TRANSITIONED, Message, message_headers
from services.contracts.yaml_source import SourceError
from services.stage_service.sources.conversions import read_time
from services.stage_service.subscriptions.connectors.book import load_connector
from services.stage_service.subscriptions.connectors.connector import Connector
from services.stage_service.subscriptions.connectors.delivery import (
    Answer,
    Asked,
    Finished,
    run,
)
from services.stage_service.subscriptions.connectors.target import scope_of

NOBODY = str(UUID(int=0))


def connector_named(directory: Path, name: str) -> Connector:
    """Load the connector `name`; raises SourceError, or ValueError when there is no such file."""
    path = Path(name) if name.endswith(".yaml") else directory / f"{name}.yaml"
    if path.is_file():
        return load_connector(path)
    known = sorted(file.stem for file in directory.glob("*.yaml"))
    near = get_close_matches(path.stem, known, 1)
    remedy = f"Did you mean '{near[0]}'?" if near else "See 'baton connectors list'."
    raise ValueError(f"there is no connector '{path.stem}' in {path.parent}. {remedy}")


def print_list(directory: Path, console: Console) -> None:
    """Print the connectors of `directory` that can be used."""
    table = Table("connector", "title", "written after", "credentials", "config")
    for path in sorted(directory.glob("*.yaml"), key=lambda file: file.stem):
        try:
            connector = load_connector(path)
        except SourceError:
            continue
        ways = "\nor ".join(", ".join(auth.credentials) for auth in connector.auth)
        settings = ", ".join(setting.name for setting in connector.settings)
        table.add_row(connector.name, connector.title, connector.evidence, ways, settings)
    console.print(table)


def problems_in(paths: list[Path]) -> list[str]:
    """Give every mistake of the connector files `paths`: file, line, column and remedy."""
    found: list[str] = []
    for path in paths:
        try:
            load_connector(path)
        except SourceError as error:
            found += [str(problem) for problem in error.problems]
    return found


def read_event(path: Path) -> Message:
    """Read an event: its data as the feed gives it (with `type`), or a CloudEvent in structured mode.

    Raises OSError, or ValueError when it is neither.
    """
    try:
        told = msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(told, dict):
        raise ValueError(f"{path}: not an object")
    found = cast("dict[str, Any]", told)
    data = found.get("data", found) if "specversion" in found else found
    if not isinstance(data, dict):
        raise ValueError(f"{path}: its 'data' is not an object")
    data = cast("dict[str, Any]", data)
    id = str(found.get("id") or data.get("transition_id") or data.get("change_id") or NOBODY)
    moment = read_time(data.get("occurred_at"), "rfc3339") or read_time(0, "s")
    assert moment is not None  # noqa: S101  the beginning of time can be read
    lead = data.get("lead")
    key = str(cast("dict[str, Any]", lead).get("id")) if isinstance(lead, dict) else NOBODY
    headers = message_headers(id, str(found.get("type") or TRANSITIONED), moment)
    return Message("", key, headers, msgspec.json.encode(data))


def try_out(
    connector: Connector,
    message: Message,
    config: Mapping[str, Any],
    answers: Mapping[str, Any],
    known: dict[str, str],
    owner_email: str | None,
) -> tuple[list[tuple[Asked, Answer]], Finished]:
    """Run `connector` over `message` without sending anything; `answers` are told by step.

    A step without one finds nothing, or succeeds with an empty answer.
    """
    scope: dict[str, Any] = scope_of(message, connector.configured(config))
    scope["known"] = known
    if scope["owner"]:
        scope["owner"]["email"] = owner_email
    steps = run(connector, scope)
    asked: list[tuple[Asked, Answer]] = []
    came: Any = None
    while True:
        try:
            wish = steps.send(came)
        except StopIteration as end:
            return asked, cast("Finished", end.value)
        came = None
        if isinstance(wish, Asked):
            came = _answer(answers.get(wish.step), _finds_nothing(connector, wish.step))
            asked.append((wish, came))


def _finds_nothing(connector: Connector, step: str) -> Answer:
    """Give the answer of a CRM that has no such record yet."""
    (found,) = (each for each in connector.steps if each.name == step)
    is_told = any(m.means == "absent" and 404 in m.statuses for m in found.answers)
    return Answer(404 if is_told else 200, {}, {})


def _answer(told: Any, otherwise: Answer) -> Answer:
    if not isinstance(told, dict):
        return otherwise
    given = cast("dict[str, Any]", told)
    headers = {str(n).lower(): str(v) for n, v in (given.get("headers") or {}).items()}
    return Answer(int(given.get("status", 200)), headers, given.get("body"))


def print_tried(
    base: str, asked: list[tuple[Asked, Answer]], finished: Finished, console: Console
) -> None:
    """Print the requests that would be sent, and what the delivery would come to."""
    for request, answer in asked:
        console.print(
            f"{request.step}: {request.method} {base}{request.url}", markup=False, soft_wrap=True
        )
        for name, value in request.headers.items():
            console.print(f"  {name}: {value}", markup=False, soft_wrap=True)
        if request.body is not None:
            body = msgspec.json.format(request.body, indent=2).decode()
            console.print("\n".join(f"  {line}" for line in body.splitlines()), markup=False)
        console.print(f"  -> taken as answered {answer.status}", markup=False, style="dim")
    reasons = "; ".join(t for t in (finished.reason, *finished.told) if t)
    console.print(
        f"{finished.verdict}{': ' + reasons if reasons else ''}", markup=False, soft_wrap=True
    )


def shown(base: str, asked: list[tuple[Asked, Answer]], finished: Finished) -> dict[str, Any]:
    """Give what was tried as JSON."""
    return {
        "requests": [
            {"step": a.step, "method": a.method, "url": base + a.url, "headers": a.headers,
             "body": msgspec.json.decode(a.body) if a.body is not None else None,
             "answered": answer.status}
            for a, answer in asked
        ],
        "outcome": finished.verdict,
        "reasons": [t for t in (finished.reason, *finished.told) if t],
    }  # fmt: skip
