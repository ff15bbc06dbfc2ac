"""The commands `baton quarantine ...`: over the stage service's API."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from services.baton.command import DATA, STAGE_URL, Data, Url, api_key, fail, run, told

app = typer.Typer(
    no_args_is_help=True, help="What could not be mapped: list, show, replay, discard."
)


async def _ask(url: str, key: str, method: str, path: str, **options: Any) -> Any:
    import httpx

    async with httpx.AsyncClient(
        base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60
    ) as client:
        answer = await client.request(method, path, **options)
    body = answer.json()
    if answer.status_code != 200:
        fail(told(body) or answer.text)
    return body


@app.command("list")
def quarantine_list(
    source: Annotated[str | None, typer.Option(help="only this source's")] = None,
    status: Annotated[str, typer.Option(help="open, replayed, discarded or all")] = "open",
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """List deliveries, newest first: id, source, when, times, and the first reason."""
    cursor: str | None = None
    while True:
        asked = {"source": source, "status": status, "cursor": cursor, "limit": 200}
        parameters = {name: value for name, value in asked.items() if value is not None}
        page = run(_ask(url, api_key(data), "GET", "/v1/quarantine", params=parameters))
        for item in page["items"]:
            reason = item["reasons"][0]
            print(
                f"{item['id']}  {item['source']:16} {item['last_received_at'][:19]}  "
                f"{item['times']}x  {reason.get('field', '')}: {reason['reason']}"
            )
        if not page["items"] and cursor is None:
            of = f" of {source}" if source else ""
            print(f"nothing in quarantine{of}, status {status}", file=sys.stderr)
        cursor = page["next_cursor"]
        if cursor is None:
            return


@app.command("show")
def quarantine_show(id: str, url: Url = STAGE_URL, data: Data = DATA) -> None:
    """Print one delivery whole, as JSON."""
    found = run(_ask(url, api_key(data), "GET", f"/v1/quarantine/{id}"))
    print(json.dumps(found, indent=2, ensure_ascii=False))


@app.command("replay")
def quarantine_replay(
    id: Annotated[str | None, typer.Argument(help="one delivery")] = None,
    source: Annotated[str | None, typer.Option(help="all open ones of a source")] = None,
    apply: Annotated[bool, typer.Option(help="apply, instead of showing what would be")] = False,
    url: Url = STAGE_URL,
    data: Data = DATA,
) -> None:
    """Map deliveries by their source file as it is now; nothing is applied without --apply."""
    if (id is None) == (source is None):
        fail("give the id of a delivery, or --source", 2)
    wish: dict[str, Any] = {"dry_run": not apply}
    path = f"/v1/quarantine/{id}/replay"
    if source is not None:
        path = "/v1/quarantine/replay"
        wish["source"] = source
    found = run(_ask(url, api_key(data), "POST", path, json=wish))
    print(json.dumps(found, indent=2, ensure_ascii=False))


@app.command("discard")
def quarantine_discard(id: str, url: Url = STAGE_URL, data: Data = DATA) -> None:
    """Close a delivery that says nothing of worth, without applying it; it stays readable."""
    run(_ask(url, api_key(data), "POST", f"/v1/quarantine/{id}/discard"))
    print(f"{id}: discarded")
