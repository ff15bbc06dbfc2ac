"""Every bad event is refused by a problem that names the field, and the service lives on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.nearly_events import (
    JSON,
    MIB,
    binary,
    event,
    is_problem,
    lives_on,
    nested,
    raw,
    stage,
    text,
    with_data,
)
from tests.integration.stage import BATCHED, STRUCTURED, Stage

__all__ = ["stage"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


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
