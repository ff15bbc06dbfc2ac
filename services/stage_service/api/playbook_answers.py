"""What the routes of playbooks answer: shapes for the OpenAPI document, and how they are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from services.contracts.leads import Id, Moment
from services.contracts.yaml_source import Problem
from services.stage_service.api.shapes import Stage
from services.stage_service.playbook import Playbook
from services.stage_service.playbook_catalogue import PREFIX
from services.stage_service.playbook_diff import Change, Diff
from services.stage_service.playbook_diff_words import condition_told
from services.stage_service.playbook_findings import Finding
from services.stage_service.playbook_impact import Impact
from services.stage_service.playbook_impact_words import impact_lines, with_impact
from services.stage_service.prospects import Prospect
from services.stage_service.versions import Scheduled, Version

Name = Annotated[str, msgspec.Meta(examples=["sales"])]
Number = Annotated[int, msgspec.Meta(ge=1, examples=[3])]
PLAYBOOK_TEXT = "name: sales\ntitle: Sales\n"
"""How a playbook begins."""


class Gate(msgspec.Struct):
    """What a stage demands on entry."""

    require: list[str]
    reason: bool | str | None


class PlaybookStage(msgspec.Struct):
    """A stage as the playbook has it."""

    key: Stage
    title: str
    band: str
    kind: str
    focus: str
    goal: str
    responsible: list[str]
    alerts: list[str]
    guidance: list[str]
    next_steps: list[str]
    gate: Gate


class PlaybookShown(msgspec.Struct):
    """An active playbook."""

    name: str
    title: str
    version: int
    digest: str
    path: list[Stage]
    stages: list[PlaybookStage]


class WaitingShown(msgspec.Struct):
    """What becomes of a publication that waits, after what was done: it takes its place, or is refused."""

    scheduled: Id
    name: Name
    author: str
    activate_at: Moment
    refused: bool
    reason: Annotated[str | None, msgspec.Meta(description="why it will be refused")]
    message: str
    remedy: str


class DiffShown(msgspec.Struct):
    """What differs: `summary` in a sentence, each change in one of its own."""

    playbook: Name
    before_version: int | None
    after_version: int
    summary: str
    moves: Annotated[
        bool, msgspec.Meta(description="whether a change can change where journeys go")
    ]
    same_text: bool
    changes: list[Change]


class DiffWithImpact(DiffShown):
    """What differs, and what it means for the journeys of now, where that was asked for."""

    impact: Impact | None
    impact_lines: list[str]
    simulate: Annotated[str, msgspec.Meta(description="the command that folds history under it")]
    warnings: Annotated[
        list[WaitingShown],
        msgspec.Meta(
            description="what becomes of what waits to be published, were it published now"
        ),
    ]


class RuleShown(msgspec.Struct, rename={"from_": "from"}):
    """A rule as the playbook has it."""

    key: str
    from_: list[Stage]
    to: Stage
    on: list[str] | None
    when: str | None
    because: str
    back: bool


class VersionShown(msgspec.Struct):
    """A published version; it never changes. `author` null: a file at the start of a process."""

    name: Name
    version: Number
    digest: str
    author: str | None
    message: str | None
    diff: DiffShown | None
    published_at: Moment
    activated_at: Moment
    restores: Annotated[
        int | None, msgspec.Meta(description="the older version whose text it brings back")
    ]
    migrate: dict[str, str]
    active: bool


class PublishedShown(VersionShown):
    """A version that was published now, and what becomes of what waits to be published after it."""

    warnings: list[WaitingShown]


class WholePlaybook(VersionShown):
    """A version with what it says. `source` is the file, `stages` and `rules` what Baton reads in it."""

    title: str
    path: list[Stage]
    stages: list[PlaybookStage]
    rules: list[RuleShown]
    source: str


class ScheduledShown(msgspec.Struct):
    """A publication that is to happen, or what became of it."""

    id: Id
    name: Name
    digest: str
    author: str
    message: str
    diff: DiffShown | None
    migrate: dict[str, str]
    restores: int | None
    base_version: Annotated[
        int | None, msgspec.Meta(description="the version that must be active then; null: any")
    ]
    activate_at: Moment
    state: Literal["waiting", "activated", "cancelled", "refused"]
    reason: str | None
    version: int | None
    created_at: Moment
    ended_at: Moment | None
    ended_by: str | None
    open: Annotated[
        bool,
        msgspec.Meta(description="it waits, or was refused and no version was published since"),
    ]
    source: str


class JustScheduledShown(ScheduledShown):
    """A publication that was scheduled now, and which of those that wait will be refused, itself perhaps."""

    warnings: list[WaitingShown]


class ProblemShown(msgspec.Struct):
    """A mistake, or a warning, with its place in the file (from 1) and what to do."""

    rule: str
    level: Literal["error", "warning"]
    line: int
    column: int
    message: str
    remedy: str


class Checked(msgspec.Struct):
    """Whether the text is a playbook that can be published; warnings do not hinder."""

    valid: bool
    name: str | None
    problems: list[ProblemShown]


def _check(problem: Problem | Finding) -> str:
    return f"{PREFIX}{problem.rule.removeprefix(PREFIX)}"


def problems_shown(
    problems: Sequence[Problem | Finding], level: Literal["error", "warning"] = "error"
) -> Any:
    """Give problems of a file as they are answered; `rule` is the check that found each."""
    shown = [
        ProblemShown(_check(p), level, p.line, p.column, p.message, p.remedy) for p in problems
    ]
    return msgspec.to_builtins(shown)


def version_shown(version: Version, *, active: bool) -> dict[str, Any]:
    """Give a version without its text."""
    names = VersionShown.__struct_fields__
    return {n: getattr(version, n) for n in names if n != "active"} | {"active": active}


def whole_shown(version: Version, playbook: Playbook, *, active: bool) -> dict[str, Any]:
    """Give a version with what it says."""
    return version_shown(version, active=active) | {
        "title": playbook.title,
        "path": playbook.path,
        "stages": stages_shown(playbook),
        "rules": [
            {"key": r.key, "from": [s for s in playbook.stages if s in r.from_stages], "to": r.to,
             "on": sorted(r.on) if r.on is not None else None, "when": condition_told(r.when),
             "because": r.because, "back": r.back}
            for r in playbook.rules
        ],
        "source": version.source,
    }  # fmt: skip


def stages_shown(playbook: Playbook) -> list[dict[str, Any]]:
    """Give the stages as the playbook has them."""
    return [
        {"key": s.key, "title": s.title, "band": s.band, "kind": s.kind, "focus": s.focus,
         "goal": s.goal, "responsible": s.responsible, "alerts": s.alerts, "guidance": s.guidance,
         "next_steps": s.next_steps, "gate": {"require": s.gate.require, "reason": s.gate.reason}}
        for s in playbook.stages.values()
    ]  # fmt: skip


def scheduled_shown(scheduled: Scheduled) -> dict[str, Any]:
    """Give a scheduled publication, its text with it."""
    return {name: getattr(scheduled, name) for name in ScheduledShown.__struct_fields__}


def waiting_shown(prospects: Iterable[Prospect]) -> list[dict[str, Any]]:
    """Give what becomes of publications that wait."""
    return [
        {"scheduled": p.scheduled.id, "name": p.scheduled.name, "author": p.scheduled.author,
         "activate_at": p.scheduled.activate_at, "refused": p.reason is not None, "reason": p.reason,
         "message": p.told, "remedy": p.remedy}
        for p in prospects
    ]  # fmt: skip


def diff_shown(
    diff: Diff,
    impact: Impact | None,
    *playbooks: Playbook | None,
    warnings: Iterable[Prospect] = (),
) -> dict[str, Any]:
    """Give a diff, with what it means for the journeys of now where that is known.

    `playbooks` say what stages are called, the first that has one; `warnings` what becomes of what waits.
    """
    titles: dict[str, str] = {}
    for playbook in reversed(playbooks):
        titles |= {s.key: s.title for s in playbook.stages.values()} if playbook else {}
    told = with_impact(diff, impact, titles) if impact is not None else diff
    more: Mapping[str, Any] = {
        "impact": impact,
        "impact_lines": impact_lines(impact, titles) if impact is not None else [],
        "simulate": f"baton playbook simulate {diff.playbook}.yaml",
        "warnings": waiting_shown(warnings),
    }
    return {**told.shown(), **more}
