"""What one lead event tells of a lead: facts, names, identities. Pure, and within bounds.

What is too long or too much stays in the event alone: a lead is read at every event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.contracts.events import ENVELOPE_MEMBERS, LeadEvent

ATTRIBUTES_MAX = 500
ATTRIBUTE_CHARACTERS_MAX = 8192
NAME_CHARACTERS_MAX = 128
REASON_CHARACTERS_MAX = 500
_encode = msgspec.json.Encoder().encode
RESERVED = ENVELOPE_MEMBERS | {"reason"}
"""Members of ``data`` that are no attributes."""


def display_name(attributes: Mapping[str, Any]) -> str | None:
    """Give the person's name from ``name``, or ``first_name`` and ``last_name``."""
    name = attributes.get("name")
    if isinstance(name, str) and name:
        return name
    parts = [attributes.get("first_name"), attributes.get("last_name")]
    return " ".join(p for p in parts if isinstance(p, str) and p) or None


def company_name(attributes: Mapping[str, Any]) -> str | None:
    """Give the company's name from ``company`` or ``company_name``."""
    for key in ("company", "company_name"):
        value = attributes.get(key)
        if isinstance(value, str) and value:
            return value
    return None


def facts_in(data: dict[str, Any]) -> dict[str, Any]:
    """Give what `data` tells about the lead; null says nothing, and does not erase.

    What is too long for an attribute stays in the event alone: a lead is read at every event.
    """
    return {
        k: v
        for k, v in data.items()
        if v is not None and k not in RESERVED and len(k) <= NAME_CHARACTERS_MAX and _fits(v)
    }


def _fits(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= ATTRIBUTE_CHARACTERS_MAX
    if isinstance(value, dict | list):
        return len(_encode(value)) <= ATTRIBUTE_CHARACTERS_MAX
    return True


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Give `old` facts with the `new` ones over them, at most `ATTRIBUTES_MAX`."""
    both = {**old, **new}
    if len(both) > ATTRIBUTES_MAX:
        # Attributes known first stay: a tool that invents names cannot push facts out.
        # By name among the new ones: what comes back from jsonb has another order.
        names = [*old, *sorted(new.keys() - old.keys())][:ATTRIBUTES_MAX]
        both = {name: both[name] for name in names}
    return both


def named(
    email: str | None, external_ids: dict[str, str], event: LeadEvent
) -> tuple[str | None, dict[str, str]]:
    """Give e-mail and external ids after `event`; the same objects when it tells nothing new."""
    told: set[str] = set()
    for kind, value in event.identities:
        if kind == "email":
            email = value
        elif kind.startswith("external:"):
            system = kind[9:]
            if system in told:  # of several ids of one system the first is the newest
                continue
            told.add(system)
            if external_ids.get(system) != value:
                external_ids = {**external_ids, system: value}
    return email, external_ids


def reason_in(event: LeadEvent) -> str | None:
    """Give the reason that `event` tells."""
    reason = event.data.get("reason")
    return reason[:REASON_CHARACTERS_MAX] if isinstance(reason, str) and reason.strip() else None
