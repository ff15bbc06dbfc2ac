"""The fold: what one lead event does to a lead. Pure: no I/O, no clock, no chance.

`fold(playbooks, state, event)` gives the new state and the moves it made. State is a value; the lane
keeps it in the lead's row and hands it back with the next event. Events must come in the order of
their `place`; for a late one the lane calls `refold` with all events of the lead. Nothing here raises
for anything an event may contain: a rule that cannot be evaluated is false and says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import (
    ASSIGNED_BY_HAND,
    MAIN,
    MERGED_BY_HAND,
    MOVED_BY_HAND,
    SOURCE,
    UNMERGED_BY_HAND,
    LeadEvent,
    Score,
    Touch,
)
from services.contracts.handoffs import CLOCK_FIRED
from services.stage_service import offers
from services.stage_service.lead_facts import (
    facts_in,
    merged,
    named,
    reason_in,
)
from services.stage_service.offers import Handed, Offer, Ring
from services.stage_service.playbook import Playbook, Rule, Stage
from services.stage_service.scoring import Scoring, score_at, scored

TOUCHES_MAX = 5
_SILENT = (MERGED_BY_HAND, UNMERGED_BY_HAND)
"""They say whose events these are, and nothing of the lead."""
_PLACEHOLDER = re.compile(r"\{([a-z_.]+)\}")


class Held(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A move that a gate holds: it happens by itself when what is `missing` arrives."""

    to: str
    rule: str
    since: datetime
    missing: list[str]
    reason: str | None


