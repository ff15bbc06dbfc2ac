"""Baton's own events in the fold: a journey given to somebody by hand, a clock that rang, a merge. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from services.contracts.events import (
    ASSIGNED_BY_HAND,
    MERGED_BY_HAND,
    PLAYBOOK_PUBLISHED,
    UNMERGED_BY_HAND,
    LeadEvent,
)
from services.contracts.handoffs import CLOCK_FIRED
from services.stage_service import offers
from services.stage_service.journeys import (
    Folded,
    Lead,
    Move,
    active_at,
    begun,
    journey_name,
    may_begin,
)
from services.stage_service.judging import Case, advanced
from services.stage_service.offers import Handed, Ring
from services.stage_service.playbook import Playbook
from services.stage_service.scoring import scored

_SILENT = (MERGED_BY_HAND, UNMERGED_BY_HAND)
"""They say whose events these are, and nothing of the lead."""


def fold_own(playbooks: Mapping[str, Playbook], lead: Lead, event: LeadEvent) -> Folded | None:
    """Apply an event of Baton's own that tells nothing of the lead; None: it is another."""
    if event.type == ASSIGNED_BY_HAND:
        return _assigned(playbooks, lead, event)
    if event.type in offers.CLOCK_EVENTS:
        return _rung(playbooks, lead, event)
    if event.type == PLAYBOOK_PUBLISHED:
        return _published(playbooks, lead, event)
    if event.type in _SILENT:
        return Folded(msgspec.structs.replace(lead, last=event.place), [], [], [], [])
    return None


def _published(playbooks: Mapping[str, Playbook], lead: Lead, event: LeadEvent) -> Folded:
    """Begin the journeys that may begin where the lead stands; those of gone stages have moved already."""
    journeys = lead.journeys
    for name, playbook in playbooks.items():
        key = journey_name(name, event.deal)
        if (
            playbook.enters is not None
            and key not in journeys
            and may_begin(playbook, playbooks, journeys, event.deal)
        ):
            journeys = {**journeys, key: begun(playbook, event.deal, event.time)}
    return Folded(
        msgspec.structs.replace(lead, last=event.place, journeys=journeys), [], [], [], []
    )


def _assigned(playbooks: Mapping[str, Playbook], lead: Lead, event: LeadEvent) -> Folded:
    """Offer a journey that was given to another person by hand to them."""
    name = journey_name(str(event.data.get("playbook")), event.deal)
    playbook, journey = playbooks.get(str(event.data.get("playbook"))), lead.journeys.get(name)
    handed: list[Handed] = []
    journeys = lead.journeys
    if playbook is not None and journey is not None and playbook.handoffs:
        stage = playbook.stages.get(journey.stage)
        for offer in offers.assigned(journey.offer, playbook, stage, event):
            journey = msgspec.structs.replace(journey, offer=offer)
            handed.append(Handed(name, playbook.name, offer, event, journey.asked_at))
        journeys = {**journeys, name: journey} if handed else journeys
    return Folded(
        msgspec.structs.replace(lead, last=event.place, journeys=journeys), [], [], handed, []
    )


def _rung(playbooks: Mapping[str, Playbook], lead: Lead, event: LeadEvent) -> Folded:
    """Apply what a clock says, if that still stands: an overdue handoff, and rules on a missed deadline."""
    data = event.data
    name = journey_name(str(data.get("playbook")), event.deal)
    playbook, journey = playbooks.get(str(data.get("playbook"))), lead.journeys.get(name)
    told = msgspec.structs.replace(lead, last=event.place)
    if playbook is None or journey is None:
        return Folded(told, [], [], [], [])
    said = playbook.named(str(data.get("stage")))
    if not offers.stands(
        event, said, journey.offer, journey.stage, journey.entered_at, active_at(lead, journey)
    ):
        return Folded(told, [], [], [], [])
    handed: list[Handed] = []
    moves: list[Move] = []
    unevaluated: list[tuple[str, str]] = []
    rings = [Ring(name, event, journey.offer if data["kind"] == "handoff" else None)]
    if event.type == CLOCK_FIRED:
        scoring = scored(
            playbook, lead.scoring.get(playbook.name), event, lead.email, lead.attributes, False
        )
        case = Case(playbook, event, lead.email, lead.attributes, scoring, unevaluated, handed)
        if data["kind"] == "handoff" and journey.offer is not None:
            journey = msgspec.structs.replace(journey, offer=offers.overdue(journey.offer, event))
            assert journey.offer is not None  # noqa: S101
            case.hand(name, journey, journey.offer)
        journey = advanced(case, name, journey, moves)
        told = msgspec.structs.replace(told, journeys={**lead.journeys, name: journey})
    return Folded(told, moves, unevaluated, handed, rings)
