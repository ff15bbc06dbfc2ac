"""``/webhooks/{source}``: what vendors post, by the source's file in ``sources/``.

Plain ASGI like ``/v1/events``. A delivery is authenticated on its raw bytes before anything is parsed; one
that is authentic is answered 2xx once it is committed, also when it could only be quarantined, since many
vendors drop or disable on 4xx. What cannot be committed in time is answered 503, to be sent again.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from prometheus_client import Histogram

from services.contracts.problems import BatonError, Defect, answer_headers, problem
from services.stage_service.api.access import STATUS
from services.stage_service.api.request_body import (
    BODY_BYTES_MAX,
    GoneError,
    Receive,
    Send,
    TooLargeError,
    header,
    is_too_large,
    read_body,
    unpacked,
)
from services.stage_service.errors import NotFoundError, UnavailableError
from services.stage_service.intake import Intake
from services.stage_service.metrics import DELIVERIES, HTTP_SECONDS
from services.stage_service.sources.mapping import read_delivery
from services.stage_service.sources.signatures import Request
from services.stage_service.sources.source import Handshake, Source

PREFIX = "/webhooks/"
ROUTE = "/webhooks/{source}"
ECHO_CHARACTERS_MAX = 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_log = structlog.get_logger("baton.http")
_encode = msgspec.json.Encoder().encode
_JSON = b"application/json"
_PROBLEM = b"application/problem+json"


class Reply(msgspec.Struct, frozen=True):
    """One HTTP answer."""

    status: int
    body: bytes
    content_type: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


def refused(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    field: str | None = None,
    value: object = None,
    remedy: str | None = None,
) -> Reply:
    """Make the answer for an error: RFC 9457, and the ``message`` that vendors' clients look for."""
    body = problem(
        status, code, title, detail, field=field, value=value, remedy=remedy,
        extra={"message": detail},
    )  # fmt: skip
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if status == 401:
        headers = ((b"www-authenticate", b'Bearer realm="baton", Basic realm="baton"'),)
    elif status == 413:
        headers = ((b"connection", b"close"),)
    return Reply(status, _encode(body), _PROBLEM, headers)


def _told(error: BatonError) -> Reply:
    status = STATUS[type(error)]
    headers = {k: v for k, v in answer_headers(error, status).items() if k != "www-authenticate"}
    reply = refused(
        status, error.code, (type(error).__doc__ or "").rstrip("."), error.reason,
        field=error.field, value=error.value, remedy=error.remedy,
    )  # fmt: skip
    told = reply.headers if status == 401 else ()
    return msgspec.structs.replace(
        reply, headers=(*told, *((k.encode(), v.encode()) for k, v in headers.items()))
    )


class DeliveryEndpoint(ABC):
    """What the endpoints that take deliveries share: errors as answers, the answer sent and measured."""

    def __init__(self, intake: Intake, public_url: str | None) -> None:
        self._intake = intake
        # An address of this machine is nobody's public one: then the request says by what it was reached.
        is_public = urlsplit(public_url or "").hostname not in (None, *LOOPBACK)
        self._public_url = (public_url or "").rstrip("/").encode() if is_public else b""
        self._seconds: dict[tuple[str, int], Histogram] = {}

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        try:
            reply = await self._answer(scope, receive)
        except BatonError as error:
            reply = _told(error)
        except GoneError:
            return
        except TooLargeError:
            reply = refused(
                413, "too-large", "The request is over a limit",
                f"the body is larger than {BODY_BYTES_MAX} bytes, packed or unpacked", field="body",
                remedy="Send fewer events a request.",
            )  # fmt: skip
        except Exception as error:  # a bug: no framework stands around this endpoint
            _log.error("http.failed", path=self.route(scope), exc_info=error)
            reply = refused(
                500, "internal", "Baton made a mistake", "The error is in Baton's log."
            )  # fmt: skip
        body = b"" if scope["method"] == "HEAD" else reply.body
        headers = [
            *reply.headers,
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-content-type-options", b"nosniff"),
        ]
        if reply.body:
            headers.append((b"content-type", reply.content_type))
        await send({
            "type": "http.response.start", "status": reply.status, "headers": headers
        })  # fmt: skip
        await send({"type": "http.response.body", "body": body})
        known = self._seconds.get((scope["method"], reply.status))
        if known is None:
            known = HTTP_SECONDS.labels(scope["method"], self.route(scope), str(reply.status))
            self._seconds[scope["method"], reply.status] = known
        known.observe(time.perf_counter() - began)

    @abstractmethod
    def route(self, scope: dict[str, Any]) -> str:
        """Give the route as metrics and logs name it: never with what may be a secret."""

    @abstractmethod
    async def _answer(self, scope: dict[str, Any], receive: Receive) -> Reply:
        """Answer one request whose errors are told by the caller."""

    async def read(self, scope: dict[str, Any], receive: Receive) -> Request | Reply:
        """Read the request whole and unpacked, or refuse it."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        encoding = b""
        for name, value in headers:
            if name == b"content-encoding":
                encoding = value
            elif name == b"content-length" and is_too_large(value):
                raise TooLargeError
        body = await read_body(receive)
        if encoding:
            plain = unpacked(body, encoding)
            if isinstance(plain, Defect):
                return refused(
                    415 if plain.code == "unsupported-encoding" else 400, plain.code,
                    "The body cannot be unpacked", plain.reason, field=plain.field,
                    value=plain.value, remedy=plain.remedy,
                )  # fmt: skip
            body = plain
        return self.request(scope, body)

    def request(self, scope: dict[str, Any], body: bytes, path_token: bytes = b"") -> Request:
        """Make the request that is verified; its URI is the public one, whatever proxy is before us."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        query: bytes = scope.get("query_string", b"")
        base = self._public_url or b"%s://%s" % (
            scope.get("scheme", "http").encode(), header(headers, b"host"),
        )  # fmt: skip
        uri = base + path + (b"?" + query if query else b"")
        client = scope.get("client")
        return Request(
            scope["method"], uri, path, query, headers, body, path_token,
            client[0] if client else None,
        )  # fmt: skip


