"""CloudEvents 1.0: reading them from HTTP requests, writing them for Kafka.

Reads all three HTTP content modes (structured, batched, binary) to plain attributes and data, and
judges each event by itself: a defect names the attribute and leaves the others alone. Neither the
official JSON Schema nor the SDK refuses every invalid event of the conformance suite, so the rules of
the specification (v1.0.2, sections 3.1-3.3) are written out here.

JSON that could not be stored later (NUL, lone surrogates, integers over 64 bits) is refused here,
before anybody is told 2xx.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import msgspec

from services.contracts.problems import Defect, shown

STRUCTURED = "application/cloudevents+json"
BATCHED = "application/cloudevents-batch+json"

JSON_DEPTH_MAX = 32
INTEGER_MAX = 2**63 - 1
ATTRIBUTE_CHARACTERS_MAX = 1024
ATTRIBUTE_BYTES_MAX = 1280
EXTENSIONS_MAX = 32

CORE = frozenset(
    ("specversion", "id", "source", "type", "datacontenttype", "dataschema", "subject", "time")
)

_EXTENSION_NAME = re.compile(r"[a-z0-9]{1,64}")
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~\w-]+/[!#$%&'*+.^_`|~\w-]+(\s*;.*)?", re.ASCII)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+")
URI_REFERENCE = re.compile(r"[^\s<>\"{}|\\^`\x00-\x1f\x7f]+")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
# What the specification's type String excludes (3.1), beyond which any character may stand in a value.
_NOT_TEXT = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
    + "]"
)
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_JSON_TYPE = re.compile(r"(application|text)/(json|[\w.-]+\+json)", re.IGNORECASE)


class CloudEvent(msgspec.Struct, frozen=True):
    """One CloudEvent as received: core attributes, extensions, and its data decoded if JSON."""

    id: str
    source: str
    type: str
    time: datetime | None
    subject: str | None
    data: Any
    datacontenttype: str | None
    dataschema: str | None
    extensions: dict[str, str | int | bool]
    data_base64: str | None


class JsonDefectError(ValueError):
    """The body is not JSON that can be kept; `field` is a JSON Pointer-like path into it."""

    def __init__(self, reason: str, field: str = "body", remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
        self.remedy = remedy or "Send valid UTF-8 JSON."


_decode = msgspec.json.Decoder(strict=True).decode


def decode_json(body: bytes) -> Any:
    """Decode `body` as strict JSON (RFC 8259).

    Raises JsonDefectError for bytes that are not UTF-8 JSON, and for nesting so deep that it cannot
    be read at all. What is inside still has to pass `unkeepable`.
    """
    try:
        return _decode(body)
    except RecursionError:
        raise JsonDefectError(
            f"JSON nested deeper than {JSON_DEPTH_MAX}", remedy="Flatten the data."
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise JsonDefectError(f"not valid JSON: {shown(str(error))}") from None


def unkeepable(value: Any, path: str) -> tuple[str, str] | None:
    """Find the first value in decoded JSON that could not be stored for ever.

    Gives (path, reason) or None; `path` is where `value` stands. Checks depth (32), NUL and lone
    surrogates in strings and keys, and numbers beyond 64-bit integers, which neither the lead's packed
    state nor a rule can hold.
    """
    found = _unkeepable(value, 0)
    return (path + found[0], found[1]) if found else None


def _unkeepable(value: Any, depth: int) -> tuple[str, str] | None:
    """Do the work of `unkeepable`; the path is put together only when something was found."""
    if value is None or value is True or value is False:
        return None
    if isinstance(value, str):
        reason = _unkeepable_text(value)
        return ("", reason) if reason else None
    if isinstance(value, int):
        if -INTEGER_MAX - 1 <= value <= INTEGER_MAX:
            return None
        return "", "an integer of more than 64 bits: send it as a string"
    if isinstance(value, float):
        # jsonb gives a large float back as an integer, so the same bounds hold; NaN is in none.
        if -INTEGER_MAX <= value <= INTEGER_MAX:
            return None
        return "", "number out of range: send it as a string"
    if depth >= JSON_DEPTH_MAX:
        return "", f"JSON nested deeper than {JSON_DEPTH_MAX}"
    if isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            reason = _unkeepable_text(key)
            if reason:
                return f".{shown(key)}", reason
            found = _unkeepable(inner, depth + 1)
            if found:
                return f".{shown(key)}{found[0]}", found[1]
        return None
    for index, inner in enumerate(cast("Iterable[Any]", value)):
        found = _unkeepable(inner, depth + 1)
        if found:
            return f"[{index}]{found[0]}", found[1]
    return None


def _unkeepable_text(text: str) -> str | None:
    if text.isprintable():  # the common case, decided in C: no NUL, no surrogate
        return None
    if "\x00" in text:
        return "contains the character NUL (\\u0000)"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate, which is not Unicode text"
    return None


def brief(value: Any) -> str | None:
    """Give decoded JSON as a short text for an error; of an array or object only what it is.

    Those may be nested as deep as the decoder goes, which is too deep for ``repr``.
    """
    if isinstance(value, (list, dict)):
        return "an array" if isinstance(value, list) else "an object"
    return shown(value)


def parse_time(text: str) -> datetime | None:
    """Read an RFC 3339 timestamp to an aware UTC datetime; None when it is not one.

    Digits after the microsecond are cut. A leap second (``:60``) is not accepted.
    """
    if not _RFC3339.fullmatch(text):
        return None
    try:
        time = datetime.fromisoformat(text.upper())
        return time if time.tzinfo is UTC else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _required(attributes: Mapping[str, Any], name: str) -> str | Defect:
    value = attributes.get(name)
    if value is None:
        return Defect(
            "missing-attribute", name, f"the CloudEvents attribute {name!r} is missing",
            f"Add {name!r}: a non-empty string.",
        )  # fmt: skip
    return _text(value, name)


def _optional(attributes: Mapping[str, Any], name: str) -> str | Defect | None:
    value = attributes.get(name)
    return None if value is None else _text(value, name)


def _text(value: Any, name: str) -> str | Defect:
    if not isinstance(value, str):
        return Defect(
            "wrong-type", name, f"{name!r} must be a string, not {type(value).__name__}",
            f"Send {name!r} as a JSON string.", brief(value),
        )  # fmt: skip
    if not value or value.isspace():
        return Defect("empty", name, f"{name!r} must not be empty", f"Give {name!r} a value.")
    if len(value) > ATTRIBUTE_CHARACTERS_MAX:
        return Defect(
            "too-long", name, f"{name!r} is longer than {ATTRIBUTE_CHARACTERS_MAX} characters",
            "Shorten it.", shown(value),
        )  # fmt: skip
    if not value.isascii() and len(value.encode("utf-8", "surrogatepass")) > ATTRIBUTE_BYTES_MAX:
        return Defect(  # two of them make a key, and an index entry has its limit
            "too-long", name, f"{name!r} is longer than {ATTRIBUTE_BYTES_MAX} bytes of UTF-8",
            "Shorten it.", shown(value),
        )  # fmt: skip
    if not _is_text(value):
        return Defect(
            "control-character", name, f"{name!r} contains a control character or is not Unicode",
            "Remove it.", shown(value),
        )  # fmt: skip
    return value


def _is_text(value: str) -> bool:
    """Tell whether `value` may be an attribute's: no control characters, nothing but Unicode."""
    return value.isprintable() or not _NOT_TEXT.search(value)


