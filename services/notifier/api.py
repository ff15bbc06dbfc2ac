"""The notifier's routes: read alerts, acknowledge them, send again what ended undelivered."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.contracts.access import Principal
from services.contracts.answers import OnceRoute, attempt_of
from services.contracts.audit import Actor, Note, record
from services.notifier import reads, store
from services.notifier.access import House, allow, house
from services.notifier.errors import ConflictError, NotFoundError, UnreadableError

PAGE_ITEMS = 50
PAGE_ITEMS_MAX = 200
READY_TIMEOUT_S = 2.0

Status = Literal["pending", "delivered", "acknowledged", "suppressed", "dead_lettered"]
Reader = Annotated[Principal, Depends(allow("read"))]
Mover = Annotated[Principal, Depends(allow("move"))]
Limit = Annotated[int, Query(ge=1, le=PAGE_ITEMS_MAX)]
# PostgreSQL's text cannot hold NUL: such a filter is refused here.
Key = Annotated[str | None, Query(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]

router = APIRouter(route_class=OnceRoute)


async def _alert(parts: House, id: UUID) -> dict[str, Any]:
    alert = await reads.get_alert(parts.pool, id)
    if alert is None:
        raise NotFoundError(
            "there is no such alert", field="id", value=str(id), remedy="List them at /v1/alerts."
        )
    return alert


@router.get("/v1/alerts")
async def list_alerts(
    request: Request,
    _: Reader,
    role: Key = None,
    person: Key = None,
    status: Status | None = None,
    lead_id: UUID | None = None,
    cursor: UUID | None = None,
    limit: Limit = PAGE_ITEMS,
) -> dict[str, Any]:
    """List alerts, newest first; `person` finds what reaches that person."""
    items, next_cursor = await reads.list_alerts(
        house(request).pool, role=role, person=person, status=status, lead_id=lead_id,
        before=cursor, limit=limit,
    )  # fmt: skip
    return {"items": items, "next_cursor": next_cursor}


@router.get("/v1/alerts/{id}")
async def get_alert(request: Request, _: Reader, id: UUID) -> dict[str, Any]:
    """Give one alert with its deliveries."""
    return await _alert(house(request), id)


@router.post("/v1/alerts/{id}/ack")
async def acknowledge(request: Request, principal: Mover, id: UUID) -> dict[str, Any]:
    """Record that the alert was seen, by whom and when; what is still to be sent is not sent."""
    parts = house(request)
    await store.acknowledge(parts.pool, id, Actor(principal.name, principal.id), parts.now())
    return await _alert(parts, id)


@router.post("/v1/alerts/{id}/retry")
async def retry(request: Request, principal: Mover, id: UUID) -> dict[str, Any]:
    """Begin anew on every channel that ended undelivered; 409 when there is none, or it was seen."""
    parts = house(request)
    alert = await _alert(parts, id)
    attempt = attempt_of(request)
    if attempt is not None and attempt.done:
        return alert
    mark = attempt.mark_done if attempt is not None else None
    if not await store.retry(
        parts.pool, id, parts.now(), parts.tries, Actor(principal.name, principal.id), mark
    ):
        raise ConflictError(
            "no channel of this alert ended undelivered, or it is acknowledged",
            field="status", value=alert["status"],
            remedy="What is pending is tried again by itself; what was seen is not sent again.",
        )  # fmt: skip
    parts.dispatcher.wake()
    return await _alert(parts, id)


@router.get("/v1/dead-letters")
async def list_dead_letters(
    request: Request,
    _: Reader,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    limit: Limit = PAGE_ITEMS,
) -> dict[str, Any]:
    """List what ended undelivered, newest first: deliveries, and messages nobody could read."""
    items, next_cursor = await reads.list_dead_letters(house(request).pool, cursor, limit)
    return {"items": items, "next_cursor": next_cursor}


@router.post("/v1/dead-letters/{id}/retry")
async def retry_message(
    request: Request, principal: Mover, id: Annotated[int, Path(ge=1, lt=2**63)]
) -> dict[str, Any]:
    """Read an unreadable message again, with what this version knows; 409 when it still cannot be.

    For a dead delivery retry its alert.
    """
    parts = house(request)
    message = await store.dead_message(parts.pool, id)
    if message is None:
        raise NotFoundError(
            "there is no such message", field="id", value=id,
            remedy="List them at /v1/dead-letters; for a delivery retry its alert.",
        )  # fmt: skip
    # Before it is read: what a person set going is known even if it ends half-way.
    asked = Note("retried", "dead_letter", str(id), None, {"topic": message.topic})
    await record(parts.pool, Actor(principal.name, principal.id), asked)
    still_dead = await parts.consumer.take([message])
    if still_dead is not None:
        raise UnreadableError(still_dead.reason, remedy="Have its sender publish it again.")
    retried_at = parts.now()
    await store.mark_retried(parts.pool, id, retried_at)
    return {"id": id, "retried_at": retried_at.isoformat()}


@router.get("/livez", include_in_schema=False)
async def live() -> PlainTextResponse:
    """Say that the process answers."""
    return PlainTextResponse("ok\n")


@router.get("/readyz", include_in_schema=False)
async def ready(request: Request) -> JSONResponse:
    """Say whether requests can be served: not stopping, database there, consumer's loop alive."""
    parts = house(request)
    checks = {"stopping": "ok", "database": "ok", "consumer": "ok"}
    if parts.stopping.is_set():
        checks["stopping"] = "the process is stopping"
    else:
        try:
            await parts.pool.fetchval("SELECT 1", timeout=READY_TIMEOUT_S)
        except Exception as error:  # whatever it is, the database does not answer
            checks["database"] = type(error).__name__
    if not parts.consumer.alive:
        checks["consumer"] = "the loop has ended"
    good = all(state == "ok" for state in checks.values())
    return JSONResponse({"ready": good, "checks": checks}, 200 if good else 503)


@router.get("/metrics", include_in_schema=False)
async def metrics() -> Response:
    """Give the metrics in Prometheus' text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
