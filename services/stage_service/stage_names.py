"""Stage keys as they are stored, and what those are called now. Pure.

A journey's row names its stage as the version did under which it stands. After a publication that renames the
stage it does so until its lead has heard (`sweeping`): who reads meanwhile looks for it here, and is told
what the fold will make of it (`renaming`).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from services.stage_service.playbook import Playbook, Stage

VERSION_MAX = 2**31 - 1
"""No version has this number: PostgreSQL's largest int."""


class StoredName(NamedTuple):
    """Journeys stored in `stage` by a version from `since` on and before `before` stand in `now`."""

    stage: str
    since: int
    before: int
    now: str

    @property
    def is_whole(self) -> bool:
        """Say whether the key means one stage, whichever version stored it."""
        return self.since == 0 and self.before == VERSION_MAX


def stored_names(playbook: Playbook) -> list[StoredName]:
    """Give each key that a journey of `playbook` may be stored with, and what it means by which versions.

    A key that no version took away means itself. One that was, and came back, is two stages.
    """
    moved = {key for _, step in playbook.renames for key in step}
    bounds = (0, *(version for version, _ in playbook.renames), VERSION_MAX)
    found: list[StoredName] = []
    for key in (*playbook.stages, *playbook.former):
        if key not in moved:
            found.append(StoredName(key, 0, VERSION_MAX, key))
            continue
        mine: list[StoredName] = []
        for since, before in pairwise(bounds):
            now = playbook.current(key, since)
            if mine and mine[-1].now == now:
                mine[-1] = mine[-1]._replace(before=before)
            else:
                mine.append(StoredName(key, since, before, now))
        found += mine
    return found


def stored_as(playbook: Playbook, stage: str) -> list[StoredName]:
    """Give what journeys are stored with that stand in `stage` (a key of now, or an earlier one) now."""
    now = playbook.named(stage)
    return [name for name in stored_names(playbook) if name.now == now]


def as_now(playbook: Playbook | None, journey: Mapping[str, Any]) -> dict[str, Any]:
    """Give a `journey` as it is shown, with the stages that it has since the newest version."""
    since: int = journey["playbook_version"]
    if playbook is None or not playbook.renames or since >= playbook.renames[-1][0]:
        return dict(journey)
    stage = playbook.current(journey["stage"], since)
    furthest = playbook.current(journey["furthest_stage"], since)
    if stage != journey["stage"] and stage in playbook.stages:
        furthest = furthest_of(playbook, furthest, playbook.stages[stage])
    held: dict[str, Any] = {}
    for each in journey["held"]:
        to = playbook.current(each["to"], since)
        if to != stage:
            held.setdefault(to, {**each, "to": to})
    return {
        **journey, "stage": stage, "furthest_stage": furthest, "held": list(held.values()),
        "playbook_version": playbook.version,
    }  # fmt: skip


def furthest_of(playbook: Playbook, furthest: str, to: Stage) -> str:
    """Give the furthest stage of a journey that came as far as `furthest` and goes on in `to`."""
    known = playbook.stages.get(furthest)
    reached = known.path_index if known is not None and known.path_index is not None else -1
    if known is None or (to.path_index is not None and to.path_index > reached):
        return to.key
    return known.key
