"""What the routes of handoffs answer: one, the queue, and how they went in numbers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from services.contracts.leads import Id, Moment
from services.contracts.published import JourneyRef
from services.stage_service.api.shapes import Person, Role, Stage


class HandoffLead(msgspec.Struct):
    """The lead of a handoff."""

    id: Id
    name: str | None
    company: str | None
    email: str | None


class NamedPerson(msgspec.Struct):
    """A person, of the roster or of before."""

    id: Person
    name: str | None


class Handoff(msgspec.Struct):
    """A lead handed to another role, and what became of it."""

    id: Id
    state: Literal["offered", "accepted", "rejected", "withdrawn"]
    lead: HandoffLead
    journey: JourneyRef
    stage: Stage
    stage_title: str
    role: Role
    role_title: str
    from_role: str
    from_role_title: str
    round: int
    person: NamedPerson | None
    giver: NamedPerson | None
    transition_id: str | None
    offered_at: Moment
    recorded_at: Moment
    asked_at: Moment | None
    due_at: Moment | None
    overdue: bool
    overdue_at: Moment | None
    answered_at: Moment | None
    answered_by: str | None
    implied: bool
    reason: str | None
    updated_at: Moment
    age_seconds: float
    reasons: list[str]


class Met(msgspec.Struct):
    """Deadlines met and missed."""

    met: int
    missed: int


class Times(msgspec.Struct):
    """How long it took."""

    count: int
    median_seconds: float | None
    p90_seconds: float | None


class TimesToAccept(msgspec.Struct):
    """By a word, and by a deed."""

    explicit: Times
    implied: Times


class ReasonCount(msgspec.Struct):
    """How often a reason was given."""

    reason: str | None
    count: int


class ClockCount(msgspec.Struct):
    """What became of the clocks of one kind."""

    key: str
    title: str
    kind: str
    met: int
    missed: int
    running: int


class HandoffCounts(msgspec.Struct):
    """What became of the handoffs counted."""

    offered: int
    accepted: int
    rejected: int
    withdrawn: int
    waiting: int
    overdue: int
    deadlines: Met
    time_to_accept: TimesToAccept
    speed_to_lead: Times
    reasons: list[ReasonCount]
    clocks: list[ClockCount]


class HandoffGroup(HandoffCounts):
    """The handoffs of one role, person or stage."""

    value: str | None
    title: str


class Load(msgspec.Struct):
    """What somebody holds now."""

    id: Person
    name: str
    roles: list[str]
    open_journeys: int
    capacity: int | None
    waiting: int
    overdue: int


class HandoffNumbers(msgspec.Struct):
    """Handoffs in numbers; `definition` says what is counted how."""

    playbook: str
    definition: Any
    by: str
    total: HandoffCounts
    groups: list[HandoffGroup]
    load: list[Load]
