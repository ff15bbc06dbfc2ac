"""Whatever is sent, the answer is a problem that names the field, and the service lives on."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from services.baton.embedded import EmbeddedPostgres
from tests.conftest import examples
from tests.integration.stage import (
    BATCHED,
    STRUCTURED,
    Stage,
    fresh_database,
    running_stage,
    serving_stage,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

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


def case(
    name: str,
    body: bytes,
    status: int,
    field: str,
    sent_as: str | list[tuple[bytes, bytes]] | None = STRUCTURED,
) -> Any:
    """One row of the table: what is sent how, and the status and field of the answer."""
    headers = sent_as if isinstance(sent_as, list) else []
    if isinstance(sent_as, str):
        headers = [(b"content-type", sent_as.encode())]
    return pytest.param(headers, body, status, field, id=name)


STRUCTURED_CASES = [
    case("empty body", b"", 400, "body"),
    case("white space", b" \n", 400, "body"),
    case("broken JSON", text()[:-1], 400, "body"),
    case("JSON and more", text() + b"x", 400, "body"),
    case("byte order mark", b"\xef\xbb\xbf" + text(), 400, "body"),
    case("UTF-16", text().decode().encode("utf-16"), 400, "body"),
    case("invalid UTF-8", raw("subject", b'"\xff"'), 400, "body"),
    case("overlong UTF-8", raw("subject", b'"\xc0\xa0"'), 400, "body"),
    case("surrogate as bytes", raw("subject", b'"\xed\xa0\x80"'), 400, "body"),
    case("NUL byte", b"\x00" + text(), 400, "body"),
    case("raw control character in a string", raw("subject", b'"a\nb"'), 400, "body"),
    case("NaN", raw("data", b"NaN"), 400, "body"),
    case("Infinity", raw("data", b"Infinity"), 400, "body"),
    case("1e999", raw("data", b'{"amount":1e999}'), 400, "body"),
    case("200,000 digits", raw("data", b'{"amount":' + b"9" * 200_000 + b"}"), 400, "body"),
    case("200,000 digits as id", raw("id", b"9" * 200_000), 400, "body"),
    case("depth 1,000", raw("data", nested(1000)), 400, "body"),
    case("depth 100,000", nested(100_000), 400, "body"),
    case("array", b"[]", 422, "body"),
    case("array of an event", b"[" + text() + b"]", 422, "body"),
    case("string", b'"event"', 422, "body"),
    case("number", b"1", 422, "body"),
    case("null", b"null", 422, "body"),
    case("true", b"true", 422, "body"),
    case("empty object", b"{}", 422, "specversion"),
    *(
        case(f"no {name}", text(**{name: ...}), 422, name)
        for name in ("specversion", "id", "source", "type")
    ),
    *(
        case(f"null {name}", text(**{name: None}), 422, name)
        for name in ("specversion", "id", "source", "type")
    ),
    *(
        case(f"{name} is {kind}", text(**{name: value}), 422, name)
        for name in (
            "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema",
        )
        for kind, value in (
            ("a number", 1), ("a fraction", 1.5), ("true", True), ("an array", ["a"]),
            ("an object", {"a": 1}), ("empty", ""), ("blank", " \t "), ("too long", "x" * 1025),
        )
    ),
    case("deep array as id", raw("id", nested(850)), 422, "id"),
    case("deep array as an extension", raw("region", nested(850)), 422, "region"),
    case("specversion 0.3", text(specversion="0.3"), 422, "specversion"),
    case("specversion 1", text(specversion="1"), 422, "specversion"),
    case("specversion 1.0.2", text(specversion="1.0.2"), 422, "specversion"),
    case("NUL in id", text(id="a\x00b"), 422, "id"),
    case("newline in id", text(id="a\nb"), 422, "id"),
    case("C1 control in id", text(id="a\x85b"), 422, "id"),
    case("noncharacter in subject", text(subject="a\uffffb"), 422, "subject"),
    case("NUL in type", text(type="a\x00"), 422, "type"),
    case("NUL in an extension", text(region="a\x00"), 422, "region"),
    case("lone surrogate in id", raw("id", b'"a\\ud800"'), 400, "body"),
    case("lone low surrogate in data", raw("data", b'{"a":"\\udc00 more text"}'), 400, "body"),
    case("lone surrogate as a key", raw("data", b'{"\\ud83dkey":1}'), 400, "body"),
    case("source with a space", text(source="not a uri"), 422, "source"),
    case("source with angle brackets", text(source="<script>"), 422, "source"),
    case("source baton", text(source="baton"), 422, "source"),
    case("type of Baton's own", text(type="baton.lead.moved"), 422, "type"),
    case("type of Baton's published", text(type="baton.stage.transitioned.v1"), 422, "type"),
    case("relative dataschema", text(dataschema="/schema"), 422, "dataschema"),
    *(
        case(f"time {time}", text(time=time), 422, "time")
        for time in (
            "yesterday", "2026-01-31", "2026-01-31T09:30Z", "2026-01-31T09:30:00",
            "2026-01-31 09:30:00Z", "2026-02-30T09:30:00Z", "2026-13-01T09:30:00Z",
            "2026-01-31T24:00:00Z", "2026-01-31T09:60:00Z", "2016-12-31T23:59:60Z",
            "2026-01-31T09:30:00+25:00", "2026-01-31T09:30:00+0100", "2026-01-31T09:30:00.Z",
            "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00",
            "10000-01-01T00:00:00Z", "-2026-01-31T09:30:00Z", "２０２６-01-31T09:30:00Z",
        )
    ),
    case("upper-case extension", text(myExtension="a"), 422, "myExtension"),
    case("extension with an underscore", text(my_extension="a"), 422, "my_extension"),
    case("empty extension name", text(**{"": "a"}), 422, "extension"),
    case("NUL as extension name", text(**{"\x00": "a"}), 422, "\\u0000"),
    case("extension name of 65", text(**{"a" * 65: "a"}), 422, "a" * 65),
    case("fraction as an extension", text(ratio=1.5), 422, "ratio"),
    case("array as an extension", text(tags=["a"]), 422, "tags"),
    case("extension of 33 bits", text(count=2**31), 422, "count"),
    case("10**400 as an extension", text(count=10**300), 422, "count"),
    case("33 extensions", text(**{f"x{n:02}": "a" for n in range(33)}), 422, "x32"),
    case("data and data_base64", text(data_base64="TWE="), 422, "data_base64"),
    case("bad base64", text(data=..., data_base64="not base64!"), 422, "data_base64"),
    case("base64 without padding", text(data=..., data_base64="TWE"), 422, "data_base64"),
    case("base64 of another type", text(data=..., data_base64=7), 422, "data_base64"),
    case("depth 33", raw("data", nested(33)), 422, "data" + "[0]" * 32),
    case("NUL in data", with_data(note="a\x00b"), 422, "data.note"),
    case("NUL as a key", with_data(**{"a\x00b": 1}), 422, "data.a\\u0000b"),
    case("NUL inside", with_data(a=[{"b": "\x00"}]), 422, "data.a[0].b"),
    case("10**300", with_data(amount=10**300), 422, "data.amount"),
    case("1e300", raw("data", b'{"amount":1e300}'), 422, "data.amount"),
    case("-1e19", raw("data", b'[1,-1e19]'), 422, "data[1]"),
    case("an integer over 64 bits", with_data(a={"b": [1, 2**63]}), 422, "data.a.b[1]"),
    case("an integer under 64 bits", with_data(amount=-(2**63) - 1), 422, "data.amount"),
    case("a key of 100 kB", with_data(**{"k" * 100_000: 2**70}), 422,
         "data." + "k" * 120 + "... (100000 characters)"),
    case("email of 100 kB", with_data(email="a" * 100_000 + "@example.com"), 422, "data.email"),
    case("two @ in email", with_data(email="a@b@example.com"), 422, "data.email"),
    case("no @ in email", with_data(email="example.com"), 422, "data.email"),
    case("two addresses", with_data(email="a@example.com, b@example.com"), 422, "data.email"),
    case("blank email", with_data(email="  "), 422, "data.email"),
    case("email with a newline", with_data(email="a@example.com\nBcc: b@example.com"), 422,
         "data.email"),
    case("number as email", with_data(email=1), 422, "data.email"),
    case("array as email", with_data(email=["a@example.com"]), 422, "data.email"),
    case("external_ids an array", with_data(external_ids=["1"]), 422, "data.external_ids"),
    case("external_ids a string", with_data(external_ids="1"), 422, "data.external_ids"),
    case("17 external ids", with_data(external_ids={f"s{n}": "1" for n in range(17)}), 422,
         "data.external_ids"),
    case("blank external id", with_data(external_ids={"crm": "  "}), 422, "data.external_ids.crm"),
    case("true as external id", with_data(external_ids={"crm": True}), 422,
         "data.external_ids.crm"),
    case("external id of 257", with_data(external_ids={"crm": "x" * 257}), 422,
         "data.external_ids.crm"),
    case("blank system", with_data(external_ids={" ": "1"}), 422, "data.external_ids"),
    case("system of 257", with_data(external_ids={"s" * 257: "1"}), 422, "data.external_ids"),
    case("object as anonymous_id", with_data(anonymous_id={}), 422, "data.anonymous_id"),
    case("newline in anonymous_id", with_data(anonymous_id="a\nb"), 422, "data.anonymous_id"),
    case("empty deal", with_data(deal=""), 422, "data.deal"),
    case("deal with a space", with_data(deal="a b"), 422, "data.deal"),
    case("deal with a slash", with_data(deal="../a"), 422, "data.deal"),
    case("deal of 129", with_data(deal="d" * 129), 422, "data.deal"),
    case("true as deal", with_data(deal=True), 422, "data.deal"),
    case("object as deal", with_data(deal={"id": 1}), 422, "data.deal"),
    case("brotli", text(), 415, "content-encoding",
         [(b"content-type", STRUCTURED.encode()), (b"content-encoding", b"br")]),
    case("not gzip", text(), 400, "body",
         [(b"content-type", STRUCTURED.encode()), (b"content-encoding", b"gzip")]),
    case("no content type", text(), 415, "content-type", None),
    case("application/json", text(), 415, "content-type", JSON),
    case("form", b"a=1", 415, "content-type", "application/x-www-form-urlencoded"),
    case("CloudEvents in Avro", text(), 415, "content-type", "application/cloudevents+avro"),
    case("over 1 MiB", text(subject=...) + b" " * MIB, 413, "body"),
]  # fmt: skip

BATCH_CASES = [
    case("batch: empty body", b"", 400, "body", BATCHED),
    case("batch: broken", b"[" + text(), 400, "body", BATCHED),
    case("batch: an object", text(), 422, "body", BATCHED),
    case("batch: null", b"null", 422, "body", BATCHED),
    case("batch: 1,001 events", b"[" + b",".join([b"{}"] * 1001) + b"]", 413, "body", BATCHED),
    case("batch: no objects", b'[1,null,"a",[]]', 422, "body", BATCHED),
    case("batch: all invalid", json.dumps([event(id=""), {}, event(type=1)]).encode(), 422, "id",
         BATCHED),
    case("batch: deep array as id", b'[{"specversion":"1.0","id":' + nested(850) + b"}]", 422, "id",
         BATCHED),
]  # fmt: skip

BINARY_CASES = [
    *(
        case(f"binary: no {name}", b"{}", 422, name, binary(**{f"ce_{name}": None}))
        for name in ("specversion", "id", "source", "type")
    ),
    case("binary: only a type", b"{}", 422, "specversion",
         binary(ce_specversion=None, ce_id=None, ce_source=None)),
    case("binary: specversion 0.3", b"{}", 422, "specversion", binary(ce_specversion="0.3")),
    case("binary: empty id", b"{}", 422, "id", binary(ce_id="")),
    case("binary: id twice", b"{}", 422, "id", [*binary(), (b"ce-id", b"another")]),
    case("binary: id twice, in another case", b"{}", 422, "id", [*binary(), (b"CE-ID", b"b")]),
    case("binary: type twice, the same", b"{}", 422, "type",
         [*binary(), (b"ce-type", b"page.viewed")]),
    case("binary: data as a header", b"", 422, "data", binary(ce_data="x")),
    case("binary: data_base64 as a header", b"", 422, "data_base64",
         [*binary(), (b"ce-data_base64", b"TWE=")]),
    case("binary: datacontenttype as a header", b"{}", 422, "datacontenttype",
         binary(ce_datacontenttype="text/plain")),
    case("binary: no name", b"{}", 422, "extension", [*binary(), (b"ce-", b"x")]),
    case("binary: name not of letters", b"{}", 422, "a-b", binary(ce_a_b="x")),
    case("binary: invalid UTF-8", b"{}", 422, "subject", binary(ce_subject=b"\xff")),
    case("binary: invalid UTF-8, encoded", b"{}", 422, "subject", binary(ce_subject="%C0%A0")),
    case("binary: surrogate, encoded", b"{}", 422, "subject", binary(ce_subject="%ED%A0%80")),
    case("binary: NUL, encoded", b"{}", 422, "id", binary(ce_id="a%00b")),
    case("binary: newline, encoded", b"{}", 422, "id", binary(ce_id="a%0D%0Ab")),
    case("binary: bad time", b"{}", 422, "time", binary(ce_time="2026-01-31")),
    case("binary: broken JSON", b"{", 400, "data", binary()),
    case("binary: JSON too deep", nested(1000), 400, "data", binary()),
    case("binary: data too deep", nested(33), 422, "data" + "[0]" * 32, binary()),
    case("binary: NUL in data", b'{"a":"\\u0000"}', 422, "data.a", binary()),
    case("binary: NUL in text", b"a\x00b", 422, "data", binary(content_type="text/plain")),
    case("binary: text not UTF-8", b"\xff", 422, "data", binary(content_type="text/plain")),
    case("binary: no media type", b"a", 422, "datacontenttype", binary(content_type="xyz")),
    case("binary: brotli", b"{}", 415, "content-encoding", binary(content_encoding="br")),
    case("binary: bad email", b'{"email":"x"}', 422, "data.email", binary()),
    case("binary: over 1 MiB", b" " * (MIB + 1), 413, "body", binary()),
]  # fmt: skip


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


@pytest.mark.parametrize(
    ("headers", "body", "status", "field"), [*STRUCTURED_CASES, *BATCH_CASES, *BINARY_CASES]
)
async def test_a_bad_event_is_refused_by_name(
    stage: Stage, headers: list[tuple[bytes, bytes]], body: bytes, status: int, field: str
) -> None:
    """Bad input gets a 4xx problem that names the field; nothing of it is stored; the next is taken."""
    before = await stage.count()
    answer = await stage.client.post(
        "/v1/events",
        content=body,
        headers=[(b"authorization", f"Bearer {stage.key}".encode()), *headers],
    )
    is_problem(answer, status, field)
    assert await stage.count() == before
    await lives_on(stage)


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


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401), ("", 401), ("Bearer", 401), ("Bearer ", 401), ("Bearer x", 401),
        ("Basic dTpw", 401), ("Bearer bat_0123456789ab_wrong", 401), ("Bearer bat__", 401),
        ("Bearer bat_ä_ö", 401), ("Bearer " + "x" * 10_000, 401),
    ],
)  # fmt: skip
async def test_without_a_valid_key_nothing_is_taken(
    stage: Stage, authorization: str | None, status: int
) -> None:
    """No key, a wrong one or another scheme: 401 as a problem, on events and elsewhere."""
    before = await stage.count()
    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    transport = httpx.ASGITransport(stage.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=stage.url) as client:
        for answer in (
            await client.post(
                "/v1/events", content=text(),
                headers=[*headers, (b"content-type", STRUCTURED.encode())],
            ),
            await client.get("/v1/leads", headers=headers),
        ):  # fmt: skip
            is_problem(answer, status, None)
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert await stage.count() == before


async def test_a_revoked_key_and_one_without_the_scope_are_refused(stage: Stage) -> None:
    """A key revoked before its first use is 401, one that may only read is 403."""
    id, revoked = await stage.new_key("ingest")
    await stage.connection.execute("UPDATE access.keys SET revoked_at = now() WHERE id = $1", id)
    answer = await stage.post(text(), authorization=f"Bearer {revoked}")
    is_problem(answer, 401, None)
    _, reader = await stage.new_key("read")
    answer = await stage.post(text(), authorization=f"Bearer {reader}")
    is_problem(answer, 403, None)
    await lives_on(stage)


async def test_without_the_database_the_answer_is_503(database_url: str) -> None:
    """A key that cannot be looked up is no reason to call the key wrong, or ourselves broken."""
    async with running_stage(database_url) as stage:
        stage.house.pool.terminate()
        answer = await stage.post(text())
        is_problem(answer, 503, None)
        assert answer.headers["retry-after"] == "2"


async def test_a_transition_cannot_be_asked_for_by_an_event(stage: Stage) -> None:
    """The names of Baton's own events are refused in every mode, so nobody moves a lead by posing."""
    for answer in (
        await stage.post(text(type="baton.lead.moved", data={"to": "closed_won"})),
        await stage.client.post(
            "/v1/events", content=b"{}",
            headers=[(b"authorization", f"Bearer {stage.key}".encode()),
                     *binary(ce_type="baton.lead.moved")],
        ),
        await stage.post(json.dumps([event(type="baton.lead.moved")]).encode(), BATCHED),
    ):  # fmt: skip
        is_problem(answer, 422, "type")


