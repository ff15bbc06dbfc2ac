"""Who may do what, and how failures are answered, for every route of the stage service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast

import asyncpg
import httpx
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.exceptions import HTTPException

from services.contracts.access import Gatekeeper, Principal, Scope, request_token
from services.contracts.database import DATABASE_AWAY
from services.contracts.problems import PROBLEM_CONTENT_TYPE, BatonError, problem
from services.contracts.team import Team
from services.stage_service.errors import (
    ConflictError,
    GateUnmetError,
    InvalidRequestError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
)
from services.stage_service.lane import Lane
from services.stage_service.playbook import Playbook
from services.stage_service.pulse import Pulse

STATUS: dict[type[BatonError], int] = {
    NotAuthenticatedError: 401,
    NotAllowedError: 403,
    NotFoundError: 404,
    InvalidRequestError: 422,
    ConflictError: 409,
    GateUnmetError: 409,
    TooLargeError: 413,
    OverloadedError: 503,
    UnavailableError: 503,
}
"""The one table from error to HTTP status; a test holds it complete."""

RETRY_AFTER_S = 2
_log = structlog.get_logger("baton.http")


@dataclass
class House:
    """What the routes need, wired once in ``app``."""

    pool: asyncpg.Pool[Any]
    engine: AsyncEngine
    gatekeeper: Gatekeeper
    lane: Lane
    pulse: Pulse
    notifier: httpx.AsyncClient
    public_url: str
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process begins to stop: readiness fails, streams end."""

    @property
    def playbooks(self) -> dict[str, Playbook]:
        """The active playbooks by name."""
        return self.lane.playbooks

    @property
    def team(self) -> Team:
        """The roster."""
        return self.lane.team


def house(request: Request) -> House:
    """Give the wired parts of the app that serves `request`."""
    return cast("House", request.app.state.house)


def allow(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """Make a FastAPI dependency: the caller's key must have `scope` (or ``admin``)."""

    async def check(request: Request) -> Principal:
        token = token_of(request)
        principal = await house(request).gatekeeper.authenticate(token)
        if principal is None:
            raise NotAuthenticatedError(
                "no valid API key was sent",
                remedy="Send 'Authorization: Bearer <key>'; make a key with 'baton keys create'.",
            )
        if scope not in principal.scopes and "admin" not in principal.scopes:
            raise NotAllowedError(
                f"the key {principal.name!r} has no scope {scope!r}",
                remedy=f"Use a key with the scope {scope!r}.",
            )
        return principal

    return check


def token_of(request: Request) -> str | None:
    """Give the caller's token (`contracts.access.request_token`)."""
    return request_token(request.method, request.headers, request.cookies)


def problem_response(error: BatonError) -> JSONResponse:
    """Answer `error` as problem+json with the status of its type."""
    status = STATUS[type(error)]
    headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {}
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="baton"'
    return JSONResponse(
        problem(
            status, error.code, (type(error).__doc__ or "").rstrip("."), error.reason,
            field=error.field, value=error.value, remedy=error.remedy, extra=error.extra,
        ),
        status, headers, PROBLEM_CONTENT_TYPE,
    )  # fmt: skip


def answer_problems(app: FastAPI) -> None:
    """Make every error of `app`, the framework's own too, an RFC 9457 problem."""

    async def baton_error(_: Request, error: Exception) -> JSONResponse:
        return problem_response(cast("BatonError", error))

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        first = cast("RequestValidationError", error).errors()[0]
        # Of broken JSON the framework tells the offset, which is no field.
        inner = () if first["type"] == "json_invalid" else first["loc"][1:]
        name = ".".join(str(part) for part in inner) or str(first["loc"][0])
        return problem_response(
            InvalidRequestError(
                f"{name}: {first['msg']}", field=name, value=first.get("input"),
                remedy="See /openapi.json for what is expected.",
            )
        )  # fmt: skip

    async def http(_: Request, error: Exception) -> JSONResponse:
        failure = cast("HTTPException", error)
        title = HTTPStatus(failure.status_code).phrase
        body = problem(
            failure.status_code, title.lower().replace(" ", "-"), title, str(failure.detail),
            # The framework's one 400: the body cannot even be decoded.
            field="body" if failure.status_code == 400 else None,
        )  # fmt: skip
        return JSONResponse(body, failure.status_code, failure.headers, PROBLEM_CONTENT_TYPE)

    async def bug(request: Request, error: Exception) -> JSONResponse:
        _log.error("http.failed", path=request.url.path, exc_info=error)
        return JSONResponse(
            problem(500, "internal", "Baton made a mistake", "The error is in Baton's log."),
            500, None, PROBLEM_CONTENT_TYPE,
        )  # fmt: skip

    async def unavailable(_: Request, error: Exception) -> JSONResponse:
        _log.warning("http.database_unavailable", reason=type(error).__name__)
        return problem_response(
            UnavailableError("the database does not answer", remedy="Send it again later.")
        )

    app.add_exception_handler(BatonError, baton_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (*DATABASE_AWAY, OperationalError, InterfaceError):
        app.add_exception_handler(cast("type[Exception]", kind), unavailable)
    app.add_exception_handler(Exception, bug)
