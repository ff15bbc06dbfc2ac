"""What the routes of the quarantine answer."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from services.contracts.leads import Id, Moment
from services.stage_service.api.event_answers import EventResult


class Quarantined(msgspec.Struct):
    """A delivery that could not be mapped."""

    id: Id
    source: str
    received_at: Moment
    last_received_at: Moment
    times: int
    content_type: str
    bytes: int
    reasons: list[dict[str, Any]]
    status: Literal["open", "replayed", "discarded"]
    closed_at: Moment | None
    closed_by: str | None


class WholeQuarantined(Quarantined):
    """A delivery whole: `body` is text, `body_base64` what is none."""

    headers: dict[str, str]
    query: Any
    body: str | UnsetType = UNSET
    body_base64: str | UnsetType = UNSET


class Mapped(msgspec.Struct):
    """What a delivery is by its source's file as it is now."""

    events: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]
    ignored: int


class ReplayedDelivery(msgspec.Struct):
    """A replayed delivery."""

    id: Id
    source: str
    dry_run: bool
    status: str
    mapped: Mapped
    results: list[EventResult]


class ReplayCounts(msgspec.Struct):
    """How much was replayed."""

    deliveries: int
    events: int
    still_quarantined: int


class ReplayedAll(msgspec.Struct):
    """The replayed deliveries of a source."""

    dry_run: bool
    counts: ReplayCounts
    items: list[ReplayedDelivery]


class Discarded(msgspec.Struct):
    """The delivery is closed."""

    id: Id
    status: Literal["discarded"]
