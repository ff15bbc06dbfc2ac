"""The fold: what one lead event does to a lead. Pure: no I/O, no clock, no chance.

`fold(playbooks, state, event)` gives the new state and the moves it made. State is a value; the lane
keeps it in the lead's row and hands it back with the next event. Events must come in the order of
their `place`; for a late one the lane calls `refold` with all events of the lead. Nothing here raises
for anything an event may contain: a rule that cannot be evaluated is false and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from services.contracts.events import MAIN, MOVED_BY_HAND, SOURCE, LeadEvent
from services.contracts.published import Touch
from services.stage_service import offers
from services.stage_service.journeys import (
    Folded,
    Held,
    Journey,
    Lead,
    Move,
    active_at,
    begun,
    journey_name,
    may_begin,
    score_of,
)
from services.stage_service.judging import Case, by_hand, judge
from services.stage_service.lead_facts import facts_in, merged, named
from services.stage_service.offers import Handed, Ring
from services.stage_service.own_events import fold_own
from services.stage_service.playbook import Playbook
from services.stage_service.renaming import renamed
from services.stage_service.scoring import scored

__all__ = [
    "Folded", "Held", "Journey", "Lead", "Move", "Refolded", "active_at", "fold", "in_place",
    "journey_name", "refold", "score_of",
]  # fmt: skip
"""The fold, with the values that it takes and gives."""

TOUCHES_MAX = 5


def fold(playbooks: Mapping[str, Playbook], lead: Lead | None, event: LeadEvent) -> Folded:
    """Fold `event` into `lead` (None: the lead's first event) under `playbooks`.

    The event's place must not be before `lead.last`.
    """
    lead = lead or Lead(None, {}, {}, {}, [], {}, event.time, event.place)
    moves: list[Move] = []
    handed: list[Handed] = []
    for playbook in playbooks.values():
        if playbook.renames:
            lead, moves, handed = renamed(playbooks, lead, event)
            break
    own = fold_own(playbooks, lead, event) if event.source == SOURCE else None
    if own is not None:
        return _after(moves, handed, own) if moves else own
    moved_by_hand = event.type == MOVED_BY_HAND and event.source == SOURCE
    answers = event.type in offers.ANSWERS
    data = event.data
    facts = {} if moved_by_hand or answers else facts_in(data)
    email, external_ids = named(lead.email, lead.external_ids, event)
    unevaluated: list[tuple[str, str]] = []
    scorings = lead.scoring
    journeys = lead.journeys
    attributes = lead.attributes
    lead_facts, deal_facts = _split(playbooks, event, facts)
    if lead_facts:
        attributes = merged(attributes, lead_facts)
    for name, playbook in playbooks.items():
        addressed = journey_name(name, event.deal)
        journey = journeys.get(addressed)
        if journey is None and not may_begin(playbook, playbooks, journeys, event.deal):
            continue
        fit_changed = email != lead.email or not playbook.fit_attributes.isdisjoint(lead_facts)
        scoring = scored(playbook, scorings.get(name), event, email, attributes, fit_changed)
        if scoring is not scorings.get(name):
            scorings = {**scorings, name: scoring}
        case = Case(playbook, event, email, attributes, scoring, unevaluated, handed)
        if (moved_by_hand or answers) and data.get("playbook", name) != name:
            if journey is None and playbook.enters is not None:
                journeys = {**journeys, addressed: begun(playbook, event.deal, event.time)}
            continue
        if journey is None:
            journey = begun(playbook, event.deal, event.time)
        changed = {addressed: journey}
        if deal_facts:
            changed[addressed] = msgspec.structs.replace(
                journey, deal=merged(journey.deal, deal_facts)
            )
        if moved_by_hand:
            changed[addressed] = by_hand(case, addressed, changed[addressed], moves)
        else:
            judge(case, addressed, journeys, changed, moves)
        journeys = {**journeys, **changed}
    touches = lead.touches if moved_by_hand else _touched(lead.touches, playbooks, event)
    return Folded(
        Lead(
            email, external_ids, attributes, scorings, touches, journeys,
            lead.first_seen_at, event.place,
        ),
        moves, unevaluated, handed, [],
    )  # fmt: skip


class Refolded(msgspec.Struct, gc=False):
    """What a lead's events did, all of them: as `Folded`; `lead` is None without events."""

    lead: Lead | None
    moves: list[Move]
    unevaluated: list[tuple[str, str]]
    handed: list[Handed]
    rings: list[Ring]


def _after(moves: list[Move], handed: list[Handed], own: Folded) -> Folded:
    """Give what an event of our own did, after what new names did."""
    return msgspec.structs.replace(own, moves=moves + own.moves, handed=handed + own.handed)


def in_place(events: Iterable[tuple[LeadEvent, int]]) -> list[tuple[LeadEvent, int]]:
    """Give a lead's `events` in the order of their places, each with the epoch it is folded under.

    That is the epoch it was recorded in, but never one after that of an event with a later place: a late
    event comes into the past as it was, before what a newer playbook version changed.
    """
    ordered = sorted(events, key=lambda pair: pair[0].place)
    if not ordered:
        return ordered
    newest = ordered[-1][1]
    for index in range(len(ordered) - 1, -1, -1):
        event, epoch = ordered[index]
        if epoch > newest:
            ordered[index] = (event, newest)
        else:
            newest = epoch
    return ordered


def refold(
    events: Iterable[tuple[LeadEvent, int]], at: Callable[[int], Mapping[str, Playbook]]
) -> Refolded:
    """Fold a lead's `events`, each with the epoch it was recorded in, from nothing.

    `at` gives the playbooks that were active at an epoch. Sorts the events by place (`in_place`).
    """
    whole = Refolded(None, [], [], [], [])
    for event, epoch in in_place(events):
        folded = fold(at(epoch), whole.lead, event)
        whole.lead = folded.lead
        whole.moves += folded.moves
        whole.unevaluated += folded.unevaluated
        whole.handed += folded.handed
        whole.rings += folded.rings
    return whole


def _split(
    playbooks: Mapping[str, Playbook], event: LeadEvent, facts: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part `facts` into the lead's and, of an event that names a deal, the deal's declared ones."""
    if event.deal == MAIN or not facts:
        return facts, {}
    declared = {name for playbook in playbooks.values() for name in playbook.attributes["deal"]}
    return (
        {k: v for k, v in facts.items() if k not in declared},
        {k: v for k, v in facts.items() if k in declared},
    )


def _touched(
    touches: list[Touch], playbooks: Mapping[str, Playbook], event: LeadEvent
) -> list[Touch]:
    newest = Touch(event.type, event.time, _label(playbooks, event))
    return [*touches[-TOUCHES_MAX + 1 :], newest]


def _label(playbooks: Mapping[str, Playbook], event: LeadEvent) -> str:
    """Give how the event's type reads to people, by the first playbook that says so."""
    for playbook in playbooks.values():
        if event.type in playbook.labels:
            return playbook.labels[event.type]
    return event.type
