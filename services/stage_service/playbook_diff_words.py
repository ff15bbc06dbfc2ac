"""What every part of a playbook's diff is made of: a change, two playbooks, how things are named. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import msgspec

from services.contracts.handoffs import CLOCK_FIRED
from services.stage_service.conditions import Condition
from services.stage_service.offers import ANSWERS
from services.stage_service.playbook import Playbook, Rule, Stage
from services.stage_service.playbook_drawing import attribute_told


class Change(msgspec.Struct, frozen=True):
    """One difference: what it is, where it stands in the new file, and in a sentence.

    `moves` says whether it can change where journeys go; otherwise it changes what people see or who is told.
    """

    kind: str
    where: str
    """As ``stages.mql.gate``, ``rules.demo-requested``; empty: in many places."""
    sentence: str
    before: str | None
    after: str | None
    moves: bool
    line: int | None = None
    """In the new file; of what is gone, the line of what it stood in."""
    impact: str | None = None
    """How many journeys of now it is about, where that is known."""


class Pair:
    """Two playbooks beside each other; what is renamed by ``migrate:`` is known by its new name."""

    def __init__(
        self, before: Playbook, after: Playbook, moved: Mapping[str, str] | None = None
    ) -> None:
        self.before = before
        self.after = after
        self.migrate = after.migrate if moved is None else moved
        self.renamed = {
            old: new
            for old, new in self.migrate.items()
            if old in before.stages and old not in after.stages
            and new in after.stages and new not in before.stages
        }  # fmt: skip

    def stages(self) -> Iterator[tuple[Stage, Stage]]:
        """Give each stage that is in both, as it was and as it is."""
        names = {new: old for old, new in self.renamed.items()}
        for key, stage in self.after.stages.items():
            old = self.before.stages.get(names.get(key, key))
            if old is not None:
                yield old, stage

    def rules(self) -> Iterator[tuple[Rule, Rule]]:
        """Give each rule that is in both by its key, as it was and as it is."""
        before = {rule.key: rule for rule in self.before.rules}
        for rule in self.after.rules:
            if rule.key in before:
                yield before[rule.key], rule

    def now(self, stages: Iterable[str]) -> frozenset[str]:
        """Give stages of the playbook before by the names they have now."""
        return frozenset(self.renamed.get(key, key) for key in stages)

    def _rule_hears(self, types: frozenset[str]) -> bool:
        rules = (*self.before.rules, *self.after.rules)
        return any(rule.on is None or rule.on & types for rule in rules)

    @cached_property
    def answers_matter(self) -> bool:
        """Say whether a rule can fire by a handoff's answer, which fires none where no handoff is open."""
        return self._rule_hears(ANSWERS)

    @cached_property
    def deadlines_matter(self) -> bool:
        """Say whether a rule can fire by a missed deadline."""
        return self._rule_hears(frozenset((CLOCK_FIRED,)))

    @cached_property
    def asked_for(self) -> frozenset[str]:
        """The variables that decide where journeys go: in rules, gates, and the score if rules ask for it."""
        asked: set[str] = set()
        for playbook in (self.before, self.after):
            for rule in playbook.rules:
                asked.update(rule.when.variables if rule.when else ())
            for stage in playbook.stages.values():
                asked.update(stage.gate.require)
        if any(name.startswith("score.") for name in asked):
            asked.update(
                name for p in (self.before, self.after) for f in p.fit for name in f.when.variables
            )
        return frozenset(name.removeprefix("known.") for name in asked)

    @cached_property
    def scores_matter(self) -> bool:
        """Say whether a rule asks for the score."""
        return any(name.startswith("score.") for name in self.asked_for)


def stage_named(playbook: Playbook, key: str | None) -> str:
    """Name a stage by title and key: ``Lead Qualification (mql)``."""
    stage = playbook.stages.get(key or "")
    return f"{stage.title} ({stage.key})" if stage is not None else repr(key)


def entry_told(playbook: Playbook) -> str:
    """Say what a journey through `playbook` begins with."""
    entry = playbook.enters
    if entry is None:
        return "with a lead's first event"
    return f"when a journey of {entry.playbook} comes to {entry.stage}"


def attribute_named(name: str) -> str:
    """Name an attribute as people do: ``lead.budget`` is the lead's budget."""
    return f"{attribute_told(name)} ({name})"


def listed(names: Iterable[str]) -> str:
    """Give names as a list in a sentence: ``a, b and c``."""
    *most, last = list(names) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def condition_told(condition: Condition | None) -> str | None:
    """Give a condition on one line."""
    return " ".join(condition.text.split()) if condition is not None else None


def same_condition(one: Condition | None, other: Condition | None) -> bool:
    """Say whether CEL reads both alike. The same clauses in another order are told as another condition."""
    if one is None or other is None:
        return one is other
    return one.text == other.text or one.parsed == other.parsed


def out_of_order(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Give the fewest of `after` that must have moved, to make it of `before` (the same in another order)."""
    places = {name: index for index, name in enumerate(before)}
    # The longest run that kept its order stays; by patience sorting.
    tails: list[int] = []
    ends: list[int] = []
    came_from: list[int | None] = []
    for index, name in enumerate(after):
        place = bisect_left(tails, places[name])
        came_from.append(ends[place - 1] if place else None)
        tails[place : place + 1] = [places[name]]
        ends[place : place + 1] = [index]
    kept: set[int] = set()
    at = ends[-1] if ends else None
    while at is not None:
        kept.add(at)
        at = came_from[at]
    return [name for index, name in enumerate(after) if index not in kept]
