"""The page of handoffs: what waits for whom and until when, how deadlines were kept, who has how much."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from services.contracts.access import Principal
from services.contracts.problems import BatonError
from services.stage_service import handoff_numbers, reads_handoffs
from services.stage_service.api.access import STATUS, House, allow, house, token_of
from services.stage_service.api.handoffs import Answerer, answer_handoff, cursor_of, place_of
from services.stage_service.api.reads import playbook_named
from services.stage_service.errors import InvalidRequestError, NotFoundError
from services.stage_service.pages.rendering import PageRoute, form_of, is_fragment, own_path, page
from services.stage_service.reads_handoffs import Place, Wish

HANDOFFS_A_PAGE = 50
NUMBERS_OF = timedelta(days=30)
_WITHOUT_MENU = ("/static/", "/fragments/")

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Reader = Annotated[Principal, Depends(allow("read"))]
Mover = Annotated[Principal, Depends(allow("move"))]


async def count_for_menu(request: Request) -> None:
    """Count the overdue handoffs, which the menu of every page shows."""
    shows_menu = not is_fragment(request) and not request.url.path.startswith(_WITHOUT_MENU)
    if shows_menu and token_of(request) is not None:
        request.state.overdue_handoffs = await reads_handoffs.count_overdue(
            house(request).engine, house(request).now()
        )


async def waiting_of(it: House, lead_id: str, now: datetime) -> dict[str, dict[str, Any]]:
    """Give the handoffs of a lead that wait, by the id of their journey."""
    rows, _ = await reads_handoffs.list_handoffs(
        it.engine, Wish(state="offered", lead_id=lead_id), now
    )
    items = [reads_handoffs.handoff_item(r, it.playbooks, it.team, now) for r in rows]
    return {i["journey"]["id"]: i for i in items}


@router.get("/handoffs")
async def handoffs(
    request: Request, who: Reader, role: str = "", person: str = "", overdue: str = "",
    by: str = "role", cursor: str = "",
) -> Response:  # fmt: skip
    """Show what waits, the longest first, and the numbers of the last 30 days."""
    asked = {"role": role, "person": person, "overdue": overdue, "by": by}
    return await _page(request, who, asked, cursor)


@router.post("/handoffs/{id}/{deed}")
async def answer(request: Request, who: Mover, id: str, deed: str) -> Response:
    """Accept or reject a handoff as who is logged in, and go back to where the form stood."""
    if deed not in ("accept", "reject"):
        raise NotFoundError("There is no such page.")
    form = await form_of(request)
    reason = form.get("words", "").strip() or form.get("choice", "")
    try:
        await answer_handoff(house(request), id, deed, Answerer(who.name, key_id=who.id), reason)
    except NotFoundError:
        raise
    except BatonError as error:
        return await _page(request, who, {}, "", error)
    back = own_path(form.get("back") or "/handoffs")
    return RedirectResponse(back, 303)


async def _page(
    request: Request,
    who: Principal,
    asked: dict[str, str],
    cursor: str,
    error: BatonError | None = None,
) -> Response:
    it, now = house(request), house(request).now()
    wanted = {k: v.replace("\x00", "")[:64] for k, v in asked.items() if v}
    by: handoff_numbers.By = "role"
    if wanted.get("by") in ("person", "stage"):
        by = "person" if wanted["by"] == "person" else "stage"
    wish = Wish(
        state="offered", overdue=True if "overdue" in wanted else None,
        role=wanted.get("role"), person=wanted.get("person"),
    )  # fmt: skip
    rows, more = await reads_handoffs.list_handoffs(
        it.engine, wish, now, after=_place(cursor), limit=HANDOFFS_A_PAGE
    )
    numbers = await handoff_numbers.handoff_numbers(
        it.engine, playbook_named(it, None), it.team, now, by=by, since=now - NUMBERS_OF
    )
    here = f"/handoffs?{urlencode(wanted)}"
    api = {k: v for k, v in wanted.items() if k in ("role", "person")} | {"state": "offered"}
    return page(
        request, "handoffs.html", 200 if error is None else STATUS.get(type(error), 500), who=who,
        items=[reads_handoffs.handoff_item(r, it.playbooks, it.team, now) for r in rows],
        asked=wanted, by=by, numbers=numbers, team=it.team, error=error, after=cursor,
        roles={r.key: r.title for p in it.playbooks.values() for r in p.roles.values()},
        may_move=bool(who.scopes & {"move", "admin"}), days=NUMBERS_OF.days,
        back=here, first_url=here, json_url=f"/v1/handoffs?{urlencode(api)}",
        next_url=f"/handoffs?{urlencode(wanted | {'cursor': cursor_of(more) or ''})}"
        if more else None,
    )  # fmt: skip


def _place(cursor: str) -> Place | None:
    try:
        return place_of(cursor) if cursor else None
    except InvalidRequestError:
        return None
