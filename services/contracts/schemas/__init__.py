"""JSON Schemas of what is data and public: published events (generated here), playbook and roster.

``python -m services.contracts.schemas`` writes the generated ones anew; a test compares, and another
refuses a change that would break a reader.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from services.contracts.events import (
    CORRECTED,
    LEAD_MERGED,
    LEAD_UNMERGED,
    OWNER_CHANGED,
    SUBSCRIPTION_STOPPED,
    TRANSITIONED,
    LeadMerged,
    LeadSnapshot,
    LeadUnmerged,
    OwnerChanged,
    StageTransitioned,
    SubscriptionStopped,
)
from services.contracts.handoffs import (
    ACCEPTED,
    CLOCK_RANG,
    OFFERED,
    OVERDUE,
    REJECTED,
    WITHDRAWN,
    ClockRang,
    HandoffTold,
)

HERE = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"


STRUCTS: dict[str, type[msgspec.Struct]] = {
    TRANSITIONED: StageTransitioned,
    CORRECTED: StageTransitioned,
    LEAD_MERGED: LeadMerged,
    LEAD_UNMERGED: LeadUnmerged,
    OWNER_CHANGED: OwnerChanged,
    OFFERED: HandoffTold,
    ACCEPTED: HandoffTold,
    REJECTED: HandoffTold,
    OVERDUE: HandoffTold,
    WITHDRAWN: HandoffTold,
    CLOCK_RANG: ClockRang,
    SUBSCRIPTION_STOPPED: SubscriptionStopped,
}
"""Each published type and what its data is."""


def published_event(type: str) -> dict[str, Any]:
    """Give the JSON Schema of the data of the published event `type`."""
    schemas, definitions = msgspec.json.schema_components(
        [STRUCTS[type]], ref_template="#/$defs/{name}"
    )
    # Already encoded JSON in the Structs, for speed: say what it is.
    if STRUCTS[type] in (StageTransitioned, OwnerChanged):
        told = definitions[STRUCTS[type].__name__]
        told["properties"]["stage"] = {"$ref": "#/$defs/StageGuide"}
    if LeadSnapshot.__name__ in definitions:
        definitions[LeadSnapshot.__name__]["properties"]["attributes"] = {"type": "object"}
    return {
        "$schema": DIALECT,
        "$id": f"https://baton.example/schemas/{type}.json",
        "title": type,
        **schemas[0],
        "$defs": definitions,
    }


def generated() -> dict[str, str]:
    """Give the generated schema files: name to text."""
    return {
        f"{type}.schema.json": json.dumps(published_event(type), indent=2) + "\n"
        for type in STRUCTS
    }
