"""Who gets a journey: the playbook's routing rules, tried in order, and why each person did or did not. Pure.

A rule says who may get it; of these, who is away gives to their stand-in, who is full or outside their
hours (if the rule respects them) is left out, and the strategy picks one. The first rule that finds
somebody decides. What no rule gives to anybody goes to the role's fallback, else to sales leadership:
a handoff is without an owner only where the roster has nobody at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from services.contracts.calendars import away_at, is_open
from services.contracts.team import Person, Team
from services.stage_service.playbook import RoleRouting, RoutingRule
from services.stage_service.rotation import Turns, lightest

TERRITORY_ATTRIBUTES = ("territory", "region", "country")
LEADERSHIP = "sales_leadership"
CANDIDATES_MAX = 50
"""How many people a decision explains itself to; a transition's record must not grow with the company."""
DEFAULT = RoleRouting((RoutingRule("territory", territory="*"),))
"""For a role that the playbook does not route."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One person of the role, and why they did or did not get the journey."""

    id: str
    name: str
    why: str


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Who owns a journey for a role from now on, by which rule, and why."""

    role: str
    person: str | None
    name: str
    why: str
    rule: str | None
    candidates: list[Candidate] = []


class Case(msgspec.Struct, gc=False):
    """What a decision may look at.

    `value` gives a variable of a condition (``lead.region``) or None; `account_owner` is who owns the
    account for this role; `loads` are open journeys by person, and count up with each decision.
    """

    role: str
    at: datetime
    attributes: Mapping[str, Any]
    value: Callable[[str], Any]
    account: str | None
    account_owner: str | None
    loads: dict[str, int]
    without: frozenset[str] = frozenset()
    """People who do not get it, whatever the rules say: who just gave it back."""


def route(case: Case, routing: RoleRouting | None, team: Team, turns: Turns) -> Decision:
    """Decide who gets the journey of `case`, and count it in `turns` and ``case.loads``."""
    plan = routing or DEFAULT
    reasons: dict[str, str] = {}
    for rule in plan.rules:
        decided = _by_rule(rule, case, team, turns, reasons)
        if decided is not None:
            break
    else:
        decided = _fallback(plan, case, team)
    person, why, key = decided
    if person is not None:
        case.loads[person.id] = case.loads.get(person.id, 0) + 1
    return Decision(
        case.role, person.id if person else None, person.name if person else "", why, key,
        _explained(case, team, reasons, person),
    )  # fmt: skip


def asks_load(routing: RoleRouting | None, people: Sequence[Person]) -> bool:
    """Tell whether deciding for a role needs to know how many journeys people hold."""
    rules = (routing or DEFAULT).rules
    return any(r.capacity is not None or r.strategy == "least_loaded" for r in rules) or any(
        p.capacity is not None for p in people
    )


def asks_account(routing: RoleRouting | None) -> bool:
    """Tell whether deciding for a role needs to know who owns the lead's account."""
    return any(r.of_account for r in (routing or DEFAULT).rules)


_Decided = tuple[Person | None, str, str | None]


def _by_rule(
    rule: RoutingRule, case: Case, team: Team, turns: Turns, reasons: dict[str, str]
) -> _Decided | None:
    if rule.when is not None:
        values = {name: case.value(name) for name in rule.when.variables}
        if not rule.when.evaluate(values).result:
            return None
    if rule.of_account:
        return _by_account(rule, case, team, turns, reasons)
    people = _meant(rule, case, team, reasons)
    turn_of: dict[str, tuple[Person, str]] = {}
    weights: list[tuple[str, float]] = []
    away = 0
    for person in people:
        weight = 1.0 if rule.strategy == "round_robin" and person.weight > 0 else person.weight
        if weight <= 0:
            reasons[person.id] = "weight 0: gets none by routing"
            continue
        taker, why = _available(rule, case, team, person)
        away += why.startswith("away")
        if taker is None:
            reasons[person.id] = why
            continue
        turn_of[person.id] = (taker, why)
        weights.append((person.id, weight))
    if not weights:
        return None
    if rule.strategy == "least_loaded":
        held = {id: case.loads.get(taker.id, 0) for id, (taker, _) in turn_of.items()}
        turn = lightest(weights, held, turns)
        how = f"holds the fewest journeys of {len(weights)} eligible for {case.role}"
        reasons.update({id: f"holds {n}" for id, n in held.items()})
    else:
        turn = turns.take(weights)
        how = f"{rule.strategy.replace('_', ' ')} among {len(weights)} eligible for {case.role}"
        reasons.update(dict.fromkeys(turn_of, "not their turn"))
    taker, why = turn_of[turn]
    if why:
        reasons[turn] = f"{why}; {taker.name} stands in"
        how = f"stands in for {team.by_id[turn].name} ({why}), whose turn it was: {how}"
    note = f", {away} away" if away else ""
    return taker, f"{taker.name}: {how}{note}", rule.key


