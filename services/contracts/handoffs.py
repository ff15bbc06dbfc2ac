"""What both sides of a handoff must agree on: published events, and the lead events that answer.

A handoff is offered to the person who is responsible from a transition on. They accept it or reject it; a
clock that runs out makes it overdue. The Structs are the published events' JSON, to the letter.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from services.contracts.published import (
    AlertWish,
    JourneyRef,
    LeadSnapshot,
    OfferRef,
    PersonRef,
    Score,
)

HANDOFF_ACCEPTED = "handoff.accepted"
"""The lead event by which a handoff is accepted; the API makes it, and a CRM may send it."""
HANDOFF_REJECTED = "handoff.rejected"
"""The lead event by which a handoff is rejected, with ``data.reason``."""
CLOCK_REMINDED = "baton.clock.reminded"
CLOCK_FIRED = "baton.clock.fired"
CLOCK_ESCALATED = "baton.clock.escalated"
"""A clock's lead events: before its deadline, at it, at each step after it. Only Baton makes them."""

OFFERED = "baton.handoff.offered.v1"
ACCEPTED = "baton.handoff.accepted.v1"
REJECTED = "baton.handoff.rejected.v1"
OVERDUE = "baton.handoff.overdue.v1"
WITHDRAWN = "baton.handoff.withdrawn.v1"
CLOCK_RANG = "baton.clock.rang.v1"

State = Literal["offered", "accepted", "rejected", "withdrawn"]


class HandoffTold(msgspec.Struct, frozen=True):
    """``baton.handoff.offered.v1``, ``.accepted.v1``, ``.rejected.v1``, ``.overdue.v1``, ``.withdrawn.v1``.

    Shows the handoff as it is after the change. `round` counts how often it was offered in this visit of the
    stage. `asked_at` is when the lead first asked for contact. `implied`: the answer was no word but a deed,
    as when the journey moved on. `alerts` are those who have to hear of it beyond the alerts of the
    transition that offered it; `offer` is what they can answer.
    """

    handoff_id: str
    lead: LeadSnapshot
    journey: JourneyRef
    stage: str
    stage_title: str
    role: str
    from_role: str
    owner: PersonRef | None
    giver: PersonRef | None
    round: int
    state: State
    offered_at: datetime
    due_at: datetime | None
    overdue_at: datetime | None
    answered_at: datetime | None
    answered_by: str | None
    implied: bool
    reason: str | None
    asked_at: datetime | None
    occurred_at: datetime
    recorded_at: datetime
    score: Score
    explanation: str
    alerts: list[AlertWish] = []
    offer: OfferRef | None = None


class ClockRang(msgspec.Struct, frozen=True):
    """``baton.clock.rang.v1``: a clock reminded of its deadline, reached it, or climbed a step after it.

    `step` is ``remind``, ``due`` or ``escalate``; `late`: it came due while nobody was there to fire it.
    `handoff_id` is set where it is the clock of a handoff, `offer` where that can still be answered.
    """

    clock_id: str
    lead: LeadSnapshot
    journey: JourneyRef
    stage: str
    stage_title: str
    clock: str
    title: str
    step: Literal["remind", "due", "escalate"]
    role: str
    owner: PersonRef | None
    since: datetime
    deadline: datetime
    late: bool
    handoff_id: str | None
    occurred_at: datetime
    recorded_at: datetime
    score: Score
    explanation: str
    alerts: list[AlertWish] = []
    offer: OfferRef | None = None
