"""One event judged under one playbook: gates that let go, handoffs answered, rules that move. Pure.

Nothing here raises for anything an event may contain: a rule that cannot be evaluated is false and says why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from services.contracts.events import MAIN, LeadEvent
from services.contracts.published import Score
from services.stage_service import offers
from services.stage_service.journeys import Held, Journey, Move
from services.stage_service.lead_facts import reason_in
from services.stage_service.offers import Handed, Offer
from services.stage_service.playbook import Playbook, Rule, Stage
from services.stage_service.scoring import Scoring, score_at

_PLACEHOLDER = re.compile(r"\{([a-z_.]+)\}")


class Case:
    """One event judged under one playbook: the values that its rules may ask for."""

    __slots__ = (
        "attributes", "email", "event", "handed", "playbook", "score", "scoring", "unevaluated",
    )  # fmt: skip

    def __init__(
        self,
        playbook: Playbook,
        event: LeadEvent,
        email: str | None,
        attributes: dict[str, Any],
        scoring: Scoring,
        unevaluated: list[tuple[str, str]],
        handed: list[Handed],
    ) -> None:
        self.handed = handed
        self.playbook = playbook
        self.event = event
        self.email = email
        self.attributes = attributes
        self.scoring = scoring
        self.unevaluated = unevaluated
        self.score: Score | None = None

    def scored(self) -> Score:
        """Give the score at the event's time; computed once, and only when asked for."""
        if self.score is None:
            self.score = score_at(self.playbook, self.scoring, self.event.time.timestamp())
        return self.score

    def value(self, name: str, journey: Journey) -> Any:
        """Give the value of a declared variable, or None when it is not known."""
        room, _, attribute = name.partition(".")
        match room:
            case "event":
                if attribute == "type":
                    return self.event.type
                if attribute == "source":
                    return self.event.source
                return self.playbook.coerced("event", attribute, self.event.data.get(attribute))
            case "lead":
                if attribute == "email":
                    return self.email
                return self.playbook.coerced("lead", attribute, self.attributes.get(attribute))
            case "deal":
                deal = self.attributes if journey.key == MAIN else journey.deal
                return self.playbook.coerced("deal", attribute, deal.get(attribute))
            case "known":
                return self.value(attribute, journey) is not None
            case "score":
                return getattr(self.scored(), attribute)
            case _:
                if attribute == "furthest_stage":
                    return journey.furthest
                return journey.key if attribute == "key" else journey.stage

    def hand(self, name: str, journey: Journey, offer: Offer) -> None:
        """Note that the event changed the handoff of the journey `name` to `offer`."""
        self.handed.append(Handed(name, self.playbook.name, offer, self.event, journey.asked_at))

    def fires(self, rule: Rule, journey: Journey) -> dict[str, Any] | None:
        """Give the values that made `rule` true, or None when it is not."""
        if rule.when is None:
            return {}
        values = {name: self.value(name, journey) for name in rule.when.variables}
        verdict = rule.when.evaluate(values)
        if verdict.missing is not None:
            self.unevaluated.append((rule.key, verdict.missing))
        return values if verdict.result else None


def judge(
    case: Case,
    addressed: str,
    journeys: Mapping[str, Journey],
    changed: dict[str, Journey],
    moves: list[Move],
) -> None:
    """Let the event release what gates hold, answer the handoff, and fire rules; `changed` gets it."""
    for other, waiting in journeys.items():
        if waiting.held and waiting.playbook == case.playbook.name:
            changed.setdefault(other, waiting)
    for each, current in changed.items():
        if current.held:
            changed[each] = _released(case, each, current, moves, each == addressed)
    apply = _answered if case.playbook.handoffs else advanced
    changed[addressed] = apply(case, addressed, changed[addressed], moves)


def by_hand(case: Case, name: str, journey: Journey, moves: list[Move]) -> Journey:
    """Make the move a person asked for; a gate holds it unless it was forced."""
    data = case.event.data
    to = case.playbook.stages.get(case.playbook.named(str(data.get("to"))))
    reason = reason_in(case.event)
    if to is None or to.key == journey.stage:
        return journey
    missing = unmet(to, case.email, case.attributes, journey, reason)
    if missing and data.get("force") is not True:
        kept = [h for h in journey.held if h.to != to.key]
        held = Held(to.key, "by-hand", case.event.time, missing, reason)
        return msgspec.structs.replace(journey, held=[*kept, held])
    actor = str(data.get("actor") or "somebody")
    because = f"{actor} moved it by hand: {reason or 'no reason given'}"
    why = {"by_hand": True, "actor": actor, "reason": reason, "forced": bool(missing)}
    return _moved(
        case, name, journey, to, moves, actor=actor, reason=reason, why=why, because=because
    )


def advanced(case: Case, name: str, journey: Journey, moves: list[Move]) -> Journey:
    """Apply the rules until none moves `journey` any more; never more often than stages exist."""
    playbook = case.playbook
    for _ in playbook.stages:
        for rule in playbook.candidates(case.event.type, journey.stage):
            values = case.fires(rule, journey)
            if values is None:
                continue
            to = playbook.stages[rule.to]
            reason = reason_in(case.event)
            missing = unmet(to, case.email, case.attributes, journey, reason)
            if missing:
                journey = _held(case, journey, rule, missing, reason)
                continue
            because = _because(case, rule, journey, values)
            why = {"rule": rule.key, "because": because, "values": values}
            journey = _moved(
                case, name, journey, to, moves, rule=rule.key, reason=reason, why=why,
                because=because,
            )  # fmt: skip
            break
        else:
            break
    return journey


