"""Walks through the quarter: time goes from one moment at which something is due to the next.

At each moment the lead events that arrive are submitted, people answer what they decided to answer, and
everything that is due is done. What is published is read, and people react to it.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec

from services.contracts.events import ASSIGNED_BY_HAND, MAIN, SOURCE, LeadEvent, Message
from services.contracts.handoffs import (
    CLOCK_RANG,
    HANDOFF_ACCEPTED,
    HANDOFF_REJECTED,
    OFFERED,
    ClockRang,
    HandoffTold,
)
from services.stage_service.identities import LEAD_IDENTITY
from tests.system.quarter import leads
from tests.system.quarter.leads import REJECTION, Told, slot
from tests.system.quarter.reading import Book
from tests.system.quarter.roster import END, Change

CRM = "/crm"
LEADER_ACTS_S = 7200.0
OTHER_ACTS_S = 1800.0
A_MOMENT = timedelta(milliseconds=1)
"""Rejections and assignments come one by one after the rest: so the order of decisions is on record."""
_END = datetime(END.year, END.month, END.day, tzinfo=UTC)


@dataclass(frozen=True)
class Plan:
    """What somebody will do; `alone`: it decides who gets a lead, and comes by itself."""

    make: Callable[[datetime], LeadEvent]
    alone: bool = False


class World(Protocol):
    """What the walk needs of the Baton that it drives."""

    async def submit(self, events: list[LeadEvent]) -> None:
        """Have lead events applied."""
        ...

    async def put(self, document: dict[str, Any]) -> None:
        """Add or change a person."""
        ...

    async def take_off(self, id: str) -> None:
        """Take a person off the roster."""
        ...

    async def held_by(self, id: str) -> list[tuple[str, str]]:
        """Give the lead and the role of each journey that the person holds."""
        ...

    async def settle(self) -> list[Message]:
        """Do what is due; give what was published."""
        ...

    async def next_due(self) -> datetime | None:
        """Give the next moment at which anything is due."""
        ...

    async def what_is_due(self) -> list[str]:
        """Name what is due, for whoever has to find out why it stays so."""
        ...

    def be(self, moment: datetime) -> None:
        """Make it `moment`."""
        ...


class Walk:
    """One walk through the quarter; `book` learns the roster as it changes."""

    def __init__(
        self,
        world: World,
        book: Book,
        seed: int,
        stories: Iterator[Told],
        changes: list[Change],
        grid: timedelta | None = None,
    ) -> None:
        """With a `grid`, time goes on by whole multiples of it only."""
        self._grid = grid
        self._world = world
        self._book = book
        self._seed = seed
        self._stories = stories
        self._next: Told | None = next(stories, None)
        self._plans: list[tuple[datetime, int, Plan]] = []
        self._changes = list(changes)
        self._offers: Counter[tuple[str, str]] = Counter()
        self._number = 0
        self._last = datetime.min.replace(tzinfo=UTC)
        self.published: list[Message] = []
        self.steps = 0
        self.events = 0

    async def run(self, before_step: Callable[[], None] = lambda: None) -> None:
        """Walk to the end of the quarter; `before_step` is called before each."""
        while (now := await self._next_moment()) < _END:
            if now <= self._last:
                raise AssertionError(
                    f"due at {now} and still so: {await self._world.what_is_due()}"
                )
            self._last = now
            before_step()
            await self._step(now)
            self.steps += 1

    async def _next_moment(self) -> datetime:
        due = await self._world.next_due()
        moments = [due, self._next.arrives if self._next else None,
                   self._plans[0][0] if self._plans else None,
                   self._changes[0].at if self._changes else None]  # fmt: skip
        moment = min((m for m in moments if m is not None), default=_END)
        if self._grid is None:
            return moment
        return moment + (_END - moment) % self._grid

    async def _step(self, now: datetime) -> None:
        self._world.be(now)
        after: list[Plan] = []
        while self._changes and self._changes[0].at <= now:
            after += await self._change(self._changes.pop(0), now)
        events: list[LeadEvent] = []
        while self._next is not None and self._next.arrives <= now:
            events.append(_event(self._next, now))
            self._next = next(self._stories, None)
        while self._plans and self._plans[0][0] <= now:
            plan = heapq.heappop(self._plans)[2]
            if plan.alone:
                after.append(plan)
            else:
                events.append(plan.make(now))
        await self._submit(events)
        for number, plan in enumerate(after, 1):
            moment = now + number * A_MOMENT
            self._world.be(moment)
            await self._submit([plan.make(moment)])
        for message in await self._world.settle():
            self._react(message, now)
            self.published.append(message)

    async def _submit(self, events: list[LeadEvent]) -> None:
        if events:
            await self._world.submit(events)
            self.events += len(events)

    async def _change(self, change: Change, now: datetime) -> list[Plan]:
        """Change the roster; give what hands on the journeys of who leaves."""
        if change.document is not None:
            self._book.put(now, change.document)
            await self._world.put(change.document)
        if change.leaves is None:
            return []
        self._book.leave(now, change.leaves)
        await self._world.take_off(change.leaves)
        return [
            self._assignment(lead, role, "they leave", [change.leaves], "Sofia")
            for lead, role in await self._world.held_by(change.leaves)
        ]

    def _react(self, message: Message, now: datetime) -> None:
        """Have people decide what they do about what they hear."""
        if message.type == OFFERED:
            self._offered(msgspec.json.decode(message.value, type=HandoffTold), now)
        elif message.type == CLOCK_RANG:
            rang = msgspec.json.decode(message.value, type=ClockRang)
            if rang.step == "escalate" and rang.handoff_id is not None:
                self._escalated(rang, now)

    def _offered(self, told: HandoffTold, now: datetime) -> None:
        assert told.lead.email is not None
        key = (told.lead.email, told.role)
        self._offers[key] += 1
        owner = self._book.person(told.owner.id, now) if told.owner else None
        if owner is None:
            return
        answer = leads.answer(self._seed, *key, self._offers[key])
        at = slot(owner.deadline(now, answer.after_s))
        if answer.what == "nothing" or owner.away(at) is not None:
            return
        values: dict[str, Any] = {
            "role": told.role,
            "round": told.round,
            "person": told.owner and told.owner.id,
        }
        type = HANDOFF_ACCEPTED
        if answer.what == "reject":
            type, values["reason"] = HANDOFF_REJECTED, REJECTION
        self._plan(at, self._answer(type, told.lead.email, values))

    def _escalated(self, rang: ClockRang, now: datetime) -> None:
        """Have who hears of a missed deadline act: at the ladder's end always, before it every other time."""
        people = [p for w in rang.alerts if w.person and (p := self._book.person(w.person.id, now))]
        if not people or rang.lead.email is None:
            return
        leaders = [p for p in people if "sales_leadership" in p.document["roles"]]
        who = (leaders or people)[0]
        chance = random.Random(f"{self._seed} {rang.lead.email} {rang.role} {rang.deadline}")
        if not leaders and chance.random() < 0.5:
            return
        at = slot(who.deadline(now, LEADER_ACTS_S if leaders else OTHER_ACTS_S))
        if chance.random() < 0.5:
            values = {"role": rang.role, "person": who.document["id"]}
            self._plan(at, self._answer(HANDOFF_ACCEPTED, rang.lead.email, values))
        else:
            without = [rang.owner.id] if rang.owner else []
            self._plan(at, self._assignment(
                rang.lead.id, rang.role, "nobody answered", without, who.document["name"]
            ))  # fmt: skip

    def _plan(self, at: datetime, plan: Plan) -> None:
        self._number += 1
        at = max(at, slot(self._last + A_MOMENT))  # nobody answers in the moment they hear of it
        heapq.heappush(self._plans, (at, self._number, plan))

    def _answer(self, type: str, email: str, values: dict[str, Any]) -> Plan:
        self._number += 1
        id, data, who = f"a{self._number}", {"email": email, **values}, (("email", email),)
        return Plan(
            lambda now: LeadEvent(id, CRM, type, now, now, None, who, MAIN, data, {}),
            alone=type == HANDOFF_REJECTED,
        )

    def _assignment(
        self, lead: str, role: str, reason: str, without: list[str], actor: str
    ) -> Plan:
        self._number += 1
        id = f"by-hand-{self._number}"
        values = {"role": role, "person": None, "reason": reason, "playbook": "sales",
                  "actor": actor, "without": without}  # fmt: skip
        who = ((LEAD_IDENTITY, lead),)
        return Plan(
            lambda now: LeadEvent(
                id, SOURCE, ASSIGNED_BY_HAND, now, now, None, who, MAIN, values, {}
            ),
            alone=True,
        )


def _event(told: Told, now: datetime) -> LeadEvent:
    return LeadEvent(
        told.id, "/shop", told.type, told.time, now, None, (("email", told.email),), MAIN,
        {"email": told.email, **told.values}, {},
    )  # fmt: skip
