"""What a simulation answers, over HTTP and as a file: one document, whoever asked for it and however.

`baton playbook simulate --json`, ``GET /v1/playbooks/simulations/{id}/result`` and the page give the same
bytes for the same history, candidate and moment (`encoded`). Days are UTC, as ``2026-11-24``.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

SIMULATION = "baton.simulation"
"""Names the schema."""

Days = dict[str, dict[str, int]]
"""By role, by day."""


class Difference(msgspec.Struct, frozen=True, order=True):
    """A journey that would have gone another way; the first event at which the ways part, and why.

    `today` and `candidate` are the stages entered, in order, by the candidate's names. `rule` is the
    candidate's there (None: it makes no move), `rule_today` the recorded one's. `why` is in the candidate's
    words, its placeholders unfilled: nothing that is known of a person is in it.
    """

    lead_id: str
    journey: str
    today: list[str]
    candidate: list[str]
    at: datetime
    event_type: str
    event_source: str
    event_id: str
    rule: str | None
    rule_today: str | None
    why: str


class SimulatedStage(msgspec.Struct, frozen=True):
    """A stage that either side knows; `on_path`: it is on the candidate's way to won."""

    stage: str
    title: str
    on_path: bool


class StageNumbers(msgspec.Struct, frozen=True):
    """Of one stage: journeys that ever entered or passed it, moves into it, journeys in it now.

    `rate` is the share of `reached` that reached the next stage of the path; None at its end, off it, and
    where nobody came.
    """

    reached: int
    entered: int
    current: int
    rate: float | None


class SimulatedSide(msgspec.Struct, frozen=True):
    """One side's numbers.

    `alerts` are by the day of the move; `due` and `overdue` are the deadlines of handoffs by the day they
    fall on, all of them and those that were missed. `handoffs`, `missed` and `waiting` are those offered,
    answered too late or not yet, and still open, by role.
    """

    stages: dict[str, StageNumbers]
    alerts: Days
    due: Days
    overdue: Days
    handoffs: dict[str, int]
    missed: dict[str, int]
    waiting: dict[str, int]


class Simulated(msgspec.Struct, frozen=True):
    """A candidate playbook on real history, beside what happened.

    `until` is the moment the story ends, `since` when counting began (None: with the first event).
    `differences` are the first thousand by lead and journey; `differing` counts all.
    """

    playbook: str
    digest: str
    since: datetime | None
    until: datetime
    leads: int
    events: int
    journeys: int
    differing: int
    stages: list[SimulatedStage]
    today: SimulatedSide
    candidate: SimulatedSide
    differences: list[Difference]


def encoded(document: Simulated) -> bytes:
    """Give the document as JSON, the same bytes for the same numbers."""
    return msgspec.json.encode(document, order="deterministic")
