"""What comes back from an alert by its signed link: a page, and its button.

Nobody logs in here. The link's signature says who may act; opening a link changes nothing.
"""

from __future__ import annotations

import html

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from services.contracts.audit import Actor
from services.contracts.links import Grant
from services.notifier import reads, store
from services.notifier.access import House, house

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
    alert = await reads.get_alert(parts.pool, grant.about)
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
    by = Actor(grant.person, via="link")
    if not await store.use_link(parts.pool, grant.id, grant.about, by, now):
        return _page("Already used", "<p>This link was used before.</p>", 409)
    return _page("Thank you", "<p>It is acknowledged: nothing more is sent about it.</p>")


def _grant(parts: House, token: str) -> Grant | None:
    if parts.links is None or len(token) > TOKEN_CHARACTERS_MAX:
        return None
    return parts.links.read(token, parts.now())


def _gone() -> Response:
    return _page("Not valid any more", "<p>The link is wrong or has expired.</p>", 404)


def _page(title: str, body: str, status: int = 200) -> Response:
    return HTMLResponse(_PAGE.format(title=title, body=body), status, _HEADERS)
