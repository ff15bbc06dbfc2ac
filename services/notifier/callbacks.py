"""What comes back from an alert: the signed link's page and button, and the buttons in Slack.

Nobody logs in here. The link's signature, and Slack's over the raw bytes, say who may act; opening a link
changes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import urllib.parse
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from services.notifier import attention, reads, store
from services.notifier.access import House, house
from services.notifier.errors import InvalidRequestError, NotAuthenticatedError, NotFoundError
from services.notifier.links import Grant

SLACK_WITHIN_S = 300
"""How old Slack's request may be (its documentation: five minutes)."""
SLACK_BYTES_MAX = 262_144
SNOOZE = timedelta(hours=1)
TOKEN_CHARACTERS_MAX = 1000

router = APIRouter()

_HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{title} · Baton</title>
<style>body{{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:3rem auto;padding:0 1rem}}
button{{font:inherit;padding:.5rem 1.2rem}}</style><h1>{title}</h1>{body}</html>"""


@router.get("/seen/{token}", include_in_schema=False)
async def show_link(request: Request, token: str) -> Response:
    """Show what the link would acknowledge, and the button; changes nothing."""
    parts = house(request)
    grant = _grant(parts, token)
    if grant is None:
        return _gone()
    alert = await reads.get_alert(parts.pool, grant.alert_id)
    if alert is None:
        return _gone()
    subject = html.escape(alert["subject"])
    if alert["acknowledged_at"] is not None:
        return _page("Already acknowledged", f"<p>{subject}</p>")
    form = f"<p>{subject}</p><form method='post'><button>Got it</button></form>"
    return _page("Have you seen this?", form)


@router.post("/seen/{token}", include_in_schema=False)
async def use_link(request: Request, token: str) -> Response:
    """Acknowledge the alert as the person the link was made for; once a link."""
    parts = house(request)
    grant = _grant(parts, token)
    if grant is None:
        return _gone()
    now = parts.now()
    if not await store.use_link(parts.pool, grant.id, grant.alert_id, grant.person, now):
        return _page("Already used", "<p>This link was used before.</p>", 409)
    return _page("Thank you", "<p>It is acknowledged: nothing more is sent about it.</p>")


@router.post("/slack/actions", include_in_schema=False)
async def slack_action(request: Request) -> Response:
    """Do what a button in Slack says, when Slack signed the request.

    Raises NotFoundError when no signing secret is set, NotAuthenticatedError for a wrong or old signature.
    """
    parts = house(request)
    if not parts.slack_secret:
        raise NotFoundError("there is no such page", remedy="Set BATON_SLACK_SIGNING_SECRET.")
    body = await _body(request)
    timestamp = request.headers.get("x-slack-request-timestamp", "")
    signature = request.headers.get("x-slack-signature", "")
    if not slack_signed(parts.slack_secret, timestamp, signature, body, parts.now()):
        raise NotAuthenticatedError(
            "the signature is not Slack's, or older than five minutes",
            remedy="Set BATON_SLACK_SIGNING_SECRET to the app's signing secret.",
        )
    for action, id, who in _actions(body):
        if action == "baton_seen":
            await store.acknowledge(parts.pool, id, who, parts.now())
        elif action == "baton_snooze":
            now = parts.now()
            await attention.snooze(parts.pool, id, now + SNOOZE, who, now, parts.tries)
    return PlainTextResponse("")


def slack_signed(secret: str, timestamp: str, signature: str, body: bytes, now: datetime) -> bool:
    """Tell whether Slack signed `body` (its scheme v0), and not long ago."""
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        return False
    if abs(int(timestamp) - now.astimezone(UTC).timestamp()) > SLACK_WITHIN_S:
        return False
    signed = b"v0:" + timestamp.encode() + b":" + body
    expected = "v0=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))


def _actions(body: bytes) -> list[tuple[str, UUID, str]]:
    """Read which buttons were pressed on which alerts, by whom."""
    try:
        fields = urllib.parse.parse_qs(body.decode(), max_num_fields=20)
        payload = cast("dict[str, Any]", msgspec.json.decode(fields["payload"][0]))
        who = f"slack:{payload['user']['id']}"[:64]
        return [
            (str(a["action_id"]), UUID(str(a["value"])), who)
            for a in payload.get("actions", ())
            if a.get("action_id") in ("baton_seen", "baton_snooze")
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InvalidRequestError(
            "the payload is not that of a button of ours", field="payload",
            remedy="Point Slack's interactivity at this address only.",
        ) from error  # fmt: skip


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > SLACK_BYTES_MAX:
            raise InvalidRequestError(
                f"more than {SLACK_BYTES_MAX} bytes", field="payload", remedy="Send less."
            )
    return body


def _grant(parts: House, token: str) -> Grant | None:
    if parts.links is None or len(token) > TOKEN_CHARACTERS_MAX:
        return None
    return parts.links.read(token, parts.now())


def _gone() -> Response:
    return _page("Not valid any more", "<p>The link is wrong or has expired.</p>", 404)


def _page(title: str, body: str, status: int = 200) -> Response:
    return HTMLResponse(_PAGE.format(title=title, body=body), status, _HEADERS)