def _by_account(
    rule: RoutingRule, case: Case, team: Team, turns: Turns, reasons: dict[str, str]
) -> _Decided | None:
    owner = team.by_id.get(case.account_owner or "")
    if owner is None or case.role not in owner.roles:
        return None
    taker, why = _available(rule, case, team, owner)
    if taker is None:
        reasons[owner.id] = f"account owner of {case.account}, but {why}"
        return None
    turns.count(owner.id)
    if why:
        text = f"stands in for {owner.name} ({why}), account owner of {case.account}"
        return taker, f"{taker.name}: {text}", rule.key
    return taker, f"{taker.name}: account owner of {case.account}", rule.key


def _meant(rule: RoutingRule, case: Case, team: Team, reasons: dict[str, str]) -> Sequence[Person]:
    """Give the people of the role that `rule` speaks of."""
    people: Sequence[Person] = team.by_role.get(case.role, ())
    if rule.territory == "*":
        return eligible(people, case.attributes)
    territory, skill = _wanted(rule.territory, case), _wanted(rule.skill, case)
    found: list[Person] = []
    for person in people:
        if rule.people and person.id not in rule.people:
            why = f"not named by the rule {rule.key}"
        elif rule.team is not None and person.team != rule.team:
            why = f"not in the team {rule.team}"
        elif territory is not None and territory not in _folded(person.territories):
            why = f"not in the territory {territory or 'unknown'}"
        elif skill is not None and skill not in _folded(person.skills):
            why = f"without the skill {skill or 'unknown'}"
        else:
            found.append(person)
            continue
        reasons.setdefault(person.id, why)
    return found


def eligible(people: Sequence[Person], attributes: Mapping[str, Any]) -> Sequence[Person]:
    """Give those of a lead's territory, else those without one, else all.

    The territory is the lead's ``territory``, ``region`` or ``country``, compared without case.
    """
    asked = {
        str(attributes[name]).casefold() for name in TERRITORY_ATTRIBUTES if attributes.get(name)
    }
    if asked:
        local = [p for p in people if asked & _folded(p.territories)]
        if local:
            return local
    return [p for p in people if not p.territories] or people


def _available(
    rule: RoutingRule, case: Case, team: Team, person: Person
) -> tuple[Person | None, str]:
    """Give who takes the turn of `person`, with a note if somebody stands in; or None, and why."""
    taker, note = person, ""
    passed = {person.id}
    while (absence := away_at(taker, case.at)) is not None:
        until = absence.end.astimezone(ZoneInfo(taker.time_zone))
        if not note:
            note = f"away until {until:%Y-%m-%d %H:%M}"
        following = team.by_id.get(absence.stand_in or "")
        if following is None or following.id in passed:
            return None, f"{note}, nobody stands in"
        taker = following
        passed.add(taker.id)
    if taker.id in case.without:
        return None, f"{note}, {taker.name} gave it away" if note else "gave it away"
    if rule.in_hours and not is_open(taker, case.at):
        return (
            None,
            f"{note}, {taker.name} not in working hours" if note else "not in working hours",
        )
    limits = [c for c in (rule.capacity, taker.capacity) if c is not None]
    held = case.loads.get(taker.id, 0)
    if limits and held >= min(limits):
        return None, f"{note}, {taker.name} full" if note else f"holds {held} of {min(limits)}"
    return taker, note


def _fallback(plan: RoleRouting, case: Case, team: Team) -> _Decided:
    """Give the person responsible for what nobody could be found for; they get it in any case."""
    named = team.by_id.get(plan.fallback or "")
    people = [named] if named is not None else list(team.by_role.get(LEADERSHIP, ()))
    people = [p for p in people if p.id not in case.without] or people
    anyway = RoutingRule("fallback")
    for person in people:
        taker, why = _available(anyway, msgspec.structs.replace(case, loads={}), team, person)
        if taker is not None:
            stands = f"stands in for {person.name} ({why}), " if why else ""
            return (
                taker,
                f"{taker.name}: {stands}fallback of {case.role}, no rule found anybody",
                None,
            )
    if people:
        return people[0], f"{people[0].name}: fallback of {case.role}, though away", None
    return None, f"nobody: no rule found anybody for {case.role}, and it has no fallback", None


def _explained(
    case: Case, team: Team, reasons: Mapping[str, str], person: Person | None
) -> list[Candidate]:
    people = list(team.by_role.get(case.role, ()))[:CANDIDATES_MAX]
    return [
        Candidate(
            p.id, p.name,
            "gets it" if p is person else reasons.get(p.id, "the rule that decided does not name them"),
        )
        for p in people
    ]  # fmt: skip


def _wanted(text: str | None, case: Case) -> str | None:
    """Give the value that people must have; "" when the lead's attribute is not known."""
    if text is None:
        return None
    value = case.value(text) if text.startswith("lead.") else text
    return "" if value is None else str(value).casefold()


@lru_cache(maxsize=4096)
def _folded(texts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(t.casefold() for t in texts)
