"""A webhook of a subscription as its receiver reads it: body and headers. The sender writes them.

The body is a CloudEvent in structured mode, and has what Standard Webhooks asks for besides.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from services.contracts.leads import Moment
from services.contracts.published import JourneyRef

WEBHOOK_EVENT = "baton.webhook.event"
"""Name of the body's schema."""
CONTENT_TYPE = "application/cloudevents+json"
HEADERS = {
    "webhook-id": "the event's id, the same in every retry, resend and replay: drop repeats by it",
    "webhook-timestamp": "when it was sent, in seconds since 1970",
    "webhook-signature": "signatures, parted by a space: v1,... (HMAC-SHA256) or v1a,... (ed25519)",
}


class LeadId(msgspec.Struct, frozen=True):
    """Which lead."""

    id: str


class ThinData(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """What a thin event has of its data: the ids of what it tells of, and no personal data."""

    lead: LeadId | UnsetType = UNSET
    journey: JourneyRef | UnsetType = UNSET
    transition_id: str | UnsetType = UNSET
    sequence: int | UnsetType = UNSET
    handoff_id: str | UnsetType | None = UNSET
    merge_id: str | UnsetType = UNSET
    change_id: str | UnsetType = UNSET
    clock_id: str | UnsetType = UNSET
    lead_id: str | UnsetType = UNSET
    survivor: str | UnsetType = UNSET
    merged: str | UnsetType = UNSET
    round: int | UnsetType = UNSET
    state: str | UnsetType = UNSET
    step: str | UnsetType = UNSET
    from_: str | UnsetType = UNSET
    to: str | UnsetType = UNSET
    replaces: list[str] | UnsetType = UNSET
    ended: bool | UnsetType = UNSET


class WebhookEvent(msgspec.Struct, frozen=True):
    """The body of a webhook: `data` is the published event's, or, of a thin subscription, its ids.

    `position` is its place in the published log; a test event has none.
    """

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    subject: str
    datacontenttype: Literal["application/json"]
    data: dict[str, Any]
    time: Moment | UnsetType = UNSET
    timestamp: Moment | UnsetType = UNSET
    position: int | UnsetType = UNSET
    traceparent: str | UnsetType = UNSET
