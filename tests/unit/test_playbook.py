"""The seed's playbook holds all of the seed; a mistaken one is refused with file, line and remedy (I10)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.contracts.team import parse_team
from services.contracts.yaml_source import SourceError
from services.stage_service.conditions import Conditions
from services.stage_service.playbook import Playbook, coerce, parse_playbook
from services.stage_service.playbook_drawing import (
    deadline_of,
    demands_told,
    mermaid,
    moves_told,
    plans_of,
    steps_told,
    svg,
)

ROOT = Path(__file__).parents[2]
SALES = (ROOT / "playbooks/sales.yaml").read_text()


def sales() -> Playbook:
    return parse_playbook(SALES, "sales.yaml")


def line_of(text: str, part: str) -> int:
    """The line of the last occurrence of `part`, from 1."""
    return text[: text.rindex(part)].count("\n") + 1


def test_the_six_stages_of_the_seed() -> None:
    playbook = sales()
    told = [
        (s.key, s.title, s.band, playbook.roles[s.responsible[0]].key)
        for s in (playbook.stages[key] for key in playbook.path)
    ]
    assert told == [
        ("lead", "Lead Generation", "tofu", "marketing"),
        ("mql", "Lead Qualification", "mofu", "lead_agent"),
        ("sql", "Discovery & Solutioning", "mofu", "ae"),
        ("proposal", "Proposal & Negotiation", "bofu", "ae"),
        ("closing", "Closing", "bofu", "ae"),
        ("closed_won", "Customer Success & Expansion", "post-sale", "csm"),
    ]
    assert set(playbook.roles) == {"marketing", "lead_agent", "ae", "sales_leadership", "csm"}
    exits = {s.key for s in playbook.stages.values() if s.path_index is None}
    assert exits == {"nurture", "disqualified", "closed_lost"}
    assert all(s.focus and s.goal and s.responsible for s in playbook.stages.values())
    assert all(r.title and r.does for r in playbook.roles.values())
    assert len(playbook.philosophy) == 5
    assert len(playbook.competencies) == 5
    told_to = {s.key: s.alerts for s in playbook.stages.values() if s.alerts}
    assert told_to == {"mql": ("lead_agent",), "sql": ("ae",), "closed_won": ("csm",)}


# What is changed in the good file, and what must be said: (old, new, the changed line's part, message,
# remedy). The place told must be the line where `part` stands afterwards.
MISTAKES = {
    "typo in a stage name": (
        "to: proposal\n", "to: proposl\n", "to: proposl", "unknown stage 'proposl'",
        "Did you mean 'proposal'?",
    ),
    "typo in a stage of 'from'": (
        "from: [lead, mql, sql]\n", "from: [lead, mqll, sql]\n", "[lead, mqll",
        "unknown stage 'mqll'", "Did you mean 'mql'?",
    ),
    "unknown attribute in a condition": (
        'when: "lead.employees >= 200"', 'when: "lead.employes >= 200"', "lead.employes",
        "undeclared reference to 'lead.employes'", "Did you mean 'lead.employees'?",
    ),
    "ill-typed comparison": (
        'when: "lead.employees >= 200"', "when: \"lead.employees >= 'big'\"", ">= 'big'",
        "no matching overload for '_>=_' applied to '(int, string)'", "Conditions",
    ),
    "not a condition": (
        'when: "score.total >= 60"', 'when: "score.total + 60"', "score.total + 60",
        "not true or false", "Conditions",
    ),
    "broken expression": (
        'when: "score.total >= 60"', 'when: "score.total >="', 'when: "score.total >="',
        "Syntax error", "Conditions",
    ),
    "unreachable stage": (
        "    to: nurture\n", "    to: disqualified\n", "  nurture:\n", "stage 'nurture' is unreachable",
        "Add a rule with 'to: nurture'",
    ),
    "cycle": (
        "    to: nurture\n    on: lead.recycled\n",
        "    to: nurture\n    on: [lead.recycled, webinar.attended]\n", "key: recycled",
        "rules form a cycle: an event 'webinar.attended'", "different event types",
    ),
    "moves backwards": (
        "    to: nurture\n    on: lead.recycled\n    because",
        "    to: nurture\n    on: lead.recycled\n    because: \"x\"\n\n"
        "  - key: again\n    from: [closing]\n    to: mql\n    on: deal.reopened\n    because",
        "key: again", "moves backwards, from 'closing' to 'mql'", "back: true",
    ),
    "unknown key": (
        "    goal: \"Secure a Closed-Won deal.\"", "    gaol: \"Secure a Closed-Won deal.\"", "gaol",
        "unknown key 'gaol'", "Did you mean 'goal'?",
    ),
    "unknown role": (
        "responsible: [csm, ae]", "responsible: [cms, ae]", "[cms", "unknown role 'cms'",
        "Did you mean 'csm'?",
    ),
    "rule key twice": (
        "key: deal-lost", "key: deal-won", "key: deal-won", "'deal-won' is used twice",
        "Give each its own",
    ),
    "unknown variable in a sentence": (
        "reached {score.total}", "reached {score.totl}", "{score.totl}",
        "unknown variable {score.totl}", "Did you mean 'score.total'?",
    ),
    "gate on an unknown attribute": (
        "    gate:\n      reason: true\n    guidance",
        "    gate:\n      require: [lead.bugdet]\n    guidance",
        "lead.bugdet", "unknown attribute 'lead.bugdet'", "Did you mean 'lead.budget'?",
    ),
    "points that are no number": (
        "points: 25", "points: many", "points: many", "must be a number", "Correct",
    ),
    "a day of working time": (
        "within: 16h", "within: 2d", "within: 2d", "'2d' has no length in working time", "time: wall",
    ),
    "no duration": (
        "within: 16h", "within: soon", "within: soon", "'soon' is not a duration", "30m, 4h",
    ),
    "handoffs of an unknown role": (
        "\n  csm:\n    within: 8h", "\n  cms:\n    within: 8h", "  cms:", "unknown key 'cms'",
        "Did you mean 'csm'?",
    ),
    "a reminder before the start": (
        "remind: 2h", "remind: 9h", "remind: 9h", "before the clock starts", "less than 'within'",
    ),
    "a ladder out of order": (
        "{after: 2h, to: role_lead}\n      - {after: 4h, to",
        "{after: 9h, to: role_lead}\n      - {after: 3h, to",
        "{after: 3h, to", "not in order", "the earliest first",
    ),
    "a rung for nobody": (
        "{after: 3d, to: sales_leadership}", "{after: 3d, to: Nobody!}", "Nobody!", "'Nobody!' is nobody",
        "stand_in, role_lead",
    ),
    "a clock's key twice": (
        "key: signature", "key: silent", "key: silent", "'silent' is used twice", "Give each its own",
    ),
    "a clock in an unknown stage": (
        "stages: [closing]", "stages: [closng]", "[closng]", "unknown stage 'closng'",
        "Did you mean 'closing'?",
    ),
    "has() on flat variables": (
        'when: "score.total >= 60"', 'when: "has(lead.origin)"', "has(lead.origin)",
        "write known.lead.x", "Conditions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_its_place_and_a_remedy(name: str) -> None:
    old, new, part, message, remedy = MISTAKES[name]
    assert SALES.count(old) >= 1
    text = SALES.replace(old, new, 1)
    with pytest.raises(SourceError) as caught:
        parse_playbook(text, "sales.yaml")
    found = [p for p in caught.value.problems if message in p.message]
    assert found, caught.value
    expected = line_of(text, part)
    assert found[0].file == "sales.yaml"
    assert found[0].line == expected, found[0]
    assert remedy in found[0].remedy
    assert re.match(r"sales\.yaml:\d+:\d+: .+\. .+", str(found[0]))


def test_all_mistakes_are_told_at_once() -> None:
    text = SALES.replace("to: proposal\n", "to: proposl\n").replace(
        "lead.employees >= 200", "lead.employes >= 200"
    )
    with pytest.raises(SourceError) as caught:
        parse_playbook(text, "sales.yaml")
    assert len(caught.value.problems) == 2


def test_the_column_of_an_error_inside_a_condition() -> None:
    text = SALES.replace('when: "score.total >= 60"', 'when: "score.total >= 60 && lead.nope"')
    with pytest.raises(SourceError) as caught:
        parse_playbook(text, "sales.yaml")
    [problem] = caught.value.problems
    line = text.splitlines()[problem.line - 1]
    # CEL points at the dot between the two names of a qualified one.
    assert line[problem.column - 1 :].startswith(".nope")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "expected"),
        ("a: 1\na: 2", "duplicate key"),
        ("", "must be a mapping"),
        ("- 1", "must be a mapping"),
        ("\ttab", "found character"),
        ("name: x\n" + "y: z" * 400_000, "larger than 1 MiB"),
    ],
)
def test_what_is_no_playbook_at_all(text: str, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_playbook(text, "x.yaml")
    assert message in str(caught.value)


def test_a_small_file_that_holds_billions_is_refused() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(SourceError, match="more than"):
        parse_playbook("\n".join(levels), "x.yaml")


@pytest.mark.parametrize(
    ("raw", "kind", "value"),
    [
        ("250", "int", 250), (250.0, "int", 250), ("2.5", "int", None), (True, "int", None),
        ("abc", "double", None), (3, "double", 3.0), ("1e400", "double", None),
        ("true", "bool", True), (1, "bool", None), (12, "string", "12"),
        ("2026-01-01", "timestamp", None), ([1], "string", None), (10**30, "int", None),
        ("9" * 50, "int", None), (float("nan"), "double", None),
    ],
)  # fmt: skip
def test_values_are_read_as_their_declared_type(raw: object, kind: str, value: object) -> None:
    assert coerce(raw, kind) == value  # type: ignore[arg-type]


def test_a_condition_knows_its_variables_however_they_are_spaced() -> None:
    """What it does not know of it is not given: a rule would never fire."""
    condition = Conditions({"lead.country": "string"}).compile("lead\n  . country.startsWith('D')")
    assert condition.variables == ("lead.country",)
    told = [condition.evaluate({"lead.country": where}).result for where in ("DE", "AT", "DE")]
    assert told == [True, False, True]


def test_the_graph_can_be_drawn() -> None:
    playbook = sales()
    drawn = mermaid(playbook)
    assert drawn.startswith("stateDiagram-v2")
    assert "mql --> sql: meeting-booked, marked-sales-qualified" in drawn
    picture = svg(playbook)
    assert picture.count("<rect") == len(playbook.stages)
    assert "Discovery &amp; Solutioning" in picture


def test_a_title_cannot_break_the_diagram() -> None:
    """Quotes end a name in Mermaid, and a line is a statement."""
    text = (ROOT / "playbooks/sales.yaml").read_text()
    odd = text.replace("title: Nurture", 'title: "The \\"long\\"\\n    [*] --> mql"')
    assert odd != text
    drawn = mermaid(parse_playbook(odd, "sales.yaml")).splitlines()
    assert "    state \"The 'long' [*] --> mql\" as nurture" in drawn
    assert "    [*] --> mql" not in drawn


def test_gates_are_drawn_where_they_hold_a_move() -> None:
    """Each move into a gated stage has the mark; what is demanded is told without the picture too."""
    text = (ROOT / "playbooks/expansion.yaml").read_text()
    playbook = parse_playbook(text, "expansion.yaml")
    told = {s.key: demands_told(s) for s in playbook.stages.values() if demands_told(s)}
    assert told == {"commercial": ["the deal's expansion kind"], "churned": ["a reason"]}
    into = [to.key for _, to, _ in moves_told(playbook)]
    gated = sum(key in told for key in into)
    picture = svg(playbook)
    assert (picture.count("url(#g)"), picture.count("url(#a)")) == (gated, len(into) - gated)
    assert ">◆ the deal&#x27;s expansion kind</text>" in picture
    assert (
        "Expansion Offer demands the deal&#x27;s expansion kind" in picture.partition("<defs>")[0]
    )
    drawn = mermaid(playbook).splitlines()
    assert "    opportunity --> commercial: offer-wanted ◆" in drawn
    assert "    onboarding --> adoption: went-live" in drawn
    assert "      ◆ demands the deal's expansion kind" in drawn
    plain = svg(parse_playbook(re.sub(r"    gate:\n      .*\n", "", text), "expansion.yaml"))
    assert "◆" not in plain
    assert "url(#g)" not in plain


def test_deadlines_and_ladders_are_drawn_where_they_begin() -> None:
    playbook = sales()
    told = {
        key: [(p.key, deadline_of(p), steps_told(p)) for p in plans_of(playbook, stage)]
        for key, stage in playbook.stages.items()
    }
    assert told["lead"] == []
    assert told["mql"] == [
        ("handoff-lead-agent", "within 4 h of working time", [
            "reminder 1 h before", "at the deadline: stand in", "1 h after: role lead",
            "4 h after: sales leadership"]),
        ("qualify", "within 16 h of working time in the stage", ["8 h after: role lead"]),
    ]  # fmt: skip
    [_, silent] = told["sql"]
    assert silent == ("silent", "within 14 d without activity", [
        "reminder 3 d before", "3 d after: sales leadership"])  # fmt: skip
    drawn = mermaid(playbook)
    assert (
        "    note right of sql\n      Answer to the handoff - within 4 h of working time" in drawn
    )
    # Nothing in a note may end Mermaid's statement.
    notes = [line for line in drawn.splitlines() if line.startswith("      ")]
    assert not [line for line in notes if ":" in line or ";" in line]
    picture = svg(playbook)
    assert ">answer 4 h, No activity 14 d</text>" in picture
    assert "4 h after: sales leadership" in picture


def test_the_roster_is_checked_too() -> None:
    good = (ROOT / "playbooks/team.yaml").read_text()
    assert set(parse_team(good, "team.yaml").by_role) == {
        "marketing", "lead_agent", "ae", "sales_leadership", "csm",
    }  # fmt: skip
    for old, new, message in (
        ("roles: [ae]", "roles: [aee]", "unknown role 'aee'"),
        ("Europe/Berlin", "Europe/Berln", "unknown time zone"),
        ("id: elena", "id: jonas", "two people have the id"),
        ("email: elena@baton.example", "email: elena", "not an e-mail address"),
        ("weight: 2", "weight: -1", "is -1"),
        ("channels: [inbox]}", "channels: [fax]}", "neither built in nor a URL"),
    ):
        with pytest.raises(SourceError, match=re.escape(message)):
            parse_team(good.replace(old, new, 1), "team.yaml")
