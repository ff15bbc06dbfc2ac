"""A source as it is used: what a source file says, compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import msgspec

from services.stage_service.sources.expressions import Expression
from services.stage_service.sources.functions import slug
from services.stage_service.sources.signatures import Method
from services.stage_service.sources.templates import Template

Evidence = Literal["real samples", "vendor documentation"]
EVIDENCE: tuple[Evidence, ...] = ("real samples", "vendor documentation")
"""What a source file was written after."""


class Choice(msgspec.Struct, frozen=True):
    """A value: the first of `alternatives` that is there, converted."""

    alternatives: tuple[Expression, ...]
    convert: Callable[[Any], Any] | None = None
    every: bool = False
    """All that are there, those of lists one by one, as a list, instead of the first."""

    def value(self, scope: Mapping[str, Any]) -> Any:
        """Give the value in `scope`, None when no alternative has one."""
        if self.every:
            return self._all(scope)
        for expression in self.alternatives:
            value = expression.evaluate(scope)
            if value is not None and value != "":
                return value if self.convert is None else self.convert(value)
        return None

    def _all(self, scope: Mapping[str, Any]) -> Any:
        found: list[Any] = []
        for expression in self.alternatives:
            value = expression.evaluate(scope)
            for each in cast("list[Any]", value) if isinstance(value, list) else [value]:
                if each is not None and each != "" and each not in found:
                    found.append(each)
        return found if len(found) > 1 else found[0] if found else None


class TypeTable(msgspec.Struct, frozen=True):
    """An event type looked up by a name of the vendor's, else made by a template."""

    of: Expression
    table: dict[str, str]
    otherwise: Template | None

    def render(self, scope: Mapping[str, Any]) -> str | None:
        """Give the type in `scope`; names that differ in case, spaces and signs only are the same."""
        name = self.of.evaluate(scope)
        found = self.table.get(name) if isinstance(name, str) else None
        if found is None:
            found = self.table.get(slug(name) or "")
        if found is None and self.otherwise is not None:
            found = self.otherwise.render(scope)
        return found


class TimeOf(msgspec.Struct, frozen=True):
    """When it happened; `sent_at` is the sender's clock when it sent."""

    value: Choice
    format: str
    sent_at: Choice | None = None


class EchoOf(msgspec.Struct, frozen=True):
    """How an item shows that it tells of what Baton itself wrote into the tool.

    `ours`: the vendor's own mark says so. `record` names the tool's record and `says` which of its fields
    have which value now (`created`: that it is new), to be compared with what connectors wrote.
    """

    ours: Expression | None
    record: Template | None
    created: Expression | None
    says: tuple[tuple[Template, Choice], ...]
    says_from: Expression | None


class EventMapping(msgspec.Struct, frozen=True):
    """How an item becomes a lead event, when `when` holds."""

    line: int
    when: Expression | None
    ignore: bool
    type: Template | TypeTable | None
    id: Template | None
    time: TimeOf | None
    members: tuple[tuple[str, Choice], ...]
    """``email``, ``phone``, ``anonymous_id``, ``deal`` and attributes: members of the event's data."""
    external_ids: tuple[tuple[str, Choice], ...]
    attributes_from: tuple[Expression, ...]
    """Objects whose members are attributes."""
    echo: EchoOf | None = None


class Split(msgspec.Struct, frozen=True):
    """Where the items of a delivery are: steps from it, ``[]`` each of a list, ``{}`` each of an object."""

    steps: tuple[str, ...]


class Handshake(msgspec.Struct, frozen=True):
    """An answer to a request that only asks whether somebody is there."""

    method: Literal["GET", "HEAD", "POST"]
    when: Expression | None
    verify: bool
    status: int
    content_type: str
    body: Template


class Answer(msgspec.Struct, frozen=True):
    """What an accepted delivery is answered; `body` None: the counts, as JSON."""

    status: int = 200
    content_type: str = "application/json"
    body: bytes | None = None


class Source(msgspec.Struct, frozen=True):
    """One vendor: how its deliveries are verified, read, split, mapped and answered."""

    name: str
    title: str
    evidence: Evidence
    event_source: str
    """The ``source`` of its events."""
    verify: tuple[Method, ...]
    read: tuple[str, ...]
    split: tuple[Split, ...]
    events: tuple[EventMapping, ...]
    handshakes: tuple[Handshake, ...]
    answer: Answer
    roots: frozenset[str]
    """Which roots its expressions name: what nobody asks for is not made."""
