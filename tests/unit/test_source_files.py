"""Source files: mistakes with line, column and remedy; expressions, bodies and times as documented."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.yaml_source import SourceError
from services.stage_service.sources.bodies import UnreadableError, read_body
from services.stage_service.sources.book import SourceBook
from services.stage_service.sources.conversions import CONVERSIONS, corrected, read_time
from services.stage_service.sources.expressions import ExpressionError, compile_expression
from services.stage_service.sources.mapping import Delivery, map_delivery
from services.stage_service.sources.source import Source
from services.stage_service.sources.source_file import parse_source
from tests.conftest import ROOT

AT = datetime(2026, 1, 2, tzinfo=UTC)
HEAD = "name: x\ntitle: X\nevidence: real samples\nverify: [bearer]\nread: json\n"
EVENT = "events:\n  - {type: a.b, id: '{item.id}'}\n"


def source(more: str = EVENT, head: str = HEAD) -> Source:
    """A source file with `more`."""
    return parse_source(head + more, "x.yaml")


def mapped(it: Source, payload: Any, **fields: Any) -> dict[str, Any]:
    """What a delivery of `payload` becomes."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return map_delivery(it, Delivery(body, AT, **fields)).shown()


@pytest.mark.parametrize(
    ("more", "line", "column", "message"),
    [
        ("events:\n  - type: a.b\n    id: '{item.}'\n", 8, 16, "Syntax error"),
        ("events:\n  - type: a.b\n    id: '{itm.id}'\n", 8, 14, "undeclared reference to 'itm.id'"),
        ("events:\n  - type: a.b\n    id: '{item.id'\n", 8, 10, "the brace is not closed"),
        ("events:\n  - type: a.b\n    id: '{item.id}'\n    when: item.a ==\n", 9, 20, "Syntax error"),
        ("events:\n  - type: a.b\n    id: '{item.id}'\n    email: lower(item.a, 1)\n", 9, 17, "lower"),
        ("events:\n  - id: '{item.id}'\n", 7, 5, "has no 'type'"),
        ("events:\n  - {type: a.b}\n", 7, 5, "has no 'id'"),
        ("events:\n  - {type: a.b, id: '{item.id}', tme: item.t}\n", 7, 34, "unknown key 'tme'"),
        ("events: []\n", 6, 9, "'events' is empty"),
        (EVENT + "split: deliveries[]\n", 8, 8, "not a way to the items"),
        ("events:\n  - {type: a.b, id: '{item.id}', time: {from: item.t, format: min}}\n", 7, 63,
         "unknown time format"),
        ("events:\n  - {type: a.b, id: '{item.id}', attributes: {email: item.x}}\n", 7, 54,
         "is no attribute"),
        ("events:\n  - {type: a.b, id: '{item.id}', attributes: {n: {from: item.x, as: integer}}}\n",
         7, 69, "unknown conversion 'integer'"),
        ("events:\n  - {when: item.a, ignore: true, type: a}\n", 7, 40, "beside 'ignore'"),
        (EVENT + "source: baton\n", 8, 9, "cannot be the source"),
        (EVENT + "answer: {status: 404}\n", 8, 18, "status is 404"),
        ("events:\n  - type: a.b\n    id: '{item.l.map(e, lower(e))}'\n", 8, 31, "called once"),
        ("events:\n  - type: a.b\n    id: '{item.l.map(item, item)}'\n", 8, 22, "has a meaning here"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(
    more: str, line: int, column: int, message: str
) -> None:
    with pytest.raises(SourceError) as caught:
        source(more)
    places = [(p.line, p.column) for p in caught.value.problems if message in p.message]
    assert (line, column) in places, str(caught.value)
    assert all(p.remedy for p in caught.value.problems)


def test_the_example_of_the_documentation_works() -> None:
    """docs/sources.md: the file for Formo maps Formo's delivery as the page says."""
    page = (ROOT / "docs" / "sources.md").read_text()
    yaml = re.search(r"```yaml\n(   # yaml-language.*?)```", page, re.DOTALL)
    sample = re.search(r'(\{"team".*?)```', page, re.DOTALL)
    assert yaml is not None
    assert sample is not None
    text = "\n".join(line.removeprefix("   ") for line in yaml[1].splitlines())
    (event,) = mapped(parse_source(text, "formo.yaml"), sample[1].strip().encode())["events"]
    assert event["id"] == "t-1-s-81"
    assert event["type"] == "demo.requested"
    assert event["time"] == "2026-01-01T09:59:58Z"
    assert event["data"]["company"] == "Example"
    for handshake in re.findall(r"^  - (\{method.*?\})  +#", page, re.MULTILINE):
        source(f"{EVENT}handshakes:\n  - {handshake}\n")
    standard = re.search(r"`(hmac: \{header: webhook-signature.*?\})`\.", page)
    assert standard is not None
    source(EVENT, HEAD.replace("[bearer]", f"\n  - {standard[1]}"))


ITEM = {
    "a": {"b": 1, "c-d": [{"v": 7}]}, "x": "a", "n": 5, "z": None, "s": "A.b",
    "list": [{"t": "text"}, {"t": "email", "v": "q@e.x", "f": {"id": "k"}}, "scalar", None],
    "numbered": {"0": {"k": "a", "v": 1}, "1": {"k": "b", "v": 2}, "2": "scalar"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("item.a.b", 1),
        ("item.nope.b.c", None),
        ("item.x.b", None),
        ("item.a['c-d'][0].v", 7),
        ("item.a['c-d'][9].v", None),
        ("item.x == 'a'", True),
        ("item.n == 'a'", False),
        ("item.x == 'a' && item.s == 'A.b'", True),
        ("item.x == ' && '", False),
        ("item.x in ['b', 'a']", True),
        ("item.x.startsWith('b')", False),
        ("item.nope == 'x' || item.x == 'a'", True),
        ("item.nope != 'x'", True),
        ("item.nope > 3", None),
        ("item.n > 3", True),
        ("has(item.a.b) && !has(item.nope.b)", True),
        ("item.list.filter(i, i.t == 'email')[0].v", "q@e.x"),
        ("item.list.filter(i, i.f.id == 'k').size()", 1),
        ("item.list.map(i, i.f.id)", [None, "k", None, None]),
        ("item.list.exists(i, has(i.f) && i.f.id == 'k')", True),
        ("find(item.list, 'f.id', 'k').v", "q@e.x"),
        ("find(item.nope, 'f', 'k').v", None),
        ("find(item.numbered, 'k', 'b').v", 2),
        ("coalesce(item.nope, '', item.x)", "a"),
        ("lower(item.s) + '!'", "a.b!"),
        ("slug('Demo  Requested (Ümlaut)!')", "demo_requested_umlaut"),
        ("text(item.n) + '-' + body_hash", "5-ff"),
        ("headers['X-Topic']", "t"),
        ("item.s.split('.')[1]", "b"),
        ("parse_json('{\"k\": [1]}').k[0]", 1),
        ("parse_json('{')", None),
        ("keys(item.a)", ["b", "c-d"]),
        ("'item.x'", "item.x"),
        ("[item.z, item.n]", [None, 5]),
        ("{'k': item.z}", {"k": None}),
        ("item.n == 5 ? 'five' : 'other'", "five"),
    ],
)
def test_expressions(text: str, value: Any) -> None:
    scope = {"item": ITEM, "headers": {"x-topic": "t"}, "body_hash": "ff"}
    expression = compile_expression(text)
    assert expression.evaluate(scope) == value
    assert type(expression.evaluate(scope)) is type(value)


def test_an_object_that_an_expression_makes_has_one_order() -> None:
    """CEL's maps have another one each time; what is stored must not depend on it."""
    made = compile_expression("item.list.map(i, {'d': i, 'b': i, 'a': i, 'c': i})")
    for each in made.evaluate({"item": {"list": list(range(50))}}):
        assert list(each) == ["a", "b", "c", "d"]


def test_expressions_lose_no_reference_to_none() -> None:
    """The CEL runtime does when it gives null back; in Python 3.11 that ends the process one day."""
    expressions = [
        compile_expression(text)
        for text in ("[item.z, item.list]", "item.z == null", "null", "item.z > 3", "{'a': item.z}",
                     "item.list.map(i, i.t)", "hash(item)", "coalesce(item.z, item.z)")
    ]  # fmt: skip
    scope = {"item": ITEM}
    before = sys.getrefcount(None)
    for _ in range(2000):
        for expression in expressions:
            expression.evaluate(scope)
    assert abs(sys.getrefcount(None) - before) < 500


@given(st.text(max_size=60) | st.text("item.abc()[]{}'\" ,=&|?:0+", max_size=60))
def test_no_text_breaks_the_compiler(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        compile_expression(text).evaluate({"item": ITEM})


@pytest.mark.parametrize(
    ("format", "body", "value"),
    [
        ("json", b'{"n": 1652977933433528300}', {"n": 1652977933433528300}),
        ("json", b'{"n": 123456789012345678901234567890}', {"n": 123456789012345678901234567890}),
        ("form", b"a=1&a=2&b[c][d]=3&e[]=4&e[]=5&f=%C3%BC&g=", {
            "a": ["1", "2"], "b": {"c": {"d": "3"}}, "e": ["4", "5"], "f": "\u00fc", "g": ""}),
        ("form", b"a[b]=1&a=2&c=3&c[d]=4&x[39]=y", {
            "a": {"b": "1", "": "2"}, "c": {"": "3", "d": "4"}, "x": {"39": "y"}}),
        ("xml", b'<s:E xmlns:s="u"><s:I t="x">1</s:I><s:I>2</s:I><N nil="true"/><V/></s:E>', {
            "E": {"I": [{"@t": "x", "#text": "1"}, "2"], "N": None, "V": ""}}),
        ("multipart", b'--B\r\nContent-Disposition: form-data; name="a[b]"\r\n\r\n1\r\n--B\r\n'
         b'Content-Disposition: form-data; name="f"; filename="x.txt"\r\nContent-Type: text/plain\r\n\r\n'
         b"hello\r\n--B--\r\n",
         {"a": {"b": "1"}, "f": {"file_name": "x.txt", "content_type": "text/plain", "bytes": 5}}),
    ],
)  # fmt: skip
def test_bodies(format: str, body: bytes, value: Any) -> None:
    assert read_body([format], body, "multipart/form-data; boundary=B") == value
    # A wrong Content-Type of the vendor's does not matter.
    assert read_body([format], body, "text/plain" if format != "multipart" else "") == value


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><x>&b;</x>'


@pytest.mark.parametrize(
    ("format", "body"),
    [
        ("json", b"{"), ("json", b"\xff"), ("json", b"NaN"), ("json", b"1e999"), ("json", b'"\\ud800"'),
        ("json", b"[" * 33 + b"]" * 33), ("json", b"[" * 100_000), ("form", b"\xff=1"), ("form", b""),
        ("form", b'{"a": 1}'), ("form", b"a=1&" * 3000), ("form", b"a" + b"[b]" * 40 + b"=1"),
        ("xml", BOMB), ("xml", b"<a>"), ("xml", b""), ("xml", b"<a>" * 60 + b"</a>" * 60),
        ("xml", b'<?xml version="1.0" encoding="nonsense"?><a/>'),
        ("xml", b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>'), ("multipart", b"x"),
        ("multipart", b"--B\r\nbroken"),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_read(format: str, body: bytes) -> None:
    with pytest.raises(UnreadableError):
        read_body([format], body, "multipart/form-data; boundary=B" if b"--B" in body else "")


@given(st.binary(max_size=300), st.sampled_from(["json", "form", "xml", "multipart"]))
def test_no_body_breaks_a_reader(body: bytes, format: str) -> None:
    for content_type in ("", "multipart/form-data; boundary=B", "\xff"):
        try:
            read_body([format], b"--B\r\n" + body if format == "multipart" else body, content_type)
        except UnreadableError:
            continue


@pytest.mark.parametrize(
    ("value", "format", "iso"),
    [
        ("2026-01-31T09:30:00Z", "rfc3339", "2026-01-31T09:30:00"),
        ("2026-01-31T09:30:00.1234567Z", "rfc3339", "2026-01-31T09:30:00.123456"),
        ("2026-01-31 10:30:00+01:00", "rfc3339", "2026-01-31T09:30:00"),
        ("2026-01-31T09:30:00+0000", "rfc3339", "2026-01-31T09:30:00"),
        ("2026-01-31T09:30:00", "rfc3339", None),
        ("2026-01-31 09:30:00", "utc", "2026-01-31T09:30:00"),
        ("2026-01-31", "utc", "2026-01-31T00:00:00"),
        ("2026-01-31T09:30:00.5-02:00", "utc", "2026-01-31T11:30:00.500000"),
        (1769851800, "s", "2026-01-31T09:30:00"),
        ("1769851800.25", "s", "2026-01-31T09:30:00.250000"),
        (1769851800123, "ms", "2026-01-31T09:30:00.123000"),
        ("1769851800123456", "us", "2026-01-31T09:30:00.123456"),
        ("31.01.2026 09:30", "%d.%m.%Y %H:%M", "2026-01-31T09:30:00"),
        (True, "s", None), ("abc", "s", None), (10**30, "s", None), ("٣", "s", None), ({}, "utc", None),
        ("2026-02-30", "utc", None), (float("inf"), "s", None),
    ],
)  # fmt: skip
def test_times(value: Any, format: str, iso: str | None) -> None:
    moment = read_time(value, format)
    assert (moment and moment.isoformat()) == (iso and iso + "+00:00")


@pytest.mark.parametrize(
    ("at", "sent_at"),
    [
        ("9999-12-31T23:59:59Z", "2020-01-01T00:00:00Z"),
        ("0001-01-01T00:00:00Z", "2099-01-01T00:00:00Z"),
    ],
)
def test_a_correction_that_leads_out_of_the_calendar_is_told(at: str, sent_at: str) -> None:
    it = source(EVENT.replace("}'}", "}', time: {from: item.at, sent_at: item.sent_at}}"))
    result = mapped(it, {"id": 1, "at": at, "sent_at": sent_at})
    assert [d["code"] for d in result["quarantined"]] == ["time-out-of-range"]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("timestamp('2026-01-02T03:04:05Z')", "2026-01-02T03:04:05Z"),
        ("[timestamp('2026-01-02T03:04:05Z')]", ["2026-01-02T03:04:05Z"]),
        ("duration('90s')", "90s"),
        ("{1: 2}", {"1": 2}),
        ("b'abc'", None),
        ("type(1)", None),
    ],
)
def test_what_an_expression_gives_can_be_kept_as_json(expression: str, value: Any) -> None:
    """CEL has more types than JSON; none of them may break the delivery."""
    it = source(
        f"events:\n  - {{type: a.b, id: '{{item.id}}', attributes: {{a: \"{expression}\"}}}}\n"
    )
    result = mapped(it, {"id": 1})
    assert [e["data"] for e in result["events"]] == [{} if value is None else {"a": value}]
    json.dumps(result)


def test_a_wrong_clock_is_corrected_and_a_slow_request_is_not() -> None:
    time = datetime(2026, 1, 1, 8, 0, tzinfo=UTC)
    hour_ahead = datetime(2026, 1, 1, 9, 0, tzinfo=UTC)
    received = datetime(2026, 1, 1, 8, 0, 10, tzinfo=UTC)
    assert corrected(time, hour_ahead, received) == datetime(2026, 1, 1, 7, 0, 10, tzinfo=UTC)
    assert corrected(time, time, received) == time
    assert corrected(time, None, received) == time


@pytest.mark.parametrize(
    ("conversion", "value", "result"),
    [
        ("int", "1,250", 1250), ("int", "12.0", 12), ("int", "many", "many"),
        ("number", "1,044,055.50", 1044055.5),
        ("bool", "Yes", True), ("bool", 0, False), ("bool", "perhaps", "perhaps"), ("text", 5.0, "5"),
        ("text", ["a", 1], "a, 1"), ("list", "||a||b c||", ["a", "b c"]), ("list", "a, b", ["a", "b"]),
        ("time-ms", 0, "1970-01-01T00:00:00Z"), ("time", "never", "never"),
    ],
)  # fmt: skip
def test_conversions(conversion: str, value: Any, result: Any) -> None:
    assert CONVERSIONS[conversion](value) == result


def test_an_id_that_lost_its_part_is_refused_unless_it_may_be_absent() -> None:
    it = source("events:\n  - {type: a.b, id: 'k-{item.id}-{item.part?}'}\n")
    assert mapped(it, {"id": 1})["events"][0]["id"] == "k-1-"
    assert mapped(it, {"part": 1})["quarantined"][0]["code"] == "no-id"
    long = mapped(it, {"id": "x" * 600})["events"][0]["id"]
    assert long.startswith("sha256:")
    assert len(long) == 71


@pytest.mark.parametrize(
    ("split", "payload", "items"),
    [
        ("delivery[]", [1, 2], 2),
        ("delivery[]", {"id": 1}, 1),
        ("delivery.a[].b[]", {"a": [{"b": [1, 2]}, {"b": 3}, {}]}, 3),
        ("delivery{}[]", {"x": [1, 2], "y": [3]}, 3),
        ('delivery["a b"]', {"a b": 1}, 1),
        ('["delivery.batch[]", "delivery[]"]', {"batch": [1, 2]}, 2),
        ('["delivery.batch[]", "delivery[]"]', {"batch": []}, 0),
        ('["delivery.batch[]", "delivery[]"]', [1], 1),
    ],
)
def test_splits(split: str, payload: Any, items: int) -> None:
    quoted = split if split.startswith("[") else f"'{split}'"
    it = source(f"split: {quoted}\nevents:\n  - {{ignore: true}}\n")
    assert mapped(it, payload) == {"events": [], "quarantined": [], "ignored": items}


@pytest.mark.parametrize("payload", [{"other": 1}, {}, None, "text", 5])
def test_a_delivery_without_items_is_not_lost(payload: Any) -> None:
    it = source("split: delivery.items[]\n" + EVENT)
    assert mapped(it, payload)["quarantined"][0]["code"] == "no-items"


def test_an_element_without_items_does_not_vanish_beside_others() -> None:
    it = source("split: delivery[].ids[]\nevents:\n  - {type: a.b, id: '{item}-{outer.n}'}\n")
    result = mapped(it, [{"ids": [1, 2], "n": "x"}, {"id": 3}, {}, {"ids": []}, {"ids": None}])
    assert [e["id"] for e in result["events"]] == ["1-x", "2-x"]
    assert [(q["item"], q["code"]) for q in result["quarantined"]] == [
        (2, "no-items"), (3, "no-items"),
    ]  # fmt: skip


def test_all_values_of_lists_are_taken_one_by_one() -> None:
    it = source(
        "events:\n  - {type: a.b, id: '{item.id}', attributes: {n: {all: [item.a, item.b, item.c]}}}\n"
    )
    event = mapped(it, {"id": 1, "a": 5, "b": [6, None, 5, {"x": 1}, ""]})["events"][0]
    assert event["data"]["n"] == [5, 6, {"x": 1}]


def test_keys_and_parents_of_nested_items() -> None:
    it = source(
        "split: delivery{}[]\nevents:\n"
        "  - {type: 'mautic.{key}', id: '{key}-{index}-{item.id}-{parent.x[0].id}'}\n"
    )
    events = mapped(it, {"x": [{"id": 1}], "y": [{"id": 2}]})["events"]
    assert [e["type"] for e in events] == ["mautic.x", "mautic.y"]
    assert [e["id"] for e in events] == ["x-0-1-1", "y-1-2-1"]


def test_more_items_than_are_taken() -> None:
    it = source("split: delivery[]\n" + EVENT)
    result = mapped(it, [{"id": n} for n in range(4001)])
    assert len(result["events"]) == 4000
    assert result["quarantined"][0]["code"] == "too-many-items"


def test_reserved_names_are_refused() -> None:
    it = source("events:\n  - {type: '{item.t}', id: '{item.id}'}\n")
    assert mapped(it, {"t": "baton.lead.moved", "id": 1})["quarantined"][0]["code"] == "reserved"
    assert mapped(it, {"t": "a", "id": "\x00"})["quarantined"][0]["code"] == "control-character"


def test_a_file_that_becomes_wrong_leaves_the_last_good_one_in_use(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    book = SourceBook(tmp_path)
    file.write_text(HEAD + EVENT)
    (tmp_path / "y.yaml").write_text("name: y\n")
    assert book.refresh()
    assert set(book.sources) == {"x"}
    assert set(book.refused) == {"y"}
    assert not book.refresh()
    file.write_text(HEAD + "events: nonsense\n")
    book.refresh()
    assert "x" in book.sources
    assert "x" in book.refused
    file.write_text(HEAD + EVENT + "docs: mended\n")
    book.refresh()
    assert "x" not in book.refused
    file.unlink()
    book.refresh()
    assert set(book.sources) == set()


def test_a_file_that_cannot_be_read_now_is_looked_at_again(tmp_path: Path) -> None:
    """Until then its source is one that is being mended (503), not one that nobody knows (404)."""
    good = HEAD + EVENT
    file = tmp_path / "x.yaml"
    file.mkdir()  # root may read any file, but nobody a directory
    book = SourceBook(tmp_path)
    book.refresh()
    assert set(book.refused) == {"x"}
    stat = file.stat()
    file.rmdir()
    file.write_text(good + " " * (stat.st_size - len(good) - 1) + "\n")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    book.refresh()
    assert set(book.sources) == {"x"}
    assert not book.refused
    file.unlink()
    file.symlink_to(file)
    book.refresh()
    assert set(book.sources) == {"x"}


def test_a_directory_that_goes_away_takes_no_source_along(tmp_path: Path) -> None:
    """A volume that is not mounted for a moment must not tell vendors that nobody is here."""
    directory = tmp_path / "sources"
    directory.mkdir()
    (directory / "x.yaml").write_text(HEAD + EVENT)
    book = SourceBook(directory)
    book.refresh()
    directory.rename(tmp_path / "elsewhere")
    assert not book.refresh()
    assert set(book.sources) == {"x"}
    directory.mkdir()
    book.refresh()
    assert not book.sources


def test_items_of_one_id_that_differ_are_not_dropped_as_repeats() -> None:
    """A file whose id does not tell the items apart would lose all but the first, and answer 200."""
    it = source("split: delivery[]\n" + EVENT.replace("}'}", "}', attributes: {a: item.a}}"))
    result = mapped(
        it, [{"id": 1, "a": 1}, {"id": 1, "a": 1}, {"id": 1, "a": 2}, {"id": 2, "a": 2}]
    )
    assert [(e["id"], e["data"]) for e in result["events"]] == [
        ("1", {"a": 1}), ("1", {"a": 1}), ("2", {"a": 2}),
    ]  # fmt: skip
    assert [(d["item"], d["code"], d["value"]) for d in result["quarantined"]] == [
        (2, "same-id", "1")
    ]


def test_a_list_s_element_without_members_is_told() -> None:
    it = source("split: 'delivery.lists[]{}'\n" + EVENT)
    result = mapped(it, {"lists": [{"a": {"id": 1}}, "b", {}, ["c"]]})
    assert [e["id"] for e in result["events"]] == ["1"]
    assert [d["code"] for d in result["quarantined"]] == ["no-items", "no-items"]
