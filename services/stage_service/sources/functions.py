"""What expressions may call besides CEL's own functions; each takes what it finds and never raises."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast
from urllib.parse import quote

import msgspec

_encode_sorted = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder().decode
_NOT_SLUG = re.compile(r"[^a-z0-9]+")
SLUG_CHARACTERS_MAX = 100


def look_up(value: Any, steps: Sequence[str | int]) -> Any:
    """Follow `steps` from `value`; None as soon as one leads nowhere."""
    for step in steps:
        if isinstance(value, dict):
            known = cast("dict[str, Any]", value)
            value = known.get(step) if type(step) is str else known.get(str(step))
        elif isinstance(value, list) and type(step) is int:
            listed = cast("list[Any]", value)
            value = listed[step] if step < len(listed) else None
        else:
            return None
    return value


def text_of(value: Any) -> str | None:
    """Write a scalar as text, a whole float without its fraction; None for null, lists and objects."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return None


def slug(value: Any) -> str | None:
    """Write a name as an event type's segment: ``Demo Requested`` becomes ``demo_requested``."""
    text = text_of(value)
    if text is None:
        return None
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return _NOT_SLUG.sub("_", plain).strip("_")[:SLUG_CHARACTERS_MAX] or None


def digest_of(value: Any) -> str:
    """Give 32 hex digits that depend on nothing but `value` (SHA-256 of its JSON, keys sorted)."""
    return hashlib.sha256(_encode_sorted(value)).hexdigest()[:32]


def _coalesce(*values: Any) -> Any:
    return next((v for v in values if v is not None and v != ""), None)


def _find(items: Any, key: Any, wanted: Any) -> Any:
    """Give the first object of a list whose `key` (a name, or names joined by dots) is `wanted`.

    Of an object its members are looked through: numbered form fields (``answers[0][key]``) make one.
    """
    steps = str(key).split(".")
    if isinstance(items, dict):
        items = list(cast("dict[str, Any]", items).values())
    for each in cast("Iterable[Any]", items) if isinstance(items, list) else ():
        if look_up(each, steps) == wanted:
            return each
    return None


def _lower(value: Any) -> str | None:
    return value.lower() if isinstance(value, str) else None


def _upper(value: Any) -> str | None:
    return value.upper() if isinstance(value, str) else None


def _parse_json(value: Any) -> Any:
    try:
        return _decode(value) if isinstance(value, str) else None
    except (msgspec.DecodeError, RecursionError):
        return None


def _at(value: Any, key: Any) -> Any:
    """Give the member of an object that has the name `key`, of which the expression finds out."""
    name = text_of(key)
    return cast("dict[str, Any]", value).get(name) if isinstance(value, dict) and name else None


def _changed(old: Any, new: Any) -> dict[str, Any] | None:
    """Give the members of `new` that `old` has with another value, as tools tell what was before."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return None
    now = cast("dict[str, Any]", new)
    return {n: now.get(n) for n, v in cast("dict[str, Any]", old).items() if now.get(n) != v}


def _without(value: Any, names: Any) -> dict[str, Any] | None:
    """Give an object without the members of these names, and without those that are null."""
    if not isinstance(value, dict) or not isinstance(names, list):
        return None
    left_out = cast("list[Any]", names)
    return {
        n: v
        for n, v in cast("dict[str, Any]", value).items()
        if v is not None and n not in left_out
    }


def _soql(value: Any) -> str | None:
    """Write a value as a text in quotes, as Salesforce's query language reads it."""
    text = text_of(value)
    if text is None:
        return None
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ") + "'"


def _url(value: Any) -> str | None:
    """Write a text as part of an address: everything but letters, digits and ``-._~`` is escaped."""
    text = text_of(value)
    return quote(text, safe="") if text is not None else None


def _keys(value: Any) -> list[str]:
    return sorted(cast("dict[str, Any]", value)) if isinstance(value, dict) else []


FUNCTIONS: dict[str, tuple[Callable[..., Any], Sequence[int]]] = {
    "at": (_at, (2,)),
    "changed": (_changed, (2,)),
    "coalesce": (_coalesce, range(1, 9)),
    "find": (_find, (3,)),
    "hash": (digest_of, (1,)),
    "keys": (_keys, (1,)),
    "lower": (_lower, (1,)),
    "parse_json": (_parse_json, (1,)),
    "slug": (slug, (1,)),
    "soql": (_soql, (1,)),
    "text": (text_of, (1,)),
    "upper": (_upper, (1,)),
    "url": (_url, (1,)),
    "without": (_without, (2,)),
}
"""Name to (function, how many arguments it may have)."""
