"""What every route of both HTTP APIs does alike: who may ask, how often, once, and how failures are answered.

Each application keeps its `Gatekeeper` in ``app.state.house.gatekeeper`` and its `Once` in
``app.state.house.once``. Everything that goes wrong, the framework's own errors too, is an RFC 9457 problem.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, cast

import asyncpg
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from services.contracts.access import Gatekeeper, Principal, Scope, request_token, required
from services.contracts.database import DATABASE_AWAY
from services.contracts.idempotency import (
    KEY_CHARACTERS_MAX,
    KEY_PATTERN,
    Answer,
    Attempt,
    Once,
    fingerprint_of,
    key_of,
)
from services.contracts.problems import (
    PROBLEM_CONTENT_TYPE,
    BatonError,
    InvalidRequestError,
    UnavailableError,
    answer_headers,
    problem,
    problem_of,
)

BODY_BYTES_MAX = 1024 * 1024
_log = structlog.get_logger("baton.http")


def token_of(request: Request) -> str | None:
    """Give the caller's token (`contracts.access.request_token`)."""
    return request_token(request.method, request.headers, request.cookies)


def gatekeeper_of(request: Request) -> Gatekeeper:
    """Give the gatekeeper of the app that serves `request`."""
    return cast("Gatekeeper", request.app.state.house.gatekeeper)


async def admitted(request: Request) -> Principal:
    """Give who asks, and count the request against their rate, once.

    Raises NotAuthenticatedError, and RateLimitedError when it is too much, or when this address sent too
    many wrong keys.
    """
    who = getattr(request.state, "who", None)
    if who is None:
        gatekeeper = gatekeeper_of(request)
        address = request.client.host if request.client else None
        who = await gatekeeper.known(token_of(request), address)
        gatekeeper.rates.admit(who)
        request.state.who = who
    return who


def allow(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """Make a FastAPI dependency: the caller's key must have `scope` (or ``admin``) and be in its rate."""

    async def check(request: Request) -> Principal:
        who = await admitted(request)
        required(who, scope)
        return who

    check.scope = scope  # type: ignore[attr-defined]  for the OpenAPI document
    return check


def attempt_of(request: Request) -> Attempt | None:
    """Give the attempt that `request` is, when it came with an Idempotency-Key to an `OnceRoute`."""
    return getattr(request.state, "attempt", None)


class SecretResponse(Response):
    """An answer that tells a secret, once: under an Idempotency-Key `kept` is stored in its place."""

    def __init__(self, body: bytes, kept: bytes, status: int = 200, **headers: str) -> None:
        super().__init__(body, status, {**headers, "cache-control": "no-store"}, "application/json")
        self.kept = kept


class OnceRoute(APIRoute):
    """A route that honours ``Idempotency-Key`` on POST; without the header it is any other route.

    The route asks `attempt_of` for the id that its effect must carry. One that knows its callers by
    something else than an API key overrides `claimant`.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        if "POST" in (self.methods or ()):
            self.openapi_extra = {"parameters": [_KEY_PARAMETER], **(self.openapi_extra or {})}

    async def claimant(self, request: Request) -> str:
        """Give whose key the request's is; raises what the caller is refused with."""
        return (await admitted(request)).id

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give the route's way from a request to its response."""
        plain = super().get_route_handler()

        async def once(request: Request) -> Response:
            sent = request.headers.getlist("idempotency-key") if request.method == "POST" else []
            if not sent:
                return await plain(request)
            # First: who may not ask at all is not told what is wrong with the key.
            who = await self.claimant(request)
            key = key_of(sent) or ""
            target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            body = await request.body()

            async def act(attempt: Attempt) -> Answer:
                request.state.attempt = attempt
                return await _answer_of(request, plain)

            answer = await cast("Once", request.app.state.house.once).answer(
                who, key, fingerprint_of(request.method, target, who, body), act, _UNREAD
            )
            headers = {"content-type": answer.content_type}
            if answer.is_repeat:
                headers["idempotency-replayed"] = "true"
            return Response(answer.body, answer.status, headers)

        return once


async def _answer_of(
    request: Request, plain: Callable[[Request], Coroutine[Any, Any, Response]]
) -> Answer:
    """Carry `request` out; what it was refused with is an answer too, unless it may be sent again."""
    try:
        response = await plain(request)
    except BatonError as error:
        statuses: Mapping[type[BatonError], int] = request.app.state.statuses
        if statuses[type(error)] >= 500:
            raise
        response = problem_response(error, statuses)
    kept = response.kept if isinstance(response, SecretResponse) else None
    return Answer(
        response.status_code, response.headers.get("content-type", ""), bytes(response.body),
        kept=kept,
    )  # fmt: skip


_UNREAD = (RequestValidationError, HTTPException)
"""What the framework raises for a request that it cannot read."""

_KEY_PARAMETER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    # No example: a tool that sends examples would send one key with every request.
    "description": "A quoted string of your choice, like a UUID, new for each request. The same request with "
    "the same key has one effect and gets the first answer again.",
    "schema": {
        "type": "string",
        "maxLength": KEY_CHARACTERS_MAX + 2,
        "pattern": f"^{KEY_PATTERN}$",
    },
}


