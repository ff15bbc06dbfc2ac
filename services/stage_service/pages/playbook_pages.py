"""The page of a playbook: drawn, its versions in sentences, another text tried, published, turned back.

Whoever publishes here publishes on top of the version that the page showed: the form has it, as If-Match has
it over HTTP. Without a script all of it works the same.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from services.contracts.access import Principal
from services.contracts.audit import Actor
from services.contracts.problems import BatonError
from services.stage_service.api import publishing
from services.stage_service.api.access import STATUS, House, allow, house
from services.stage_service.api.playbook_answers import diff_shown, problems_shown
from services.stage_service.api.publishing import Wish
from services.stage_service.api.reads import playbook_named
from services.stage_service.errors import BusyError, InvalidRequestError
from services.stage_service.pages.rendering import PageRoute, form_of, page
from services.stage_service.playbook import Playbook
from services.stage_service.playbook_drawing import demands_told, moves_told, svg
from services.stage_service.versions import Scheduled, Version

TEXT_FORM_BYTES_MAX = 1_000_000
MESSAGE_CHARACTERS_MAX = 2000
VERSIONS_SHOWN = 50

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Reader = Annotated[Principal, Depends(allow("read"))]
Admin = Annotated[Principal, Depends(allow("admin"))]


@router.get("/playbook")
async def playbook(
    request: Request,
    who: Reader,
    playbook: str | None = None,
    back: str = "",
    live: str = "",
    planned: str = "",
) -> Response:
    """Show the active version of a playbook, and the ones before.

    `back`: what going back to that version would change; `live`, `planned`: what was just done.
    """
    it = house(request)
    await it.lane.look_at_playbooks()
    name = playbook_named(it, playbook or None).name
    shown = _Shown(done=await _done(it, name, _number(live), planned))
    try:
        way = await _way_back(it, name, _number(back)) if back else None
    except BatonError as error:
        return await _page(request, who, name, shown._replace(error=error))
    return await _page(request, who, name, shown._replace(back=way))


class _Shown(NamedTuple):
    """What a page shows beside the playbook: what was sent and came of it, what was done or refused."""

    form: dict[str, str] | None = None
    tried: dict[str, Any] | None = None
    error: BatonError | None = None
    back: dict[str, Any] | None = None
    done: str | None = None


async def _page(request: Request, who: Principal, name: str | None, shown: _Shown) -> Response:
    it = house(request)
    await it.lane.look_at_playbooks()
    chosen = playbook_named(it, name or None)
    shelf = it.lane.shelf
    versions = await shelf.versions(it.pool, chosen.name)
    planned = await shelf.still_open(it.pool)
    form = shown.form or {}
    text = form.get("text", chosen.source)
    return page(
        request, "playbook.html", _status(shown), who=who, playbook=chosen,
        playbooks=it.playbooks, drawing=svg(chosen), moves=moves_told(chosen),
        demands=demands_told, versions=versions[:VERSIONS_SHOWN],
        more=len(versions) - VERSIONS_SHOWN, scheduled=[s for s in planned if s.state == "waiting"],
        refused=[s for s in planned if s.state == "refused"],
        prospects={p.scheduled.id: p for p in await shelf.prospects(it.pool)},
        form=form, text=text, lines=text.split("\n"), tried=shown.tried, error=shown.error,
        back=shown.back, done=shown.done, json_url=f"/v1/playbooks/{chosen.name}",
    )  # fmt: skip


async def _done(it: House, name: str, live: int, planned: str) -> str | None:
    """Say what was published or scheduled just now; the address has it, so it is looked up."""
    shelf = it.lane.shelf
    if live and shelf.knows(name, live):
        row = await shelf.version_row(it.pool, name, live)
        active, when = it.playbooks[name].version, _told(row.activated_at)
        if active == live:
            return f"Version {live} of {name} is live since {when}."
        return f"Version {live} of {name} was published at {when}; now version {active} is live."
    for each in await shelf.still_open(it.pool) if planned else ():
        if each.id == planned and each.state == "waiting":
            return f"{each.name} is to be published at {_told(each.activate_at)}."
    return None


def _told(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


async def _way_back(it: House, name: str, number: int) -> dict[str, Any]:
    """Give what going back to a version would change, for how many, and why it cannot be."""
    try:
        diff = await publishing.way_back(it, name, number, impact=True)
    except BusyError as error:
        diff = await publishing.way_back(it, name, number, impact=False)
        diff["impact_lines"] = [_not_counted(error)]
    _, older = await publishing.version_of(it, name, number)
    problems = publishing.unplaced(it, older, restored=number)
    return {"version": number, "diff": diff, "problems": problems}


def _not_counted(error: BusyError) -> str:
    return f"Not counted for how many journeys: {error.reason}. Try it again in a moment."


def _status(shown: _Shown) -> int:
    if shown.error is not None:
        return STATUS.get(type(shown.error), 409)
    return 422 if shown.tried is not None and shown.tried["problems"] else 200


@router.post("/playbook/try")
async def try_text(request: Request, who: Reader) -> Response:
    """Show what a text would change, or what is wrong with it; nothing is published."""
    form = await form_of(request, TEXT_FORM_BYTES_MAX)
    tried = await _tried(house(request), form)
    return await _page(request, who, form.get("playbook"), _Shown(form, tried))


async def _tried(it: House, form: dict[str, str]) -> dict[str, Any]:
    text = form.get("text", "")
    try:
        found = await publishing.read_playbook(text)
    except InvalidRequestError as error:
        own = {"line": 1, "column": 1, "message": error.reason, "remedy": error.remedy or ""}
        return {"problems": error.extra.get("problems", [own]), "diff": None, "doubts": []}
    counted, busy, doubts = None, list[str](), list[dict[str, Any]]()
    try:  # what changes is told all the same
        counted = await publishing.impact_on(it, found)
    except BusyError as error:
        busy.append(_not_counted(error))
    try:
        doubts = await publishing.doubts(it, text, found)
    except BusyError as error:
        busy.append(f"Not checked for doubts: {error.reason}. Try it again in a moment.")
    changes = diff_shown(
        await publishing.compared(it, found), counted, found, it.playbooks.get(found.name),
        warnings=await publishing.foreseen(it, found),
    )  # fmt: skip
    changes["impact_lines"] = [*changes["impact_lines"], *busy]
    problems = problems_shown(publishing.unplaced(it, found))
    return {"problems": problems, "diff": changes, "doubts": doubts}


@router.post("/playbook/publish")
async def publish(request: Request, who: Admin) -> Response:
    """Publish a text on top of the version that the page showed, now or at a time."""
    it = house(request)
    form = await form_of(request, TEXT_FORM_BYTES_MAX)
    try:
        found = await publishing.read_playbook(form.get("text", ""))
        done = await publishing.publish(it, found, _wish(who, form, found))
    except InvalidRequestError as error:
        is_of_text = "problems" in error.extra or error.field == "at"
        tried = await _tried(it, form) if is_of_text else None
        return await _page(request, who, form.get("playbook"), _Shown(form, tried, error))
    except BatonError as error:
        return await _page(request, who, form.get("playbook"), _Shown(form, error=error))
    return _after(done.made)


def _wish(who: Principal, form: dict[str, str], found: Playbook) -> Wish:
    # Another name is a new playbook.
    seen = form.get("version", "") if found.name == form.get("playbook") else "0"
    expected = (_number(seen),) if seen == "0" or _number(seen) else ()
    at = _moment(form.get("at", ""))
    return Wish(who.name, _message(form), expected, at, key_id=who.id, at_field="at")


def _number(text: str) -> int:
    """Read the number of a version; 0 for what is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _message(form: dict[str, str]) -> str:
    return form.get("message", "").strip()[:MESSAGE_CHARACTERS_MAX]


