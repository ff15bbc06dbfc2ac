"""The clauses of a condition, each compiled by itself, so that each can say whether it is true. Pure.

A condition is true when all its clauses are, false when one is false, and otherwise cannot be judged:
that is CEL's own ``&&``, in which false wins over an error. What stands under ``||``, ``!`` or ``? :`` is
one clause.
"""

from __future__ import annotations

import re
from functools import lru_cache

from services.stage_service.conditions import Condition, ConditionError, Conditions, TypeName
from services.stage_service.playbook import Playbook
from services.stage_service.playbook_file import BUILT_IN

# CEL's lexis: strings (also raw, bytes and triple-quoted) and comments may hold what looks like an operator.
_OPAQUE = re.compile(
    r"""[bB]?[rR]\"{3}.*?\"{3}|[bB]?[rR]'{3}.*?'{3}|[bB]?[rR]"[^"\n]*"|[bB]?[rR]'[^'\n]*'"""
    r"""|\"{3}(?:\\.|.)*?\"{3}|'{3}(?:\\.|.)*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|//[^\n]*""",
    re.DOTALL,
)
_PARENTHESES = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}
PLAYBOOKS_REMEMBERED = 16
CONDITIONS_REMEMBERED = 1024


def clauses_of(playbook: Playbook, condition: Condition | None) -> tuple[Condition, ...]:
    """Give the clauses of a rule's `condition` in its order; none when the rule has no condition."""
    if condition is None:
        return ()
    return _compiled(condition.text, tuple(sorted(variables_of(playbook).items())))


def variables_of(playbook: Playbook) -> dict[str, TypeName]:
    """Give the variables that conditions of `playbook` may use, with their types."""
    declared: dict[str, TypeName] = {
        f"{room}.{name}": kind
        for room, names in playbook.attributes.items()
        for name, kind in names.items()
    }
    return {**BUILT_IN, **declared}


@lru_cache(maxsize=CONDITIONS_REMEMBERED)
def _compiled(text: str, variables: tuple[tuple[str, TypeName], ...]) -> tuple[Condition, ...]:
    conditions = _environment(variables)
    try:
        return tuple(conditions.compile(part) for part in parted(text))
    except ConditionError:  # it was split where CEL would not: told as the whole that it is
        return (conditions.compile(text),)


@lru_cache(maxsize=PLAYBOOKS_REMEMBERED)
def _environment(variables: tuple[tuple[str, TypeName], ...]) -> Conditions:
    return Conditions(dict(variables))


def parted(text: str) -> list[str]:
    """Give the texts of the clauses of a CEL expression: parted at each ``&&`` that binds loosest."""
    bare = _OPAQUE.sub(lambda m: " " * len(m[0]), text)
    depth, cuts = 0, [0]
    for i, character in enumerate(bare):
        depth += _PARENTHESES.get(character, 0)
        if depth == 0 and (character == "?" or bare.startswith("||", i)):
            return [text.strip()]
        if depth == 0 and bare.startswith("&&", i):
            cuts += [i, i + 2]
    if len(cuts) == 1:
        inner = _without_parentheses(text, bare)
        return parted(inner) if inner is not None else [text.strip()]
    cuts.append(len(text))
    parts = [text[a:b].strip() for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    return [clause for part in parts for clause in parted(part)]


def _without_parentheses(text: str, bare: str) -> str | None:
    """Give what one pair of parentheses around all of `text` holds; None when there is none."""
    start, end = bare.find("("), bare.rstrip().rfind(")")
    if bare[:start].strip() or start < 0 or end != len(bare.rstrip()) - 1:
        return None
    depth = 0
    for i in range(start, end):
        depth += _PARENTHESES.get(bare[i], 0)
        if depth == 0:
            return None
    return text[start + 1 : end]