class _BodyLimit:
    """Refuses a body over 1 MiB while it comes: the framework reads it whole before it asks who sent it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        left = BODY_BYTES_MAX

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(
                    413, f"the body is larger than {BODY_BYTES_MAX} bytes", {"connection": "close"}
                )
            return message

        await self._app(scope, limited, send)


def problem_response(error: BatonError, statuses: Mapping[type[BatonError], int]) -> JSONResponse:
    """Answer `error` as problem+json with the status of its type."""
    status = statuses[type(error)]
    headers = dict(answer_headers(error, status))
    return JSONResponse(problem_of(error, status), status, headers, PROBLEM_CONTENT_TYPE)


def answer_problems(
    app: FastAPI,
    statuses: Mapping[type[BatonError], int],
    away: tuple[type[BaseException], ...] = (),
) -> None:
    """Make every error of `app`, the framework's own too, an RFC 9457 problem.

    `away` are errors, beside those of asyncpg, that say that the database does not answer.
    """
    app.state.statuses = statuses
    app.add_middleware(_BodyLimit)

    async def baton_error(_: Request, error: Exception) -> JSONResponse:
        return problem_response(cast("BatonError", error), statuses)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        first = cast("RequestValidationError", error).errors()[0]
        # Of broken JSON the framework tells the offset, which is no field.
        inner = () if first["type"] == "json_invalid" else first["loc"][1:]
        name = ".".join(str(part) for part in inner) or str(first["loc"][0])
        wrong = InvalidRequestError(
            f"{name}: {first['msg']}", field=name, value=first.get("input"),
            remedy="See /openapi.json for what is expected.",
        )  # fmt: skip
        return problem_response(wrong, statuses)

    async def http(request: Request, error: Exception) -> JSONResponse:
        failure = cast("HTTPException", error)
        title = HTTPStatus(failure.status_code).phrase
        code = "too-large" if failure.status_code == 413 else title.lower().replace(" ", "-")
        body = problem(
            failure.status_code, code, title, str(failure.detail),
            # The framework's one 400 and our 413: the body cannot be decoded, or is too large.
            field="body" if failure.status_code in (400, 413) else None,
        )  # fmt: skip
        headers = dict(failure.headers or {})
        if failure.status_code == 405:
            headers["Allow"] = ", ".join(_methods_at(request))
        return JSONResponse(body, failure.status_code, headers, PROBLEM_CONTENT_TYPE)

    async def bug(request: Request, error: Exception) -> JSONResponse:
        _log.error("http.failed", path=request.url.path, exc_info=error)
        body = problem(500, "internal", "Baton made a mistake", "The error is in Baton's log.")
        return JSONResponse(body, 500, None, PROBLEM_CONTENT_TYPE)

    async def nul(request: Request, error: Exception) -> JSONResponse:
        """Name the parameter that holds NUL, which PostgreSQL has no text with."""
        asked = (*request.query_params.multi_items(), *request.path_params.items())
        for name, value in asked:
            if "\x00" in str(value):
                wrong = InvalidRequestError(
                    "contains NUL", field=name, value=value, remedy="Remove it."
                )
                return problem_response(wrong, statuses)
        return await bug(request, error)

    async def unavailable(_: Request, error: Exception) -> JSONResponse:
        _log.warning("http.database_unavailable", reason=type(error).__name__)
        return problem_response(database_away(), statuses)

    app.add_exception_handler(BatonError, baton_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(asyncpg.CharacterNotInRepertoireError, nul)
    for kind in (*DATABASE_AWAY, *away):
        app.add_exception_handler(cast("type[Exception]", kind), unavailable)
    app.add_exception_handler(Exception, bug)


def _methods_at(request: Request) -> list[str]:
    """Give the methods of all routes at the address; the framework names those of the first only.

    Of several patterns that fit it the most literal one counts.
    """
    found: dict[int, set[str]] = {}
    for route in iter_route_contexts(request.app.routes):
        if route.matches(request.scope)[0] != Match.NONE:
            literal = -str(getattr(route, "path_format", "{")).count("{")
            # Pages, and what catches the rest, come after what is documented.
            literal -= 0 if getattr(route, "include_in_schema", False) else 10
            methods = cast("set[str]", getattr(route, "methods", None) or set())
            found.setdefault(literal, set()).update(methods)
    return sorted(found[max(found)]) if found else []


def database_away() -> UnavailableError:
    """Give what is said while the database does not answer."""
    return UnavailableError("the database does not answer", remedy="Send it again later.")
