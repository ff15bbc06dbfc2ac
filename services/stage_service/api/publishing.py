"""Publishing playbooks for people: read, compared with what is active, published, scheduled, rolled back.

The routes and the page do it here, so that both refuse the same. Who has looked at another version than the
active one is refused: nobody overwrites what they have not seen.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from services.contracts.audit import Actor
from services.contracts.yaml_source import Problem, SourceError, nearest
from services.stage_service.api.access import House
from services.stage_service.api.playbook_answers import diff_shown, problems_shown
from services.stage_service.errors import (
    InvalidRequestError,
    NotFoundError,
    PlaybookChangedError,
    PreconditionRequiredError,
)
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_diff import Diff, diff
from services.stage_service.playbook_findings import findings
from services.stage_service.playbook_impact import Impact
from services.stage_service.playbook_succession import following, succession
from services.stage_service.prospects import Prospect
from services.stage_service.reads_impact import impact_of
from services.stage_service.versions import Publication, Scheduled, Version

PROBLEMS_MAX = 100
RESERVED = ("scheduled", "validate", "diff", "simulate", "simulations")
"""Names that addresses under ``/v1/playbooks/`` have already."""
AT_ONCE_S = 60
"""So much may a time to publish at be past, and is now: two clocks differ, and a form takes a moment."""
_ETAG = re.compile(r'(W/)?"([^"]*)"')
_VERSION = re.compile(r"([1-9][0-9]{0,8})(\.yaml)?")


class Wish(NamedTuple):
    """How something is to be published: by whom, why, on which versions (None: any), when (None: now)."""

    author: str
    message: str
    expected: Collection[int] | None
    activate_at: datetime | None = None
    migrate: Mapping[str, str] | None = None
    key_id: str | None = None
    id: str | None = None
    """What it is to be scheduled under, if at a time; None: a new one."""
    at_field: str = "activate_at"
    """What the time is called where it was asked for."""

    @property
    def by(self) -> Actor:
        """Give who the audit names."""
        return Actor(self.author, self.key_id)


class Done(NamedTuple):
    """What was published or scheduled, and what becomes of the publications that wait, where that matters."""

    made: Version | Scheduled
    warnings: list[Prospect]


def expected_in(if_match: str | None) -> Collection[int] | None:
    """Give the versions that an ``If-Match`` header names (RFC 9110, 13.1.1); None for ``*``: any.

    Weak tags match nothing, nor do such that are not ours. Raises PreconditionRequiredError without one.
    """
    if if_match is None:
        raise PreconditionRequiredError(
            "without If-Match nobody knows which version this changes", field="if-match",
            remedy="Send If-Match with the ETag of GET /v1/playbooks/{name}.",
        )  # fmt: skip
    if if_match.strip() == "*":
        return None
    tags = (m[2] for m in _ETAG.finditer(if_match) if not m[1])
    return {int(m[1]) for tag in tags if (m := _VERSION.fullmatch(tag))}


def names_tag(if_none_match: str, tag: str) -> bool:
    """Say whether an ``If-None-Match`` header names `tag`, weak or not, or any (RFC 9110, 13.1.2)."""
    return if_none_match.strip() == "*" or tag in (m[2] for m in _ETAG.finditer(if_none_match))


def scheduled_id(text: str) -> str:
    """Give the id of a scheduled publication in its canonical form. Raises NotFoundError."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise NotFoundError(
            f"there is no scheduled publication {text!r}", field="id", value=text,
            remedy="See GET /v1/playbooks/scheduled.",
        ) from None  # fmt: skip


async def read_playbook(text: str, name: str | None = None) -> Playbook:
    """Read a playbook, of the `name` if one is given. Raises InvalidRequestError with every mistake."""
    try:
        # A large file takes the YAML parser a second: others are served meanwhile.
        playbook = await asyncio.to_thread(parse_playbook, text, f"{name or 'playbook'}.yaml")
    except SourceError as error:
        raise refused(error) from None
    if name is not None and playbook.name != name:
        raise InvalidRequestError(
            f"the text is of the playbook {playbook.name!r}, the address of {name!r}", field="name",
            value=playbook.name, remedy="Send it to its own address.",
        )  # fmt: skip
    if playbook.name in RESERVED:
        raise InvalidRequestError(
            f"a playbook cannot be named {playbook.name!r}", field="name", value=playbook.name,
            remedy=f"Choose another name than {', '.join(RESERVED)}.",
        )  # fmt: skip
    return playbook


