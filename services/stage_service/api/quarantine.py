"""``/v1/quarantine``: deliveries that could not be mapped; look at them, replay them, discard them."""

from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from services.contracts.access import Principal
from services.contracts.answers import OnceRoute
from services.contracts.audit import Actor
from services.contracts.bodies import RequestBody, Truth
from services.stage_service import quarantine
from services.stage_service.api.access import allow, house
from services.stage_service.errors import ConflictError, NotFoundError
from services.stage_service.intake import Intake
from services.stage_service.quarantine import PAGE_MAX, Kept
from services.stage_service.sources.mapping import Delivery

REPLAY_MAX = 1000
STATUSES = ("open", "replayed", "discarded")

router = APIRouter(tags=["quarantine"], route_class=OnceRoute)
Admin = Annotated[Principal, Depends(allow("admin"))]
_encode = msgspec.json.Encoder().encode


class ReplayWish(RequestBody):
    """Whether to apply, or only to show what would be applied."""

    dry_run: Truth = Field(True, description="true: show the events as mapped now, apply nothing")


class ReplayAllWish(ReplayWish):
    """Which deliveries."""

    source: str = Field(min_length=1, max_length=64, description="name of the source")


def _json(body: Any) -> Response:
    return Response(_encode(body), media_type="application/json")


def intake_of(request: Request) -> Intake:
    """Give the intake of the app that serves `request`."""
    return request.app.state.intake


def no_delivery(id: str) -> NotFoundError:
    """Give the error for a delivery that is not there."""
    return NotFoundError(
        f"there is no delivery {id!r} in quarantine", field="id", value=id,
        remedy="Take ids from GET /v1/quarantine.",
    )  # fmt: skip


def _id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise no_delivery(text) from None


async def kept_delivery(request: Request, id: str) -> tuple[Kept, Delivery]:
    """Give a quarantined delivery; raises NotFoundError."""
    found = await quarantine.find_kept(house(request).pool, _id(id))
    if found is None:
        raise no_delivery(id)
    return found


@router.get("/v1/quarantine", operation_id="list_quarantine")
async def list_quarantine(
    request: Request,
    _: Admin,
    source: Annotated[str | None, Query(max_length=64, pattern=r"^[^\x00]*$")] = None,
    status: Annotated[str, Query(pattern="^(open|replayed|discarded|all)$")] = "open",
    cursor: uuid.UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
) -> Response:
    """List quarantined deliveries, newest first, without their bodies."""
    items, more = await quarantine.list_kept(
        house(request).pool, source=source, status=None if status == "all" else status,
        before=str(cursor) if cursor else None, limit=limit,
    )  # fmt: skip
    return _json({"items": items, "next_cursor": more})


# Before the route of one delivery: what is not allowed here is told of this one.
@router.post("/v1/quarantine/replay", operation_id="replay_quarantine")
async def replay_all(request: Request, who: Admin, wish: ReplayAllWish) -> Response:
    """Replay the open deliveries of a source, oldest first, at most 1,000 a call."""
    pool, book = house(request).pool, intake_of(request).book
    ids = await quarantine.open_ids(pool, wish.source, REPLAY_MAX)
    if not ids and wish.source not in book.sources and wish.source not in book.refused:
        raise NotFoundError(
            f"there is no source {wish.source!r}", field="source", value=wish.source,
            remedy="Known ones: 'baton sources list'.",
        )  # fmt: skip
    by = Actor(who.name, who.id)
    items = [
        replayed
        for id in ids
        if (replayed := await _replay_open(intake_of(request), id, by, wish.dry_run))
    ]
    counts = {
        "deliveries": len(items),
        "events": sum(len(item.mapped["events"]) for item in items),
        "still_quarantined": sum(1 for item in items if item.mapped["quarantined"]),
    }
    return _json({"dry_run": wish.dry_run, "counts": counts, "items": items})


@router.get("/v1/quarantine/{id}", operation_id="get_quarantined")
async def get_quarantined(request: Request, _: Admin, id: str) -> Response:
    """Give one delivery whole: `body` as text, or `body_base64` when it is none."""
    kept, delivery = await kept_delivery(request, id)
    body = msgspec.to_builtins(kept) | {"headers": delivery.headers, "query": delivery.query}
    try:
        body["body"] = delivery.body.decode()
    except UnicodeDecodeError:
        body["body_base64"] = base64.b64encode(delivery.body).decode()
    return _json(body)


async def _replay_open(intake: Intake, id: str, by: Actor, dry_run: bool) -> Any:
    try:
        return await intake.replay(id, by, dry_run=dry_run)
    except ConflictError:  # somebody else closed it meanwhile, or its file is gone
        return None


@router.post("/v1/quarantine/{id}/replay", operation_id="replay_quarantined")
async def replay(request: Request, who: Admin, id: str, wish: ReplayWish) -> Response:
    """Map a delivery by its source file as it is now; apply it unless `dry_run`."""
    replayed = await intake_of(request).replay(
        _id(id), Actor(who.name, who.id), dry_run=wish.dry_run
    )
    if replayed is None:
        raise no_delivery(id)
    return _json(replayed)


@router.post("/v1/quarantine/{id}/discard", operation_id="discard_quarantined")
async def discard(request: Request, who: Admin, id: str) -> Response:
    """Close a delivery without applying it; it stays readable."""
    kept, _ = await kept_delivery(request, id)
    if not await quarantine.close(
        house(request).pool, kept, "discarded", Actor(who.name, who.id), datetime.now(UTC)
    ):
        raise ConflictError(f"the delivery is {kept.status} already", remedy="Nothing is to do.")
    return _json({"id": kept.id, "status": "discarded"})
