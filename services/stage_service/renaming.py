"""Journeys whose stage is gone in a playbook's version go on where it says, before an event is judged. Pure.

Where the same role goes on it is a new name, not a new visit: since when the journey stands there stays, so
its clocks run on, an open handoff waits on, and nobody is told. Where another role is responsible it is a
move like any other (docs/decisions/0025).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from services.contracts.events import LeadEvent
from services.stage_service import offers
from services.stage_service.journeys import Held, Journey, Lead, Move, score_of
from services.stage_service.offers import Handed
from services.stage_service.playbook import Playbook, Stage
from services.stage_service.stage_names import furthest_of

MIGRATE = "migrate"
"""The rule that such a move names."""


class Renamed(NamedTuple):
    """A lead whose journeys stand in stages of their playbooks, the moves and the handoffs of that."""

    lead: Lead
    moves: list[Move]
    handed: list[Handed]


def renamed(playbooks: Mapping[str, Playbook], lead: Lead, event: LeadEvent) -> Renamed:
    """Give `lead` as `event` finds it; the same object where nothing is gone since its journeys moved."""
    done = Renamed(lead, [], [])
    journeys: dict[str, Journey] | None = None
    for name, journey in lead.journeys.items():
        playbook = playbooks.get(journey.playbook)
        if playbook is None or not playbook.renames or journey.version >= playbook.renames[-1][0]:
            continue
        if journeys is None:
            journeys = dict(lead.journeys)
        journeys[name] = _brought_up(playbook, name, journey, lead, event, done)
    if journeys is None:
        return done
    return done._replace(lead=msgspec.structs.replace(lead, journeys=journeys))


def _brought_up(
    playbook: Playbook, name: str, journey: Journey, lead: Lead, event: LeadEvent, done: Renamed
) -> Journey:
    """Give `journey` with the names of `playbook`, moved where its stage is gone."""
    since = journey.version
    stage = playbook.current(journey.stage, since)
    held: list[Held] = []
    for each in journey.held:
        to = playbook.current(each.to, since)
        if to != stage and all(h.to != to for h in held):
            held.append(each if to == each.to else msgspec.structs.replace(each, to=to))
    after = msgspec.structs.replace(
        journey, furthest=playbook.current(journey.furthest, since), held=held,
        version=playbook.version,
    )  # fmt: skip
    if stage == journey.stage:
        return after
    return _moved(playbook, name, after, playbook.stages[stage], lead, event, done)


def _moved(
    playbook: Playbook,
    name: str,
    journey: Journey,
    to: Stage,
    lead: Lead,
    event: LeadEvent,
    done: Renamed,
) -> Journey:
    came_from = playbook.former.get(journey.stage, to)
    role, before = to.responsible[0], came_from.responsible[0]
    waits = to.kind in offers.WAITING_KINDS
    is_name_only = role == before and waits == (came_from.kind in offers.WAITING_KINDS)
    offer, made = journey.offer, None
    if not is_name_only and playbook.handoffs:
        if offer is not None and offer.is_open:
            offer = offers.withdrawn(offer, event, "its stage is gone from the playbook")
            done.handed.append(Handed(name, playbook.name, offer, event, journey.asked_at))
        made = offers.offered(playbook, came_from, to, event)
        if made is not None:
            offer = made
            done.handed.append(Handed(name, playbook.name, made, event, journey.asked_at))
    explanation = _explained(playbook, came_from, to, is_name_only=is_name_only)
    done.moves.append(Move(
        name, playbook.name, playbook.version, journey.key, journey.stage, to.key,
        journey.entered_at, event.time, event.source, event.id, event.type, MIGRATE, None, role,
        before, [], score_of(lead, playbook, event.time), explanation,
        {"rule": MIGRATE, "because": "its stage is gone from the playbook",
         "stage": came_from.title, "renamed": is_name_only}, made,
    ))  # fmt: skip
    return msgspec.structs.replace(
        journey, stage=to.key, moves=journey.moves + 1, offer=offer,
        entered_at=journey.entered_at if is_name_only else event.time,
        reason=journey.reason if is_name_only else None,
        asked_at=journey.asked_at if waits else None, furthest=furthest_of(playbook, journey.furthest, to),
    )  # fmt: skip


def _explained(playbook: Playbook, came_from: Stage, to: Stage, *, is_name_only: bool) -> str:
    version = f"version {playbook.version} of the playbook"
    if is_name_only and came_from.title == to.title:
        return f"Still in {to.title}, which has another key since {version}. Nothing else changed."
    if is_name_only:
        return (
            f"Now in {to.title}: {came_from.title} is gone since {version}. The same people go on, and "
            "its time there counts on."
        )
    return (
        f"Moved from {came_from.title} to {to.title} because {version} has no such stage any more."
    )


def is_quiet(move: Move) -> bool:
    """Tell whether nobody needs to hear of `move`: a stage has another name, and the same role goes on."""
    return move.rule == MIGRATE and move.why.get("renamed") is True


def listeners(stage: Stage, move: Move) -> tuple[str, ...]:
    """Give the roles that `stage` alerts when it is entered by `move`: none where it is a new name only."""
    return () if is_quiet(move) else stage.alerts
