"""Logging a browser in by a one-time link, and out again."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from services.contracts.access import (
    LOGIN_MINUTES,
    SESSION_COOKIE,
    SESSION_DAYS,
    redeem_login,
    revoke_key,
)
from services.contracts.audit import Actor
from services.stage_service.api.access import house, token_of
from services.stage_service.errors import NotAllowedError
from services.stage_service.pages.rendering import PageRoute, form_of, own_path, page

router = APIRouter(route_class=PageRoute, include_in_schema=False)


def _same_site(request: Request) -> None:
    """Refuse a form that another site sent. Raises NotAllowedError."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    elsewhere = origin is not None and origin.partition("://")[2] != request.headers.get("host")
    if elsewhere or site not in (None, "same-origin", "none"):
        raise NotAllowedError(
            "this form came from another site", remedy="Open Baton and try again."
        )


@router.get("/login")
async def login_page(request: Request, next: str | None = None) -> Response:
    """Show how to get in."""
    return _login(request, own_path(next))


def _login(request: Request, next: str, status: int = 200, failed: bool = False) -> Response:
    facts: dict[str, Any] = {"next": next, "failed": failed, "minutes": LOGIN_MINUTES, "who": None}
    return page(request, "login.html", status, **facts)


@router.post("/login")
async def login(request: Request) -> Response:
    """Redeem a one-time token, as the link's script or a person sends it."""
    _same_site(request)
    form = await form_of(request)
    next = own_path(form.get("next"))
    # Whole links are welcome too.
    token = form.get("token", "").strip().rpartition("#")[2]
    address = request.client.host if request.client else None
    rates = house(request).gatekeeper.rates
    rates.may_try(address)
    session = await redeem_login(house(request).pool, token)
    if session is None:
        rates.failed(address)
        return _login(request, next, 403, failed=True)
    answer = RedirectResponse(next, 303, {"cache-control": "no-store"})
    # Behind a proxy with TLS that was not named to us, the public address tells.
    secure = request.url.scheme == "https" or house(request).public_url.startswith("https:")
    answer.set_cookie(
        SESSION_COOKIE, session, max_age=SESSION_DAYS * 86_400, path="/", httponly=True,
        samesite="strict", secure=secure,
    )  # fmt: skip
    return answer


@router.post("/logout")
async def logout(request: Request) -> Response:
    """End the browser's session."""
    _same_site(request)
    it = house(request)
    cookie = request.cookies.get(SESSION_COOKIE)
    if cookie is not None and token_of(request) == cookie:
        who = await it.gatekeeper.authenticate(cookie)
        if who is not None:
            await revoke_key(it.pool, who.id, Actor(who.name, who.id), "session")
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict")
    return answer
