"""The pages of quarantine: what could not be mapped, why, and what it would be now."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from services.contracts.access import Principal
from services.contracts.audit import Actor
from services.contracts.problems import BatonError
from services.stage_service import quarantine
from services.stage_service.api.access import allow, house
from services.stage_service.api.quarantine import STATUSES, intake_of, kept_delivery
from services.stage_service.errors import ConflictError, NotFoundError
from services.stage_service.pages.rendering import PageRoute, page

DELIVERIES_A_PAGE = 50
BODY_CHARACTERS_SHOWN = 64 * 1024

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Admin = Annotated[Principal, Depends(allow("admin"))]


@router.get("/quarantine")
async def deliveries(
    request: Request, who: Admin, source: str = "", status: str = "open", cursor: str = ""
) -> Response:
    """List the deliveries that could not be mapped, newest first."""
    it = house(request)
    chosen = status if status in (*STATUSES, "all") else "open"
    items, more = await quarantine.list_kept(
        it.pool, source=source.replace("\x00", "")[:64] or None,
        status=None if chosen == "all" else chosen, before=_cursor(cursor),
        limit=DELIVERIES_A_PAGE,
    )  # fmt: skip
    asked = {k: v for k, v in (("source", source), ("status", chosen)) if v}
    return page(
        request, "quarantine.html", who=who, items=items, asked=asked, statuses=(*STATUSES, "all"),
        sources=sorted(intake_of(request).book.sources), after=cursor,
        next_url=f"/quarantine?{urlencode(asked | {'cursor': more})}" if more else None,
        first_url=f"/quarantine?{urlencode(asked)}", json_url=f"/v1/quarantine?{urlencode(asked)}",
    )  # fmt: skip


def _cursor(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


@router.get("/quarantine/{id}")
async def delivery(request: Request, who: Admin, id: str, dry: bool = False) -> Response:
    """Show one delivery; with `dry`, the events as its source file maps it now."""
    return await _delivery_page(request, who, id, dry=dry)


async def _delivery_page(
    request: Request, who: Principal, id: str, *, dry: bool = False, error: BatonError | None = None
) -> Response:
    kept, whole = await kept_delivery(request, id)
    tried: dict[str, Any] | None = None
    if dry and error is None:
        try:
            replayed = await intake_of(request).replay(
                kept.id, Actor(who.name, who.id), dry_run=True
            )
            tried = replayed.mapped if replayed else None
        except ConflictError as conflict:
            error = conflict
    text = whole.body.decode("utf-8", "replace")
    return page(
        request, "delivery.html", 200 if error is None else 409, who=who, kept=kept,
        body=_pretty(text)[:BODY_CHARACTERS_SHOWN], is_cut=len(text) > BODY_CHARACTERS_SHOWN,
        headers=whole.headers, sent_query=whole.query, tried=tried, error=error,
        data=[json.dumps(e["data"], indent=2, ensure_ascii=False) for e in tried["events"]]
        if tried else [],
        json_url=f"/v1/quarantine/{kept.id}",
    )  # fmt: skip


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


@router.post("/quarantine/{id}/{deed}")
async def deal_with(request: Request, who: Admin, id: str, deed: str) -> Response:
    """Replay a delivery (``replay``), or close it without applying it (``discard``)."""
    kept, _ = await kept_delivery(request, id)
    by = Actor(who.name, who.id)
    try:
        if deed not in ("replay", "discard"):
            raise NotFoundError("There is no such page.")
        if deed == "replay":
            await intake_of(request).replay(kept.id, by, dry_run=False)
        elif not await quarantine.close(
            house(request).pool, kept, "discarded", by, datetime.now(UTC)
        ):
            raise ConflictError(f"the delivery is {kept.status} already")
    except ConflictError as error:
        return await _delivery_page(request, who, id, error=error)
    return RedirectResponse(f"/quarantine/{kept.id}", 303)
