"""What differs between two playbooks is told in sentences, with its line, and whether it moves journeys."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.stage_service.conditions import Conditions
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_diff import Change, Diff, diff
from services.stage_service.playbook_diff_words import out_of_order

SALES = (Path(__file__).parents[2] / "playbooks/sales.yaml").read_text()
MEETING = "!known.event.with_role || event.with_role == 'ae'"


def parsed(text: str) -> Playbook:
    return parse_playbook(text, "sales.yaml")


def compared(*changes: tuple[str, str], text: str = SALES) -> Diff:
    """The diff of the seed's playbook to itself with each (old, new) replaced once."""
    new = text
    for old, put in changes:
        assert old in new
        new = new.replace(old, put, 1)
    return diff(parsed(text), parsed(new))


def only(found: Diff) -> Change:
    [change] = found.changes
    return change


ONE = [
    (
        (
            "    responsible: [ae]\n    alerts: [ae]\n",
            "    responsible: [ae]\n    gate: {require: [lead.budget]}\n    alerts: [ae]\n",
        ),
        "gate-added",
        "Discovery & Solutioning (sql) now needs the lead's budget (lead.budget).",
        True,
    ),
    (
        ("    gate:\n      reason: true\n", ""),
        "gate-removed",
        "Disqualified (disqualified) no longer needs a reason.",
        True,
    ),
    (
        ('score.total >= 60"', 'score.total >= 70"'),
        "rule-when",
        "score-reached fires when score.total >= 70 now (before: score.total >= 60).",
        True,
    ),
    (
        ("    from: [nurture]\n", "    from: [lead, nurture]\n"),
        "rule-from",
        "back-by-new-interest also moves from lead.",
        True,
    ),
    (
        ("    on: proposal.sent\n", "    on: [proposal.sent, quote.sent]\n"),
        "rule-on",
        "proposal-sent hears proposal.sent and quote.sent now.",
        True,
    ),
    (
        ("to: sql\n    on: lead.sales_qualified", "to: proposal\n    on: lead.sales_qualified"),
        "rule-to",
        "marked-sales-qualified moves to Proposal & Negotiation (proposal) now.",
        True,
    ),
    (
        ("  - key: demo-requested\n", "  - key: asked-for-a-demo\n"),
        "rule-renamed",
        "The rule demo-requested is called asked-for-a-demo now.",
        False,
    ),
    (
        ("points: 25", "points: 30"),
        "fit-points",
        "Fit: large-company gives 30 points now, not 25.",
        True,
    ),
    (
        ('lead.employees >= 200"', 'lead.employees >= 300"'),
        "fit-when",
        "Fit: large-company counts when lead.employees >= 300 now (before: lead.employees >= 200).",
        True,
    ),
    (
        ("half_life_days: 7,", "half_life_days: 5,"),
        "signal",
        "Intent, page-view: half-life in days 5 now, not 7.",
        True,
    ),
    (("cap: 20,", "cap: 25,"), "signal", "Intent, page-view: most points 25 now, not 20.", True),
    (
        ("    alerts: [lead_agent]\n", "    alerts: [lead_agent, marketing]\n"),
        "alerts",
        "Entering Lead Qualification (mql) alerts Lead Agent (SDR/BDR) and Marketing now.",
        False,
    ),
    (
        ("responsible: [csm, ae]", "responsible: [ae, csm]"),
        "responsible",
        "Customer Success & Expansion (closed_won) is the responsibility of Account Executive and "
        "Customer Success Manager now.",
        True,
    ),
    (
        ("    title: Lead Qualification\n", "    title: Qualifying\n"),
        "stage-title",
        "The stage mql is called 'Qualifying' now.",
        False,
    ),
    (
        ("    band: mofu\n", "    band: tofu\n"),
        "stage-band",
        "Lead Qualification (mql) belongs to Top of Funnel (ToFu) now.",
        False,
    ),
    (
        ("    within: 4h\n", "    within: 2h\n"),
        "deadline",
        "A handoff to Lead Agent (SDR/BDR) must be answered within 2 h of working time now, "
        "not within 4 h of working time.",
        True,
    ),
    (
        ('    reasons: ["No budget",', "    reasons: ["),
        "handoff-reasons",
        "Account Executive is offered other reasons of a rejection.",
        False,
    ),
    (
        ("    stages: [closing]\n", "    stages: [closing, proposal]\n"),
        "clock-stages",
        "The clock signature runs in proposal and closing now.",
        True,
    ),
    (
        ("    budget: double\n", "    budget: double\n    tier: string\n"),
        "attribute-added",
        "The attribute lead.tier is declared now, as string.",
        False,
    ),
    (
        ("    employees: int\n", "    employees: double\n"),
        "attribute-type",
        "The attribute lead.employees is read as double now, not int.",
        True,
    ),
    (
        ("    budget: double\n", "    budget: int\n"),
        "attribute-type",
        "The attribute lead.budget is read as int now, not double.",
        False,
    ),
    (
        ("    title: Marketing\n", "    title: Growth\n"),
        "role-title",
        "The role marketing is called 'Growth' now.",
        False,
    ),
]


