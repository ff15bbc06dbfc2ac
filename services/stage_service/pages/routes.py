"""The routes of the pages: leads, one lead, alerts, and the assets."""

from __future__ import annotations

import uuid
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from services.contracts.access import Principal
from services.contracts.problems import BatonError, Defect
from services.stage_service import as_of, reads, reads_people
from services.stage_service.api.access import House, allow, house, token_of
from services.stage_service.api.merges import merge_by_hand, unmerge_by_hand
from services.stage_service.api.moves import move_by_hand
from services.stage_service.api.past import then_of
from services.stage_service.api.reads import (
    account_named,
    addresses_of,
    living_lead,
    required_lead_id,
)
from services.stage_service.as_of import Then
from services.stage_service.errors import NotFoundError, UnavailableError
from services.stage_service.pages import (
    answer_pages,
    audit_pages,
    board_page,
    funnel_page,
    handoff_pages,
    people_view,
    playbook_pages,
    quarantine_pages,
    session,
    simulation_pages,
    subscription_pages,
)
from services.stage_service.pages.alert_view import DEEDS, NotifierAwayError, act, ask
from services.stage_service.pages.lead_page import lead_page, past_lead_page
from services.stage_service.pages.looking_back import (
    LookBack,
    looked_back,
    not_known_yet,
)
from services.stage_service.pages.rendering import (
    FOREVER,
    Nowhere,
    PageRoute,
    digests,
    form_of,
    is_fragment,
    own_path,
    page,
    static_files,
)

LEADS_A_PAGE = 50
ALERT_STATUSES = ("pending", "delivered", "acknowledged", "suppressed", "dead_lettered")

Reader = Annotated[Principal, Depends(allow("read"))]
Mover = Annotated[Principal, Depends(allow("move"))]

router = APIRouter(route_class=PageRoute, include_in_schema=False)


def pages_router() -> APIRouter:
    """Give the routes of the pages; include it last."""
    whole = APIRouter(route_class=PageRoute, include_in_schema=False)
    whole.include_router(answer_pages.router)
    whole.include_router(session.router)
    counted = [Depends(handoff_pages.count_for_menu)]
    for each in (
        router, board_page.router, funnel_page.router, handoff_pages.router, quarantine_pages.router,
        people_view.router, playbook_pages.router, subscription_pages.router, simulation_pages.router,
        audit_pages.router,
    ):  # fmt: skip
        whole.include_router(each, dependencies=counted)
    whole.include_router(_nowhere)
    return whole


# Assets


@router.get("/static/{digest}/{name}")
async def static(request: Request, digest: str, name: str) -> Response:
    """Give an asset; its digest in the address lets browsers keep it for good."""
    answer = await static_files.get_response(name, request.scope)
    answer.headers["cache-control"] = FOREVER if digests.get(name) == digest else "no-store"
    answer.headers["x-content-type-options"] = "nosniff"
    return answer


# Leads


@router.get("/leads")
async def leads(
    request: Request,
    who: Reader,
    q: str = "",
    stage: str = "",
    owner: str = "",
    email: str = "",
    cursor: str = "",
) -> Response:
    """List leads, newest first."""
    it = house(request)
    addresses = addresses_of(email, it.lane.policy) if email.strip() else []
    refused = addresses if isinstance(addresses, Defect) else None
    items, more = [], None
    way, key = _stage_asked(it, stage)
    if refused is None:
        items, more = await reads.list_leads(
            it.engine, emails=[] if isinstance(addresses, Defect) else addresses,
            stage=key, playbook=way, owner=owner or None, q=q.replace("\x00", "").strip() or None,
            cursor=_uuid(cursor), limit=LEADS_A_PAGE, playbooks=it.playbooks,
        )  # fmt: skip
    of_stage = f"{way}/{key}" if way and key else stage
    also = {k: v for k, v in (("q", q), ("owner", owner), ("email", email)) if v}
    asked = also | ({"stage": of_stage} if stage else {})
    named = {k: v for k, v in (("playbook", way), ("stage", key)) if v}
    return page(
        request, "_leads.html" if is_fragment(request) else "leads.html", who=who,
        playbooks=it.playbooks, team=it.team, items=items, refused=refused, asked=asked,
        after=cursor, next_url=f"/leads?{urlencode(asked | {'cursor': more})}" if more else None,
        first_url=f"/leads?{urlencode(asked)}", json_url=f"/v1/leads?{urlencode(also | named)}",
    )  # fmt: skip


