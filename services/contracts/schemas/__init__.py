"""JSON Schemas of what is data and public: published events (generated here), playbook and roster.

``python -m services.contracts.schemas`` writes the generated ones anew; a test compares, and another
refuses a change that would break a reader.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from services.contracts.events import (
    CORRECTED,
    LEAD_MERGED,
    LEAD_SNAPSHOT,
    LEAD_UNMERGED,
    OWNER_CHANGED,
    SUBSCRIPTION_STOPPED,
    TRANSITIONED,
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
from services.contracts.leads import WholeLead
from services.contracts.published import (
    LeadMerged,
    LeadSnapshot,
    LeadUnmerged,
    OwnerChanged,
    StageTransitioned,
    SubscriptionStopped,
)
from services.contracts.simulations import SIMULATION, Simulated
from services.contracts.verification import Verification
from services.contracts.webhooks import WEBHOOK_EVENT, WebhookEvent

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
    LEAD_SNAPSHOT: WholeLead,
    SUBSCRIPTION_STOPPED: SubscriptionStopped,
}
"""Each published type and what its data is."""
REPORTS: dict[str, type[msgspec.Struct]] = {"baton.verification": Verification}
"""What commands write as JSON, by the name of its schema."""
OTHERS: dict[str, type[msgspec.Struct]] = {
    WEBHOOK_EVENT: WebhookEvent,
    SIMULATION: Simulated,
}
"""What else is public JSON made by Baton, by the name of its schema."""


def components(
    structs: Sequence[type[msgspec.Struct]], ref_template: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Give the JSON Schemas of published `structs`, and of what they are made of by name."""
    schemas, definitions = msgspec.json.schema_components(structs, ref_template=ref_template)
    # Already encoded JSON in the Structs, for speed: say what it is.
    for struct in (StageTransitioned, OwnerChanged):
        if struct.__name__ in definitions:
            told = definitions[struct.__name__]["properties"]
            told["stage"] = {"$ref": ref_template.format(name="StageGuide")}
    if LeadSnapshot.__name__ in definitions:
        definitions[LeadSnapshot.__name__]["properties"]["attributes"] = {"type": "object"}
    return list(schemas), definitions


def published_event(type: str) -> dict[str, Any]:
    """Give the JSON Schema of the data of the published event `type`."""
    struct = {**STRUCTS, **OTHERS, **REPORTS}[type]
    schemas, definitions = components([struct], "#/$defs/{name}")
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
        for type in (*STRUCTS, *OTHERS, *REPORTS)
    }
