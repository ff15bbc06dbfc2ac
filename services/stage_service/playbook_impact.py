"""What another version of a playbook means for the leads that are here now. Pure, and exact.

Each open journey is judged from its lead's stored state, under the active playbook and under the other one:
whether it would meet the gate of the stage that it is in, whether a move that is held would happen, where it
would go at its next event, and whether its score is above what rules ask for. What events of the past would
have done is another question: ``baton playbook simulate`` folds them again.

A score is as the playbook would give it now, fit judged anew. At a journey's next event its fit is as it was
judged last, as in the fold, which judges it anew when an attribute comes that fit asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import LeadEvent
from services.stage_service.funnel import fold
from services.stage_service.journeys import Journey, Lead
from services.stage_service.judging import Case, unmet
from services.stage_service.playbook import Playbook, Rule, Stage
from services.stage_service.playbook_diff_words import Pair, same_condition
from services.stage_service.playbook_succession import following
from services.stage_service.scoring import Scoring, scored

_STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"")
_THRESHOLD = re.compile(r"\bscore\s*\.\s*(fit|intent|total)\s*(>=|>)\s*(-?\d+)\b")


class StageImpact(msgspec.Struct):
    """Of a stage (by its new name) with another gate: its open journeys, and how many do not meet it.

    `missing` is what the new gate misses, by attribute (a journey counts at each that it lacks).
    """

    stage: str
    journeys: int = 0
    unmet_before: int = 0
    unmet_after: int = 0
    no_longer: int = 0
    """Met the old gate and does not meet the new one."""
    now_met: int = 0
    missing: dict[str, int] = msgspec.field(default_factory=dict[str, int])


class Gone(msgspec.Struct):
    """Journeys, open or not, in a stage that the new playbook does not have; `to` by ``migrate:``."""

    stage: str
    to: str | None
    journeys: int = 0


class HeldImpact(msgspec.Struct):
    """Open journeys of which a gate holds a move, and how many would make it at their next event."""

    journeys: int = 0
    released_before: int = 0
    released_after: int = 0


class NextMove(msgspec.Struct):
    """Open journeys that would go from a stage to another at their next event, whatever that is."""

    from_stage: str
    to_stage: str
    before: int = 0
    after: int = 0


class RuleImpact(msgspec.Struct):
    """Of a rule with another condition: the open journeys that it brought to where they are.

    `met_before` and `met_after` are those for which the condition, as it was and as it is, is true now.
    They are None where the condition asks for the event, which is not kept with the journey.
    """

    rule: str
    stage: str
    brought: int = 0
    met_before: int | None = 0
    met_after: int | None = 0
    no_longer: int | None = 0
    """Of those that meet it as it was, how many do not meet it as it is."""


class Threshold(msgspec.Struct):
    """A score that a rule asks for, as ``total >= 60``, and how many open journeys reach it."""

    rule: str
    score: str
    before: str | None
    after: str | None
    reached_before: int = 0
    reached_after: int = 0
    gained: int = 0
    lost: int = 0


class Impact(msgspec.Struct):
    """The whole, over all leads of one moment."""

    at: datetime
    leads: int = 0
    journeys: int = 0
    open: int = 0
    stages: list[StageImpact] = msgspec.field(default_factory=list[StageImpact])
    gone: list[Gone] = msgspec.field(default_factory=list[Gone])
    held: HeldImpact = msgspec.field(default_factory=HeldImpact)
    next_moves: list[NextMove] = msgspec.field(default_factory=list[NextMove])
    rules: list[RuleImpact] = msgspec.field(default_factory=list[RuleImpact])
    thresholds: list[Threshold] = msgspec.field(default_factory=list[Threshold])


class ImpactTally:
    """Judges leads one by one and adds up. Holds numbers only: as much for a million leads as for one."""

    def __init__(
        self,
        before: Playbook,
        after: Playbook,
        now: datetime,
        moved: Mapping[str, str] | None = None,
    ) -> None:
        """Judge under `before`, a published version, and `after`; `moved` as in `diff`."""
        self._pair = Pair(before, after, moved)
        after = following(after, before, before.version + 1, self._pair.migrate)
        self._before, self._after, self._now = before, after, now
        self._found = Impact(now)
        self._gates = {
            old.key: (old, new, StageImpact(new.key))
            for old, new in self._pair.stages()
            if old.gate != new.gate and old.kind == "open"
        }
        self._gone: dict[str, Gone] = {}
        self._moves: dict[tuple[str, str], NextMove] = {}
        self._rules = {
            old.key: (old, new, _rule_impact(old, new))
            for old, new in self._pair.rules()
            if not same_condition(old.when, new.when)
        }
        self._thresholds = _thresholds(self._pair)
        self._no_event = _event(now)

    @property
    def changed_rules(self) -> Mapping[str, str]:
        """The rules with another condition, each with the stage to which it moved."""
        return {key: old.to for key, (old, _, _) in self._rules.items()}

    def add(self, lead: Lead, brought_by: Mapping[str, str]) -> None:
        """Judge one lead; `brought_by` names the rule of the last move of its journeys, by their name."""
        found = self._found
        found.leads += 1
        mine = [(n, j) for n, j in lead.journeys.items() if j.playbook == self._before.name]
        for name, journey in mine:
            found.journeys += 1
            was, now = (_taken_over(p, journey) for p in (self._before, self._after))
            if was.stage not in self._after.stages:
                to = now.stage if now.stage in self._after.stages else None
                self._gone.setdefault(was.stage, Gone(was.stage, to)).journeys += 1
            stage = self._before.stages.get(was.stage)
            if stage is None or stage.kind != "open":
                continue
            found.open += 1
            self._gate(lead, was)
            self._next(lead, name, was, now)
            self._scores(lead)
            if (rule := brought_by.get(name)) in self._rules:
                self._brought(lead, was, now, str(rule))

    def result(self) -> Impact:
        """Give what was found, in the order of the file."""
        stages, rules = list(self._after.stages), [rule.key for rule in self._after.rules]
        known = {key: index for index, key in enumerate((*stages, *self._before.stages))}

        def place(key: str) -> int:
            return known.get(key, len(known))

        return msgspec.structs.replace(
            self._found,
            stages=[g for _, _, g in self._gates.values()],
            gone=sorted(self._gone.values(), key=lambda g: (place(g.stage), g.stage)),
            next_moves=sorted(
                self._moves.values(), key=lambda m: (place(m.from_stage), place(m.to_stage))
            ),
            rules=sorted(
                (r for _, _, r in self._rules.values()), key=lambda r: rules.index(r.rule)
            ),
            thresholds=[t for _, _, t in self._thresholds],
        )

    def _gate(self, lead: Lead, journey: Journey) -> None:
        if journey.stage not in self._gates:
            return
        old, new, tally = self._gates[journey.stage]
        was = _missing(old, lead, journey)
        now = _missing(new, lead, journey)
        tally.journeys += 1
        tally.unmet_before += bool(was)
        tally.unmet_after += bool(now)
        tally.no_longer += bool(now and not was)
        tally.now_met += bool(was and not now)
        for name in now:
            tally.missing[name] = tally.missing.get(name, 0) + 1

    def _next(self, lead: Lead, name: str, was: Journey, now: Journey) -> None:
        then, other = (
            _stage_after(p, lead, name, j, self._now)
            for p, j in ((self._before, was), (self._after, now))
        )
        if then != was.stage:
            self._move(was.stage, then).before += 1
        if other != now.stage:
            self._move(now.stage, other).after += 1
        if was.held:
            held = self._found.held
            held.journeys += 1
            held.released_before += _lets_go(self._before, lead, was)
            held.released_after += _lets_go(self._after, lead, now)

    def _move(self, from_: str, to: str) -> NextMove:
        return self._moves.setdefault((from_, to), NextMove(from_, to))

    def _scores(self, lead: Lead) -> None:
        if not self._thresholds:
            return
        was, now = (self._case(p, lead).scored() for p in (self._before, self._after))
        for before, after, tally in self._thresholds:
            reached_before = before is not None and _reaches(getattr(was, tally.score), before)
            reached_after = after is not None and _reaches(getattr(now, tally.score), after)
            tally.reached_before += reached_before
            tally.reached_after += reached_after
            tally.gained += reached_after and not reached_before
            tally.lost += reached_before and not reached_after

    def _brought(self, lead: Lead, before: Journey, after: Journey, rule: str) -> None:
        old, new, tally = self._rules[rule]
        if old.to != before.stage:
            return
        tally.brought += 1
        if tally.met_before is None or tally.met_after is None or tally.no_longer is None:
            return
        was = self._case(self._before, lead).fires(old, before) is not None
        now = self._case(self._after, lead).fires(new, after) is not None
        tally.met_before += was
        tally.met_after += now
        tally.no_longer += was and not now

    def _case(self, playbook: Playbook, lead: Lead) -> Case:
        """Give the lead as the conditions of `playbook` see it now, its fit judged anew, without an event."""
        known = lead.scoring.get(playbook.name)
        scoring = scored(playbook, known, self._no_event, lead.email, lead.attributes, True)
        if not playbook.fit:
            scoring = Scoring(0, [], scoring.signals)
        return Case(playbook, self._no_event, lead.email, lead.attributes, scoring, [], [])


def _event(at: datetime, deal: str = "main") -> LeadEvent:
    """Give an event that tells nothing, of a type that no rule names."""
    return LeadEvent("", "", "", at, at, None, (), deal, {}, {})


def _taken_over(playbook: Playbook, journey: Journey) -> Journey:
    """Give `journey` as `playbook` knows it: where its stage is gone or renamed, where it goes on."""
    since = journey.version
    return msgspec.structs.replace(
        journey,
        stage=playbook.current(journey.stage, since),
        held=[msgspec.structs.replace(h, to=playbook.current(h.to, since)) for h in journey.held],
        version=playbook.version,
    )


def _missing(stage: Stage, lead: Lead, journey: Journey) -> list[str]:
    return unmet(stage, lead.email, lead.attributes, journey, journey.reason)


def _stage_after(playbook: Playbook, lead: Lead, name: str, journey: Journey, now: datetime) -> str:
    """Give where `journey` stands after an event that tells nothing: what the fold makes of it."""
    if not journey.held and not playbook.candidates("", journey.stage):
        return (
            journey.stage
        )  # nothing can move it; most leads, so most of the time is spent elsewhere
    at = max(now, lead.last[0])
    told = msgspec.structs.replace(lead, journeys={**lead.journeys, name: journey})
    return fold({playbook.name: playbook}, told, _event(at, journey.key)).lead.journeys[name].stage


def _lets_go(playbook: Playbook, lead: Lead, journey: Journey) -> bool:
    """Say whether a gate that holds a move of `journey` lets it go with what is known."""
    stages = ((playbook.stages.get(h.to), h.reason) for h in journey.held)
    return any(
        to is not None and not unmet(to, lead.email, lead.attributes, journey, reason)
        for to, reason in stages
    )


def _rule_impact(old: Rule, new: Rule) -> RuleImpact:
    if _asks_for_more((old, new)):
        return RuleImpact(new.key, old.to, 0, None, None, None)
    return RuleImpact(new.key, old.to)


def _asks_for_more(rules: Iterable[Rule]) -> bool:
    """Say whether a condition asks for what is not kept with a journey: the event, and where it came from."""
    asked = {name for r in rules if r.when for name in r.when.variables}
    return any("event." in name or name.endswith("journey.stage") for name in asked)


def _reaches(score: int, threshold: tuple[str, int]) -> bool:
    sign, points = threshold
    return score >= points if sign == ">=" else score > points


def _thresholds(
    pair: Pair,
) -> list[tuple[tuple[str, int] | None, tuple[str, int] | None, Threshold]]:
    """Give the scores that rules ask for, where they or what gives points are others now."""
    sides: list[dict[tuple[str, str], tuple[str, int]]] = []
    for playbook in (pair.before, pair.after):
        side: dict[tuple[str, str], tuple[str, int]] = {}
        for rule in playbook.rules:
            text = _STRING.sub("", rule.when.text) if rule.when else ""
            for score, sign, points in _THRESHOLD.findall(text):
                side.setdefault((rule.key, score), (sign, int(points)))
        sides.append(side)
    was, now = sides
    same_points = _points(pair.before) == _points(pair.after)
    found: list[tuple[tuple[str, int] | None, tuple[str, int] | None, Threshold]] = []
    for key in dict.fromkeys((*now, *was)):
        before, after = was.get(key), now.get(key)
        if before == after and same_points:
            continue
        tally = Threshold(*key, _threshold_told(before), _threshold_told(after))
        found.append((before, after, tally))
    return found


def _threshold_told(threshold: tuple[str, int] | None) -> str | None:
    return f"{threshold[0]} {threshold[1]}" if threshold is not None else None


def _points(playbook: Playbook) -> Any:
    """Give all that a score is made of."""
    fit = [(f.key, f.points, f.when.parsed) for f in playbook.fit]
    signals = {s.key: (s.half_life_days, s.cap) for s in playbook.signals_by_key.values()}
    return fit, signals
