"""A handoff as the fold sees it: offered by a move, answered by an event, missed by a clock. Pure.

A journey has at most one open offer: the newest. Nothing here knows who the people are; the lane adds the
owner as a fact (docs/decisions/0021).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from services.contracts.cloudevents import parse_time
from services.contracts.events import ASSIGNED_BY_HAND, SOURCE, LeadEvent
from services.contracts.handoffs import (
    CLOCK_ESCALATED,
    CLOCK_FIRED,
    CLOCK_REMINDED,
    HANDOFF_ACCEPTED,
    HANDOFF_REJECTED,
)
from services.stage_service.playbook import Playbook, Stage

ANSWERS = frozenset((HANDOFF_ACCEPTED, HANDOFF_REJECTED))
CLOCK_EVENTS = frozenset((CLOCK_REMINDED, CLOCK_FIRED, CLOCK_ESCALATED))
NAME_CHARACTERS_MAX = 128
WAITING_KINDS = ("open", "won")
"""Stages whose role has something to do, and so something to accept."""


class Offer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A handoff of a journey: to `role` in `stage`, by the event `(source, id)`.

    `round` counts how often it was offered in this visit; `rejected_by` who said no meanwhile.
    `state` is ``offered``, ``accepted``, ``rejected`` or ``withdrawn``; `implied`: a deed, not a word.
    """

    role: str
    from_role: str
    stage: str
    round: int
    offered_at: datetime
    source: str
    id: str
    state: str = "offered"
    rejected_by: list[str] = []
    overdue_at: datetime | None = None
    answered_at: datetime | None = None
    answered_by: str | None = None
    implied: bool = False
    reason: str | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether it still waits for an answer."""
        return self.state == "offered"

    @property
    def name(self) -> str:
        """Give what tells it from every other offer of its journey: the same in every re-fold."""
        return f"{self.source}\n{self.id}\n{self.stage}\n{self.role}\n{self.round}"


class Handed(msgspec.Struct, frozen=True, gc=False):
    """What an event did to an offer of a journey: the offer as it is after it."""

    journey: str
    playbook: str
    offer: Offer
    event: LeadEvent
    asked_at: datetime | None


class Ring(msgspec.Struct, frozen=True, gc=False):
    """A clock's event that met what it was about."""

    journey: str
    event: LeadEvent
    offer: Offer | None


def offered(playbook: Playbook, came_from: Stage, to: Stage, event: LeadEvent) -> Offer | None:
    """Give the offer that a move makes; None when the same role goes on, or need not answer."""
    if not is_offered(playbook, came_from, to):
        return None
    role, giver = to.responsible[0], came_from.responsible[0]
    return Offer(role, giver, to.key, 1, event.time, event.source, event.id)


def is_offered(playbook: Playbook, came_from: Stage, to: Stage) -> bool:
    """Tell whether a move hands the journey to another role that has to answer."""
    role = to.responsible[0]
    return (
        role != came_from.responsible[0] and role in playbook.handoffs and to.kind in WAITING_KINDS
    )


def left(offer: Offer, came_from: Stage, to: Stage, event: LeadEvent) -> Offer:
    """Close an open offer whose stage is left: going forward is a yes."""
    onward = to.path_index is not None and (
        came_from.path_index is None or to.path_index > came_from.path_index
    )
    return msgspec.structs.replace(
        offer, state="accepted" if onward else "withdrawn", implied=True, answered_at=event.time,
        answered_by=_name(event.data.get("actor")),
    )  # fmt: skip


def withdrawn(offer: Offer, event: LeadEvent, reason: str) -> Offer:
    """Close an open offer that nobody can answer any more."""
    return msgspec.structs.replace(
        offer, state="withdrawn", implied=True, answered_at=event.time, reason=reason
    )