@pytest.mark.parametrize(("change", "kind", "sentence", "moves"), ONE)
def test_one_change(change: tuple[str, str], kind: str, sentence: str, moves: bool) -> None:
    """One line changed is one change, told as people say it."""
    if kind == "fit-when" or (kind == "attribute-type" and moves):
        # An int and a double do not compare in CEL.
        found = compared(change, *([] if kind == "fit-when" else DOUBLES))
        told = next(c for c in found.changes if c.kind == kind)
    else:
        told = only(compared(change))
    assert (told.kind, told.sentence, told.moves) == (kind, sentence, moves)


DOUBLES = [
    ("lead.employees >= 200\"", "lead.employees >= 200.0\""),
    ("lead.employees >= 50 && lead.employees < 200\"", "lead.employees >= 50.0 && lead.employees < 200.0\""),
]  # fmt: skip


def test_a_change_has_the_line_of_the_new_file() -> None:
    found = compared(
        ("name: sales", "# a line more\nname: sales"), ("score.total >= 60\"", "score.total >= 70\"")
    )  # fmt: skip
    new = SALES.replace('score.total >= 60"', 'score.total >= 70"')
    assert only(found).line == new[: new.index("score.total >= 70")].count("\n") + 2


def test_comments_and_layout_are_no_change_of_rules() -> None:
    """Nor is a condition that CEL reads alike: white space, quotes, brackets."""
    for change in (
        ("name: sales", "# another word\nname: sales"),
        (MEETING, '(!known.event.with_role)   || event.with_role == \\"ae\\"'),
        ("from: [lead, nurture]", "from: [nurture, lead]"),
    ):
        found = compared(change)
        assert found.changes == []
        assert found.summary == "No change of rules: only comments or layout differ."
        assert not found.moves


def test_the_same_text_differs_in_nothing() -> None:
    assert diff(parsed(SALES), parsed(SALES)).summary == "Nothing differs: it is the same text."


def test_texts_are_told_in_one_line() -> None:
    found = compared(
        ("ask before you show.", "ask first."), ("goal: \"Convert prospects", "goal: \"Turn prospects"),
        ("because: \"they asked for a demo\"", "because: \"they want a demo\""),
        ("because: \"a proposal was sent\"", "because: \"they have our proposal\""),
    )  # fmt: skip
    told = only(found)
    assert told.sentence == (
        "Texts differ: goal of lead; guidance of sql; the reasons that demo-requested and proposal-sent give."
    )
    assert not told.moves
    assert found.summary == "1 change; no journey goes another way, only what people see differs."


def test_a_rule_added_and_one_removed() -> None:
    rule = SALES[
        SALES.index("  - key: back-by-new-interest") : SALES.index("  - key: meeting-booked")
    ]
    new = rule.replace("back-by-new-interest", "back-by-a-call").replace(
        "[form.submitted, content.downloaded, webinar.attended, meeting.held]", "call.made"
    )
    added, removed = compared((rule, new)).changes
    assert (added.kind, removed.kind) == ("rule-added", "rule-removed")
    assert added.sentence == (
        "A new rule back-by-a-call moves from nurture to Lead Qualification (mql) on call.made."
    )
    assert (
        removed.sentence == "The rule back-by-new-interest is gone; it moved from nurture to mql."
    )
    assert removed.before is not None
    assert "on content.downloaded, form.submitted" in removed.before


