"""Conditions in CEL, behind a port of three: compile, variables, evaluate.

Variables are flat and typed (``lead.employees: int``), so a comparison that cannot work is refused at
load. Whether a value is known is itself a variable: ``known.lead.employees``. The runtime gives errors
as values; here they become a verdict that is false and says which value was missing (I8).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from cel_expr_python import cel  # pyright: ignore[reportMissingTypeStubs]

TypeName = Literal["int", "double", "string", "bool", "timestamp"]
TYPE_NAMES: tuple[TypeName, ...] = ("int", "double", "string", "bool", "timestamp")
EXPRESSION_CHARACTERS_MAX = 4000
REMEMBERED_MAX = 4096
REMEMBERED_CHARACTERS_MAX = 200

_cel: Any = cel
_TYPES = {
    "int": _cel.Type.INT,
    "double": _cel.Type.DOUBLE,
    "string": _cel.Type.STRING,
    "bool": _cel.Type.BOOL,
    "timestamp": _cel.Type.TIMESTAMP,
}
_STRING = re.compile(r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"")
_NAME = re.compile(r"[A-Za-z_]\w*(?:\s*\.\s*[A-Za-z_]\w*)*")
_ERROR = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*)")
_MISSING = re.compile(r'No value with name "([^"]+)"')


class Verdict(NamedTuple):
    """The result; when it could not be evaluated it is False, and `missing` says why."""

    result: bool
    missing: str | None


class ConditionError(ValueError):
    """An expression was refused; `line` and `column` (from 1) are within it."""

    def __init__(self, line: int, column: int, reason: str, name: str | None = None) -> None:
        super().__init__(reason)
        self.line = line
        self.column = column
        self.reason = reason
        self.name = name
        """The undeclared name that it used, when that is what is wrong."""


class Condition:
    """A compiled condition: a boolean CEL expression over the declared variables."""

    __slots__ = ("_expression", "_remembers", "_verdicts", "text", "variables")

    def __init__(
        self, text: str, expression: Any, variables: tuple[str, ...], *, remembers: bool
    ) -> None:
        self.text = text
        self.variables = variables
        self._expression = expression
        self._remembers = remembers
        self._verdicts: dict[tuple[Any, ...], Verdict] = {}

    @property
    def parsed(self) -> bytes:
        """Give what CEL parsed: the same for texts that differ in white space, quotes, brackets or comments.

        It is the expression in CEL's own form (``cel.expr.CheckedExpr``, field 4), without the places in the
        text. Clauses in another order are another expression, though they may mean the same.
        """
        checked = _fields(self._expression.serialize())[2]  # of google.protobuf.Any: the value
        return _fields(checked)[4]

    def serialized(self) -> bytes:
        """Give the runtime's own reading of it (`condition_tree`)."""
        return self._expression.serialize()

    def evaluate(self, values: Mapping[str, Any]) -> Verdict:
        """Evaluate with `values` by variable name; None or absent means not known. Never raises.

        A verdict is remembered by the values it was made of: most leads of a day share them, and the
        expression is a function of nothing else.
        """
        if not self._remembers:
            return self._evaluate(values)
        key = tuple([values.get(name) for name in self.variables])
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._evaluate(values)
            if all(len(v) <= REMEMBERED_CHARACTERS_MAX for v in key if isinstance(v, str)):
                if len(self._verdicts) >= REMEMBERED_MAX:
                    self._verdicts.clear()
                self._verdicts[key] = verdict
        return verdict

    def _evaluate(self, values: Mapping[str, Any]) -> Verdict:
        try:
            outcome = self._expression.eval(data={k: v for k, v in values.items() if v is not None})
            result = outcome.value()
        except Exception as error:  # the runtime refused a value: as unknown as a missing one
            return Verdict(False, str(error)[:200])
        if result is True or result is False:
            return Verdict(result, None)
        missing = _MISSING.search(str(result))
        return Verdict(False, missing[1] if missing else str(result)[:200])


def _fields(message: bytes) -> dict[int, bytes]:
    """Give the fields of a protobuf `message` by number, the last of each; all are length-delimited."""
    found: dict[int, bytes] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7

    while at < len(message):
        field, wire_type = divmod(varint(), 8)
        if wire_type != 2:
            raise ValueError(f"field {field} of a compiled condition has wire type {wire_type}")
        size = varint()
        found[field] = message[at : at + size]
        at += size
    return found


class Conditions:
    """Compiles conditions over a fixed set of variables: {dotted name: type}."""

    def __init__(self, variables: Mapping[str, TypeName]) -> None:
        self._variables = dict(variables)
        known = {f"known.{name}": "bool" for name in variables}
        self._env = _cel.NewEnv(
            variables={n: _TYPES[t] for n, t in {**self._variables, **known}.items()}
        )
        self._names = {**self._variables, **known}

    def compile(self, text: str) -> Condition:
        """Compile `text`; raises ConditionError with the place and reason."""
        if len(text) > EXPRESSION_CHARACTERS_MAX:
            raise ConditionError(1, 1, f"longer than {EXPRESSION_CHARACTERS_MAX} characters")
        bare = _STRING.sub(lambda m: " " * len(m[0]), text)
        macro = re.search(r"\bhas\s*\(", bare)
        if macro:
            raise ConditionError(
                1, macro.start() + 1, "has() does not work on flat variables; write known.lead.x"
            )
        try:
            expression: Any = self._env.compile(text)
        except Exception as error:
            found = _ERROR.search(str(error))
            if not found:
                raise ConditionError(1, 1, str(error).split("\n")[0]) from None
            reason = found[3].replace(" (in container '')", "").strip()
            undeclared = re.match(r"undeclared reference to '([^']+)'", reason)
            raise ConditionError(
                int(found[1]), int(found[2]), reason, undeclared[1] if undeclared else None
            ) from None
        kind = str(expression.return_type()).rpartition(".")[2].lower()
        if "bool" not in kind:
            raise ConditionError(1, 1, f"gives a value of type {kind}, not true or false")
        used = self._used(bare)
        # -0.0 and 0.0 are one key and may be two verdicts.
        remembers = all(self._names[name] != "double" for name in used)
        return Condition(text, expression, used, remembers=remembers)

    def _used(self, bare: str) -> tuple[str, ...]:
        """Give the declared names in an expression whose string literals are blanked."""
        used: dict[str, None] = {}
        for match in _NAME.finditer(bare):
            name = "".join(match[0].split())  # CEL lets a name be broken at its dots
            while name and name not in self._names:  # lead.origin.startsWith -> lead.origin
                name = name.rpartition(".")[0]
            if name:
                used[name] = None
        return tuple(used)
