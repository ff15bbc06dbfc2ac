"""Every check of a playbook has one that triggers it and one that just does not, a token apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from services.contracts.team import Person, load_team, team_of
from services.stage_service.condition_bounds import Work
from services.stage_service.playbook import parse_playbook
from services.stage_service.playbook_catalogue import CHECKS, PREFIX
from services.stage_service.playbook_findings import Finding, findings
from services.stage_service.playbook_places import Places
from services.stage_service.playbook_rules import check_rules
from services.stage_service.playbook_seen import Seen

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
GOOD = """\
name: small
title: Small
roles:
  sdr: {title: SDR, does: calls}
  ae: {title: AE, does: sells}
path: [new, talks, won]
stages:
  new: {title: New, band: tofu, focus: f, goal: g, responsible: [sdr]}
  talks:
    title: Talks
    band: mofu
    focus: f
    goal: g
    responsible: [ae]
    alerts: [ae]
    gate:
      require: [lead.budget]
  won: {title: Won, band: bofu, focus: f, goal: g, responsible: [ae]}
  lost: {title: Lost, band: exit, focus: f, goal: g, responsible: [ae]}
attributes:
  lead:
    employees: int
    budget: double
    country: string
score:
  fit:
    - {key: big, when: "lead.employees > 200", points: 40}
    - {key: odd, when: "lead.country == 'XX'", points: -10}
  intent:
    - {key: look, on: page.viewed, points: 5, half_life_days: 7, cap: 20}
rules:
  - key: bought
    from: [new, talks]
    to: won
    on: deal.won
    because: "they bought"
  - key: called
    from: [new]
    to: talks
    when: "score.total >= 30"
    because: "they scored"
  - key: gone
    from: [new, talks]
    to: lost
    on: deal.lost
    because: "they left"
routing:
  ae:
    rules:
      - {key: land, when: "lead.country == 'DE'", to: {people: [ann]}}
    fallback: {person: ann}
handoffs:
  ae:
    within: 4h
    escalate: [{after: 0m, to: ae}]
clocks:
  - key: quiet
    stages: [talks]
    within: 8h
    escalate: [{after: 1h, to: ae}]
labels:
  deal.won: "Won"
  page.viewed: "Looked"
