"""Checks of what rules come to: never true, never reached, two that differ only by their order, dead ends.

Each rule is read as the events, stages and values it fires at (`condition_bounds`). Where a condition
cannot be looked into, nothing is claimed; nor once the work that one playbook may take is spent. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.contracts.yaml_source import Node
from services.stage_service.condition_bounds import (
    EVERYWHERE,
    Bounds,
    Numbers,
    Region,
    TooWideError,
    Work,
    among,
    between,
    covers,
    meet,
)
from services.stage_service.condition_tree import Tree, clauses_of, read_tree, words
from services.stage_service.conditions import Condition, TypeName
from services.stage_service.playbook import Playbook, Rule
from services.stage_service.playbook_file import BUILT_IN
from services.stage_service.playbook_places import Places, part

RULES_COMPARED_MAX = 400
"""A playbook with more rules has none compared with another: it would take too long."""


@dataclass(frozen=True)
class Placed:
    """A rule with its place, and where it fires; None: that cannot be said."""

    rule: Rule
    node: Node
    fires: Region | None


def check_rules(playbook: Playbook, places: Places, work: Work | None = None) -> None:
    """Note rules that do nothing or hide others, scores and routing that never apply, and dead ends.

    Nothing is claimed any more once `work` is spent (`WORK_MAX`).
    """
    types: dict[str, TypeName] = dict(BUILT_IN)
    for room, names in playbook.attributes.items():
        types |= {f"{room}.{name}": kind for name, kind in names.items()}
    work = work or Work()
    reader = _Reader(Bounds(types, work), _always(playbook), work)
    placed = [
        Placed(rule, node, reader.of_rule(rule))
        for rule, node in zip(playbook.rules, places.items("rules"), strict=True)
    ]
    live = [p for p in placed if not reader.tells_never(p)]
    if len(live) <= RULES_COMPARED_MAX:
        hidden = {later.rule.key for later in live if _tells_hidden(playbook, live, later, work)}
        live = [p for p in live if p.rule.key not in hidden]
        _check_overlaps(live, work)
    _check_dead_ends(playbook, [p.rule for p in live], places)
    _check_conditions(playbook, reader, places)


def _always(playbook: Playbook) -> Region:
    """Give what holds at every event: which scores there can be, and that they are known."""
    points = [rule.points for rule in playbook.fit]
    least, most = sum(p for p in points if p < 0), sum(p for p in points if p > 0)
    intent = int(sum(signal.cap for signal in playbook.signals_by_key.values()) + 0.5)
    return [{
        "score.fit": between(least, most),
        "score.intent": between(0, intent),
        "score.total": between(least, most + intent),
    }]  # fmt: skip


class _Reader:
    """Where conditions hold, given what always does."""

    def __init__(self, bounds: Bounds, always: Region, work: Work) -> None:
        self._bounds = bounds
        self._always = always
        self._work = work

    def of_rule(self, rule: Rule) -> Region | None:
        """Give where `rule` fires; empty: nowhere."""
        found = self.of(rule.when)
        at = meet(self._always, [{"journey.stage": among(rule.from_stages)}])
        if rule.on is not None:
            at = meet(at, [{"event.type": among(rule.on)}])
        try:
            return None if found is None else meet(found, at, self._work)
        except TooWideError:
            return None

    def of(self, when: Condition | None) -> Region | None:
        """Give where `when` is true."""
        if when is None:
            return EVERYWHERE
        return self._of_tree(read_tree(when.serialized()))

    def _of_tree(self, tree: Tree) -> Region | None:
        try:
            return meet(self._bounds.true_when(tree), self._always, self._work)
        except TooWideError:
            return None

    def tells_never(self, placed: Placed) -> bool:
        """Note a rule that can never fire."""
        rule = placed.rule
        if placed.fires is None or placed.fires:
            return False
        what = f"rule {rule.key!r} can never fire: "
        if not rule.from_stages:
            part(placed.node, "from").refuse(
                f"{what}'from' names no stage", "Name the stages it leads from.", rule="never-fires"
            )
            return True
        part(placed.node, "when").refuse(
            f"{what}{self.why_never(rule.when, rule)}",
            "Correct its condition, or remove the rule.",
            rule="never-fires",
        )
        return True

    def why_never(self, when: Condition | None, rule: Rule | None = None) -> str:
        """Say which clauses of a condition stand against each other, or against what can be."""
        assert when is not None  # noqa: S101  without a condition there is nothing to contradict
        clauses = clauses_of(read_tree(when.serialized()))
        regions = [(c, self._of_tree(c)) for c in clauses]
        for clause, region in regions:
            if region == []:
                return f"`{words(clause)}` is never true{self._score_told(clause)}"
        for index, (first, one) in enumerate(regions):
            if self._work.is_spent:
                break
            for second, two in regions[index + 1 :]:
                if one is not None and two is not None and not _together(one, two, self._work):
                    return f"`{words(first)}` and `{words(second)}` are never true together"
        at = " for its 'on' and 'from'" if rule is not None else ""
        return f"its condition is never true{at}"

    def _score_told(self, clause: Tree) -> str:
        for name, values in self._always[0].items():
            if isinstance(name, str) and name in words(clause) and isinstance(values, Numbers):
                (least, _), (most, _) = values.spans[0]
                return f": {name} is from {least:g} to {most:g} here"
        return ""


def _together(one: Region, two: Region, work: Work) -> bool:
    try:
        return bool(meet(one, two, work))
    except TooWideError:
        return True


def _covered(outer: Iterable[Region | None], inner: Region, work: Work) -> bool:
    try:
        return covers([box for region in outer for box in region or ()], inner, work)
    except TooWideError:
        return False


def _tells_hidden(playbook: Playbook, rules: Sequence[Placed], later: Placed, work: Work) -> bool:
    """Note a rule before which others always fire. A gate may hold their move, so those hide nothing."""
    if later.fires is None or work.is_spent:
        return False
    before = [
        p
        for p in rules[: rules.index(later)]
        if p.fires and _together(p.fires, later.fires, work) and not _is_gated(playbook, p.rule)
    ]
    if not before or not _covered((p.fires for p in before), later.fires, work):
        return False
    alone = [p for p in before if _covered([p.fires], later.fires, work)]
    keys = ", ".join(repr(p.rule.key) for p in alone[:1] or before)
    later.node.refuse(
        f"rule {later.rule.key!r} can never fire: whenever it is true, {keys} above it is too, and "
        "the first one moves",
        "Put it above, narrow the rule above, or remove it.",
        rule="shadowed-rule",
    )
    return True


def _is_gated(playbook: Playbook, rule: Rule) -> bool:
    gate = playbook.stages[rule.to].gate
    return bool(gate.require) or gate.reason


def _check_overlaps(rules: Sequence[Placed], work: Work) -> None:
    """Note pairs that can be true together and lead elsewhere, so that only their order decides.

    Not told, since their order says what is meant: a special case above the rule it is an exception of,
    and a rule that names its event above one for any event. Nor is a pair of which one follows on the
    other at the same event: both orders end in the same stage.
    """
    for index, later in enumerate(rules):
        for first in rules[:index]:
            one, two = first.fires, later.fires
            if one is None or two is None or _is_plain(first.rule, later.rule):
                continue
            is_told = _together(one, two, work) and not _covered([two], one, work)
            if work.is_spent:
                return  # neither answer is one
            if is_told:
                later.node.refuse(
                    f"rules {first.rule.key!r} and {later.rule.key!r} can be true together"
                    f"{_where(first.rule, later.rule)}: one goes to {first.rule.to!r}, the other to "
                    f"{later.rule.to!r}, and only their order decides",
                    "Let their conditions exclude each other, or mark the order with "
                    "'# meant: overlapping-rules'.",
                    rule="overlapping-rules",
                )  # fmt: skip


def _is_plain(first: Rule, later: Rule) -> bool:
    """Tell whether the order of two rules matters to nobody, or says by itself what is meant."""
    follows = first.to in later.from_stages or later.to in first.from_stages
    return first.to == later.to or follows or (first.on is not None and later.on is None)


def _where(first: Rule, later: Rule) -> str:
    stages = sorted(first.from_stages & later.from_stages)
    types = first.on & later.on if first.on and later.on else first.on or later.on or frozenset()
    at = f" at {', '.join(sorted(types)[:3])}" if types else ""
    return f" in {', '.join(stages[:3])}{at}"


def _check_dead_ends(playbook: Playbook, rules: Sequence[Rule], places: Places) -> None:
    left = {stage for rule in rules for stage in rule.from_stages}
    for key, stage in playbook.stages.items():
        if stage.kind == "open" and key not in left:
            places.at("stages", key).refuse(
                f"no rule leads out of {key!r}: journeys stay there until somebody moves them by hand",
                f"Add a rule with 'from: [{key}]', or give the stage 'kind: exit'.",
                rule="dead-end",
            )


def _check_conditions(playbook: Playbook, reader: _Reader, places: Places) -> None:
    """Note conditions of the score and of routing that are never true."""
    score = places.each("score")
    fit = score["fit"].items() if "fit" in score else []
    for rule, node in zip(playbook.fit, fit, strict=True):
        _tell_condition(reader, rule.when, node, f"the fit rule {rule.key!r}", "never-scores")
    routing: Mapping[str, Node] = places.each("routing")
    for role, routed in playbook.routing.items():
        nodes = part(routing[role], "rules").items()
        for rule, node in zip(routed.rules, nodes, strict=True):
            what = f"the routing rule {rule.key!r} of {role!r}"
            _tell_condition(reader, rule.when, node, what, "never-routes")


def _tell_condition(
    reader: _Reader, when: Condition | None, node: Node, what: str, rule: str
) -> None:
    if when is not None and reader.of(when) == []:
        part(node, "when").refuse(
            f"{what} never applies: {reader.why_never(when)}",
            "Correct its condition, or remove it.",
            rule=rule,
        )
