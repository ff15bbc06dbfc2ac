"""What both sides of a handoff must agree on: published events, the lead events that answer, signed links.

A handoff is offered to the person who is responsible from a transition on. They accept it or reject it; a
clock that runs out makes it overdue. The Structs are the published events' JSON, to the letter.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast
from uuid import UUID

import itsdangerous
import msgspec

from services.contracts.events import (
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

LINK_SALT = "baton.handoff.answer.v1"
LINK_KEY_CHARACTERS_MIN = 32


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


class AnswerGrant(msgspec.Struct, frozen=True):
    """What an answer link allows: to answer one handoff as `person`, until `until`."""

    handoff_id: UUID
    person: str
    until: datetime
    id: str
    """Tells links apart without holding one."""


class AnswerLinks:
    """Makes and reads the links by which a handoff is answered, below `base_url` (the stage service).

    Whoever makes and whoever reads them share the key; raises ValueError for a key that can be guessed.
    Opening such a link shows the handoff; the page's buttons answer it.
    """

    def __init__(self, key: str, base_url: str, valid_s: float) -> None:
        if len(key) < LINK_KEY_CHARACTERS_MIN:
            raise ValueError(
                f"BATON_LINK_KEY is shorter than {LINK_KEY_CHARACTERS_MIN} characters:"
                " make one with: openssl rand -hex 32"
            )
        self._base_url = base_url.rstrip("/")
        self._valid = timedelta(seconds=valid_s)
        self._signer = itsdangerous.URLSafeSerializer(
            key, LINK_SALT,
            signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
        )  # fmt: skip

    def token(self, handoff_id: UUID, person: str, now: datetime) -> str:
        """Make the token by which `person` may answer the handoff."""
        until = int((now + self._valid).timestamp())
        return str(self._signer.dumps([handoff_id.hex, person, until]))

    def url(self, token: str) -> str:
        """Give the address at which a token is used."""
        return f"{self._base_url}/answer/{token}"

    def read(self, token: str, now: datetime) -> AnswerGrant | None:
        """Read a token; None when it is not ours or has expired."""
        try:
            handoff_id, person, until = cast("list[Any]", self._signer.loads(token))
            grant = AnswerGrant(
                UUID(handoff_id), str(person), datetime.fromtimestamp(until, UTC),
                # Of what it says: its text can be written in more ways than one.
                hashlib.sha256(self._signer.dumps([handoff_id, person, until]).encode()).hexdigest(),
            )  # fmt: skip
        except (itsdangerous.BadData, ValueError, TypeError, AttributeError, UnicodeError):
            return None
        return grant if now < grant.until else None
