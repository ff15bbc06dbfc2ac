"""Where a journey would have gone another way in a simulation, and why: in the playbook's words alone. Pure.

Nothing known of a person is in it: it is kept with the simulation, where nobody who wants to be forgotten is
looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import SOURCE
from services.contracts.simulations import Difference
from services.stage_service import offers
from services.stage_service.funnel import Held, Journey, Move
from services.stage_service.playbook import Playbook
from services.stage_service.why import label_of

Place = tuple[datetime, str, str]
"""Where an event stands among its lead's: time, source, id."""


class Step(msgspec.Struct, frozen=True, order=True):
    """A move as both sides know it: recorded, or made by the candidate."""

    occurred_at: datetime
    from_stage: str
    to_stage: str
    rule: str
    event_type: str
    event_source: str
    event_id: str


def step_of(move: Move) -> Step:
    """Give a move that the candidate made."""
    return Step(
        move.occurred_at, move.from_stage, move.to_stage, move.rule or "by-hand", move.event_type,
        move.event_source, move.event_id,
    )  # fmt: skip


def same(step: Step) -> tuple[Any, ...]:
    """Give what makes two moves the same to people: when, where to, by which event. Not the rule's name.

    Of a clock's move not when either: that hangs on whose hours it ran in, and on when it was learned of.
    """
    if step.event_source == SOURCE and step.event_type in offers.CLOCK_EVENTS:
        return (step.from_stage, step.to_stage, step.event_type)
    return (
        step.occurred_at, step.from_stage, step.to_stage, step.event_source, step.event_id,
    )  # fmt: skip


def _event_of(step: Step) -> Place:
    """Give the place of the event that made the move."""
    return step.occurred_at, step.event_source, step.event_id


def _explained(candidate: Playbook, move: Step) -> str:
    """Say why `candidate` makes `move`."""
    stages = candidate.stages
    ends = f"from {stages[move.from_stage].title} to {stages[move.to_stage].title}"
    rule = next((r for r in candidate.rules if r.key == move.rule), None)
    if rule is None:
        return f"Moved by hand {ends}."
    return f"Moved {ends} by rule {rule.key}: {rule.because}."


def difference(
    lead_id: str, name: str, before: Sequence[Step], after: Sequence[Step], candidate: Playbook,
    journey_at: Callable[[Place], Journey | None],
) -> Difference:  # fmt: skip
    """Tell of the journey `name`, whose moves are `before` today and `after` under `candidate`.

    `journey_at` gives it as the candidate has it after the event at a place.
    """
    index = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if same(a) != same(b)),
        min(len(before), len(after)),
    )
    was = before[index] if index < len(before) else None
    would = after[index] if index < len(after) else None
    # The earlier of the two is where the ways part: the other side did not move at that event, or elsewhere.
    first = min((s for s in (was, would) if s is not None), key=_event_of)
    moved = would is not None and _event_of(would) == _event_of(first)
    moved_today = was is not None and _event_of(was) == _event_of(first)
    why = _explained(candidate, would) if would is not None else ""
    if not moved:
        is_gated = _may_be_gated(candidate, first)
        stays = _stays(candidate, first, journey_at(_event_of(first)) if is_gated else None)
        why = f"{stays}; later: {why}" if why else f"{stays}."
    return Difference(
        lead_id, name, [s.to_stage for s in before], [s.to_stage for s in after], first.occurred_at,
        first.event_type, first.event_source, first.event_id,
        would.rule if would is not None and moved else None,
        was.rule if was is not None and moved_today else None, why,
    )  # fmt: skip


def _may_be_gated(candidate: Playbook, first: Step) -> bool:
    """Tell whether a gate may hold the journey at `first`: looking closer costs a fold of the lead."""
    rules = candidate.candidates(first.event_type, first.from_stage)
    ways = [candidate.stages.get(key) for key in (first.to_stage, *(rule.to for rule in rules))]
    return any(to is not None and (to.gate.require or to.gate.reason) for to in ways)


def _stays(candidate: Playbook, first: Step, journey: Journey | None) -> str:
    """Say why `candidate` does not make the move `first`, after whose event it has `journey`."""
    ends = f"from {first.from_stage} to {first.to_stage} at {first.event_type}"
    held = journey.held if journey is not None else []
    gated = next((h for h in held if h.to == first.to_stage), None)
    other = next((h for h in held if h.since == first.occurred_at), None)
    if gated is not None:
        return f"The gate of {gated.to} holds the move {ends}: {_missing(gated)}"
    if other is not None:
        return (
            f"No rule moves it {ends}; the gate of {other.to} holds the move of rule {other.rule}: "
            f"{_missing(other)}"
        )
    return f"No rule moves it {ends}"


def _missing(held: Held) -> str:
    """Say what a gate misses, by the names of the facts alone."""
    names = [label_of(name) if "." in name else name for name in held.missing]
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
