"""What published messages say, as far as alerts need it: transitions, changes of owner, handoffs, clocks.

Whatever the type, it is read as one `Transition`: a message that moved nothing stays where it is. Unknown
fields are ignored, unknown types tell nothing, and what cannot be read says which field is wrong.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from services.contracts.events import CORRECTED, OWNER_CHANGED, TRANSITIONED, Message
from services.contracts.handoffs import ACCEPTED, CLOCK_RANG, OFFERED, OVERDUE, REJECTED, WITHDRAWN
from services.contracts.published import AlertWish, PersonRef, Touch
from services.notifier.errors import UnreadableError
from services.notifier.harmless import one_line

WISHES_MAX = 50
REASONS_MAX = 50

Kind = Literal["transition", "handoff", "clock"]
Step = Literal[
    "offered", "overdue", "accepted", "rejected", "withdrawn", "remind", "due", "escalate"
]

_ROLE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_STEPS: dict[str, Step] = {
    OFFERED: "offered", OVERDUE: "overdue", ACCEPTED: "accepted", REJECTED: "rejected",
    WITHDRAWN: "withdrawn",
}  # fmt: skip


class Points(msgspec.Struct, frozen=True):
    """The score as an alert shows it."""

    fit: int = 0
    intent: int = 0
    total: int = 0


class Guide(msgspec.Struct, frozen=True):
    """What the playbook says about the stage entered."""

    key: str = ""
    title: str = ""
    focus: str = ""
    goal: str = ""
    guidance: list[str] = []
    next_steps: list[str] = []


class Lead(msgspec.Struct, frozen=True):
    """The lead as the event tells it."""

    id: UUID
    email: str | None = None
    name: str | None = None
    company: str | None = None
    touches: list[Touch] = []


class Holder(msgspec.Struct, frozen=True):
    """The role that now holds the journey."""

    role: str


class Journey(msgspec.Struct, frozen=True):
    """The way on which the lead is: its alerts are one thread."""

    id: str


class Offer(msgspec.Struct, frozen=True):
    """The handoff that somebody can answer, until when, and suggested reasons of a rejection."""

    handoff_id: UUID
    role: str
    due_at: datetime | None = None
    reasons: list[str] = []


class Wait(msgspec.Struct, frozen=True):
    """What is waited for, of a handoff or a clock: by whom, until when, and what happened to it."""

    step: Step
    title: str
    owner: PersonRef | None = None
    giver: PersonRef | None = None
    since: datetime | None = None
    deadline: datetime | None = None
    late: bool = False
    """It came due while nobody was there to tell."""
    handoff_id: UUID | None = None
    answered_by: str | None = None
    implied: bool = False
    reason: str | None = None


class Transition(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """A published transition, as far as alerts need it."""

    transition_id: UUID
    lead: Lead
    from_: str
    to: str
    recorded_at: datetime
    alerts: list[AlertWish]
    handoff: bool = False
    responsible: Holder | None = None
    explanation: str = ""
    score: Points = Points()
    stage: Guide = Guide()
    journey: Journey | None = None
    offer: Offer | None = None
    new_owner: str | None = None
    """Of a change of owner: who takes over. Others who hear of it do not."""
    kind: Kind = "transition"
    wait: Wait | None = None

    def handoff_of(self, wish: AlertWish) -> UUID | None:
        """Give the handoff whose answer settles the alert of `wish`; None: it only informs."""
        if self.wait is not None:
            settled = self.wait.step in ("accepted", "rejected", "withdrawn")
            return None if settled else self.wait.handoff_id
        if self.offer is None or wish.role != self.offer.role:
            return None
        is_theirs = wish.person is None or self.new_owner in (None, wish.person.id)
        return self.offer.handoff_id if is_theirs else None

    def offer_to(self, wish: AlertWish) -> Offer | None:
        """Give the handoff that the person of `wish` can answer; None: they cannot."""
        if self.offer is None or wish.person is None or wish.role != self.offer.role:
            return None
        return self.offer if self.new_owner in (None, wish.person.id) else None


class OwnerChange(msgspec.Struct, frozen=True):
    """A published change of owner, as far as alerts need it."""

    change_id: UUID
    lead: Lead
    role: str
    recorded_at: datetime
    alerts: list[AlertWish]
    journey: Journey | None = None
    owner: PersonRef | None = None
    why: str = ""
    reason: str = ""
    actor: str = ""
    score: Points = Points()
    stage: Guide = Guide()
    offer: Offer | None = None


class HandoffMessage(msgspec.Struct, frozen=True):
    """A published change of a handoff, as far as alerts need it."""

    handoff_id: UUID
    lead: Lead
    stage: str
    role: str
    recorded_at: datetime
    stage_title: str = ""
    journey: Journey | None = None
    owner: PersonRef | None = None
    giver: PersonRef | None = None
    offered_at: datetime | None = None
    due_at: datetime | None = None
    answered_by: str | None = None
    implied: bool = False
    reason: str | None = None
    score: Points = Points()
    explanation: str = ""
    alerts: list[AlertWish] = []
    offer: Offer | None = None


class ClockMessage(msgspec.Struct, frozen=True):
    """A published ring of a clock, as far as alerts need it."""

    lead: Lead
    stage: str
    title: str
    step: Literal["remind", "due", "escalate"]
    role: str
    recorded_at: datetime
    deadline: datetime
    stage_title: str = ""
    journey: Journey | None = None
    owner: PersonRef | None = None
    since: datetime | None = None
    late: bool = False
    handoff_id: UUID | None = None
    score: Points = Points()
    explanation: str = ""
    alerts: list[AlertWish] = []
    offer: Offer | None = None


class HandoffNews(msgspec.Struct, frozen=True):
    """What a message says of a handoff's answer. `state` None: nothing, it is only about that handoff."""

    id: UUID
    told_at: datetime
    state: Literal["offered", "accepted", "rejected", "withdrawn"] | None = None
    due_at: datetime | None = None
    reasons: tuple[str, ...] = ()
    by: str | None = None
    implied: bool = False
    """It was answered by no word but a deed: the journey went on."""
    why: str | None = None
    """How it was answered, as its alerts say it."""