READS = [
    ("/v1/leads?q=%00", 422, "q"),
    ("/v1/leads?q=" + "x" * 201, 422, "q"),
    ("/v1/leads?owner=%00", 422, "owner"),
    ("/v1/leads?email=%00", 422, "email"),
    ("/v1/leads?email=nobody", 422, "email"),
    ("/v1/leads?playbook=%00", 404, "playbook"),
    ("/v1/leads?playbook=nonsense", 404, "playbook"),
    ("/v1/leads?stage=nonsense", 422, "stage"),
    ("/v1/leads?stage=%00", 422, "stage"),
    ("/v1/leads?cursor=nonsense", 422, "cursor"),
    ("/v1/leads?cursor=%00", 422, "cursor"),
    ("/v1/leads?limit=0", 422, "limit"),
    ("/v1/leads?limit=-1", 422, "limit"),
    ("/v1/leads?limit=1000000000", 422, "limit"),
    ("/v1/leads?limit=ten", 422, "limit"),
    ("/v1/leads/nonsense", 404, "id"),
    ("/v1/leads/%00", 404, "id"),
    ("/v1/leads/%ED%A0%80", 404, "id"),
    (f"/v1/leads/{uuid.UUID(int=0)}", 404, "id"),
    ("/v1/leads/nonsense/timeline", 404, "id"),
    (f"/v1/leads/{uuid.UUID(int=0)}/timeline", 404, "id"),
    ("/v1/transitions?after=-1", 422, "after"),
    ("/v1/transitions?after=9223372036854775808", 422, "after"),
    ("/v1/transitions?after=x", 422, "after"),
    ("/v1/transitions?limit=0", 422, "limit"),
    ("/v1/transitions?limit=1000000000", 422, "limit"),
    ("/v1/transitions/stream?after=-1", 422, "after"),
    ("/v1/transitions/stream?after=4611686018427387904", 409, "after"),
    ("/v1/transitions?after=4611686018427387904", 409, "after"),
    ("/v1/transitions/export?after=4611686018427387904", 409, "after"),
    ("/v1/handoffs/feed?after=4611686018427387904", 409, "after"),
    ("/v1/transitions?wait=61", 422, "wait"),
    ("/v1/transitions?wait=nan", 422, "wait"),
    ("/v1/transitions?since=yesterday", 422, "since"),
    ("/v1/transitions?since=9999-12-31T23:59:59-10:00", 422, "since"),
    ("/v1/transitions?since=2026-01-01T00:00:00Z&after=1", 422, "since"),
    ("/v1/transitions?until=0001-01-01T00:00:00%2B10:00", 422, "until"),
    ("/v1/transitions?type=baton.stage.moved.v1", 422, "type"),
    ("/v1/handoffs/feed?type=baton.stage.*", 422, "type"),
    ("/v1/transitions?lead_id=ada", 422, "lead_id"),
    ("/v1/transitions?to=mql&stage=sql", 422, "to"),
    ("/v1/transitions?from=%00", 422, "from"),
    ("/v1/transitions?owner=", 422, "owner"),
    ("/v1/funnel?playbook=nonsense", 404, "playbook"),
    ("/v1/funnel?playbook=%00", 404, "playbook"),
    ("/v1/funnel?from=yesterday", 422, "from"),
    ("/v1/funnel?from=1e400", 422, "from"),
    ("/v1/funnel?from=0001-01-01T00:00:00%2B10:00", 422, "from"),
    ("/v1/funnel?to=9999-12-31T23:59:59-10:00", 422, "to"),
    ("/v1/funnel?by=a%27b", 422, "by"),
    ("/v1/funnel?by=%00", 422, "by"),
    ("/v1/funnel?from_stage=nonsense&to_stage=sql", 422, "from_stage"),
    ("/v1/funnel?from_stage=lead&to_stage=nonsense", 422, "to_stage"),
    ("/v1/funnel/durations", 422, "from_stage"),
    ("/v1/funnel/durations?from_stage=lead&to_stage=%00", 422, "to_stage"),
    ("/v1/funnel/durations?from_stage=lead&to_stage=sql&to=9999-12-31T23:59:59-10:00", 422, "to"),
    ("/v1/nonsense", 404, None),
]


