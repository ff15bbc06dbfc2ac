"""``POST /v1/events``: CloudEvents 1.0 over HTTP in all three content modes.

Plain ASGI and msgspec, because this is the hot path: the framework's request models would cost more
than the rules. What is answered 200 is committed. Its OpenAPI description is in `OPENAPI`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

import msgspec
import structlog
from fastapi.responses import JSONResponse
from prometheus_client import Histogram

from services.contracts import cloudevents
from services.contracts.access import Gatekeeper, Principal, bearer, required
from services.contracts.cloudevents import BATCHED, STRUCTURED, JsonDefectError, brief
from services.contracts.database import DATABASE_AWAY
from services.contracts.events import SOURCE, LeadEvent, lead_event, traceparent
from services.contracts.problems import (
    PROBLEM_CONTENT_TYPE,
    BatonError,
    Defect,
    answer_headers,
    problem,
    problem_of,
    shown,
)
from services.stage_service.api.access import STATUS
from services.stage_service.api.request_body import (
    BODY_BYTES_MAX,
    GoneError,
    Receive,
    Send,
    TooLargeError,
    is_too_large,
    read_body,
    unpacked,
)
from services.stage_service.batch import Outcome
from services.stage_service.errors import UnavailableError
from services.stage_service.lane import ANSWER_WITHIN_S, Lane
from services.stage_service.metrics import EVENTS, HTTP_SECONDS

PATH = "/v1/events"
BATCH_EVENTS_MAX = 1000
_log = structlog.get_logger("baton.http")
_encode = msgspec.json.Encoder().encode


class EventsEndpoint:
    """The ASGI application behind ``POST /v1/events``."""

    def __init__(self, gatekeeper: Gatekeeper, lane: Lane, now: Callable[[], datetime]) -> None:
        self._gatekeeper = gatekeeper
        self._lane = lane
        self._now = now
        self._seconds: dict[int, Histogram] = {}

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        failure: BatonError | None = None
        try:
            status, body = await self._answer(scope, receive)
        except BatonError as error:
            failure, status = error, STATUS[type(error)]
            body = problem_of(error, status)
        except GoneError:
            return
        except TooLargeError:
            status, body = 413, problem(
                413, "too-large", "The request is over a limit",
                f"the body is larger than {BODY_BYTES_MAX} bytes", field="body",
                remedy="Send fewer events a request, or less data an event.",
            )  # fmt: skip
        except Exception as error:  # a bug: no framework stands around this endpoint
            _log.error("http.failed", path=PATH, exc_info=error)
            status, body = 500, problem(
                500, "internal", "Baton made a mistake", "The error is in Baton's log."
            )  # fmt: skip
        headers = [(b"content-type", b"application/json" if status == 200 else _PROBLEM)]
        if failure is not None:
            headers += [
                (name.encode(), value.encode())
                for name, value in answer_headers(failure, status).items()
            ]
        elif status == 413:
            headers.append((b"connection", b"close"))
        encoded = _encode(body)
        headers.append((b"content-length", b"%d" % len(encoded)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": encoded})
        if status not in self._seconds:
            self._seconds[status] = HTTP_SECONDS.labels("POST", PATH, str(status))
        self._seconds[status].observe(time.perf_counter() - began)

    async def _answer(self, scope: dict[str, Any], receive: Receive) -> tuple[int, dict[str, Any]]:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        content_type = authorization = trace = encoding = b""
        binary = False
        for name, value in headers:
            if name.startswith(b"ce-"):
                binary = True
            elif name == b"content-type":
                content_type = value
            elif name == b"authorization":
                authorization = value
            elif name == b"traceparent":
                trace = value
            elif name == b"content-encoding":
                encoding = value
            elif name == b"content-length" and is_too_large(value):
                raise TooLargeError
        who = await self._admit(authorization.decode("latin-1"), scope)
        body = await read_body(receive)
        if encoding:
            plain = unpacked(body, encoding)
            if isinstance(plain, Defect):
                return _refused(415 if plain.code == "unsupported-encoding" else 400, plain)
            body = plain
        media_type = content_type.partition(b";")[0].strip().lower()
        if media_type == BATCHED.encode():
            return await self._batch(body, trace, who)
        if media_type == STRUCTURED.encode():
            return await self._one(_structured(body), trace, who)
        if binary and not media_type.startswith(b"application/cloudevents"):
            return await self._one(cloudevents.from_binary(headers, body), trace, who)
        return _refused(415, Defect(
            "unsupported-media-type", "content-type", "not a CloudEvent over HTTP",
            f"Send {STRUCTURED}, {BATCHED}, or ce-* headers with any content type.",
            shown(content_type.decode("latin-1")),
        ))  # fmt: skip

    async def _admit(self, authorization: str, scope: dict[str, Any]) -> Principal:
        token = bearer(authorization, {})
        who = self._gatekeeper.cached(token) if token else None
        if who is None:
            client = scope.get("client")
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    who = await self._gatekeeper.known(token, client[0] if client else None)
            except DATABASE_AWAY:
                raise UnavailableError(
                    "the database does not answer", remedy="Send the same events again."
                ) from None
        self._gatekeeper.rates.admit(who)
        required(who, "ingest")
        return who

    async def _one(
        self, attributes: dict[str, Any] | Defect, trace: bytes, who: Principal
    ) -> tuple[int, dict[str, Any]]:
        event = _lead_event(attributes, self._now(), trace)
        if who.sources is not None:
            event = _of_its_source(event, who)
        if isinstance(event, Defect):
            EVENTS.labels("rejected").inc()
            return _refused(_ALONE.get(event.code, 422), event)
        self._gatekeeper.rates.admit_events(who, 1)
        return 200, {"results": await self._lane.submit([event])}

    async def _batch(self, body: bytes, trace: bytes, who: Principal) -> tuple[int, dict[str, Any]]:
        try:
            items = cloudevents.decode_json(body)
        except JsonDefectError as error:
            return _refused(400, Defect("invalid-json", error.field, error.reason, error.remedy))
        if not isinstance(items, list):
            return _refused(422, Defect(
                "wrong-type", "body", "a batch is a JSON array of events",
                f"Send an array, or one event as {STRUCTURED}.",
            ))  # fmt: skip
        items = cast("list[Any]", items)
        if len(items) > BATCH_EVENTS_MAX:
            return _refused(413, Defect(
                "too-many-events", "body", f"{len(items)} events in one batch",
                f"Send at most {BATCH_EVENTS_MAX} events a batch.",
            ))  # fmt: skip
        self._gatekeeper.rates.admit_events(who, len(items))
        now = self._now()
        read = [_lead_event(item, now, trace) for item in items]
        if who.sources is not None:
            read = [_of_its_source(event, who) for event in read]
        kept = [event for event in read if not isinstance(event, Defect)]
        outcomes = iter(await self._lane.submit(kept))
        results = [
            _rejected(item, event) if isinstance(event, Defect) else next(outcomes)
            for item, event in zip(items, read, strict=True)
        ]
        if len(kept) < len(items):
            EVENTS.labels("rejected").inc(len(items) - len(kept))
        if items and not kept:
            first = cast("Defect", read[0])
            status, refused = _refused(422, first, "None of the events is valid")
            return status, refused | {"results": results}
        return 200, {"results": results}


_PROBLEM = b"application/problem+json"
_ALONE = {"invalid-json": 400, "source-not-allowed": 403}
"""The status of a single event that was rejected, when it is not 422."""


def _structured(body: bytes) -> dict[str, Any] | Defect:
    try:
        event = cloudevents.decode_json(body)
    except JsonDefectError as error:
        return Defect("invalid-json", error.field, error.reason, error.remedy)
    return event


def _lead_event(item: Any, now: datetime, trace: bytes) -> LeadEvent | Defect:
    if isinstance(item, Defect):
        return item
    if not isinstance(item, dict):
        return Defect(
            "wrong-type", "body", "an event is a JSON object", "Send a CloudEvent.", brief(item)
        )
    checked = cloudevents.check(cast("dict[str, Any]", item))
    if isinstance(checked, Defect):
        return checked
    if checked.source == SOURCE or checked.type.startswith("baton."):
        field, value = ("source", checked.source) if checked.source == SOURCE else (
            "type", checked.type
        )  # fmt: skip
        return Defect(
            "reserved", field, f"{value!r} is reserved for events that Baton records itself",
            "Use your own name; to move a lead by hand, POST /v1/leads/{id}/transitions.", value,
        )  # fmt: skip
    event = lead_event(checked, now)
    if trace and not isinstance(event, Defect) and event.traceparent is None:
        return msgspec.structs.replace(event, traceparent=traceparent(trace.decode("latin-1")))
    return event


def _of_its_source(event: LeadEvent | Defect, who: Principal) -> LeadEvent | Defect:
    """Give `event`, or why the key, which is bound to sources, may not send it."""
    if isinstance(event, Defect) or who.may_ingest_for(event.source):
        return event
    return Defect(
        "source-not-allowed", "source",
        f"the key {who.name!r} may not send events of the source {brief(event.source)!r}",
        "Send it with a key that is bound to this source, or to none: "
        "'baton keys create NAME --scope ingest --source SOURCE'.", brief(event.source),
    )  # fmt: skip


def _rejected(item: Any, defect: Defect) -> Outcome:
    known = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
    return Outcome(
        brief(known.get("id")) or "", brief(known.get("source")) or "", "rejected", None,
        error=defect.body(),
    )  # fmt: skip


def _refused(
    status: int, defect: Defect, title: str = "The event is not valid"
) -> tuple[int, dict[str, Any]]:
    return status, problem(
        status, defect.code, title, f"{defect.field}: {defect.reason}", field=defect.field,
        value=defect.value, remedy=defect.remedy,
    )  # fmt: skip


ONLY_POST = JSONResponse(
    problem(405, "method-not-allowed", "Method Not Allowed", "events are posted", remedy="Send POST."),
    405, {"allow": "POST"}, PROBLEM_CONTENT_TYPE,
)  # fmt: skip
"""The answer to any other method (RFC 9110, 15.5.6)."""
_PROBLEM_ANSWER: dict[str, Any] = {
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
}
_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "format": "uri-reference", "minLength": 1},
        "type": {"type": "string", "minLength": 1},
        "time": {"type": ["string", "null"], "format": "date-time"},
        "data": {
            "description": "An object with these members and any attributes. Anything else is kept, and says "
            "nothing about a lead.",
            "properties": {
                "email": {"type": ["string", "null"]},
                "external_ids": {"type": ["object", "null"]},
                "anonymous_id": {"type": ["string", "integer", "null"]},
                "deal": {"type": ["string", "integer", "null"]},
            },
        },
    },
    "example": {
        "specversion": "1.0", "id": "e-1", "source": "/website", "type": "demo.requested",
        "time": "2026-01-31T09:30:00Z", "data": {"email": "ada@example.com", "company": "Example"},
    },
}  # fmt: skip
_ITEM: dict[str, Any] = {
    "description": "An event. Each is judged by itself: one that is none is answered `rejected`, the "
    "others are kept.",
    "anyOf": [_EVENT, {}],
}
OPENAPI: dict[str, Any] = {
    "tags": ["events"],
    "operationId": "post_events",
    "summary": "Take lead events as CloudEvents 1.0",
    "description": "Structured, batched, or binary (`ce-*` headers). Answered 200, it is committed. "
    "The same (source, id) again changes nothing.",
    "requestBody": {
        "required": True,
        "content": {
            STRUCTURED: {"schema": _EVENT},
            BATCHED: {"schema": {"type": "array", "items": _ITEM, "maxItems": BATCH_EVENTS_MAX}},
            "application/json": {"schema": {"type": "object"}},
        },
    },
    "responses": {
        "200": {
            "description": "What happened to each event",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        "400": {"description": "Not JSON", **_PROBLEM_ANSWER},
        "401": {"description": "No valid key", **_PROBLEM_ANSWER},
        "403": {"description": "The key lacks the scope `ingest`", **_PROBLEM_ANSWER},
        "413": {
            "description": "Over 1 MiB, packed or unpacked, or 1,000 events",
            **_PROBLEM_ANSWER,
        },
        "415": {"description": "Not a CloudEvent", **_PROBLEM_ANSWER},
        "422": {"description": "Not valid; `field` names the attribute", **_PROBLEM_ANSWER},
        "429": {"description": "Over the key's rate; again after Retry-After", **_PROBLEM_ANSWER},
        "503": {"description": "Send it again after Retry-After", **_PROBLEM_ANSWER},
    },
}
"""The operation as `/openapi.json` shows it."""
