"""Texts with expressions in them: ``{item.portalId}-{item.eventId}-{item.propertyName?}``.

An expression without a value makes the whole text have none, unless it ends with ``?``: an event id that
lost its one changing part would make all events of a kind the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from services.stage_service.sources.expressions import (
    ROOTS,
    Expression,
    ExpressionError,
    compile_expression,
)
from services.stage_service.sources.functions import text_of


class Template:
    """A compiled template; `roots` are those that its expressions name."""

    __slots__ = ("_constant", "_parts", "roots", "text")

    def __init__(self, text: str, parts: list[str | tuple[Expression, bool]]) -> None:
        self.text = text
        self._parts = parts
        is_plain = all(isinstance(part, str) for part in parts)
        self._constant = "".join(str(part) for part in parts) if is_plain else None
        self.roots = frozenset(
            root for part in parts if not isinstance(part, str) for root in part[0].roots
        )

    def render(
        self, scope: Mapping[str, Any], quote: Callable[[str], str] | None = None
    ) -> str | None:
        """Give the text in `scope`; None when an expression that is not optional has no value.

        `quote` is applied to what the expressions give, not to the text around them.
        """
        if self._constant is not None:
            return self._constant
        written = ""
        for part in self._parts:
            if isinstance(part, str):
                written += part
                continue
            expression, is_optional = part
            value = expression.evaluate(scope)
            if type(value) is not str:
                value = str(value) if type(value) is int else text_of(value)
            if value:
                written += value if quote is None else quote(value)
            elif not is_optional:
                return None
        return written

    def absent(self, scope: Mapping[str, Any]) -> str | None:
        """Name the first expression that has no value and needs one."""
        for part in self._parts:
            if not isinstance(part, str) and not part[1] and not text_of(part[0].evaluate(scope)):
                return part[0].text
        return None


def compile_template(text: str, roots: tuple[str, ...] = ROOTS) -> Template:
    """Compile `text`; raises ExpressionError. ``{{`` and ``}}`` stand for a brace."""
    parts: list[str | tuple[Expression, bool]] = []
    written = ""
    at = 0
    while at < len(text):
        if text.startswith(("{{", "}}"), at):
            written += text[at]
            at += 2
        elif text[at] == "{":
            end = _closing(text, at)
            inner = text[at + 1 : end]
            is_optional = inner.rstrip().endswith("?")
            if written:
                parts.append(written)
                written = ""
            try:
                expression = compile_expression(inner.rstrip().removesuffix("?"), roots)
            except ExpressionError as error:
                column = error.column + at + 1 if error.line == 1 else error.column
                raise ExpressionError(error.line, column, error.reason) from None
            parts.append((expression, is_optional))
            at = end + 1
        else:
            written += text[at]
            at += 1
    if written:
        parts.append(written)
    return Template(text, parts)


def _closing(text: str, opening: int) -> int:
    """Find the brace that closes the one at `opening`; braces in strings do not count."""
    depth = 0
    quote = ""
    for index in range(opening, len(text)):
        character = text[index]
        if quote:
            if character == quote and text[index - 1] != "\\":
                quote = ""
        elif character in "'\"":
            quote = character
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if not depth:
                return index
    raise ExpressionError(1, opening + 1, "the brace is not closed")
