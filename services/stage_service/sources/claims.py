"""What an item of a delivery claims about a record of the tool: which fields have which value now. Pure.

Compared with what connectors wrote there, it tells an echo of Baton's own write from news.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from services.stage_service.sources.functions import digest_of, text_of
from services.stage_service.sources.source import EchoOf

CREATED = "*"
"""The name under which it is told, and remembered, that a record is new."""


class Claim(msgspec.Struct, frozen=True):
    """What an item says: `fields` by name, their values hashed. `ours`: the vendor's mark is Baton's."""

    ours: bool
    record: str | None
    fields: dict[str, str]


def is_empty(value: Any) -> bool:
    """Say whether `value` is no value: tools write null and an empty text for the same."""
    return value is None or value == "" or value == []


def value_hash(value: Any) -> str:
    """Give 32 hex digits of what `value` means, whether a tool writes it as number or as text."""
    text = text_of(value)
    if text is not None:
        value = text.strip()
    return digest_of(None if is_empty(value) else value)


def claim_of(rule: EchoOf, scope: Mapping[str, Any]) -> Claim | None:
    """Give what an item claims by the source file's `rule`; None when it claims nothing."""
    ours = rule.ours is not None and rule.ours.evaluate(scope) is True
    record = rule.record.render(scope) if rule.record is not None else None
    fields: dict[str, str] = {}
    if rule.says_from is not None:
        found = rule.says_from.evaluate(scope)
        if isinstance(found, dict):
            told = cast("dict[str, Any]", found).items()
            fields |= {name: value_hash(value) for name, value in told}
    for name, choice in rule.says:
        field = name.render(scope)
        if field:  # a field that was emptied has no value, and says so
            fields[field] = value_hash(choice.value(scope))
    if rule.created is not None and rule.created.evaluate(scope) is True:
        fields[CREATED] = value_hash(True)
    return Claim(ours, record, fields) if ours or (record and fields) else None
