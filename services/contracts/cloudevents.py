"""CloudEvents 1.0: reading them from HTTP requests, writing them for Kafka.

Reads all three HTTP content modes (structured, batched, binary) to plain attributes and data, and
judges each event by itself: a defect names the attribute and leaves the others alone. Neither the
official JSON Schema nor the SDK refuses every invalid event of the conformance suite, so the rules of
the specification (v1.0.2, sections 3.1-3.3) are written out here.

JSON that PostgreSQL would refuse later (NUL, lone surrogates, endless numbers) is refused here,
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
NUMBER_DIGITS_MAX = 40
ATTRIBUTE_CHARACTERS_MAX = 1024
EXTENSIONS_MAX = 32

CORE = frozenset(
    ("specversion", "id", "source", "type", "datacontenttype", "dataschema", "subject", "time")
)

_EXTENSION_NAME = re.compile(r"[a-z0-9]{1,64}")
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~\w-]+/[!#$%&'*+.^_`|~\w-]+(\s*;.*)?", re.ASCII)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+")
_URI_REFERENCE = re.compile(r"[^\s<>\"{}|\\^`\x00-\x1f\x7f]+")
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
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


def unkeepable(value: Any, path: str, depth: int = 0) -> tuple[str, str] | None:
    """Find the first value in decoded JSON that could not be stored for ever.

    Gives (path, reason) or None. Checks depth (32), NUL and lone surrogates in strings and keys,
    infinities, and numbers over 40 digits: jsonb refuses them, or every reader would choke.
    """
    if value is None or value is True or value is False:
        return None
    if isinstance(value, str):
        return _unkeepable_text(value, path)
    if isinstance(value, int):
        if -(10**NUMBER_DIGITS_MAX) < value < 10**NUMBER_DIGITS_MAX:
            return None
        return path, f"number of more than {NUMBER_DIGITS_MAX} digits"
    if isinstance(value, float):
        if value - value != 0.0:  # inf or nan
            return path, "number out of range"
        return None
    if depth >= JSON_DEPTH_MAX:
        return path, f"JSON nested deeper than {JSON_DEPTH_MAX}"
    if isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            found = _unkeepable_text(key, f"{path}.{shown(key)}") or unkeepable(
                inner, f"{path}.{key}", depth + 1
            )
            if found:
                return found
        return None
    for index, inner in enumerate(cast("Iterable[Any]", value)):
        found = unkeepable(inner, f"{path}[{index}]", depth + 1)
        if found:
            return found
    return None


def _unkeepable_text(text: str, path: str) -> tuple[str, str] | None:
    if text.isprintable():  # the common case, decided in C: no NUL, no surrogate
        return None
    if "\x00" in text:
        return path, "contains the character NUL (\\u0000)"
    try:
        text.encode()
    except UnicodeEncodeError:
        return path, "contains a lone surrogate, which is not Unicode text"
    return None


def parse_time(text: str) -> datetime | None:
    """Read an RFC 3339 timestamp to an aware UTC datetime; None when it is not one.

    Digits after the microsecond are cut. A leap second (``:60``) is not accepted.
    """
    if not _RFC3339.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
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
            f"Send {name!r} as a JSON string.", shown(value),
        )  # fmt: skip
    if not value or value.isspace():
        return Defect("empty", name, f"{name!r} must not be empty", f"Give {name!r} a value.")
    if len(value) > ATTRIBUTE_CHARACTERS_MAX:
        return Defect(
            "too-long", name, f"{name!r} is longer than {ATTRIBUTE_CHARACTERS_MAX} characters",
            "Shorten it.", shown(value),
        )  # fmt: skip
    if not value.isprintable():
        return Defect(
            "control-character", name, f"{name!r} contains a control character or is not Unicode",
            "Remove it.", shown(value),
        )  # fmt: skip
    return value


def _invalid(name: str, reason: str, remedy: str, value: object) -> Defect:
    return Defect("invalid-attribute", name, reason, remedy, shown(value))


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
    if not _URI_REFERENCE.fullmatch(cast("str", source)):
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
            if len(value) > ATTRIBUTE_CHARACTERS_MAX or not value.isprintable():
                return _invalid(name, "too long or not printable", "Shorten or clean it.", value)
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
            try:
                attributes[name[3:].decode("ascii")] = unquote_to_bytes(value).decode()
            except UnicodeDecodeError:
                return _invalid(
                    shown(name[3:].decode("latin-1")) or "ce-", "header is not UTF-8",
                    "Percent-encode the value (HTTP protocol binding 3.1.3.2).", None,
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
