"""For which values conditions can be true: never, never together, one whenever another is. Pure.

A condition's true values are kept as a list of boxes; a box says of each variable which values it may
have. An error is neither true nor false, as in CEL (a comparison with what is not known), so "true when"
and "false when" are kept apart. What cannot be looked into (``matches``, sums) is a variable of its own
that may be anything: so what is said here holds, and what is not said may hold too. Tested against CEL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from services.stage_service.condition_tree import Call, Const, Items, Name, Tree, parts_of
from services.stage_service.conditions import TypeName

BOXES_MAX = 128
"""A condition that needs more is given up: nothing is claimed of it."""
WORK_MAX = 200_000
"""How much may be spent on one playbook: about a second of a core; the sales playbook takes 312."""
KNOWN = "known."

Cut: TypeAlias = tuple[float, int]
"""A place between numbers: before `v` is (v, 0), after it (v, 1)."""
_TURNED = {"_<_": "_>_", "_<=_": "_>=_", "_>_": "_<_", "_>=_": "_<=_", "_==_": "_==_"}
_COMPARISONS = {*_TURNED, "@in"}
_LOW: Cut = (-math.inf, 0)
_HIGH: Cut = (math.inf, 1)


class TooWideError(Exception):
    """A condition needs more than `BOXES_MAX` boxes, or the work allowed is spent."""


class Work:
    """How much may still be spent on meets of boxes; one is shared by all that is asked of a playbook."""

    def __init__(self, left: int = WORK_MAX) -> None:
        self._left = left

    @property
    def is_spent(self) -> bool:
        """Tell whether nothing more can be asked."""
        return self._left < 0

    def spend(self, amount: int) -> None:
        """Spend `amount`. Raises TooWideError when it is more than is left, from then on always."""
        self._left -= amount
        if self._left < 0:
            raise TooWideError


@dataclass(frozen=True)
class Numbers:
    """Numbers between cuts, sorted and apart; `unknown`: it may also have no value."""

    spans: tuple[tuple[Cut, Cut], ...]
    unknown: bool

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing is left."""
        return not self.spans and not self.unknown

    def meet(self, other: Numbers) -> Numbers:
        """Give what is in both."""
        found = ((max(a, c), min(b, d)) for a, b in self.spans for c, d in other.spans)
        return Numbers(tuple(s for s in found if s[0] < s[1]), self.unknown and other.unknown)

    def rest(self) -> Numbers:
        """Give all that is not in it."""
        edges = [_LOW, *(cut for span in self.spans for cut in span), _HIGH]
        gaps = zip(edges[::2], edges[1::2], strict=True)
        return Numbers(tuple((a, b) for a, b in gaps if a < b), not self.unknown)


