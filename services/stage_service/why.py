"""Why a journey is where it is and not elsewhere: each rule of its stage, clause by clause. Pure.

A rule's verdict is the fold's own: the clauses are what the condition is made of, and their values come
from the same `Case`. What only the event can tell is ``depends`` until there is an event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from services.contracts.events import LeadEvent
from services.contracts.published import Score
from services.stage_service import offers
from services.stage_service.clauses import clauses_of, variables_of
from services.stage_service.conditions import Condition
from services.stage_service.journeys import Journey, Lead
from services.stage_service.judging import Case, unmet
from services.stage_service.playbook import Playbook, Rule, coerce
from services.stage_service.scoring import Scoring, score_at

Verdict: TypeAlias = Literal["true", "false", "unknown", "depends"]
"""``unknown``: a value is missing; ``depends``: on what the event says. Neither is true."""

_WEIGHTS: dict[Verdict, int] = {"true": 0, "depends": 1, "unknown": 2, "false": 3}
POINTS_LOOKED_AHEAD_MAX = 1000
YEARS_LOOKED_AHEAD_S = 20 * 366 * 86_400.0
A_HANDOFF_WAITS = "a handoff waits for an answer"


class Value(msgspec.Struct, frozen=True):
    """A value that a clause asks for; None: not known. `unit` is ``points`` or None."""

    name: str
    label: str
    type: str
    value: Any
    unit: str | None = None


class Clause(msgspec.Struct, frozen=True):
    """One clause of a rule's condition, and whether it is true."""

    text: str
    verdict: Verdict
    values: list[Value]
    missing: list[str]
    """The names of what is not known and kept it from being judged."""
    changes_at: datetime | None = None
    """When the verdict turns if nothing happens: a score decays."""


class GateWhy(msgspec.Struct, frozen=True):
    """What the stage that a rule leads to demands on entry; `missing`: which facts of it are not there.

    `reason`: the event must say one.
    """

    require: list[Value]
    reason: bool
    missing: list[str]


class EventType(msgspec.Struct, frozen=True):
    """A type of event that a rule waits for, and how it reads to people."""

    type: str
    label: str
    depends: bool = False
    """What such an event says decides whether the rule fires."""


class RuleWhy(msgspec.Struct, frozen=True):
    """A rule that leaves the journey's stage: what it waits for, and what of its condition is true now."""

    rule: str
    to: str
    to_title: str
    on: list[EventType] | None
    """None: it is judged at every event."""
    when: str | None
    verdict: Verdict
    clauses: list[Clause]
    gate: GateWhy
    because: str


def rules_of(playbook: Playbook, stage: str) -> list[Rule]:
    """Give the rules that leave `stage`, in the playbook's order."""
    return [rule for rule in playbook.rules if stage in rule.from_stages]


def case_at(playbook: Playbook, lead: Lead, at: datetime) -> Case:
    """Give the case of a lead as it is at `at`, when nothing happens."""
    nothing = LeadEvent("", "", "", at, at, None, (), "", {}, {})
    scoring = lead.scoring.get(playbook.name) or Scoring(0, [], {})
    return Case(playbook, nothing, lead.email, lead.attributes, scoring, [], [])


def why_rule(rule: Rule, case: Case, journey: Journey, *, happened: bool) -> RuleWhy:
    """Judge `rule` for a journey in `case`.

    `happened`: the case's event is one that came; else only its time counts, and what the rule asks of
    the event is open.
    """
    playbook = case.playbook
    to = playbook.stages[rule.to]
    clauses = [
        _clause(each, rule, case, journey, happened)
        for each in clauses_of(playbook, rule.when)
    ]  # fmt: skip
    if playbook.handoffs and rule.on is not None and rule.on <= offers.ANSWERS:
        clauses.insert(0, _handoff_clause(case, journey, happened))
    missing = [m for m in unmet(to, case.email, case.attributes, journey, None) if m != "reason"]
    known = {name: case.value(name, journey) for name in to.gate.require}
    types = variables_of(playbook)
    return RuleWhy(
        rule.key, to.key, to.title,
        None if rule.on is None else [event_type(playbook, t) for t in in_order(playbook, rule.on)],
        rule.when.text if rule.when is not None else None, overall(clauses), clauses,
        GateWhy([Value(n, label_of(n), types[n], v) for n, v in known.items()], to.gate.reason,
                missing),
        rule.because,
    )  # fmt: skip


def overall(clauses: list[Clause]) -> Verdict:
    """Give the verdict of a condition made of `clauses`: false wins, then unknown, then depends."""
    told: Verdict = "true"
    for clause in clauses:
        if _WEIGHTS[clause.verdict] > _WEIGHTS[told]:
            told = clause.verdict
    return told


def event_type(playbook: Playbook, type: str, *, depends: bool = False) -> EventType:
    """Give an event type with its label; without one, its name as words."""
    words = type.replace(".", " ").replace("_", " ")
    return EventType(type, playbook.labels.get(type, words[:1].upper() + words[1:]), depends)


