"""What is said of conditions holds in CEL: never true, never together, one whenever another is."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.stage_service.condition_bounds import Bounds, Region, TooWideError, covers, meet
from services.stage_service.condition_tree import clauses_of, read_tree, words
from services.stage_service.conditions import Condition, Conditions, TypeName

EXAMPLES = int(os.environ.get("BATON_BOUNDS_EXAMPLES", "400"))
TYPES: dict[str, TypeName] = {
    "lead.a": "int", "lead.b": "int", "lead.d": "double", "lead.s": "string", "lead.t": "string",
    "lead.f": "bool", "lead.w": "timestamp",
}  # fmt: skip
CONDITIONS = Conditions(TYPES)
BOUNDS = Bounds(TYPES)

INTS = st.integers(-3, 3)
DOUBLES = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
TEXTS = st.sampled_from(["", "x", "y", "xy"])
OPERATORS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
MOMENTS = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


def _quoted(text: str) -> str:
    return f"'{text}'"


def _joined(*parts: Any) -> st.SearchStrategy[str]:
    return st.tuples(*(st.just(p) if isinstance(p, str) else p for p in parts)).map(" ".join)


def _listed(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(items, max_size=3).map(lambda found: f"[{', '.join(found)}]")


INT_NAMES = st.sampled_from(["lead.a", "lead.b"])
TEXT_NAMES = st.sampled_from(["lead.s", "lead.t"])
INT_WORDS, DOUBLE_WORDS, TEXT_WORDS = INTS.map(str), DOUBLES.map(repr), TEXTS.map(_quoted)
ATOMS = st.one_of(
    _joined(INT_NAMES, OPERATORS, INT_WORDS),
    _joined(INT_WORDS, OPERATORS, INT_NAMES),
    _joined("lead.d", OPERATORS, DOUBLE_WORDS),
    _joined(TEXT_NAMES, st.sampled_from(["==", "!="]), TEXT_WORDS),
    _joined(TEXT_WORDS, st.sampled_from(["==", "!="]), TEXT_NAMES),
    _joined(INT_NAMES, "in", _listed(INT_WORDS)),
    _joined("lead.d", "in", _listed(DOUBLE_WORDS)),
    _joined(TEXT_NAMES, "in", _listed(TEXT_WORDS)),
    st.sampled_from(sorted(TYPES)).map(lambda name: f"known.{name}"),
    st.sampled_from(["lead.f", "lead.f == true", "false == lead.f", "true", "false"]),
    # Not looked into: calls, two variables, macros, sums, a division that may fail.
    st.sampled_from([
        "lead.s.startsWith('x')", "lead.s.contains(lead.t)", "lead.a < lead.b", "lead.s == lead.t",
        "size(lead.s) > 1", "lead.a + lead.b > 0", "4 / lead.a > 1", "known.lead.a == lead.f",
        "['x', 'y'].exists(i, i == lead.s)", "[1, 2].all(i, i > lead.a)",
        f"lead.w < timestamp('{MOMENTS[1]}')",
    ]),
)  # fmt: skip
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: f"({p[0]} && {p[1]})"),
        st.tuples(inner, inner).map(lambda p: f"({p[0]} || {p[1]})"),
        inner.map(lambda p: f"!({p})"),
        st.tuples(inner, inner, inner).map(lambda p: f"({p[0]} ? {p[1]} : {p[2]})"),
    ),
    max_leaves=7,
)
POOLS: dict[str, list[Any]] = {
    "lead.a": [None, *range(-4, 5)],
    "lead.b": [None, *range(-4, 5)],
    "lead.d": [None, -1.5, -1.0, -0.5, -0.0, 0.0, 0.25, 0.5, 1.0, 1.25, 2.0, 3.0],
    "lead.s": [None, "", "x", "y", "xy", "other"],
    "lead.t": [None, "", "x", "y", "xy"],
    "lead.f": [None, True, False],
    "lead.w": [None, *MOMENTS],
}


def _samples(seed: int, count: int) -> list[dict[str, Any]]:
    chosen = random.Random(seed)
    return [{n: chosen.choice(pool) for n, pool in POOLS.items()} for _ in range(count)]


def _told(values: dict[str, Any]) -> dict[str, Any]:
    """The values as the fold gives them: moments read, and which of them are known."""
    from services.stage_service.playbook import coerce

    found = {n: coerce(v, "timestamp") if n == "lead.w" else v for n, v in values.items()}
    return found | {f"known.{n}": v is not None for n, v in values.items()}


def _region(condition: Condition) -> Region | None:
    try:
        return BOUNDS.true_when(read_tree(condition.serialized()))
    except TooWideError:
        return None


@pytest.mark.property
@settings(max_examples=EXAMPLES, deadline=None)
@given(EXPRESSIONS, EXPRESSIONS, st.integers(0, 2**32))
def test_what_is_said_of_conditions_holds_in_cel(one: str, two: str, seed: int) -> None:
    first, second = CONDITIONS.compile(one), CONDITIONS.compile(two)
    a, b = _region(first), _region(second)
    if a is None or b is None:
        return
    try:
        never_both = meet(a, b) == []
        implied = covers(b, a)
    except TooWideError:
        return
    for values in map(_told, _samples(seed, 40)):
        x, y = first.evaluate(values).result, second.evaluate(values).result
        assert not (a == [] and x), f"{one} is said to be never true"
        assert not (never_both and x and y), f"{one} and {two} are said to be never true together"
        assert not (implied and x and not y), f"{one} is said to need {two}"


@pytest.mark.property
@settings(max_examples=EXAMPLES // 4, deadline=None)
@given(EXPRESSIONS, st.integers(0, 2**32))
def test_a_tree_written_as_words_is_the_same_condition(text: str, seed: int) -> None:
    """So that what people read in a finding is what the rule says."""
    condition = CONDITIONS.compile(text)
    written = words(read_tree(condition.serialized()))
    if "…" not in written:
        again = CONDITIONS.compile(written)
        for told in map(_told, _samples(seed, 10)):
            assert again.evaluate(told).result == condition.evaluate(told).result, written


def can(text: str) -> bool:
    """Tell whether a condition is not said to be never true."""
    return _region(CONDITIONS.compile(text)) != []


# What differs between both columns is one token.
@pytest.mark.parametrize(
    ("never", "may"),
    [
        ("lead.a > 200 && lead.a < 100", "lead.a > 200 && lead.b < 100"),
        ("lead.a > 2 && lead.a < 3", "lead.a > 2 && lead.a < 4"),
        ("lead.a >= 3 && lead.a < 3", "lead.a >= 3 && lead.a <= 3"),
        ("lead.d > 2.5 && lead.d < 2.5", "lead.d > 2.5 && lead.d < 2.75"),
        ("lead.d >= 2.0 && lead.d < 2.0", "lead.d >= 2.0 && lead.d <= 2.0"),
        ("lead.d == 0.0 && lead.d != -0.0", "lead.d == 0.0 && lead.d != -1.0"),
        ("lead.s == 'x' && lead.s == 'y'", "lead.s == 'x' && lead.t == 'y'"),
        ("lead.s == 'x' && lead.s in ['y', 'z']", "lead.s == 'x' && lead.s in ['y', 'x']"),
        ("lead.s in ['x', 'y'] && lead.s != 'x' && lead.s != 'y'",
         "lead.s in ['x', 'z'] && lead.s != 'x' && lead.s != 'y'"),
        ("!known.lead.a && lead.a > 3", "known.lead.a && lead.a > 3"),
        ("known.lead.a == false && lead.a > 3", "known.lead.a == true && lead.a > 3"),
        ("!known.lead.a && lead.a != 3", "!known.lead.b && lead.a != 3"),
        ("lead.f && !lead.f", "lead.f && !known.lead.f || lead.f"),
        ("!known.lead.s && lead.s.startsWith('x')", "!known.lead.t && lead.s.startsWith('x')"),
        ("lead.s.startsWith('x') && !lead.s.startsWith('x')",
         "lead.s.startsWith('x') && !lead.s.startsWith('y')"),
        ("lead.a > 3 && !(lead.a > 1)", "lead.a > 3 && !(lead.a > 7)"),
        ("(lead.a < 1 || lead.a > 5) && lead.a == 3", "(lead.a < 1 || lead.a > 5) && lead.a == 6"),
        ("lead.a in []", "lead.a in [1]"),
        ("false", "true"),
        ("lead.f ? lead.a > 3 && lead.a < 2 : false", "lead.f ? lead.a > 3 && lead.a < 5 : false"),
        ("9007199254740992 < lead.a && lead.a < 9007199254740992",
         "9007199254740992 < lead.a && lead.a < 9007199254740994"),
    ],
)  # fmt: skip
def test_contradictions_are_seen(never: str, may: str) -> None:
    assert not can(never)
    assert can(may)


@pytest.mark.parametrize(
    ("inner", "outer", "holds"),
    [
        ("lead.a > 5", "lead.a > 3", True),
        ("lead.a > 3", "lead.a > 5", False),
        ("lead.a > 5", "lead.a >= 6", True),
        ("lead.a > 5", "known.lead.a", True),
        ("lead.a > 5", "lead.b > 5 || lead.b <= 5", False),
        ("known.lead.a", "lead.a > 5 || lead.a <= 5", True),
        ("true", "lead.a > 5 || lead.a <= 5", False),  # where it is not known, neither
        ("known.lead.f", "lead.f || !lead.f", True),
        ("known.lead.f", "lead.f", False),
        ("lead.s == 'x'", "lead.s in ['x', 'y']", True),
        ("lead.s in ['x', 'y']", "lead.s == 'x' || lead.s == 'y'", True),
        ("lead.s.startsWith('x') && lead.a > 1", "lead.s.startsWith('x')", True),
        ("lead.s.startsWith('x')", "lead.s.startsWith('y')", False),
    ],
)
def test_what_follows_from_what(inner: str, outer: str, holds: bool) -> None:
    a, b = (_region(CONDITIONS.compile(text)) for text in (inner, outer))
    assert a is not None
    assert b is not None
    assert covers(b, a) is holds


def test_a_condition_that_needs_too_much_is_given_up() -> None:
    text = " && ".join(f"(lead.a != {n} || lead.s != 'x{n}' || lead.d > {n}.5)" for n in range(9))
    with pytest.raises(TooWideError):
        BOUNDS.true_when(read_tree(CONDITIONS.compile(text).serialized()))


def test_the_clauses_that_and_joins() -> None:
    tree = read_tree(
        CONDITIONS.compile("lead.a > 1 && (lead.f || lead.a < 0) && true").serialized()
    )
    assert [words(c) for c in clauses_of(tree)] == ["lead.a > 1", "lead.f || lead.a < 0", "true"]
