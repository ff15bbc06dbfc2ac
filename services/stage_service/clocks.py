"""Deadlines: which clocks a journey has now, when their steps are due, and who hears of them. Pure.

A clock's time is the working hours of the person who has to act, or the wall's. Its steps are its reminders,
the deadline, and the rungs of its ladder. What runs is a fact of the journey (`Ticking`), since when it is
due depends on the roster (docs/decisions/0021).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

import msgspec

from services.contracts import calendars
from services.contracts.events import rfc3339
from services.contracts.handoffs import CLOCK_ESCALATED, CLOCK_FIRED, CLOCK_REMINDED
from services.contracts.team import Person, Team
from services.stage_service.ids import ids_of_names
from services.stage_service.offers import Offer
from services.stage_service.playbook import ClockPlan, Playbook

LEADERSHIP = "sales_leadership"
ROLE_TOLD_MAX = 5
LATE_AFTER = timedelta(seconds=5)
EVENT_TYPES = {"remind": CLOCK_REMINDED, "due": CLOCK_FIRED, "escalate": CLOCK_ESCALATED}
GONE_STEP = "gone"
"""The step of a clock that the playbook does not have any more: it tells nobody, and ends."""
_clocks = ids_of_names(uuid.UUID("6d0a4c52-8a6d-4b9c-9f62-9b6f0b0f1b77"))
KINDS = {"offered": "handoff", "entered": "stage", "activity": "activity"}


class Ticking(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A clock that runs: `step` is the next to fire, `due_at` when (None: all have); `told` who heard.

    Its time counts from `begin`: when it was learned that it runs, if that was after `since`. Nobody has
    missed a deadline of which nobody could know, and importing years of history alarms nobody.
    """

    id: str
    since: datetime
    deadline: datetime
    step: int
    due_at: datetime | None
    person: str | None
    handoff_id: str | None
    stage: str
    begin: datetime
    told: list[str]


class Step(NamedTuple):
    """One moment of a clock: `offset_s` from its start, in its own time."""

    kind: str
    offset_s: float
    to: str

    @property
    def name(self) -> str:
        """Give what tells it from the clock's other steps, in every version of the playbook."""
        return "due" if self.kind == "due" else f"{self.kind}-{self.offset_s:.0f}-{self.to}"


class Wanted(NamedTuple):
    """A clock that a journey has as it stands."""

    plan: ClockPlan
    kind: str
    role: str
    stage: str
    since: datetime
    handoff_id: str | None


@lru_cache(maxsize=1024)
def steps_of(plan: ClockPlan) -> tuple[Step, ...]:
    """Give the steps of a clock in the order they are due."""
    return (
        *(Step("remind", plan.within_s - before, "owner") for before in plan.remind_s),
        Step("due", plan.within_s, "owner"),
        *(Step("escalate", plan.within_s + rung.after_s, rung.to) for rung in plan.escalate),
    )


def reached(plan: ClockPlan, since: datetime, offset_s: float, person: Person | None) -> datetime:
    """Give when `offset_s` seconds of the clock's time have passed since `since`, in UTC.

    In working time of `person`; on the wall where there is nobody, or who never works.
    """
    if plan.wall or person is None:
        return since.astimezone(UTC) + timedelta(seconds=offset_s)
    return _worked(person, since, offset_s)


@lru_cache(maxsize=1024)
def _worked(person: Person, since: datetime, seconds: float) -> datetime:
    """Give when `person` has worked `seconds` since then: a batch asks the same of each of its offers."""
    done = calendars.add_business(person, since, seconds)
    return done if done is not None else since.astimezone(UTC) + timedelta(seconds=seconds)


def wanted(
    playbook: Playbook,
    stage: str,
    entered_at: datetime,
    active_at: datetime,
    offer: Offer | None,
    handoff_id: str | None,
) -> dict[str, Wanted]:
    """Give the clocks that a journey has now, by key: its stage's, and its open offer's."""
    found: dict[str, Wanted] = {}
    place = playbook.stages.get(stage)
    if place is None:
        return found
    for plan in playbook.clocks:
        if stage in plan.stages:
            since = active_at if plan.since == "activity" else entered_at
            found[plan.key] = Wanted(
                plan, KINDS[plan.since], place.responsible[0], stage, since, None
            )
    if offer is not None and offer.is_open:
        handoff = playbook.handoffs.get(offer.role)
        if handoff is not None:
            found[handoff.clock.key] = Wanted(
                handoff.clock, "handoff", offer.role, offer.stage, offer.offered_at, handoff_id
            )
    return found


