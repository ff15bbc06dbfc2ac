"""What would move a journey: for each rule of its stage, what is still missing, tried on the fold. Pure.

Nothing is promised that was not tried: a move with an `example` was folded, with an event of that type and
those facts at that moment, and the journey moved by that rule. Of the others it says what is in the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from services.contracts.events import MAIN, LeadEvent, normal_email
from services.contracts.problems import Defect
from services.stage_service import funnel, offers
from services.stage_service.clauses import clauses_of, variables_of
from services.stage_service.journeys import Held, Lead, Move
from services.stage_service.judging import Case
from services.stage_service.playbook import Playbook, Rule
from services.stage_service.why import (
    Clause,
    EventType,
    RuleWhy,
    case_at,
    event_type,
    in_order,
    label_of,
    rules_of,
    why_rule,
)
from services.stage_service.witnesses import A_TEXT, any_of, witness

TYPES_TRIED_MAX = 12
A_QUIET_EVENT = "lead.updated"
AN_ADDRESS = "name@example.com"
_WHAT_IF = "/what-if"


class Need(msgspec.Struct, frozen=True):
    """A fact that is missing, or has another value than it would need; `why` names what asks for it."""

    name: str
    label: str
    type: str
    why: str
    value: Any = None
    """What it is now; None: not known."""


class Example(msgspec.Struct, frozen=True):
    """An event that was tried, and moved the journey: its type and data, without who it is about."""

    type: str
    data: dict[str, Any]


class NextMove(msgspec.Struct, frozen=True):
    """A move that would happen, when `on` happens and `needs` are known; or what is in its way."""

    to: str
    to_title: str
    rules: list[str]
    says: str
    on: list[EventType]
    needs: list[Need]
    example: Example | None


class JourneyWhy(msgspec.Struct, frozen=True):
    """Why a journey stays in its stage at a moment: what would move it, and each rule of the stage."""

    would_move: list[NextMove]
    rules: list[RuleWhy]


def explained(playbooks: Mapping[str, Playbook], lead: Lead, name: str, at: datetime) -> JourneyWhy:
    """Explain the journey `name` of `lead` at the moment `at` (scores decayed to then)."""
    journey = lead.journeys[name]
    playbook = playbooks.get(journey.playbook)
    if playbook is None or journey.stage not in playbook.stages:
        return JourneyWhy([], [])
    case = case_at(playbook, lead, at)
    rules = rules_of(playbook, journey.stage)
    whys = [why_rule(rule, case, journey, happened=False) for rule in rules]
    trial = _Trial(playbooks, lead, name, case)
    moves = [trial.of_held(held) for held in journey.held if held.to in playbook.stages]
    moves += [
        trial.of_rule(rule, why) for rule, why in zip(rules, whys, strict=True)
        if rule.to != journey.stage
    ]  # fmt: skip
    joined = _joined(moves)
    joined.sort(key=lambda m: (m.example is None, len(m.needs)))
    return JourneyWhy(joined, whys)


class _Trial:
    """Tries events on one journey of a lead; use once."""

    def __init__(
        self, playbooks: Mapping[str, Playbook], lead: Lead, name: str, case: Case
    ) -> None:
        self._playbooks = playbooks
        self._lead = lead
        self._name = name
        self._journey = lead.journeys[name]
        self._case = case
        self._playbook = case.playbook
        self._types = variables_of(case.playbook)

    def of_held(self, held: Held) -> NextMove:
        """Say what lets a held move go."""
        to = self._playbook.stages[held.to]
        data = self._data({n: any_of(self._types[n]) for n in held.missing if n in self._types})
        if "reason" in held.missing:
            data["reason"] = A_TEXT
        why = f"{to.title} demands it"
        needs = [self._need(n, why) for n in held.missing]
        moved = self._tried(A_QUIET_EVENT, data)
        happens = any(m.to_stage == held.to for m in moved[:1])
        says = (
            f"It moves to {to.title} as soon as {_listed([n.label for n in needs])} "
            f"{'is' if len(needs) == 1 else 'are'} known: the move waits since "
            f"{held.since:%Y-%m-%d %H:%M} UTC."
        )
        if not happens:
            says = f"A move to {to.title} waits for {_listed([n.label for n in needs])}."
        return NextMove(to.key, to.title, [held.rule], says, [], needs,
                        Example(A_QUIET_EVENT, data) if happens else None)  # fmt: skip

    def of_rule(self, rule: Rule, why: RuleWhy) -> NextMove:
        """Say when `rule` moves the journey, and what is missing until then; or what is in its way."""
        values = self._witness(rule)
        gate = {n: any_of(self._types[n]) for n in why.gate.missing if n in self._types}
        facts = gate | values
        data = self._data(facts)
        needs = [self._need(n, self._asked_by(n, why)) for n in facts]
        if why.gate.reason:
            data["reason"] = A_TEXT
            needs.append(self._need("reason", f"{why.to_title} demands it"))
        works, elsewhere = self._try(rule, data)
        if not works:
            says = self._in_the_way(why, elsewhere)
            return NextMove(why.to, why.to_title, [rule.key], says, why.on or [], needs, None)
        on = [] if works == [A_QUIET_EVENT] and rule.on is None else [
            event_type(self._playbook, type, depends=any(c.verdict == "depends" for c in why.clauses))
            for type in works
        ]  # fmt: skip
        says = _promise(why.to_title, on, needs, why, is_sure=bool(on) or self._is_sure(rule, data))
        return NextMove(why.to, why.to_title, [rule.key], says, on, needs, Example(works[0], data))

    def _try(self, rule: Rule, data: dict[str, Any]) -> tuple[list[str], dict[str, Move]]:
        """Try `data` with each type of event; give the types by which `rule` moves it, and other moves."""
        works: list[str] = []
        elsewhere: dict[str, Move] = {}
        for type in self._types_to_try(rule):
            moved = self._tried(type, data)
            if moved and moved[0].rule == rule.key and moved[0].from_stage == self._journey.stage:
                works.append(type)
            elif moved:
                elsewhere[type] = moved[0]
        # What any event does, one that says nothing does.
        is_any = rule.on is None and A_QUIET_EVENT in works
        return ([A_QUIET_EVENT] if is_any else works), elsewhere

    def _is_sure(self, rule: Rule, data: dict[str, Any]) -> bool:
        """Tell whether no type of event would move it elsewhere first, as far as the playbook names types."""
        rules = rules_of(self._playbook, self._journey.stage)
        above = rules[: rules.index(rule)]
        if any(r.on is not None and r.to != rule.to for r in above):
            return False  # what that event says decides
        types = {type for r in self._playbook.rules for type in r.on or ()} | {
            *self._playbook.signals, *self._playbook.labels
        }  # fmt: skip
        return all(
            any(m.to_stage == rule.to for m in self._tried(type, data)[:1])
            for type in types - offers.CLOCK_EVENTS - offers.ANSWERS
        )

    def _witness(self, rule: Rule) -> dict[str, Any]:
        """Give the facts that would make the rule's condition true, as far as such are found."""

        def settable(name: str) -> bool:
            room, _, attribute = name.partition(".")
            if room == "event":
                return attribute in self._playbook.attributes["event"] and name not in (
                    "event.type", "event.source", "event.clock"
                )  # fmt: skip
            return room in ("lead", "deal")

        def known(name: str) -> Any:
            if name == "event.type" and rule.on is not None:
                return min(rule.on)
            return None if name.startswith("event.") else self._case.value(name, self._journey)

        return witness(clauses_of(self._playbook, rule.when), known, self._types, settable)

    def _types_to_try(self, rule: Rule) -> list[str]:
        if rule.on is not None:
            types = [t for t in in_order(self._playbook, rule.on) if t not in offers.CLOCK_EVENTS]
            return types[:TYPES_TRIED_MAX]
        signals = sorted(
            ((s.points, type) for type, all in self._playbook.signals.items() for s in all),
            key=lambda each: (-each[0], each[1]),
        )
        types = dict.fromkeys([A_QUIET_EVENT, *(type for _, type in signals)])
        return list(types)[:TYPES_TRIED_MAX]

    def _data(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Give the data of an event that tells `values`, by variable name."""
        told = {name.partition(".")[2]: value for name, value in values.items()}
        if "lead.email" in values and isinstance(normal_email(values["lead.email"]), Defect):
            told["email"] = AN_ADDRESS
        return told

    def _tried(self, type: str, data: dict[str, Any]) -> list[Move]:
        """Fold an event of `type` with `data` into the lead and give the moves of the journey."""
        at = max(self._case.event.time, self._lead.last[0] + timedelta(microseconds=1))
        told = dict(data)
        identities: tuple[tuple[str, str], ...] = ()
        if "email" in told:
            address = normal_email(told["email"])
            if isinstance(address, Defect):
                return []
            identities = (("email", address),)
        if self._journey.key != MAIN:
            told["deal"] = self._journey.key
        event = LeadEvent(
            _WHAT_IF, _WHAT_IF, type, at, at, None, identities, self._journey.key, told, {}
        )
        folded = funnel.fold(self._playbooks, self._lead, event)
        return [m for m in folded.moves if m.journey == self._name]

    def _need(self, name: str, why: str) -> Need:
        if name == "reason":
            return Need("reason", "a reason", "string", why)
        value = None if name.startswith("event.") else self._case.value(name, self._journey)
        return Need(name, label_of(name), self._types.get(name, "string"), why, value)

    def _asked_by(self, name: str, why: RuleWhy) -> str:
        for clause in why.clauses:
            if any(v.name.removeprefix("known.") == name for v in clause.values):
                return clause.text
        return f"{why.to_title} demands it"

    def _in_the_way(self, why: RuleWhy, elsewhere: Mapping[str, Move]) -> str:
        """Say why nothing that was tried makes the rule move the journey."""
        begun = f"It does not move to {why.to_title}"
        if why.on:
            begun += f" on {_quoted(why.on)}{' with a reason' if why.gate.reason else ''}"
        reasons = [_reason(clause) for clause in why.clauses if clause.verdict != "true"]
        if reasons:
            return f"{begun} now: {'; '.join(reasons)}."
        if elsewhere:
            first = next(iter(elsewhere.values()))
            title = self._playbook.stages[first.to_stage].title
            return f"{begun}: that moves it to {title} first."
        return f"{begun} by any event that was tried."


def _promise(
    to: str, on: Sequence[EventType], needs: Sequence[Need], why: RuleWhy, *, is_sure: bool
) -> str:
    """Say in one sentence when the journey moves; unless `is_sure` not every event does it."""
    unless = "" if is_sure else ", unless that moves it elsewhere"
    scores = [c for c in why.clauses if c.verdict == "false" and _is_of_score(c)]
    says = f"It moves to {to}"
    if scores:
        says += f" when its score is enough ({'; '.join(_reason(c) for c in scores)})"
        says += f": {_quoted(on)} would do" if on else f": the next event would do{unless}"
    elif on:
        says += f" on {_quoted(on)}"
    else:
        says += f" at its next event{', whatever it is' if is_sure else unless}"
    if any(n.name == "reason" for n in needs):
        says += ", with a reason"
    needs = [n for n in needs if n.name != "reason"]
    if not needs:
        return f"{says}."
    new = [n.label for n in needs if n.value is None]
    other = [f"{n.label} (now {_shown(n.value)})" for n in needs if n.value is not None]
    if new:
        says += f"; still missing: {_listed(new)}"
    if other:
        says += f"; {_listed(other)} would have to be another"
    asked = list(dict.fromkeys(n.why for n in needs if " demands it" not in n.why))
    return f"{says} ({' and '.join(asked)})." if asked else f"{says}."


def _reason(clause: Clause) -> str:
    """Say of a clause that is not true what it is made of."""
    values = ", ".join(
        f"{v.label} is {_shown(v.value)}" for v in clause.values if v.value is not None
    )
    match clause.verdict:
        case "unknown":
            missing = _listed([label_of(n) for n in clause.missing])
            return f"{clause.text} cannot be judged, {missing} is not known"
        case "depends":
            return f"{clause.text} depends on what the event says"
        case _ if not clause.values or clause.text.startswith("a handoff"):
            return f"not true that {clause.text}"
        case _:
            return f"{clause.text} is not true" + (f", {values}" if values else "")


def _is_of_score(clause: Clause) -> bool:
    return any(v.name.startswith("score.") for v in clause.values)


def _joined(moves: Iterable[NextMove]) -> list[NextMove]:
    """Tell rules that lead to the same stage and need nothing but their event in one sentence."""
    plain: dict[str, NextMove] = {}
    found: list[NextMove] = []
    for move in moves:
        is_plain = move.example is not None and move.on and [n.name for n in move.needs] in (
            [], ["reason"]
        ) and "score" not in move.says  # fmt: skip
        key = f"{move.to} {len(move.needs)}"
        if not is_plain:
            found.append(move)
        elif key not in plain:
            plain[key] = move
            found.append(move)
        else:
            before = plain[key]
            on = [*before.on, *(o for o in move.on if o not in before.on)]
            says = f"It moves to {move.to_title} on {_quoted(on)}"
            says += ", with a reason." if move.needs else "."
            joined = NextMove(
                move.to, move.to_title, [*before.rules, *move.rules], says, on, move.needs,
                before.example,
            )  # fmt: skip
            found[found.index(before)] = plain[key] = joined
    return found


def _quoted(on: Sequence[EventType]) -> str:
    return _listed(
        [
            f"“{each.label}”{' (unless the event says otherwise)' if each.depends else ''}"
            for each in on
        ],
        "or",
    )


def _listed(words: Sequence[str], last: str = "and") -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M} UTC"
    return str(value)[:80]