def refused(error: SourceError) -> InvalidRequestError:
    """Give what is answered to a text with mistakes: the first, and all in ``problems``."""
    first = error.problems[0]
    return InvalidRequestError(
        f"line {first.line}, column {first.column}: {first.message}", field="body",
        remedy=first.remedy, extra={"problems": problems_shown(error.problems[:PROBLEMS_MAX])},
    )  # fmt: skip


async def checked(it: House, text: str) -> dict[str, Any]:
    """Say whether `text` could be published, with every mistake and warning. Raises BusyError."""
    try:
        playbook = await read_playbook(text)
    except InvalidRequestError as error:
        own = {"rule": "playbook/invalid", "level": "error", "line": 1, "column": 1, "message": error.reason,
               "remedy": error.remedy or ""}  # fmt: skip
        return {"valid": False, "name": None, "problems": error.extra.get("problems", [own])}
    await it.lane.look_at_playbooks()
    wrong = unplaced(it, playbook)
    return {
        "valid": not wrong, "name": playbook.name,
        "problems": [*problems_shown(wrong), *await doubts(it, text, playbook)],
    }  # fmt: skip


async def doubts(it: House, text: str, playbook: Playbook) -> list[dict[str, Any]]:
    """Give the warnings of the checks of `text`, which `playbook` was read from. Raises BusyError."""
    async with it.checking.turn():
        found = await asyncio.to_thread(findings, text, playbook.name, team=it.team)
    return problems_shown(found, "warning")


async def active_of(it: House, name: str) -> Playbook | None:
    """Give the active version of the playbook `name`, which another process may have published just now."""
    await it.lane.look_at_playbooks()
    return it.playbooks.get(name)


async def known(it: House, name: str) -> Playbook:
    """Give the active version of the playbook `name`. Raises NotFoundError."""
    found = await active_of(it, name)
    if found is None:
        raise NotFoundError(
            f"there is no playbook {name!r}", field="name", value=name,
            remedy=nearest(name, it.playbooks) or "POST /v1/playbooks publishes a new one.",
        )  # fmt: skip
    return found


async def version_of(it: House, name: str, number: int) -> tuple[Version, Playbook]:
    """Give a version of the playbook `name`, as published and as read. Raises NotFoundError."""
    await known(it, name)
    shelf = it.lane.shelf
    row = await shelf.version_row(it.pool, name, number)
    return row, shelf.version(name, number)


async def differing(
    before: Playbook | None, after: Playbook, moved: Mapping[str, str] | None = None
) -> Diff:
    """Give what differs (`diff`), beside the event loop: finding the lines is reading the file again."""
    return await asyncio.to_thread(diff, before, after, moved)


async def compared(it: House, playbook: Playbook) -> Diff:
    """Give what publishing `playbook` would change."""
    return await differing(await active_of(it, playbook.name), playbook)


def gone_on(it: House, playbook: Playbook, restored: int) -> Mapping[str, str] | None:
    """Give where journeys of stages that are gone would go on by a roll back; None where nothing says it."""
    try:
        return succession(playbook, it.playbooks, restored=restored)
    except SourceError:
        return None


def unplaced(it: House, playbook: Playbook, restored: int | None = None) -> list[Problem]:
    """Give why `playbook` cannot follow the active version: homeless stages, an entry that leads nowhere."""
    try:
        succession(playbook, it.playbooks, restored=restored)
    except SourceError as error:
        return error.problems
    return []


async def impact_on(
    it: House, playbook: Playbook, moved: Mapping[str, str] | None = None
) -> Impact | None:
    """Give what publishing `playbook` means for the leads of now; None where it is a new one.

    `moved` says where the journeys of stages that are gone go on; None: as the file says. Raises BusyError
    while that is counted for somebody else.
    """
    active = await active_of(it, playbook.name)
    if active is None:
        return None
    async with it.judging.turn():
        return await impact_of(it.pool, active, playbook, it.now(), moved)


async def way_back(it: House, name: str, number: int, *, impact: bool) -> dict[str, Any]:
    """Give what rolling back to the version `number` would change, as a diff is shown.

    With `impact` also for how many. Raises NotFoundError, and BusyError as `impact_on`.
    """
    active = await known(it, name)
    _, older = await version_of(it, name, number)
    moved = gone_on(it, older, number)
    counted = await impact_on(it, older, moved) if impact else None
    changes = await differing(active, older, moved)
    warnings = await foreseen(it, older, number)
    return diff_shown(changes, counted, older, active, warnings=warnings)


