"""Asking the notifier on behalf of the person who looks at a page."""

from __future__ import annotations

from typing import Any

import httpx

from services.stage_service.api.access import House

NOTIFIER_WITHIN_S = 3.0


class NotifierAwayError(Exception):
    """The notifier did not answer, or not in its own words."""


async def ask(
    house: House, token: str | None, method: str, path: str, **params: str | None
) -> dict[str, Any]:
    """Ask the notifier with the caller's own token. Raises NotifierAwayError."""
    try:
        answer = await house.notifier.request(
            method, path, params={k: v for k, v in params.items() if v},
            headers={"authorization": f"Bearer {token}"}, timeout=NOTIFIER_WITHIN_S,
        )  # fmt: skip
        body = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise NotifierAwayError(type(error).__name__) from error
    if answer.status_code != 200:
        raise NotifierAwayError(str(body.get("detail", answer.status_code)))
    return body