def plan_of(playbook: Playbook, key: str) -> ClockPlan | None:
    """Give the clock `key` of a playbook: a stage's, or a handoff's."""
    plans = (*playbook.clocks, *(h.clock for h in playbook.handoffs.values()))
    return next((p for p in plans if p.key == key), None)


def wound(journey_id: str, want: Wanted, person: Person | None, now: datetime) -> Ticking:
    """Start the clock `want` of a journey, learned of `now`; its first step is the first reminder."""
    plan, begin = want.plan, max(want.since, now)
    first = steps_of(plan)[0]
    return Ticking(
        clock_id(journey_id, want),
        want.since,
        reached(plan, begin, plan.within_s, person),
        0,
        reached(plan, begin, first.offset_s, person),
        person.id if person is not None else None,
        want.handoff_id,
        want.stage,
        begin,
        [],
    )


def clock_id(journey_id: str, want: Wanted) -> str:
    """Give the id of a journey's clock: the same for the same start."""
    text = f"{journey_id}/{want.plan.key}/{want.stage}/{want.since.isoformat()}/{want.handoff_id or ''}"
    return _clocks(text)


def struck(
    clock: Ticking, plan: ClockPlan, step: int, since: datetime, person: Person | None
) -> Ticking:
    """Give the clock after its `step` has fired: the next one is due, if there is one."""
    steps, begin = steps_of(plan), max(since, clock.begin)
    due_at = None
    if step + 1 < len(steps):
        due_at = reached(plan, begin, steps[step + 1].offset_s, person)
    return msgspec.structs.replace(
        clock, step=step + 1, due_at=due_at, since=since, begin=begin,
        deadline=reached(plan, begin, plan.within_s, person) if begin > clock.begin else clock.deadline,
    )  # fmt: skip


def step_now(
    plan: ClockPlan, step: int, due_at: datetime, deadline: datetime, now: datetime, *, missed: bool
) -> tuple[int, datetime]:
    """Give the step to fire `now` and when it was due.

    No reminder of a deadline that has passed, and nothing after it before it was told itself, also where
    a new version of the playbook has other steps than the clock began with.
    """
    deadline_step = len(plan.remind_s)
    if not missed:
        return (deadline_step, deadline) if now >= deadline else (step, due_at)
    return max(step, deadline_step + 1), due_at


def step_named(plan: ClockPlan, name: str) -> int | None:
    """Give which step of a clock is called `name`; None when this version has none."""
    return next((i for i, step in enumerate(steps_of(plan)) if step.name == name), None)


def event_id(clock_id: str, since: datetime, step: str) -> str:
    """Give the id of a step's lead event: one a clock, start and step, whoever fires it (I2)."""
    return f"{clock_id}:{rfc3339(since)}:{step}"


def listeners(
    to: str, role: str, owner: str | None, told: Collection[str], team: Team, now: datetime
) -> Iterator[tuple[Person, str]]:
    """Give who hears of a step that is for `to`, and as what; who was told before does not again.

    Nobody for ``stand_in`` when the owner is there. Where a role has no lead left to tell, it is sales
    leadership.
    """
    known = team.by_id.get(owner or "")
    if to == "owner":
        if known is not None:
            yield known, "owner"
        return
    heard = {*told, *((owner,) if owner else ())}
    if to == "stand_in":
        absence = calendars.away_at(known, now) if known is not None else None
        stand_in = team.by_id.get((absence.stand_in or "") if absence is not None else "")
        if stand_in is not None and stand_in.id not in heard:
            yield stand_in, "stand-in"
        return
    if to == "role_lead":
        people = [(p, f"lead of {role}") for p in team.people if role in p.leads]
    elif to in team.by_id:
        people = [(team.by_id[to], "named in the playbook")]
    else:
        people = [(p, to.replace("_", " ")) for p in team.by_role.get(to, ())]
    fresh = [(p, rung) for p, rung in people if p.id not in heard]
    if not fresh and to != LEADERSHIP:
        leaders = team.by_role.get(LEADERSHIP, ())
        fresh = [(p, "sales leadership") for p in leaders if p.id not in heard]
    yield from fresh[:ROLE_TOLD_MAX]
