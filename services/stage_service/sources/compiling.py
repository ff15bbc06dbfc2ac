"""Expressions and templates of the files that people write, each mistake with its place in the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from services.contracts.yaml_source import Node
from services.stage_service.sources.conversions import CONVERSIONS
from services.stage_service.sources.expressions import (
    ROOTS,
    Expression,
    ExpressionError,
    compile_expression,
)
from services.stage_service.sources.source import Choice
from services.stage_service.sources.templates import Template, compile_template

T = TypeVar("T")


class Compiling:
    """Compiles what the nodes of one file say; `used` are the roots that it names."""

    def __init__(self, text: str, remedy: str, roots: tuple[str, ...] = ROOTS) -> None:
        self._lines = text.splitlines()
        self._remedy = remedy
        self._roots = roots
        self.used: set[str] = set()

    def expression(self, node: Node) -> Expression:
        """Compile an expression; a mistake is noted, and one that is always null given."""
        nothing = compile_expression("null", self._roots)
        return self._compile(node, lambda text: compile_expression(text, self._roots), nothing)

    def template(self, node: Node) -> Template:
        """Compile a template; a mistake is noted, and an empty one given."""
        nothing = Template("", [])
        return self._compile(node, lambda text: compile_template(text, self._roots), nothing)

    def choice(self, node: Node) -> Choice:
        """Read an expression, a list of alternatives, or ``{from: ..., as: ...}`` / ``{all: [...]}``."""
        if not isinstance(node.value, dict):
            return Choice(tuple(self.expression(n) for n in node.items()))
        fields = node.mapping(("from", "as", "all"))
        if ("from" in fields) == ("all" in fields):
            node.refuse(f"{node.path} needs either 'from' or 'all'", "Write one of them.")
            return Choice(())
        convert = None
        if "as" in fields:
            convert = CONVERSIONS.get(fields["as"].one_of(CONVERSIONS, "conversion"))
        values = fields["from" if "from" in fields else "all"].items()
        return Choice(tuple(self.expression(n) for n in values), convert, "all" in fields)

    def _compile(self, node: Node, compile: Callable[[str], T], otherwise: T) -> T:
        text = node.expression()
        try:
            compiled = compile(text)
        except ExpressionError as error:
            line = self._lines[node.line - 1] if node.line <= len(self._lines) else ""
            is_quoted = line[node.column - 1 : node.column] in ("'", '"')
            column = error.column + (0 if error.line > 1 else node.column - 1 + int(is_quoted))
            node.refuse(
                f"{node.path}: {error.reason}", self._remedy, line_offset=error.line - 1,
                column=column,
            )  # fmt: skip
            return otherwise
        self.used |= compiled.roots  # pyright: ignore[reportAttributeAccessIssue]
        return compiled
