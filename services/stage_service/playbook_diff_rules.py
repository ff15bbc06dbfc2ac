"""What differs in a playbook's rules, their order, and the score. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.stage_service.playbook import Rule, Signal
from services.stage_service.playbook_diff_words import (
    Change,
    Pair,
    condition_told,
    listed,
    out_of_order,
    same_condition,
    stage_named,
)


def rule_changes(pair: Pair) -> Iterable[Change]:
    """Compare the rules: added, removed, renamed, changed, judged in another order."""
    before = {rule.key: rule for rule in pair.before.rules}
    after = {rule.key: rule for rule in pair.after.rules}
    gone = [rule for key, rule in before.items() if key not in after]
    renamed: dict[str, Rule] = {}
    for rule in pair.after.rules:
        if rule.key in before:
            continue
        twin = next((g for g in gone if _same_rule(pair, g, rule)), None)
        if twin is not None:
            gone.remove(twin)
            renamed[rule.key] = twin
            yield Change(
                "rule-renamed", f"rules.{rule.key}",
                f"The rule {twin.key} is called {rule.key} now.", twin.key, rule.key, moves=False,
            )  # fmt: skip
        else:
            yield Change(
                "rule-added", f"rules.{rule.key}",
                f"A new rule {rule.key} moves {_told(pair, rule)}.", None, _text(rule), moves=True,
            )  # fmt: skip
    for rule in gone:
        stages = listed(s for s in pair.before.stages if s in rule.from_stages)
        yield Change(
            "rule-removed", "rules",
            f"The rule {rule.key} is gone; it moved from {stages} to {rule.to}.",
            _text(rule), None, moves=True,
        )  # fmt: skip
    for old, new in pair.rules():
        yield from _rule(pair, old, new)
    yield from _order(pair, renamed)


def _same_rule(pair: Pair, old: Rule, new: Rule) -> bool:
    return (
        pair.now((old.to,)) == frozenset((new.to,))
        and pair.now(old.from_stages) == new.from_stages
        and old.on == new.on
        and same_condition(old.when, new.when)
    )


def _told(pair: Pair, rule: Rule) -> str:
    stages = listed(s for s in pair.after.stages if s in rule.from_stages)
    on = f" on {listed(sorted(rule.on))}" if rule.on else ""
    when = f" when {condition_told(rule.when)}" if rule.when else ""
    return f"from {stages} to {stage_named(pair.after, rule.to)}{on}{when}"


def _text(rule: Rule) -> str:
    parts = [f"from {', '.join(sorted(rule.from_stages))}", f"to {rule.to}"]
    parts += [f"on {', '.join(sorted(rule.on))}"] if rule.on else []
    parts += [f"when {condition_told(rule.when)}"] if rule.when else []
    return "; ".join(parts)


def _rule(pair: Pair, old: Rule, new: Rule) -> Iterable[Change]:
    where, key = f"rules.{new.key}", new.key
    if pair.now((old.to,)) != frozenset((new.to,)):
        yield Change(
            "rule-to", f"{where}.to", f"{key} moves to {stage_named(pair.after, new.to)} now.",
            old.to, new.to, moves=True,
        )  # fmt: skip
    came = pair.now(old.from_stages)
    if came != new.from_stages:
        more, fewer = sorted(new.from_stages - came), sorted(came - new.from_stages)
        said = [f"also moves from {listed(more)}"] if more else []
        said += [f"no longer moves from {listed(fewer)}"] if fewer else []
        yield Change(
            "rule-from", f"{where}.from", f"{key} {' and '.join(said)}.",
            ", ".join(sorted(old.from_stages)), ", ".join(sorted(new.from_stages)), moves=True,
        )  # fmt: skip
    if old.on != new.on:
        said = f"hears {listed(sorted(new.on))} now" if new.on else "is judged at every event now"
        yield Change(
            "rule-on", f"{where}.on", f"{key} {said}.", ", ".join(sorted(old.on or ())) or None,
            ", ".join(sorted(new.on or ())) or None, moves=True,
        )  # fmt: skip
    if not same_condition(old.when, new.when):
        was, now = condition_told(old.when), condition_told(new.when)
        said = f"fires when {now} now" if now else "has no condition any more"
        yield Change(
            "rule-when", f"{where}.when", f"{key} {said}{f' (before: {was})' if was else ''}.",
            was, now, moves=True,
        )  # fmt: skip
    if old.back != new.back:
        said = "goes back" if new.back else "no longer goes back"
        yield Change(
            "rule-back", where, f"{key} {said} on the path, as the file says.",
            str(old.back).lower(), str(new.back).lower(), moves=False,
        )  # fmt: skip


def _order(pair: Pair, renamed: dict[str, Rule]) -> Iterable[Change]:
    names = {rule.key: key for key, rule in renamed.items()}
    after = {rule.key: rule for rule in pair.after.rules}
    before = [names.get(r.key, r.key) for r in pair.before.rules]
    before = [key for key in before if key in after]
    now = [key for key in after if key in before]
    for key in out_of_order(before, now):
        index = now.index(key)
        place = f"after {now[index - 1]}" if index else "first"
        passed = _passed(key, before, now)
        meets = [other for other in passed if _may_both_fire(after[key], after[other])]
        why = f"; both it and {listed(meets)} may fire" if meets else "; no other can fire with it"
        yield Change(
            "rule-order", f"rules.{key}", f"{key} is judged {place} now{why}.",
            str(before.index(key) + 1), str(index + 1), moves=bool(meets),
        )  # fmt: skip


def _passed(key: str, before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Give the rules that `key` was before and is after, or the other way."""
    was, at = before.index(key), now.index(key)
    return [
        other
        for index, other in enumerate(now)
        if other != key and (index < at) != (before.index(other) < was)
    ]


