"""Values that would make a condition true: found by trying those that it speaks of. Pure.

What cannot be found so (a pattern, arithmetic) is not found; nobody is promised anything by that.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from services.stage_service.conditions import Condition, TypeName

TRIES_MAX = 300
A_TEXT = "…"
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
_TEXT = re.compile(r"'((?:\\.|[^'\\\n])*)'|\"((?:\\.|[^\"\\\n])*)\"")
_FLAGS = re.compile(r"\(\?[a-z]+\)")


def witness(
    clauses: Iterable[Condition], known: Callable[[str], Any], types: dict[str, TypeName],
    settable: Callable[[str], bool],
) -> dict[str, Any]:  # fmt: skip
    """Give values by variable name that make `clauses` true, as far as some are found.

    `known` gives what is known of a variable now, None: nothing. Only a variable that is `settable` gets
    a value, and what is known already only where nothing else helps.
    """
    found: dict[str, Any] = {}
    for clause in clauses:
        if _is_true(clause, known, found):
            continue
        names = dict.fromkeys(n.removeprefix("known.") for n in clause.variables)
        free = [n for n in names if settable(n) and n not in found]
        unknown = [n for n in free if known(n) is None]
        for chosen in (unknown, free):
            tried = _tried(clause, known, found, chosen, types)
            if tried is not None:
                found |= tried
                break
    return found


def candidates(text: str, kind: TypeName) -> list[Any]:
    """Give values of `kind` that the expression `text` may be about, those in it first."""
    match kind:
        case "int" | "double":
            said = [float(n) for n in _NUMBER.findall(_TEXT.sub("", text))]
            near = [n + d for n in said for d in (0, 1, -1)] or [1.0, 0.0]
            return list(dict.fromkeys(int(n) if kind == "int" else n for n in near))
        case "bool":
            return [True, False]
        case "timestamp":
            moments = [s for s in _texts(text) if re.match(r"\d{4}-\d\d-\d\dT", s)]
            return [*moments, *(datetime(y, 1, 1, tzinfo=UTC).isoformat() for y in (2000, 2100))]
        case "string":
            parts = [p for s in _texts(text) for p in (s, *_FLAGS.sub("", s).split("|"))]
            return list(dict.fromkeys(p.strip("^$().*") or A_TEXT for p in [*parts, A_TEXT]))


def any_of(kind: TypeName) -> Any:
    """Give some value of `kind`, where any will do."""
    return candidates("", kind)[0]


def _texts(text: str) -> list[str]:
    return [a or b for a, b in _TEXT.findall(text)]


def _tried(
    clause: Condition,
    known: Callable[[str], Any],
    found: dict[str, Any],
    names: list[str],
    types: dict[str, TypeName],
) -> dict[str, Any] | None:
    ranges = [candidates(clause.text, types[name]) for name in names]
    for values in itertools.islice(itertools.product(*ranges), TRIES_MAX):
        tried = dict(zip(names, values, strict=True))
        if _is_true(clause, known, found | tried):
            return tried
    return None


def _is_true(clause: Condition, known: Callable[[str], Any], found: dict[str, Any]) -> bool:
    values: dict[str, Any] = {}
    for name in clause.variables:
        plain = name.removeprefix("known.")
        value = found.get(plain)
        if isinstance(value, str) and clause.variables and _is_moment(value):
            value = datetime.fromisoformat(value)
        value = known(plain) if value is None else value
        values[name] = value is not None if plain != name else value
    return clause.evaluate(values).result


def _is_moment(text: str) -> bool:
    return re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)", text) is not None
