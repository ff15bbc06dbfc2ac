"""Expressions over a delivery: CEL in which a member that is not there is null, not an error.

``item.contact.emails[0].value`` is looked up in Python and is null as soon as a step leads nowhere. Our own
functions (`functions`) are called in Python, too. What is left goes to CEL, which is handed the values of
the paths and calls, not the payload: that is quick, and the same rule of absence holds everywhere. What CEL
still cannot evaluate (``null > 3``) is null.

The CEL runtime (0.1.3) leaks what passes through functions of ours and loses references to None that it
gives back: hence functions outside of it, and `_plain`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from cel_expr_python import cel  # pyright: ignore[reportMissingTypeStubs]
from cel_expr_python.ext import ext_strings  # pyright: ignore[reportMissingTypeStubs]

from services.contracts.events import rfc3339
from services.stage_service.sources.functions import FUNCTIONS, look_up, text_of

ROOTS = (
    "item", "delivery", "parent", "outer", "key", "index", "headers", "query", "body_hash", "marks",
)  # fmt: skip
"""What an expression of a source file may name; see docs/sources.md."""
EXPRESSION_CHARACTERS_MAX = 4000
OPERANDS_MAX = 32

_cel: Any = cel
_TOKEN = re.compile(
    r"(?P<string>[rRbB]{0,2}(?:'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"))"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<integer>\d+)(?![\w.])|(?P<other>\S)"
)
_ERROR = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*)")
_LITERAL = r"(?:'[^'\\]*'|\"[^\"\\]*\")"
_TEST = re.compile(
    rf"p(?P<operand>\d+)(?: == (?P<equal>{_LITERAL})| in \[(?P<among>{_LITERAL}(?:, ?{_LITERAL})*)\]"
    rf"|\.startsWith\((?P<start>{_LITERAL})\))"
)
_MACROS = frozenset(("filter", "map", "exists", "all", "exists_one"))
_OPENING, _CLOSING = "([{", ")]}"

Scope = Mapping[str, Any]
"""The values that an expression sees, by root."""


class ExpressionError(ValueError):
    """An expression was refused; `line` and `column` (from 1) are within it."""

    def __init__(self, line: int, column: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.column = column
        self.reason = reason


class _Path(NamedTuple):
    """A root and the steps from it."""

    root: str
    steps: tuple[str | int, ...]

    @property
    def roots(self) -> frozenset[str]:
        return frozenset((self.root,))

    def find(self, scope: Scope) -> Any:
        return look_up(scope.get(self.root), self.steps)


class _Call(NamedTuple):
    """One of our functions with its arguments, and the steps from what it gives."""

    function: Callable[..., Any]
    arguments: tuple[Expression, ...]
    steps: tuple[str | int, ...]

    @property
    def roots(self) -> frozenset[str]:
        return frozenset(root for argument in self.arguments for root in argument.roots)

    def find(self, scope: Scope) -> Any:
        return look_up(self.function(*[a.evaluate(scope) for a in self.arguments]), self.steps)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


class _Test(NamedTuple):
    """What most conditions are made of, decided without CEL: an operand that is one of some texts."""

    operand: _Path | _Call
    among: frozenset[str]
    start: str | None

    def holds(self, scope: Scope) -> bool:
        value = self.operand.find(scope)
        if not isinstance(value, str):
            return False
        return value in self.among if self.start is None else value.startswith(self.start)


class Expression:
    """One compiled expression; `roots` are the ones it names."""

    __slots__ = ("_cel", "_operands", "_tests", "evaluate", "roots", "text")

    evaluate: Callable[[Scope], Any]
    """Gives the value in a scope; None when it is absent or cannot be evaluated. Never raises."""

    def __init__(
        self,
        text: str,
        operands: Sequence[_Path | _Call],
        compiled: Any = None,
        tests: tuple[_Test, ...] = (),
    ) -> None:
        self.text = text
        self.roots = frozenset(root for operand in operands for root in operand.roots)
        self._operands = tuple(operands)
        self._cel = compiled
        """None: the expression is its one operand, or all `_tests`."""
        self._tests = tests
        if not operands:
            constant = self._value({})
            self.evaluate = lambda _: constant
        elif compiled is not None:
            self.evaluate = self._value
        elif tests:
            self.evaluate = self._all_hold
        else:
            self.evaluate = _finder(operands[0])

    def _all_hold(self, scope: Scope) -> bool:
        return all(test.holds(scope) for test in self._tests)

    def _value(self, scope: Scope) -> Any:
        try:
            return _plain(self._evaluate(scope))
        except Exception:  # the runtime refused a value: as absent as a missing one
            return None

    def problem(self, scope: Scope) -> str | None:
        """Say why the expression cannot be evaluated in `scope`, None when it can."""
        if self._cel is None:
            return None
        try:
            value = self._evaluate(scope)
        except Exception as error:
            return str(error).split("\n")[0][:200]
        return str(value.value())[:200] if value.type() == _cel.Type.ERROR else None

    def _evaluate(self, scope: Scope) -> Any:
        return self._cel.eval(
            data={f"p{n}": operand.find(scope) for n, operand in enumerate(self._operands)}
        )


def _finder(operand: _Path | _Call) -> Callable[[Scope], Any]:
    """Give the look-up of `operand`; a short one for a member of a root, as most expressions are."""
    if not isinstance(operand, _Path) or len(operand.steps) != 1:
        return operand.find
    root, step = operand.root, operand.steps[0]
    if not isinstance(step, str):
        return operand.find

    def find(scope: Scope) -> Any:
        value = scope.get(root)
        return cast("dict[str, Any]", value).get(step) if isinstance(value, dict) else None

    return find


def _plain(value: Any) -> Any:
    """Give a value of CEL's as JSON has it; an error is None. A null must never be converted by CEL."""
    kind = value.type().name()
    if kind in ("NULL", "ERROR", "UNKNOWN", "null_type"):
        return None
    found = value.value()
    if isinstance(found, list):
        return [_plain(each) for each in cast("list[Any]", found)]
    if isinstance(found, dict):
        # CEL's maps have another order each time; the same delivery is to give the same bytes.
        members = sorted(cast("dict[Any, Any]", found).items(), key=lambda member: str(member[0]))
        return {text_of(name) or "": _plain(each) for name, each in members}
    if isinstance(found, datetime):
        return rfc3339(found)
    if isinstance(found, timedelta):
        return f"{found.total_seconds():g}s"
    return found if isinstance(found, str | bool | int | float) else None


