"""How far back late events rewrite history, and which lie beyond that. Pure.

An event is beyond the horizon when its place lies before the place of an event of the same lead that was
recorded longer ago than the horizon: what was reported for that long is no more rewritten. When something
happened plays no part, so years of history may be imported in any order. What lies beyond is stored,
names people as ever, and is not folded (docs/decisions/0026).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from services.contracts.events import SOURCE, LeadEvent

Place = tuple[datetime, str, str]
WARNING = (
    "it happened before what was recorded more than {days:g} days ago: kept, and not counted; "
    "history that was reported for so long is not rewritten"
)


def frozen_to(
    recorded: Iterable[LeadEvent], now: datetime, horizon: timedelta | None
) -> Place | None:
    """Give up to which place the history of a lead's `recorded` events stands; None: nothing is frozen."""
    if horizon is None:
        return None
    before = now - horizon
    return max((e.place for e in recorded if e.recorded_at < before), default=None)


def parted(
    events: Sequence[LeadEvent], frozen: Place | None
) -> tuple[list[LeadEvent], list[LeadEvent]]:
    """Part new `events` into those that count and those beyond the horizon.

    What Baton itself records always counts: it is about the present, whatever its time.
    """
    if frozen is None:
        return list(events), []
    beyond = [e for e in events if e.place < frozen and e.source != SOURCE]
    return [e for e in events if e not in beyond], beyond


def warning(horizon: timedelta) -> str:
    """Say to the sender of an event beyond the horizon what becomes of it."""
    return WARNING.format(days=horizon / timedelta(days=1))
