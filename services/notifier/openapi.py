"""The OpenAPI document of the notifier: what each operation answers, by its id.

Answers are written without a model; these shapes describe them, and tests hold the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI
from msgspec import UNSET, UnsetType

from services.contracts.leads import Id, Moment
from services.contracts.openapi import Answer, complete

TAGS = {
    "alerts": "Who was told of what, and how it went.",
    "attention": "What people may set aside.",
    "channels": "How people are reached.",
    "dead letters": "What could not be delivered or read.",
}


class Addressee(msgspec.Struct):
    """A person of the roster."""

    id: str
    name: str


class DeliveryShown(msgspec.Struct):
    """One attempt on one channel."""

    channel: str
    attempt: int
    status: str
    due_at: Moment
    finished_at: Moment | None
    reason: str | None
    latency_ms: float | None
    why: str | None
    digest_id: str | None
    ambiguous: bool


class AlertShown(msgspec.Struct):
    """A message to a person, with its deliveries."""

    id: Id
    lead_id: Id
    transition_id: Id
    role: Annotated[str, msgspec.Meta(examples=["ae"])]
    person: Addressee | None
    addressee_id: str | None
    status: Literal["pending", "delivered", "acknowledged", "suppressed", "dead_lettered"]
    subject: str
    body: str
    stage: str
    company: str | None
    created_at: Moment
    acknowledged_at: Moment | None
    acknowledged_by: str | None
    acknowledged_why: str | None
    handoff_id: str | None
    kind: Literal["transition", "handoff", "clock", "escalation"]
    journey_id: str | None
    urgent: bool
    snoozed_until: Moment | None
    escalated_from: str | None
    why: str | None
    muted: bool
    deliveries: list[DeliveryShown]


class MuteShown(msgspec.Struct):
    """A lead that a person is not told of, until then (null: for ever)."""

    person: str
    lead_id: Id
    until: Moment | None
    created_at: Moment
    created_by: str


class DeadLetter(msgspec.Struct):
    """A delivery, or a message, that ended undelivered."""

    id: int
    kind: Literal["message", "delivery"]
    reason: str | None
    created_at: Moment
    message_id: str | UnsetType | None = UNSET
    topic: str | UnsetType | None = UNSET
    alert_id: str | UnsetType = UNSET
    lead_id: str | UnsetType = UNSET
    channel: str | UnsetType = UNSET
    attempt: int | UnsetType = UNSET


class Retried(msgspec.Struct):
    """An unreadable message that was read after all."""

    id: int
    retried_at: Moment


class Digest(msgspec.Struct):
    """A message that told several alerts."""

    id: Id
    addressee_id: str | None
    channel: str
    subject: str
    body: str
    why: str | None
    created_at: Moment
    alerts: list[Id]


class ChannelShown(msgspec.Struct):
    """A channel that fails, or rests."""

    channel: str
    failures: int
    reason: str | None
    rests_until: Moment | None
    changed_at: Moment


class Trial(msgspec.Struct):
    """How a test message went on one channel."""

    channel: str
    result: str
    reason: str | None
    ambiguous: bool
    latency_ms: int


_PROBLEM: dict[str, Any] = {
    "broken_templates": {"type": "array", "items": {"type": "object"}},
}
ANSWERS: dict[str, Answer] = {
    "list_alerts": Answer(AlertShown, many=True),
    "get_alert": Answer(AlertShown),
    "acknowledge": Answer(AlertShown),
    "retry": Answer(AlertShown, problems=(409,)),
    "snooze": Answer(AlertShown, problems=(409,), sent={"until": "2026-11-25T09:00:00+01:00"}),
    "list_dead_letters": Answer(DeadLetter, many=True),
    "retry_message": Answer(Retried, problems=(409,)),
    "list_mutes": Answer(MuteShown, many=True),
    "mute": Answer(
        MuteShown, status=201, problems=(404,),
        sent={"person": "jonas", "lead_id": "01a20b83-54a5-72df-8ba5-f958346b324f"},
    ),
    "unmute": Answer(status=204),
    "get_digest": Answer(Digest),
    "list_channels": Answer(ChannelShown, many=True, more=_PROBLEM),
    "try_channels": Answer(Trial, many=True, problems=(404,), sent={"person": "jonas"}),
}  # fmt: skip
_TAG = {
    "snooze": "attention", "list_mutes": "attention", "mute": "attention", "unmute": "attention",
    "list_channels": "channels", "try_channels": "channels",
    "list_dead_letters": "dead letters", "retry_message": "dead letters",
}  # fmt: skip


def describe(app: FastAPI) -> None:
    """Have `app` give the whole document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = generate()
        for item in document["paths"].values():
            for operation in item.values():
                operation.setdefault("tags", [_TAG.get(operation["operationId"], "alerts")])
        return complete(app, document, ANSWERS, tags=TAGS)

    app.openapi = openapi
