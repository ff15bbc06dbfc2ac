"""What a webhook's body says: the event as a CloudEvent in structured mode, full or thin. Pure.

The members satisfy both standards at once: CloudEvents 1.0 asks for ``specversion``, ``id``, ``source`` and
``type``, Standard Webhooks for ``type``, ``timestamp`` and ``data``. ``position`` is the event's place in the
published log; a test event has none. A thin event names what it is about by ids, and holds no personal data:
who wants more asks for it with a key.
"""

from __future__ import annotations

from typing import Any

import msgspec

from services.contracts.events import SOURCE, Message
from services.stage_service.subscriptions.subscription import Payload

CONTENT_TYPE = "application/cloudevents+json"

_encode = msgspec.json.encode
_ID_MEMBERS = (
    "transition_id", "sequence", "handoff_id", "merge_id", "change_id", "clock_id", "lead_id",
    "survivor", "merged", "round", "state", "step", "from", "to", "replaces", "ended",
)  # fmt: skip
"""What a thin event keeps of its data, where it has it."""


class _Id(msgspec.Struct, frozen=True):
    id: str


class _Journey(msgspec.Struct, frozen=True):
    id: str
    playbook: str
    key: str


class _Told(msgspec.Struct, frozen=True):
    lead: _Id | None = None
    journey: _Journey | None = None


_decode_told = msgspec.json.Decoder(_Told).decode
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def body_of(message: Message, payload: Payload) -> bytes:
    """Give the body by which `message` is posted."""
    data = message.value if payload == "full" else thin_data(message)
    headers = message.headers
    time = headers.get("ce_time")
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": message.id,
        "source": headers.get("ce_source", SOURCE),
        "type": message.type,
        "subject": headers.get("ce_subject", message.key),
        "datacontenttype": "application/json",
    }
    if time is not None:
        event["time"] = event["timestamp"] = time
    if message.position is not None:
        event["position"] = message.position
    if "ce_traceparent" in headers:
        event["traceparent"] = headers["ce_traceparent"]
    event["data"] = msgspec.Raw(data)
    return _encode(event)


def thin_data(message: Message) -> bytes:
    """Give the ids of what `message` tells of, as JSON: lead, journey, the record, its sequence."""
    value = _decode(message.value)
    told = _decode_told(message.value)
    kept: dict[str, Any] = {name: value[name] for name in _ID_MEMBERS if name in value}
    if told.lead is not None:
        kept["lead"] = told.lead
    if told.journey is not None:
        kept["journey"] = told.journey
    return _encode(kept)
