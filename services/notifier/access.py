"""Who may do what, and how failures are answered, for every route of the notifier."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import asyncpg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from services.contracts.access import Gatekeeper, Principal, Scope, request_token
from services.contracts.database import DATABASE_AWAY
from services.contracts.problems import PROBLEM_CONTENT_TYPE, BatonError, problem
from services.notifier.consumer import Consumer
from services.notifier.deliveries import Dispatcher
from services.notifier.errors import (
    ConflictError,
    InvalidRequestError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    UnavailableError,
    UnreadableError,
)

STATUS: dict[type[BatonError], int] = {
    NotAuthenticatedError: 401,
    NotAllowedError: 403,
    NotFoundError: 404,
    InvalidRequestError: 422,
    ConflictError: 409,
    UnreadableError: 409,
    UnavailableError: 503,
}
"""The one table from error to HTTP status; a test holds it complete."""

RETRY_AFTER_S = 2
_log = structlog.get_logger("baton.http")


@dataclass
class House:
    """What the routes need, wired once in ``app``."""

    pool: asyncpg.Pool[Any]
    gatekeeper: Gatekeeper
    consumer: Consumer
    dispatcher: Dispatcher
    tries: int
    now: Callable[[], datetime]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process begins to stop: readiness fails first."""


def house(request: Request) -> House:
    """Give the wired parts of the app that serves `request`."""
    return cast("House", request.app.state.house)


def allow(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """Make a FastAPI dependency: the caller's key must have `scope` (or ``admin``)."""

    async def check(request: Request) -> Principal:
        token = request_token(request.method, request.headers, request.cookies)
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
        name = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return problem_response(
            InvalidRequestError(
                f"{name}: {first['msg']}", field=name, value=first.get("input"),
                remedy="See /openapi.json for what is expected.",
            )
        )  # fmt: skip

    async def http(_: Request, error: Exception) -> JSONResponse:
        failure = cast("HTTPException", error)
        title = str(failure.detail)
        return JSONResponse(
            problem(failure.status_code, title.lower().replace(" ", "-"), title, title),
            failure.status_code, failure.headers, PROBLEM_CONTENT_TYPE,
        )  # fmt: skip

    async def unavailable(_: Request, error: Exception) -> JSONResponse:
        _log.warning("http.database_unavailable", reason=type(error).__name__)
        return problem_response(
            UnavailableError("the database does not answer", remedy="Send it again later.")
        )

    async def bug(request: Request, error: Exception) -> JSONResponse:
        _log.error("http.failed", path=request.url.path, exc_info=error)
        return JSONResponse(
            problem(500, "internal", "Baton made a mistake", "The error is in Baton's log."),
            500, None, PROBLEM_CONTENT_TYPE,
        )  # fmt: skip

    app.add_exception_handler(BatonError, baton_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in DATABASE_AWAY:
        app.add_exception_handler(cast("type[Exception]", kind), unavailable)
    app.add_exception_handler(Exception, bug)