@pytest.mark.parametrize(("path", "status", "field"), READS)
async def test_a_bad_question_is_refused_by_name(
    stage: Stage, path: str, status: int, field: str | None
) -> None:
    """Bad parameters of the read side get a problem that names them, never a 500."""
    answer = await stage.client.get(path, follow_redirects=True)
    is_problem(answer, status, field)


@pytest.mark.parametrize("id", [b"\xb2", b"x", b"-1", b"1.5", b"9" * 19])
async def test_a_last_event_id_that_is_no_position_is_refused(stage: Stage, id: bytes) -> None:
    """A reader that lost its place is told so; ``\u00b2`` is a digit to Python, but no number."""
    answer = await stage.client.get("/v1/transitions/stream", headers=[(b"last-event-id", id)])
    is_problem(answer, 422, "last-event-id")


MOVES = [
    ("empty body", b"", 422, "body"),
    ("broken JSON", b"{", 422, "body"),
    ("not UTF-8", b"\xff", 400, "body"),
    ("too deep", nested(100_000), 400, "body"),
    ("an array", b"[]", 422, "body"),
    ("no stage", b'{"reason":"why"}', 422, "to"),
    ("no reason", b'{"to":"nurture"}', 422, "reason"),
    ("blank reason", b'{"to":"nurture","reason":" \\n "}', 422, "reason"),
    ("empty reason", b'{"to":"nurture","reason":""}', 422, "reason"),
    ("reason of 10 kB", b'{"to":"nurture","reason":"%s"}' % (b"x" * 10_000), 422, "reason"),
    ("reason a number", b'{"to":"nurture","reason":1}', 422, "reason"),
    ("NUL in reason", b'{"to":"nurture","reason":"a\\u0000b"}', 422, "reason"),
    ("surrogate in reason", b'{"to":"nurture","reason":"\\ud800"}', 422, "reason"),
    ("unknown stage", b'{"to":"nonsense","reason":"why"}', 422, "to"),
    ("NUL in stage", b'{"to":"\\u0000","reason":"why"}', 422, "to"),
    ("unknown playbook", b'{"to":"nurture","reason":"why","playbook":"x"}', 404, "playbook"),
    ("NUL in key", b'{"to":"nurture","reason":"why","key":"\\u0000"}', 422, "key"),
    ("blank key", b'{"to":"nurture","reason":"why","key":" "}', 422, "key"),
    ("empty key", b'{"to":"nurture","reason":"why","key":""}', 422, "key"),
    ("unknown field", b'{"to":"nurture","reason":"why","sneaky":1}', 422, "sneaky"),
    ("force a word", b'{"to":"nurture","reason":"why","force":"perhaps"}', 422, "force"),
]