def _stage_asked(it: House, text: str) -> tuple[str | None, str | None]:
    """Give playbook and key of a stage: ``sales/mql``, or ``mql`` of the first playbook that has it."""
    way, slash, key = text.rpartition("/")
    if slash or not text:
        return way or None, key or None
    return next((p.name for p in it.playbooks.values() if text in p.stages), None), text


def _uuid(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


@router.get("/leads/{id}")
async def lead(request: Request, who: Reader, id: str, at: str = "") -> Response:
    """Show one lead: where it is, who has it, what to do next, and why it is there; or was, at a moment."""
    it = house(request)
    back = looked_back(it, at)
    if back.moment is not None:
        then = await _then(it, required_lead_id(id), back)
        if isinstance(then, str):
            return RedirectResponse(
                f"/leads/{then}?{urlencode({'at': at})}", 308, {"cache-control": "no-store"}
            )
        if isinstance(then, Then):
            return await past_lead_page(request, who, then)
        back = then
    lead_id = await living_lead(it, id)
    if lead_id != required_lead_id(id):
        # Browsers keep a 308 for good if they may, and a merge can be undone.
        return RedirectResponse(f"/leads/{lead_id}", 308, {"cache-control": "no-store"})
    return await lead_page(request, who, lead_id, back=back)


async def _then(it: House, id: str, back: LookBack) -> Then | LookBack | str:
    """Give the lead as it was, or whose part it was; or what is said of a moment before it was known."""
    assert back.moment is not None  # noqa: S101
    try:
        return await then_of(it, id, back.moment)
    except NotFoundError as error:
        if error.field != "at":
            raise
        async with it.pool.acquire() as connection:
            began = await as_of.began_at(connection, id)
        if began is None:
            raise
        return not_known_yet(back, began)


@router.post("/leads/{id}/merge")
async def merge(request: Request, who: Mover, id: str) -> Response:
    """Merge another lead with this one by hand."""
    form = await form_of(request)
    try:
        outcome = await merge_by_hand(
            house(request), who, id, form.get("lead", "").strip(), form.get("reason", "")
        )
    except BatonError as error:
        lead_id = await living_lead(house(request), id)
        return await lead_page(request, who, lead_id, {"merge": "", **form}, error)
    return RedirectResponse(f"/leads/{outcome.lead_id}", 303)


@router.post("/leads/{id}/unmerge")
async def unmerge(request: Request, who: Mover, id: str) -> Response:
    """Undo a merge by hand, and show the lead that is by itself again."""
    form = await form_of(request)
    try:
        outcome = await unmerge_by_hand(
            house(request), who, id, form.get("reason", ""), merge_id=form.get("merge_id", "")
        )
    except BatonError as error:
        lead_id = await living_lead(house(request), id)
        return await lead_page(request, who, lead_id, {"unmerge": "", **form}, error)
    return RedirectResponse(f"/leads/{outcome.lead_id}", 303)


@router.get("/accounts/{domain}")
async def account(request: Request, who: Reader, domain: str, cursor: str = "") -> Response:
    """Show one company: its leads and where they are."""
    it = house(request)
    name = account_named(domain)
    found, _ = await reads_people.list_accounts(it.engine, it.playbooks, account=name, limit=1)
    if not found:
        raise NotFoundError(f"There is no account {name}.", remedy="Look for it in the leads.")
    items, more = await reads.list_leads(
        it.engine, account=name, cursor=_uuid(cursor), limit=LEADS_A_PAGE, playbooks=it.playbooks
    )
    here = f"/accounts/{quote(name)}"
    return page(
        request, "_leads.html" if is_fragment(request) else "account.html", who=who,
        account=found[0], items=items, playbooks=it.playbooks, asked={}, after=cursor, refused=None,
        next_url=f"{here}?{urlencode({'cursor': more})}" if more else None, first_url=here,
        json_url=f"/v1/accounts/{quote(name)}",
    )  # fmt: skip


@router.post("/leads/{id}/move")
async def move(request: Request, who: Mover, id: str) -> Response:
    """Move a journey by hand, and show the lead again."""
    form = await form_of(request)
    try:
        await move_by_hand(
            house(request), who, id, form.get("to", ""), form.get("reason", ""),
            form.get("playbook") or None, form.get("key") or "main", force="force" in form,
        )  # fmt: skip
    except NotFoundError:
        raise
    except BatonError as error:
        lead_id = await living_lead(house(request), id)
        return await lead_page(request, who, lead_id, form, error)
    return RedirectResponse(f"/leads/{id}?moved={form.get('to', '')}", 303)


# Alerts


@router.get("/alerts")
async def alerts(
    request: Request, who: Reader, person: str = "", role: str = "", status: str = "",
    cursor: str = "",
) -> Response:  # fmt: skip
    """Show who was told what, and how it reached them."""
    it = house(request)
    asked = {k: v for k, v in (("person", person), ("role", role), ("status", status)) if v}
    found: dict[str, Any] = {"items": [], "next_cursor": None}
    away: str | None = None
    try:
        found = await ask(it, token_of(request), "GET", "/v1/alerts", cursor=_uuid(cursor), **asked)
    except NotifierAwayError as error:
        away = str(error)
    more = found["next_cursor"]
    return page(
        request, "alerts.html", who=who, items=found["items"], away=away, team=it.team,
        roles=_roles(it), statuses=ALERT_STATUSES, asked=asked, after=cursor,
        next_url=f"/alerts?{urlencode(asked | {'cursor': more})}" if more else None,
        first_url=f"/alerts?{urlencode(asked)}", back=_here(request), json_url=None,
        may_move=bool(who.scopes & {"move", "admin"}),
    )  # fmt: skip


def _roles(it: House) -> dict[str, str]:
    return {r.key: r.title for p in it.playbooks.values() for r in p.roles.values()}


def _here(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


@router.post("/alerts/{id}/{deed}")
async def answer_alert(request: Request, who: Mover, id: str, deed: str) -> Response:
    """Acknowledge an alert, have it sent again, snooze it for an hour, or mute its lead for its reader."""
    alert_id = _uuid(id)
    if deed not in DEEDS or alert_id is None:
        raise NotFoundError("There is no such page.")
    form = await form_of(request)
    try:
        alert = await act(house(request), token_of(request), deed, alert_id)
    except NotifierAwayError as error:
        if is_fragment(request):
            return page(request, "_notice.html", 503, text=f"Not done: {error}. Try it again.")
        raise UnavailableError(
            f"the notifier did not do it: {error}", remedy="Try it again in a moment."
        ) from error
    if is_fragment(request):
        return page(
            request, "_alert.html", alert=alert, roles=_roles(house(request)), may_move=True,
            back=own_path(form.get("back")), open=True,
        )  # fmt: skip
    return RedirectResponse(own_path(form.get("back")), 303)


# Nowhere

_nowhere = APIRouter(route_class=Nowhere, include_in_schema=False)


@_nowhere.get("/{anything:path}")
async def nowhere(anything: str) -> Response:
    """Say in the pages' look that there is no such page."""
    raise NotFoundError("There is no such page.")
