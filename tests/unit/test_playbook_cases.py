"""Tests of playbooks in YAML: the shipped ones pass and touch all; a wrong expectation fails."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from services.baton.cli import app
from services.baton.playbook_tests import case_files, coverages, run_file
from services.contracts.schemas import HERE as SCHEMAS
from services.contracts.yaml_source import SourceError, read_yaml
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_cases import Case, _plain, read_cases, run_case

ROOT = Path(__file__).parents[2]
FILES = case_files([ROOT / "playbooks/tests"])


@pytest.fixture(scope="module")
def sales() -> Playbook:
    return parse_playbook((ROOT / "playbooks/sales.yaml").read_text(), "sales.yaml")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_the_cases_that_come_with_baton_pass(file: Path) -> None:
    run = run_file(file)
    assert [(o.case.name, str(f)) for o in run.outcomes for f in o.failures] == []
    assert len(run.outcomes) >= 10


@pytest.mark.parametrize("name", ["sales", "expansion"])
def test_they_touch_every_stage_rule_and_clock(name: str) -> None:
    covered = coverages([run_file(file) for file in FILES])[name]
    assert (covered.stages, covered.rules, covered.clocks) == ((), (), ())
    assert covered.share == 1.0


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_they_fit_their_schema(file: Path) -> None:
    schema = json.loads((SCHEMAS / "playbook-tests.schema.json").read_text())
    checker = jsonschema.Draft202012Validator(schema)
    checker.check_schema(schema)
    checker.validate(_plain(read_yaml(file.read_text(), file.name).value))


def case(expect: str, steps: str = "") -> str:
    return (
        "cases:\n  - case: one\n    steps:\n"
        "      - {event: lead.created, at: 2026-03-02T09:00:00Z, data: {email: a@b.example}}\n"
        f"{steps}    expect: {expect}\n"
    )


DEMO = "      - {event: demo.requested, after: 1h}\n"


@pytest.mark.parametrize(
    ("expect", "wrong"),
    [
        ("{stage: mql}", "{stage: sql}"),
        ("{transitions: [mql]}", "{transitions: []}"),
        ("{transitions: mql}", "{transitions: [mql, sql]}"),
        ("{rules: [demo-requested]}", "{rules: [score-reached]}"),
        ("{responsible: lead_agent}", "{responsible: ae}"),
        ("{alerts: [lead_agent]}", "{alerts: [lead_agent, lead_agent]}"),
        ("{handoff: {state: offered}}", "{handoff: {state: accepted}}"),
        ("{handoff: {role: lead_agent}}", "{handoff: null}"),
        ("{clocks: [qualify, handoff-lead-agent]}", "{clocks: [qualify]}"),
        ("{rings: []}", "{rings: [qualify due owner]}"),
        ("{held: {}}", "{held: {sql: [reason]}}"),
        ("{score: {intent: 30}}", "{score: {intent: 31}}"),
        ('{score: {intent: ">= 30"}}', '{score: {intent: "> 30"}}'),
        ('{score: {intent: "<= 30", fit: 0}}', '{score: {intent: "< 30"}}'),
        ("{furthest: mql}", "{furthest: closing}"),
    ],
)
def test_each_expectation_can_fail(sales: Playbook, expect: str, wrong: str) -> None:
    assert run_case(*_read(sales, expect)).failures == ()
    failed = run_case(*_read(sales, wrong)).failures
    assert [f.line for f in failed] == [6]


def _read(sales: Playbook, expect: str) -> tuple[Case, Playbook]:
    return read_cases(case(expect, DEMO), "t.yaml", sales)[0], sales


def test_an_expectation_in_the_middle_is_about_that_moment(sales: Playbook) -> None:
    steps = (
        f"      - expect: {{stage: lead}}\n{DEMO}      - wait: 4h\n"
        "      - expect: {handoff: {overdue: true}}\n"
    )
    [one] = read_cases(case("{stage: mql}", steps), "t.yaml", sales)
    assert run_case(one, sales).failures == ()


def test_a_clock_rings_at_its_moment_and_not_before(sales: Playbook) -> None:
    [one] = read_cases(case("{rings: []}", f"{DEMO}      - wait: 179m\n"), "t.yaml", sales)
    assert run_case(one, sales).failures == ()
    [one] = read_cases(case("{rings: []}", f"{DEMO}      - wait: 180m\n"), "t.yaml", sales)
    assert [f.got for f in run_case(one, sales).failures] == [["handoff-lead-agent remind owner"]]


def test_a_case_of_a_deal(sales: Playbook) -> None:
    text = case("{stage: mql}", DEMO).replace("    steps", "    deal: d-1\n    steps")
    [one] = read_cases(text, "t.yaml", sales)
    assert run_case(one, sales).failures == ()


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("cases: []\n", 1, "there are no cases"),
        (case("{stag: mql}"), 5, "unknown key 'stag'"),
        (case("{stage: mqll}"), 5, "unknown stage 'mqll'"),
        (case("{rules: [demo-request]}"), 5, "unknown rule 'demo-request'"),
        (case("{alerts: [sdr]}"), 5, "unknown alert 'sdr'"),
        (case("{stage: lead}", "      - {wait: soon}\n"), 5, "not a duration"),
        (case("{stage: lead}", "      - {wait: 1h, event: x}\n"), 5, "a step is an event"),
        (
            case("{stage: lead}", "      - {event: x, at: 2026-03-01T09:00:00Z}\n"), 5,
            "before the step before",
        ),
        (case("{stage: lead}", "      - {event: x, data: {email: 12}}\n"), 5, "data.email"),
        ("cases:\n  - case: a\n    steps: []\n", 2, "expects nothing"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(
    sales: Playbook, text: str, line: int, message: str
) -> None:
    with pytest.raises(SourceError) as refused:
        read_cases(text, "t.yaml", sales)
    assert any(p.line == line and message in p.message and p.remedy for p in refused.value.problems)


def test_the_command(tmp_path: Path) -> None:
    runner = CliRunner()
    told = runner.invoke(app, ["playbook", "test", str(FILES[-1]), "--fail-under", "100"])
    assert told.exit_code == 0, told.output
    assert "28 of 28 stages, rules and clocks touched (100%)" in told.output
    file = tmp_path / "sales.yaml"
    file.write_text(case("{stage: sql}", DEMO))
    shipped = str(ROOT / "playbooks/sales.yaml")
    told = runner.invoke(app, ["playbook", "test", str(tmp_path), "--playbook", shipped])
    assert told.exit_code == 1
    assert "sales.yaml:6: stage: expected sql, got mql" in told.output
    assert "rules untouched: marked-marketing-qualified" in told.output
    file.write_text(case("{stage: mql}", DEMO))
    told = runner.invoke(
        app, ["playbook", "test", str(file), "--playbook", shipped, "--fail-under", "50", "--json"]
    )
    assert told.exit_code == 1
    result = json.loads(told.output)
    assert [c["ok"] for c in result["cases"]] == [True]
    assert 0 < result["coverage"]["sales"]["share"] < 0.5
    told = runner.invoke(app, ["playbook", "test", str(tmp_path / "none.yaml")])
    assert told.exit_code == 2
