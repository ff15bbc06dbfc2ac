"""What a subscription hears: event types, and a condition in CEL over what the event says.

A condition sees flat, typed variables (`FIELDS`, and ``lead.<attribute>`` for each lead attribute that a
playbook declares), so one that cannot work is refused when the subscription is made. A value that the
event does not have is unknown, and a condition that needs it is false; ``known.<variable>`` asks for that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import msgspec

from services.contracts.cloudevents import parse_time
from services.contracts.events import Message
from services.contracts.problems import Defect, shown
from services.contracts.schemas import STRUCTS
from services.contracts.yaml_source import nearest
from services.stage_service.conditions import (
    EXPRESSION_CHARACTERS_MAX,
    Condition,
    ConditionError,
    Conditions,
    TypeName,
)
from services.stage_service.playbook import Playbook, coerce

TYPES_MAX = 32
REMEMBERED_BYTES_MAX = 8 * 1024 * 1024
LEAD = "lead."
KNOWN = "known."

NOT_HEARD = ("baton.subscription.", "baton.lead.snapshot.")
"""Beginnings of types that are published for others: on topics that are not delivered (`tail`)."""
TYPES = tuple(sorted(t for t in STRUCTS if not t.startswith(NOT_HEARD)))
"""The event types that can be subscribed to."""

Path = tuple[str, ...]
Words = tuple[tuple[str, TypeName], ...]
"""Variables with their types, sorted: equal ones make equal conditions of a text."""

FIELDS: dict[str, tuple[TypeName, tuple[Path, ...]]] = {
    "event.id": ("string", ()),
    "event.type": ("string", ()),
    "event.time": ("timestamp", ()),
    "lead.id": ("string", (("lead", "id"), ("lead_id",))),
    "lead.email": ("string", (("lead", "email"),)),
    "lead.name": ("string", (("lead", "name"),)),
    "lead.company": ("string", (("lead", "company"),)),
    "playbook": ("string", (("journey", "playbook"),)),
    "journey.id": ("string", (("journey", "id"),)),
    "journey.key": ("string", (("journey", "key"),)),
    "from": ("string", (("from",),)),
    "to": ("string", (("to",),)),
    "stage": ("string", (("to",), ("stage", "key"), ("stage",))),
    "band": ("string", (("stage", "band"),)),
    "sequence": ("int", (("sequence",),)),
    "handoff": ("bool", (("handoff",),)),
    "role": ("string", (("responsible", "role"), ("role",))),
    "owner.id": ("string", (("responsible", "owner", "id"), ("owner", "id"))),
    "owner.name": ("string", (("responsible", "owner", "name"), ("owner", "name"))),
    "previous_role": ("string", (("previous_responsible", "role"), ("from_role",))),
    "score.fit": ("int", (("score", "fit"),)),
    "score.intent": ("int", (("score", "intent"),)),
    "score.total": ("int", (("score", "total"),)),
    "cause.event_type": ("string", (("cause", "event_type"),)),
    "cause.event_source": ("string", (("cause", "event_source"),)),
    "cause.rule": ("string", (("cause", "rule"),)),
    "actor": ("string", (("cause", "actor"), ("actor",), ("answered_by",))),
    "reason": ("string", (("reason",),)),
    "state": ("string", (("state",),)),
    "round": ("int", (("round",),)),
    "clock": ("string", (("clock",),)),
    "step": ("string", (("step",),)),
    "late": ("bool", (("late",),)),
    "playbook_version": ("int", (("playbook_version",),)),
}
"""Each variable: its type, and where in the event's data it stands, the first place that has it."""


class Wishes(Protocol):
    """What of a subscription says which events it hears."""

    @property
    def types(self) -> tuple[str, ...]:
        """Give the event types."""
        ...

    @property
    def filter(self) -> str | None:
        """Give the condition."""
        ...


class FilterError(ValueError):
    """A stored filter cannot be used any more, as when a playbook ceased to declare an attribute.

    Nothing may be skipped for it: the subscription waits where it is until it, or the playbook, is mended.
    """

    def __init__(self, defect: Defect) -> None:
        super().__init__(f"{defect.reason}. {defect.remedy}")
        self.defect = defect


def check_types(types: Sequence[str]) -> Defect | None:
    """Say what is wrong with the event types of a subscription; a trailing ``*`` is for all that begin so."""
    if len(types) > TYPES_MAX:
        return Defect("too-many", "types", f"more than {TYPES_MAX} types", "Use a trailing '*'.")
    for wanted in types:
        beginning = wanted.removesuffix("*")
        if wanted in TYPES or (
            beginning != wanted and any(known.startswith(beginning) for known in TYPES)
        ):
            continue
        hint = nearest(wanted, TYPES) or "See docs/events.md for the published types."
        return Defect("unknown-event-type", "types", "no published event is of this type", hint,
                      shown(wanted))  # fmt: skip
    return None


def variables_of(playbooks: Mapping[str, Playbook]) -> dict[str, TypeName]:
    """Give all variables that a filter may use.

    An attribute that several playbooks declare with different types is a double if all are numbers, else a
    string.
    """
    found: dict[str, TypeName] = {}
    for playbook in playbooks.values():
        for name, kind in playbook.attributes["lead"].items():
            before = found.setdefault(LEAD + name, kind)
            if before != kind:
                numbers = {before, kind} == {"int", "double"}
                found[LEAD + name] = "double" if numbers else "string"
    for name, (kind, _) in FIELDS.items():
        found[name] = kind
    return found


