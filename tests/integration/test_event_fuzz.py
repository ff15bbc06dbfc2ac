"""Whatever is sent to ``/v1/events``, however odd, the service answers 2xx or 4xx and lives on."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.integration.nearly_events import JSON, binary, event, lives_on, stage
from tests.integration.stage import BATCHED, Stage

__all__ = ["stage"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
MEMBERS = st.sampled_from(
    ["specversion", "id", "source", "type", "time", "subject", "datacontenttype", "dataschema",
     "data", "data_base64", "region", "traceparent", "Upper"]
)  # fmt: skip
ENVELOPES = st.dictionaries(
    st.sampled_from(["email", "external_ids", "anonymous_id", "deal", "amount", "name", "company"]),
    JSON_VALUES,
    max_size=7,
)
NEARLY_EVENTS = st.builds(
    lambda members, data, missing: {
        name: value
        for name, value in (event(data=data) | members).items()
        if name not in missing
    },
    st.dictionaries(MEMBERS, JSON_VALUES, max_size=3), ENVELOPES, st.lists(MEMBERS, max_size=1),
)  # fmt: skip


def encoded(value: Any) -> bytes:
    """`value` as JSON; what is a lone surrogate stays one, as an escape."""
    return json.dumps(value).encode()


async def never_500(stage: Stage, answer: httpx.Response) -> None:
    """Assert that the answer is 200 with results, or a problem of the sender's."""
    if answer.status_code == 200:
        assert "results" in answer.json()
    else:
        assert 400 <= answer.status_code < 500, answer.text
        body = answer.json()
        assert {"type", "title", "status", "detail", "code", "field"} <= body.keys()


@settings(max_examples=examples(200), deadline=None)
@given(body=(JSON_VALUES | NEARLY_EVENTS).map(encoded) | st.binary(max_size=200))
async def test_no_structured_body_breaks_the_service(stage: Stage, body: bytes) -> None:
    """Any bytes, any JSON, anything like an event: answered 200 or 4xx."""
    await never_500(stage, await stage.post(body))


@settings(max_examples=examples(200), deadline=None)
@given(
    body=(JSON_VALUES | st.lists(NEARLY_EVENTS | JSON_VALUES, max_size=6)).map(encoded)
    | st.binary(max_size=200)
)
async def test_no_batch_breaks_the_service(stage: Stage, body: bytes) -> None:
    """Any bytes, any JSON, any mixture of nearly events: answered 200 or 4xx."""
    await never_500(stage, await stage.post(body, BATCHED))


HEADER_NAMES = st.sampled_from(
    [b"ce-id", b"ce-source", b"ce-type", b"ce-time", b"ce-subject", b"ce-specversion",
     b"ce-dataschema", b"ce-data", b"ce-region", b"ce-traceparent", b"traceparent", b"content-type",
     b"content-encoding"]
)  # fmt: skip
# What a server lets through in a header's value: no control characters but the tab.
HEADER_VALUES = st.binary(max_size=40).map(
    lambda value: bytes(b for b in value if b >= 0x20 or b == 0x09).strip()
)


@settings(max_examples=examples(200), deadline=None)
@given(
    extra=st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=4),
    drop=st.lists(HEADER_NAMES, max_size=2),
    body=(JSON_VALUES | ENVELOPES).map(encoded) | st.binary(max_size=200),
    content_type=st.sampled_from([JSON, "text/plain", "application/xml", "image/png", ""]),
)
async def test_no_binary_request_breaks_the_service(
    stage: Stage,
    extra: list[tuple[bytes, bytes]],
    drop: list[bytes],
    body: bytes,
    content_type: str,
) -> None:
    """Any headers, doubled, missing or not text, and any body: answered 200 or 4xx."""
    headers = [h for h in binary(content_type=content_type) if h[0] not in drop]
    answer = await stage.client.post(
        "/v1/events", content=body,
        headers=[(b"authorization", f"Bearer {stage.key}".encode()), *headers, *extra],
    )  # fmt: skip
    await never_500(stage, answer)


async def test_after_all_of_it_the_state_is_the_fold(stage: Stage) -> None:
    """Nothing that was let through left a lead that cannot be read."""
    await lives_on(stage)
    cursor: str | None = ""
    seen = 0
    while cursor is not None:
        answer = await stage.client.get(
            "/v1/leads", params={"limit": 200} | ({"cursor": cursor} if cursor else {})
        )
        assert answer.status_code == 200, answer.text
        seen += len(answer.json()["items"])
        cursor = answer.json()["next_cursor"]
    assert seen == await stage.connection.fetchval("SELECT count(*) FROM stage.leads")
