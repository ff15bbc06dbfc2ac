"""The page of a playbook: drawn, its versions in sentences, another text tried, published, or called off.

Whoever publishes here publishes on top of the version that the page showed: the form has it, as If-Match has
it over HTTP. Without a script all of it works the same.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
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

TEXT_FORM_BYTES_MAX = 1_000_000
MESSAGE_CHARACTERS_MAX = 2000
VERSIONS_SHOWN = 50

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Reader = Annotated[Principal, Depends(allow("read"))]
Admin = Annotated[Principal, Depends(allow("admin"))]


@router.get("/playbook")
async def playbook(request: Request, who: Reader, playbook: str | None = None) -> Response:
    """Show the active version of a playbook, and the ones before."""
    return await _page(request, who, playbook)


async def _page(
    request: Request,
    who: Principal,
    name: str | None,
    form: dict[str, str] | None = None,
    tried: dict[str, Any] | None = None,
    error: BatonError | None = None,
) -> Response:
    it = house(request)
    await it.lane.look_at_playbooks()
    chosen = playbook_named(it, name or None)
    shelf = it.lane.shelf
    versions = await shelf.versions(it.pool, chosen.name)
    planned = [s for s in await shelf.scheduled(it.pool) if s.state in ("waiting", "refused")]
    text = form["text"] if form and "text" in form else chosen.source
    return page(
        request, "playbook.html", _status(error, tried), who=who, playbook=chosen,
        playbooks=it.playbooks, drawing=svg(chosen), moves=moves_told(chosen),
        demands=demands_told, versions=versions[:VERSIONS_SHOWN],
        more=len(versions) - VERSIONS_SHOWN, scheduled=planned, form=form or {}, text=text,
        lines=text.split("\n"), tried=tried, error=error, json_url=f"/v1/playbooks/{chosen.name}",
    )  # fmt: skip


def _status(error: BatonError | None, tried: dict[str, Any] | None) -> int:
    if error is not None:
        return STATUS.get(type(error), 409)
    return 422 if tried is not None and tried["problems"] else 200


@router.post("/playbook/try")
async def try_text(request: Request, who: Reader) -> Response:
    """Show what a text would change, or what is wrong with it; nothing is published."""
    form = await form_of(request, TEXT_FORM_BYTES_MAX)
    return await _page(request, who, form.get("playbook"), form, await _tried(house(request), form))


async def _tried(it: House, form: dict[str, str]) -> dict[str, Any]:
    try:
        found = await publishing.read_playbook(form.get("text", ""))
    except InvalidRequestError as error:
        own = {"line": 1, "column": 1, "message": error.reason, "remedy": error.remedy or ""}
        return {"problems": error.extra.get("problems", [own]), "diff": None}
    counted, busy = None, ()
    try:
        counted = await publishing.impact_on(it, found)
    except BusyError as error:  # what changes is told all the same
        busy = (f"Not counted for how many journeys: {error.reason}. Try it again in a moment.",)
    changes = diff_shown(
        await publishing.compared(it, found), counted, found, it.playbooks.get(found.name)
    )
    changes["impact_lines"] = [*changes["impact_lines"], *busy]
    return {"problems": problems_shown(publishing.unplaced(it, found)), "diff": changes}


@router.post("/playbook/publish")
async def publish(request: Request, who: Admin) -> Response:
    """Publish a text on top of the version that the page showed, now or at a time."""
    it = house(request)
    form = await form_of(request, TEXT_FORM_BYTES_MAX)
    try:
        found = await publishing.read_playbook(form.get("text", ""))
        await publishing.publish(it, found, _wish(who, form, found))
    except InvalidRequestError as error:
        tried = await _tried(it, form) if "problems" in error.extra else None
        return await _page(request, who, form.get("playbook"), form, tried, error)
    except BatonError as error:
        return await _page(request, who, form.get("playbook"), form, error=error)
    return _back_to(found.name)


def _wish(who: Principal, form: dict[str, str], found: Playbook) -> Wish:
    # Another name is a new playbook.
    seen = form.get("version", "") if found.name == form.get("playbook") else "0"
    expected = (int(seen),) if seen.isascii() and seen.isdecimal() and len(seen) < 10 else ()
    return Wish(who.name, _message(form), expected, _moment(form.get("at", "")), key_id=who.id)


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
    to, seen = form.get("to", ""), form.get("version", "")
    numbers = [int(t) if t.isascii() and t.isdecimal() and len(t) < 10 else 0 for t in (to, seen)]
    try:
        wish = Wish(who.name, _message(form), (numbers[1],), key_id=who.id)
        await publishing.roll_back(it, name, numbers[0], wish)
    except BatonError as error:
        known = name if name in it.playbooks else None
        return await _page(request, who, known, error=error)
    return _back_to(name)


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
        return await _page(request, who, None, error=error)
    return _back_to(found.name if found.name in it.playbooks else None)


def _back_to(name: str | None) -> Response:
    query = f"?{urlencode({'playbook': name})}" if name else ""
    return RedirectResponse(f"/playbook{query}", 303)
