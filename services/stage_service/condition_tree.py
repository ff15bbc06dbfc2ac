"""What a compiled condition says, as a tree, for checks that reason about it. Pure.

The CEL runtime has no other door to its syntax tree than `serialize`: a ``cel.expr.CheckedExpr`` in
protobuf's wire format (https://protobuf.dev/programming-guides/encoding/), of which a few fields are read
here (numbers from cel-spec, ``cel/expr/syntax.proto`` and ``checked.proto``). So the tree is the runtime's
own reading, with its precedence, escapes and macros. What is not one of these shapes is `Opaque`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

_ANY_VALUE, _CHECKED_EXPR = 2, 4
_CONST, _IDENT, _CALL, _LIST = 3, 4, 6, 7
_BOOL, _INT, _DOUBLE, _STRING = 2, 3, 5, 6
_SIGNS = {"_||_": "||", "_&&_": "&&", "_==_": "==", "_!=_": "!=", "_<_": "<", "_<=_": "<=",
          "_>_": ">", "_>=_": ">=", "@in": "in", "_+_": "+", "_-_": "-", "_*_": "*", "_/_": "/",
          "_%_": "%"}  # fmt: skip
_TIGHTER = {"_||_": 0, "_&&_": 1, "_+_": 3, "_-_": 3, "_*_": 4, "_/_": 4, "_%_": 4}
_COMPARES, _HIGHEST = 2, 5


@dataclass(frozen=True)
class Const:
    """A literal: `kind` is ``bool``, ``int``, ``double`` or ``string``."""

    kind: str
    wire: bytes
    """Tells -0.0 from 0.0, and 1 from true, where Python's values are equal."""
    value: bool | int | float | str = field(compare=False)


@dataclass(frozen=True)
class Name:
    """A variable, with its dots."""

    name: str


@dataclass(frozen=True)
class Items:
    """A list literal."""

    items: tuple[Tree, ...]


@dataclass(frozen=True)
class Call:
    """An operator (``_&&_``, ``!_``, ``@in``) or function; of a method, `args` begins with its object."""

    function: str
    method: bool
    args: tuple[Tree, ...]


@dataclass(frozen=True)
class Opaque:
    """Anything else: equal only to what is written the same at the same place."""

    wire: bytes


Tree: TypeAlias = Const | Name | Items | Call | Opaque


def read_tree(serialized: bytes) -> Tree:
    """Give the tree of a condition that the runtime serialized."""
    checked = _only(serialized, _ANY_VALUE)
    return _tree(_only(checked, _CHECKED_EXPR))


def words(tree: Tree) -> str:
    """Write a tree as CEL again, for people."""
    match tree:
        case Const(kind="string"):
            return "'" + str(tree.value).replace("\\", "\\\\").replace("'", "\\'") + "'"
        case Const():
            return str(tree.value).lower()
        case Name():
            return tree.name
        case Items():
            return f"[{', '.join(words(item) for item in tree.items)}]"
        case Call("!_" | "-_" as sign, _, (inner,)):
            return f"{sign[0]}{_within(inner, _HIGHEST)}"
        case Call("_?_:_", _, (test, left, right)):
            return f"{_within(test, 0)} ? {_within(left, 0)} : {_within(right, 0)}"
        case Call(function, _, (left, right)) if function in _SIGNS:
            tight = _tightness(tree)
            return f"{_within(left, tight)} {_SIGNS[function]} {_within(right, tight + 1)}"
        case Call(function, True, (target, *args)):
            return f"{_within(target, _HIGHEST)}.{function}({', '.join(words(a) for a in args)})"
        case Call(function, _, args):
            return f"{function}({', '.join(words(a) for a in args)})"
        case Opaque():
            return "…"


def _within(tree: Tree, least: int) -> str:
    return words(tree) if _tightness(tree) >= least else f"({words(tree)})"


def _tightness(tree: Tree) -> int:
    """Give how tightly a tree's operator binds, in CEL's order."""
    if not isinstance(tree, Call) or (len(tree.args) != 2 and tree.function != "_?_:_"):
        return _HIGHEST
    if tree.function == "_?_:_":
        return -1
    return _TIGHTER.get(tree.function, _COMPARES if tree.function in _SIGNS else _HIGHEST)


def parts_of(tree: Tree) -> Iterator[Tree]:
    """Give a tree and all trees in it."""
    yield tree
    match tree:
        case Items(inner) | Call(args=inner):
            for each in inner:
                yield from parts_of(each)
        case _:
            return


def clauses_of(tree: Tree) -> list[Tree]:
    """Give what ``&&`` joins at the top."""
    if isinstance(tree, Call) and tree.function == "_&&_":
        return [clause for arg in tree.args for clause in clauses_of(arg)]
    return [tree]


def _tree(wire: bytes) -> Tree:
    for number, value in _fields(wire):
        if number == _CONST and isinstance(value, bytes):
            return _const(value)
        if number == _IDENT and isinstance(value, bytes):
            return Name(_only(value, 1).decode())
        if number == _LIST and isinstance(value, bytes):
            fields = list(_fields(value))
            if all(n == 1 for n, _ in fields):  # 2: optional elements, a language extension
                return Items(tuple(_tree(v) for _, v in fields if isinstance(v, bytes)))
        if number == _CALL and isinstance(value, bytes):
            return _call(value)
    return Opaque(wire)


def _call(wire: bytes) -> Call:
    function, target, args = "", list[Tree](), list[Tree]()
    for number, value in _fields(wire):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            target.append(_tree(value))
        elif number == 2:
            function = value.decode()
        elif number == 3:
            args.append(_tree(value))
    return Call(function, bool(target), (*target, *args))


def _const(wire: bytes) -> Tree:
    for number, value in _fields(wire):
        if number == _BOOL:
            return Const("bool", wire, value == 1)
        if number == _INT and isinstance(value, int):
            return Const("int", wire, value - (1 << 64) if value >= 1 << 63 else value)
        if number == _DOUBLE and isinstance(value, bytes):
            return Const("double", wire, struct.unpack("<d", value)[0])
        if number == _STRING and isinstance(value, bytes):
            return Const("string", wire, value.decode())
    return Opaque(wire)


def _only(wire: bytes, wanted: int) -> bytes:
    return next((v for n, v in _fields(wire) if n == wanted and isinstance(v, bytes)), b"")


def _fields(wire: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Give each field of a message: its number, and a number or the bytes of anything longer."""
    at = 0
    while at < len(wire):
        tag, at = _varint(wire, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(wire, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(wire, at)
        else:
            size = {1: 8, 5: 4}[kind]
        yield number, wire[at : at + size]
        at += size


def _varint(wire: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = wire[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
