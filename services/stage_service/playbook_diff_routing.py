"""What differs in who gets a journey. Pure: routing never changes where a journey goes, only who holds it."""

from __future__ import annotations

from collections.abc import Iterable

from services.stage_service.playbook import RoleRouting, RoutingRule
from services.stage_service.playbook_diff_words import (
    Change,
    Pair,
    condition_told,
    out_of_order,
    same_condition,
)


def routing_changes(pair: Pair) -> Iterable[Change]:
    """Compare the routing of each role."""
    before, after = pair.before.routing, pair.after.routing
    for role in dict.fromkeys((*after, *before)):
        old, new = before.get(role), after.get(role)
        known = pair.after.roles.get(role) or pair.before.roles[role]
        where = f"routing.{role}"
        if old is None or new is None:
            said = "by territory and weight" if new is None else "by rules of its own"
            yield Change(
                "routing", where, f"Journeys of {known.title} are given {said} now.", None, None,
                moves=False,
            )  # fmt: skip
        else:
            yield from _role(known.title, where, old, new)


def _role(title: str, where: str, old: RoleRouting, new: RoleRouting) -> Iterable[Change]:
    before = {rule.key: rule for rule in old.rules}
    after = {rule.key: rule for rule in new.rules}
    for key, rule in after.items():
        was, now = before.get(key), rule_told(rule)
        if was is None:
            yield Change(
                "routing-rule-added", f"{where}.rules.{key}",
                f"Routing of {title}: a new rule {key}, {now}.", None, now, moves=False,
            )  # fmt: skip
        elif not _same(was, rule):
            yield Change(
                "routing-rule", f"{where}.rules.{key}", f"Routing of {title}: {key} is {now} now.",
                rule_told(was), now, moves=False,
            )  # fmt: skip
    for key, rule in before.items():
        if key not in after:
            yield Change(
                "routing-rule-removed", f"{where}.rules",
                f"Routing of {title}: the rule {key} is gone.", rule_told(rule), None, moves=False,
            )  # fmt: skip
    kept = [key for key in before if key in after]
    for key in out_of_order(kept, [key for key in after if key in before]):
        yield Change(
            "routing-order", f"{where}.rules.{key}",
            f"Routing of {title}: {key} is tried at another place in the order.", None, None,
            moves=False,
        )  # fmt: skip
    if old.fallback != new.fallback:
        who = new.fallback or "nobody by name"
        yield Change(
            "routing-fallback", f"{where}.fallback",
            f"Routing of {title}: what no rule gives to anybody goes to {who} now.", old.fallback,
            new.fallback, moves=False,
        )  # fmt: skip
    if old.tell_before != new.tell_before:
        said = "is told" if new.tell_before else "is not told"
        yield Change(
            "routing-tell-before", where,
            f"Routing of {title}: the owner before {said} of an assignment by hand.",
            str(old.tell_before).lower(), str(new.tell_before).lower(), moves=False,
        )  # fmt: skip


def _same(old: RoutingRule, new: RoutingRule) -> bool:
    return same_condition(old.when, new.when) and _terms(old) == _terms(new)


def _terms(rule: RoutingRule) -> list[str]:
    parts = [f"people {', '.join(rule.people)}"] if rule.people else []
    parts += [f"team {rule.team}"] if rule.team else []
    parts += [f"territory {rule.territory}"] if rule.territory else []
    parts += [f"skill {rule.skill}"] if rule.skill else []
    parts += ["the account's owner"] if rule.of_account else []
    parts = parts or ["everyone"]
    parts += [rule.strategy.replace("_", " ")] if rule.strategy != "weighted" else []
    parts += [f"at most {rule.capacity} open journeys"] if rule.capacity is not None else []
    return [*parts, "in working hours"] if rule.in_hours else parts


def rule_told(rule: RoutingRule) -> str:
    """Say to whom a routing rule gives, and when."""
    told = f"to {', '.join(_terms(rule))}"
    return f"{told} when {condition_told(rule.when)}" if rule.when else told