def _may_both_fire(one: Rule, other: Rule) -> bool:
    heard = one.on is None or other.on is None or bool(one.on & other.on)
    return heard and bool(one.from_stages & other.from_stages) and one.to != other.to


def score_changes(pair: Pair) -> Iterable[Change]:
    """Compare what leads get points for."""
    yield from _fit(pair)
    before, after = pair.before.signals_by_key, pair.after.signals_by_key
    for key, new in after.items():
        old = before.get(key)
        where = f"score.intent.{key}"
        if old is None:
            yield Change(
                "signal-added", where, f"Intent: {_signal_told(new)}, new.", None,
                _signal_told(new), moves=pair.scores_matter,
            )  # fmt: skip
            continue
        for what, was, now in (
            ("points", f"{old.points:g}", f"{new.points:g}"),
            ("half-life in days", f"{old.half_life_days:g}", f"{new.half_life_days:g}"),
            ("most points", f"{old.cap:g}", f"{new.cap:g}"),
            ("event types", ", ".join(sorted(old.on)), ", ".join(sorted(new.on))),
        ):
            if was != now:
                yield Change(
                    "signal", where, f"Intent, {key}: {what} {now} now, not {was}.", was, now,
                    moves=pair.scores_matter,
                )  # fmt: skip
    for key, old in before.items():
        if key not in after:
            yield Change(
                "signal-removed", "score.intent", f"Intent: {key} gives no points any more.",
                _signal_told(old), None, moves=pair.scores_matter,
            )  # fmt: skip


def _fit(pair: Pair) -> Iterable[Change]:
    before = {rule.key: rule for rule in pair.before.fit}
    after = {rule.key: rule for rule in pair.after.fit}
    for key, new in after.items():
        old = before.get(key)
        where, told = f"score.fit.{key}", condition_told(new.when)
        if old is None:
            yield Change(
                "fit-added", where, f"Fit: {new.points:+d} points for {key} (when {told}), new.",
                None, str(new.points), moves=pair.scores_matter,
            )  # fmt: skip
            continue
        if old.points != new.points:
            yield Change(
                "fit-points", where, f"Fit: {key} gives {new.points} points now, not {old.points}.",
                str(old.points), str(new.points), moves=pair.scores_matter,
            )  # fmt: skip
        if not same_condition(old.when, new.when):
            was = condition_told(old.when)
            yield Change(
                "fit-when", where, f"Fit: {key} counts when {told} now (before: {was}).", was, told,
                moves=pair.scores_matter,
            )  # fmt: skip
    for key, old in before.items():
        if key not in after:
            yield Change(
                "fit-removed", "score.fit", f"Fit: {key} gives no points any more.",
                str(old.points), None, moves=pair.scores_matter,
            )  # fmt: skip


def _signal_told(signal: Signal) -> str:
    return (
        f"{signal.points:+g} points for {listed(sorted(signal.on))} ({signal.key}), half after "
        f"{signal.half_life_days:g} days, at most {signal.cap:g}"
    )
