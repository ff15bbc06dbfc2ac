"""Tests of a playbook, written in YAML beside it: what is told, and what has to come of it. Pure.

A case is a story of one lead: events and waiting, with what is expected at any point of it and at its end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from services.contracts.cloudevents import CloudEvent, parse_time
from services.contracts.events import LeadEvent, lead_event
from services.contracts.problems import Defect
from services.contracts.yaml_source import Node, SourceError, read_yaml
from services.stage_service.clocks import steps_of
from services.stage_service.playbook import Playbook
from services.stage_service.playbook_succession import in_order
from services.stage_service.rehearsal import Rehearsal

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
"""When a story begins that does not say so: a Monday morning."""
EXPECT_KEYS = (
    "stage", "furthest", "transitions", "rules", "responsible", "alerts", "handoff", "clocks", "rings",
    "held", "score",
)  # fmt: skip
STEP_KINDS = ("event", "wait", "expect")
_DURATION = re.compile(r"(\d{1,6})(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Step:
    """One line of a story: an event told, a time waited, or something expected here."""

    line: int
    event: LeadEvent | None = None
    until: datetime | None = None
    expect: Expectation | None = None


@dataclass(frozen=True)
class Expectation:
    """What has to be; `wants` holds only what the file names."""

    line: int
    wants: dict[str, Any]
    lines: dict[str, int]


@dataclass(frozen=True)
class Case:
    """A named story about the journey `key`."""

    name: str
    line: int
    key: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Failure:
    """An expectation that was not met."""

    line: int
    what: str
    wanted: Any
    got: Any

    def __str__(self) -> str:
        """Give it as one line."""
        return f"{self.what}: expected {_shown(self.wanted)}, got {_shown(self.got)}"


@dataclass(frozen=True)
class Outcome:
    """How a case ended, and what of the playbook it touched."""

    case: Case
    failures: tuple[Failure, ...]
    stages: frozenset[str]
    rules: frozenset[str]
    clocks: frozenset[str]


def read_cases(text: str, file: str, playbook: Playbook) -> list[Case]:
    """Read the cases of the file named `file` (YAML). Raises SourceError with every mistake."""
    root = read_yaml(text, file)
    top = root.mapping(("playbook", "beside", "cases"), ("cases",))
    cases: list[Case] = []
    named: set[str] = set()
    for node in top["cases"].items() if "cases" in top else ():
        fields = node.mapping(("case", "deal", "steps", "expect"), ("case", "steps"))
        if "case" not in fields or "steps" not in fields:
            continue
        name = fields["case"].text("?")
        if name in named:
            fields["case"].refuse(f"the case {name!r} is here twice", "Give each its own name.")
        named.add(name)
        key = fields["deal"].text("main") if "deal" in fields else "main"
        story = _Story(playbook, key)
        for item in fields["steps"].items():
            story.read(item)
        if "expect" in fields:
            story.expect(fields["expect"])
        elif not any(s.expect for s in story.steps):
            node.refuse("the case expects nothing", "Add 'expect' with what has to come of it.")
        cases.append(Case(name, node.line, key, tuple(story.steps)))
    if not cases and not root.problems:
        root.refuse("there are no cases", "Add one under 'cases'.")
    if root.problems:
        raise SourceError(root.problems)
    return cases


class _Story:
    """The steps of one case being read; keeps the time of the story."""

    def __init__(self, playbook: Playbook, key: str) -> None:
        self._playbook = playbook
        self._key = key
        self._now = START
        self.steps: list[Step] = []

    def read(self, node: Node) -> None:
        fields = node.mapping(("event", "at", "after", "data", "source", "wait", "expect"))
        kinds = [k for k in STEP_KINDS if k in fields]
        if len(kinds) != 1:
            node.refuse("a step is an event, a wait or an expect", "Write one of them.")
        elif kinds == ["wait"]:
            self._now += _duration(fields["wait"])
            self.steps.append(Step(node.line, until=self._now))
        elif kinds == ["expect"]:
            self.expect(fields["expect"])
        else:
            self._event(node, fields)

    def _event(self, node: Node, fields: dict[str, Node]) -> None:
        if "at" in fields and "after" in fields:
            fields["after"].refuse("an event is either 'at' or 'after'", "Leave one out.")
        moment = self._now
        if "at" in fields:
            moment = _moment(fields["at"]) or moment
        elif "after" in fields:
            moment += _duration(fields["after"])
        if moment < self._now and self.steps:
            fields["at"].refuse("it is before the step before it", "Tell a story in its order.")
        self._now = moment
        data = _plain(fields["data"].value) if "data" in fields else {}
        if not isinstance(data, dict):
            fields["data"].refuse("data is not a mapping", "Write 'name: value' lines.")
            data = {}
        content = cast("dict[str, Any]", data)
        if self._key != "main":
            content = {"deal": self._key, **content}
        source = fields["source"].text() if "source" in fields else "/test"
        told = CloudEvent(
            f"{len(self.steps) + 1}", source, fields["event"].text(), moment, None, content,
            "application/json", None, {}, None,
        )  # fmt: skip
        event = lead_event(told, moment)
        if isinstance(event, Defect):
            node.refuse(f"{event.field}: {event.reason}", event.remedy)
            return
        self.steps.append(Step(node.line, event=event))

    def expect(self, node: Node) -> None:
        """Read an expectation; what it names must be in the playbook."""
        fields = node.mapping(EXPECT_KEYS)
        if not fields:
            node.refuse("it expects nothing", f"Known here: {', '.join(EXPECT_KEYS)}.")
        playbook = self._playbook
        known = {
            "stage": playbook.stages, "furthest": playbook.stages, "transitions": playbook.stages,
            "responsible": playbook.roles, "alerts": playbook.roles,
            "rules": [*(r.key for r in playbook.rules), "by-hand"],
            "clocks": [p.key for p in _plans(playbook)],
        }  # fmt: skip
        wants: dict[str, Any] = {}
        for key, inner in fields.items():
            wants[key] = _plain(inner.value)
            if key in known:
                for item in inner.items():
                    item.one_of(known[key], key.rstrip("s"))
            if key in ("transitions", "alerts", "rules", "clocks", "rings"):
                wants[key] = [_plain(item.value) for item in inner.items()]
        self.steps.append(
            Step(node.line, expect=Expectation(node.line, wants, {k: n.line for k, n in fields.items()}))
        )  # fmt: skip


def _plans(playbook: Playbook) -> list[Any]:
    return [*playbook.clocks, *(h.clock for h in playbook.handoffs.values())]


def _duration(node: Node) -> timedelta:
    text = node.text("0s")
    match = _DURATION.fullmatch(text)
    if match is None:
        node.refuse(f"{text!r} is not a duration", "Write a number and s, m, h, d or w: 30m, 4h.")
        return timedelta()
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def _moment(node: Node) -> datetime | None:
    value = node.value
    if isinstance(value, datetime):
        value = value if value.tzinfo else value.replace(tzinfo=UTC)
        return datetime.fromisoformat(value.isoformat())
    found = parse_time(value) if isinstance(value, str) else None
    if found is None:
        node.refuse(f"{value!r} is not a time", "Write it as 2026-03-02T09:00:00Z.")
    return found


def _plain(value: Any) -> Any:
    """Give a YAML value as plain Python, times as RFC 3339 text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_plain(v) for v in cast("list[Any]", value)]
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value if value is None else str(value)