"""
TEAM = team_of((Person("ann", "Ann", roles=("ae",)), Person("bob", "Bob", roles=("sdr",))))
SEEN = Seen(
    90, frozenset({"deal.won", "deal.lost", "page.viewed"}),
    frozenset({"employees", "budget", "country"}),
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """What is changed for a check to find something, in a playbook that just escapes it otherwise."""

    old: str
    bad: str
    just_not: str
    at: str
    """The text on whose line it is told (its last place)."""
    says: str
    remedy: str


def _rule(key: str, from_: str, to: str, more: str) -> str:
    return f"  - {{key: {key}, from: {from_}, to: {to}, {more}, because: b}}\n"


GONE = "  - key: gone\n"
ERRORS = {
    "syntax": Pair("[sdr]}", "[sdr}", "[ae]}", "[sdr}", "expected", "YAML"),
    "wrong-type": Pair("points: 40", "points: x", "points: 4", "points: x", "a number", "Correct"),
    "missing-key": Pair("    to: won\n", "", "    to: lost\n", "key: bought", "no 'to'", "to: ..."),
    "unknown-key": Pair("cap: 20", "cup: 20", "cap: 21", "cup: 20", "unknown key 'cup'", "'cap'"),
    "duplicate-key": Pair("key: gone", "key: called", "key: calls", "key: called", "twice", "own"),
    "bad-name": Pair("on: deal.lost", "on: 'a b'", "on: a.b", "'a b'", "not an event", "lead.created"),
    "unknown-name": Pair("to: lost", "to: lots", "to: lost", "to: lots", "unknown stage", "'lost'"),
    "out-of-bounds": Pair("points: 40", "points: 1001", "points: 1000", "1001", "is 1001", "to 1000"),
    "bad-condition": Pair("> 200", "> 'x'", "> 2", "> 'x'", "no matching overload", "Conditions"),
    "undeclared-attribute": Pair(
        "lead.employees >", "lead.employes >", "lead.employees >", "employes", "undeclared",
        "'lead.employees'",
    ),
    "no-trigger": Pair("    on: deal.lost\n", "", "    on: deal.lost\n", GONE.strip(), "neither", "Name"),
    "bad-duration": Pair("within: 8h", "within: 8d", "within: 8m", "8d", "no length", "wall"),
    "bad-clock": Pair(
        "[{after: 1h, to: ae}]", "[{after: 1h, to: ae}, {after: 0h, to: sdr}]",
        "[{after: 1h, to: ae}, {after: 1h, to: sdr}]", "after: 0h", "not in order", "earliest",
    ),
    "no-responsible-role": Pair(
        "    responsible: [ae]\n", "    responsible: []\n", "    responsible: [sdr, ae]\n",
        "responsible: []", "nobody is responsible", "Name a role",
    ),
    "unreachable-stage": Pair("to: lost", "to: won", "to: lost", "lost: {", "unreachable", "to: lost"),
    "cycle": Pair(
        GONE, _rule("back", "[lost]", "new", "on: deal.lost") + GONE,
        _rule("back", "[lost]", "new", "on: deal.woke") + GONE, GONE.strip(), "form a cycle", "'from'",
    ),
    "moves-backwards": Pair(
        GONE, _rule("back", "[talks]", "new", "on: x") + GONE,
        _rule("back", "[talks]", "new", "on: x, back: true") + GONE, "key: back", "backwards", "true",
    ),
    "invalid": Pair("lost: {title: Lost,", "lost: {title: Lost, kind: won,",
                    "lost: {title: Lost, kind: lost,", "lost: {", "kind 'won'", "last"),
}  # fmt: skip
WARNINGS = {
    "never-fires": Pair(
        '"score.total >= 30"', '"lead.employees > 200 && lead.employees < 100"',
        '"lead.employees > 200 && lead.employees < 300"', "< 100",
        "`lead.employees > 200` and `lead.employees < 100` are never true together", "remove",
    ),
    "shadowed-rule": Pair(
        GONE, _rule("late", "[new]", "lost", "on: deal.won, when: 'lead.employees > 5'") + GONE,
        _rule("late", "[new]", "lost", "on: deal.lost, when: 'lead.employees > 5'") + GONE,
        "key: late", "'bought' above it is too", "above",
    ),
    "overlapping-rules": Pair(
        GONE,
        _rule("a", "[talks]", "lost", "on: x, when: 'lead.employees > 5'")
        + _rule("b", "[talks]", "won", "on: x, when: 'lead.employees < 9'") + GONE,
        _rule("a", "[talks]", "lost", "on: x, when: 'lead.employees > 5'")
        + _rule("b", "[talks]", "won", "on: x, when: 'lead.employees < 6'") + GONE,
        "key: b", "rules 'a' and 'b' can be true together in talks", "exclude",
    ),
    "never-scores": Pair(
        "> 200", "> 200 && !known.lead.employees", "> 200 && known.lead.employees", "!known",
        "the fit rule 'big' never applies", "Correct",
    ),
    "never-routes": Pair(
        "lead.country == 'DE'", "lead.country == 'DE' && lead.country == 'AT'",
        "lead.country == 'DE' && lead.country != 'AT'", "'AT'", "the routing rule 'land' of 'ae'",
        "Correct",
    ),
    "dead-end": Pair(
        "lost: {title: Lost,", "lost: {title: Lost, kind: open,", "lost: {title: Lost, kind: lost,",
        "lost: {", "no rule leads out of 'lost'", "kind: exit",
    ),
    "unused-role": Pair(
        "  ae: {title", "  csm: {title: CSM, does: keeps}\n  ae: {title",
        "  sales_leadership: {title: CSM, does: keeps}\n  ae: {title", "csm:",
        "nothing uses the role 'csm'", "remove",
    ),
    "clock-without-escalation": Pair(
        "    escalate: [{after: 1h, to: ae}]\n", "    remind: 1h\n", "    escalate: [{after: 1h, to: ae}]\n",
        "key: quiet", "the clock 'quiet' has no escalation", "escalate",
    ),
    "handoff-without-plan": Pair(
        "handoffs:\n  ae:", "handoffs:\n  sdr:", "handoffs:\n  ae:", "    responsible: [ae]",
        "'ae' takes over from 'sdr' in 'talks'", "handoffs: ae",
    ),
    "nobody": Pair(
        "fallback: {person: ann}", "fallback: {person: anne}", "fallback: {person: ann}", "anne",
        "'anne' is nobody of the roster", "'ann'",
    ),
    "role-without-people": Pair(
        "responsible: [sdr]}", "responsible: [sdr, sales_leadership]}", "responsible: [sdr, ae]}",
        "sales_leadership: {", "nobody of the roster has the role 'sales_leadership'", "baton people",
    ),
    "alert-to-nobody": Pair(
        "    alerts: [ae]\n", "    alerts: [ae, sales_leadership]\n", "    alerts: [ae, sdr]\n", "alerts:",
        "entering 'talks' alerts 'sales_leadership'", "another role",
    ),
    "unseen-attribute": Pair(
        "    country: string\n", "    country: string\n    employes: int\n",
        "    country: string\n", "employes: int", "brought lead.employes", "Let a source",
    ),
    "unseen-event-type": Pair(
        "on: page.viewed", "on: page.view", "on: page.viewed", "on: page.view,",
        "of the type 'page.view'", "'page.viewed'",
    ),
    "gate-never-met": Pair(
        "require: [lead.budget]", "require: [lead.money]", "require: [lead.email]", "require",
        "which no event of the last 90 days brought", "Ask for what is known",
    ),
    "unused-label": Pair(
        'deal.won: "Won"', 'deal.wonn: "Won"', 'deal.won: "Won"', "deal.wonn", "'deal.wonn'", "'deal.won'",
    ),
    "needless-meant": Pair(
        GONE, f"  # meant: dead-end\n{GONE}", f"  # dead-end\n{GONE}", "# meant", "finds nothing here",
        "Remove the comment",
    ),
}  # fmt: skip
WITH_LEADERSHIP = "  sales_leadership: {title: Head, does: leads}\n  ae: {title"
NEEDS = {
    "role-without-people": ("  ae: {title", WITH_LEADERSHIP),
    "alert-to-nobody": ("  ae: {title", WITH_LEADERSHIP),
    "gate-never-met": ("    country: string\n", "    country: string\n    money: double\n"),
}
"""What both playbooks of a check have besides."""
BY_THE_FILE = "unreadable"


def found_in(text: str) -> list[Finding]:
    return findings(text, "small.yaml", team=TEAM, seen=SEEN)


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


def line_of(text: str, part: str) -> int:
    """The line of the last occurrence of `part`, from 1."""
    return text[: text.rindex(part)].count("\n") + 1


def test_the_good_one_is_clean_and_every_check_is_tried() -> None:
    assert found_in(GOOD) == []
    assert {*ERRORS, *WARNINGS, BY_THE_FILE} == set(CHECKS)
    assert {c.id for c in CHECKS.values() if c.level == "error"} == {*ERRORS, BY_THE_FILE}


@pytest.mark.parametrize("check", [*ERRORS, *WARNINGS])
def test_a_check_finds_what_it_is_for_and_not_what_is_a_token_beside(check: str) -> None:
    pair = (ERRORS | WARNINGS)[check]
    good = changed(GOOD, *NEEDS[check]) if check in NEEDS else GOOD
    bad, just_not = (changed(good, pair.old, new) for new in (pair.bad, pair.just_not))
    told = [f for f in found_in(bad) if f.rule == f"{PREFIX}{check}"]
    assert told, found_in(bad)
    assert told[0].line == line_of(bad, pair.at), told[0]
    assert 1 <= told[0].column <= len(bad.splitlines()[told[0].line - 1])
    assert pair.says in told[0].message
    assert pair.remedy in told[0].remedy
    assert told[0].level == CHECKS[check].level
    assert not [f for f in found_in(just_not) if f.rule == f"{PREFIX}{check}"]


@pytest.mark.parametrize("name", ["sales.yaml"])
def test_the_playbooks_that_come_along_are_clean(name: str) -> None:
    text = (PLAYBOOKS / name).read_text(encoding="utf-8")
    assert findings(text, name, team=load_team(PLAYBOOKS / "team.yaml")) == []


NEVER = {
    "score.total > 60": "`score.total > 60` is never true: score.total is from -10 to 60 here",
    "score.fit <= -11": "`score.fit <= -11` is never true: score.fit is from -10 to 40 here",
    "score.intent > 20": "`score.intent > 20` is never true: score.intent is from 0 to 20 here",
    "!known.score.total": "`!known.score.total` is never true: score.total",
    "journey.stage == 'talks'": "its condition is never true for its 'on' and 'from'",
    "event.type == 'x'": "its condition is never true for its 'on' and 'from'",
    "lead.country in ['DE'] && lead.country != 'DE'": "`lead.country in ['DE']` and",
}


@pytest.mark.parametrize("condition", NEVER)
def test_why_a_rule_can_never_fire(condition: str) -> None:
    more = f'on: a.b, when: "{condition}"'
    text = changed(GOOD, GONE, _rule("odd", "[new]", "talks", more) + GONE)
    [told] = findings(text, "small.yaml")
    assert told.rule == "playbook/never-fires"
    assert NEVER[condition] in told.message


@pytest.mark.parametrize(
    "condition",
    ["score.total == 60", "score.fit == -10", "score.intent == 0", "known.score.total",
     "journey.stage == 'new'", "event.type == 'a.b'", "lead.country.matches('x')"],
)  # fmt: skip
def test_what_can_just_be_is_left_alone(condition: str) -> None:
    more = f'on: a.b, when: "{condition}"'
    text = changed(GOOD, GONE, _rule("odd", "[new]", "talks", more) + GONE)
    assert findings(text, "small.yaml") == []


def test_a_rule_from_no_stage_never_fires() -> None:
    text = changed(GOOD, GONE, _rule("odd", "[]", "talks", "on: a.b") + GONE)
    [told] = findings(text, "small.yaml")
    assert (told.rule, told.line) == ("playbook/never-fires", line_of(text, "key: odd"))
    assert "'from' names no stage" in told.message


def told_of(*rules: str) -> list[tuple[str, int]]:
    """Checks and lines (of the rules given) where `rules` stand before the last one of the good playbook."""
    text = changed(GOOD, GONE, "".join(rules) + GONE)
    first = line_of(GOOD, GONE)
    told = [f for f in findings(text, "small.yaml") if "'called'" not in f.message]
    return [(f.rule.removeprefix(PREFIX), f.line - first) for f in told]


def test_an_exception_above_its_rule_is_no_overlap() -> None:
    exception = _rule("big", "[talks]", "won", "on: x, when: 'lead.employees > 5'")
    everybody = _rule("all", "[talks]", "lost", "on: x")
    assert told_of(exception, everybody) == []
    assert told_of(everybody, exception) == [("shadowed-rule", 1)]


def test_rules_of_other_events_or_stages_do_not_overlap() -> None:
    one = _rule("a", "[talks]", "lost", "on: [x, y], when: 'lead.employees > 5'")
    for other in (
        _rule("b", "[talks]", "won", "on: z, when: 'lead.employees < 9'"),
        _rule("b", "[new]", "won", "on: x, when: 'lead.employees < 9'"),
        _rule("b", "[talks]", "lost", "on: x, when: 'lead.employees < 9'"),
    ):
        assert told_of(one, other) == []
    assert told_of(one, _rule("b", "[talks]", "won", "on: y, when: 'lead.employees < 9'")) == [
        ("overlapping-rules", 1)
    ]


def test_a_rule_that_names_its_event_goes_before_one_for_any_event() -> None:
    named = _rule("a", "[talks]", "won", "on: x")
    any_event = _rule("b", "[talks]", "lost", "when: 'lead.employees < 9'")
    assert told_of(named, any_event) == []
    assert told_of(any_event, named) == [("overlapping-rules", 1)]


def test_rules_that_follow_on_each_other_do_not_overlap() -> None:
    """Both orders end in the same stage, by the same event."""
    to_talks = _rule("a", "[new]", "talks", "on: x, when: 'lead.employees > 5'")
    to_lost = _rule("b", "[new, talks]", "lost", "on: x, when: 'lead.employees < 9'")
    assert told_of(to_talks, to_lost) == []
    assert told_of(to_talks, to_lost.replace(", talks", "")) == [("overlapping-rules", 1)]


def test_rules_above_that_hide_one_only_together() -> None:
    few = _rule("few", "[talks]", "won", "on: x, when: 'lead.employees < 10'")
    many = _rule("many", "[talks]", "won", "on: x, when: 'lead.employees >= 9'")
    later = _rule("known", "[talks]", "lost", "on: x, when: 'known.lead.employees'")
    assert told_of(few, many, later) == [("shadowed-rule", 2)]
    assert told_of(few, many.replace(">= 9", "> 10"), later) == []


def test_a_gate_may_let_the_next_rule_have_its_turn() -> None:
    gated = _rule("a", "[new]", "talks", "on: x")
    later = _rule("b", "[new]", "lost", "on: x")
    text = changed(GOOD, GONE, gated + later + GONE)
    assert "shadowed-rule" not in str(findings(text, "small.yaml"))
    free = changed(text, "    gate:\n      require: [lead.budget]\n", "")
    assert "playbook/shadowed-rule" in [f.rule for f in findings(free, "small.yaml")]


def test_a_stage_left_only_by_rules_that_never_fire_is_a_dead_end() -> None:
    text = changed(GOOD, "lost: {title: Lost,", "lost: {title: Lost, kind: open,")
    woke = _rule("woke", "[lost]", "won", 'on: x, when: "false"')
    told = {f.rule for f in findings(changed(text, GONE, woke + GONE), "small.yaml")}
    assert told == {"playbook/never-fires", "playbook/dead-end"}
    assert not findings(changed(text, GONE, woke.replace("false", "true") + GONE), "small.yaml")


OVERLAP = (
    _rule("a", "[talks]", "lost", "on: x, when: 'lead.employees > 5'")
    + "  {above}\n"
    + _rule("b", "[talks]", "won", "on: x, when: 'lead.employees < 9'").rstrip("\n") + " {beside}\n"
)  # fmt: skip


@pytest.mark.parametrize(
    ("above", "beside", "told"),
    [
        ("# so", "# so", ["overlapping-rules"]),
        ("# meant: overlapping-rules", "", []),
        ("", "# meant: overlapping-rules", []),
        ("# meant: playbook/overlapping-rules, dead-end", "", ["needless-meant"]),
        ("# meant: overlaping-rules", "", ["needless-meant", "overlapping-rules"]),
        ("# meant: cycle", "", ["needless-meant", "overlapping-rules"]),
    ],
)
def test_what_is_meant_is_said_where_it_stands(above: str, beside: str, told: list[str]) -> None:
    rules = OVERLAP.replace("{above}", above).replace("{beside}", beside)
    found = findings(changed(GOOD, GONE, rules + GONE), "small.yaml")
    assert [f.rule.removeprefix(PREFIX) for f in found] == told
    hints = [f.remedy for f in found if f.rule == "playbook/needless-meant"]
    assert ("overlaping" not in above) or hints == ["Did you mean 'overlapping-rules'?"]


def test_an_error_cannot_be_meant() -> None:
    text = changed(GOOD, "to: lost\n", "to: lots # meant: unknown-name\n")
    assert [f.rule for f in findings(text, "small.yaml")] == ["playbook/unknown-name"]


def test_where_no_event_came_nothing_is_said_of_events() -> None:
    none = Seen(90, frozenset(), frozenset())
    assert findings(GOOD, "small.yaml", seen=none) == []


def test_names_that_came_are_suggested() -> None:
    seen = Seen(30, frozenset({"deal.won", "deal.lose", "page.viewed"}),
                frozenset({"employee_count", "budget", "country"}))  # fmt: skip
    told = {f.message: f.remedy for f in findings(GOOD, "small.yaml", seen=seen)}
    assert told == {
        "no event of the last 30 days brought lead.employees": "Did you mean 'employee_count'?",
        "no event of the last 30 days was of the type 'deal.lost'": "Did you mean 'deal.lose'?",
    }


def test_what_baton_itself_sends_need_not_have_come() -> None:
    own = _rule("no", "[talks]", "lost", "on: [handoff.rejected, baton.clock.fired]")
    text = changed(changed(GOOD, GONE, own + GONE), "labels:\n", "labels:\n  baton.lead.moved: m\n")
    assert findings(text, "small.yaml", seen=SEEN) == []


def test_a_playbook_without_handoffs_asks_nobody_for_an_answer() -> None:
    start, end = GOOD.index("handoffs:"), GOOD.index("clocks:")
    assert findings(GOOD[:start] + GOOD[end:], "small.yaml") == []


def test_a_handoff_that_tells_nobody_is_told_too() -> None:
    text = changed(GOOD, "    escalate: [{after: 0m, to: ae}]\n", "    remind: 1h\n")
    [told] = findings(text, "small.yaml")
    assert (told.rule, told.line) == ("playbook/clock-without-escalation", line_of(text, "  ae:\n"))


def test_nothing_that_a_line_may_lack_raises() -> None:
    lines = (PLAYBOOKS / "sales.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    for number in range(3, len(lines), 17):
        found = findings("".join(lines[:number] + lines[number + 1 :]), "x", team=TEAM, seen=SEEN)
        assert all(f.rule.removeprefix(PREFIX) in CHECKS for f in found)


def _wide(key: str, to: str, clauses: int) -> str:
    """A rule with a box for each of `clauses`, none of which holds together with another rule's."""
    number = int(key[1:]) * 1000
    parts = (f"lead.employees == {number + n}" for n in range(clauses))
    return _rule(key, "[talks]", to, f"on: x, when: '{' || '.join(parts)}'")


def test_a_playbook_takes_no_more_work_than_one_may() -> None:
    """The pairs of rules times the pairs of their clauses: seconds of a core by a text of 40 kB."""
    rules = [_wide(f"r{n}", ("won", "lost")[n % 2], 30) for n in range(40)]
    work = Work()
    text = changed(GOOD, GONE, "".join(rules) + GONE)
    check_rules(parse_playbook(text, "x"), Places(text, "x"), work)
    assert work.is_spent


def test_nothing_is_claimed_once_the_work_is_spent() -> None:
    rules = OVERLAP.replace("{above}", "").replace("{beside}", "")
    text = changed(GOOD, GONE, rules + GONE)
    playbook = parse_playbook(text, "x")
    told: list[list[str]] = []
    for work in (Work(), Work(0), *(Work(left) for left in range(1, 60))):
        places = Places(text, "x")
        check_rules(playbook, places, work)
        told.append([p.rule for p in places.problems])
    assert told[:2] == [["overlapping-rules"], []]
    assert {len(each) for each in told} == {0, 1}
