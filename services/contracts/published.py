"""What published events say: each Struct is the JSON of an event's ``data``, to the letter.

Their JSON Schemas are generated from them into ``schemas/`` and a test compares. What is said of handoffs
stands in `handoffs`, of a lead as a whole in `leads`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class Touch(msgspec.Struct, frozen=True, gc=False):
    """One of the lead's last events, as a salesperson reads it."""

    type: str
    time: datetime
    label: str


class Score(msgspec.Struct, frozen=True, gc=False):
    """Fit (who they are), intent (what they did lately), and their sum; whole points."""

    fit: int
    intent: int
    total: int


class LeadSnapshot(msgspec.Struct, frozen=True):
    """The lead as it was when the transition was recorded."""

    id: str
    email: str | None
    name: str | None
    company: str | None
    attributes: dict[str, Any] | msgspec.Raw
    touches: list[Touch] = []


class JourneyRef(msgspec.Struct, frozen=True, gc=False):
    """Which of the lead's journeys moved."""

    id: str
    playbook: str
    key: str


class Cause(msgspec.Struct, frozen=True, gc=False):
    """Why it moved: the event, the rule that fired, and the person who moved it by hand."""

    event_id: str
    event_source: str
    event_type: str
    rule: str | None
    actor: str | None


class PersonRef(msgspec.Struct, frozen=True, gc=False):
    """A person of the roster."""

    id: str
    name: str


class Responsible(msgspec.Struct, frozen=True, gc=False):
    """The role that now holds the journey, and the person chosen for it (None: nobody eligible).

    `why` says how routing chose that person; None where no choice is told.
    """

    role: str
    owner: PersonRef | None
    why: str | None = None


class AlertWish(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Somebody the playbook wants told of this transition; `urgent`: at any hour, at once."""

    role: str
    person: PersonRef | None
    urgent: bool = False


class OfferRef(msgspec.Struct, frozen=True, gc=False):
    """The handoff that a message offers: who is told of it can answer it.

    `reasons` are those that the playbook suggests for a rejection.
    """

    handoff_id: str
    role: str
    due_at: datetime | None
    reasons: list[str] = []


class StageGuide(msgspec.Struct, frozen=True):
    """What the playbook says about the stage entered."""

    key: str
    title: str
    band: str
    focus: str
    goal: str
    guidance: list[str]
    next_steps: list[str]


class StageTransitioned(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """``baton.stage.transitioned.v1``: a journey entered another stage.

    With ``type`` ``baton.transition.corrected.v1`` the same shape tells corrected history:
    `replaces` names the transitions that no longer hold; `ended`: the journey is no more.
    """

    transition_id: str
    sequence: int
    lead: LeadSnapshot
    journey: JourneyRef
    from_: str
    to: str
    occurred_at: datetime
    recorded_at: datetime
    cause: Cause
    responsible: Responsible
    previous_responsible: Responsible | None
    handoff: bool
    score: Score
    playbook_version: int
    explanation: str
    stage: StageGuide | msgspec.Raw
    alerts: list[AlertWish] = []
    skipped: list[str] = []
    replaces: list[str] = []
    ended: bool | msgspec.UnsetType = msgspec.UNSET
    offer: OfferRef | None = None


class LeadMerged(msgspec.Struct, frozen=True):
    """``baton.lead.merged.v1``: two leads turned out to be one person.

    Told once in the order of each of the two (`lead_id`), with the same `merge_id`. From here on the
    journeys of `merged` have ended; what they add to the history of `survivor` follows as corrections.
    """

    merge_id: str
    lead_id: str
    survivor: str
    merged: str
    reason: str
    identities: list[str]
    cause: Cause
    occurred_at: datetime
    recorded_at: datetime


class LeadUnmerged(msgspec.Struct, frozen=True):
    """``baton.lead.unmerged.v1``: a merge was undone by hand; told in the order of each lead.

    The journeys of `merged` stand again where they stood when it was merged; corrections follow.
    """

    merge_id: str
    lead_id: str
    survivor: str
    merged: str
    reason: str
    cause: Cause
    occurred_at: datetime
    recorded_at: datetime


class OwnerChanged(msgspec.Struct, frozen=True):
    """``baton.owner.changed.v1``: a journey's owner for a role became another person, in the same stage.

    `why` says how the owner was found, `reason` and `actor` who wanted it.
    """

    change_id: str
    lead: LeadSnapshot
    journey: JourneyRef
    role: str
    owner: PersonRef | None
    previous_owner: PersonRef | None
    why: str
    reason: str
    actor: str
    occurred_at: datetime
    recorded_at: datetime
    score: Score
    stage: StageGuide | msgspec.Raw
    alerts: list[AlertWish] = []
    offer: OfferRef | None = None


class SubscriptionStopped(msgspec.Struct, frozen=True):
    """``baton.subscription.stopped.v1``: Baton stopped delivering to a subscription by itself.

    `state` is ``gone`` (the endpoint answered 410) or ``failing`` (nothing went through for days, since
    `failing_since`). `contact` is the person or role of the roster to tell. Nothing is lost: resumed, it goes
    on where it stopped.
    """

    stop_id: str
    subscription_id: str
    name: str
    state: str
    reason: str
    contact: str | None
    failing_since: datetime | None
    occurred_at: datetime
    recorded_at: datetime
