"""`baton subscriptions`: who hears of events, how it fares, and what to do about it, over the API."""

from __future__ import annotations

import json
import uuid
from typing import Any, cast

import httpx
from rich.console import Console
from rich.table import Table

from services.baton.command import RefusedError, told

TIMEOUT_S = 60.0
TEST_WITHIN_S = 20
PAGE = 200
ID_WIDTH = 36
ROOT = "/v1/subscriptions"


class _Service:
    """The stage service, asked with a key. Every method raises RefusedError and httpx.HTTPError."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}

    def ask(
        self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        headers = dict(self._headers)
        if method == "POST":
            headers["idempotency-key"] = f'"{uuid.uuid4()}"'
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        with httpx.Client(base_url=self._url, headers=headers, timeout=TIMEOUT_S) as client:
            answer = client.request(method, path, json=body, params=asked)
        if answer.status_code == 204:
            return {}
        found = cast("dict[str, Any]", answer.json())
        if not answer.is_success:
            field = f"{found['field']}: " if found.get("field") else ""
            raise RefusedError(field + (told(found) or answer.text))
        return found

    def all(self) -> list[dict[str, Any]]:
        """Give all subscriptions."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = self.ask("GET", ROOT, query={"limit": PAGE, "cursor": cursor})
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return items

    def path(self, id: str) -> str:
        """Give the path of a subscription named by its id or its name."""
        try:
            return f"{ROOT}/{uuid.UUID(id)}"
        except ValueError:
            named = [s["id"] for s in self.all() if s["name"] == id]
        if len(named) == 1:
            return f"{ROOT}/{named[0]}"
        several = f"{len(named)} subscriptions are named {id!r}: use the id of one."
        nobody = f"there is no subscription {id!r}. See: baton subscriptions list."
        raise RefusedError(several if named else nobody)


def add(url: str, key: str, wish: dict[str, Any]) -> str:
    """Make a subscription; gives lines with its id and secret."""
    made = _Service(url, key).ask("POST", ROOT, wish)
    return f"id      {made['id']}\n{_secret(made['secrets'][0])}"


def _secret(secret: dict[str, Any]) -> str:
    public = f"public  {secret['public_key']}\n" if secret["public_key"] else ""
    return f"secret  {secret['secret']}\n{public}The secret is not shown again."


def list_all(url: str, key: str) -> None:
    """Print all subscriptions."""
    table = Table(show_edge=False, show_lines=True)
    for column in ("subscription", "state", "behind", "pending", "last success"):
        table.add_column(
            column, overflow="fold", width=ID_WIDTH if column == "subscription" else None
        )
    for item in _Service(url, key).all():
        health = item["health"]
        fails = health["failing_since"]
        state = item["state"] + (f", failing since {_minute(fails)}" if fails else "")
        table.add_row(
            f"{item['name']}\n{item['id']}", state, str(health["lag"]), str(health["pending"]),
            _minute(health["last_success_at"]),
        )  # fmt: skip
    Console(highlight=False, markup=False).print(table)


def _minute(text: str | None) -> str:
    return text[:16].replace("T", " ") if text else "–"


def show(url: str, key: str, id: str) -> str:
    """Give one subscription as JSON."""
    service = _Service(url, key)
    return json.dumps(service.ask("GET", service.path(id)), indent=2, ensure_ascii=False)


def deliveries(url: str, key: str, id: str, query: dict[str, Any]) -> None:
    """Print the newest deliveries that `query` asks for."""
    service = _Service(url, key)
    found = service.ask("GET", f"{service.path(id)}/deliveries", query=query | {"limit": PAGE})
    for item in found["items"]:
        last = item["attempts"][-1] if item["attempts"] else {}
        said = last.get("reason") or last.get("status") or ""
        print(
            f"{item['id']}  {item['created_at'][:19]}  {item['state']:9} {len(item['attempts'])}x  "
            f"{item['event_type']}  {said}"
        )
    if found["next_cursor"]:
        print(f"These are the newest {PAGE}; choose by --state or --lead.")


def set_state(url: str, key: str, id: str, deed: str, body: dict[str, Any]) -> str:
    """Pause or resume; says what it is now."""
    service = _Service(url, key)
    now = service.ask("POST", f"{service.path(id)}/{deed}", body)
    return f"{now['name']} is {now['state']}, at position {now['health']['position']}"


def test(url: str, key: str, id: str) -> tuple[bool, str]:
    """Send a test event; gives whether it got through, and a line that says what came of it."""
    service = _Service(url, key)
    sent = service.ask("POST", f"{service.path(id)}/test", query={"wait": TEST_WITHIN_S})
    if not sent["attempts"]:
        return False, f"no attempt within {TEST_WITHIN_S} s; see the delivery {sent['id']}"
    last = sent["attempts"][-1]
    told = last.get("reason") or f"answered {last.get('status')}"
    return sent["state"] == "delivered", f"{sent['state']}: {told}, {last['duration_ms']} ms"


def rotate(url: str, key: str, id: str, wish: dict[str, Any]) -> str:
    """Replace the secret; gives lines with the new one."""
    service = _Service(url, key)
    return _secret(service.ask("POST", f"{service.path(id)}/secrets/rotate", wish))


def resend(url: str, key: str, id: str, delivery: str | None, wish: dict[str, Any]) -> str:
    """Resend one delivery, or those given up in a range; says how many."""
    service = _Service(url, key)
    if delivery is not None:
        service.ask("POST", f"{service.path(id)}/deliveries/{delivery}/resend")
        return f"{delivery} is due"
    return f"{service.ask('POST', f'{service.path(id)}/resend', wish)['resent']} due again"


def replay(url: str, key: str, id: str, start: str | int) -> str:
    """Set a subscription back; says from where it goes on."""
    service = _Service(url, key)
    done = service.ask("POST", f"{service.path(id)}/replay", {"from": start})
    return f"run {done['run']}: everything after position {done['position']} is delivered"


def remove(url: str, key: str, id: str) -> str:
    """Remove a subscription; says so."""
    service = _Service(url, key)
    service.ask("DELETE", service.path(id))
    return f"{id} is removed"
