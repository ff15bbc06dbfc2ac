"""The ``verify`` part of a source file: which methods, each with its settings."""

from __future__ import annotations

import re
from typing import Any, cast

from services.contracts.yaml_source import Node
from services.stage_service.sources.signatures import (
    CONTENT,
    TOLERANCE_S,
    Basic,
    Bearer,
    Hmac,
    Key,
    Method,
    Stripe,
    Token,
    Window,
)

KINDS = ("hmac", "stripe", "basic", "bearer", "token", "key")
HMAC_KEYS = (
    "algorithm", "encoding", "header", "prefix", "content", "timestamp", "id_header", "separator",
    "numbered", "key",
)  # fmt: skip
SEPARATORS = {"space": b" ", "comma": b","}
REMEDY = "See docs/sources.md, 'Verification'."

_PART = re.compile(r"\{([^{}]*)\}")


def read_verify(node: Node) -> tuple[Method, ...]:
    """Read the methods; any one of them makes a delivery authentic."""
    if isinstance(node.value, dict):
        return _methods(node)
    return tuple(method for item in node.items() for method in _methods(item))


def _methods(node: Node) -> tuple[Method, ...]:
    if isinstance(node.value, str):
        kind = node.one_of(("basic", "bearer", "key"), "verification", "key")
        return ({"basic": Basic, "bearer": Bearer}.get(kind, Key)(),)
    fields = node.mapping(KINDS)
    return tuple(_method(kind, inner) for kind, inner in fields.items())


def _method(kind: str, node: Node) -> Method:
    if kind == "hmac":
        return _hmac(node)
    if kind == "stripe":
        fields = node.mapping(("header", "scheme", "tolerance_s"), ("header",))
        return Stripe(
            _header(fields, "header"),
            fields["scheme"].text().encode() if "scheme" in fields else b"v1",
            _tolerance(fields),
        )
    if kind == "token":
        return _token(node)
    if node.value:
        node.refuse(f"{kind!r} has no settings", f"Write it as '- {kind}'.")
    return {"basic": Basic, "bearer": Bearer}.get(kind, Key)()


def _token(node: Node) -> Method:
    if node.value == "path":
        return Token("path")
    fields = node.mapping(("header", "query", "form"))
    if len(fields) != 1:
        node.refuse(
            "a token is at one place",
            "Write token: path, or token: {header: x-token}, {query: token} or {form: token}.",
        )
        return Token("path")
    place, inner = next(iter(fields.items()))
    name = inner.text("x")
    return Token(
        cast("Any", place), (name.lower() if place == "header" else name).encode("utf-8", "replace")
    )


def _hmac(node: Node) -> Method:
    fields = node.mapping(HMAC_KEYS, ("header",))
    content = _content(fields["content"]) if "content" in fields else ("body",)
    window = _window(fields["timestamp"]) if "timestamp" in fields else None
    if "timestamp" in content and window is None:
        node.refuse("the content has {timestamp} and no header to read it from", REMEDY)
    if window is not None and "timestamp" not in content:
        node.refuse("the time is not part of the signed content", "Add {timestamp} to 'content'.")
    if ("id" in content) != ("id_header" in fields):
        node.refuse("{id} in the content and 'id_header' belong together", REMEDY)
    separator = b""
    if "separator" in fields:
        separator = SEPARATORS[fields["separator"].one_of(SEPARATORS, "separator", "space")]
    return Hmac(
        header=_header(fields, "header"),
        algorithm=_one(fields, "algorithm", ("sha256", "sha1", "sha512")),
        encoding=_one(fields, "encoding", ("hex", "base64")),
        prefix=fields["prefix"].text().encode() if "prefix" in fields else b"",
        content=content,
        window=window,
        id_header=_header(fields, "id_header") if "id_header" in fields else b"",
        separator=separator,
        numbered="numbered" in fields and fields["numbered"].flag(),
        key=_one(fields, "key", ("text", "whsec", "base64", "hex")),
    )


def _one(fields: dict[str, Node], key: str, known: tuple[str, ...]) -> Any:
    return fields[key].one_of(known, key, known[0]) if key in fields else known[0]


def _header(fields: dict[str, Node], key: str) -> bytes:
    name = fields[key].text("x") if key in fields else "x"
    if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", name):
        fields[key].refuse(f"{name!r} is not a header's name", "Write it as X-Signature.")
    return name.lower().encode("utf-8", "replace")


def _tolerance(fields: dict[str, Node]) -> float:
    return fields["tolerance_s"].number(1, 86_400) if "tolerance_s" in fields else TOLERANCE_S


def _window(node: Node) -> Window:
    fields = node.mapping(("header", "unit", "tolerance_s"), ("header",))
    return Window(_header(fields, "header"), _one(fields, "unit", ("s", "ms")), _tolerance(fields))


def _content(node: Node) -> tuple[str | bytes, ...]:
    """Read the template of what is signed: ``{method}{uri}{body}{timestamp}``."""
    text = node.text("{body}")
    parts: list[str | bytes] = []
    at = 0
    for found in _PART.finditer(text):
        if found.start() > at:
            parts.append(text[at : found.start()].encode())
        if found[1] not in CONTENT:
            node.refuse(f"unknown part {found[0]} of a signed content", f"Known: {CONTENT}.")
        parts.append(found[1])
        at = found.end()
    if at < len(text):
        parts.append(text[at:].encode())
    if not {"body", "first_item"} & set(parts):
        node.refuse(
            "the signed content has no {body}", "A signature that spares it proves nothing."
        )
    return tuple(parts)
