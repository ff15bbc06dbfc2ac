"""What differs between two playbooks, in sentences that people who run a funnel use. Pure.

Each change says where it stands in the new file, what was and what is, and whether it can change where
journeys go, or only what people see. How many journeys it is about tells `playbook_impact`; what a whole
history would have been, ``baton playbook simulate``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from services.contracts.yaml_source import read_yaml
from services.stage_service.playbook import BAND_TITLES, Gate, Playbook, Stage
from services.stage_service.playbook_diff_routing import routing_changes
from services.stage_service.playbook_diff_rules import rule_changes, score_changes
from services.stage_service.playbook_diff_times import clock_changes, handoff_changes
from services.stage_service.playbook_diff_words import (
    Change,
    Pair,
    attribute_named,
    entry_told,
    listed,
    out_of_order,
    stage_named,
)

__all__ = ["Change", "Diff", "diff"]


class Diff(msgspec.Struct, frozen=True):
    """The changes from `before` to `after` (names and versions; version 0: not published yet)."""

    playbook: str
    before_version: int | None
    """None: there was no such playbook."""
    after_version: int
    same_text: bool
    changes: list[Change]

    @property
    def moves(self) -> bool:
        """Say whether any change can change where journeys go."""
        return any(change.moves for change in self.changes)

    @property
    def summary(self) -> str:
        """Give the whole in one sentence."""
        if self.before_version is None:
            return f"{self.playbook} is a new playbook."
        if self.same_text:
            return "Nothing differs: it is the same text."
        if not self.changes:
            return "No change of rules: only comments or layout differ."
        count = len(self.changes)
        told = f"{count} change{'' if count == 1 else 's'}"
        moving = sum(change.moves for change in self.changes)
        if not moving:
            return f"{told}; no journey goes another way, only what people see differs."
        which = "it" if count == 1 else "all" if moving == count else f"{moving} of them"
        return f"{told}; {which} can change where journeys go."

    def shown(self) -> dict[str, Any]:
        """Give the diff as JSON has it, with its summary."""
        return {
            "playbook": self.playbook, "before_version": self.before_version,
            "after_version": self.after_version, "summary": self.summary, "moves": self.moves,
            "same_text": self.same_text, "changes": msgspec.to_builtins(self.changes),
        }  # fmt: skip


def diff(before: Playbook | None, after: Playbook, moved: Mapping[str, str] | None = None) -> Diff:
    """Compare two playbooks; without one `before`, `after` is new, and there is nothing to compare.

    `moved` says where the journeys of stages that are gone go on; None: as the file says.
    """
    if before is None:
        return Diff(after.name, None, after.version, False, [])
    changes: list[Change] = []
    if before.digest != after.digest:
        pair = Pair(before, after, moved)
        for compare in (
            _stages, _path, _entry, _gates, _responsible, rule_changes, score_changes, handoff_changes,
            clock_changes, _alerts, routing_changes, _roles, _attributes, _texts,
        ):  # fmt: skip
            changes += compare(pair)
        lines = lines_of(after.source)
        changes = [msgspec.structs.replace(c, line=_line(lines, c.where)) for c in changes]
    return Diff(after.name, before.version, after.version, before.digest == after.digest, changes)


def lines_of(source: str) -> dict[str, int]:
    """Give the line of each part of a playbook's text by its path: ``stages.mql.gate``, ``rules.demo``."""
    found: dict[str, int] = {}
    _note_lines(read_yaml(source, ""), "", found)
    return found


def _note_lines(node: Any, path: str, found: dict[str, int]) -> None:
    if isinstance(node.value, Mapping):
        for name, inner in node.mapping().items():
            _note(inner, f"{path}{name}", found)
    elif isinstance(node.value, list):
        for index, inner in enumerate(node.items(), 1):
            value: Any = inner.value
            key = value.get("key") if isinstance(value, Mapping) else None
            _note(inner, f"{path}{key or f'rule-{index}'}", found)


def _note(node: Any, path: str, found: dict[str, int]) -> None:
    found.setdefault(path, node.line)
    _note_lines(node, f"{path}.", found)


def _line(lines: Mapping[str, int], where: str) -> int | None:
    """Give the line of a part, or of the nearest that it is in; None when neither is there."""
    while where and where not in lines:
        where = where.rpartition(".")[0]
    return lines.get(where)


