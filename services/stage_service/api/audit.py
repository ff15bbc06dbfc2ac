"""``/v1/audit``: who did what, newest first; and all of it as lines, with the chain of its digests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from services.contracts.access import Principal
from services.stage_service import reads_audit
from services.stage_service.api.access import House, allow, house
from services.stage_service.api.reads import (
    SinceQuery,
    UntilQuery,
    moment_in_utc,
    required_lead_id,
)
from services.stage_service.reads_audit import NEWEST, PAGE_MAX, Wanted

NDJSON = "application/x-ndjson"
_PLAIN = r"^[^\x00]*$"

router = APIRouter(tags=["audit"])
Admin = Annotated[Principal, Depends(allow("admin"))]
Text = Annotated[str | None, Query(max_length=128, pattern=_PLAIN)]
_encode = msgspec.json.Encoder().encode


def wanted(
    actor: Text = None,
    action: Text = None,
    object: Annotated[
        str | None,
        Query(
            max_length=256, pattern=_PLAIN,
            description="a kind of object, or one: `subscription`, `person/nina`",
        ),
    ] = None,
    kind: Text = None,
    subject: Text = None,
    lead_id: Annotated[str | None, Query(max_length=64)] = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
) -> Wanted:  # fmt: skip
    """Read which entries are asked for; `actor` is a name or a key's id."""
    if object:
        kind, _, rest = object.partition("/")
        subject = rest or subject
    return Wanted(
        actor, action, kind, subject, required_lead_id(lead_id) if lead_id is not None else None,
        moment_in_utc(since, "from"), moment_in_utc(until, "to"),
    )  # fmt: skip


Asked = Annotated[Wanted, Depends(wanted)]


@router.get("/v1/audit", operation_id="list_audit")
async def list_audit(
    request: Request,
    _: Admin,
    asked: Asked,
    cursor: Annotated[int, Query(ge=1, le=NEWEST)] = NEWEST,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
) -> Response:
    """List who did what, newest first."""
    found = await reads_audit.entries(house(request).pool, asked, before=cursor, limit=limit + 1)
    more = str(found[limit - 1].id) if len(found) > limit else None
    body = _encode({"items": found[:limit], "next_cursor": more})
    return Response(body, media_type="application/json")


@router.get(
    "/v1/audit/export", operation_id="export_audit", response_class=Response,
    responses={200: {"description": "An entry a line", "content": {
        NDJSON: {"schema": {"type": "string", "description": "as the items of GET /v1/audit"}}}}},
)  # fmt: skip
async def export_audit(
    request: Request,
    _: Admin,
    asked: Asked,
    after: Annotated[int, Query(ge=0, le=NEWEST, description="id of the last entry you have")] = 0,
) -> Response:
    """Give all entries there are now, oldest first, one JSON object a line; the last line's is the newest.

    Without filters `baton audit verify --file` checks the chain of what came.
    """
    it = house(request)
    until, _digest = await reads_audit.head(it.pool)
    return StreamingResponse(_lines(it, asked, after, until), media_type=NDJSON)


async def _lines(it: House, asked: Wanted, after: int, until: int) -> AsyncIterator[bytes]:
    async for found in reads_audit.exported(it.pool, asked, after, until):
        yield b"".join(_encode(entry) + b"\n" for entry in found)
