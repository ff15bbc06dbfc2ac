"""What ``/openapi.json`` says about the routes of the feeds: in words, with examples and refusals."""

from __future__ import annotations

from typing import Any

from services.contracts.events import TRANSITIONS_TOPIC
from services.contracts.problems import DOCS, PROBLEM_CONTENT_TYPE
from services.stage_service.feed import TYPES

_JSON = "application/json"
_POSITION = {"type": "integer", "minimum": 1}

_MOVED: dict[str, Any] = {
    "position": 41,
    "type": "baton.stage.transitioned.v1",
    "message_id": "01a20b83-54d1-7d05-a0dd-c1f2fbbae0b3",
    "transition_id": "01a20b83-54d1-7d05-a0dd-c1f2fbbae0b3",
    "sequence": 1,
    "lead": {"id": "01a20b83-54a5-72df-8ba5-f958346b324f", "email": "ada@example.com"},
    "journey": {
        "id": "01a20b83-54a7-7b1c-9f6e-1a9a3d5a6f10", "playbook": "sales", "key": "main",
    },
    "from": "lead",
    "to": "mql",
    "occurred_at": "2026-11-24T07:04:05Z",
}  # fmt: skip
_OFFERED: dict[str, Any] = {
    "position": 7,
    "type": "baton.handoff.offered.v1",
    "message_id": "01a20b83-54d2-7a10-8a55-0a4c7b0f3d11",
    "handoff_id": "01a20b83-54d2-7a10-8a55-0a4c7b0f3d12",
    "lead": {"id": "01a20b83-54a5-72df-8ba5-f958346b324f", "email": "ada@example.com"},
    "journey": {
        "id": "01a20b83-54a7-7b1c-9f6e-1a9a3d5a6f10", "playbook": "sales", "key": "main",
    },
    "stage": "mql",
    "role": "lead_agent",
    "state": "offered",
    "due_at": "2026-11-24T11:04:05Z",
}  # fmt: skip

_REFUSALS = {
    401: ("not-authenticated", "No valid API key was sent."),
    403: ("not-allowed", "The key lacks the scope `read`."),
    409: ("cursor-ahead", "The position lies ahead of the end of the feed."),
    422: ("invalid-request", "A parameter cannot be read; `field` names it."),
    429: ("too-many-streams", "The key is over its rate, or has too many streams open."),
    503: ("unavailable", "The database does not answer, or the process has no place left."),
}


def described(ending: str, topic: str, what: str) -> dict[str, Any]:
    """Give summary, description and answers of a feed's route: its pages, its stream or its export.

    `what` says what the feed is of.
    """
    item = _item(topic)
    example = _MOVED if topic == TRANSITIONS_TOPIC else _OFFERED
    if ending == "/stream":
        summary, text, good = _stream(topic, what, example)
    elif ending == "/export":
        summary, text, good = _export(what, item)
    else:
        summary, text, good = _pages(what, item, example)
    return {
        "summary": summary, "description": text,
        "responses": {200: good, **{status: _refusal(status) for status in _REFUSALS}},
    }  # fmt: skip


def _item(topic: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": "The published event's data (its JSON Schema is that of `type`) with its position.",
        "properties": {
            "position": _POSITION,
            "type": {"type": "string", "examples": list(TYPES[topic])},
            "message_id": {"type": "string", "description": "the CloudEvent's id"},
        },
        "required": ["position", "type", "message_id"],
        "additionalProperties": True,
    }


def _pages(
    what: str, item: dict[str, Any], example: dict[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    schema = {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": item},
            "next_cursor": {"type": ["string", "null"], "pattern": "^[0-9]+$"},
        },
        "required": ["items", "next_cursor"],
    }
    page = {"items": [example], "next_cursor": str(example["position"])}
    return (
        f"Read the feed of {what}",
        "Gives what was published after a position, in order and without gaps. Ask again with"
        " `after` = `next_cursor`; null means that there is nothing new. With filters a page may be short or"
        " empty with a cursor ahead: what did not match lies behind it. With `wait` the answer comes"
        f" when there is an item, or after so many seconds. `Accept: {_NDJSON}` gives the export instead.",
        {
            "description": "One page.",
            "content": {
                _JSON: {"schema": schema, "example": page},
                _NDJSON: {"schema": {"type": "string"}},
            },
        },
    )


_NDJSON = "application/x-ndjson"


def _stream(topic: str, what: str, example: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    position, type = example["position"], example["type"]
    text = f'id: {position}\nevent: {type}\ndata: {{"position":{position},"type":"{type}"}}\n\n'
    return (
        f"Stream {what} as they are published",
        "Server-Sent Events: `id` is the position, `event` the type, `data` the item. Goes on after"
        " `Last-Event-ID`, or `after`, or from `since`; without any of them it begins with what comes next."
        " A comment comes every 15 s. It ends when the service stops, the key is revoked, or the client"
        " does not read; connect again with `Last-Event-ID`. Events of the type `baton.position` tell"
        " how far a filter has looked.",
        {
            "description": "The stream, which has no end by itself.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": text}},
        },
    )


def _export(what: str, item: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    last = "the position up to which the export goes: the `after` of the next one"
    return (
        f"Export {what} as NDJSON",
        "One item a line, in order, from `after` or `since` up to `through` or `until`, at most to the end"
        " of the feed when the export began: the header `Baton-Last-Position` names it. A body that"
        " breaks off (no last chunk) is not whole: go on after the position of its last whole line.",
        {
            "description": "All there is, one JSON object a line.",
            "headers": {
                "Baton-Last-Position": {"description": last, "schema": {"type": "integer"}}
            },
            "content": {_NDJSON: {"schema": {"type": "string"}, "x-item-schema": item}},
        },
    )


def _refusal(status: int) -> dict[str, Any]:
    code, description = _REFUSALS[status]
    schema = {
        "type": "object",
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string"},
            "field": {"type": "string"},
            "value": {"type": "string"},
            "remedy": {"type": "string"},
        },
        "required": ["type", "title", "status", "detail", "code"],
    }
    example = {
        "type": DOCS + code, "title": description.rstrip("."), "status": status, "detail": description,
        "code": code,
    }  # fmt: skip
    return {
        "description": description,
        "content": {PROBLEM_CONTENT_TYPE: {"schema": schema, "example": example}},
    }