def _invalid(name: str, reason: str, remedy: str, value: object) -> Defect:
    return Defect("invalid-attribute", name, reason, remedy, brief(value))


def check(attributes: Mapping[str, Any]) -> CloudEvent | Defect:
    """Judge one event in the JSON format (CloudEvents JSON format v1.0.2).

    `attributes` is the decoded JSON object, ``data`` and ``data_base64`` included; null counts as
    absent. Gives the event, or the first Defect with the attribute's name.
    """
    version = _required(attributes, "specversion")
    if isinstance(version, Defect):
        return version
    if version != "1.0":
        return _invalid(
            "specversion",
            "only CloudEvents 1.0 is understood",
            "Set specversion to '1.0'.",
            version,
        )
    id = _required(attributes, "id")
    source = _required(attributes, "source")
    type_ = _required(attributes, "type")
    for value in (id, source, type_):
        if isinstance(value, Defect):
            return value
    if not URI_REFERENCE.fullmatch(cast("str", source)):
        return _invalid("source", "not a URI reference (RFC 3986)", "Give a URI or path.", source)
    optional = _check_optional(attributes)
    if isinstance(optional, Defect):
        return optional
    time, subject, content_type, schema = optional
    extensions: dict[str, str | int | bool] = {}
    if len(attributes) > 4:
        defect = _check_extensions(attributes, extensions)
        if defect:
            return defect
    data = attributes.get("data")
    data_base64 = attributes.get("data_base64")
    if data_base64 is not None:
        if data is not None:
            return _invalid(
                "data_base64", "'data' and 'data_base64' exclude each other", "Send one.", None
            )
        defect = _check_base64(data_base64)
        if defect:
            return defect
    elif data is not None:
        found = unkeepable(data, "data")
        if found:
            return Defect("unkeepable-value", found[0], found[1], "Correct or remove the value.")
    return CloudEvent(
        cast("str", id), cast("str", source), cast("str", type_), time, subject, data,
        content_type, schema, extensions, data_base64,
    )  # fmt: skip


def mapped_event(
    id: str, source: str, type: str, time: datetime | None, data: dict[str, Any]
) -> CloudEvent | Defect:
    """Make the event that a delivery was mapped to; gives the first Defect as `check` does.

    `source` is a URI reference already: it comes from a source file, not from a sender.
    """
    for value, name in ((id, "id"), (type, "type")):
        text = _text(value, name)
        if isinstance(text, Defect):
            return text
    found = unkeepable(data, "data")
    if found:
        return Defect("unkeepable-value", found[0], found[1], "Correct or remove the value.")
    return CloudEvent(id, source, type, time, None, data, None, None, {}, None)


