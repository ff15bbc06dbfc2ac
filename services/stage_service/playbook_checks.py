"""Checks of a playbook's stage graph: nothing unreachable, no cycle in one event, no silent way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.contracts.yaml_source import Node
from services.stage_service.playbook import Rule, Stage


def check_graph(
    rules: Sequence[Rule],
    stages: Mapping[str, Stage],
    path: Sequence[str],
    places: Mapping[str, Node],
) -> None:
    """Note problems of the graph at `places` (rule key, or ``stage:key``)."""
    _check_reach(rules, stages, path, places)
    _check_cycles(rules, places)
    _check_direction(rules, stages, places)


def _check_reach(
    rules: Sequence[Rule],
    stages: Mapping[str, Stage],
    path: Sequence[str],
    places: Mapping[str, Node],
) -> None:
    reached = {path[0]}
    grown = True
    while grown:
        new = {r.to for r in rules if r.from_stages & reached} - reached
        reached |= new
        grown = bool(new)
    for key in stages:
        if key not in reached:
            places[f"stage:{key}"].refuse(
                f"stage {key!r} is unreachable: no rule leads to it from {path[0]!r}",
                f"Add a rule with 'to: {key}', or remove the stage.",
                rule="unreachable-stage",
            )


def _check_cycles(rules: Sequence[Rule], places: Mapping[str, Node]) -> None:
    """Refuse rules that one event could fire in a circle."""
    types: set[str | None] = {t for r in rules for t in r.on or ()}
    types.add(None)
    told: set[frozenset[str]] = set()
    for event_type in sorted(types, key=str):
        fitting = [r for r in rules if r.on is None or event_type in r.on]
        circle = _circle(fitting)
        keys = frozenset(r.key for r in circle)
        if circle and keys not in told:
            told.add(keys)
            way = " > ".join([*(r.key for r in circle), circle[0].key])
            what = f"an event {event_type!r}" if event_type else "any event"
            last = max(circle, key=list(rules).index)
            places[last.key].refuse(
                f"rules form a cycle: {what} can fire {way} without end",
                "Give the rules different event types in 'on', or take a stage out of 'from'.",
                rule="cycle",
            )


def _circle(rules: Sequence[Rule]) -> list[Rule]:
    """Give rules that lead back to where they start, or none (depth-first search)."""
    done: set[str] = set()

    def visit(stage: str, way: list[tuple[str, Rule]]) -> list[Rule]:
        for index, (stood, _) in enumerate(way):
            if stood == stage:
                return [rule for _, rule in way[index:]]
        if stage in done:
            return []
        for rule in rules:
            if stage in rule.from_stages:
                found = visit(rule.to, [*way, (stage, rule)])
                if found:
                    return found
        done.add(stage)
        return []

    for start in sorted({s for r in rules for s in r.from_stages}):
        found = visit(start, [])
        if found:
            return found
    return []


def _check_direction(
    rules: Sequence[Rule], stages: Mapping[str, Stage], places: Mapping[str, Node]
) -> None:
    for rule in rules:
        to = stages[rule.to].path_index
        for key in sorted(rule.from_stages):
            at = stages[key].path_index
            if to is not None and at is not None and to < at and not rule.back:
                places[rule.key].refuse(
                    f"rule {rule.key!r} moves backwards, from {key!r} to {rule.to!r}",
                    "Add 'back: true' if that is meant.",
                    rule="moves-backwards",
                )