class WebhooksEndpoint(DeliveryEndpoint):
    """The ASGI application behind ``/webhooks/{source}`` and ``/webhooks/{source}/{token}``."""

    def route(self, scope: dict[str, Any]) -> str:
        """Give the route; the source is not part of it, since anybody may ask for any."""
        return ROUTE

    async def _answer(self, scope: dict[str, Any], receive: Receive) -> Reply:
        name, _, rest = scope["path"][len(PREFIX) :].partition("/")
        source = self._source(name)
        method = scope["method"]
        token = rest.encode("utf-8", "surrogateescape")  # the server has undone its escapes
        if method in ("GET", "HEAD"):
            return await self._shake_hands(source, self.request(scope, b"", token))
        if method != "POST":
            return _not_allowed(source)
        request = await self.read(scope, receive)
        if isinstance(request, Reply):
            return request
        if token:
            request = msgspec.structs.replace(request, path_token=token)
        posted = [h for h in source.handshakes if h.method == "POST"]
        for handshake in posted:
            if not handshake.verify:
                reply = self._handshake(source, handshake, request)
                if reply is not None:
                    return reply
        who = await self._intake.admit(source, request)
        for handshake in posted:
            reply = self._handshake(source, handshake, request)
            if reply is not None:
                return reply
        receipt = await self._intake.accept(source, request, who)
        answer = source.answer
        if answer.body is None:
            return Reply(answer.status, _encode(receipt.counts()), answer.content_type.encode())
        return Reply(answer.status, answer.body, answer.content_type.encode())

    def _source(self, name: str) -> Source:
        book = self._intake.book
        source = book.sources.get(name)
        if source is not None:
            return source
        if name in book.refused:  # to be sent again when the file is right: a 404 would be final
            raise UnavailableError(
                f"the file of the source {name!r} has mistakes",
                remedy="See Baton's log, or 'baton sources list'.",
            )
        raise NotFoundError(
            f"there is no source {name!r}", field="source", value=name,
            remedy="Known ones: 'baton sources list'. Each is a file in the directory of sources.",
        )  # fmt: skip

    async def _shake_hands(self, source: Source, request: Request) -> Reply:
        for handshake in source.handshakes:
            # Who answers GET answers HEAD the same, without the body (RFC 9110, 9.3.2).
            if handshake.method == request.method or (
                handshake.method == "GET" and request.method == "HEAD"
            ):
                if handshake.verify:
                    await self._intake.admit(source, request)
                reply = self._handshake(source, handshake, request)
                if reply is not None:
                    return reply
        return _not_allowed(source)

    def _handshake(self, source: Source, handshake: Handshake, request: Request) -> Reply | None:
        """Answer a handshake; None when the request is none."""
        delivery = self._intake.delivery(source, request)
        scope: dict[str, Any] = {"headers": delivery.headers, "query": delivery.query}
        if request.method == "POST":
            payload = read_delivery(source, delivery)
            if isinstance(payload, Defect):
                return None
            scope["delivery"] = scope["item"] = payload
        if handshake.when is not None and handshake.when.evaluate(scope) is not True:
            return None
        body = handshake.body.render(scope)
        if body is None:
            return None
        DELIVERIES.labels(source.name, "handshake").inc()
        return Reply(
            handshake.status, body[:ECHO_CHARACTERS_MAX].encode("utf-8", "replace"),
            handshake.content_type.encode(),
        )  # fmt: skip


def _not_allowed(source: Source) -> Reply:
    asked = {h.method for h in source.handshakes} | {"POST"}
    reply = refused(
        405, "method-not-allowed", "Method Not Allowed", "this source posts its deliveries",
        remedy="Send POST.",
    )  # fmt: skip
    return msgspec.structs.replace(
        reply, headers=((b"allow", ", ".join(sorted(asked)).encode()),)
    )  # fmt: skip


OPENAPI: dict[str, Any] = {
    "tags": ["sources"],
    "operationId": "post_delivery",
    "summary": "Take a vendor's delivery",
    "description": "As sources/{source}.yaml says: verified, read, mapped. Authentic, it is answered 2xx "
    "once it is committed, also when it could only be quarantined. The answer is the source's.",
    "parameters": [
        {"name": "source", "in": "path", "required": True, "schema": {"type": "string"}}
    ],
    "requestBody": {"required": True, "content": {"*/*": {"schema": {}}}},
    "responses": {
        "200": {"description": "Applied or quarantined; committed"},
        **{
            status: {"description": text, "content": {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
            for status, text in (
                ("401", "Not authentic"), ("403", "The key lacks the scope `ingest`"),
                ("404", "No such source"), ("413", "Over 1 MiB, packed or unpacked"),
                ("503", "Send it again after Retry-After"),
            )
        },
    },
}  # fmt: skip
"""The operation as `/openapi.json` shows it."""
