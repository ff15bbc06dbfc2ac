"""From facts to a page: templates, assets named by their content, headers, errors in the same look."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import asyncpg
import structlog
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from services.contracts.problems import BatonError, answer_headers
from services.stage_service.api.access import STATUS
from services.stage_service.errors import (
    InvalidRequestError,
    NotAuthenticatedError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from services.stage_service.pages import wording

FORM_BYTES_MAX = 65_536
FORM_FIELDS_MAX = 20
FOREVER = "public, max-age=31536000, immutable"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    # Not no-referrer: with that a browser sends `Origin: null` with our own forms, and they would be
    # refused as another site's.
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}

_HERE = Path(__file__).parent
_log = structlog.get_logger("baton.pages")

static_files = StaticFiles(directory=_HERE / "static")
digests = {
    file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    for file in (_HERE / "static").iterdir()
    if file.is_file()
}
"""What names each asset's content."""


def _asset(name: str) -> str:
    return f"/static/{digests[name]}/{name}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared: dict[str, Any] = {"asset": _asset, "version": version("baton")}
    environment.globals |= shared
    wording.teach(environment)
    return environment


_templates = _environment()


def page(request: Request, template: str, status: int = 200, **facts: Any) -> HTMLResponse:
    """Render `template` with `facts`."""
    text = _templates.get_template(template).render(
        path=request.url.path,
        query=request.query_params,
        overdue_handoffs=getattr(request.state, "overdue_handoffs", 0),
        **facts,
    )
    return HTMLResponse(text, status, HEADERS)


def is_fragment(request: Request) -> bool:
    """Say whether the page's script asks for a part of a page; going back asks for the whole."""
    headers = request.headers
    return headers.get("hx-request") == "true" and "hx-history-restore-request" not in headers


def own_path(text: str | None) -> str:
    """Give `text` when it is a path of ours, else ``/``: nobody is sent to another site."""
    good = (
        text and text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    )
    return text if text and good else "/"


async def form_of(request: Request, bytes_max: int = FORM_BYTES_MAX) -> dict[str, str]:
    """Read an urlencoded form. Raises TooLargeError, InvalidRequestError."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > bytes_max:
            raise TooLargeError("the form is too large", remedy="Write less.")
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=FORM_FIELDS_MAX
        )
    except ValueError:
        raise InvalidRequestError("the form cannot be read", remedy="Send it again.") from None
    return {name: value.replace("\x00", "").replace("\r\n", "\n") for name, value in pairs}


class PageRoute(APIRoute):
    """A route of a page: who is not logged in goes to the login, an error is a page too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give the handler that answers errors as pages."""
        handler = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except NotAuthenticatedError:
                return _to_login(request)
            except Exception as error:
                return error_page(request, _told(request, error))

        return answered


class Nowhere(PageRoute):
    """What a browser gets where there is no page; for others it is not there."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match only who asks for HTML."""
        accepts = next((v for k, v in scope.get("headers", ()) if k == b"accept"), b"")
        return super().matches(scope) if b"text/html" in accepts else (Match.NONE, {})


def _told(request: Request, error: Exception) -> BatonError:
    """Give `error` as one of ours; a bug is logged."""
    match error:
        case BatonError():
            return error
        case RequestValidationError():
            first = error.errors()[0]
            name = str(first["loc"][-1])
            return InvalidRequestError(f"{name}: {first['msg']}", field=name)
        case HTTPException(status_code=404):
            return NotFoundError("There is no such page.")
        case (
            OSError()
            | asyncpg.PostgresConnectionError()
            | asyncpg.InterfaceError()
            | (OperationalError() | InterfaceError())
        ):
            _log.warning("pages.database_unavailable", reason=type(error).__name__)
            return UnavailableError(
                "The database does not answer.", remedy="Try again in a moment."
            )
        case _:
            _log.error("pages.failed", path=request.url.path, exc_info=error)
            return BatonError("Baton made a mistake; it is in the log.", remedy="Try it again.")


def error_page(request: Request, error: BatonError) -> Response:
    """Answer `error` as a page, or as a part of one."""
    code = STATUS.get(type(error), 500)
    title = (type(error).__doc__ or "").rstrip(".") if code != 500 else "Something went wrong"
    template = "_error.html" if is_fragment(request) else "error.html"
    answer = page(request, template, code, code=code, title=title, error=error, who=None)
    answer.headers.update(answer_headers(error, code))
    return answer


def _to_login(request: Request) -> Response:
    if is_fragment(request):
        return Response(status_code=401, headers={"hx-redirect": "/login"})
    if request.method not in ("GET", "HEAD"):
        return RedirectResponse("/login", 303)
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        # A link in a mail or a chat: the browser keeps the SameSite=Strict cookie back until a page of
        # ours asks. This one does.
        return page(request, "again.html", target=own_path(target))
    where = "" if target == "/" else f"?next={quote(target, safe='')}"
    return RedirectResponse(f"/login{where}", 303, {"cache-control": "no-store"})