def in_order(playbook: Playbook, types: frozenset[str]) -> list[str]:
    """Give event types in the order of the playbook's labels, the others after them by name."""
    places = {type: i for i, type in enumerate(playbook.labels)}
    return sorted(types, key=lambda t: (places.get(t, len(places)), t))


def label_of(name: str) -> str:
    """Give how a variable reads to people: ``lead.budget`` is budget, ``score.total`` is score."""
    room, _, attribute = name.partition(".")
    if room == "known":
        return f"{label_of(attribute)} is known"
    if room == "score":
        return "score" if attribute == "total" else attribute
    words = attribute.replace("_", " ")
    return f"{words} of the event" if room == "event" else words


def clauses_then(playbook: Playbook, rule: Rule, values: Mapping[str, Any]) -> list[Clause]:
    """Give the clauses of a rule that fired with the `values` that were recorded, each as it was judged.

    `playbook` is the version that it fired under; moments may come as RFC 3339 text.
    """
    types = variables_of(playbook)
    found: list[Clause] = []
    for clause in clauses_of(playbook, rule.when):
        known = {
            name: coerce(values.get(name), types.get(name, "bool")) for name in clause.variables
        }
        verdict = clause.evaluate(known)
        told: Verdict = "true" if verdict.result else "false"
        found.append(Clause(
            clause.text, told if verdict.missing is None else "unknown",
            [_shown(name, value, types) for name, value in known.items()],
            [n for n, v in known.items() if v is None] if verdict.missing is not None else [],
        ))  # fmt: skip
    return found


def _shown(name: str, value: Any, types: Mapping[str, str]) -> Value:
    unit = "points" if name.startswith("score.") else None
    return Value(name, label_of(name), types.get(name, "bool"), value, unit)


def _clause(clause: Condition, rule: Rule, case: Case, journey: Journey, happened: bool) -> Clause:
    types = variables_of(case.playbook)
    values = {name: _value(name, rule, case, journey, happened) for name in clause.variables}
    verdict = clause.evaluate(values)
    absent = [n for n, v in values.items() if v is None]
    shown = [_shown(n, v, types) for n, v in values.items()]
    if verdict.missing is None:
        told: Verdict = "true" if verdict.result else "false"
        return Clause(clause.text, told, shown, [], _changes_at(clause, values, case))
    if not happened and any(_of_event(n) for n in absent):
        return Clause(clause.text, "depends", shown, [n for n in absent if not _of_event(n)])
    return Clause(clause.text, "unknown", shown, absent)


def _value(name: str, rule: Rule, case: Case, journey: Journey, happened: bool) -> Any:
    if not happened and _of_event(name):
        is_sure = name == "event.type" and rule.on is not None and len(rule.on) == 1
        return next(iter(rule.on)) if is_sure and rule.on else None
    return case.value(name, journey)


def _of_event(name: str) -> bool:
    return name.startswith(("event.", "known.event."))


def _handoff_clause(case: Case, journey: Journey, happened: bool) -> Clause:
    """Say whether an answer would meet an offer: one that meets none fires no rule."""
    offer = journey.offer
    waits = offer is not None and offer.is_open
    if happened and waits:
        waits = offers.answered(offer, case.playbook, case.event) is not None
    values = [
        Value("handoff.role", "handoff to", "string", offer.role if offer and waits else None)
    ]
    return Clause(A_HANDOFF_WAITS, "true" if waits else "false", values, [])


def _changes_at(clause: Condition, values: dict[str, Any], case: Case) -> datetime | None:
    """Give when the clause's verdict turns by the decay of intent alone; None: it does not."""
    if not {"score.total", "score.intent"} & values.keys():
        return None
    score, at_s = case.scored(), case.event.time.timestamp()
    result = clause.evaluate(values).result
    lowest = max(0, score.intent - POINTS_LOOKED_AHEAD_MAX)
    for intent in range(score.intent - 1, lowest - 1, -1):
        then = Score(score.fit, intent, score.fit + intent)
        decayed = {
            n: getattr(then, n.partition(".")[2]) if n.startswith("score.") else v
            for n, v in values.items()
        }
        verdict = clause.evaluate(decayed)
        if verdict.missing is None and verdict.result != result:
            return _reaches(case, intent, at_s)
    return None


def _reaches(case: Case, intent: int, since_s: float) -> datetime | None:
    """Give the first whole second at which the decayed intent is at most `intent`."""

    def is_reached(at_s: float) -> bool:
        return score_at(case.playbook, case.scoring, at_s).intent <= intent

    low, step = math.floor(since_s), 60
    while not is_reached(low + step):
        low, step = low + step, step * 2
        if step > YEARS_LOOKED_AHEAD_S:
            return None
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_reached(middle) else (middle, high)
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=high)