class Journey(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One lead's way through one playbook, as far as the fold knows it."""

    playbook: str
    key: str
    stage: str
    furthest: str
    started_at: datetime
    entered_at: datetime
    moves: int
    version: int
    deal: dict[str, Any]
    held: list[Held]
    reason: str | None
    offer: Offer | None = None
    """The newest handoff, open or answered."""
    asked_at: datetime | None = None
    """When the lead first asked for contact, since it last left the path."""


class Lead(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Everything the fold knows of a lead; `last` is the place of the newest event folded."""

    email: str | None
    external_ids: dict[str, str]
    attributes: dict[str, Any]
    scoring: dict[str, Scoring]
    touches: list[Touch]
    journeys: dict[str, Journey]
    first_seen_at: datetime
    last: tuple[datetime, str, str]


class Move(msgspec.Struct, frozen=True, gc=False):
    """One transition as the fold decides it; the lane adds ids, sequence and owner."""

    journey: str
    playbook: str
    version: int
    key: str
    from_stage: str
    to_stage: str
    visit_entered_at: datetime
    occurred_at: datetime
    event_source: str
    event_id: str
    event_type: str
    rule: str | None
    actor: str | None
    role: str
    previous_role: str
    skipped: list[str]
    score: Score
    explanation: str
    why: dict[str, Any]
    offer: Offer | None = None
    """The handoff that it offers."""

    @property
    def identity(self) -> tuple[str, str, datetime, str, str, str | None]:
        """Give what makes two moves the same piece of history."""
        return (
            self.from_stage,
            self.to_stage,
            self.occurred_at,
            self.event_source,
            self.event_id,
            self.rule,
        )


class Folded(msgspec.Struct, frozen=True, gc=False):
    """What an event did: the new state, its moves, and rules that could not be evaluated.

    `handed` are the changes of handoffs, in order; `rings` the clocks whose event met what it is about.
    """

    lead: Lead
    moves: list[Move]
    unevaluated: list[tuple[str, str]]
    handed: list[Handed]
    rings: list[Ring]


def journey_name(playbook: str, key: str) -> str:
    """Name a lead's journey: ``playbook/key``."""
    return f"{playbook}/{key}"


def fold(playbooks: Mapping[str, Playbook], lead: Lead | None, event: LeadEvent) -> Folded:
    """Fold `event` into `lead` (None: the lead's first event) under `playbooks`.

    The event's place must not be before `lead.last`.
    """
    lead = lead or Lead(None, {}, {}, {}, [], {}, event.time, event.place)
    own = _own(playbooks, lead, event) if event.source == SOURCE else None
    if own is not None:
        return own
    by_hand = event.type == MOVED_BY_HAND and event.source == SOURCE
    answers = event.type in offers.ANSWERS
    data = event.data
    facts = {} if by_hand or answers else facts_in(data)
    email, external_ids = named(lead.email, lead.external_ids, event)
    moves: list[Move] = []
    handed: list[Handed] = []
    unevaluated: list[tuple[str, str]] = []
    scorings = lead.scoring
    journeys = lead.journeys
    attributes = lead.attributes
    lead_facts, deal_facts = _split(playbooks, event, facts)
    if lead_facts:
        attributes = merged(attributes, lead_facts)
    for name, playbook in playbooks.items():
        fit_changed = email != lead.email or not playbook.fit_attributes.isdisjoint(lead_facts)
        scoring = scored(playbook, scorings.get(name), event, email, attributes, fit_changed)
        if scoring is not scorings.get(name):
            scorings = {**scorings, name: scoring}
        case = _Case(playbook, event, email, attributes, scoring, unevaluated, handed)
        addressed = journey_name(name, event.deal)
        if (by_hand or answers) and data.get("playbook", name) != name:
            continue
        journey = journeys.get(addressed)
        if journey is None:
            first = playbook.first_stage
            journey = Journey(
                name, event.deal, first, first, event.time, event.time, 0, playbook.version,
                {}, [], None,
            )  # fmt: skip
        changed = {addressed: journey}
        if deal_facts:
            changed[addressed] = msgspec.structs.replace(
                journey, deal=merged(journey.deal, deal_facts)
            )
        if by_hand:
            changed[addressed] = _by_hand(case, addressed, changed[addressed], moves)
        else:
            _judge(case, addressed, journeys, changed, moves)
        journeys = {**journeys, **changed}
    touches = lead.touches if by_hand else _touched(lead.touches, playbooks, event)
    return Folded(
        Lead(
            email, external_ids, attributes, scorings, touches, journeys,
            lead.first_seen_at, event.place,
        ),
        moves, unevaluated, handed, [],
    )  # fmt: skip


class Refolded(msgspec.Struct, gc=False):
    """What a lead's events did, all of them: as `Folded`; `lead` is None without events."""

    lead: Lead | None
    moves: list[Move]
    unevaluated: list[tuple[str, str]]
    handed: list[Handed]
    rings: list[Ring]


def refold(events: Iterable[tuple[LeadEvent, Mapping[str, Playbook]]]) -> Refolded:
    """Fold a lead's `events`, each with the playbooks active when it was recorded, from nothing.

    Sorts them by place.
    """
    whole = Refolded(None, [], [], [], [])
    for event, playbooks in sorted(events, key=lambda pair: pair[0].place):
        folded = fold(playbooks, whole.lead, event)
        whole.lead = folded.lead
        whole.moves += folded.moves
        whole.unevaluated += folded.unevaluated
        whole.handed += folded.handed
        whole.rings += folded.rings
    return whole


def score_of(lead: Lead, playbook: Playbook, at: datetime) -> Score:
    """Give the lead's score under `playbook` at the moment `at`, intent decayed to then."""
    scoring = lead.scoring.get(playbook.name)
    return score_at(playbook, scoring, at.timestamp()) if scoring else Score(0, 0, 0)


class _Case:
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


def _split(
    playbooks: Mapping[str, Playbook], event: LeadEvent, facts: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part `facts` into the lead's and, of an event that names a deal, the deal's declared ones."""
    if event.deal == MAIN or not facts:
        return facts, {}
    declared = {name for playbook in playbooks.values() for name in playbook.attributes["deal"]}
    return (
        {k: v for k, v in facts.items() if k not in declared},
        {k: v for k, v in facts.items() if k in declared},
    )


def _touched(
    touches: list[Touch], playbooks: Mapping[str, Playbook], event: LeadEvent
) -> list[Touch]:
    newest = Touch(event.type, event.time, _label(playbooks, event))
    return [*touches[-TOUCHES_MAX + 1 :], newest]


def _label(playbooks: Mapping[str, Playbook], event: LeadEvent) -> str:
    """Give how the event's type reads to people, by the first playbook that says so."""
    for playbook in playbooks.values():
        if event.type in playbook.labels:
            return playbook.labels[event.type]
    return event.type


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


def _own(playbooks: Mapping[str, Playbook], lead: Lead, event: LeadEvent) -> Folded | None:
    """Apply an event of Baton's own that tells nothing of the lead; None: it is another."""
    if event.type == ASSIGNED_BY_HAND:
        return _assigned(playbooks, lead, event)
    if event.type in offers.CLOCK_EVENTS:
        return _rung(playbooks, lead, event)
    if event.type in _SILENT:
        return Folded(msgspec.structs.replace(lead, last=event.place), [], [], [], [])
    return None


def _judge(
    case: _Case,
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
    apply = _answered if case.playbook.handoffs else _advanced
    changed[addressed] = apply(case, addressed, changed[addressed], moves)


def _released(
    case: _Case, name: str, journey: Journey, moves: list[Move], addressed: bool
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


def _answered(case: _Case, name: str, journey: Journey, moves: list[Move]) -> Journey:
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
        return _advanced(case, name, journey, moves)
    journey = msgspec.structs.replace(journey, offer=offer)
    case.hand(name, journey, offer)
    journey = _advanced(case, name, journey, moves)
    if offer.state == "rejected" and journey.offer is offer:
        journey = msgspec.structs.replace(journey, offer=offers.again(offer, event))
        assert journey.offer is not None  # noqa: S101
        case.hand(name, journey, journey.offer)
    return journey


def _assigned(playbooks: Mapping[str, Playbook], lead: Lead, event: LeadEvent) -> Folded:
    """Offer a journey that was given to another person by hand to them."""
    name = journey_name(str(event.data.get("playbook")), event.deal)
    playbook, journey = playbooks.get(str(event.data.get("playbook"))), lead.journeys.get(name)
    handed: list[Handed] = []
    journeys = lead.journeys
    if playbook is not None and journey is not None and playbook.handoffs:
        stage = playbook.stages.get(journey.stage)
        for offer in offers.assigned(journey.offer, playbook, stage, event):
            journey = msgspec.structs.replace(journey, offer=offer)
            handed.append(Handed(name, playbook.name, offer, event, journey.asked_at))
        journeys = {**journeys, name: journey} if handed else journeys
    return Folded(
        msgspec.structs.replace(lead, last=event.place, journeys=journeys), [], [], handed, []
    )


def active_at(lead: Lead, journey: Journey) -> datetime:
    """Give when the lead last did anything, or entered the stage if that is later."""
    return max(journey.entered_at, lead.touches[-1].time) if lead.touches else journey.entered_at


def _rung(playbooks: Mapping[str, Playbook], lead: Lead, event: LeadEvent) -> Folded:
    """Apply what a clock says, if that still stands: an overdue handoff, and rules on a missed deadline."""
    data = event.data
    name = journey_name(str(data.get("playbook")), event.deal)
    playbook, journey = playbooks.get(str(data.get("playbook"))), lead.journeys.get(name)
    told = msgspec.structs.replace(lead, last=event.place)
    if playbook is None or journey is None:
        return Folded(told, [], [], [], [])
    if not offers.stands(
        event, journey.offer, journey.stage, journey.entered_at, active_at(lead, journey)
    ):
        return Folded(told, [], [], [], [])
    handed: list[Handed] = []
    moves: list[Move] = []
    unevaluated: list[tuple[str, str]] = []
    rings = [Ring(name, event, journey.offer if data["kind"] == "handoff" else None)]
    if event.type == CLOCK_FIRED:
        scoring = scored(
            playbook, lead.scoring.get(playbook.name), event, lead.email, lead.attributes, False
        )
        case = _Case(playbook, event, lead.email, lead.attributes, scoring, unevaluated, handed)
        if data["kind"] == "handoff" and journey.offer is not None:
            journey = msgspec.structs.replace(journey, offer=offers.overdue(journey.offer, event))
            assert journey.offer is not None  # noqa: S101
            case.hand(name, journey, journey.offer)
        journey = _advanced(case, name, journey, moves)
        told = msgspec.structs.replace(told, journeys={**lead.journeys, name: journey})
    return Folded(told, moves, unevaluated, handed, rings)


def _advanced(case: _Case, name: str, journey: Journey, moves: list[Move]) -> Journey:
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


def _held(
    case: _Case, journey: Journey, rule: Rule, missing: list[str], reason: str | None
) -> Journey:
    kept = [h for h in journey.held if h.to != rule.to]
    held = Held(rule.to, rule.key, case.event.time, missing, reason)
    return msgspec.structs.replace(journey, held=[*kept, held])


def _by_hand(case: _Case, name: str, journey: Journey, moves: list[Move]) -> Journey:
    """Make the move a person asked for; a gate holds it unless it was forced."""
    data = case.event.data
    to = case.playbook.stages.get(str(data.get("to")))
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


def _moved(
    case: _Case,
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
    came_from = stages.get(journey.stage, to)
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


def _because(case: _Case, rule: Rule, journey: Journey, values: dict[str, Any]) -> str:
    """Fill the rule's sentence with the values it used."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        value = values[name] if name in values else case.value(name, journey)
        return "unknown" if value is None else str(value)[:80]

    return _PLACEHOLDER.sub(fill, rule.because) if "{" in rule.because else rule.because
