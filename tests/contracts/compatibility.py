"""Whether a change of a JSON Schema breaks who relies on it; pure, with tests of its own.

Readers get documents that somebody else makes by the new schema, and know the old one: what was always there
stays, what was a string stays one, no value comes that was not foreseen. Writers make documents by the
old schema that the new one must still take: nothing newly required, no value newly refused. References are
followed, so that a definition may be renamed, moved or written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = Any
_ANYTHING: tuple[Any, ...] = (True, {}, None)
_SAID_ONLY = frozenset(
    ("title", "description", "examples", "example", "default", "deprecated", "$schema", "$id", "$comment",
     "$defs", "definitions", "format")
)  # fmt: skip
DEPTH_MAX = 40


class Whole:
    """A schema with its definitions; references are relative to it."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root

    def at(self, node: Schema) -> Schema:
        """Follow the references of `node`."""
        seen = 0
        while isinstance(node, dict) and "$ref" in node:
            found: Any = self.root
            for part in node["$ref"].removeprefix("#").strip("/").split("/"):
                found = found[part] if part else found
            node, seen = found, seen + 1
            assert seen < DEPTH_MAX, "references in a circle"
        return node


def breaks_readers(
    old: Schema, new: Schema, old_root: Schema = None, new_root: Schema = None
) -> list[str]:
    """Say what a reader of documents that fit `old` may miss, or not understand, in those that fit `new`.

    References are relative to the roots, or to the schemas themselves.
    """
    olds, news = Whole(old_root or old), Whole(new_root or new)
    return sorted(set(_broken(olds, news, old, new, "", 0)))


def breaks_writers(
    old: Schema, new: Schema, old_root: Schema = None, new_root: Schema = None
) -> list[str]:
    """Say which documents that fit `old` are refused by `new`: the other way round, a reader of `new`."""
    olds, news = Whole(old_root or old), Whole(new_root or new)
    return sorted(set(_broken(news, olds, new, old, "", 0, words=_FOR_WRITERS)))


_FOR_READERS = {
    "gone": "{at} is gone", "maybe": "{at} is no longer always there",
    "type": "{at} was {old} and may be {new}", "value": "{at} may be {new}, which was not foreseen",
    "looser": "{at}: {word} was {old} and is {new}",
}  # fmt: skip
_FOR_WRITERS = {
    "gone": "{at} is newly required", "maybe": "{at} is newly required",
    "type": "{at} may no longer be {new}, only {old}", "value": "{at} may no longer be {new}",
    "looser": "{at}: {word} was {new} and is {old}",
}  # fmt: skip


def _broken(
    olds: Whole, news: Whole, old: Schema, new: Schema, at: str, depth: int,
    words: dict[str, str] = _FOR_READERS,
) -> Iterator[str]:  # fmt: skip
    """Say how documents of `new` may surprise who expects `old`."""
    old, new = olds.at(old), news.at(new)
    at = at or "the document"
    if old in _ANYTHING or depth > DEPTH_MAX:
        return
    assert isinstance(old, dict)
    new = {} if new in _ANYTHING else new
    allowed, may_be = _alternatives(olds, old), _alternatives(news, new)
    if len(allowed) > 1 or len(may_be) > 1:
        for each in may_be:
            fitting = [
                list(_broken(olds, news, one, each, at, depth + 1, words)) for one in allowed
            ]
            if all(fitting):
                yield from min(fitting, key=len)
        return
    yield from _retyped(old, new, at, words)
    for word in ("minimum", "maximum", "minLength", "maxLength", "pattern", "minItems", "maxItems"):
        if word in old and _is_looser(word, old[word], new.get(word)):
            yield words["looser"].format(at=at, word=word, old=old[word], new=new.get(word))
    yield from _members(olds, news, old, new, at, depth, words)


def _retyped(
    old: dict[str, Any], new: dict[str, Any], at: str, words: dict[str, str]
) -> Iterator[str]:
    was, is_now = _types(old), _types(new)
    if was and (not is_now or not is_now <= _widened(was)):
        shown = ", ".join(sorted(is_now)) or "anything"
        yield words["type"].format(at=at, old=", ".join(sorted(was)), new=shown)
    values, now = _values(old), _values(new)
    if values is not None:
        for value in [v for v in now if v not in values] if now is not None else ["anything"]:
            yield words["value"].format(at=at, new=repr(value))


def _members(
    olds: Whole, news: Whole, old: dict[str, Any], new: dict[str, Any], at: str, depth: int,
    words: dict[str, str],
) -> Iterator[str]:  # fmt: skip
    prefix = "" if at == "the document" else f"{at}."
    theirs = new.get("properties", {})
    for name, inner in old.get("properties", {}).items():
        if name in theirs:
            yield from _broken(olds, news, inner, theirs[name], f"{prefix}{name}", depth + 1, words)
        elif words is _FOR_READERS or name in old.get("required", ()):
            yield words["gone"].format(at=f"{prefix}{name}")
    for name in old.get("required", ()):
        if name not in new.get("required", ()) and name in theirs:
            yield words["maybe"].format(at=f"{prefix}{name}")
    if old.get("additionalProperties") is False:
        for name in theirs.keys() - old.get("properties", {}).keys():
            yield words["value"].format(at=f"{prefix}{name}", new="there")
    for word, mark in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(old.get(word), dict) and (word in new or word == "items"):
            yield from _broken(
                olds, news, old[word], new.get(word), f"{at}{mark}", depth + 1, words
            )


def _alternatives(whole: Whole, schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Give what `schema` is one of: of ``anyOf``/``oneOf``, and of several types."""
    schema = whole.at(schema)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            rest = {k: v for k, v in schema.items() if k != word and k not in _SAID_ONLY}
            return [
                inner
                for each in schema[word]
                for inner in _alternatives(whole, {**rest, **whole.at(each)})
            ]
    types = schema.get("type")
    if isinstance(types, list):
        return [{**schema, "type": each} for each in types]
    return [schema]


def _types(schema: dict[str, Any]) -> set[str]:
    told = schema.get("type")
    if told is None:
        values = _values(schema)
        return {_type_of(v) for v in values} if values else set()
    return {told} if isinstance(told, str) else set(told)


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    return names.get(type(value), "object")


def _widened(types: set[str]) -> set[str]:
    return types | ({"integer"} if "number" in types else set())


def _values(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema.get("enum")


def _is_looser(word: str, old: Any, new: Any) -> bool:
    if new is None:
        return True
    if word == "pattern":
        return new != old
    return new < old if word.startswith("min") else new > old
