"""`baton tail`: transitions and alerts as they happen, in the terminal."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import httpx
import msgspec
from rich.console import Console
from rich.text import Text

AGAIN_S = 1.0
ALERTS_EVERY_S = 1.0

_console = Console(highlight=False)


async def follow(url: str, notifier_url: str, key: str) -> None:
    """Print what happens until interrupted; goes on where it was after a broken connection.

    Raises httpx.HTTPError when the stage service does not answer at the start.
    """
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(5, read=60)) as client:
        (await client.get(f"{url}/v1/leads?limit=1")).raise_for_status()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_transitions(client, url))
            tasks.create_task(_alerts(client, notifier_url))


async def _transitions(client: httpx.AsyncClient, url: str) -> None:
    last: str | None = None
    while True:
        try:
            headers = {"last-event-id": last} if last else {}
            async with client.stream(
                "GET", f"{url}/v1/transitions/stream", headers=headers
            ) as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    if line.startswith("id:"):
                        last = line[3:].strip()
                    elif line.startswith("data:"):
                        _show_transition(msgspec.json.decode(line[5:].strip()))
        except httpx.HTTPError as error:
            _console.print(f"[dim]stream lost ({type(error).__name__}), connecting again[/]")
        await asyncio.sleep(AGAIN_S)


def _show_transition(item: dict[str, Any]) -> None:
    if "lead" not in item:
        _show_merge(item)
        return
    lead = item["lead"]
    owner = (item["responsible"]["owner"] or {}).get("name", "nobody")
    text = Text(_clock(item["recorded_at"]), "dim")
    text.append(f"  {lead['company'] or lead['name'] or lead['email'] or lead['id']}", "bold")
    text.append(f"  {item['from']} > {item['to']}", "green" if not item["replaces"] else "yellow")
    text.append(f"  {item['responsible']['role']}: {owner}", "cyan")
    text.append(f"\n          {item['explanation']}", "dim")
    _console.print(text, soft_wrap=True)


def _show_merge(item: dict[str, Any]) -> None:
    if item.get("lead_id") != item.get("survivor"):  # told in the order of both leads: show it once
        return
    text = Text(_clock(item["recorded_at"]), "dim")
    text.append(f"  {item['survivor']}", "bold")
    parted = item["type"] == "baton.lead.unmerged.v1"
    text.append("  parted from " if parted else "  merged with ", "magenta")
    text.append(f"{item['merged']}\n          {item['reason']}", "dim")
    _console.print(text, soft_wrap=True)


async def _alerts(client: httpx.AsyncClient, url: str) -> None:
    seen: str | None = None
    while True:
        try:
            answer = await client.get(f"{url}/v1/alerts", params={"limit": 50})
            answer.raise_for_status()
            items = answer.json()["items"]
            for item in reversed(items):
                if seen is not None and item["id"] > seen:
                    _show_alert(item)
            seen = max([i["id"] for i in items] + [seen or ""])
        except (httpx.HTTPError, KeyError, ValueError):
            pass  # the notifier is away: the transitions go on
        await asyncio.sleep(ALERTS_EVERY_S)


def _show_alert(item: dict[str, Any]) -> None:
    person = (item["person"] or {}).get("name", "nobody eligible")
    text = Text(_clock(item["created_at"]), "dim")
    text.append(f"  alert to {person}", "bold magenta")
    text.append(f"  {item['subject']}")
    _console.print(text, soft_wrap=True)


def _clock(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().strftime("%H:%M:%S")
