"""What is sent and what comes back, as frozen dataclasses.

What Baton adds later is in the `data` of each record; what is not there, or is of another type, reads as None
or empty: a newer Baton does not break an older client.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

Status = Literal["applied", "duplicate", "rejected"]
Object = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """A lead event: one fact about a lead.

    `data` names the lead (``email``, ``external_ids``, ``anonymous_id``) and what is known. `time` is when it
    happened (aware; without: when Baton takes it). The `id` tells repeats apart: an event sent again with
    the same `source` and `id` changes nothing.
    """

    type: str
    source: str
    data: Mapping[str, Any]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    time: datetime | None = None
    subject: str | None = None

    def cloud_event(self) -> Object:
        """Give the event as a CloudEvent 1.0 (JSON); raises ValueError for a `time` without an offset."""
        event: Object = {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": self.type,
        }
        if self.time is not None:
            if self.time.tzinfo is None:
                raise ValueError("time has no offset: give an aware datetime, as datetime.now(UTC)")
            event["time"] = self.time.astimezone(UTC).isoformat()
        if self.subject is not None:
            event["subject"] = self.subject
        event["data"] = dict(self.data)
        return event


def _object(value: object) -> Object:
    return cast("Object", value) if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _moment(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def objects(value: object) -> list[Object]:
    """Give the objects in the list `value`; none when it is no list."""
    if not isinstance(value, list):
        return []
    return [cast("Object", v) for v in cast("list[object]", value) if isinstance(v, dict)]


@dataclass(frozen=True)
class Transition:
    """One recorded move of a journey; `sequence` numbers them 1, 2, 3 ... in the journey.

    `data` is the whole record; its fields are in Baton's docs/events.md.
    """

    sequence: int
    playbook: str | None
    key: str | None
    from_: str | None
    to: str | None
    explanation: str | None
    data: Object = field(repr=False)

    @staticmethod
    def of(data: Object) -> Transition:
        """Read a transition of the answer to an event, or of the feed."""
        journey = _object(data.get("journey")) or data
        sequence = data.get("sequence")
        return Transition(
            sequence if isinstance(sequence, int) else 0,
            _text(journey.get("playbook")),
            _text(journey.get("key")),
            _text(data.get("from")),
            _text(data.get("to")),
            _text(data.get("explanation")),
            data,
        )


@dataclass(frozen=True)
class Result:
    """What became of one event that was sent.

    `status` is ``applied``, ``duplicate`` (it was there already) or ``rejected``: then `error` has
    ``code``, ``field``, ``reason`` and ``remedy``, and sending it again unchanged is of no use.
    """

    id: str
    source: str
    status: Status
    lead_id: str | None
    transitions: tuple[Transition, ...]
    error: Object | None
    data: Object = field(repr=False)

    @property
    def is_kept(self) -> bool:
        """Tell whether Baton has the event."""
        return self.status != "rejected"

    @staticmethod
    def of(data: Object) -> Result:
        """Read one of the results of ``POST /v1/events``."""
        status = data.get("status")
        return Result(
            str(data.get("id", "")),
            str(data.get("source", "")),
            status if status in ("applied", "duplicate") else "rejected",
            _text(data.get("lead_id")),
            tuple(Transition.of(t) for t in objects(data.get("transitions"))),
            _object(data.get("error")) or None,
            data,
        )


@dataclass(frozen=True)
class FeedItem:
    """One published event, with its place in its feed.

    Keep `position` once you have done it: ``after`` it nothing is missed or comes twice. `data` is the whole
    event; `replaces` names the records that no longer hold.
    """

    position: int
    type: str
    id: str | None
    lead_id: str | None
    email: str | None
    playbook: str | None
    key: str | None
    from_: str | None
    to: str | None
    replaces: tuple[str, ...]
    occurred_at: datetime | None
    data: Object = field(repr=False)

    @property
    def transition(self) -> Transition:
        """Give the event as a transition."""
        return Transition.of(self.data)

    @staticmethod
    def of(data: Object) -> FeedItem:
        """Read an item of a feed; raises ValueError when it has no position."""
        position = data.get("position")
        if not isinstance(position, int):
            raise ValueError("an item without a position")
        lead, journey = _object(data.get("lead")), _object(data.get("journey"))
        replaced = data.get("replaces")
        replaces = cast("list[object]", replaced) if isinstance(replaced, list) else []
        return FeedItem(
            position,
            str(data.get("type", "")),
            _text(data.get("message_id")),
            _text(lead.get("id")) or _text(data.get("lead_id")),
            _text(lead.get("email")),
            _text(journey.get("playbook")),
            _text(journey.get("key")),
            _text(data.get("from")),
            _text(data.get("to")),
            tuple(str(r) for r in replaces),
            _moment(data.get("occurred_at")),
            data,
        )


@dataclass(frozen=True)
class Lead:
    """A lead as Baton knows it; `journeys` have ``playbook``, ``key``, ``stage``, ``owners`` and more."""

    id: str
    email: str | None
    external_ids: Object
    attributes: Object
    score: Object
    journeys: tuple[Object, ...]
    data: Object = field(repr=False)

    def stage(self, playbook: str = "sales", key: str = "main") -> str | None:
        """Give the stage in which the journey is; None when there is no such journey."""
        for journey in self.journeys:
            if journey.get("playbook") == playbook and journey.get("key") == key:
                return _text(journey.get("stage"))
        return None

    @staticmethod
    def of(data: Object) -> Lead:
        """Read a lead; raises ValueError when it has no id."""
        id = data.get("id")
        if not isinstance(id, str):
            raise ValueError("a lead without an id")
        return Lead(
            id,
            _text(data.get("email")),
            _object(data.get("external_ids")),
            _object(data.get("attributes")),
            _object(data.get("score")),
            tuple(objects(data.get("journeys"))),
            data,
        )


@dataclass(frozen=True)
class WebhookEvent:
    """A verified delivery: one published event.

    `id` is the event's: the same again when a delivery is repeated, so drop repeats by it. `data` is the
    event's data; of a thin delivery only what names it.
    """

    id: str
    type: str
    time: datetime | None
    subject: str | None
    data: Object
    sent_at: datetime
    """When this attempt was sent."""
