"""What is wrong or doubtful in a playbook: errors, which are refused, and warnings, which are told. Pure.

A finding names its check (``playbook/dead-end``), which stays the same for ever, so that programs can keep
track of it. A warning stops nothing: a playbook that a service ran with yesterday starts it today. What
somebody has looked at and wants so is marked ``# meant: dead-end`` on its line or the line above.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from services.contracts.team import Team
from services.contracts.yaml_source import Problem, SourceError, nearest
from services.stage_service.playbook import parse_playbook
from services.stage_service.playbook_catalogue import CHECKS, PREFIX
from services.stage_service.playbook_duties import check_duties, check_people
from services.stage_service.playbook_people import check_strangers
from services.stage_service.playbook_places import Places
from services.stage_service.playbook_rules import check_rules
from services.stage_service.playbook_seen import Seen, check_labels, check_seen

Level = Literal["error", "warning"]
_MEANT = re.compile(r"(?:^|\s)#\s*meant:\s*([\w/-]+(?:\s*,\s*[\w/-]+)*)")


class Finding(msgspec.Struct, frozen=True):
    """One thing found: by which check, where (line and column from 1), what, and what to do about it."""

    rule: str
    level: Level
    file: str
    line: int
    column: int
    message: str
    remedy: str

    def __str__(self) -> str:
        """Give ``file:line:column: message. Remedy [check]``, as editors and terminals link it."""
        place = f"{self.file}:{self.line}:{self.column}"
        return f"{place}: {self.message}. {self.remedy} [{self.rule}]"


def findings(
    text: str, file: str, *, team: Team | None = None, seen: Seen | None = None
) -> list[Finding]:
    """Give all that is found in a playbook's text, in the order of its lines; `file` names it in them.

    A playbook that is refused has errors only, since the rest cannot be judged. With `team`, people
    are checked too; with `seen`, whether events bring what it counts on. Never raises.
    """
    try:
        playbook = parse_playbook(text, file)
    except SourceError as error:
        return [_finding(problem, "error") for problem in error.problems]
    places = Places(text, file)
    check_rules(playbook, places)
    check_duties(playbook, places)
    check_labels(playbook, seen, places)
    if seen is not None:
        check_seen(playbook, seen, places)
    if team is not None:
        check_people(playbook, team, places)
        check_strangers(team, places)
    told = places.problems
    meant = _meant(text, file)
    told += _needless(meant, told)
    asked = {(mark.line, mark.rule) for mark in meant}
    found = [_finding(p, "warning") for p in told if not _is_meant(p, asked)]
    return sorted(found, key=lambda f: (f.line, f.column, f.rule))


def _finding(problem: Problem, level: Level) -> Finding:
    rule = f"{PREFIX}{problem.rule}"
    return Finding(
        rule, level, problem.file, problem.line, problem.column, problem.message, problem.remedy
    )


def _meant(text: str, file: str) -> list[Problem]:
    """Give each check that a comment says is meant, where it says so."""
    found: list[Problem] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _MEANT.search(line)
        if match is not None:
            column = line.index("#", match.start()) + 1
            names = (word.strip().removeprefix(PREFIX) for word in match[1].split(","))
            found += [Problem(file, number, column, "", "", name) for name in names]
    return found


def _is_meant(problem: Problem, asked: Iterable[tuple[int, str]]) -> bool:
    return any((line, problem.rule) in asked for line in (problem.line, problem.line - 1))


def _needless(kept: list[Problem], told: list[Problem]) -> list[Problem]:
    """Give the marks that name no check, and those of checks that find nothing there."""
    found: list[Problem] = []
    for mark in kept:
        warnings = [c.id for c in CHECKS.values() if c.level == "warning"]
        if mark.rule not in warnings:
            message = f"{mark.rule!r} is no check that warns"
            remedy = nearest(mark.rule, warnings) or "Correct it, or remove the comment."
        elif not any(p.rule == mark.rule and p.line in (mark.line, mark.line + 1) for p in told):
            message = f"the check {mark.rule!r} finds nothing here or on the line below"
            remedy = "Remove the comment, or move it to the place that is told."
        else:
            continue
        found.append(Problem(mark.file, mark.line, mark.column, message, remedy, "needless-meant"))
    return found
