"""How a lead's history is corrected: late events, merges and partings, record by record (I7).

The fold has told the whole history anew; here it is compared with what is on record, and the journal
writes what replaces what. Nobody is alerted of the past, and of the present only when somebody else is
responsible now than before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

import msgspec

from services.contracts.events import LeadEvent
from services.stage_service import funnel
from services.stage_service.funnel import Journey, Lead, Move
from services.stage_service.journal import Journal, Revision, journey_id, revise, share_replaced
from services.stage_service.merging import Change
from services.stage_service.playbook import Playbook
from services.stage_service.renaming import listeners
from services.stage_service.shelf import Shelf
from services.stage_service.store import Past, Record, TransitionRow


def change_by(late: LeadEvent) -> Change:
    """Say that an event which arrived late changes its lead's history."""
    because = f"an event of {late.time:%Y-%m-%d %H:%M} UTC ({late.type}) arrived late"
    return Change(late, because, late.place)


Told: TypeAlias = "Callable[[LeadEvent, TransitionRow, Move], None]"
"""Hears of each record with its move and the event that it is answered to."""


class Corrections:
    """Corrects the histories of one batch's leads."""

    def __init__(self, journal: Journal, shelf: Shelf) -> None:
        self._journal = journal
        self._shelf = shelf
        self.shifted: dict[str, tuple[str, datetime]] = {}
        """When visits began that recorded moves end, where it was another time: by record id."""
        self.ended: list[str] = []
        """Journeys that are no more."""

    def revise(
        self,
        record: Record,
        before: Lead | None,
        moves: Sequence[Move],
        past_by_journey: Mapping[str, list[Past]],
        is_new: Callable[[Move], bool],
        change: Change,
        told: Told,
    ) -> list[Move]:
        """Record what changes in each journey's history; give the moves that are new.

        `before` is the lead's state until now, `moves` its whole history as it is now.
        """
        assert record.lead is not None  # noqa: S101
        appended: list[Move] = []
        for name in record.lead.journeys:
            mine = [m for m in moves if m.journey == name]
            past = past_by_journey.get(journey_id(record.id, name), [])
            revision = revise(past, mine, is_new, regrouped=change.held_by is not None)
            for old, move in revision.shifted:
                self.shifted[old.id] = (journey_id(record.id, name), move.visit_entered_at)
            if revision.replaced or revision.corrections:
                self._correct(record, name, revision, change, told)
            appended += revision.appended
        if before is not None:  # parted from its lead, or never entered from the other playbook
            for name in before.journeys.keys() - record.lead.journeys.keys():
                past = past_by_journey.get(journey_id(record.id, name), [])
                self._end(record, name, before.journeys[name], past, change, told)
        return appended

    def set_aside(
        self, record: Record, moves: Sequence[Move], given: Collection[tuple[str, str]]
    ) -> None:
        """Keep for later the owners whom the history of `moves` does not ask for, in each journey.

        So who owns a journey for which role does not depend on what was believed meanwhile. `given`:
        (journey name, role) of assignments by hand.
        """
        asked = set(given)
        for move in moves:
            stage = self._shelf.version(move.playbook, move.version).stages[move.to_stage]
            asked.update((move.journey, role) for role in (move.role, *listeners(stage, move)))
        for name, facts in record.facts.items():
            for role in [r for r in facts.owners if (name, r) not in asked]:
                facts.aside[role] = facts.owners.pop(role)

    def _correct(
        self, record: Record, name: str, revision: Revision, change: Change, told: Told
    ) -> None:
        """Record the corrections of a journey; only the last that still holds now may alert."""
        trace = change.cause.traceparent
        replaced = revision.replaced
        if not revision.corrections:
            move, playbook = self._nothing_happened(record, name, revision, change)
            row = self._journal.retraction(
                record, playbook, move, [r.id for r in replaced], trace,
                alert=not revision.appended and _is_handed_on(record, move, replaced, change),
            )  # fmt: skip
            told(change.cause, row, move)
            return
        shares = share_replaced(revision.corrections, replaced)
        for index, (move, share) in enumerate(zip(revision.corrections, shares, strict=True)):
            is_present = index == len(revision.corrections) - 1 and not revision.appended
            corrected = msgspec.structs.replace(
                move, explanation=f"{move.explanation} Corrected: {change.because}."
            )
            row = self._journal.correction(
                record, self._shelf.version(move.playbook, move.version), corrected, share,
                is_present=is_present, trace=trace,
                alert=is_present and _is_handed_on(record, move, replaced, change),
            )  # fmt: skip
            told(change.cause, row, corrected)

    def _end(
        self,
        record: Record,
        name: str,
        journey: Journey,
        past: list[Past],
        change: Change,
        told: Told,
    ) -> None:
        """End a journey that came with another lead and went with it: its records never happened."""
        self.ended.append(journey_id(record.id, name))
        # Where nothing holds any more, who was told of the journey still counts it until told of its end.
        replaced = revise(past, [], lambda _: False).replaced or past
        if replaced:
            playbook = self._shelf.version(journey.playbook, journey.version)
            move = _taken_back(
                record, name, journey, playbook.first_stage, playbook, replaced, change
            )
            row = self._journal.retraction(
                record, playbook, move, [r.id for r in replaced], change.cause.traceparent,
                alert=False, ended=True,
            )  # fmt: skip
            told(change.cause, row, move)

    def _nothing_happened(
        self, record: Record, name: str, revision: Revision, change: Change
    ) -> tuple[Move, Playbook]:
        """Make the record that takes back what was replaced, and the playbook it is told under.

        It starts and ends in the stage that holds: where the next move starts, or the journey stands.
        """
        assert record.lead is not None  # noqa: S101
        journey = record.lead.journeys[name]
        replaced = revision.replaced
        key = revision.appended[0].from_stage if revision.appended else journey.stage
        versions = [journey.version, *(m.version for m in revision.appended[:1]),
                    *(r.playbook_version for r in reversed(replaced))]  # fmt: skip
        versions += range(journey.version, 0, -1)  # where the stage went by its name
        playbook = next(
            p for v in versions if key in (p := self._shelf.version(journey.playbook, v)).stages
        )
        return _taken_back(record, name, journey, key, playbook, replaced, change), playbook


def _is_handed_on(record: Record, move: Move, replaced: Sequence[Past], change: Change) -> bool:
    """Say whether somebody else is responsible after the present `move` than before the change."""
    if change.held_by is None:
        return move.role != replaced[-1].role
    owner = record.facts[move.journey].owners.get(move.role)
    held_by = change.held_by.get(move.journey, ())
    return (move.role, owner.id if owner else None) not in held_by


def _taken_back(
    record: Record,
    name: str,
    journey: Journey,
    key: str,
    playbook: Playbook,
    replaced: Sequence[Past],
    change: Change,
) -> Move:
    """Make the move that stays in the stage `key` and takes back the `replaced` records."""
    assert record.lead is not None  # noqa: S101
    stage, cause = playbook.stages[key], change.cause
    at = replaced[0].occurred_at
    gone = ", ".join(
        f"{r.from_stage} to {r.to_stage}" for r in replaced if r.from_stage != r.to_stage
    )
    return Move(
        name, journey.playbook, playbook.version, journey.key, key, key, at, at, cause.source,
        cause.id, cause.type, None, None, stage.responsible[0], replaced[-1].role, [],
        funnel.score_of(record.lead, playbook, record.lead.last[0]),
        f"Still in {stage.title}: {change.because} and takes back {gone or 'the journey'}.",
        {"retracted": [r.id for r in replaced]},
    )  # fmt: skip
