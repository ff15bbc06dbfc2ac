"""What people do to leads, as the audit tells it: moves, assignments, merges and answers by hand.

Each is one of Baton's own lead events, applied with others in a batch; its entry is made from what became
of it. What was typed about a lead (a reason) stays in the event, which the entry names: the audit can
never be erased, a lead's event can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from services.contracts.audit import Actor, Note, Via
from services.contracts.events import (
    ASSIGNED_BY_HAND,
    MERGED_BY_HAND,
    MOVED_BY_HAND,
    SOURCE,
    UNMERGED_BY_HAND,
    LeadEvent,
)
from services.contracts.handoffs import HANDOFF_ACCEPTED, HANDOFF_REJECTED
from services.stage_service.funnel import journey_name
from services.stage_service.journal import handoff_id, journey_id
from services.stage_service.offers import Handed
from services.stage_service.renaming import MIGRATE
from services.stage_service.store import Record, TransitionRow

_LINK = "link:"
_SLACK = "slack:"


class Became(NamedTuple):
    """What became of an event: its lead with the record, the rows it caused, the offers that it met."""

    lead_id: str
    record: Record
    rows: Sequence[TransitionRow]
    handed: Sequence[Handed]


def notes_of(
    fresh: Iterable[tuple[LeadEvent, str | None]],
    rows: Sequence[TransitionRow],
    handed: Mapping[str, Sequence[Handed]],
    records: Mapping[str, Record],
) -> Iterator[tuple[Actor, Note]]:
    """Give who did what, of the events that a batch recorded (with their leads): people's only."""
    for event, lead_id in fresh:
        note = _NOTES.get(event.type) if event.source == SOURCE else None
        if note is None or lead_id is None:
            continue
        caused = [r for r in rows if (r.event_source, r.event_id) == (SOURCE, event.id)]
        yield (
            actor_of(event),
            note(event, Became(lead_id, records[lead_id], caused, handed.get(lead_id, ()))),
        )


def actor_of(event: LeadEvent) -> Actor:
    """Give who did a deed by hand, as its event says: by a key, a signed link, or in Slack."""
    name, key = str(event.data.get("actor") or ""), event.data.get("key_id")
    if key is None or not str(key).startswith(_LINK):
        return Actor(name, None if key is None else str(key), None, name)
    via: Via = "slack" if name.startswith(_SLACK) else "link"
    return Actor(str(key).removeprefix(_LINK), None, via, name)


def _about(event: LeadEvent) -> dict[str, Any]:
    return {"event": event.id, "playbook": event.data.get("playbook"), "key": event.deal}


def _name(event: LeadEvent) -> str:
    return journey_name(str(event.data.get("playbook")), event.deal)


def _moved(event: LeadEvent, it: Became) -> Note:
    id = journey_id(it.lead_id, _name(event))
    # That its stage has another name meanwhile is not what was asked for.
    moves = [row for row in it.rows if row.journey_id == id and row.rule != MIGRATE]
    after: dict[str, Any] = {**_about(event), "force": bool(event.data.get("force"))}
    if not moves:  # its gate was not met
        return Note("move held", "journey", id, None, after, it.lead_id)
    after |= {"stage": moves[-1].to_stage, "transitions": [row.id for row in moves]}
    return Note("moved", "journey", id, {"stage": moves[0].from_stage}, after, it.lead_id)


def _assigned(event: LeadEvent, it: Became) -> Note:
    role = str(event.data.get("role"))
    facts = it.record.facts.get(_name(event))
    owner = facts.owners.get(role) if facts is not None else None
    without = event.data.get("without") or [None]
    return Note(
        "assigned", "journey", journey_id(it.lead_id, _name(event)),
        {"role": role, "owner": without[0]},
        {**_about(event), "role": role, "owner": owner.id if owner is not None else None},
        it.lead_id,
    )  # fmt: skip


def _merged(event: LeadEvent, it: Became) -> Note:
    named = sorted({id for _, id in event.identities} | {str(event.data.get("lead"))})
    after = {"lead": it.lead_id, "event": event.id}
    return Note("merged", "lead", it.lead_id, {"leads": named}, after, it.lead_id)


def _parted(event: LeadEvent, it: Became) -> Note:
    parted = sorted({it.lead_id, str(event.data.get("lead"))})
    before = {"lead": it.lead_id, "merge": event.data.get("merge_id")}
    after = {"leads": parted, "event": event.id}
    return Note("unmerged", "lead", it.lead_id, before, after, it.lead_id)


def _answered(event: LeadEvent, it: Became) -> Note:
    met = next((c for c in it.handed if c.event.source == SOURCE and c.event.id == event.id), None)
    said = "accepted" if event.type == HANDOFF_ACCEPTED else "rejected"
    data = event.data
    after = {
        **_about(event), "role": data.get("role"), "round": data.get("round"),
        "person": data.get("person"), "met": met is not None,
    }  # fmt: skip
    if met is None:  # somebody else was faster, or it was withdrawn meanwhile
        return Note(said, "handoff", journey_id(it.lead_id, _name(event)), None, after, it.lead_id)
    id = handoff_id(journey_id(it.lead_id, met.journey), met.offer)
    return Note(said, "handoff", id, {"state": "offered"}, {**after, "state": said}, it.lead_id)


_NOTES: Mapping[str, Callable[[LeadEvent, Became], Note]] = {
    MOVED_BY_HAND: _moved,
    ASSIGNED_BY_HAND: _assigned,
    MERGED_BY_HAND: _merged,
    UNMERGED_BY_HAND: _parted,
    HANDOFF_ACCEPTED: _answered,
    HANDOFF_REJECTED: _answered,
}
