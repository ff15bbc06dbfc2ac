"""People whom a playbook names and the roster does not have: told with their place, and who may be meant."""

from __future__ import annotations

from pathlib import Path

from services.contracts.team import load_team
from services.stage_service.playbook_findings import findings

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
SALES = (PLAYBOOKS / "sales.yaml").read_text(encoding="utf-8")
TEAM = load_team(PLAYBOOKS / "team.yaml")


def told(text: str) -> list[tuple[int, str, str]]:
    """Line, message and remedy of each."""
    found = findings(text, "sales.yaml", team=TEAM)
    return [(f.line, f.message, f.remedy) for f in found if f.rule == "playbook/nobody"]


def line_of(text: str, part: str) -> int:
    """The line in which `part` first stands."""
    return text[: text.index(part)].count("\n") + 1


def test_the_playbook_that_comes_along_names_nobody_strange() -> None:
    assert told(SALES) == []


def test_a_step_to_nobody_is_told_with_who_may_be_meant() -> None:
    for slip, meant in (("elna", "elena"), ("role_laed", "role_lead"), ("stand-in", "stand_in")):
        text = SALES.replace("{after: 2h, to: role_lead}", f"{{after: 2h, to: {slip}}}", 1)
        [(line, message, remedy)] = told(text)
        assert line == line_of(text, slip)
        assert message == f"{slip!r} is nobody of the roster: sales leadership hears of it instead"
        assert remedy == f"Did you mean {meant!r}?"


def test_a_person_of_the_roster_is_no_stranger() -> None:
    assert told(SALES.replace("{after: 2h, to: role_lead}", "{after: 2h, to: elena}")) == []


def test_routing_to_nobody_is_told_too() -> None:
    text = SALES + (
        "routing:\n  ae:\n    rules:\n      - {key: big, to: {people: [elena, markus]}}\n"
        "      - {key: rest, to: everyone}\n    fallback: {person: sofja}\n"
    )
    assert [m.partition(" ")[0] for _, m, _ in told(text)] == ["'markus'", "'sofja'"]


def test_what_is_no_playbook_has_no_strangers() -> None:
    for text in ("", "[", "handoffs: 3", "clocks: [3]", "routing: {ae: {rules: 5, fallback: 6}}"):
        assert told(text) == []
