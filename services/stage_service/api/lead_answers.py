"""What the routes of leads and their companies answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from services.contracts.leads import HeldMove, Id, LeadNow, Moment, WholeLead
from services.contracts.published import JourneyRef, PersonRef, Score
from services.stage_service.api.shapes import AsOf, Role, Stage
from services.stage_service.next_moves import NextMove
from services.stage_service.why import RuleWhy


class LeadThen(WholeLead, frozen=True, kw_only=True):
    """A lead as it is, or with `as_of` as Baton knew it at a past moment."""

    as_of: AsOf | UnsetType = UNSET


class JourneyExplained(msgspec.Struct):
    """Why a journey is where it is: what would move it, and each rule of its stage clause by clause."""

    journey: JourneyRef
    stage: Stage
    stage_title: str
    entered_at: Moment
    playbook_version: int
    score: Score | None
    held: list[HeldMove]
    would_move: list[NextMove]
    rules: list[RuleWhy]


class LeadExplained(msgspec.Struct):
    """Why each journey of a lead is where it is at the moment `at`, for which scores are decayed."""

    lead_id: str
    at: Moment
    journeys: list[JourneyExplained]
    as_of: AsOf | UnsetType = UNSET


class TimelineItem(msgspec.Struct):
    """One thing that happened to a lead. `kind` says which other members it has; see docs/api.md."""

    kind: Literal["event", "transition", "correction", "alert", "handoff", "clock", "merge"]
    occurred_at: Moment
    recorded_at: Moment
    type: str | UnsetType = UNSET
    source: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    transition_id: str | UnsetType = UNSET
    explanation: str | UnsetType = UNSET
    beyond_horizon: bool | UnsetType = UNSET
    claimed_time: str | UnsetType | None = UNSET
    handoff_id: str | UnsetType | None = UNSET
    action: str | UnsetType = UNSET


class AccountNow(msgspec.Struct):
    """A company: how many leads, in which stages (by playbook and stage)."""

    domain: Annotated[str, msgspec.Meta(examples=["example.com"])]
    company: str | None
    leads: int
    last_seen_at: Moment
    stages: dict[str, dict[str, int]]


class WholeAccount(AccountNow):
    """A company with a page of its leads."""

    items: list[LeadNow]
    next_cursor: str | None


class Assigned(msgspec.Struct):
    """To whom a journey went."""

    event_id: str
    lead_id: str | None
    playbook: str
    key: str
    role: Role
    owner: PersonRef | None
    previous_owner: PersonRef | None
    why: str | None


class RoutingDecision(msgspec.Struct):
    """The last decision of a journey and role: `decision` names the person, why, and why not each other."""

    playbook: str
    key: str
    role: Role
    decision: dict[str, Any]
    transition_id: Id
    recorded_at: Moment


class MergedInto(msgspec.Struct):
    """The lead is part of another; ``location`` leads there."""

    merged_into: Id