def test_the_order_of_rules_moves_journeys_only_where_both_may_fire() -> None:
    def block(key: str) -> str:
        start = SALES.index(f"  - key: {key}\n")
        return SALES[start : SALES.index("  - key: ", start + 5)]

    one, other = block("marked-marketing-qualified"), block("demo-requested")
    told = only(compared((one + other, other + one)))
    # Both lead to the same stage on different events.
    assert (told.kind, told.moves) == ("rule-order", False)
    one, other = block("proposal-sent"), block("contract-sent")
    # Another stage, and no event that both hear.
    assert not only(compared((one + other, other + one))).moves
    any_event = (other, other.replace("    on: contract.sent\n", "    when: lead.budget > 5.0\n"))
    text = SALES.replace(*any_event)
    swapped = text.replace(one + any_event[1], any_event[1] + one)
    told = only(diff(parsed(text), parsed(swapped)))
    assert told.moves
    assert "both it and contract-sent may fire" in told.sentence or (
        "both it and proposal-sent may fire" in told.sentence
    )


def test_a_stage_that_comes_elsewhere_on_the_path() -> None:
    found = compared(
        ("path: [lead, mql, sql, proposal, closing, closed_won]",
         "path: [lead, mql, sql, closing, proposal, closed_won]"),
        ("from: [lead, mql, sql, proposal, nurture]\n    to: closing",
         "from: [lead, mql, sql, nurture]\n    to: closing"),
    )  # fmt: skip
    moved = next(c for c in found.changes if c.kind == "stage-moved")
    assert moved.sentence.endswith("on the path now.")
    assert moved.before == "lead > mql > sql > proposal > closing > closed_won"


def test_what_is_used_by_no_rule_does_not_move_journeys() -> None:
    """Points of a score that no rule asks for are only what people see."""
    text = SALES.replace('when: "score.total >= 60"', 'when: "lead.employees >= 900"').replace(
        "their score reached {score.total} (fit {score.fit}, intent {score.intent}); 60 is enough",
        "x",
    )
    assert not only(compared(("points: 25", "points: 30"), text=text)).moves


ROUTING = """
routing:
  ae:
    rules:
      - {key: big, when: "lead.employees >= 500", to: {people: [elena]}}
      - {key: near, to: {territory: lead.region}, capacity: 40}
    fallback: {person: elena}
"""


def test_what_differs_in_routing() -> None:
    """Who gets a journey is told, and moves none."""
    added = only(diff(parsed(SALES), parsed(SALES + ROUTING)))
    assert added.sentence == "Journeys of Account Executive are given by rules of its own now."
    found = compared(
        ("employees >= 500", "employees >= 900"),
        ("capacity: 40", "capacity: 50"),
        ("fallback: {person: elena}", "fallback: {person: sara}"),
        text=SALES + ROUTING,
    )
    assert [c.sentence for c in found.changes] == [
        "Routing of Account Executive: big is to people elena when lead.employees >= 900 now.",
        "Routing of Account Executive: near is to territory lead.region, at most 50 open journeys now.",
        "Routing of Account Executive: what no rule gives to anybody goes to sara now.",
    ]
    assert not found.moves


def test_conditions_are_one_where_cel_reads_them_alike() -> None:
    conditions = Conditions({"lead.a": "int", "lead.b": "bool"})

    def read(text: str) -> bytes:
        return conditions.compile(text).parsed

    assert read("lead.a>1&&lead.b") == read("( lead.a > 1 )\n  && lead.b // so")
    assert read("lead.a > 1 && lead.b") != read("lead.a > 2 && lead.b")
    # Clauses in another order are told as another condition, though they mean the same.
    assert read("lead.a > 1 && lead.b") != read("lead.b && lead.a > 1")


def test_the_fewest_have_moved() -> None:
    assert out_of_order(["a", "b", "c", "d"], ["d", "a", "b", "c"]) == ["d"]
    assert out_of_order(["a", "b", "c"], ["a", "b", "c"]) == []
    assert out_of_order([], []) == []


def test_a_new_playbook_has_nothing_to_compare() -> None:
    found = diff(None, parsed(SALES))
    assert found.shown()["before_version"] is None
    assert found.summary == "sales is a new playbook."