@dataclass(frozen=True)
class Words:
    """Texts, truth values: those in `among`, or with `other` all but those. None: it has no value."""

    among: frozenset[str | bool | None]
    other: bool = False

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing is left. All truth values left out leave an empty set not noticed."""
        return (not self.other and not self.among) or (
            self.other and self.among >= {True, False, None}
        )

    def meet(self, other: Words) -> Words:
        """Give what is in both."""
        if self.other and other.other:
            return Words(self.among | other.among, True)
        if self.other:
            return Words(other.among - self.among)
        return Words(self.among - other.among if other.other else self.among & other.among)

    def rest(self) -> Words:
        """Give all that is not in it."""
        return Words(self.among, not self.other)


Values: TypeAlias = Numbers | Words
Variable: TypeAlias = str | Tree
Box: TypeAlias = Mapping[Variable, Values]
"""What is not in it may be anything."""
Region: TypeAlias = list[Box]

EVERYWHERE: Region = [{}]
_HAS_VALUE = Words(frozenset({None}), True)
_HAS_NUMBER = Numbers(((_LOW, _HIGH),), False)
_TRUE, _FALSE = Words(frozenset({True})), Words(frozenset({False}))


def between(least: float, most: float) -> Numbers:
    """Give the numbers from `least` to `most`, both included."""
    return Numbers((((least, 0), (most, 1)),), False)


def among(values: frozenset[str]) -> Words:
    """Give the texts in `values`."""
    return Words(frozenset(values))


def meet(a: Region, b: Region, work: Work | None = None) -> Region:
    """Give where both hold. Raises TooWideError."""
    found: Region = []
    for one in a:
        for two in b:
            if work is not None:
                work.spend(1 + (len(one) + len(two) + len(found)) // 8)
            both = _meet(one, two)
            if both is not None and both not in found:
                found.append(both)
        if len(found) > BOXES_MAX:
            raise TooWideError
    return found


def either(a: Region, b: Region, work: Work | None = None) -> Region:
    """Give where one of both holds. Raises TooWideError."""
    if work is not None:
        work.spend(1 + len(a) * len(b) // 8)
    found = [*a, *(box for box in b if box not in a)]
    if len(found) > BOXES_MAX:
        raise TooWideError
    return found


def covers(outer: Region, inner: Region, work: Work | None = None) -> bool:
    """Tell whether `outer` holds wherever `inner` does. Raises TooWideError."""
    left = inner
    for box in outer:
        rest: Region = []
        for variable, values in box.items():
            rest = either(rest, meet(left, [{variable: values.rest()}], work), work)
        left = rest
        if not left:
            return True
    return not left


def _meet(a: Box, b: Box) -> Box | None:
    both: dict[Variable, Values] = dict(a)
    for variable, values in b.items():
        both[variable] = held = _in_both(both.get(variable), values)
        if held.is_empty:
            return None
    return both


def _in_both(a: Values | None, b: Values) -> Values:
    if isinstance(a, Numbers) and isinstance(b, Numbers):
        return a.meet(b)
    return a.meet(b) if isinstance(a, Words) and isinstance(b, Words) else b


class Bounds:
    """Reads conditions over variables of these types: ``{"lead.employees": "int"}``."""

    def __init__(self, types: Mapping[str, TypeName], work: Work | None = None) -> None:
        self._types = types
        self._work = work

    def true_when(self, tree: Tree) -> Region:
        """Give where `tree` is true. Raises TooWideError."""
        return self._both(tree)[0]

    def _both(self, tree: Tree) -> tuple[Region, Region]:
        """Give where `tree` is true, and where it is false."""
        match tree:
            case Const(kind="bool", value=value):
                return (EVERYWHERE, []) if value else ([], EVERYWHERE)
            case Name(name):
                return self._flag(name)
            case Call("_&&_", _, (left, right)):
                (a, not_a), (b, not_b) = self._both(left), self._both(right)
                return self._meet(a, b), self._either(not_a, not_b)
            case Call("_||_", _, (left, right)):
                (a, not_a), (b, not_b) = self._both(left), self._both(right)
                return self._either(a, b), self._meet(not_a, not_b)
            case Call("!_", _, (inner,)):
                yes, no = self._both(inner)
                return no, yes
            case Call("_?_:_", _, (test, left, right)):
                yes, no = self._both(test)
                (a, not_a), (b, not_b) = self._both(left), self._both(right)
                return (
                    self._either(self._meet(yes, a), self._meet(no, b)),
                    self._either(self._meet(yes, not_a), self._meet(no, not_b)),
                )  # fmt: skip
            case Call("_!=_", method, args):
                yes, no = self._both(Call("_==_", method, args))
                return no, yes
            case Call(function, _, (left, right)):
                return self._compared(function, left, right) or self._opaque(tree)
            case _:
                return self._opaque(tree)

    def _meet(self, a: Region, b: Region) -> Region:
        return meet(a, b, self._work)

    def _either(self, a: Region, b: Region) -> Region:
        return either(a, b, self._work)

    def _flag(self, name: str) -> tuple[Region, Region]:
        if name.startswith(KNOWN):
            has = self._known(name.removeprefix(KNOWN))
            return [has], [{n: v.rest() for n, v in has.items()}]
        return [{name: _TRUE}], [{name: _FALSE}]

    def _known(self, name: str) -> Box:
        return {name: _HAS_NUMBER if self._types[name] in ("int", "double") else _HAS_VALUE}

    def _compared(self, function: str, left: Tree, right: Tree) -> tuple[Region, Region] | None:
        """Give where a comparison of a variable with literals is true and false; None: it is not one."""
        if isinstance(left, Const) and function in _TURNED:
            left, right, function = right, left, _TURNED[function]
        if isinstance(right, Const) and right.kind == "bool" and function == "_==_":
            yes, no = self._both(left)
            return (yes, no) if right.value else (no, yes)
        if not isinstance(left, Name) or left.name not in self._types:
            return None
        literals = right.items if isinstance(right, Items) else (right,)
        if (isinstance(right, Items)) != (function == "@in"):
            return None
        consts = [c for c in literals if isinstance(c, Const)]
        if len(consts) < len(literals):
            return None
        values = self._values(self._types[left.name], function, consts)
        if values is None:
            return None
        rest = values.rest()
        known = self._known(left.name)[left.name]
        no = _meet({left.name: rest}, {left.name: known})
        return ([] if values.is_empty else [{left.name: values}]), ([] if no is None else [no])

    def _values(self, kind: TypeName, function: str, consts: Sequence[Const]) -> Values | None:
        if kind == "string" and function in ("_==_", "@in"):
            texts = [c.value for c in consts if c.kind == "string" and isinstance(c.value, str)]
            return Words(frozenset(texts)) if len(texts) == len(consts) else None
        if kind not in ("int", "double") or function not in _COMPARISONS:
            return None
        # The runtime compares numbers of one type only, so that whole ones stay exact.
        numbers = {c.value for c in consts if c.kind == kind and isinstance(c.value, int | float)}
        if any(c.kind != kind for c in consts) or any(number != number for number in numbers):
            return None
        spans = [_span(function, number) for number in sorted(numbers)]
        if kind == "int":
            spans = [(_whole(a), _whole(b)) for a, b in spans]
        return Numbers(tuple(s for s in spans if s[0] < s[1]), False)

    def _opaque(self, tree: Tree) -> tuple[Region, Region]:
        """Take what cannot be looked into as a variable; a call that ``&&`` is not in needs its values."""
        needs: dict[Variable, Values] = {}
        parts = list(parts_of(tree))
        if all(isinstance(p, Const | Name | Items) or _is_strict(p) for p in parts):
            for part in parts:
                if isinstance(part, Name) and part.name in self._types:
                    needs.update(self._known(part.name))
        return [{**needs, tree: _TRUE}], [{**needs, tree: _FALSE}]


def _is_strict(tree: Tree) -> bool:
    """Tell whether a call has an error whenever one of its arguments has."""
    return isinstance(tree, Call) and tree.function not in ("_&&_", "_||_", "_?_:_")


def _span(function: str, number: float) -> tuple[Cut, Cut]:
    before, after = (number, 0), (number, 1)
    match function:
        case "_<_":
            return _LOW, before
        case "_<=_":
            return _LOW, after
        case "_>_":
            return after, _HIGH
        case "_>=_":
            return before, _HIGH
        case _:  # equal to it, or in a list with it
            return before, after


def _whole(cut: Cut) -> Cut:
    """Give a cut's place among whole numbers: always before one."""
    number, side = cut
    return cut if isinstance(number, float) else (number + side, 0)