def run_case(case: Case, playbook: Playbook, beside: Sequence[Playbook] = ()) -> Outcome:
    """Play `case` under `playbook`, with those `beside` it; what is expected and touched is `playbook`'s."""
    rehearsal = Rehearsal(in_order({p.name: p for p in (*beside, playbook)}))
    failures: list[Failure] = []
    for step in case.steps:
        if step.event is not None:
            rehearsal.tell(step.event)
        elif step.until is not None:
            rehearsal.wait_until(step.until)
        elif step.expect is not None:
            failures += _compared(step.expect, _seen(rehearsal, playbook, case.key))
    moves = [m for m in rehearsal.moves if m.playbook == playbook.name]
    journeys = rehearsal.lead.journeys.values() if rehearsal.lead is not None else ()
    begun = any(j.playbook == playbook.name for j in journeys)
    return Outcome(
        case,
        tuple(failures),
        frozenset({playbook.first_stage, *(m.to_stage for m in moves)} if begun else ()),
        frozenset(m.rule for m in moves if m.rule is not None),
        frozenset(r.clock for r in rehearsal.rings if r.playbook == playbook.name),
    )


def _seen(rehearsal: Rehearsal, playbook: Playbook, key: str) -> dict[str, Any]:
    """Give what the story came to so far, under the keys of an expectation."""
    name = playbook.name
    journey = rehearsal.journey(name, key)
    moves = [m for m in rehearsal.moves if (m.playbook, m.key) == (name, key)]
    stage = playbook.stages[journey.stage] if journey is not None else None
    score = rehearsal.score(name)
    offer = journey.offer if journey is not None else None
    return {
        "stage": stage.key if stage is not None else None,
        "furthest": journey.furthest if journey is not None else None,
        "transitions": [m.to_stage for m in moves],
        "rules": [m.rule or "by-hand" for m in moves],
        "responsible": stage.responsible[0] if stage is not None else None,
        "alerts": rehearsal.alerts(name, key),
        "handoff": {"role": offer.role, "state": offer.state, "overdue": offer.overdue_at is not None}
        if offer is not None else None,
        "clocks": sorted(rehearsal.clocks_of(name, key)),
        "rings": [f"{r.clock} {r.step} {r.to}" for r in rehearsal.rings if r.playbook == name],
        "held": {h.to: h.missing for h in journey.held} if journey is not None else {},
        "score": {"fit": score.fit, "intent": score.intent, "total": score.total},
    }  # fmt: skip