async def publish(it: House, playbook: Playbook, wish: Wish) -> Done:
    """Publish `playbook` now, or have it published at a time.

    Raises PlaybookChangedError when another version is active than was expected, PlaybookUnchangedError
    when the active one has this text, InvalidRequestError when it cannot follow that one, or for a time that
    is past.
    """
    active = await active_of(it, playbook.name)
    number = active.version if active is not None else 0
    return await _publish(it, playbook, wish, _expected(playbook.name, number, wish), active, None)


async def roll_back(it: House, name: str, number: int, wish: Wish) -> Done:
    """Publish the text of an older version again, as a new one. Raises as `publish`, and NotFoundError."""
    active = await known(it, name)
    _, playbook = await version_of(it, name, number)
    expected = _expected(name, active.version, wish)
    return await _publish(it, playbook, wish, expected, active, number)


async def foreseen(it: House, playbook: Playbook, restored: int | None = None) -> list[Prospect]:
    """Give what would become of publications of its name that wait, were `playbook` published now."""
    active = await active_of(it, playbook.name)
    try:
        moved = succession(playbook, it.playbooks, restored=restored)
    except SourceError:
        return []  # it cannot be
    version = (active.version if active is not None else 0) + 1
    instead = following(playbook, active, version, moved)
    return await _of_name(it, playbook.name, instead)


async def told_of(it: House, made: Version | Scheduled) -> Done:
    """Give what was `made` with what becomes of what waits: all beside a version, else who is refused."""
    found = await _of_name(it, made.name)
    if isinstance(made, Scheduled):
        found = [p for p in found if p.reason is not None]
    return Done(made, found)


async def _of_name(it: House, name: str, instead: Playbook | None = None) -> list[Prospect]:
    found = await it.lane.shelf.prospects(it.pool, instead)
    return [p for p in found if p.scheduled.name == name]


def _expected(name: str, active: int, wish: Wish) -> int | None:
    if wish.expected is None:
        return None
    if active in wish.expected:
        return active
    raise PlaybookChangedError(
        f"version {active} of the playbook {name!r} is active, and not the one that the request expects",
        field="if-match", value=", ".join(f'"{v}"' for v in sorted(wish.expected)) or "none of ours",
        remedy="Look at what changed since, and publish on top of it.", extra={"active": active},
    )  # fmt: skip


async def _publish(
    it: House,
    playbook: Playbook,
    wish: Wish,
    expected: int | None,
    active: Playbook | None,
    restores: int | None,
) -> Done:
    shelf = it.lane.shelf
    try:
        moved = succession(playbook, it.playbooks, given=wish.migrate, restored=restores)
        changes = (await differing(active, playbook, moved)).shown()
        what = Publication(playbook, wish.author, wish.message, restores, changes, wish.migrate)
        if wish.activate_at is not None:
            planned = await _planned(it, what, expected, wish.activate_at, wish)
            if planned is not None:
                return await told_of(it, planned)
        made = await shelf.publish(
            it.pool, playbook, author=wish.author, message=wish.message, expected=expected,
            restores=restores, diff=changes, migrate=wish.migrate, by=wish.by,
        )  # fmt: skip
    except SourceError as error:
        raise refused(error) from None
    return await told_of(it, made)


async def _planned(
    it: House, what: Publication, expected: int | None, at: datetime, wish: Wish
) -> Scheduled | None:
    """Schedule `what` for the moment `at`; None: that is now. What is scheduled already is given as it is."""
    shelf, now = it.lane.shelf, it.now()
    known = await shelf.planned_like(it.pool, what, at, wish.id)
    if known is not None:
        return known
    if (now - at).total_seconds() > AT_ONCE_S:
        raise InvalidRequestError(
            f"{at.isoformat()} is past: it is {now:%Y-%m-%dT%H:%M:%SZ} here", field=wish.at_field,
            value=at.isoformat(), remedy="Leave it out to publish now, or name a moment to come.",
        )  # fmt: skip
    if at <= now:
        return None
    return await shelf.schedule(
        it.pool, what.playbook, author=wish.author, message=wish.message, activate_at=at,
        expected=expected, restores=what.restores, diff=what.diff, migrate=wish.migrate, by=wish.by,
        id=wish.id,
    )  # fmt: skip