def _stages(pair: Pair) -> Iterable[Change]:
    before, after = pair.before, pair.after
    for key in after.stages:
        if key not in before.stages:
            old = next((o for o, n in pair.renamed.items() if n == key), None)
            if old is not None:
                was = stage_named(before, old)
                yield Change(
                    "stage-renamed", f"stages.{key}",
                    f"The stage {was} is {stage_named(after, key)} now; its journeys go with it.",
                    old, key, moves=True,
                )  # fmt: skip
            else:
                yield Change(
                    "stage-added", f"stages.{key}", f"There is a new stage {stage_named(after, key)}.",
                    None, key, moves=False,
                )  # fmt: skip
    for key in before.stages:
        if key in after.stages or key in pair.renamed:
            continue
        to = pair.migrate.get(key)
        then = f"its journeys go to {stage_named(after, to)}" if to in after.stages else (
            "'migrate' does not say where its journeys go"
        )  # fmt: skip
        yield Change(
            "stage-removed", f"migrate.{key}",
            f"The stage {stage_named(before, key)} is gone; {then}.", key, to, moves=True,
        )  # fmt: skip
    for old, new in pair.stages():
        yield from _stage(pair, old, new)


def _stage(pair: Pair, old: Stage, new: Stage) -> Iterable[Change]:
    named, where = stage_named(pair.after, new.key), f"stages.{new.key}"
    if old.title != new.title and old.key == new.key:
        yield Change(
            "stage-title", f"{where}.title", f"The stage {new.key} is called {new.title!r} now.",
            old.title, new.title, moves=False,
        )  # fmt: skip
    if old.kind != new.kind:
        yield Change(
            "stage-kind", where, f"{named} is a stage of kind {new.kind} now, no more {old.kind}.",
            old.kind, new.kind, moves=pair.answers_matter,
        )  # fmt: skip
    if old.band != new.band:
        yield Change(
            "stage-band", f"{where}.band", f"{named} belongs to {BAND_TITLES[new.band]} now.",
            BAND_TITLES[old.band], BAND_TITLES[new.band], moves=False,
        )  # fmt: skip
    if old.urgent != new.urgent:
        said = "go out at any hour now" if new.urgent else "wait for working hours now"
        yield Change(
            "stage-urgent", f"{where}.urgent", f"Alerts of {named} {said}.", str(old.urgent).lower(),
            str(new.urgent).lower(), moves=False,
        )  # fmt: skip


def _path(pair: Pair) -> Iterable[Change]:
    before = [pair.renamed.get(key, key) for key in pair.before.path]
    after = list(pair.after.path)
    if before == after:
        return
    both = [key for key in after if key in before]
    was, now = " > ".join(pair.before.path), " > ".join(after)
    for key in out_of_order([key for key in before if key in both], both):
        index = after.index(key)
        place = f"after {stage_named(pair.after, after[index - 1])}" if index else "first"
        yield Change(
            "stage-moved", "path", f"{stage_named(pair.after, key)} comes {place} on the path now.",
            was, now, moves=False,
        )  # fmt: skip
    for key in after:
        if key not in before and key in pair.before.stages:
            yield Change(
                "path-joined", "path", f"{stage_named(pair.after, key)} is on the path now.",
                was, now, moves=False,
            )  # fmt: skip
    for key in before:
        if key not in after and key in pair.after.stages:
            yield Change(
                "path-left", "path", f"{stage_named(pair.after, key)} is no longer on the path.",
                was, now, moves=False,
            )  # fmt: skip


def _entry(pair: Pair) -> Iterable[Change]:
    was, now = (entry_told(p) for p in (pair.before, pair.after))
    if was != now:
        yield Change("entry", "enters", f"A journey begins {now} now.", was, now, moves=True)


def _gates(pair: Pair) -> Iterable[Change]:
    for old, new in pair.stages():
        named, where = stage_named(pair.after, new.key), f"stages.{new.key}.gate"
        was, now = _gate_told(old.gate), _gate_told(new.gate)
        for name in new.gate.require:
            if name not in old.gate.require:
                yield Change(
                    "gate-added", f"{where}.require", f"{named} now needs {attribute_named(name)}.",
                    was, now, moves=True,
                )  # fmt: skip
        for name in old.gate.require:
            if name not in new.gate.require:
                yield Change(
                    "gate-removed", where, f"{named} no longer needs {attribute_named(name)}.",
                    was, now, moves=True,
                )  # fmt: skip
        if old.gate.reason != new.gate.reason:
            said = "now needs a reason" if new.gate.reason else "no longer needs a reason"
            kind = "gate-added" if new.gate.reason else "gate-removed"
            yield Change(kind, f"{where}.reason", f"{named} {said}.", was, now, moves=True)


