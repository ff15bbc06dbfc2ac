"""From a delivery to lead events: read, split, map. Pure: the same delivery gives the same events.

What cannot be mapped is told as a Defect beside the events that can; the caller keeps the delivery whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, cast

import msgspec

from services.contracts.cloudevents import brief, mapped_event
from services.contracts.events import LeadEvent, lead_event, rfc3339
from services.contracts.problems import Defect, shown
from services.stage_service.sources.bodies import UnreadableError, read_body
from services.stage_service.sources.claims import Claim, claim_of
from services.stage_service.sources.conversions import corrected, read_time
from services.stage_service.sources.functions import text_of
from services.stage_service.sources.source import EventMapping, Source, TimeOf

ITEMS_MAX = 4000
"""Segment sends up to 4,000 events in one delivery."""
ID_CHARACTERS_MAX = 512
_RESERVED = frozenset(("email", "phone", "external_ids", "anonymous_id", "deal"))
_encode = msgspec.json.Encoder().encode
_DEAD_END = object()
_REMEDY = "Mend the source file, then replay the delivery from quarantine."

Place = tuple[Any, str | None, Any, Any]
"""An item, the name of the member it is under (after ``{}``), what holds its list, and the element of the
list around that one."""


class Delivery(msgspec.Struct, frozen=True):
    """What arrived: the body as it was signed, and what expressions may ask of the request."""

    body: bytes
    received_at: datetime
    content_type: str = ""
    headers: dict[str, str] = {}
    """Names in lower case; without what authenticates."""
    query: dict[str, str] = {}


class Mapped(msgspec.Struct):
    """What became of a delivery's items."""

    events: list[LeadEvent] = []
    defects: list[tuple[int, Defect]] = []
    """Per item that could not be mapped: its place in the delivery (from 0), and why."""
    ignored: int = 0
    claims: dict[str, Claim] = {}
    """What events, by id, claim about records of the tool; only where it was asked for."""

    def shown(self) -> dict[str, Any]:
        """Give it as people, golden files and the API read it."""
        return {
            "events": [shown_event(event) for event in self.events],
            "quarantined": [{"item": index, **defect.body()} for index, defect in self.defects],
            "ignored": self.ignored,
        }


def shown_event(event: LeadEvent) -> dict[str, Any]:
    """Give a mapped event as people read it."""
    return {
        "id": event.id, "source": event.source, "type": event.type, "time": rfc3339(event.time),
        "deal": event.deal, "identities": [f"{kind}={value}" for kind, value in event.identities],
        "data": event.data,
    }  # fmt: skip


def read_delivery(source: Source, delivery: Delivery) -> Any | Defect:
    """Decode the body of `delivery` as `source` says."""
    try:
        return read_body(source.read, delivery.body, delivery.content_type)
    except UnreadableError as error:
        return Defect("unreadable-delivery", "body", str(error), _REMEDY)


def map_delivery(source: Source, delivery: Delivery, marks: Sequence[str] | None = None) -> Mapped:
    """Read and map `delivery`; `marks` are those of connectors that write to the tool, None: none does."""
    mapped = Mapped([], [], 0, {})
    payload = read_delivery(source, delivery)
    if isinstance(payload, Defect):
        mapped.defects.append((0, payload))
        return mapped
    scope: dict[str, Any] = {
        "delivery": payload, "headers": delivery.headers, "query": delivery.query,
    }  # fmt: skip
    if marks is not None:
        scope["marks"] = list(marks)
    if "body_hash" in source.roots:
        scope["body_hash"] = hashlib.sha256(delivery.body).hexdigest()
    items = _items(source, payload)
    if items is None:
        mapped.defects.append((0, Defect(
            "no-items", "body", "the delivery has none of the items that 'split' names", _REMEDY
        )))  # fmt: skip
        return mapped
    if len(items) > ITEMS_MAX:
        mapped.defects.append((ITEMS_MAX, Defect(
            "too-many-items", "body", f"more than {ITEMS_MAX} items in one delivery",
            "Set a smaller batch size at the vendor.",
        )))  # fmt: skip
        del items[ITEMS_MAX:]
    told: dict[str, LeadEvent] = {}
    for index, (item, key, parent, outer) in enumerate(items):
        if item is _DEAD_END:
            mapped.defects.append((index, Defect(
                "no-items", "body", "an element of a list has none of the items that 'split' names",
                _REMEDY,
            )))  # fmt: skip
            continue
        scope["item"] = item
        scope["key"] = key
        scope["parent"] = parent
        scope["outer"] = outer
        scope["index"] = index
        mapping = _mapping_of(source, scope)
        if mapping is not None and mapping.ignore:
            mapped.ignored += 1
            continue
        event = (
            _map_event(source, mapping, scope, delivery.received_at)
            if mapping is not None
            else _unwanted(source, scope)
        )
        if isinstance(event, Defect):
            mapped.defects.append((index, event))
        elif (known := told.setdefault(event.id, event)) is not event and _differ(known, event):
            mapped.defects.append((index, Defect(
                "same-id", "id", "another item of the delivery has the same id and says something else",
                "Let the id say what tells the items apart, then replay.", shown(event.id),
            )))  # fmt: skip
        else:
            mapped.events.append(event)
            if marks is not None and mapping is not None and mapping.echo is not None:
                claim = claim_of(mapping.echo, scope)
                if claim is not None:
                    mapped.claims[event.id] = claim
    return mapped


