"""The pages of subscriptions: their health, what became of each event, and what can be done about it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from services.contracts.access import Principal
from services.contracts.problems import BatonError
from services.stage_service.api import deliveries, subscriptions
from services.stage_service.api.access import STATUS, allow, house
from services.stage_service.api.subscription_answers import Detailed
from services.stage_service.api.subscription_bodies import Rotation
from services.stage_service.api.subscription_secrets import rotate
from services.stage_service.api.subscriptions import actor, canonical, detailed
from services.stage_service.errors import InvalidRequestError, NotFoundError
from services.stage_service.pages.rendering import PageRoute, form_of, page
from services.stage_service.subscriptions import changes, reads
from services.stage_service.subscriptions.changes import Draft
from services.stage_service.subscriptions.filters import TYPES
from services.stage_service.subscriptions.reads import Wanted
from services.stage_service.subscriptions.secrets import KEEP_S_DEFAULT, Kind
from services.stage_service.subscriptions.subscription import Payload

SUBSCRIPTIONS_A_PAGE = 100
DELIVERIES_A_PAGE = 50
STATES = ("due", "waiting", "failed", "delivered", "skipped")
STATE_WORDS = {
    "active": "on", "paused": "paused", "failing": "stopped: it failed for days",
    "gone": "ended by its endpoint (410)",
}  # fmt: skip
DELIVERY_WORDS = {
    "due": "to be tried", "waiting": "waits for an earlier one", "failed": "given up",
    "delivered": "delivered", "skipped": "skipped",
}  # fmt: skip
BADGES = {
    "active": "status-delivered", "paused": "held", "failing": "overdue", "gone": "overdue",
    "due": "waits", "waiting": "held", "failed": "overdue", "delivered": "status-delivered",
}  # fmt: skip
WORDS = {"words": STATE_WORDS, "delivery_words": DELIVERY_WORDS, "badges": BADGES}

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Admin = Annotated[Principal, Depends(allow("admin"))]


@router.get("/subscriptions")
async def overview(request: Request, who: Admin, cursor: str = "") -> Response:
    """List the subscriptions with their health, and offer to make one."""
    return await _overview(request, who, cursor)


async def _overview(
    request: Request,
    who: Principal,
    cursor: str = "",
    form: dict[str, str] | None = None,
    error: BatonError | None = None,
) -> Response:
    it = house(request)
    found = await reads.list_subscriptions(
        it.pool, it.terms.cipher, before=_uuid(cursor), limit=SUBSCRIPTIONS_A_PAGE + 1
    )
    items, more = reads.page_of(found, SUBSCRIPTIONS_A_PAGE)
    return page(
        request, "subscriptions.html", _status(error), who=who, items=items, form=form or {},
        error=error, types=TYPES, team=it.team, after=cursor, first_url="/subscriptions",
        next_url=f"/subscriptions?{urlencode({'cursor': more})}" if more else None,
        json_url="/v1/subscriptions", **WORDS,
    )  # fmt: skip


@router.post("/subscriptions")
async def create(request: Request, who: Admin) -> Response:
    """Make a subscription, and show its secret, this once."""
    form = await form_of(request)
    try:
        draft = _draft(form)
        start = "beginning" if form.get("from") == "beginning" else "now"
        kind: Kind = "v1a" if form.get("signature") == "v1a" else "v1"
        made = await subscriptions.create(request, draft, start, actor(who), kind=kind)
    except BatonError as error:
        return await _overview(request, who, form=form, error=error)
    return await _one(request, who, made.id, secret=made.secrets[0].secret, status=201)


def _draft(form: dict[str, str]) -> Draft:
    name = form.get("name", "").strip()
    if not name or len(name) > 100 or not name.isprintable():
        raise InvalidRequestError(
            "a subscription has a name of at most 100 characters", field="name",
            remedy="Name the system that hears.",
        )  # fmt: skip
    header = form.get("header", "").strip()
    headers = {header: form.get("header_value", "").strip()} if header else {}
    payload: Payload = "thin" if form.get("payload") == "thin" else "full"
    types = tuple(form.get("types", "").replace(",", " ").split())
    return Draft(
        name, form.get("url", "").strip() or None, types=types, payload=payload, headers=headers,
        filter=form.get("filter", "").strip() or None, ordered="unordered" not in form,
        contact=form.get("contact") or None,
    )  # fmt: skip


@router.get("/subscriptions/{id}")
async def one(request: Request, who: Admin, id: str) -> Response:
    """Show one subscription with its deliveries."""
    return await _one(request, who, canonical(id))


async def _one(
    request: Request,
    who: Principal,
    id: str,
    *,
    secret: str | None = None,
    error: BatonError | None = None,
    status: int = 200,
) -> Response:
    it = house(request)
    query = request.query_params
    state = query.get("state") if query.get("state") in STATES else None
    lead = (query.get("lead") or "").replace("\x00", "")[:64]
    cursor = query.get("cursor", "")
    async with it.pool.acquire() as connection:
        found = await detailed(connection, it, id)
        rows = await reads.list_deliveries(
            connection, id, Wanted(state=state, lead_id=lead or None), before=_uuid(cursor),
            limit=DELIVERIES_A_PAGE + 1,
        )  # fmt: skip
    items, more = reads.page_of(rows, DELIVERIES_A_PAGE)
    asked = {k: v for k, v in (("state", state), ("lead", lead)) if v}
    here = f"/subscriptions/{id}"
    return page(
        request, "subscription.html", _status(error, status), who=who, it=found, items=items,
        secret=secret, error=error, asked=asked, states=STATES, after=cursor,
        first_url=f"{here}?{urlencode(asked)}" if asked else here,
        next_url=f"{here}?{urlencode(asked | {'cursor': more})}" if more else None,
        json_url=f"/v1/subscriptions/{id}", **WORDS,
    )  # fmt: skip


@router.post("/subscriptions/{id}/{deed}")
async def act(request: Request, who: Admin, id: str, deed: str) -> Response:
    """Pause, resume, test, rotate the secret, resend what was given up, replay, or remove."""
    id = canonical(id)
    form = await form_of(request)
    try:
        if deed == "rotate":
            asked = Rotation(signature=None, secret=None, keep_s=KEEP_S_DEFAULT)
            made = await rotate(request, id, actor(who), asked)
            return await _one(request, who, id, secret=made.secret)
        if deed not in DEEDS:
            raise NotFoundError("There is no such page.")
        where = await DEEDS[deed](request, who, id, form)
    except NotFoundError:
        raise
    except BatonError as error:
        return await _one(request, who, id, error=error)
    return RedirectResponse(where, 303)


async def _pause(request: Request, who: Principal, id: str, form: dict[str, str]) -> str:
    reason = form.get("reason", "").strip()[:200] or None
    await subscriptions.set_state(house(request), id, "paused", actor(who), reason)
    return f"/subscriptions/{id}"


async def _resume(request: Request, who: Principal, id: str, _: dict[str, str]) -> str:
    await subscriptions.set_state(house(request), id, "active", actor(who))
    return f"/subscriptions/{id}"


async def _test(request: Request, who: Principal, id: str, _: dict[str, str]) -> str:
    delivery = await deliveries.send_test(request, house(request), id, actor(who))
    return f"/subscriptions/{id}/deliveries/{delivery}"


async def _resend(request: Request, who: Principal, id: str, form: dict[str, str]) -> str:
    since = _moment(form.get("since", ""), "since")
    await deliveries.resend_range(request, house(request), id, since, None, actor(who))
    return f"/subscriptions/{id}?state=due"


async def _replay(request: Request, who: Principal, id: str, form: dict[str, str]) -> str:
    text = form.get("from", "").strip()
    start: str | int | datetime = "beginning"
    if text.isascii() and text.isdecimal() and len(text) < 19:
        start = int(text)
    elif text != "beginning":
        start = _moment(text, "from")
    await deliveries.replay(request, house(request), id, start, actor(who))
    return f"/subscriptions/{id}"


async def _remove(request: Request, who: Principal, id: str, _: dict[str, str]) -> str:
    it = house(request)
    async with it.pool.acquire() as connection, connection.transaction():
        await changes.remove(connection, id, actor(who), it.now())
    return "/subscriptions"


DEEDS: dict[str, Callable[[Request, Principal, str, dict[str, str]], Awaitable[str]]] = {
    "pause": _pause, "resume": _resume, "test": _test, "resend": _resend, "replay": _replay,
    "remove": _remove,
}  # fmt: skip
"""Each gives where to go then."""


def _moment(text: str, field: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InvalidRequestError(
            "neither a position nor a time", field=field, value=text,
            remedy="Write a position, or a time as 2026-11-24T08:00 (UTC).",
        ) from None  # fmt: skip
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@router.get("/subscriptions/{id}/deliveries/{delivery_id}")
async def delivery(request: Request, who: Admin, id: str, delivery_id: str) -> Response:
    """Show one delivery: its attempts, and the body that it delivers."""
    return await _delivery(request, who, canonical(id), delivery_id)


async def _delivery(
    request: Request, who: Principal, id: str, delivery_id: str, error: BatonError | None = None
) -> Response:
    it = house(request)
    found = await deliveries.delivery_of(it, id, delivery_id)
    async with it.pool.acquire() as connection:
        subscription: Detailed = await detailed(connection, it, id)
    body = found.body and json.dumps(found.body, indent=2, ensure_ascii=False)
    return page(
        request, "subscription_delivery.html", _status(error), who=who, it=subscription, d=found,
        body=body, error=error, json_url=f"/v1/subscriptions/{id}/deliveries/{found.id}", **WORDS,
    )  # fmt: skip


@router.post("/subscriptions/{id}/deliveries/{delivery_id}/{deed}")
async def deal_with(request: Request, who: Admin, id: str, delivery_id: str, deed: str) -> Response:
    """Resend one delivery, or skip it."""
    id = canonical(id)
    doing: Callable[..., Awaitable[Any]] | None = {
        "resend": deliveries.resend, "skip": deliveries.skip,
    }.get(deed)  # fmt: skip
    if doing is None:
        raise NotFoundError("There is no such page.")
    try:
        await doing(request, house(request), id, delivery_id, actor(who))
    except NotFoundError:
        raise
    except BatonError as error:
        return await _delivery(request, who, id, delivery_id, error)
    return RedirectResponse(f"/subscriptions/{id}/deliveries/{delivery_id}", 303)


def _status(error: BatonError | None, otherwise: int = 200) -> int:
    return otherwise if error is None else STATUS.get(type(error), 409)


def _uuid(text: str) -> str | None:
    try:
        return str(UUID(text))
    except ValueError:
        return None
