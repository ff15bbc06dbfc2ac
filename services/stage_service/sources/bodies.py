"""The body of a delivery as plain values: JSON, form fields, XML (SOAP), multipart.

Which of them is the source file's to say; a vendor's Content-Type is not believed. Form keys nest as PHP
and Rails write them (``data[merges][EMAIL]``). XML names lose their namespace; attributes are ``@name``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, cast
from urllib.parse import parse_qsl
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
import python_multipart
from defusedxml import DefusedXmlException
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from services.contracts.cloudevents import JSON_DEPTH_MAX, JsonDefectError, decode_json
from services.contracts.problems import shown

FIELDS_MAX = 2000
ELEMENTS_MAX = 50_000
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_NESTED = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])+)")


class UnreadableError(ValueError):
    """The body is not what the source file says it is."""


def read_json(body: bytes, _: str) -> Any:
    """Read strict JSON; integers of any size stay exact."""
    try:
        payload = decode_json(body)
    except JsonDefectError as error:
        raise UnreadableError(error.reason) from None
    if body.count(b"[") + body.count(b"{") > JSON_DEPTH_MAX and _is_deep(payload, JSON_DEPTH_MAX):
        raise UnreadableError(f"JSON nested deeper than {JSON_DEPTH_MAX}")
    return payload


def _is_deep(value: Any, left: int) -> bool:
    inner: Iterable[Any]
    if isinstance(value, dict):
        inner = cast("dict[str, Any]", value).values()
    elif isinstance(value, list):
        inner = cast("list[Any]", value)
    else:
        return False
    return left == 0 or any(_is_deep(each, left - 1) for each in inner)


def read_form(body: bytes, _: str) -> Any:
    """Read ``application/x-www-form-urlencoded``; every value is a text."""
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict"
        )
    except ValueError as error:  # not UTF-8 too
        raise UnreadableError(f"not form fields: {shown(str(error))}") from None
    if not any(key and value for key, value in pairs):
        raise UnreadableError("not form fields: no name with a value")
    return nested(pairs)


def read_multipart(body: bytes, content_type: str) -> Any:
    """Read ``multipart/form-data``; of a file only its name, type and size are kept."""
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary") or _first_boundary(body)
    if not boundary or media_type[:10] not in (b"multipart/", b""):
        raise UnreadableError("not multipart: no boundary")
    pairs: list[tuple[str, Any]] = []

    def take_field(field: Any) -> None:
        pairs.append((_decoded(field.field_name), _decoded(field.value)))

    def take_file(file: Any) -> None:
        kept = {
            "file_name": _decoded(file.file_name),
            "content_type": str(file.content_type),
            "bytes": file.size,
        }
        pairs.append((_decoded(file.field_name), kept))
        file.close()

    try:
        parser = python_multipart.FormParser(
            "multipart/form-data", take_field, take_file, boundary=boundary,
            config={"MAX_MEMORY_FILE_SIZE": len(body) + 1},
        )  # fmt: skip
        parser.write(body)
        parser.finalize()
        parser.close()
    except (FormParserError, ValueError) as error:
        raise UnreadableError(f"not multipart: {shown(str(error))}") from None
    if not pairs or len(pairs) > FIELDS_MAX:
        raise UnreadableError(f"not multipart: {len(pairs)} parts")
    return nested(pairs)


def _first_boundary(body: bytes) -> bytes:
    line = body[:200].partition(b"\r\n")[0]
    return line[2:] if line.startswith(b"--") else b""


def _decoded(value: bytes | None) -> str:
    return (value or b"").decode()


def nested(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Nest ``a[b][c]`` keys. ``a[]`` and a repeated key make a list; a value beside ``a[b]`` is ``a[""]``."""
    root: dict[str, Any] = {}
    for key, value in pairs:
        found = _NESTED.fullmatch(key)
        names = [found[1], *_BRACKETS.findall(found[2])] if found else [key]
        if len(names) > JSON_DEPTH_MAX:
            raise UnreadableError(f"a field nested deeper than {JSON_DEPTH_MAX}")
        place: dict[str, Any] = root
        for position, name in enumerate(names[:-1]):
            if names[position + 1] == "" and position == len(names) - 2:
                _append(place, name, value, is_list=True)
                break
            inner = place.get(name)
            if not isinstance(inner, dict):
                inner = {} if inner is None else {"": inner}
                place[name] = inner
            place = cast("dict[str, Any]", inner)
        else:
            _append(place, names[-1], value, is_list=False)
    return root


def _append(place: dict[str, Any], name: str, value: Any, *, is_list: bool) -> None:
    known = place.get(name)
    if isinstance(known, dict):
        _append(cast("dict[str, Any]", known), "", value, is_list=False)
    elif isinstance(known, list):
        cast("list[Any]", known).append(value)
    elif name in place:
        place[name] = [known, value]
    else:
        place[name] = [value] if is_list else value


def read_xml(body: bytes, _: str) -> Any:
    """Read XML without entities or a document type.

    An element with children is an object, one that comes again a list, any other its text; ``xsi:nil`` is
    null; with attributes and text it is ``{"@name": ..., "#text": ...}``. The result is ``{root: value}``.
    """
    try:
        root = defusedxml.ElementTree.fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise UnreadableError(f"not XML that is read here: {shown(str(error))}") from None
    left = [ELEMENTS_MAX]
    return {_local(root.tag): _element(root, 0, left)}


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _element(element: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if depth > JSON_DEPTH_MAX or left[0] < 0:
        raise UnreadableError(f"XML deeper than {JSON_DEPTH_MAX} or of more than {ELEMENTS_MAX}")
    attributes = {_local(name): value for name, value in element.attrib.items()}
    if attributes.pop("nil", "") in ("true", "1"):
        return None
    value: dict[str, Any] = {f"@{name}": text for name, text in attributes.items()}
    for child in element:
        name = _local(child.tag)
        inner = _element(child, depth + 1, left)
        if name not in value:
            value[name] = inner
        elif isinstance(value[name], list):
            value[name].append(inner)
        else:
            value[name] = [value[name], inner]
    text = (element.text or "").strip()
    if not value:
        return text
    if text:
        value["#text"] = text
    return value


READERS: dict[str, Callable[[bytes, str], Any]] = {
    "json": read_json,
    "form": read_form,
    "xml": read_xml,
    "multipart": read_multipart,
}
"""What ``read:`` may name; each takes the body and the Content-Type, and raises UnreadableError."""


def read_body(formats: Iterable[str], body: bytes, content_type: str) -> Any:
    """Read `body` by the first of `formats` that can; raises UnreadableError with all the reasons."""
    reasons: list[str] = []
    for format in formats:
        try:
            return READERS[format](body, content_type)
        except UnreadableError as error:
            reasons.append(str(error))
    raise UnreadableError("; ".join(reasons))