def _compared(expectation: Expectation, seen: dict[str, Any]) -> list[Failure]:
    """Compare; of a mapping only the members that are named count."""
    failures: list[Failure] = []
    for key, told in expectation.wants.items():
        got = seen[key]
        wanted = sorted(told) if key == "clocks" else told
        if isinstance(wanted, dict) and isinstance(got, dict):
            members = cast("dict[str, Any]", wanted)
            there = cast("dict[str, Any]", got)
            same = (key != "held" or members.keys() == there.keys()) and all(
                _matches(v, there.get(k)) for k, v in members.items()
            )
        else:
            same = _matches(wanted, got)
        if not same:
            failures.append(Failure(expectation.lines[key], key, wanted, got))
    return failures


def _matches(wanted: Any, got: Any) -> bool:
    """Compare a value; ``">= 40"`` and ``"< 40"`` compare numbers."""
    if isinstance(wanted, str) and isinstance(got, int | float) and not isinstance(got, bool):
        match = re.fullmatch(r"(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)", wanted)
        if match is None:
            return False
        limit = float(match[2])
        return {
            ">=": got >= limit, "<=": got <= limit, ">": got > limit, "<": got < limit,
        }[match[1]]  # fmt: skip
    return bool(wanted == got)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(v) for v in cast("list[Any]", value)) or "none"
    return "none" if value in (None, {}) else str(value)


@dataclass(frozen=True)
class Coverage:
    """What of a playbook no case touched."""

    stages: tuple[str, ...]
    rules: tuple[str, ...]
    clocks: tuple[str, ...]
    of: int
    touched: int

    @property
    def share(self) -> float:
        """Give the share of stages, rules and clocks that were touched, 0 to 1."""
        return self.touched / self.of if self.of else 1.0


def coverage(playbook: Playbook, outcomes: list[Outcome]) -> Coverage:
    """Give what the cases that were run left untouched."""
    touched: dict[str, set[str]] = {"stages": set(), "rules": set(), "clocks": set()}
    for outcome in outcomes:
        touched["stages"] |= outcome.stages
        touched["rules"] |= outcome.rules
        touched["clocks"] |= outcome.clocks
    all_of = {
        "stages": list(playbook.stages), "rules": [r.key for r in playbook.rules],
        "clocks": [p.key for p in _plans(playbook) if steps_of(p)],
    }  # fmt: skip
    left = {k: tuple(x for x in every if x not in touched[k]) for k, every in all_of.items()}
    of = sum(map(len, all_of.values()))
    return Coverage(
        left["stages"], left["rules"], left["clocks"], of, of - sum(map(len, left.values()))
    )
