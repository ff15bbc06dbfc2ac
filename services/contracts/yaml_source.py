"""Reading the files that people write (playbook, roster): every mistake with its line and remedy.

A `Node` knows where it stands in the file. Its readers note what is wrong in the shared list of
problems and give a harmless value, so one pass finds all mistakes instead of the first.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from datetime import date, datetime
from functools import lru_cache
from typing import Any, cast

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarstring import FoldedScalarString, LiteralScalarString

from services.contracts.problems import shown

SOURCE_BYTES_MAX = 1024 * 1024
KEPT_CHARACTERS_MAX = 100_000
"""Larger texts are read anew each time."""
NODES_MAX = 50_000
TEXT_CHARACTERS_MAX = 4000


class Problem(msgspec.Struct, frozen=True):
    """One mistake: where, what is wrong, and what to do about it."""

    file: str
    line: int
    column: int
    message: str
    remedy: str
    rule: str = "invalid"
    """The kind of mistake, the same for ever: programs tell mistakes apart by it."""

    def __str__(self) -> str:
        """Give ``file:line:column: message. Remedy``, as editors and terminals link it."""
        return f"{self.file}:{self.line}:{self.column}: {self.message}. {self.remedy}"


class SourceError(ValueError):
    """A file was refused; `problems` are all its mistakes in the order of their lines."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda p: (p.line, p.column))
        super().__init__("\n".join(str(p) for p in self.problems))


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """Give ``Did you mean 'x'?`` for the likest of `known` (1: equal), or an empty text."""
    like = difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)
    return f"Did you mean {like[0]!r}?" if like else ""


