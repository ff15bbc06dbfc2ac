"""`baton playbook validate`: exit codes and outputs for people, programs and CI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from services.baton.cli import app
from services.baton.validate import days_in
from services.contracts.schemas import HERE as SCHEMAS
from services.stage_service.playbook_catalogue import CHECKS, PREFIX
from tests.conftest import ROOT, missing

SARIF = (
    ROOT / ".cache/clients/node_modules/@microsoft/jest-sarif/lib/schemas/sarif-2.1.0-rtm.5.json"
)
SALES = (ROOT / "playbooks/sales.yaml").read_text(encoding="utf-8")
TEAM = str(ROOT / "playbooks/team.yaml")
DOUBTFUL = SALES.replace("score.total >= 60", "score.total >= 600")
WRONG = SALES.replace("to: proposal\n", "to: proposl\n")


def validate(*arguments: str) -> Any:
    """Run `baton playbook validate`."""
    return CliRunner().invoke(app, ["playbook", "validate", *arguments], env={"COLUMNS": "200"})


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Playbooks by how they are, with paths from the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATON_TEAM_FILE", raising=False)
    (tmp_path / "sub dir").mkdir()
    found = {"clean": "clean.yaml", "doubtful": "sub dir/doubtful.yaml", "wrong": "wrong.yaml"}
    for name, text in (("clean", SALES), ("doubtful", DOUBTFUL), ("wrong", WRONG)):
        (tmp_path / found[name]).write_text(text, encoding="utf-8")
    return found


@pytest.mark.parametrize(
    ("name", "more", "code"),
    [
        ("clean", [], 0), ("clean", ["--strict"], 0), ("clean", ["--team", TEAM, "--strict"], 0),
        ("doubtful", [], 0), ("doubtful", ["--strict"], 1),
        ("doubtful", ["--strict", "--level", "error"], 0),
        ("wrong", [], 1), ("wrong", ["--level", "error"], 1),
        ("clean", ["--format", "xml"], 2), ("clean", ["--level", "note"], 2),
        ("clean", ["--seen", "90"], 2), ("clean", ["--team", "none.yaml"], 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("format", ["text", "json", "sarif"])
def test_exit_codes(
    name: str, more: list[str], code: int, format: str, files: dict[str, str]
) -> None:
    assert validate(files[name], "--format", format, *more).exit_code == code


def test_the_text_has_place_reason_remedy_and_check(files: dict[str, str]) -> None:
    told = validate(files["doubtful"], files["clean"])
    [line] = told.stderr.splitlines()
    where = SALES[: SALES.index('when: "score.total >= 60"')].count("\n") + 1
    assert line == (
        f"warning: sub dir/doubtful.yaml:{where}:11: rule 'score-reached' can never fire: "
        "`score.total >= 600` is never true: score.total is from 0 to 286 here. "
        "Correct its condition, or remove the rule. [playbook/never-fires]"
    )
    assert told.stdout == "sub dir/doubtful.yaml, clean.yaml: valid\n"
    wrong = validate(files["wrong"])
    assert wrong.stderr.startswith("wrong.yaml:")
    assert wrong.stderr.endswith("Did you mean 'proposal'? [playbook/unknown-name]\n")
    assert wrong.stdout == ""


def test_a_file_that_cannot_be_read_is_an_error(files: dict[str, str]) -> None:
    Path("latin.yaml").write_bytes("title: Gespräch".encode("latin-1"))
    for name in ("none.yaml", "latin.yaml"):
        told = validate(name)
        assert told.exit_code == 1
        assert "[playbook/unreadable]" in told.stderr


def test_a_roster_beside_the_playbook_is_asked(files: dict[str, str]) -> None:
    Path("clean.yaml").write_text(SALES.replace("to: role_lead", "to: elna", 1), encoding="utf-8")
    assert validate("clean.yaml").stderr == ""
    Path("team.yaml").write_text(Path(TEAM).read_text(encoding="utf-8"), encoding="utf-8")
    assert "Did you mean 'elena'? [playbook/nobody]" in validate("clean.yaml").stderr
    Path("team.yaml").write_text("people: 3", encoding="utf-8")
    assert validate("clean.yaml").exit_code == 2


def test_json_has_its_schema(files: dict[str, str]) -> None:
    schema = json.loads((SCHEMAS / "playbook-findings.schema.json").read_text())
    told = validate(files["wrong"], files["doubtful"], "--format", "json")
    document = json.loads(told.stdout)
    jsonschema.Draft202012Validator(schema).validate(document)
    assert told.stderr == ""
    assert document["files"] == [files["wrong"], files["doubtful"]]
    assert (document["errors"], document["warnings"]) == (1, 1)
    assert [f["rule"] for f in document["findings"]] == [
        "playbook/unknown-name", "playbook/never-fires"
    ]  # fmt: skip
    assert json.loads(validate(files["clean"], "--format", "json").stdout)["findings"] == []


def sarif(*arguments: str) -> dict[str, Any]:
    return json.loads(validate(*arguments, "--format", "sarif").stdout)


def test_sarif_is_valid_by_its_own_schema(files: dict[str, str]) -> None:
    if not SARIF.is_file():
        missing("SARIF's JSON Schema (make clients)")
    checker = jsonschema.Draft4Validator(json.loads(SARIF.read_text(encoding="utf-8")))
    document = sarif(files["wrong"], files["doubtful"], files["clean"])
    assert [f"{e.json_path}: {e.message[:200]}" for e in checker.iter_errors(document)] == []
    document["runs"][0]["results"][0]["level"] = "bad"
    assert list(checker.iter_errors(document))


def test_sarif_says_where_and_what(files: dict[str, str]) -> None:
    [run] = sarif(files["doubtful"])["runs"]
    [result] = run["results"]
    assert (result["ruleId"], result["level"]) == ("playbook/never-fires", "warning")
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {
        "uri": "sub%20dir/doubtful.yaml", "uriBaseId": "%SRCROOT%"
    }  # fmt: skip
    line = DOUBTFUL.splitlines()[place["region"]["startLine"] - 1]
    assert line[place["region"]["startColumn"] - 1 :].startswith('"score.total >= 600"')
    assert [r["id"] for r in run["tool"]["driver"]["rules"]] == [f"{PREFIX}{c}" for c in CHECKS]
    assert all(r["help"]["text"] and r["helpUri"] for r in run["tool"]["driver"]["rules"])


def test_fingerprints_stay_when_lines_move_and_tell_findings_apart(files: dict[str, str]) -> None:
    def prints(text: str) -> list[str]:
        Path("again.yaml").write_text(text, encoding="utf-8")
        results = sarif("again.yaml")["runs"][0]["results"]
        return [r["partialFingerprints"]["primaryLocationLineHash"] for r in results]

    [first] = prints(DOUBTFUL)
    assert prints(f"# one more line\n{DOUBTFUL}") == [first]
    told = prints(DOUBTFUL.replace("lead.employees >= 200", "lead.employees >= 200 && false"))
    assert first in told
    assert len(set(told)) == 2
    twice = prints(f"# meant: dead-end\n\n# meant: dead-end\n{SALES}")  # the same words, two places
    assert len(set(twice)) == len(twice) == 2


def test_days() -> None:
    assert days_in("90d") == 90
    for wrong in ("", "90", "d", "0d", "1.5d", "12345d", "2w"):
        with pytest.raises(ValueError, match="number of days"):
            days_in(wrong)
