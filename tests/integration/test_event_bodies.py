"""Bodies and batches at their limits: too large or torn they are refused, what just fits is kept whole."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.nearly_events import (
    MIB,
    binary,
    event,
    is_problem,
    lives_on,
    raw,
    stage,
    text,
)
from tests.integration.stage import BATCHED, STRUCTURED, Stage, serving_stage

__all__ = ["stage"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_body_of_10_mb_is_refused_however_it_is_sent(stage: Stage) -> None:
    """10 MB are refused by Content-Length before reading, and chunked after 1 MiB, not at the end."""
    body = b'{"a":"' + b"x" * (10 * MIB) + b'"}'
    is_problem(await stage.post(body), 413, "body")
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for at in range(0, len(body), 65_536):
            read += 1
            yield body[at : at + 65_536]

    answer = await stage.client.post(
        "/v1/events", content=chunks(), headers={"content-type": STRUCTURED}
    )
    is_problem(answer, 413, "body")
    assert read <= MIB // 65_536 + 2
    is_problem(await stage.post(text(), content_length="9" * 5000), 413, "body")
    await lives_on(stage)


@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        (b"content-length: 10485760", b'{"a":"'),
        (b"transfer-encoding: chunked", b"".join([b"40000\r\n" + b"x" * 0x40000 + b"\r\n"] * 5)),
    ],
    ids=["by length", "chunked"],
)
async def test_a_large_body_is_refused_before_its_end_on_a_real_socket(
    database_url: str, framing: bytes, sent: bytes
) -> None:
    """The 413 comes while the sender still has megabytes to send, and the connection closes."""
    async with serving_stage(database_url) as stage:
        host, _, port = stage.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n"
            b"content-type: %s\r\n%s\r\n\r\n%s"
            % (stage.key.encode(), STRUCTURED.encode(), framing, sent)
        )
        answer = await reader.readuntil(b"}")
        writer.close()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["field"] == "body"
        await lives_on(stage)


async def test_a_body_that_breaks_off_is_no_event(stage: Stage) -> None:
    """When the sender goes away in the middle, what came so far is not taken for the whole."""
    id = str(uuid.uuid4())
    messages = iter([
        {"type": "http.request", "body": b"half of a te", "more_body": True},
        {"type": "http.disconnect"},
    ])  # fmt: skip
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    key = (b"authorization", f"Bearer {stage.key}".encode())
    scope = {
        "type": "http", "method": "POST", "path": "/v1/events", "raw_path": b"/v1/events",
        "query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "",
        "headers": [key, *binary(ce_id=id, content_type="text/plain")],
    }  # fmt: skip
    await stage.app(scope, receive, send)
    assert sent == []
    assert await stage.stored("/bad-input", id) is None
    await lives_on(stage)


async def test_in_a_batch_the_good_are_kept_and_the_bad_are_named(stage: Stage) -> None:
    """One bad event does not cost the others; results stand in the order of the events."""
    good = [event(), event()]
    wrong = [event(id=...), 7, event(data={"email": "x"}), event(source="baton")]
    answer = await stage.post(
        json.dumps([wrong[0], good[0], wrong[1], wrong[2], good[1], wrong[3]]).encode(), BATCHED
    )
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [r["status"] for r in results] == [
        "rejected", "applied", "rejected", "rejected", "applied", "rejected",
    ]  # fmt: skip
    assert [r["error"]["field"] for r in results if r["error"]] == [
        "id", "body", "data.email", "source",
    ]  # fmt: skip
    assert [r["id"] for r in results][1::3] == [good[0]["id"], good[1]["id"]]
    assert results[3]["id"] == wrong[2]["id"]  # type: ignore[index]
    for kept in good:
        assert await stage.stored(kept["source"], kept["id"]) is not None


async def test_a_batch_of_only_invalid_events_names_each(stage: Stage) -> None:
    """The problem is that of the first; `results` has the defect of every one."""
    bad = [event(id=""), event(type=...), 7]
    body = is_problem(await stage.post(json.dumps(bad).encode(), BATCHED), 422, "id")
    assert [r["error"]["field"] for r in body["results"]] == ["id", "type", "body"]


async def test_a_batch_of_1000_is_taken(stage: Stage) -> None:
    """The limit itself is allowed."""
    results = await stage.send(*(event(data={}) for _ in range(1000)))
    assert {r["status"] for r in results} == {"applied"}
    assert len(results) == 1000


async def test_of_a_key_given_twice_the_last_counts(stage: Stage) -> None:
    """JSON leaves it open (RFC 8259, 4): in Baton the last of equal keys counts, everywhere."""
    id = str(uuid.uuid4())
    body = raw("data", b'{"email":"a@example.com","email":"b@example.com"}')
    body = body[:-1] + b',"id":"%s"}' % id.encode()
    answer = await stage.post(body)
    assert answer.json()["results"][0]["id"] == id
    row = await stage.stored("/bad-input", id)
    assert row is not None
    assert row["data"] == {"email": "b@example.com"}


@pytest.mark.parametrize(
    "data",
    [
        {"amount": 2**63 - 1, "loss": -(2**63), "object": 1652977933433528300},
        {"deep": json.loads(b"[" * 31 + b"]" * 31)},
        {"ratio": 0.1, "tiny": 5e-324, "large": 1e15, "negative": -1.5e-7},
        {"note": "newline\n tab\t del\x7f line\u2028 zero\u200b rtl\u202e \U0001f600"},
        {"": "empty key", "a.b": 1, "$": 2, "email": None, "external_ids": None, "deal": None},
    ],
    ids=["64-bit integers", "depth 32", "floats", "odd characters", "odd keys"],
)
async def test_what_lies_just_within_the_limits_is_kept_as_it_is(
    stage: Stage, data: dict[str, Any]
) -> None:
    """The limits refuse no more than they say: such data is stored whole and in the lead's state."""
    id = str(uuid.uuid4())
    whole = {"anonymous_id": id} | data
    [result] = await stage.send(event(id=id, data=whole))
    assert result["status"] == "applied"
    row = await stage.stored("/bad-input", id)
    assert row is not None
    assert row["data"] == whole
    lead = await stage.client.get(f"/v1/leads/{result['lead_id']}")
    assert lead.status_code == 200
    # A late event folds the lead again from what is stored, so it has to come back as it was.
    [late] = await stage.send(event(time="2026-01-30T09:30:00Z", data={"anonymous_id": id}))
    assert (late["status"], late["late"]) == ("applied", True)
    again = (await stage.client.get(f"/v1/leads/{result['lead_id']}")).json()
    assert again["attributes"] == lead.json()["attributes"]


@pytest.mark.parametrize(
    "time",
    ["2026-01-31t09:30:00z", "2026-01-31T10:30:00+01:00", "2026-01-31T09:30:00.000000000000Z",
     "2026-01-31T09:30:00-00:00"],
)  # fmt: skip
async def test_every_way_to_write_a_moment_is_read(stage: Stage, time: str) -> None:
    """RFC 3339 allows lower case, offsets and any number of digits after the second."""
    sent = event(time=time)
    await stage.send(sent)
    row = await stage.stored(sent["source"], sent["id"])
    assert row is not None
    assert row["time"].isoformat() == "2026-01-31T09:30:00+00:00"
