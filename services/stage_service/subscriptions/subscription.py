"""What a subscription is, and what delivering to one means.

A subscription hears the published events that match it, in the order of the log, from its place on. How an
event is handed over is a `Target`'s business: a signed webhook, or a connector that calls a CRM's own API.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Protocol

import msgspec

from services.contracts.events import Message

State = Literal["active", "paused", "failing", "gone"]
Payload = Literal["full", "thin"]

RESPONSE_CHARACTERS_MAX = 1024
"""What is kept of an answer's body."""
TIMEOUT_S_DEFAULT = 15.0
CONCURRENCY_DEFAULT = 8


class Subscription(msgspec.Struct, frozen=True):
    """One system that hears published events.

    `types` are event types, with ``*`` at an end for all that begin so; none: all. `filter` is a CEL
    condition over the event (see `filters`). `ordered`: an event waits for the earlier ones of its lead.
    `headers` and `credentials` are secrets, opened. `contact` is the person or role of the roster who
    hears when it is stopped. `rate_per_s` caps what it is sent.
    """

    id: str
    name: str
    connector: str | None
    url: str | None
    types: tuple[str, ...]
    filter: str | None
    payload: Payload
    ordered: bool
    headers: dict[str, str]
    credentials: dict[str, str]
    config: dict[str, Any]
    contact: str | None
    timeout_s: float
    concurrency: int
    rate_per_s: float | None
    state: State
    version: int


class Secret(msgspec.Struct, frozen=True):
    """A signing secret of a subscription, opened: ``whsec_...`` (v1) or ``whsk_...`` (v1a).

    `expires_at` is set for one that was replaced: it signs beside the new one until then.
    """

    kind: Literal["v1", "v1a"]
    secret: str
    expires_at: datetime | None


class Outcome(msgspec.Struct, frozen=True):
    """What one attempt came to.

    `ok`: the other side has it. `gone`: it wants no more (410). `final`: another attempt would end alike, as
    with a payload it refuses for good; false for whatever time may mend. `down`: the endpoint is in
    trouble, not this event (no connection, no answer, 429, 5xx). `status` is the HTTP status, `reason` says
    in words what went wrong, without secrets; `response` is the beginning of the answer's body.
    """

    ok: bool
    status: int | None = None
    reason: str | None = None
    response: str | None = None
    retry_after_s: float | None = None
    gone: bool = False
    final: bool = False
    down: bool = False
    duration_ms: float = 0.0
    request: str | None = None
    """What was asked, for people: method and address without query, and the body's size."""
    apart: bool = False
    """`retry_after_s` is about this event: one record is locked, and the others can go on."""


class Target(Protocol):
    """Hands events over to one subscription. Made anew when the subscription changes."""

    async def deliver(self, message: Message, attempt: int, now: datetime) -> Outcome:
        """Hand `message` over, the `attempt`th time (from 1). Never raises, but for cancellation."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
