"""What the fold knows of a lead and its journeys, and what an event did to them: values, no logic. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.published import Score, Touch
from services.stage_service.offers import Handed, Offer, Ring
from services.stage_service.playbook import Playbook
from services.stage_service.scoring import Scoring, score_at


class Held(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A move that a gate holds: it happens by itself when what is `missing` arrives."""

    to: str
    rule: str
    since: datetime
    missing: list[str]
    reason: str | None


class Journey(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One lead's way through one playbook, as far as the fold knows it."""

    playbook: str
    key: str
    stage: str
    furthest: str
    started_at: datetime
    entered_at: datetime
    moves: int
    version: int
    deal: dict[str, Any]
    held: list[Held]
    reason: str | None
    offer: Offer | None = None
    """The newest handoff, open or answered."""
    asked_at: datetime | None = None
    """When the lead first asked for contact, since it last left the path."""


class Lead(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Everything the fold knows of a lead; `last` is the place of the newest event folded."""

    email: str | None
    external_ids: dict[str, str]
    attributes: dict[str, Any]
    scoring: dict[str, Scoring]
    touches: list[Touch]
    journeys: dict[str, Journey]
    first_seen_at: datetime
    last: tuple[datetime, str, str]


class Move(msgspec.Struct, frozen=True, gc=False):
    """One transition as the fold decides it; the lane adds ids, sequence and owner."""

    journey: str
    playbook: str
    version: int
    key: str
    from_stage: str
    to_stage: str
    visit_entered_at: datetime
    occurred_at: datetime
    event_source: str
    event_id: str
    event_type: str
    rule: str | None
    actor: str | None
    role: str
    previous_role: str
    skipped: list[str]
    score: Score
    explanation: str
    why: dict[str, Any]
    offer: Offer | None = None
    """The handoff that it offers."""

    @property
    def identity(self) -> tuple[str, str, datetime, str, str, str | None]:
        """Give what makes two moves the same piece of history."""
        return (
            self.from_stage,
            self.to_stage,
            self.occurred_at,
            self.event_source,
            self.event_id,
            self.rule,
        )


class Folded(msgspec.Struct, frozen=True, gc=False):
    """What an event did: the new state, its moves, and rules that could not be evaluated.

    `handed` are the changes of handoffs, in order; `rings` the clocks whose event met what it is about.
    """

    lead: Lead
    moves: list[Move]
    unevaluated: list[tuple[str, str]]
    handed: list[Handed]
    rings: list[Ring]


def journey_name(playbook: str, key: str) -> str:
    """Name a lead's journey: ``playbook/key``."""
    return f"{playbook}/{key}"


def begun(playbook: Playbook, key: str, at: datetime) -> Journey:
    """Give a journey that begins at the moment `at`, in the playbook's first stage."""
    first = playbook.first_stage
    return Journey(playbook.name, key, first, first, at, at, 0, playbook.version, {}, [], None)


def may_begin(
    playbook: Playbook,
    playbooks: Mapping[str, Playbook],
    journeys: Mapping[str, Journey],
    key: str,
) -> bool:
    """Tell whether a lead with these `journeys` may begin one of `playbook` with `key`.

    Always, unless it is entered from another playbook: then its journey there stands in that stage.
    """
    enters = playbook.enters
    if enters is None:
        return True
    other = journeys.get(journey_name(enters.playbook, key))
    if other is None:
        return False
    if other.stage == enters.stage:
        return True
    theirs = playbooks.get(enters.playbook)
    return theirs is not None and other.stage == theirs.named(enters.stage)


def active_at(lead: Lead, journey: Journey) -> datetime:
    """Give when the lead last did anything, or entered the stage if that is later."""
    return max(journey.entered_at, lead.touches[-1].time) if lead.touches else journey.entered_at


def score_of(lead: Lead, playbook: Playbook, at: datetime) -> Score:
    """Give the lead's score under `playbook` at the moment `at`, intent decayed to then."""
    scoring = lead.scoring.get(playbook.name)
    return score_at(playbook, scoring, at.timestamp()) if scoring else Score(0, 0, 0)