def answered(offer: Offer | None, playbook: Playbook, event: LeadEvent) -> Offer | None:
    """Give `offer` as `event` answers it; None when it does not."""
    if offer is None or not offer.is_open:
        return None
    if event.type in ANSWERS:
        if not _is_meant(offer, event.data):
            return None
        state = "accepted" if event.type == HANDOFF_ACCEPTED else "rejected"
        person = _name(event.data.get("person"))
        rejected_by = offer.rejected_by
        if state == "rejected" and person is not None and person not in rejected_by:
            rejected_by = [*rejected_by, person]
        return msgspec.structs.replace(
            offer, state=state, answered_at=event.time, rejected_by=rejected_by,
            answered_by=_name(event.data.get("actor")) or person, reason=_text(event.data.get("reason")),
        )  # fmt: skip
    plan = playbook.handoffs.get(offer.role)
    if plan is not None and event.type in plan.accepted_by:
        return msgspec.structs.replace(
            offer, state="accepted", answered_at=event.time, implied=True,
            answered_by=_name(event.data.get("actor")),
        )  # fmt: skip
    return None


def again(offer: Offer, event: LeadEvent) -> Offer:
    """Offer it once more, to somebody else of the same role."""
    return Offer(
        offer.role, offer.from_role, offer.stage, offer.round + 1, event.time, event.source,
        event.id, rejected_by=offer.rejected_by,
    )  # fmt: skip


def assigned(
    offer: Offer | None, playbook: Playbook, stage: Stage | None, event: LeadEvent
) -> list[Offer]:
    """Give what an assignment by hand does: the open offer withdrawn, and one to the new owner."""
    role = event.data.get("role")
    if stage is None or role != stage.responsible[0] or role not in playbook.handoffs:
        return []
    if stage.kind not in WAITING_KINDS:
        return []
    if offer is None or offer.role != role or playbook.named(offer.stage) != stage.key:
        return [Offer(role, role, stage.key, 1, event.time, event.source, event.id)]
    changes: list[Offer] = []
    if offer.is_open:
        changes.append(msgspec.structs.replace(
            offer, state="withdrawn", implied=True, answered_at=event.time,
            answered_by=_name(event.data.get("actor")), reason=_text(event.data.get("reason")),
        ))  # fmt: skip
    return [*changes, again(offer, event)]


def is_clock(event: LeadEvent) -> bool:
    """Tell whether `event` is one that a clock of ours made."""
    return event.type in CLOCK_EVENTS and event.source == SOURCE


def is_assignment(event: LeadEvent) -> bool:
    """Tell whether `event` gives a journey to somebody else by hand."""
    return event.type == ASSIGNED_BY_HAND and event.source == SOURCE


def stands(
    event: LeadEvent,
    said: str,
    offer: Offer | None,
    stage: str,
    entered_at: datetime,
    active_at: datetime,
) -> bool:
    """Tell whether what a clock's `event` is about still stands in the journey at that moment.

    `said` is the stage that the event names, as it is called now; `active_at` when the lead last did
    anything.
    """
    data = event.data
    since = _moment(data.get("since"))
    match data.get("kind"):
        case "handoff":
            return (
                offer is not None
                and offer.is_open
                and since == offer.offered_at
                and data.get("round") == offer.round
            )
        case "stage":
            return stage == said and since == entered_at
        case "activity":
            return stage == said and since == max(entered_at, active_at)
        case _:
            return False


def overdue(offer: Offer, event: LeadEvent) -> Offer:
    """Mark an open offer as overdue; the first time counts."""
    return msgspec.structs.replace(offer, overdue_at=offer.overdue_at or event.time)


def _is_meant(offer: Offer, data: dict[str, Any]) -> bool:
    """Tell whether an answer names this offer, or none: a CRM knows the lead alone."""
    role, at, round = data.get("role"), data.get("offered_at"), data.get("round")
    return (
        (role is None or role == offer.role)
        and (at is None or _moment(at) == offer.offered_at)
        and (round is None or round == offer.round)
    )


def _moment(value: Any) -> datetime | None:
    return parse_time(value) if isinstance(value, str) else None


def _name(value: Any) -> str | None:
    return value[:NAME_CHARACTERS_MAX] if isinstance(value, str) and value.strip() else None


def _text(value: Any) -> str | None:
    return value.strip()[:500] or None if isinstance(value, str) else None
