"""Commands that ask the running services: send events, list and retry dead letters."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, cast

import httpx

from services.baton.command import told
from services.contracts.cloudevents import BATCHED

BATCH = 500
TRIES = 5


def _read(text: str) -> list[Any]:
    """Read a JSON array, one JSON object, or JSON lines. Raises ValueError."""
    stripped = text.strip()
    if not stripped:
        return []
    if stripped.startswith("["):
        return cast("list[Any]", json.loads(stripped))
    events: list[Any] = []
    decoder = json.JSONDecoder()
    at = 0
    while at < len(stripped):
        event, at = decoder.raw_decode(stripped, at)
        events.append(event)
        while at < len(stripped) and stripped[at].isspace():
            at += 1
    return events


async def send_events(url: str, key: str, text: str) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Send the CloudEvents in `text` in batches; give counts by status and the rejected results.

    Raises ValueError when `text` is not JSON, httpx.HTTPError when Baton does not take them.
    """
    events = _read(text)
    counts: Counter[str] = Counter()
    rejected: list[dict[str, Any]] = []
    transport = httpx.AsyncHTTPTransport(retries=TRIES)
    async with httpx.AsyncClient(
        base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30, transport=transport
    ) as client:
        for start in range(0, len(events), BATCH):
            answer = await client.post(
                "/v1/events", json=events[start : start + BATCH], headers={"content-type": BATCHED}
            )
            if answer.status_code not in (200, 422):
                answer.raise_for_status()
            for result in answer.json().get("results", ()):
                counts[result["status"]] += 1
                if result["status"] == "rejected":
                    rejected.append(result)
    return counts, rejected


async def dead_letters(notifier_url: str, key: str) -> list[str]:
    """List dead letters, one line each."""
    lines: list[str] = []
    cursor: str | None = None
    async with httpx.AsyncClient(
        base_url=notifier_url, headers={"authorization": f"Bearer {key}"}, timeout=10
    ) as client:
        while True:
            answer = await client.get(
                "/v1/dead-letters", params={"cursor": cursor} if cursor else {}
            )
            answer.raise_for_status()
            page = answer.json()
            lines += [json.dumps(item) for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                return lines


async def retry(notifier_url: str, key: str, id: str) -> str:
    """Deliver the alert `id` again and say what became of it; ValueError with the reason of a refusal."""
    async with httpx.AsyncClient(
        base_url=notifier_url, headers={"authorization": f"Bearer {key}"}, timeout=10
    ) as client:
        answer = await client.post(f"/v1/alerts/{id}/retry")
    body = answer.json()
    if answer.status_code != 200:
        raise ValueError(told(body) or answer.text)
    return f"{id}: {body.get('status', 'queued')}"
