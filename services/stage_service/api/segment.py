"""The Segment HTTP API, which RudderStack's clients speak too: ``/v1/{identify,track,...,batch}``.

The write key is a Baton API key with the scope ``ingest``, sent as the user name of HTTP basic
authentication. The bare paths belong to the source ``segment``; with the prefix of another source's name
(``/rudderstack/v1/batch``), or with a key bound to that source, the calls are that source's. Clients want
exactly 200.
"""

from __future__ import annotations

from typing import Any

import msgspec

from services.stage_service.api.request_body import Receive
from services.stage_service.api.webhooks import DeliveryEndpoint, Reply, refused
from services.stage_service.errors import UnavailableError
from services.stage_service.intake import may_ingest
from services.stage_service.sources.source import Source

CALLS = {
    "identify": "identify", "i": "identify", "track": "track", "t": "track", "page": "page",
    "p": "page", "screen": "screen", "s": "screen", "group": "group", "g": "group",
    "alias": "alias", "a": "alias", "batch": "batch", "b": "batch", "import": "batch",
}  # fmt: skip
"""The last part of a path to the call; browsers' clients use the letters."""
SOURCES = ("segment", "rudderstack")
PATHS = {
    f"{prefix}/v1/{path}": (prefix[1:] or SOURCES[0], call)
    for prefix in ("", *(f"/{name}" for name in SOURCES))
    for path, call in CALLS.items()
}
"""Every path that is answered here: (source, call)."""
ROUTE = "/v1/{call}"
_SUCCESS = b'{"success":true}'


class SegmentEndpoint(DeliveryEndpoint):
    """The ASGI application behind the Segment HTTP API."""

    def route(self, scope: dict[str, Any]) -> str:
        """Give the route, the same for every call."""
        return ROUTE

    async def _answer(self, scope: dict[str, Any], receive: Receive) -> Reply:
        name, call = PATHS[scope["path"]]
        if scope["method"] != "POST":
            reply = refused(
                405, "method-not-allowed", "Method Not Allowed", f"{call} is posted",
                remedy="Send POST.",
            )  # fmt: skip
            return msgspec.structs.replace(reply, headers=((b"allow", b"POST"),))
        request = await self.read(scope, receive)
        if isinstance(request, Reply):
            return request
        who = await self._intake.admit_key(request)
        if scope["path"].startswith("/v1/") and who.sources is not None:
            # A key that is bound to one tool says which it is.
            name = next((s for s in SOURCES if who.may_ingest_for(s)), name)
        source = self._source(name)
        may_ingest(who, source.name)
        if call != "batch":  # a single call says by its path what it is
            request = msgspec.structs.replace(request, query=f"call={call}".encode())
        await self._intake.accept(source, request, who)
        return Reply(200, _SUCCESS)

    def _source(self, name: str) -> Source:
        source = self._intake.book.sources.get(name)
        if source is None:
            raise UnavailableError(
                f"the file of the source {name!r} is missing or has mistakes",
                remedy="See 'baton sources list'.",
            )
        return source


_ANSWER = {"content": {"application/json": {"schema": {"type": "object"}}}}
_MESSAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"enum": ["identify", "track", "page", "screen", "group", "alias"]},
        "messageId": {"type": "string"},
        "userId": {"type": ["string", "null"]},
        "anonymousId": {"type": ["string", "null"]},
        "event": {"type": "string"},
        "traits": {"type": "object"},
        "properties": {"type": "object"},
        "timestamp": {"type": "string", "format": "date-time"},
    },
}


def openapi(call: str) -> dict[str, Any]:
    """Give the operation of `call` as `/openapi.json` shows it."""
    schema = _MESSAGE
    if call == "batch":
        schema = {
            "type": "object",
            "required": ["batch"],
            "properties": {
                "batch": {"type": "array", "items": _MESSAGE},
                "sentAt": {"type": "string", "format": "date-time"},
            },
        }
    return {
        "tags": ["segment"],
        "operationId": f"segment_{call}",
        "summary": f"Take a Segment {call} call",
        "description": "Mapped by sources/segment.yaml. The write key is a Baton API key with the "
        "scope `ingest`, as the user name of basic authentication.",
        # What cannot be read is kept in quarantine and answered 200, as everything that is authentic.
        "requestBody": {"required": False, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "Committed", **_ANSWER},
            **{
                status: {"description": text, "content": {
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
                for status, text in (
                    ("401", "No valid key"), ("403", "The key lacks the scope `ingest`"),
                    ("413", "Over 1 MiB"), ("429", "Over the key's rate"),
                    ("503", "Send it again after Retry-After"),
                )
            },
        },
    }  # fmt: skip
