"""Asking the notifier on behalf of the person who looks at a page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from services.stage_service.api.access import House

NOTIFIER_WITHIN_S = 3.0
DEEDS = ("ack", "retry", "snooze", "mute", "unmute")
SNOOZE = timedelta(hours=1)


class NotifierAwayError(Exception):
    """The notifier did not answer, or not in its own words."""


async def ask(
    house: House,
    token: str | None,
    method: str,
    path: str,
    wish: dict[str, Any] | None = None,
    /,
    **params: str | None,
) -> dict[str, Any]:
    """Ask the notifier with the caller's own token; `wish` is the body. Raises NotifierAwayError."""
    try:
        answer = await house.notifier.request(
            method, path, params={k: v for k, v in params.items() if v}, json=wish,
            headers={"authorization": f"Bearer {token}"}, timeout=NOTIFIER_WITHIN_S,
        )  # fmt: skip
        body = answer.json() if answer.content else {}
    except (httpx.HTTPError, ValueError) as error:
        raise NotifierAwayError(type(error).__name__) from error
    if not answer.is_success:
        raise NotifierAwayError(str(body.get("detail", answer.status_code)))
    return body


async def act(house: House, token: str | None, deed: str, id: str) -> dict[str, Any]:
    """Do what a button of an alert says; gives the alert as it is then. Raises NotifierAwayError."""
    path = f"/v1/alerts/{id}"
    if deed in ("ack", "retry"):
        return await ask(house, token, "POST", f"{path}/{deed}")
    if deed == "snooze":
        until = (datetime.now(UTC) + SNOOZE).isoformat()
        return await ask(house, token, "POST", f"{path}/snooze", {"until": until})
    alert = await ask(house, token, "GET", path)
    person, lead = alert["addressee_id"], alert["lead_id"]
    if deed == "mute":
        await ask(house, token, "POST", "/v1/mutes", {"person": person, "lead_id": lead})
    elif alert["muted"]:
        await ask(house, token, "DELETE", f"/v1/mutes/{person}/{lead}")
    return await ask(house, token, "GET", path)