def _check_optional(
    attributes: Mapping[str, Any],
) -> tuple[datetime | None, str | None, str | None, str | None] | Defect:
    time: datetime | None = None
    text = _optional(attributes, "time")
    if isinstance(text, Defect):
        return text
    if text is not None:
        time = parse_time(text)
        if time is None:
            return _invalid(
                "time", "not an RFC 3339 timestamp", "Write it as 2026-01-31T09:30:00Z.", text
            )
    subject = _optional(attributes, "subject")
    if isinstance(subject, Defect):
        return subject
    content_type = _optional(attributes, "datacontenttype")
    if isinstance(content_type, Defect):
        return content_type
    if content_type is not None and not _MEDIA_TYPE.fullmatch(content_type):
        return _invalid(
            "datacontenttype", "not a media type (RFC 2046)", "Write it as application/json.",
            content_type,
        )  # fmt: skip
    schema = _optional(attributes, "dataschema")
    if isinstance(schema, Defect):
        return schema
    if schema is not None and not _URI.fullmatch(schema):
        return _invalid("dataschema", "not an absolute URI", "Give a full URI.", schema)
    return time, subject, content_type, schema


def _check_extensions(
    attributes: Mapping[str, Any], extensions: dict[str, str | int | bool]
) -> Defect | None:
    for name, value in attributes.items():
        if name in CORE or name == "data" or name == "data_base64":
            continue
        if not _EXTENSION_NAME.fullmatch(name):
            return _invalid(
                shown(name) or "extension", "extension names are lower-case letters and digits",
                "Rename it, or move it into 'data'.", name,
            )  # fmt: skip
        if value is None:
            continue
        if isinstance(value, bool):
            extensions[name] = value
        elif isinstance(value, int):
            if not -(2**31) <= value < 2**31:
                return _invalid(name, "extension integers are 32 bit", "Send a string.", value)
            extensions[name] = value
        elif isinstance(value, str):
            if len(value) > ATTRIBUTE_CHARACTERS_MAX or not _is_text(value):
                return _invalid(
                    name, "too long, or contains a control character", "Shorten or clean it.", value
                )
            extensions[name] = value
        else:
            return _invalid(
                name, "extensions are strings, integers or booleans", "Move it into 'data'.", value
            )
        if len(extensions) > EXTENSIONS_MAX:
            return _invalid(name, f"more than {EXTENSIONS_MAX} extensions", "Use 'data'.", None)
    return None


def _check_base64(text: Any) -> Defect | None:
    if isinstance(text, str):
        try:
            base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            pass
        else:
            return None
    return _invalid("data_base64", "not base64 text (RFC 4648)", "Encode the bytes again.", text)


def from_binary(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> dict[str, Any] | Defect:
    """Bring a binary-mode HTTP request to the JSON format (HTTP protocol binding v1.0.2, 3.1).

    `headers` are (lower-case name, value) as ASGI gives them. JSON data is decoded, text becomes a
    string, anything else base64. A body without Content-Type is read as JSON if it is JSON, since
    older SDKs send it so. The result still has to pass `check`.
    """
    attributes: dict[str, Any] = {}
    content_type = ""
    for name, value in headers:
        if name.startswith(b"ce-"):
            attribute = name[3:].decode("latin-1")
            if attribute in attributes:
                return _header(attribute, "the header came twice", "Send it once.")
            if attribute in _NO_HEADERS:
                return _header(attribute, "is no ce- header", _NO_HEADERS[attribute])
            try:
                attributes[attribute] = unquote_to_bytes(_unquoted(value)).decode()
            except UnicodeDecodeError:
                return _header(
                    attribute, "header is not UTF-8",
                    "Percent-encode the value (HTTP protocol binding 3.1.3.2).",
                )  # fmt: skip
        elif name == b"content-type":
            content_type = value.decode("latin-1")
    if content_type:
        attributes["datacontenttype"] = content_type
    if not body:
        return attributes
    media_type = content_type.partition(";")[0].strip()
    if not media_type or _JSON_TYPE.fullmatch(media_type):
        try:
            attributes["data"] = decode_json(body)
        except JsonDefectError as error:
            if media_type:
                return Defect("invalid-json", "data", error.reason, error.remedy)
            attributes["data_base64"] = base64.b64encode(body).decode()
    elif media_type.startswith("text/"):
        try:
            attributes["data"] = body.decode()
        except UnicodeDecodeError:
            return Defect("invalid-utf8", "data", "text that is not UTF-8", "Send UTF-8.")
    else:
        attributes["data_base64"] = base64.b64encode(body).decode()
    return attributes


_NO_HEADERS = {
    "data": "Send the data as the body.",
    "data_base64": "Send the data as the body.",
    "datacontenttype": "Send it as the Content-Type header.",
}


def _header(attribute: str, reason: str, remedy: str) -> Defect:
    return _invalid(shown(attribute) or "ce-", reason, remedy, None)


def _unquoted(value: bytes) -> bytes:
    """Undo double quotes (RFC 7230, 3.2.6), which versions before 1.0.2 put around values."""
    quoted = _QUOTED.fullmatch(value)
    return re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else value
