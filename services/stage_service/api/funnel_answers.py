"""What the routes of the funnel answer."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from services.stage_service.api.shapes import AsOf, Stage


class FunnelStage(msgspec.Struct):
    """A stage of the path; `rate` is converted / reached, times are until the next is entered."""

    stage: Stage
    title: str
    reached: int
    skipped: int
    current: int
    converted: int | None
    rate: float | None
    median_seconds: float | None
    p90_seconds: float | None


class FunnelExit(msgspec.Struct):
    """A stage beside the path, and how many are in it."""

    stage: Stage
    title: str
    current: int


class FunnelGroup(msgspec.Struct):
    """The funnel of the journeys with one value of the attribute."""

    value: str | None
    stages: list[FunnelStage]


class Funnel(msgspec.Struct):
    """The funnel; `definition` says what is counted how."""

    playbook: str
    definition: Any
    stages: list[FunnelStage]
    exits: list[FunnelExit]
    groups: list[FunnelGroup] | UnsetType = UNSET
    as_of: AsOf | UnsetType = UNSET


class Durations(msgspec.Struct):
    """Times from reaching one stage to reaching another."""

    playbook: str
    from_stage: Stage
    to_stage: Stage
    count: int
    median_seconds: float | None
    p90_seconds: float | None
    as_of: AsOf | UnsetType = UNSET
