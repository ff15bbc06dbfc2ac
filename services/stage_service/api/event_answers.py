"""What the routes that take lead events, moves and merges answer: what became of each event."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from services.contracts.leads import Id
from services.stage_service.api.shapes import Stage


class ItemError(msgspec.Struct):
    """Why an event of a batch was rejected."""

    code: str
    field: str
    reason: str
    remedy: str
    value: str | None


class Moved(msgspec.Struct, rename={"from_": "from"}):
    """A record that an event led to."""

    transition_id: Id
    kind: Literal["transition", "correction", "retraction"]
    sequence: int
    journey_id: Id
    playbook: str
    key: str
    from_: Stage
    to: Stage
    rule: str | None
    explanation: str
    replaces: list[Id]


class Held(msgspec.Struct):
    """A move that a gate holds, and what is missing for it."""

    journey_id: Id
    to: Stage
    rule: str
    missing: list[str]


class EventResult(msgspec.Struct):
    """What happened to one event; `error` is that of a rejected one."""

    id: str | None
    source: str | None
    status: Literal["applied", "duplicate", "rejected"]
    lead_id: str | None
    transitions: list[Moved]
    held: list[Held] | UnsetType = UNSET
    late: bool | UnsetType = UNSET
    beyond_horizon: bool | UnsetType = UNSET
    claimed_time: str | UnsetType = UNSET
    warning: str | UnsetType | None = UNSET
    error: ItemError | UnsetType | None = UNSET


class EventResults(msgspec.Struct):
    """What happened to each event, in the order in which they were sent."""

    results: list[EventResult]
