"""Events to be spoilt, a service to send them to, and what a refusal has to look like."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest_asyncio

from services.baton.embedded import EmbeddedPostgres
from tests.integration.stage import Stage, fresh_database, running_stage

JSON = "application/json"
MIB = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(postgres: EmbeddedPostgres) -> AsyncIterator[Stage]:
    """One stage service for all the bad input of this module: what one breaks, the next would see."""
    with fresh_database(postgres) as url:
        async with running_stage(url) as it:
            yield it


def event(**more: Any) -> dict[str, Any]:
    """A valid event with `more` laid over it; a member that is ``...`` is left out."""
    whole = {
        "specversion": "1.0", "id": str(uuid.uuid4()), "source": "/bad-input", "type": "page.viewed",
        "time": "2026-01-31T09:30:00Z", "data": {"email": "ada@example.com"},
    } | more  # fmt: skip
    return {name: value for name, value in whole.items() if value is not ...}


def text(**more: Any) -> bytes:
    """`event` as the body of a structured request."""
    return json.dumps(event(**more)).encode()


def with_data(**data: Any) -> bytes:
    """The body of an event with these members of ``data``."""
    return text(data=data)


def raw(member: str, value: bytes) -> bytes:
    """The body of an event whose `member` is `value`, byte for byte."""
    return text(**{member: "@@"}).replace(b'"@@"', value)


def binary(**more: str | bytes | None) -> list[tuple[bytes, bytes]]:
    """The headers of a valid event in binary mode with `more` laid over; None leaves one out."""
    names: dict[str, str | bytes | None] = {
        "content-type": JSON, "ce-specversion": "1.0", "ce-id": str(uuid.uuid4()),
        "ce-source": "/bad-input", "ce-type": "page.viewed",
    }  # fmt: skip
    names |= {name.replace("_", "-"): value for name, value in more.items()}
    return [
        (name.encode(), value.encode() if isinstance(value, str) else value)
        for name, value in names.items()
        if value is not None
    ]


def nested(depth: int) -> bytes:
    """`depth` arrays in one another."""
    return b"[" * depth + b"]" * depth


def is_problem(answer: httpx.Response, status: int, field: str | None) -> dict[str, Any]:
    """Assert that `answer` is a whole problem+json (RFC 9457) with `status` and `field`."""
    assert answer.status_code == status, answer.text[:1000]
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["type"].endswith("#" + body["code"])
    assert body["title"]
    assert body["detail"]
    assert body.get("field") == field
    assert len(answer.content) < 4000, "an error does not send back what was sent"
    return body


async def lives_on(stage: Stage) -> None:
    """Assert that the service takes and stores a valid event."""
    after = event()
    assert (await stage.send(after))[0]["status"] == "applied"
    assert await stage.stored(after["source"], after["id"]) is not None
