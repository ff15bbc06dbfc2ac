"""How a playbook version follows the one before, and how one playbook is entered from another. Pure.

A stage that is gone must say where its journeys go on (``migrate:``): some may come while we look, so it is
asked for whether or not any stands there. Restoring an older version turns the renames since around.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from services.contracts.yaml_source import Node, Problem, SourceError, nearest, read_yaml
from services.stage_service.playbook import Entry, Playbook, Stage


def read_migrate(node: Node | None, stages: Mapping[str, Stage]) -> dict[str, str]:
    """Read ``migrate:``: {stage that is gone: stage}, each followed to one that is there."""
    nodes = node.mapping() if node is not None else {}
    said = {key: value.text() for key, value in nodes.items()}
    found: dict[str, str] = {}
    for key, place in nodes.items():
        if key in stages:
            place.refuse(
                f"stage {key!r} is still there, so its journeys stay",
                "Leave the line out, or take the stage out of 'stages'.",
            )
            continue
        to, way = said[key], [key]
        while to in said and to not in stages and to not in way:
            way.append(to)
            to = said[to]
        if to in way:
            place.refuse(
                f"migrate goes in a circle: {' > '.join([*way, to])}", "End it in a stage."
            )
        elif to and to not in stages:
            hint = nearest(to, stages) or f"Known: {', '.join(stages)}."
            place.refuse(f"unknown stage {to!r} in {place.path}", hint)
        else:
            found[key] = to
    return found


def read_enters(node: Node | None) -> Entry | None:
    """Read ``enters:``: the playbook and the stage of it whose journeys begin one here."""
    if node is None:
        return None
    fields = node.mapping(("playbook", "stage"), ("playbook", "stage"))
    if len(fields) < 2:
        return None
    return Entry(fields["playbook"].text(), fields["stage"].text())


def following(
    playbook: Playbook, before: Playbook | None, version: int, moved: Mapping[str, str]
) -> Playbook:
    """Give `playbook` as the `version` after `before`, whose gone stages go on where `moved` says."""
    if before is None:
        return replace(playbook, version=version)
    step = {
        gone: to
        for gone, to in moved.items()
        if gone not in playbook.stages and to in playbook.stages
    }
    former = {**before.former, **before.stages}
    return replace(
        playbook,
        version=version,
        renames=(*before.renames, (version, step)) if step else before.renames,
        former={key: stage for key, stage in former.items() if key not in playbook.stages},
    )


def succession(
    playbook: Playbook,
    active: Mapping[str, Playbook],
    *,
    given: Mapping[str, str] | None = None,
    restored: int | None = None,
) -> dict[str, str]:
    """Give where journeys of gone stages go on when `playbook` follows the `active` version of its name.

    `given` adds to what the file says, `restored` is the version whose text it is. Raises SourceError with
    the place of each mistake: a gone stage of which nobody says where its journeys go, or an ``enters`` that
    leads nowhere or in a circle.
    """
    before = active.get(playbook.name)
    said = {**playbook.migrate, **(given or {})}
    problems = [
        _problem(playbook, "migrate", f"unknown stage {to!r} for {gone!r}", nearest(to, playbook.stages)
                 or f"Known: {', '.join(playbook.stages)}.")
        for gone, to in (given or {}).items() if to not in playbook.stages
    ]  # fmt: skip
    if before is not None:
        if restored is not None:
            said = {**_turned_around(playbook, before, restored), **said}
        problems += [
            _homeless(playbook, before, gone)
            for gone in before.stages
            if gone not in playbook.stages and gone not in said
        ]
    problems += _entry_problems(playbook, active)
    if problems:
        raise SourceError(problems)
    return {gone: to for gone, to in said.items() if _moves_now(playbook, before, gone)}


def _moves_now(playbook: Playbook, before: Playbook | None, gone: str) -> bool:
    """Tell whether journeys may stand in a stage that goes, or went once without saying where to."""
    if before is None or gone in playbook.stages:
        return False
    return gone in before.stages or (gone in before.former and before.current(gone) == gone)


def _turned_around(playbook: Playbook, before: Playbook, restored: int) -> dict[str, str]:
    """Give, for stages that came since `restored` by a rename alone, what they were called then."""
    became: dict[str, list[str]] = {}
    for key in playbook.stages:
        if key not in before.stages:
            became.setdefault(before.current(key, restored), []).append(key)
    return {now: was[0] for now, was in became.items() if len(was) == 1}


def _homeless(playbook: Playbook, before: Playbook, gone: str) -> Problem:
    title = before.stages[gone].title
    like = nearest(gone, playbook.stages).removeprefix("Did you mean ").rstrip("?").strip("'")
    example = like or next(
        (s.key for s in playbook.stages.values() if s.title == title), playbook.first_stage
    )
    return _problem(
        playbook, "migrate",
        f"stage {gone!r} of version {before.version} is gone, and nothing says where its journeys go on",
        f"Add a line under 'migrate', as '{gone}: {example}', or keep the stage.",
    )  # fmt: skip


def _entry_problems(playbook: Playbook, active: Mapping[str, Playbook]) -> list[Problem]:
    enters = playbook.enters
    if enters is None:
        return []
    way = [playbook.name]
    at: Entry | None = enters
    while at is not None:
        way.append(at.playbook)
        if at.playbook in way[:-1]:
            return [_problem(
                playbook, "enters", f"playbooks enter each other in a circle: {' > '.join(way)}",
                "One of them must begin by itself.",
            )]  # fmt: skip
        other = active.get(at.playbook)
        at = other.enters if other is not None else None
    other = active.get(enters.playbook)
    if other is None:
        hint = nearest(enters.playbook, active) or f"Active: {', '.join(active) or 'none'}."
        return [_problem(playbook, "enters", f"no playbook {enters.playbook!r} is active", hint)]
    if other.named(enters.stage) not in other.stages:
        hint = nearest(enters.stage, other.stages) or f"Its stages: {', '.join(other.stages)}."
        return [_problem(
            playbook, "enters", f"the playbook {other.name!r} has no stage {enters.stage!r}", hint
        )]  # fmt: skip
    return []


def _problem(playbook: Playbook, key: str, message: str, remedy: str) -> Problem:
    """Name a mistake at the line of the file's `key`, or of its stages where that is missing."""
    top = read_yaml(playbook.source, playbook.file or playbook.name)
    fields = top.mapping()
    place = fields.get(key) or fields.get("stages") or top
    return Problem(place.file, place.line, place.column, message, remedy)


def in_order(playbooks: Mapping[str, Playbook]) -> dict[str, Playbook]:
    """Give `playbooks` so that each comes after the one it is entered from, else as they are."""
    ordered: dict[str, Playbook] = {}
    while len(ordered) < len(playbooks):
        ready = {
            name: p
            for name, p in playbooks.items()
            if name not in ordered
            and (p.enters is None or p.enters.playbook in ordered or p.enters.playbook not in playbooks)
        }  # fmt: skip
        # A circle cannot be published; if one is on record all the same, its order is that of the names.
        ordered.update(ready or {n: p for n, p in sorted(playbooks.items()) if n not in ordered})
    return ordered
