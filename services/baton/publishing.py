"""What `baton playbook diff`, `publish`, `versions`, `rollback`, `cancel` and `get` ask of the stage service.

Two files are compared here; whatever asks what is active, or for whom a change counts, asks the service.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from services.baton.command import RefusedError, told
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_diff import diff

TIMEOUT_S = 600.0
"""A million leads are judged in less."""
_NAMED = re.compile(r"([a-z][a-z0-9_]{0,63})(?:@([1-9][0-9]{0,8}))?")
_YAML = {"content-type": "application/yaml"}


class Api:
    """The stage service's ``/v1/playbooks``, as the commands ask it. Raises RefusedError, httpx.HTTPError."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}

    def ask(self, method: str, path: str, **named: Any) -> httpx.Response:
        """Ask for ``/v1/playbooks`` and what follows in `path`; `named` as for httpx."""
        headers = {**self._headers, **named.pop("headers", {})}
        with httpx.Client(base_url=self._url, headers=headers, timeout=TIMEOUT_S) as client:
            answer = client.request(method, f"/v1/playbooks{path}", **named)
        if not answer.is_success:
            raise _refusal(answer)
        return answer

    def json(self, method: str, path: str, **named: Any) -> dict[str, Any]:
        """Ask as `ask`, and give the answer."""
        return cast("dict[str, Any]", self.ask(method, path, **named).json())

    def text(self, named: str) -> str:
        """Give the text of ``NAME`` or ``NAME@VERSION``. Raises ValueError for anything else."""
        match = _match(named)
        path = f"/{match[1]}" + (f"/versions/{match[2]}" if match[2] else "")
        return self.ask("GET", path, headers={"accept": "application/yaml"}).text


def _match(named: str) -> re.Match[str]:
    match = _NAMED.fullmatch(named)
    if match is None:
        raise ValueError(f"{named!r} is neither a file nor a playbook: write sales, or sales@3")
    return match


def _refusal(answer: httpx.Response) -> RefusedError:
    try:
        problem = cast("dict[str, Any]", answer.json())
    except ValueError:
        return RefusedError(f"HTTP {answer.status_code}: {answer.text[:200]}")
    places = [
        f"{p['line']}:{p['column']}: {p['message'].rstrip('.')}. {p['remedy']}".rstrip()
        for p in problem.get("problems", [])
    ]
    refused = RefusedError("\n".join(places) or told(problem))
    refused.code = problem.get("code")
    return refused


def compare(api: Api | None, old: str, new: str | None, *, impact: bool) -> dict[str, Any]:
    """Give what differs: of the file `old` from what is active, or of `new` from `old`.

    Either is a file, or ``NAME[@VERSION]``, and then `old` has the name of `new`. Without an `api` both are
    files. Raises RefusedError, ValueError, OSError, SourceError.
    """
    if new is None:
        return _against_active(api, Path(old).read_text(encoding="utf-8"), impact=impact)
    if api is not None and not Path(old).is_file():
        match = _match(old)
        if match[2] is None:
            text = _text(api, new)
            _hold_same(old, match[1], parse_playbook(text, new))
            return _against_active(api, text, impact=impact)
    before, after = (_playbook(api, each) for each in (old, new))
    if not Path(old).is_file():
        _hold_same(old, before.name, after)
    shown = diff(before, after).shown()
    return {
        **shown,
        "impact": None,
        "impact_lines": [],
        "simulate": f"baton playbook simulate {new}",
        "warnings": [],
    }


def _hold_same(old: str, name: str, new: Playbook) -> None:
    """Hold that `old`, which is no file, is of the playbook that `new` is of: it may be a file mistyped."""
    if name != new.name:
        raise ValueError(
            f"{old!r} is neither a file nor of the playbook {new.name!r}, which the other text is of: "
            f"write a file that exists, or {new.name}, or {new.name}@3"
        )


def _against_active(api: Api | None, text: str, *, impact: bool) -> dict[str, Any]:
    assert api is not None  # noqa: S101
    return _counted(api, "POST", "/diff", impact=impact, content=text.encode(), headers=_YAML)


def _counted(
    api: Api,
    method: str,
    path: str,
    query: dict[str, str] | None = None,
    *,
    impact: bool,
    **named: Any,
) -> dict[str, Any]:
    """Ask for a diff, with `impact` for how many too; not counted while that is done for somebody else."""
    query = query or {}
    if not impact:
        return api.json(method, path, params=query, **named)
    try:
        return api.json(method, path, params={**query, "impact": "true"}, **named)
    except RefusedError as error:
        if error.code != "busy":
            raise
        found = api.json(method, path, params=query, **named)
        return found | {"impact_lines": [f"Not counted for how many journeys: {error}"]}


def _text(api: Api | None, named: str) -> str:
    if api is None or Path(named).is_file():
        return Path(named).read_text(encoding="utf-8")
    return api.text(named)


def _playbook(api: Api | None, named: str) -> Playbook:
    return parse_playbook(_text(api, named), named)


