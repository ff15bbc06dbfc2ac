"""What a change means for the journeys of now, in sentences beside the change. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from services.stage_service.playbook_diff import Change, Diff
from services.stage_service.playbook_impact import Impact, RuleImpact, Threshold

Titles = Mapping[str, str]
"""What people call the stages; one that is not in it is called by its key."""


def with_impact(diff: Diff, impact: Impact, titles: Titles) -> Diff:
    """Give the diff with what each change means for the journeys of now, where that is known."""
    told = [msgspec.structs.replace(c, impact=_told(c, impact, titles)) for c in diff.changes]
    return msgspec.structs.replace(diff, changes=told)


def impact_lines(impact: Impact, titles: Titles) -> list[str]:
    """Give what is about the changes together: moves that gates hold, and where journeys go next."""
    lines: list[str] = []
    held = impact.held
    if held.released_before != held.released_after:
        lines.append(
            f"{_count(held.journeys, 'waits', 'wait')} at a gate: {held.released_after:,} of them would "
            f"move on at the next event of each ({held.released_before:,} today)."
        )
    lines += [
        f"{_count(move.after, 'goes', 'go')} from {titles.get(move.from_stage, move.from_stage)} to "
        f"{titles.get(move.to_stage, move.to_stage)} at the next event, "
        f"whatever that is ({move.before:,} today)."
        for move in impact.next_moves
        if move.before != move.after
    ]
    if lines:
        return lines
    return [
        f"None of {impact.open:,} open journeys goes another way at the next event of its lead."
    ]


def _told(change: Change, impact: Impact, titles: Titles) -> str | None:
    key = change.where.split(".")[1] if "." in change.where else ""
    match change.kind:
        case "gate-added":
            return next((
                f"{_count(s.no_longer, 'no longer qualifies', 'no longer qualify')}, "
                f"of {s.journeys:,} in {titles.get(s.stage, s.stage)}."
                for s in impact.stages if s.stage == key
            ), None)  # fmt: skip
        case "gate-removed":
            return next((
                f"{_count(s.now_met, 'meets the gate now', 'meet the gate now')}, "
                f"of {s.journeys:,} in {titles.get(s.stage, s.stage)}."
                for s in impact.stages if s.stage == key
            ), None)  # fmt: skip
        case "stage-removed" | "stage-renamed":
            count = next((g.journeys for g in impact.gone if g.stage == change.before), 0)
            return f"{count:,} {'journey stands' if count == 1 else 'journeys stand'} there today."
        case "rule-when":
            told = [_rule(r, titles) for r in impact.rules if r.rule == key]
            told += [_threshold(t) for t in impact.thresholds if t.rule == key]
            return " ".join(told) or None
        case (
            "signal"
            | "signal-added"
            | "signal-removed"
            | "fit-added"
            | "fit-removed"
            | ("fit-points" | "fit-when")
        ):
            return " ".join(_threshold(t) for t in impact.thresholds) or None
        case _:
            return None


def _rule(rule: RuleImpact, titles: Titles) -> str:
    brought = f"{rule.brought:,} that the rule brought to {titles.get(rule.stage, rule.stage)}"
    if rule.no_longer is None:
        return f"The condition asks for the event: of {brought}, a simulation tells who would not be there."
    return f"{_count(rule.no_longer, 'no longer qualifies', 'no longer qualify')}, of {brought}."


def _threshold(threshold: Threshold) -> str:
    named = "score" if threshold.score == "total" else f"{threshold.score} score"
    if threshold.after is None:
        return f"The rule {threshold.rule} asks for no {named} any more."
    was = f" ({threshold.reached_before:,} had {threshold.before})" if threshold.before else ""
    return (
        f"{_count(threshold.reached_after, 'has', 'have')} a {named} {threshold.after}{was}: "
        f"{threshold.gained:,} more, {threshold.lost:,} fewer."
    )


def _count(count: int, one: str, more: str) -> str:
    return f"{count:,} open {'journey' if count == 1 else 'journeys'} {one if count == 1 else more}"
