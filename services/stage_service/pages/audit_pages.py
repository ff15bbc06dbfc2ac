"""The page of the audit: who did what, newest first. For admins."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from services.contracts.access import Principal
from services.stage_service import reads_audit
from services.stage_service.api.access import allow, house
from services.stage_service.api.audit import wanted
from services.stage_service.pages.rendering import PageRoute, page

ENTRIES_A_PAGE = 50
NAMES = ("actor", "action", "object", "lead_id")

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Admin = Annotated[Principal, Depends(allow("admin"))]


@router.get("/audit")
async def audit(
    request: Request, who: Admin, actor: str = "", action: str = "", object: str = "",
    lead_id: str = "", cursor: str = "",
) -> Response:  # fmt: skip
    """Show the newest entries, or those after them."""
    given = dict(zip(NAMES, (actor, action, object, lead_id), strict=True))
    asked = {n: v.replace("\x00", "").strip() for n, v in given.items() if v.strip()}
    before = int(cursor) if cursor.isdecimal() and len(cursor) < 19 else reads_audit.NEWEST
    found = await reads_audit.entries(
        house(request).pool, wanted(*(asked.get(n) for n in ("actor", "action", "object")),
        lead_id=asked.get("lead_id")), before=before, limit=ENTRIES_A_PAGE + 1,
    )  # fmt: skip
    shown = found[:ENTRIES_A_PAGE]
    more = shown[-1].id if len(found) > ENTRIES_A_PAGE else None
    items = [
        {
            "entry": e,
            "changes": _changes(msgspec.json.decode(e.before), msgspec.json.decode(e.after)),
        }
        for e in shown
    ]
    return page(
        request, "audit.html", who=who, items=items, asked=asked, after=cursor,
        next_url=f"/audit?{urlencode(asked | {'cursor': more})}" if more else None,
        first_url=f"/audit?{urlencode(asked)}", json_url=f"/v1/audit?{urlencode(asked)}",
    )  # fmt: skip


def _changes(before: Any, after: Any) -> list[tuple[str, str | None, str | None]]:
    """Give what differs as (field, before, after)."""
    was, became = before or {}, after or {}
    return [
        (name, _shown(was, name), _shown(became, name))
        for name in dict.fromkeys((*was, *became))
        if was.get(name) != became.get(name)
    ]


def _shown(document: dict[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