@pytest.mark.parametrize(
    ("body", "status", "field"), [pytest.param(*rest, id=name) for name, *rest in MOVES]
)
async def test_a_bad_move_is_refused_by_name(
    stage: Stage, body: bytes, status: int, field: str
) -> None:
    """A move by hand that cannot be gets a problem that names the field; the lead stays, no event."""
    [made] = await stage.send(event(data={"anonymous_id": str(uuid.uuid4())}))
    before = await stage.count()
    answer = await stage.client.post(
        f"/v1/leads/{made['lead_id']}/transitions", content=body, headers={"content-type": JSON}
    )
    is_problem(answer, status, field)
    assert await stage.count() == before


@pytest.mark.parametrize("id", ["nonsense", "%00", str(uuid.UUID(int=0))])
async def test_nobody_cannot_be_moved(stage: Stage, id: str) -> None:
    """An id that no lead has is a 404, whatever it looks like."""
    wish = {"to": "nurture", "reason": "why"}
    is_problem(await stage.client.post(f"/v1/leads/{id}/transitions", json=wish), 404, "id")


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/v1/leads"), ("PUT", "/v1/transitions"), ("PATCH", "/v1/funnel")],
)
async def test_a_wrong_method_is_a_problem_too(stage: Stage, method: str, path: str) -> None:
    """The framework's own errors come as problem+json."""
    is_problem(await stage.client.request(method, path), 405, None)


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