def _environment(roots: Sequence[str]) -> Any:
    dyn = _cel.Type.DYN
    declared = [
        _cel.FunctionDecl(
            name, [_cel.Overload(f"{name}_{n}", dyn, [dyn] * n, False, function) for n in counts]
        )
        for name, (function, counts) in FUNCTIONS.items()
    ]
    return _cel.NewEnv(
        variables=dict.fromkeys((*roots, *(f"p{n}" for n in range(OPERANDS_MAX))), dyn),
        # Declared so that the text as it was written can be checked; none is ever called by CEL.
        extensions=[_cel.CelExtension("baton", declared), ext_strings.ExtStrings()],
    )


_environments: dict[Sequence[str], Any] = {}
"""One for all files that name the same roots: making it takes 10 ms."""


def _compiled(text: str, roots: Sequence[str]) -> Any:
    environment = _environments.get(roots)
    if environment is None:
        environment = _environments[roots] = _environment(roots)
    try:
        return environment.compile(text)
    except Exception as error:
        found = _ERROR.search(str(error))
        if not found:
            raise ExpressionError(1, 1, str(error).split("\n")[0]) from None
        reason = found[3].replace(" (in container '')", "").strip()
        raise ExpressionError(int(found[1]), int(found[2]), reason) from None


def compile_expression(text: str, roots: tuple[str, ...] = ROOTS) -> Expression:
    """Compile `text`, which may name `roots`; raises ExpressionError with the place and reason."""
    if len(text) > EXPRESSION_CHARACTERS_MAX:
        raise ExpressionError(1, 1, f"longer than {EXPRESSION_CHARACTERS_MAX} characters")
    _compiled(text, roots)  # as it was written: errors are told in its own columns
    return _rewritten(text, roots)


def _rewritten(text: str, roots: tuple[str, ...]) -> Expression:
    rewriting = _Rewriting(text, roots)
    rewritten = rewriting.run().strip()
    operands = rewriting.operands
    if rewritten == "p0":
        return Expression(text, operands)
    tests: list[_Test] = []
    for clause in rewritten.split(" && "):
        found = _TEST.fullmatch(clause.strip())
        if found is None:
            return Expression(text, operands, _compiled(rewritten, roots))
        start = cast("str", ast.literal_eval(found["start"])) if found["start"] else None
        among = ast.literal_eval(f"[{found['equal'] or found['among'] or ''}]")
        tests.append(_Test(operands[int(found["operand"])], frozenset(among), start))
    return Expression(text, operands, tests=tuple(tests))


