"""Why, why not, and what would move it: what is told is what the fold does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts.cloudevents import CloudEvent
from services.contracts.events import MAIN, LeadEvent, lead_event
from services.stage_service import funnel
from services.stage_service.clauses import parted
from services.stage_service.funnel import Lead
from services.stage_service.journeys import Journey, Move
from services.stage_service.judging import Case
from services.stage_service.next_moves import JourneyWhy, explained
from services.stage_service.offers import ANSWERS, CLOCK_EVENTS
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.scoring import scored
from services.stage_service.why import Clause, case_at, overall, rules_of, why_rule
from tests.conftest import examples
from tests.unit.test_funnel import ROOT, START, event, gated, sales, told

CONDITIONS = (
    "lead.budget >= 10000.0 && lead.country == 'DE' && score.total >= 20",
    "(lead.employees > 100 || known.lead.budget) && !(lead.region == 'south')",
    "event.form == 'demo' && lead.employees >= 50",
    "lead.country == 'a && b' || (lead.budget > 5.0 && event.campaign == 'x')",
    "known.lead.budget ? lead.budget > 100.0 && known.lead.country : lead.employees > 3",
    '(known.lead.email && (deal.amount > 100.0 && deal.currency == "EUR"))',
    "lead.title.matches('(?i)chief|head') && score.intent < 40 && score.fit > 10",
    r"event.reason == r'a\b' && lead.country != '\'&&' // && nothing",
    "journey.furthest_stage == 'lead' && journey.key == 'main' && event.type == 'lead.updated'",
)
CALM = settings(max_examples=examples(400), deadline=None)
WAYS = (("lead", "sql"), ("lead", "mql"), ("lead, mql, sql, nurture", "proposal"),
        ("lead, mql, sql, nurture", "closing"), ("lead, mql, sql, nurture", "closed_lost"))  # fmt: skip
TYPES = ("lead.updated", "page.viewed", "content.downloaded", "demo.requested", "meeting.booked",
         "lead.recycled", "lead.disqualified", "deal.lost", "proposal.sent", "handoff.rejected",
         "form.submitted")  # fmt: skip


@cache
def intricate() -> Playbook:
    """The sales playbook with rules of many clauses in front."""
    rules = "".join(
        f"  - key: r{n}\n    from: [{came}]\n    to: {to}\n    when: >-\n"
        f"      {when}\n    because: b\n"
        for n, (when, (came, to)) in enumerate(zip(CONDITIONS, WAYS * 2, strict=False))
    )
    text = (ROOT / "playbooks/sales.yaml").read_text()
    gate = "    alerts: [ae]\n    gate: {require: [lead.budget, lead.email]}\n"
    return parse_playbook(
        text.replace("\nrules:\n", f"\nrules:\n{rules}").replace("    alerts: [ae]\n", gate), "x"
    )


facts = st.fixed_dictionaries({}, optional={
    "budget": st.sampled_from([3.0, 200, "20000", "much", 50_000]),
    "country": st.sampled_from(["DE", "a && b", "&&", 7]),
    "employees": st.sampled_from([2, 50, 250, "60"]), "region": st.sampled_from(["south", "north"]),
    "amount": st.sampled_from([50, 500.0]), "currency": st.just("EUR"),
    "title": st.sampled_from(["Head of IT", "clerk"]), "form": st.sampled_from(["demo", "other"]),
    "campaign": st.just("x"), "reason": st.sampled_from(["a\\b", "no budget"]),
    "phone": st.just("+49 30 1"), "company": st.just("Acme"), "with_role": st.just("csm"),
})  # fmt: skip
histories = st.lists(st.tuples(st.sampled_from(TYPES), facts, st.integers(1, 20_000)), max_size=8)


def lead_of(playbook: Playbook, history: list[Any], *, known: bool = True) -> tuple[Lead, datetime]:
    """Fold a history; gives the lead and the time of its last event."""
    at = START
    events = [event("lead.created")]
    for n, (type, data, minutes) in enumerate(history):
        at += timedelta(minutes=minutes)
        ids = (("email", "a@b.example"),) if known else ()
        events.append(LeadEvent(f"e{n}", "/t", type, at, at, None, ids, MAIN, data, {}))
    lead, _ = told(*events, playbook=playbook)
    return lead, at


def fires(
    playbook: Playbook, lead: Lead, journey: Journey, type: str, data: Any, at: datetime
) -> dict[str, tuple[bool, Any]]:
    """What the fold says of each rule of the stage at an event, with the case it was judged in."""
    it = LeadEvent("n", "/t", type, at, at, None, (), MAIN, data, {})
    attributes = funnel.fold({playbook.name: playbook}, lead, it).lead.attributes
    changed = attributes != lead.attributes
    scoring = scored(playbook, lead.scoring[playbook.name], it, lead.email, attributes, changed)
    case = Case(playbook, it, lead.email, attributes, scoring, [], [])
    return {
        rule.key: (case.fires(rule, journey) is not None, (rule, case))
        for rule in rules_of(playbook, journey.stage)
    }


@CALM
@given(histories, st.sampled_from(TYPES), facts, st.integers(1, 90_000))
def test_a_verdict_is_what_the_fold_would_do(
    history: list[Any], type: str, data: dict[str, Any], minutes: int
) -> None:
    playbook = intricate()
    lead, last = lead_of(playbook, history)
    journey = lead.journeys["sales/main"]
    for is_true, (rule, case) in fires(
        playbook, lead, journey, type, data, last + timedelta(minutes=minutes)
    ).values():
        why = why_rule(rule, case, journey, happened=True)
        clauses = [c for c in why.clauses if not c.text.startswith("a handoff")]
        assert (overall(clauses) == "true") is is_true, (rule.when, clauses)
        assert all(c.verdict != "depends" for c in why.clauses)
        before = why_rule(rule, case, journey, happened=False)
        for told_before, told_now in zip(before.clauses, why.clauses, strict=True):
            # What holds whatever the event says does hold when it has said it.
            if told_before.text.startswith("a handoff"):
                continue
            assert told_before.verdict in ("depends", told_now.verdict)


@CALM
@given(histories, st.integers(0, 90_000))
def test_a_score_that_decays_turns_the_clause_when_it_is_said_to(
    history: list[Any], minutes: int
) -> None:
    playbook = intricate()
    lead, last = lead_of(playbook, history)
    journey, at = lead.journeys["sales/main"], last + timedelta(minutes=minutes)

    def verdicts(at: datetime) -> list[Clause]:
        case = case_at(playbook, lead, at)
        rules = rules_of(playbook, journey.stage)
        return [c for r in rules for c in why_rule(r, case, journey, happened=False).clauses]

    for n, clause in enumerate(verdicts(at)):
        if clause.changes_at is not None:
            assert clause.changes_at > at
            assert verdicts(clause.changes_at)[n].verdict != clause.verdict
            before = clause.changes_at - timedelta(seconds=1)
            assert before < at or verdicts(before)[n].verdict == clause.verdict


def promised(playbook: Playbook, lead: Lead, at: datetime, name: str = "sales/main") -> JourneyWhy:
    return explained({playbook.name: playbook}, lead, name, at)


@pytest.mark.parametrize("playbook", [sales, intricate])
@CALM
@given(history=histories, minutes=st.integers(0, 90_000), known=st.booleans())
def test_no_promise_that_is_not_true(
    playbook: Any, history: list[Any], minutes: int, known: bool
) -> None:
    """What is named as missing is sent as an event like any other, and the lead moves there."""
    lead, last = lead_of(playbook(), history, known=known)
    at = last + timedelta(minutes=minutes)
    for move in promised(playbook(), lead, at).would_move:
        if move.example is None:
            continue
        named = {n.name.partition(".")[2] or n.name for n in move.needs}
        assert set(move.example.data) == named  # nothing is sent that was not named
        sent = CloudEvent(
            id="next", source="/t", type=move.example.type, subject=None,
            time=at + timedelta(seconds=1), datacontenttype=None, dataschema=None,
            extensions={}, data_base64=None,
            data={"email": lead.email, **move.example.data},
        )  # fmt: skip
        came = lead_event(sent, at + timedelta(seconds=1))
        assert isinstance(came, LeadEvent)
        moves = funnel.fold({"sales": playbook()}, lead, came).moves
        assert moves, move
        assert moves[0].to_stage == move.to, move
        assert moves[0].rule in move.rules
        if not move.on and "whatever it is" in move.says:
            for type in types_of(playbook()):
                moves = moved_by(playbook(), lead, type, move.example.data, at)
                assert [m.to_stage for m in moves[:1]] == [move.to], (type, move)


def types_of(playbook: Playbook) -> list[str]:
    """Every type of event that the playbook names, but answers to handoffs and what clocks tell."""
    asked = {type for rule in playbook.rules for type in rule.on or ()}
    return sorted({*asked, *playbook.signals, *playbook.labels} - CLOCK_EVENTS - ANSWERS)


def moved_by(
    playbook: Playbook, lead: Lead, type: str, data: dict[str, Any], at: datetime
) -> Sequence[Move]:
    """The moves that an event of `type` with `data` makes."""
    at += timedelta(seconds=1)
    it = LeadEvent("next", "/t", type, at, at, None, (), MAIN, data, {})
    return funnel.fold({playbook.name: playbook}, lead, it).moves


@pytest.mark.parametrize(("above", "says"), [
    ("", "It moves to Lead Qualification at its next event, whatever it is"),
    ("  - {key: out, from: [lead], to: closed_lost, on: lead.disqualified, because: b}\n",
     "It moves to Lead Qualification at its next event, unless that moves it elsewhere"),
    ("  - {key: same, from: [lead], to: mql, on: lead.disqualified, because: b}\n",
     "It moves to Lead Qualification at its next event, whatever it is"),
])  # fmt: skip
def test_any_event_is_promised_only_where_none_leads_elsewhere(above: str, says: str) -> None:
    text = (ROOT / "playbooks/sales.yaml").read_text()
    rule = "  - {key: rich, from: [lead], to: mql, when: lead.budget > 5.0, because: b}\n"
    playbook = parse_playbook(text.replace("\nrules:\n", f"\nrules:\n{above}{rule}"), "x")
    lead, _ = told(event("lead.created"), playbook=playbook)
    said = promised(playbook, lead, START).would_move
    [move] = [m for m in said if "rich" in m.rules]
    assert move.says.startswith(says)
    assert move.example is not None
    out = moved_by(playbook, lead, "lead.disqualified", move.example.data | {"reason": "x"}, START)
    assert (out[0].to_stage == "closed_lost") is ("out" in above)


def test_every_way_out_that_an_event_alone_opens_is_promised() -> None:
    lead, _ = told(event("lead.created"))
    said = promised(sales(), lead, START)
    by_rule = {rule: move for move in said.would_move for rule in move.rules}
    for rule in rules_of(sales(), "lead"):
        move = by_rule[rule.key]
        if rule.key == "score-reached":
            assert move.example is None
            assert move.says == (
                "It does not move to Lead Qualification now: score.total >= 60 is not true, "
                "score is 0."
            )
        else:
            assert move.example is not None, rule.key
    first = said.would_move[0]
    assert first.says == (
        "It moves to Lead Qualification on “Marked marketing-qualified” or “Asked for a demo”."
    )
    # The least that is missing stands first, and what no event does alone last.
    lengths = [(m.example is None, len(m.needs)) for m in said.would_move]
    assert lengths == sorted(lengths)


def test_the_score_that_one_event_more_would_reach() -> None:
    lead, _ = told(
        event("lead.created", 0, employees=900, seniority="vp"), event("content.downloaded", 1)
    )
    at = START + timedelta(minutes=2)
    said = promised(sales(), lead, at)
    [move] = [m for m in said.would_move if m.rules == ["score-reached"]]
    assert move.example is not None
    assert (
        move.says.startswith(
            "It moves to Lead Qualification when its score is enough (score.total >= 60 is not true, "
            "score is 50): “Met us"
        )
        or "would do" in move.says
    )
    [clause] = next(r for r in said.rules if r.rule == "score-reached").clauses
    assert (clause.verdict, clause.values[0].value, clause.values[0].unit) == (
        "false",
        50,
        "points",
    )


def test_a_gate_tells_what_it_misses_and_a_held_move_what_lets_it_go() -> None:
    playbook = gated("{require: [lead.budget]}")
    lead, _ = told(event("lead.created", 0), event("meeting.booked", 1), playbook=playbook)
    said = promised(playbook, lead, START + timedelta(minutes=2))
    held = next(m for m in said.would_move if m.rules == ["meeting-booked"])
    assert held.says == (
        "It moves to Discovery & Solutioning as soon as budget is known: the move waits since "
        "2026-01-05 09:01 UTC."
    )
    rule = next(r for r in said.rules if r.rule == "marked-sales-qualified")
    assert rule.gate.missing == ["lead.budget"]


def test_what_is_unknown_is_named_with_its_type() -> None:
    lead, _ = told(event("lead.created"), playbook=intricate())
    rule = next(r for r in promised(intricate(), lead, START).rules if r.rule == "r0")
    assert [(c.verdict, c.missing) for c in rule.clauses] == [
        ("unknown", ["lead.budget"]), ("unknown", ["lead.country"]), ("false", []),
    ]  # fmt: skip
    assert [(v.name, v.type) for v in rule.clauses[0].values] == [("lead.budget", "double")]
    assert rule.verdict == "false"


def test_an_answer_that_meets_no_handoff_is_no_way_out() -> None:
    answered = [event("demo.requested"), event("meeting.booked", 1), event("handoff.accepted", 2)]
    lead, _ = told(*answered)
    said = promised(sales(), lead, START + timedelta(minutes=3))
    rule = next(r for r in said.rules if r.rule == "rejected-by-ae")
    assert [(c.text, c.verdict) for c in rule.clauses] == [
        ("a handoff waits for an answer", "false")
    ]
    move = next(m for m in said.would_move if m.rules == ["rejected-by-ae"])
    assert move.example is None
    assert "not true that a handoff waits for an answer" in move.says


@pytest.mark.parametrize(("text", "clauses"), [
    ("a", ["a"]), ("a && b", ["a", "b"]), ("(a && b)", ["a", "b"]), ("(a) && (b)", ["a", "b"]),
    ("a && (b && (c || d))", ["a", "b", "c || d"]), ("a || b && c", ["a || b && c"]),
    ("a ? b && c : d", ["a ? b && c : d"]), ("!(a && b)", ["!(a && b)"]),
    ("x == '&&' && y", ["x == '&&'", "y"]), (r"x == r'\' && y == '\''", [r"x == r'\'", r"y == '\''"]),
    ('x == """a"&&b""" && y', ['x == """a"&&b"""', "y"]), ("f(a && b) && c", ["f(a && b)", "c"]),
    ("[1].exists(i, i > 0 && a) && b", ["[1].exists(i, i > 0 && a)", "b"]),
])  # fmt: skip
def test_a_condition_is_parted_where_cel_would(text: str, clauses: list[str]) -> None:
    assert parted(text) == clauses