def unmet(
    stage: Stage,
    email: str | None,
    attributes: Mapping[str, Any],
    journey: Journey,
    reason: str | None,
) -> list[str]:
    """Give what the gate of `stage` still misses: attribute names, ``reason``; empty when met."""
    gate = stage.gate
    missing: list[str] = []
    for name in gate.require:
        room, _, attribute = name.partition(".")
        known = journey.deal if room == "deal" and journey.key != MAIN else attributes
        value = email if name == "lead.email" else known.get(attribute)
        if value in (None, ""):
            missing.append(name)
    if gate.reason and not reason:
        missing.append("reason")
    return missing


def _released(
    case: Case, name: str, journey: Journey, moves: list[Move], addressed: bool
) -> Journey:
    """Make the held moves of `journey` whose gate the event now meets."""
    for held in journey.held:
        to = case.playbook.stages.get(held.to)
        if to is None:
            continue
        reason = held.reason or (reason_in(case.event) if addressed else None)
        if unmet(to, case.email, case.attributes, journey, reason):
            continue
        rule = next((r for r in case.playbook.rules if r.key == held.rule), None)
        because = _because(case, rule, journey, {}) if rule else f"rule {held.rule} asked for it"
        learned = ", ".join(m.partition(".")[2] or m for m in held.missing)
        why = {
            "rule": held.rule, "because": because,
            "held": {"since": held.since, "missing": held.missing},
        }  # fmt: skip
        return _moved(
            case, name, journey, to, moves, rule=held.rule, reason=reason, why=why,
            because=f"{because}; the move waited until {learned} was known",
        )  # fmt: skip
    return journey


def _answered(case: Case, name: str, journey: Journey, moves: list[Move]) -> Journey:
    """Apply an event where handoffs are answered: the answer first, then the rules.

    An answer that meets no open offer fires no rule. A rejection that no rule moves offers it again.
    """
    playbook, event = case.playbook, case.event
    if journey.asked_at is None and event.type in playbook.asks_for_contact:
        journey = msgspec.structs.replace(journey, asked_at=event.time)
    offer = offers.answered(journey.offer, playbook, event)
    if offer is None:
        if event.type in offers.ANSWERS:
            return journey
        return advanced(case, name, journey, moves)
    journey = msgspec.structs.replace(journey, offer=offer)
    case.hand(name, journey, offer)
    journey = advanced(case, name, journey, moves)
    if offer.state == "rejected" and journey.offer is offer:
        journey = msgspec.structs.replace(journey, offer=offers.again(offer, event))
        assert journey.offer is not None  # noqa: S101
        case.hand(name, journey, journey.offer)
    return journey


def _held(
    case: Case, journey: Journey, rule: Rule, missing: list[str], reason: str | None
) -> Journey:
    kept = [h for h in journey.held if h.to != rule.to]
    held = Held(rule.to, rule.key, case.event.time, missing, reason)
    return msgspec.structs.replace(journey, held=[*kept, held])


def _moved(
    case: Case,
    name: str,
    journey: Journey,
    to: Stage,
    moves: list[Move],
    *,
    reason: str | None,
    why: dict[str, Any],
    because: str,
    rule: str | None = None,
    actor: str | None = None,
) -> Journey:
    playbook, event = case.playbook, case.event
    stages = playbook.stages
    came_from = stages.get(journey.stage) or playbook.former.get(journey.stage, to)
    furthest = stages.get(journey.furthest)
    reached = furthest.path_index if furthest and furthest.path_index is not None else -1
    skipped: list[str] = []
    if to.path_index is not None:
        start = came_from.path_index if came_from.path_index is not None else reached
        skipped = list(playbook.path[start + 1 : to.path_index])
        if to.path_index > reached:
            furthest = to
    explanation = f"Moved from {came_from.title} to {to.title} because {because}."
    if skipped:
        explanation += f" Skipped: {', '.join(stages[s].title for s in skipped)}."
    offer, made = journey.offer, None
    if playbook.handoffs:
        if offer is not None and offer.is_open:
            offer = offers.left(offer, came_from, to, event)
            case.hand(name, journey, offer)
        made = offers.offered(playbook, came_from, to, event)
        if made is not None:
            offer = made
            case.hand(name, journey, made)
    moves.append(
        Move(
            name, playbook.name, playbook.version, journey.key, journey.stage, to.key,
            journey.entered_at, event.time, event.source, event.id, event.type, rule, actor,
            to.responsible[0], came_from.responsible[0], skipped, case.scored(), explanation, why,
            made,
        )
    )  # fmt: skip
    return Journey(
        journey.playbook, journey.key, to.key, furthest.key if furthest else to.key,
        journey.started_at, event.time, journey.moves + 1, playbook.version, journey.deal, [],
        reason, offer, journey.asked_at if to.kind in offers.WAITING_KINDS else None,
    )  # fmt: skip


def _because(case: Case, rule: Rule, journey: Journey, values: dict[str, Any]) -> str:
    """Fill the rule's sentence with the values it used."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        value = values[name] if name in values else case.value(name, journey)
        return "unknown" if value is None else str(value)[:80]

    return _PLACEHOLDER.sub(fill, rule.because) if "{" in rule.because else rule.because