def _gate_told(gate: Gate) -> str | None:
    return ", ".join([*gate.require, *(["reason"] if gate.reason else [])]) or None


def _responsible(pair: Pair) -> Iterable[Change]:
    for old, new in pair.stages():
        if old.responsible == new.responsible:
            continue
        titles = [pair.after.roles[role].title for role in new.responsible]
        yield Change(
            "responsible", f"stages.{new.key}.responsible",
            f"{stage_named(pair.after, new.key)} is the responsibility of {listed(titles)} now.",
            ", ".join(old.responsible), ", ".join(new.responsible),
            # Who is first answers the handoff; a rule may hear of a rejection.
            moves=old.responsible[0] != new.responsible[0] and pair.answers_matter,
        )  # fmt: skip


def _alerts(pair: Pair) -> Iterable[Change]:
    for old, new in pair.stages():
        if set(old.alerts) == set(new.alerts):
            continue
        titles = [pair.after.roles[role].title for role in new.alerts]
        told = f"alerts {listed(titles)} now" if titles else "alerts nobody now"
        yield Change(
            "alerts", f"stages.{new.key}.alerts", f"Entering {stage_named(pair.after, new.key)} {told}.",
            ", ".join(old.alerts) or None, ", ".join(new.alerts) or None, moves=False,
        )  # fmt: skip


def _roles(pair: Pair) -> Iterable[Change]:
    before, after = pair.before.roles, pair.after.roles
    for key, role in after.items():
        if key not in before:
            yield Change(
                "role-added", f"roles.{key}", f"There is a new role {role.title} ({key}).", None,
                role.title, moves=False,
            )  # fmt: skip
        elif before[key].title != role.title:
            yield Change(
                "role-title", f"roles.{key}.title", f"The role {key} is called {role.title!r} now.",
                before[key].title, role.title, moves=False,
            )  # fmt: skip
    for key, role in before.items():
        if key not in after:
            yield Change(
                "role-removed", "roles", f"The role {role.title} ({key}) is gone.", role.title, None,
                moves=False,
            )  # fmt: skip


def _attributes(pair: Pair) -> Iterable[Change]:
    for room, names in pair.after.attributes.items():
        before = pair.before.attributes.get(room, {})
        for name, kind in names.items():
            if before.get(name) == kind:
                continue
            where, was = f"attributes.{room}.{name}", before.get(name)
            said = (
                f"is declared now, as {kind}"
                if was is None
                else f"is read as {kind} now, not {was}"
            )
            yield Change(
                "attribute-added" if was is None else "attribute-type", where,
                f"The attribute {room}.{name} {said}.", was, kind,
                moves=was is not None and f"{room}.{name}" in pair.asked_for,
            )  # fmt: skip
        for name in before:
            if name not in names:
                yield Change(
                    "attribute-removed", f"attributes.{room}",
                    f"The attribute {room}.{name} is no longer declared.", before[name], None,
                    moves=False,
                )  # fmt: skip


def _texts(pair: Pair) -> Iterable[Change]:
    before, after = pair.before, pair.after
    told = [
        name
        for name, was, now in (
            ("the title", before.title, after.title),
            ("the philosophy", before.philosophy, after.philosophy),
            ("the competencies", before.competencies, after.competencies),
            ("labels of event types", before.labels, after.labels),
            ("what roles do", _does(before, after), _does(after, before)),
            ("which events ask for contact", before.asks_for_contact, after.asks_for_contact),
        )
        if was != now
    ]
    for name in ("focus", "goal", "guidance", "next_steps"):
        stages = [new.key for old, new in pair.stages() if getattr(old, name) != getattr(new, name)]
        if stages:
            told.append(f"{name.replace('_', ' ')} of {listed(stages)}")
    reasons = [new.key for old, new in pair.rules() if old.because != new.because]
    if reasons:
        told.append(f"the reasons that {listed(reasons)} give{'s' if len(reasons) == 1 else ''}")
    if told:
        yield Change("texts", "", f"Texts differ: {'; '.join(told)}.", None, None, moves=False)


def _does(of: Playbook, beside: Playbook) -> dict[str, str]:
    return {key: role.does for key, role in of.roles.items() if key in beside.roles}
