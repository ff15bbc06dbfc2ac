"""What a lead is worth calling for: fit (who they are) and intent (what they did lately). Pure.

Intent's points halve every half-life of their signal; both parts are kept so that a page can take the
score apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.contracts.events import LeadEvent
from services.contracts.published import Score
from services.stage_service.playbook import Playbook, Signal

_DAY_S = 86_400.0


class Scoring(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A lead's score under one playbook: fit, and each signal's points with their moment."""

    fit: int
    fit_keys: list[str]
    signals: dict[str, tuple[float, float]]


def scored(
    playbook: Playbook,
    scoring: Scoring | None,
    event: LeadEvent,
    email: str | None,
    attributes: dict[str, Any],
    fit_changed: bool,
) -> Scoring:
    """Give the scoring after `event`; the same object when it changes nothing."""
    if scoring is None:
        scoring = Scoring(0, [], {})
        fit_changed = True
    if fit_changed and playbook.fit:
        fit, keys = 0, list[str]()
        for rule in playbook.fit:
            values = {n: _fit_value(playbook, n, email, attributes) for n in rule.when.variables}
            if rule.when.evaluate(values).result:
                fit += rule.points
                keys.append(rule.key)
        if fit != scoring.fit or keys != scoring.fit_keys:
            scoring = Scoring(fit, keys, scoring.signals)
    signals = playbook.signals.get(event.type)
    if signals:
        at = event.time.timestamp()
        points = dict(scoring.signals)
        for signal in signals:
            before, then = points.get(signal.key, (0.0, at))
            left = _decayed(before, at - then, signal)
            points[signal.key] = (min(left + signal.points, signal.cap), at)
        scoring = Scoring(scoring.fit, scoring.fit_keys, points)
    return scoring


def _decayed(points: float, seconds: float, signal: Signal) -> float:
    return points * 0.5 ** (seconds / (signal.half_life_days * _DAY_S)) if seconds > 0 else points


def _fit_value(
    playbook: Playbook, name: str, email: str | None, attributes: Mapping[str, Any]
) -> Any:
    room, _, attribute = name.partition(".")
    if room == "known":
        return _fit_value(playbook, attribute, email, attributes) is not None
    if attribute == "email":
        return email
    return playbook.coerced("lead", attribute, attributes.get(attribute))


def signal_points(playbook: Playbook, scoring: Scoring, at_s: float) -> dict[str, float]:
    """Give each signal's points, decayed to `at_s` (Unix seconds), by signal key."""
    points: dict[str, float] = {}
    for key, (before, then) in scoring.signals.items():
        signal = playbook.signals_by_key.get(key)
        if signal is not None:  # a signal that a later playbook dropped counts no more
            points[key] = _decayed(before, at_s - then, signal)
    return points


def score_at(playbook: Playbook, scoring: Scoring, at_s: float) -> Score:
    """Give the score at `at_s` (Unix seconds), in whole points."""
    points = 0.0
    for key, (before, then) in scoring.signals.items():  # as `signal_points`, at every event
        signal = playbook.signals_by_key.get(key)
        if signal is not None:
            points += _decayed(before, at_s - then, signal)
    # Rounded, not cut: two signals of 10 points a minute apart are 20 points to people.
    intent = int(points + 0.5)
    return Score(scoring.fit, intent, scoring.fit + intent)
