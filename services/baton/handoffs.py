"""`baton handoffs`: what waits for an answer, and the answers, over the API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import httpx
from rich.console import Console
from rich.table import Table

from services.baton.command import RefusedError, told

TIMEOUT_S = 30.0
PAGE = 200
NARROW = 130
ID_WIDTH = 36


def _asked(
    url: str, key: str, method: str, path: str, query: dict[str, Any], body: dict[str, Any] | None
) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
        answer = client.request(method, path, params=query, json=body)
    found = cast("dict[str, Any]", answer.json())
    if not answer.is_success:
        raise RefusedError(told(found) or answer.text)
    return found


def show(url: str, key: str, query: dict[str, Any]) -> None:
    """Print the handoffs that `query` (of ``GET /v1/handoffs``) asks for, at most 200.

    Raises RefusedError and httpx.HTTPError.
    """
    found = _asked(url, key, "GET", "/v1/handoffs", {**query, "limit": PAGE}, None)
    console = Console(highlight=False, markup=False)
    narrow = console.width < NARROW
    # Where there is little room, the id and the stage stand below the lead.
    columns = ("lead", "for", "state", "deadline UTC")
    if not narrow:
        columns = ("id", "lead", "stage", "for", "state", "since UTC", "deadline UTC")
    table = Table(show_edge=False, show_lines=narrow)
    for column in columns:
        table.add_column(
            column, no_wrap=column.endswith("UTC"), overflow="fold",
            width=ID_WIDTH if column == columns[0] else None,
        )  # fmt: skip
    for item in found["items"]:
        who = item["person"]["name"] if item["person"] else "nobody"
        whom = f"{who} ({item['role']})"
        state = item["state"] + (" overdue" if item["overdue"] else "")
        id, lead, stage = item["id"], _named(item["lead"]), item["stage_title"]
        due = _moment(item["due_at"])
        if narrow:
            table.add_row(f"{lead}\n{stage}\n{id}", whom, state, due)
        else:
            table.add_row(id, lead, stage, whom, state, _moment(item["offered_at"]), due)
    console.print(table)
    if found["next_cursor"]:
        console.print(f"These are the first {PAGE}; choose by --role or --person.")


def answer(
    url: str, key: str, id: str, said: str, person: str | None, reason: str | None = None
) -> str:
    """Answer a handoff (`said` is ``accept`` or ``reject``), and say what it is now.

    Raises RefusedError and httpx.HTTPError.
    """
    body = {"person": person} | ({"reason": reason} if reason is not None else {})
    item = _asked(url, key, "POST", f"/v1/handoffs/{id}/{said}", {}, body)
    why = f": {item['reason']}" if item["reason"] else ""
    return f"{item['id']} is {item['state']} by {item['answered_by']}{why}"


def _named(lead: dict[str, Any]) -> str:
    name = lead["name"] or lead["email"]
    if not name:
        return lead["company"] or lead["id"]
    return f"{name} ({lead['company']})" if lead["company"] else name


def _moment(text: str | None) -> str:
    return f"{datetime.fromisoformat(text).astimezone(UTC):%d %b %H:%M}" if text else "none"
