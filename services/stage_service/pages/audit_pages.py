"""The page of the audit: who did what, newest first. For admins."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from services.contracts.access import Principal
from services.contracts.problems import BatonError
from services.stage_service import reads_audit
from services.stage_service.api.access import STATUS, allow, house
from services.stage_service.api.audit import wanted
from services.stage_service.errors import InvalidRequestError, NotFoundError
from services.stage_service.pages.looking_back import day_after
from services.stage_service.pages.rendering import PageRoute, page

ENTRIES_A_PAGE = 50
FIELDS = {
    "actor": "Who", "action": "Did what", "object": "To what", "lead_id": "Lead", "from": "From",
    "to": "Until",
}  # fmt: skip
"""What the form asks, and what it is called there."""
VIA = {
    "session": "in the browser", "key": "over the API", "command": "on the command line",
    "system": "by itself", "link": "by a link", "slack": "in Slack",
}  # fmt: skip

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Admin = Annotated[Principal, Depends(allow("admin"))]


@router.get("/audit")
async def audit(request: Request, who: Admin, cursor: str = "") -> Response:
    """Show the newest entries, or those after them; a filter that cannot be read is said beside the form."""
    pool = house(request).pool
    given = {n: request.query_params.get(n, "").replace("\x00", "").strip() for n in FIELDS}
    asked = {n: v[:256] for n, v in given.items() if v}
    before = int(cursor) if cursor.isdecimal() and len(cursor) < 19 else reads_audit.NEWEST
    wish, refused = reads_audit.Wanted(), None
    try:
        wish = _wanted(asked)
    except BatonError as error:
        refused = error
    found = [] if refused else (
        await reads_audit.entries(pool, wish, before=before, limit=ENTRIES_A_PAGE + 1)
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
    as_asked = urlencode(_over_http(wish))
    return page(
        request, "audit.html", STATUS[type(refused)] if refused else 200, who=who, items=items,
        asked=asked, after=cursor, fields=FIELDS, via=VIA, refused=refused,
        known=await reads_audit.known(pool), without=_without(asked),
        next_url=f"/audit?{urlencode(asked | {'cursor': more})}" if more else None,
        first_url=f"/audit?{urlencode(asked)}", json_url=f"/v1/audit?{as_asked}",
        export_url=f"/v1/audit/export?{as_asked}",
    )  # fmt: skip


def _wanted(asked: dict[str, str]) -> reads_audit.Wanted:
    """Read which entries the form asks for. Raises InvalidRequestError."""
    lead = asked.get("lead_id")
    # The address of a lead's page is welcome too.
    id = lead.partition("?")[0].rstrip("/").rpartition("/")[2] if lead else None
    since, until = _moment(asked.get("from"), "from"), _moment(asked.get("to"), "to", end=True)
    try:
        return wanted(
            *(asked.get(n) for n in ("actor", "action", "object")),
            lead_id=id, since=since, until=until,
        )  # fmt: skip
    except NotFoundError:
        raise InvalidRequestError(
            f"“{lead}” is no id of a lead", field="lead_id", value=lead,
            remedy="A lead's page has it below Facts: Baton's id.",
        ) from None  # fmt: skip


def _over_http(wish: reads_audit.Wanted) -> dict[str, str]:
    """Give the query that asks ``/v1/audit`` for the same."""
    named = wish._asdict() | {"from": wish.since, "to": wish.until}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in named.items()
        if value is not None and name not in ("since", "until")
    }


def _moment(text: str | None, name: str, *, end: bool = False) -> datetime | None:
    """Give the moment that `name` names: a day stands for its beginning, or its `end`."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequestError(
            f"“{text}” is no time", field=name, value=text,
            remedy="Write it as 2026-01-31 or 2026-01-31T08:00, in UTC.",
        ) from None  # fmt: skip
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return day_after(moment) if end and len(text) <= len("2026-01-31") else moment


def _without(asked: dict[str, str]) -> list[tuple[str, str, str]]:
    """Give each filter as (its name, its value, the address without it)."""
    return [
        (
            FIELDS[name],
            value,
            f"/audit?{urlencode({n: v for n, v in asked.items() if n != name})}",
        )
        for name, value in asked.items()
    ]


def _changes(before: Any, after: Any) -> list[tuple[str, str | None, str | None]]:
    """Give what differs as (field, before, after)."""
    was, became = before or {}, after or {}
    return [
        (name.replace("_", " "), _shown(was, name), _shown(became, name))
        for name in dict.fromkeys((*was, *became))
        if was.get(name) != became.get(name)
    ]


def _shown(document: dict[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):  # pyright: ignore[reportUnknownVariableType]
        return ", ".join(value) or "none"  # pyright: ignore[reportUnknownArgumentType]
    return msgspec.json.encode(value).decode()
