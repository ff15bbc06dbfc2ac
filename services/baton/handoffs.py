"""`baton handoffs`: what waits for an answer, and the answers, over the API."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

import httpx
from rich.console import Console
from rich.table import Table

from services.baton.command import told

TIMEOUT_S = 30.0
PAGE = 200


class RefusedError(Exception):
    """The stage service refused it; the text says why and what to do."""


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
    table = Table(show_edge=False)
    for column in ("id", "lead", "stage", "for", "state", "since", "deadline"):
        table.add_column(column, no_wrap=column == "id")
    for item in found["items"]:
        lead = item["lead"]
        who = item["person"]["name"] if item["person"] else "nobody"
        late = " overdue" if item["overdue"] else ""
        table.add_row(
            item["id"], lead["company"] or lead["name"] or lead["email"] or lead["id"],
            item["stage_title"], f"{who} ({item['role']})", item["state"] + late,
            _moment(item["offered_at"]), _moment(item["due_at"]),
        )  # fmt: skip
    console = Console(highlight=False)
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


def _moment(text: str | None) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC" if text else "none"
