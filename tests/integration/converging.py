"""Random histories of up to five people, and every way in which they may arrive; for tests of convergence.

A history and its arrival are read from a few bytes, so that Hypothesis makes and shrinks them quickly.
What they must end in is computed here by joining what events name and folding each person's events in the
order of their places, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import strategies as st

from services.contracts.events import (
    ASSIGNED_BY_HAND,
    MAIN,
    MOVED_BY_HAND,
    SOURCE,
    LeadEvent,
    identities_of,
    rfc3339,
)
from services.contracts.problems import Defect
from services.stage_service.identities import LEAD_IDENTITY

PEOPLE = 5
EVENTS_MAX = 60
START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
EVENT_BYTES = 6
ARRIVAL_BYTES = 3
TYPES = (
    "lead.created", "page.viewed", "content.downloaded", "demo.requested", "meeting.booked",
    "meeting.held", "proposal.sent", "contract.sent", "deal.won", "deal.lost", "lead.disqualified",
    "lead.recycled", "webinar.attended", "form.submitted", "lead.marketing_qualified",
    "lead.sales_qualified", "handoff.accepted", "handoff.rejected", "lead.updated",
)  # fmt: skip
STAGES = ("lead", "mql", "sql", "proposal", "closing", "closed_won", "nurture", "disqualified",
          "closed_lost")  # fmt: skip
CLOCKS = (("qualify", "stage", "mql", "lead_agent"), ("signature", "stage", "closing", "ae"),
          ("silent", "activity", "sql", "ae"), ("handoff-lead_agent", "handoff", "mql", "lead_agent"),
          ("handoff-ae", "handoff", "sql", "ae"))  # fmt: skip
ASSIGNEES = (("lead_agent", "jonas"), ("ae", "marcus"), ("ae", "elena"), ("ae", None))
FACTS: tuple[dict[str, Any], ...] = (
    {}, {}, {}, {"employees": 3}, {"employees": 900}, {"employees": "many"}, {"seniority": "vp"},
    {"company": "Acme", "phone_kind": None}, {"company": "Beta", "budget": 2.5e17},
    {"amount": 10, "currency": "EUR"}, {"amount": 20.0}, {"nested": {"b": [1, 2.0], "a": None}},
)  # fmt: skip


@dataclass
class Said:
    """An event of a history; `target`: the event whose lead one of Baton's own is about."""

    event: LeadEvent
    target: int | None = None


@dataclass
class History:
    """What happened, and in which batches it arrives: indexes into `said`."""

    mark: str
    said: list[Said]
    batches: list[list[int]] = field(default_factory=list[list[int]])


Drawn = tuple[bytes, bytes]
"""A history and its arrival, as `read` reads them."""


def histories() -> st.SearchStrategy[Drawn]:
    """Give histories of one to 60 events, most often of few."""
    sizes = st.one_of(
        st.integers(1, 8), st.integers(2, 12), st.integers(4, 20), st.integers(1, EVENTS_MAX)
    )
    return sizes.flatmap(
        lambda n: st.tuples(
            st.binary(min_size=n * EVENT_BYTES, max_size=n * EVENT_BYTES),
            st.binary(min_size=n * ARRIVAL_BYTES, max_size=n * ARRIVAL_BYTES),
        )
    )