_decode = msgspec.json.Decoder(Transition).decode
_decode_change = msgspec.json.Decoder(OwnerChange).decode
_decode_handoff = msgspec.json.Decoder(HandoffMessage).decode
_decode_clock = msgspec.json.Decoder(ClockMessage).decode


def read_transition(message: Message) -> Transition | None:
    """Read `message`; None for a type of ours that tells no alert.

    Raises UnreadableError for anything that is not a published event as we know it.
    """
    type = message.headers.get("ce_type")
    if type is None or not type.startswith("baton."):
        raise UnreadableError("the header ce_type is missing or not of Baton", field="ce_type")
    try:
        transition = _read(type, message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError(str(error) or type_name(error)) from error
    if transition is not None:
        _check(transition)
    return transition


def _read(type: str, message: Message) -> Transition | None:
    if type in (TRANSITIONED, CORRECTED):
        return _decode(message.value)
    if type == OWNER_CHANGED:
        return _of_owner_change(_decode_change(message.value))
    if type in _STEPS:
        return _of_handoff(_decode_handoff(message.value), _STEPS[type], _id(message))
    if type == CLOCK_RANG:
        return _of_clock(_decode_clock(message.value), _id(message))
    return None


def _check(transition: Transition) -> None:
    if len(transition.alerts) > WISHES_MAX:
        raise UnreadableError(f"more than {WISHES_MAX} alerts", field="alerts")
    for wish in transition.alerts:
        if not _ROLE.fullmatch(wish.role):
            raise UnreadableError("not a role key", field="alerts.role", value=wish.role)
        if wish.person is not None and not one_line(wish.person.id):
            raise UnreadableError("a person without id", field="alerts.person.id")
    wait, offer = transition.wait, transition.offer
    moments = {
        "recorded_at": transition.recorded_at,
        "deadline": wait.deadline if wait is not None else None,
        "since": wait.since if wait is not None else None,
        "offer.due_at": offer.due_at if offer is not None else None,
    }
    for field, moment in moments.items():
        if moment is not None and moment.tzinfo is None:
            raise UnreadableError("a time without offset", field=field)


def _id(message: Message) -> UUID:
    """Give the message's own id: such a message tells of no transition, and is told once all the same."""
    try:
        return UUID(message.headers.get("ce_id", ""))
    except ValueError as error:
        raise UnreadableError("the header ce_id is no UUID", field="ce_id") from error


def _of_owner_change(change: OwnerChange) -> Transition:
    """Give a change of owner as a transition that stays where it is: it is told like one."""
    said = f"{change.actor} gave it to another person: {change.reason}. {change.why}"
    return Transition(
        transition_id=change.change_id,
        lead=change.lead,
        from_=change.stage.key,
        to=change.stage.key,
        recorded_at=change.recorded_at,
        alerts=change.alerts,
        handoff=change.owner is not None,
        responsible=Holder(change.role),
        explanation=said,
        score=change.score,
        stage=change.stage,
        journey=change.journey,
        offer=change.offer,
        new_owner=change.owner.id if change.owner else None,
    )


def _of_handoff(told: HandoffMessage, step: Step, id: UUID) -> Transition:
    return Transition(
        transition_id=id,
        lead=told.lead,
        from_=told.stage,
        to=told.stage,
        recorded_at=told.recorded_at,
        alerts=told.alerts,
        responsible=Holder(told.role),
        explanation=told.explanation,
        score=told.score,
        stage=Guide(told.stage, told.stage_title),
        journey=told.journey,
        offer=told.offer if step in ("offered", "overdue") else None,
        kind="handoff",
        wait=Wait(
            step, "", told.owner, told.giver, told.offered_at, told.due_at,
            handoff_id=told.handoff_id, answered_by=told.answered_by, implied=told.implied,
            reason=told.reason,
        ),
    )  # fmt: skip


def _of_clock(rang: ClockMessage, id: UUID) -> Transition:
    return Transition(
        transition_id=id,
        lead=rang.lead,
        from_=rang.stage,
        to=rang.stage,
        recorded_at=rang.recorded_at,
        alerts=rang.alerts,
        responsible=Holder(rang.role),
        explanation=rang.explanation,
        score=rang.score,
        stage=Guide(rang.stage, rang.stage_title),
        journey=rang.journey,
        offer=rang.offer,
        kind="clock",
        wait=Wait(
            rang.step, rang.title, rang.owner, None, rang.since, rang.deadline, rang.late,
            rang.handoff_id,
        ),
    )  # fmt: skip


def handoff_news(transition: Transition) -> HandoffNews | None:
    """Give what the message says of a handoff; None when it is about none."""
    wait, offer = transition.wait, transition.offer
    at = transition.recorded_at
    if transition.kind == "handoff" and wait is not None and wait.handoff_id is not None:
        state = "offered" if wait.step == "overdue" else wait.step
        assert state in ("offered", "accepted", "rejected", "withdrawn")  # noqa: S101  as it was read
        reasons = _reasons(offer) if offer is not None else ()
        by = one_line(wait.answered_by or "", 64) or None
        return HandoffNews(
            wait.handoff_id, at, state, wait.deadline, reasons, by, wait.implied, _answer(wait, by)
        )
    if offer is not None:
        return HandoffNews(offer.handoff_id, at, "offered", offer.due_at, _reasons(offer))
    if wait is not None and wait.handoff_id is not None:
        return HandoffNews(wait.handoff_id, at)
    return None


def _reasons(offer: Offer) -> tuple[str, ...]:
    found = (one_line(reason) for reason in offer.reasons[:REASONS_MAX])
    return tuple(dict.fromkeys(reason for reason in found if reason))


def _answer(wait: Wait, by: str | None) -> str | None:
    """Say how a handoff was answered: ``rejected by ben: No budget``."""
    if wait.step not in ("accepted", "rejected", "withdrawn"):
        return None
    who = f" by {by}" if by is not None else ""
    reason = f": {one_line(wait.reason)}" if wait.reason else ""
    implied = ", by what was done" if wait.implied else ""
    return one_line(f"{wait.step}{who}{implied}{reason}")


def type_name(error: BaseException) -> str:
    """Give the name of an error's type, for a reason without its text."""
    return type(error).__name__
