"""`baton playbook validate`: the findings in files, for people, for programs (JSON), and for CI (SARIF)."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from services.contracts.roster import Roster
from services.contracts.team import Team, load_team, team_of
from services.stage_service.playbook_catalogue import CHECKS, PREFIX
from services.stage_service.playbook_findings import Finding, findings
from services.stage_service.playbook_seen import Seen
from services.stage_service.seen_lately import seen_lately

FORMATS = ("text", "json", "sarif")
LEVELS = ("warning", "error")
DOCS = "https://github.com/baton/baton/blob/main/docs/playbook.md#checks"
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_DAYS = re.compile(r"([1-9]\d{0,3})d")


def days_in(text: str) -> int:
    """Read ``90d`` as 90. Raises ValueError."""
    match = _DAYS.fullmatch(text)
    if match is None:
        raise ValueError(f"--seen {text}: write a number of days: 90d")
    return int(match[1])


async def asked_of(database_url: str, days: int) -> tuple[Seen, Team | None]:
    """Give what events of the last `days` days brought, and the roster in the database if it has one."""
    connection: Any = await asyncpg.connect(database_url)
    try:
        roster = Roster(team_of(()))
        await roster.load(connection)
        return await seen_lately(connection, days), roster.team if roster.revision else None
    finally:
        await connection.close()


def findings_of(file: Path, team: Team | None = None, seen: Seen | None = None) -> list[Finding]:
    """Give all that is found in the playbook in `file`.

    Without `team` a ``team.yaml`` beside it is the roster; raises OSError or SourceError when that
    cannot be read.
    """
    beside = file.with_name("team.yaml")
    if team is None and beside.is_file():
        team = load_team(beside)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "Give the path of a readable UTF-8 file."
        return [Finding(f"{PREFIX}unreadable", "error", str(file), 1, 1, str(error), remedy)]
    return findings(text, str(file), team=team, seen=seen)


def as_text(found: Sequence[Finding]) -> list[str]:
    """Give a line for each finding."""
    return [f"{'warning: ' if f.level == 'warning' else ''}{f}" for f in found]


def as_json(files: Sequence[Path], found: Sequence[Finding]) -> str:
    """Give the findings as JSON (``schemas/playbook-findings.schema.json``)."""
    counts = Counter(f.level for f in found)
    document = {
        "files": [str(file) for file in files],
        "errors": counts["error"],
        "warnings": counts["warning"],
        "findings": [msgspec.to_builtins(f) for f in found],
    }
    return json.dumps(document, indent=1, ensure_ascii=False)


def as_sarif(found: Sequence[Finding], root: Path) -> str:
    """Give the findings as SARIF 2.1.0 (OASIS) for code scanning, with paths from `root`."""
    ids = [f"{PREFIX}{id}" for id in CHECKS]
    times: Counter[str] = Counter()
    results: list[dict[str, Any]] = []
    for finding in found:
        print_ = _fingerprint(finding)
        times[print_] += 1
        region = {"startLine": finding.line, "startColumn": finding.column}
        place = {"artifactLocation": _artifact(finding.file, root), "region": region}
        results.append({
            "ruleId": finding.rule,
            "ruleIndex": ids.index(finding.rule),
            "level": finding.level,
            "message": {"text": f"{finding.message}. {finding.remedy}"},
            "locations": [{"physicalLocation": place}],
            "partialFingerprints": {"primaryLocationLineHash": f"{print_}:{times[print_]}"},
        })  # fmt: skip
    run = {
        "tool": {"driver": {
            "name": "Baton", "version": version("baton"), "informationUri": DOCS, "rules": _rules(),
        }},
        "columnKind": "unicodeCodePoints",
        "results": results,
    }  # fmt: skip
    document = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=1, ensure_ascii=False)


def _rules() -> list[dict[str, Any]]:
    return [
        {
            "id": f"{PREFIX}{check.id}",
            "name": check.id.title().replace("-", ""),
            "shortDescription": {"text": check.title},
            "fullDescription": {"text": f"{check.title}. {check.remedy}"},
            "help": {
                "text": f"{check.title}. {check.remedy}",
                "markdown": f"{check.title}. {check.remedy} [All checks]({DOCS})",
            },
            "helpUri": DOCS,
            "defaultConfiguration": {"level": check.level},
        }
        for check in CHECKS.values()
    ]


def _fingerprint(finding: Finding) -> str:
    """Give what stays when lines move: the message names the rule or stage that it is about."""
    told = f"{finding.rule}\n{finding.message}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _artifact(file: str, root: Path) -> dict[str, str]:
    path = Path(file).resolve()
    if path.is_relative_to(root.resolve()):
        # A URI reference: as_uri escapes what a path may hold and a URI may not.
        uri = path.as_uri().removeprefix(f"{root.resolve().as_uri()}/")
        return {"uri": uri, "uriBaseId": "%SRCROOT%"}
    return {"uri": path.as_uri()}