class _Rewriting:
    """Puts a variable in the place of each path and call, and null-safe look-ups into comprehensions."""

    def __init__(self, text: str, roots: tuple[str, ...]) -> None:
        self._text = text
        self._roots = roots
        self._tokens = [
            _Token(cast("str", match.lastgroup), match[0], match.start(), match.end())
            for match in _TOKEN.finditer(text)
        ]
        self._own = self._comprehension_variables()
        self.operands: list[_Path | _Call] = []

    def run(self) -> str:
        """Give the rewritten text; `operands` then are the values of p0, p1, ..."""
        written: list[str] = []
        done = index = 0
        while index < len(self._tokens):
            token = self._tokens[index]
            if token.kind != "name" or self._at(index - 1) == ".":
                index += 1
                continue
            after, put = self._has(index) or self._call(index) or self._path(index)
            if put:
                written += [self._text[done : token.start], put]
                done = self._tokens[after - 1].end
            index = max(after, index + 1)
        return "".join(written) + self._text[done:]

    def _at(self, index: int) -> str:
        return self._tokens[index].text if 0 <= index < len(self._tokens) else ""

    def _comprehension_variables(self) -> frozenset[str]:
        names: set[str] = set()
        for index, token in enumerate(self._tokens):
            if (
                token.text in _MACROS
                and self._at(index - 1) == "."
                and self._at(index + 1) == "("
                and self._at(index + 3) == ","
            ):
                name = self._at(index + 2)
                if name in self._roots:
                    raise ExpressionError(
                        1, self._tokens[index + 2].start + 1,
                        f"{name!r} has a meaning here already: use another variable",
                    )  # fmt: skip
                names.add(name)
        return frozenset(names)

    def _has(self, index: int) -> tuple[int, str] | None:
        if self._at(index) != "has" or self._at(index + 1) != "(":
            return None
        after, put = self._call(index + 2) or self._path(index + 2)
        return (after + 1, f"({put} != null)") if put and self._at(after) == ")" else None

    def _call(self, index: int) -> tuple[int, str] | None:
        """Read a call of one of our functions, its arguments each an expression of its own."""
        name = self._at(index)
        if name not in FUNCTIONS or self._at(index + 1) != "(":
            return None
        depth = 0
        start = self._tokens[index + 1].end
        arguments: list[Expression] = []
        after = index + 1
        for after in range(index + 1, len(self._tokens)):
            token = self._tokens[after]
            depth += (token.text in _OPENING) - (token.text in _CLOSING)
            if (token.text == "," and depth == 1) or depth == 0:
                try:
                    arguments.append(_rewritten(self._text[start : token.start], self._roots))
                except ExpressionError as error:  # the variable of a filter() around the call
                    raise ExpressionError(
                        1, start + 1, f"{name}() is called once, not per element: {error.reason}"
                    ) from None
                start = token.end
            if depth == 0:
                break
        after, steps = self._steps(after + 1, "")
        return after, self._operand(_Call(FUNCTIONS[name][0], tuple(arguments), steps))

    def _path(self, index: int) -> tuple[int, str]:
        """Read the path that starts at token `index`: (index after it, what to write for it)."""
        name = self._at(index)
        if name not in self._roots and name not in self._own:
            return index, ""
        after, steps = self._steps(index + 1, name)
        if name in self._own:
            return after, _null_safe(name, steps) if steps else ""
        return after, self._operand(_Path(name, steps))

    def _steps(self, after: int, root: str) -> tuple[int, tuple[str | int, ...]]:
        steps: list[str | int] = []
        while True:
            mark = self._at(after)
            following = self._tokens[after + 1] if after + 1 < len(self._tokens) else None
            if following is None:
                break
            if mark == "." and following.kind == "name" and self._at(after + 2) != "(":
                steps.append(following.text)
                after += 2
            elif (
                mark == "["
                and following.kind in ("string", "integer")
                and self._at(after + 2) == "]"
            ):
                step = cast("str | int", ast.literal_eval(following.text))
                is_header = root == "headers" and isinstance(step, str)
                steps.append(cast("str", step).lower() if is_header else step)
                after += 3
            else:
                break
        return after, tuple(steps)

    def _operand(self, operand: _Path | _Call) -> str:
        if operand not in self.operands:
            if len(self.operands) == OPERANDS_MAX:
                raise ExpressionError(1, 1, f"names more than {OPERANDS_MAX} paths and calls")
            self.operands.append(operand)
        return f"p{self.operands.index(operand)}"


def _null_safe(name: str, steps: Sequence[str | int]) -> str:
    """Write the steps from a comprehension's variable so that CEL gives null where they lead nowhere."""
    conditions: list[str] = []
    place = name
    for step in steps:
        conditions.append(
            f"type({place}) == map && {step!r} in {place}"
            if isinstance(step, str)
            else f"type({place}) == list && size({place}) > {step}"
        )
        place = f"{place}[{step!r}]"
    return f"({' && '.join(conditions)} ? dyn({place}) : dyn(null))"