def _moment(text: str) -> datetime | None:
    if not text.strip():
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InvalidRequestError(
            f"{text!r} is no time", field="at", value=text,
            remedy="Write it as 2026-12-01T08:00 (UTC).",
        ) from None  # fmt: skip
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@router.post("/playbook/rollback")
async def roll_back(request: Request, who: Admin) -> Response:
    """Publish the text of an older version again."""
    it = house(request)
    form = await form_of(request)
    name = form.get("playbook", "")
    to, seen = (_number(form.get(field, "")) for field in ("to", "version"))
    try:
        wish = Wish(who.name, _message(form), (seen,), key_id=who.id)
        done = await publishing.roll_back(it, name, to, wish)
    except BatonError as error:
        known = name if name in it.playbooks else None
        return await _page(request, who, known, _Shown(error=error))
    return _after(done.made)


@router.post("/playbook/scheduled/{id}/cancel")
async def cancel(request: Request, who: Admin, id: str) -> Response:
    """Call a publication off."""
    it = house(request)
    try:
        found = await it.lane.shelf.cancel(
            it.pool,
            publishing.scheduled_id(id),
            author=who.name,
            now=it.now(),
            by=Actor(who.name, who.id),
        )
    except BatonError as error:
        return await _page(request, who, None, _Shown(error=error))
    return _back_to({"playbook": found.name} if found.name in it.playbooks else {})


def _after(made: Version | Scheduled) -> Response:
    """Show the playbook again, and what was done."""
    if isinstance(made, Version):
        return _back_to({"playbook": made.name, "live": made.version})
    return _back_to({"playbook": made.name, "planned": made.id})


def _back_to(asked: dict[str, Any]) -> Response:
    query = f"?{urlencode(asked)}" if asked else ""
    return RedirectResponse(f"/playbook{query}", 303)