def _differ(one: LeadEvent, other: LeadEvent) -> bool:
    return (one.type, one.time, one.data) != (other.type, other.time, other.data)


def _items(source: Source, payload: Any) -> list[Place] | None:
    """Give the items of the first split that finds some, or an empty list; None when none does."""
    for split in source.split:
        items = list(islice(_walk(payload, split.steps), ITEMS_MAX + 1))
        if any(item is not _DEAD_END for item, *_ in items):
            return items
        holders = _walk(payload, split.steps[:-1])
        if split.steps[-1:] == ("[]",) and any(value == [] for value, *_ in holders):
            return []
    return None


def _walk(
    value: Any,
    steps: tuple[str, ...],
    at: int = 0,
    key: str | None = None,
    parent: Any = None,
    outer: Any = None,
    element: Any = None,
) -> Iterator[Place]:
    """Give the place of every item that `steps` lead to from `value`; `element` is where we are in.

    A single value where ``[]`` wants a list counts as a list of one, as XML and some vendors write it. A
    list's element that is not empty and in which a step leads nowhere is a `_DEAD_END`: nothing of a
    delivery is lost silently.
    """
    while at < len(steps):
        step = steps[at]
        at += 1
        if step == "[]" and value is not None:
            listed = cast("list[Any]", value) if isinstance(value, list) else [value]
            for each in listed:
                yield from _walk(each, steps, at, key, parent, element, each)
            return
        known = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        if step == "{}":
            if element and not known and value:
                yield _DEAD_END, key, parent, outer
            for name, each in known.items():
                yield from _walk(each, steps, at, name, known, outer, element)
            return
        if step not in known:
            if element:
                yield _DEAD_END, key, parent, outer
            return
        parent = known
        value = known[step]
    yield value, key, parent, outer if value is element else element


def _mapping_of(source: Source, scope: Mapping[str, Any]) -> EventMapping | None:
    """Find the first mapping that wants the item."""
    for mapping in source.events:
        if mapping.when is None or mapping.when.evaluate(scope) is True:
            return mapping
    return None


def _unwanted(source: Source, scope: Mapping[str, Any]) -> Defect:
    """Tell that no mapping wants the item, and which conditions could not be evaluated."""
    reasons = [
        f"line {mapping.line}: {problem}"
        for mapping in source.events
        if mapping.when is not None and (problem := mapping.when.problem(scope))
    ]
    detail = f" ({'; '.join(reasons)})" if reasons else ""
    return Defect(
        "no-mapping", "events", f"no mapping of the source file wants this item{detail}", _REMEDY,
        shown(_encode(scope["item"]).decode()),
    )  # fmt: skip


def _map_event(
    source: Source, mapping: EventMapping, scope: Mapping[str, Any], received_at: datetime
) -> LeadEvent | Defect:
    id = mapping.id.render(scope) if mapping.id is not None else None
    if not id:
        absent = mapping.id.absent(scope) if mapping.id is not None else None
        why = f": {absent} has no value" if absent else ""
        return Defect(
            "no-id", "id", f"the mapping of line {mapping.line} gives no id{why}", _REMEDY
        )
    if len(id) > ID_CHARACTERS_MAX:
        id = "sha256:" + hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()
    type_ = mapping.type.render(scope) if mapping.type is not None else None
    if not type_:
        return Defect(
            "no-type", "type", f"the mapping of line {mapping.line} gives no type", _REMEDY
        )
    if type_.startswith("baton."):
        return Defect(
            "reserved", "type", f"{type_!r} is reserved for events that Baton records itself",
            _REMEDY, type_,
        )  # fmt: skip
    time = _time(mapping.time, scope, received_at)
    if isinstance(time, Defect):
        return time
    checked = mapped_event(id, source.event_source, type_, time, _data(mapping, scope))
    if isinstance(checked, Defect):
        return checked
    return lead_event(checked, received_at)


def _time(
    rule: TimeOf | None, scope: Mapping[str, Any], received_at: datetime
) -> datetime | Defect | None:
    if rule is None:
        return None
    value = rule.value.value(scope)
    if value is None:
        return None
    time = read_time(value, rule.format)
    if time is None:
        return Defect(
            "unreadable-time", "time", f"not a time written as {rule.format!r}", _REMEDY,
            shown(text_of(value) or brief(value)),
        )  # fmt: skip
    if rule.sent_at is not None:
        sent_at = read_time(rule.sent_at.value(scope), "rfc3339")
        return corrected(time, sent_at, received_at)
    return time


def _data(mapping: EventMapping, scope: Mapping[str, Any]) -> dict[str, Any]:
    """Put together what the event says: identities, and attributes from the general to the named."""
    data: dict[str, Any] = {}
    for expression in mapping.attributes_from:
        found = expression.evaluate(scope)
        if isinstance(found, dict):
            known = cast("dict[str, Any]", found).items()
            data |= {n: v for n, v in known if n not in _RESERVED and v is not None}
    for name, choice in mapping.members:
        value = choice.value(scope)
        if value is not None:
            data[name] = value
    ids = {
        system: value
        for system, choice in mapping.external_ids
        if (value := choice.value(scope)) is not None
    }
    if ids:
        data["external_ids"] = ids
    return data
