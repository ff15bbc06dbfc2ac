"""The fold: what one event does to a lead. Pure, so everything is told by values."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts.events import MAIN, MOVED_BY_HAND, LeadEvent
from services.stage_service import funnel
from services.stage_service.funnel import Lead, Move
from services.stage_service.lead_facts import ATTRIBUTES_MAX
from services.stage_service.playbook import Playbook, parse_playbook
from tests.conftest import examples

ROOT = Path(__file__).parents[2]
START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


@cache
def sales() -> Playbook:
    return parse_playbook((ROOT / "playbooks/sales.yaml").read_text(), "sales.yaml")


def gated(gate: str) -> Playbook:
    """The sales playbook with a gate on `sql`."""
    text = (ROOT / "playbooks/sales.yaml").read_text()
    return parse_playbook(
        text.replace("    alerts: [ae]\n", f"    alerts: [ae]\n    gate: {gate}\n"), "x"
    )


def event(type: str, minute: float = 0, *, id: str = "", source: str = "/t", deal: str = MAIN,
          **data: Any) -> LeadEvent:  # fmt: skip
    time = START + timedelta(minutes=minute)
    return LeadEvent(
        id or f"{type}-{minute}", source, type, time, time, None, (("email", "a@b.example"),), deal,
        data, {},
    )  # fmt: skip


def told(*events: LeadEvent, playbook: Playbook | None = None) -> tuple[Lead, list[Move]]:
    whole = funnel.refold([(e, 1) for e in events], lambda _: {"sales": playbook or sales()})
    lead, moves = whole.lead, whole.moves
    assert lead is not None
    return lead, moves


def ways(moves: list[Move]) -> list[tuple[str, str]]:
    return [(m.from_stage, m.to_stage) for m in moves]


WALK = (
    event("lead.created", 0, company="Acme", employees=250), event("demo.requested", 1),
    event("meeting.booked", 2), event("proposal.sent", 3), event("contract.sent", 4),
    event("deal.won", 5),
)  # fmt: skip


def test_the_walk_from_first_touch_to_won() -> None:
    lead, moves = told(*WALK)
    assert ways(moves) == [
        ("lead", "mql"), ("mql", "sql"), ("sql", "proposal"), ("proposal", "closing"),
        ("closing", "closed_won"),
    ]  # fmt: skip
    assert [m.role for m in moves] == ["lead_agent", "ae", "ae", "ae", "csm"]
    assert moves[0].explanation == (
        "Moved from Lead Generation to Lead Qualification because they asked for a demo."
    )
    journey = lead.journeys["sales/main"]
    assert (journey.stage, journey.furthest) == ("closed_won", "closed_won")
    assert all(not m.skipped for m in moves)


def test_each_stay_is_a_visit_with_its_own_duration() -> None:
    _, moves = told(*WALK)
    assert [m.visit_entered_at for m in moves[1:]] == [m.occurred_at for m in moves[:-1]]


def test_deals_skip_stages() -> None:
    _, moves = told(event("lead.marketing_qualified", 0), event("deal.won", 9))
    assert ways(moves) == [("lead", "mql"), ("mql", "closed_won")]
    assert moves[1].skipped == ["sql", "proposal", "closing"]
    assert (
        "Skipped: Discovery & Solutioning, Proposal & Negotiation, Closing." in moves[1].explanation
    )


def test_the_score_moves_a_lead_and_says_why() -> None:
    events = [event("lead.created", 0, employees=900, seniority="vp")]
    events += [event("content.downloaded", m) for m in (1, 2)]
    lead, moves = told(*events)
    assert ways(moves) == [("lead", "mql")]
    assert moves[0].rule == "score-reached"
    assert "their score reached 60 (fit 40, intent 20); 60 is enough" in moves[0].explanation
    assert lead.scoring["sales"].fit_keys == ["large-company", "decides"]


def test_intent_halves_every_half_life_and_is_capped() -> None:
    playbook = sales()
    lead, _ = told(event("content.downloaded", 0))
    assert funnel.score_of(lead, playbook, START).intent == 10
    assert funnel.score_of(lead, playbook, START + timedelta(days=21)).intent == 5
    many, _ = told(*(event("content.downloaded", m / 100) for m in range(50)))
    assert funnel.score_of(many, playbook, START + timedelta(minutes=0.5)).intent <= 30


def test_a_meeting_for_somebody_else_moves_nobody() -> None:
    _, moves = told(event("lead.created"), event("meeting.booked", 1, with_role="csm"))
    assert moves == []
    _, moves = told(event("lead.created"), event("meeting.booked", 1, with_role="ae"))
    assert ways(moves) == [("lead", "sql")]


def test_back_from_nurture_by_new_interest() -> None:
    lead, moves = told(
        event("demo.requested", 0), event("lead.recycled", 1), event("page.viewed", 2),
        event("webinar.attended", 3),
    )  # fmt: skip
    assert ways(moves) == [("lead", "mql"), ("mql", "nurture"), ("nurture", "mql")]
    assert lead.journeys["sales/main"].furthest == "mql"


def test_a_gate_holds_the_move_until_the_fact_arrives() -> None:
    playbook = gated("{require: [lead.budget]}")
    lead, moves = told(event("lead.created", 0), event("meeting.booked", 1), playbook=playbook)
    assert moves == []
    [held] = lead.journeys["sales/main"].held
    assert (held.to, held.missing) == ("sql", ["lead.budget"])
    lead, moves = told(
        event("lead.created", 0), event("meeting.booked", 1), event("page.viewed", 2),
        event("lead.updated", 3, budget=20_000), playbook=playbook,
    )  # fmt: skip
    assert ways(moves) == [("lead", "sql")]
    assert moves[0].occurred_at == START + timedelta(minutes=3)
    assert "the move waited until budget was known" in moves[0].explanation
    assert lead.journeys["sales/main"].held == []


def test_an_exit_needs_its_reason() -> None:
    lead, moves = told(event("lead.created", 0), event("deal.lost", 1))
    assert moves == []
    assert lead.journeys["sales/main"].held[0].missing == ["reason"]
    _, moves = told(
        event("lead.created", 0),
        event("deal.lost", 1),
        event("lead.updated", 2, reason="no budget"),
    )
    assert ways(moves) == [("lead", "closed_lost")]
    _, moves = told(event("lead.created", 0), event("deal.lost", 1, reason="no budget"))
    assert "the deal was lost: no budget" in moves[0].explanation


def test_by_hand_backwards_too_with_reason_and_actor() -> None:
    moved = event(
        MOVED_BY_HAND,
        9,
        source="baton",
        to="mql",
        reason="wrong person",
        actor="Elena",
        force=False,
    )
    _, moves = told(*WALK[:4], moved)
    assert ways(moves)[-1] == ("proposal", "mql")
    assert moves[-1].actor == "Elena"
    assert moves[-1].explanation.endswith("because Elena moved it by hand: wrong person.")


def test_by_hand_a_gate_holds_unless_forced() -> None:
    playbook = gated("{require: [lead.budget]}")
    wish = {"to": "sql", "reason": "I know them", "actor": "Elena"}
    _, moves = told(event(MOVED_BY_HAND, 1, source="baton", **wish), playbook=playbook)
    assert moves == []
    _, moves = told(event(MOVED_BY_HAND, 1, source="baton", force=True, **wish), playbook=playbook)
    assert ways(moves) == [("lead", "sql")]
    assert moves[0].why["forced"] is True


def test_only_baton_itself_moves_by_hand() -> None:
    _, moves = told(event(MOVED_BY_HAND, 1, source="/evil", to="closed_won", reason="x"))
    assert moves == []


def test_several_deals_are_several_journeys() -> None:
    lead, moves = told(
        event("deal.won", 1, deal="D-1", amount=5), event("proposal.sent", 2, deal="D-2", amount=7)
    )
    assert lead.journeys["sales/D-1"].stage == "closed_won"
    assert lead.journeys["sales/D-2"].stage == "proposal"
    assert lead.journeys["sales/D-2"].deal == {"amount": 7}
    assert len(moves) == 2


def test_a_rule_that_cannot_be_evaluated_is_false_and_counted() -> None:
    """I8: a missing value stops nothing."""
    rule = 'when: "score.total >= 60"\n    because: "their score reached'
    text = (ROOT / "playbooks/sales.yaml").read_text()
    assert rule in text
    playbook = parse_playbook(text.replace("score.total >= 60", "lead.budget > 100.0"), "x")
    whole = funnel.refold([(event("lead.created", 0), 1)], lambda _: {"sales": playbook})
    moves, unevaluated = whole.moves, whole.unevaluated
    assert moves == []
    assert unevaluated == [("score-reached", "lead.budget")]
    for budget in ("a lot", True, [1], {"a": 1}, 10**30, "NaN"):
        whole = funnel.refold(
            [(event("lead.created", 0, budget=budget), 1)], lambda _: {"sales": playbook}
        )
        assert whole.moves == [], budget


def test_null_says_nothing_and_does_not_erase() -> None:
    lead, _ = told(event("lead.created", 0, company="Acme"), event("lead.updated", 1, company=None))
    assert lead.attributes["company"] == "Acme"


def test_a_tool_that_invents_names_cannot_push_facts_out() -> None:
    lead, _ = told(
        event("lead.created", 0, company="Acme"),
        event("lead.updated", 1, **{f"x{i}": i for i in range(2000)}),
    )
    assert lead.attributes["company"] == "Acme"
    assert len(lead.attributes) == ATTRIBUTES_MAX


TYPES = st.sampled_from([
    "lead.created", "lead.updated", "page.viewed", "email.clicked", "content.downloaded",
    "webinar.attended", "form.submitted", "demo.requested", "lead.marketing_qualified",
    "lead.sales_qualified", "meeting.booked", "meeting.held", "proposal.sent", "contract.sent",
    "deal.won", "deal.lost", "lead.disqualified", "lead.recycled", "something.else",
])  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
DATA = st.dictionaries(
    st.sampled_from(["company", "employees", "title", "seniority", "reason", "budget", "with_role",
                     "phone", "amount", "x"]), JSON, max_size=4,
)  # fmt: skip
EVENTS = st.lists(
    st.builds(
        lambda kind, minute, n, deal, data: event(kind, minute, id=f"e{n}", deal=deal, **data),
        TYPES, st.integers(0, 30), st.integers(0, 5), st.sampled_from([MAIN, "D-1"]), DATA,
    ),
    max_size=30, unique_by=lambda e: (e.source, e.id, e.time),
)  # fmt: skip


@settings(max_examples=examples(300), deadline=None)
@given(EVENTS, st.randoms(use_true_random=False))
def test_arrival_order_does_not_matter(events: list[LeadEvent], chance: random.Random) -> None:
    """I7 on the pure fold: any order of the same events gives the same lead and moves."""
    shuffled = list(events)
    chance.shuffle(shuffled)
    books = {"sales": sales()}
    assert funnel.refold([(e, 1) for e in events], lambda _: books) == funnel.refold(
        [(e, 1) for e in shuffled], lambda _: books
    )


@settings(max_examples=examples(300), deadline=None)
@given(EVENTS)
def test_the_history_is_a_chain(events: list[LeadEvent]) -> None:
    """I3: each move starts where the one before it ended; the state is where the last one ended."""
    whole = funnel.refold([(e, 1) for e in events], lambda _: {"sales": sales()})
    lead, moves = whole.lead, whole.moves
    if lead is None:
        assert not events
        return
    for name, journey in lead.journeys.items():
        mine = [m for m in moves if m.journey == name]
        at = "lead"
        for move in mine:
            assert move.from_stage == at != move.to_stage
            assert move.occurred_at >= move.visit_entered_at
            at = move.to_stage
        assert journey.stage == at
        assert journey.moves == len(mine)
        path = sales().path
        reached = [path.index(m.to_stage) for m in mine if m.to_stage in path]
        assert path.index(journey.furthest) == max([0, *reached])


@settings(max_examples=examples(200), deadline=None)
@given(EVENTS)
def test_every_move_can_say_why(events: list[LeadEvent]) -> None:
    """I9: event, rule, sentence and playbook version stand in each move."""
    moves = funnel.refold([(e, 1) for e in events], lambda _: {"sales": sales()}).moves
    rules = {r.key for r in sales().rules}
    for move in moves:
        assert move.rule in rules
        assert any((e.source, e.id) == (move.event_source, move.event_id) for e in events)
        assert move.explanation.startswith("Moved from ")
        assert "because" in move.explanation
        assert "{" not in move.explanation.replace("{'", "")


@pytest.mark.parametrize("count", [1, 7])
def test_a_state_can_be_stored_between_any_two_events(count: int) -> None:
    """The lane packs the state after each batch; that changes nothing."""
    from services.stage_service import store

    books = {"sales": sales()}
    lead: Lead | None = None
    for number in range(count * len(WALK)):
        one = WALK[number % len(WALK)]
        lead = funnel.fold(books, lead, event(one.type, number, **one.data)).lead
        lead = store.unpack_state(store.pack_state(lead, {}))
    direct, _ = told(*(event(WALK[n % 6].type, n, **WALK[n % 6].data) for n in range(count * 6)))
    assert lead == direct