def check_filter(text: str, playbooks: Mapping[str, Playbook]) -> Defect | None:
    """Say what is wrong with a filter, with the column and what may have been meant."""
    found = _compiled(text, variables_of(playbooks))
    return found if isinstance(found, Defect) else None


def _compiled(text: str, variables: Mapping[str, TypeName]) -> Condition | Defect:
    if "\x00" in text:
        return Defect("invalid-filter", "filter", "it has a NUL character", "Write it without.")
    if len(text) > EXPRESSION_CHARACTERS_MAX:
        return Defect("invalid-filter", "filter", f"longer than {EXPRESSION_CHARACTERS_MAX} characters",
                      "Shorten it, or make two subscriptions.")  # fmt: skip
    try:
        return _conditions(tuple(sorted(variables.items()))).compile(text)
    except ConditionError as error:
        hint = ""
        if error.name is not None:
            hint = nearest(error.name, variables)
        place = (
            f"line {error.line}, column {error.column}"
            if "\n" in text
            else f"column {error.column}"
        )
        return Defect(
            "invalid-filter", "filter", f"{place}: {error.reason}",
            hint or "See docs/webhooks.md, 'Filters', for what a filter may say.", shown(text),
        )  # fmt: skip


_environments: dict[Words, Conditions] = {}


def _conditions(variables: Words) -> Conditions:
    """Give the compiler for `variables`; a playbook's change makes another, so few are kept."""
    if variables not in _environments:
        if len(_environments) >= 4:
            _environments.clear()
        _environments[variables] = Conditions(dict(variables))
    return _environments[variables]


class Matcher:
    """Tells whether a message is for a subscription. Equal ones, as of equal wishes, give equal answers."""

    __slots__ = ("_any_type", "_beginnings", "_condition", "_exact", "_readers", "_wish")

    def __init__(
        self, types: frozenset[str], condition: Condition | None, variables: Mapping[str, TypeName]
    ) -> None:
        self._any_type = not types
        self._exact = frozenset(t for t in types if not t.endswith("*"))
        self._beginnings = tuple(t[:-1] for t in types if t.endswith("*"))
        self._condition = condition
        used = condition.variables if condition is not None else ()
        self._readers = [(name, _reader(name, variables)) for name in used]
        kinds = tuple((name, variables[name.removeprefix(KNOWN)]) for name in used)
        self._wish = (types, condition and condition.text, kinds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Matcher) and self._wish == other._wish

    def __hash__(self) -> int:
        return hash(self._wish)

    def __call__(self, message: Message) -> bool:
        """Tell it; a condition over what is not known is false."""
        type = message.headers["ce_type"]
        if not (self._any_type or type in self._exact or type.startswith(self._beginnings)):
            return False
        if self._condition is None:
            return True
        told = _told(message)
        known = told.known
        values: dict[str, Any] = {}
        for name, read in self._readers:
            if read not in known:
                known[read] = read(message, told.data)
            values[name] = known[read]
        return self._condition.evaluate(values).result


def matcher_for(subscription: Wishes, playbooks: Mapping[str, Playbook]) -> Matcher:
    """Give what tells whether a published message is for `subscription`.

    Make it anew when the subscription or a playbook changes. Raises FilterError.
    """
    variables = variables_of(playbooks)
    condition: Condition | None = None
    if subscription.filter is not None:
        compiled = _compiled(subscription.filter, variables)
        if isinstance(compiled, Defect):
            raise FilterError(compiled)
        condition = compiled
    return Matcher(frozenset(subscription.types), condition, variables)


Read = Callable[[Message, dict[str, Any]], Any]
"""Reads a variable from a message and its decoded data; gives None for what is not known."""


def _reader(name: str, variables: Mapping[str, TypeName]) -> Read:
    return _reader_as(name, variables[name.removeprefix(KNOWN)])


@functools.lru_cache(1024)
def _reader_as(name: str, kind: TypeName) -> Read:
    """Give what reads the variable `name` as a `kind`: the same object for the same two."""
    if name.startswith(KNOWN):
        inner = _reader_as(name.removeprefix(KNOWN), kind)
        return lambda message, data: inner(message, data) is not None
    if name == "event.time":
        return lambda message, _: parse_time(message.headers.get("ce_time", ""))
    if name.startswith("event."):
        header = f"ce_{name.removeprefix('event.')}"
        return lambda message, _: message.headers.get(header)
    attribute = (("lead", "attributes", name.removeprefix(LEAD)),)
    paths = FIELDS[name][1] if name in FIELDS else attribute

    def read(_: Message, data: dict[str, Any]) -> Any:
        for path in paths:
            value: Any = data
            for step in path:
                value = cast("dict[str, Any]", value).get(step) if isinstance(value, dict) else None
            if value is not None and (value := coerce(value, kind)) is not None:
                return value
        return None

    return read


class _Told:
    """A message's data, and what was read of it."""

    __slots__ = ("data", "known")

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.known: dict[Read, Any] = {}


class _Remembered:
    """The messages that were looked at last, decoded once for all subscriptions."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], _Told] = {}
        self._bytes = 0

    def told(self, message: Message) -> _Told:
        key = (message.headers["ce_id"], message.key)
        told = self._told.get(key)
        if told is None:
            told = _Told(_decode(message.value) if message.value else {})
            if self._bytes >= REMEMBERED_BYTES_MAX:
                self._told.clear()
                self._bytes = 0
            self._bytes += len(message.value)
            self._told[key] = told
        return told


_decode = msgspec.json.Decoder(dict[str, Any]).decode
_told = _Remembered().told