class Node:
    """A value of the file with its place, and the problems found so far."""

    def __init__(
        self, value: Any, file: str, line: int, column: int, problems: list[Problem], path: str = ""
    ) -> None:
        self.value = value
        self.file = file
        self.line = line
        self.column = column
        self.problems = problems
        self.path = path

    def refuse(
        self,
        message: str,
        remedy: str,
        *,
        line_offset: int = 0,
        column: int | None = None,
        rule: str = "invalid",
    ) -> None:
        """Note a problem of the kind `rule` with this value, or at a place inside it."""
        line, column = self.line + line_offset, column or self.column
        self.problems.append(Problem(self.file, line, column, message, remedy, rule))

    def mapping(
        self, known: Collection[str] | None = None, required: Collection[str] = ()
    ) -> dict[str, Node]:
        """Read a mapping; with `known`, other keys are refused. Missing `required` ones are too."""
        if not isinstance(self.value, CommentedMap):
            self._wrong("a mapping (key: value lines)")
            return {}
        found: dict[str, Node] = {}
        for key, inner in self.value.items():
            key_line, key_column = self.value.lc.key(key)
            name = str(key)
            if known is not None and name not in known:
                hint = nearest(name, known) or f"Known here: {', '.join(known)}."
                where = f" in {self.path}" if self.path else ""
                self.problems.append(
                    Problem(
                        self.file,
                        key_line + 1,
                        key_column + 1,
                        f"unknown key {name!r}{where}",
                        hint,
                        "unknown-key",
                    )
                )
                continue
            line, column = self.value.lc.value(key)
            if isinstance(inner, CommentedMap | CommentedSeq) and inner:
                line, column = key_line, key_column
            path = f"{self.path}.{name}" if self.path else name
            found[name] = Node(inner, self.file, line + 1, column + 1, self.problems, path)
        for name in required:
            if name not in found:
                self.refuse(
                    f"{self.path or 'the file'} has no {name!r}", f"Add a line '{name}: ...'.",
                    rule="missing-key",
                )  # fmt: skip
        return found

    def items(self) -> list[Node]:
        """Read a list; a single value counts as a list of one."""
        if self.value is None:
            return []
        if not isinstance(self.value, CommentedSeq):
            if isinstance(self.value, CommentedMap):
                self._wrong("a list (lines that start with '- ')")
                return []
            return [self]
        nodes: list[Node] = []
        for index, inner in enumerate(cast("Iterable[Any]", self.value)):
            line, column = self.value.lc.item(index)
            path = f"{self.path}[{index}]"
            nodes.append(Node(inner, self.file, line + 1, column + 1, self.problems, path))
        return nodes

    def texts(self) -> tuple[str, ...]:
        """Read a list of texts."""
        return tuple(item.text() for item in self.items())

    def text(self, default: str = "") -> str:
        """Read one text; numbers and booleans in its place are refused, since YAML guessed them."""
        if not isinstance(self.value, str) or not self.value.strip():
            self._wrong("a text", "Write it in quotes.")
            return default
        if len(self.value) > TEXT_CHARACTERS_MAX:
            self.refuse(
                f"{self.path} is longer than {TEXT_CHARACTERS_MAX} characters", "Shorten it.",
                rule="out-of-bounds",
            )  # fmt: skip
            return default
        return " ".join(self.value.split()) if "\n" in self.value else str(self.value)

    def expression(self) -> str:
        """Read a text whose line breaks matter for the columns of errors in it."""
        if isinstance(self.value, bool | int | float):
            return str(self.value).lower()
        if not isinstance(self.value, str) or not self.value.strip():
            self._wrong("an expression", "Write it in quotes.")
            return "false"
        if isinstance(self.value, LiteralScalarString | FoldedScalarString):
            self.line += 1
        return str(self.value)

    def number(self, least: float | None = None, most: float | None = None) -> float:
        """Read a number within its bounds."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            self._wrong("a number")
            return least or 0.0
        if (least is not None and self.value < least) or (most is not None and self.value > most):
            bounds = f"at least {least:g}" if most is None else f"from {least or 0:g} to {most:g}"
            self.refuse(
                f"{self.path} is {self.value}", f"Give a number {bounds}.", rule="out-of-bounds"
            )
            return least or 0.0
        return float(self.value)

    def day(self) -> date | None:
        """Read a day (2026-12-24), or a time of it (2026-12-24T13:00); None when it is neither."""
        if isinstance(self.value, date):
            return self.value
        try:
            text = self.value if isinstance(self.value, str) else ""
            return date.fromisoformat(text) if len(text) <= 10 else datetime.fromisoformat(text)
        except ValueError:
            self._wrong("a day", "Write it as 2026-12-24, or with the time: 2026-12-24T13:00.")
            return None

    def flag(self) -> bool:
        """Read true or false."""
        if not isinstance(self.value, bool):
            self._wrong("true or false")
            return False
        return self.value

    def one_of(self, known: Collection[str], what: str, default: str = "") -> str:
        """Read a text that must be one of `known`; `what` says what it names."""
        word = self.text(default)
        if word != default and word not in known:
            hint = nearest(word, known) or f"Known: {', '.join(sorted(known)) or 'none'}."
            self.refuse(f"unknown {what} {word!r} in {self.path}", hint, rule="unknown-name")
            return default
        return word

    def _wrong(self, wanted: str, remedy: str = "") -> None:
        got = "nothing" if self.value is None else shown(str(self.value))
        self.refuse(
            f"{self.path or 'the file'} must be {wanted}, not {got}", remedy or "Correct it.",
            rule="wrong-type",
        )  # fmt: skip


def _loaded(text: str) -> Any:
    yaml = YAML(typ="rt")
    yaml.allow_duplicate_keys = False
    return yaml.load(text)


_loaded_once = lru_cache(maxsize=64)(_loaded)
"""Nobody changes what was read, and a start reads the same texts for several purposes."""


def read_yaml(text: str, file: str) -> Node:
    """Parse `text` (one YAML 1.2 document named `file` in errors) to a Node.

    Raises SourceError when it is not YAML, repeats a key, or is over 1 MiB.
    """
    if len(text.encode("utf-8", "surrogatepass")) > SOURCE_BYTES_MAX:
        raise SourceError(
            [Problem(file, 1, 1, "larger than 1 MiB", "Split the file.", "out-of-bounds")]
        )
    load = _loaded_once if len(text) <= KEPT_CHARACTERS_MAX else _loaded
    try:
        value = load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = str(error.problem or error.context or "not YAML").split("\n")[0].strip()
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        rule = "duplicate-key" if isinstance(error, DuplicateKeyError) else "syntax"
        problem = Problem(file, line, column, message, "Correct the YAML.", rule)
        raise SourceError([problem]) from None
    except (YAMLError, ValueError, RecursionError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise SourceError([Problem(file, 1, 1, reason, "Correct the YAML.", "syntax")]) from None
    problems: list[Problem] = []
    node = Node(value, file, 1, 1, problems)
    if _nodes(value, [NODES_MAX]) < 0:
        raise SourceError(
            [
                Problem(
                    file, 1, 1, f"more than {NODES_MAX} values", "Split the file.", "out-of-bounds"
                )
            ]
        )
    return node


def _nodes(value: Any, left: list[int]) -> int:
    """Count down the values, aliases each time they are used: a small file can hold billions."""
    left[0] -= 1
    if left[0] >= 0 and isinstance(value, CommentedMap | CommentedSeq):
        inner: Iterable[Any] = value.values() if isinstance(value, CommentedMap) else value
        for each in inner:
            if _nodes(each, left) < 0:
                break
    return left[0]