def show(found: dict[str, Any], console: Console) -> None:
    """Print a diff: each change in a sentence, what it means now below, its line in the new file beside."""
    console.print(found["summary"], markup=False, soft_wrap=True)
    for change in found["changes"]:
        line = f"line {change['line']}" if change["line"] else ""
        sign = "[bold yellow]→[/]" if change["moves"] else "[dim]·[/]"
        console.print(f"  {sign} ", end="")
        console.print(change["sentence"], markup=False, soft_wrap=True, end="")
        console.print(f"  [dim]{line}[/]" if line else "")
        if change["impact"]:
            console.print(f"      {change['impact']}", markup=False, soft_wrap=True, style="bold")
    for line in found["impact_lines"]:
        console.print(f"  {line}", markup=False, soft_wrap=True, style="bold")
    if found["moves"]:
        console.print("→ can change where journeys go. What history would have been:", markup=False)
        console.print(f"  {found['simulate']}", markup=False, soft_wrap=True)


def forewarn(found: dict[str, Any], console: Console) -> None:
    """Print what would become of publications that wait, before somebody says yes."""
    for line in _warnings(found):
        console.print(line, markup=False, soft_wrap=True, style="bold")


def _warnings(found: dict[str, Any]) -> list[str]:
    return [f"warning: {w['message']}. {w['remedy']}" for w in found.get("warnings", [])]


def publish(
    api: Api, text: str, before: int | None, message: str, at: datetime | None, expected: int | None
) -> str:
    """Publish `text` on top of the version `before` (None: the first one), and say what came of it."""
    query: dict[str, str] = {"message": message} if message else {}
    if at is not None:
        query["activate_at"] = at.isoformat()
    content = text.encode()
    if before is None and expected is None:
        made = api.json("POST", "", content=content, headers=_YAML, params=query)
    else:
        headers = {**_YAML, "if-match": f'"{expected if expected is not None else before}"'}
        name = parse_playbook(text, "playbook").name
        made = api.json("PUT", f"/{name}", content=content, headers=headers, params=query)
    return published(made)


def published(made: dict[str, Any]) -> str:
    """Say what was published, or when it is to be; what becomes of what waits stands before that."""
    return "\n".join([*_warnings(made), _made(made)])


def _made(made: dict[str, Any]) -> str:
    if "activate_at" in made:
        return f"{made['name']} is to be published at {_moment(made['activate_at'])}: {made['id']}"
    back = f", the text of version {made['restores']}" if made["restores"] else ""
    return f"{made['name']} version {made['version']} is active{back}"


def compare_back(api: Api, name: str, version: int, *, impact: bool) -> dict[str, Any]:
    """Give what differs of an older version from the active one, with `impact` also for how many."""
    active = api.json("GET", f"/{name}")["version"]
    path = f"/{name}/versions/{active}/diff"
    return _counted(api, "GET", path, {"to": str(version)}, impact=impact)


def roll_back(
    api: Api, name: str, version: int, active: int, message: str, migrate: dict[str, str]
) -> str:
    """Publish the text of an older version again on top of the `active` one, and say what came of it."""
    body = {"version": version, "message": message, "migrate": migrate}
    made = api.json(
        "POST", f"/{name}/rollback", content=msgspec.json.encode(body),
        headers={"content-type": "application/json", "if-match": f'"{active}"'},
    )  # fmt: skip
    return published(made)


def show_versions(api: Api, name: str | None, console: Console) -> None:
    """Print the versions of one playbook, or the active of each; what waits, what was refused since."""
    table = Table(show_edge=False)
    for column in ("playbook", "version", "active since UTC", "by", "message", "what changed"):
        table.add_column(column, no_wrap=column.endswith("UTC"), overflow="fold")
    names = [name] if name else [p["name"] for p in api.json("GET", "")["items"]]
    for each in names:
        for v in api.json("GET", f"/{each}/versions")["items"]:
            if name is None and not v["active"]:
                continue
            number = f"{v['version']} *" if v["active"] else str(v["version"])
            changed = v["diff"]["summary"] if v["diff"] else ""
            if v["restores"]:
                changed = f"back to {v['restores']}. {changed}"
            table.add_row(
                each, number, _moment(v["activated_at"]), v["author"] or "a file at the start",
                v["message"] or "", changed,
            )  # fmt: skip
    console.print(table)
    query = {"name": name} if name else {}
    for s in api.json("GET", "/scheduled", params=query)["items"]:
        if s["state"] == "waiting":
            line = f"to be published at {_moment(s['activate_at'])} UTC by {s['author']}: {s['id']}"
        elif s["open"]:
            when = f"{_moment(s['activate_at'])} UTC"
            line = f"refused at {when}, scheduled by {s['author']}: {s['reason']} ({s['id']})"
        else:
            continue
        console.print(f"{s['name']}: {line}", markup=False, soft_wrap=True)


def cancel(api: Api, id: str) -> str:
    """Call a publication off, and say so."""
    made = api.json("DELETE", f"/scheduled/{id}")
    return f"{made['name']} is not published at {_moment(made['activate_at'])}: {made['state']}"


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M}"