def read(drawn: Drawn, mark: str, kinds: Sequence[str]) -> History:
    """Make the history that the bytes mean; its identities carry `mark`, so that no two meet."""
    what, arrival = drawn
    said: list[Said] = []
    for n in range(len(what) // EVENT_BYTES):
        code = what[n * EVENT_BYTES : (n + 1) * EVENT_BYTES]
        said.append(_said(n, code, mark, kinds[code[0] % len(kinds)], said))
    order: list[tuple[int, int, int]] = []
    cuts: dict[int, int] = {}
    for n in range(len(said)):
        rank, again, cut = arrival[n * ARRIVAL_BYTES : (n + 1) * ARRIVAL_BYTES]
        order.append((rank, 0, n))
        if again % 4 == 0:
            order.append((again, 1, n))
        cuts[n] = cut % 5
    batches: list[list[int]] = [[]]
    for _, _, n in sorted(order):
        batches[-1].append(n)
        if cuts[n] == 0:
            batches.append([])
    return History(mark, said, [b for b in batches if b])


def identity(mark: str, person: int, n: int) -> dict[str, Any]:
    """Give one of a person's identities: two addresses and two ids, which name them alone, then weak ones."""
    who = f"{mark}p{person}"
    return [
        {"email": f"{who}@x.example"}, {"external_ids": {"crm": who}},
        {"email": f"{who}.other@y.example"}, {"external_ids": {"shop": who}},
        {"anonymous_id": f"a{who}"}, {"anonymous_id": f"b{who}"},
    ][n]  # fmt: skip


def _said(n: int, code: bytes, mark: str, kind: str, before: Sequence[Said]) -> Said:
    _, who, which, minute, more, value = code
    person, time = who % PEOPLE, START + timedelta(minutes=minute % 48)
    told = [i for i, s in enumerate(before) if s.target is None]
    if kind in ("move", "assign", "clock", "answer") and told:
        return _own(n, kind, told[who % len(told)], time, which, more, value, mark, before)
    data: dict[str, Any] = identity(mark, person, which % 4)
    if kind == "visit":
        data = identity(mark, person, 4 + which % 2)
    elif kind == "identify":  # a browser is seen with one of its owner's names
        data = identity(mark, person, 4 + which % 2) | identity(mark, person, 0)
    elif kind == "alias":  # two names of one person; now and then it shows that two are one
        other = (person + 1) % PEOPLE if more % 8 == 0 else person
        first, second = which % 2, 2 + which // 2 % 2
        data = identity(mark, person, first)
        for name, told_value in identity(mark, other, second).items():
            if name == "email" and name in data:
                data = identity(mark, person, 1) | {name: told_value}
            elif name == "external_ids":
                data = {**data, name: {**data.get(name, {}), **told_value}}
            else:
                data = {**data, name: told_value}
    data = {**data, **FACTS[value % len(FACTS)]}
    if more % 3 == 0:
        data["reason"] = "r"
    if more % 7 == 0:
        data["with_role"] = "lead_agent"
    deal = f"D-{which % 2}" if kind == "deal" else MAIN
    type = TYPES[value // 2 % len(TYPES)] if kind != "facts" else "lead.updated"
    return Said(_event(n, ("/a", "/b")[more % 2], type, time, deal, data, mark))


def _own(
    n: int, kind: str, target: int, time: datetime, which: int, more: int, value: int, mark: str,
    before: Sequence[Said],
) -> Said:  # fmt: skip
    """One of Baton's own events, about the lead that the event `target` is of."""
    about = before[target].event
    source, data = SOURCE, {"playbook": "sales", "actor": "me"}
    match kind:
        case "move":
            type = MOVED_BY_HAND
            data |= {"to": STAGES[which % len(STAGES)], "reason": "r", "force": more % 2 == 0}
        case "assign":
            type = ASSIGNED_BY_HAND
            role, person = ASSIGNEES[which % len(ASSIGNEES)]
            data |= {"role": role, "reason": "r"} | ({"person": person} if person else {})
        case "clock":
            key, what, stage, role = CLOCKS[which % len(CLOCKS)]
            type = ("baton.clock.fired", "baton.clock.reminded", "baton.clock.escalated")[more % 3]
            step = {"baton.clock.fired": "due", "baton.clock.reminded": "remind-0"}.get(
                type, "escalate-0"
            )
            since = before[value % len(before)].event.time
            time = max(time, since)
            data |= {"clock": key, "kind": what, "stage": stage, "role": role, "step": step,
                     "since": rfc3339(since), "round": 1 + value % 2}  # fmt: skip
        case _:
            type = ("handoff.accepted", "handoff.rejected")[more % 2]
            data |= {"reason": "r", "person": ("jonas", "marcus", "elena")[which % 3]}
            if value % 2:
                data["role"] = ("lead_agent", "ae", "csm")[value % 3]
    made = _event(n, source, type, time, about.deal, data, mark)
    return Said(msgspec.structs.replace(made, identities=()), target)


def _event(
    n: int, source: str, type: str, time: datetime, deal: str, data: dict[str, Any], mark: str
) -> LeadEvent:
    identities = identities_of(data)
    assert not isinstance(identities, Defect)
    return LeadEvent(
        f"{mark}e{n % 10}{n}", source, type, time, time, None, identities, deal, data, {}
    )


def addressed(said: Said, lead_id: str) -> LeadEvent:
    """Give one of Baton's own events as it is recorded of the lead `lead_id`."""
    return msgspec.structs.replace(said.event, identities=((LEAD_IDENTITY, lead_id),))


def people_of(said: Sequence[Said]) -> list[tuple[set[tuple[str, str]], list[LeadEvent]]]:
    """Give who belongs together, with their events, by joining what events name; without the code tested."""
    groups: list[tuple[set[tuple[str, str]], set[int]]] = []
    for n, each in enumerate(said):
        if each.target is not None:
            continue
        keys, mine = set(each.event.identities), {n}
        apart: list[tuple[set[tuple[str, str]], set[int]]] = []
        for names, numbers in groups:
            if names & keys:
                keys |= names
                mine |= numbers
            else:
                apart.append((names, numbers))
        groups = [*apart, (keys, mine)]
    found: list[tuple[set[tuple[str, str]], list[LeadEvent]]] = []
    for names, numbers in groups:
        own = {n for n, each in enumerate(said) if each.target in numbers}
        found.append((names, [said[n].event for n in sorted(numbers | own)]))
    return found
