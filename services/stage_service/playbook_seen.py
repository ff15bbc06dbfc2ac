"""Checks of a playbook against what events brought lately: attributes and event types nobody sends. Pure."""

from __future__ import annotations

import msgspec

from services.contracts.events import SOURCE
from services.contracts.yaml_source import Node, nearest
from services.stage_service.offers import ANSWERS
from services.stage_service.playbook import Playbook
from services.stage_service.playbook_places import Places, part

IDENTITY = "lead.email"
"""What every lead may have without an attribute being sent."""

LIKE = 0.68
"""How alike another name must be, to be meant: names that nobody sent yet are often right (1: equal)."""


class Seen(msgspec.Struct, frozen=True):
    """What the events of the last `days` brought: their types, and the attributes that had a value."""

    days: int
    types: frozenset[str]
    attributes: frozenset[str]


def check_seen(playbook: Playbook, seen: Seen, places: Places) -> None:
    """Note what a playbook counts on and nothing brings; where no event came at all, nothing is judged."""
    if not seen.types:
        return
    _check_attributes(playbook, seen, places)
    _check_types(seen, places)
    _check_gates(seen, places)


def check_labels(playbook: Playbook, seen: Seen | None, places: Places) -> None:
    """Note labels of event types that nothing uses or sends; without `seen`, only likely slips."""
    labels = places.each("labels")
    used = _used_types(playbook)
    for event_type, node in labels.items():
        if event_type in used or _is_own(event_type):
            continue
        if seen is not None and seen.types:
            if event_type in seen.types:
                continue
            remedy = nearest(event_type, (seen.types | used) - labels.keys(), LIKE) or "Remove it."
        else:
            remedy = nearest(event_type, used - labels.keys(), LIKE)
        if remedy:
            node.refuse(
                f"the label of {event_type!r} is for a type that nothing uses",
                remedy, rule="unused-label",
            )  # fmt: skip


def _used_types(playbook: Playbook) -> set[str]:
    used = {t for rule in playbook.rules for t in rule.on or ()}
    used |= playbook.signals.keys() | playbook.asks_for_contact
    return used | {t for plan in playbook.handoffs.values() for t in plan.accepted_by}


def _is_own(event_type: str) -> bool:
    """Tell whether Baton itself makes events of the type, so that it need not have happened yet."""
    return event_type in ANSWERS or event_type.startswith(f"{SOURCE}.")


def _check_attributes(playbook: Playbook, seen: Seen, places: Places) -> None:
    for room, node in places.each("attributes").items():
        declared = node.mapping()
        for name, place in declared.items():
            if name not in seen.attributes:
                place.refuse(
                    f"no event of the last {seen.days} days brought {room}.{name}",
                    nearest(name, seen.attributes - playbook.attributes[room].keys(), LIKE)
                    or "Let a source map it, or remove it where nothing will.",
                    rule="unseen-attribute",
                )


def _check_types(seen: Seen, places: Places) -> None:
    score = places.each("score")
    nodes = [*places.items("rules"), *(score["intent"].items() if "intent" in score else ())]
    for node in nodes:
        on = part(node, "on")
        for item in on.items() if on is not node else ():
            if item.value not in seen.types and not _is_own(str(item.value)):
                _refuse_type(item, seen)


def _refuse_type(item: Node, seen: Seen) -> None:
    item.refuse(
        f"no event of the last {seen.days} days was of the type {item.value!r}",
        nearest(str(item.value), seen.types, LIKE) or "Let a source send it, or correct it.",
        rule="unseen-event-type",
    )


def _check_gates(seen: Seen, places: Places) -> None:
    for key, node in places.each("stages").items():
        gate = part(node, "gate")
        require = part(gate, "require") if gate is not node else node
        for item in require.items() if require is not gate and gate is not node else ():
            name = str(item.value)
            if name != IDENTITY and name.partition(".")[2] not in seen.attributes:
                item.refuse(
                    f"the gate of {key!r} asks for {name}, which no event of the last {seen.days} "
                    "days brought: every move there is held",
                    nearest(name.partition(".")[2], seen.attributes, LIKE)
                    or "Ask for what is known, or let a source map it.",
                    rule="gate-never-met",
                )
