"""``/livez``, ``/readyz`` and ``/metrics``: for the platform, without a key."""

from __future__ import annotations

import asyncio

import asyncpg
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.stage_service.api.access import House, house
from services.stage_service.metrics import OUTBOX_PENDING, PUBLISHED_POSITION
from services.stage_service.reads import last_position

READY_WITHIN_S = 2.0
WITHOUT_DATABASE = ("/livez", "/readyz")
"""What answers before the database was there for the first time."""

router = APIRouter(tags=["operations"])


@router.get("/livez", operation_id="livez")
async def livez() -> dict[str, str]:
    """Tell that the process runs its loop."""
    return {"status": "ok"}


@router.get("/readyz", operation_id="readyz")
async def readyz(request: Request) -> JSONResponse:
    """Tell whether requests can be served: not while stopping, nor without the database."""
    if not request.app.is_open:
        return _unready(request.app.state.closed_because)
    it = house(request)
    if it.stopping.is_set():
        return JSONResponse({"status": "stopping"}, 503)
    if await _pending(it) is None:
        return _unready("the database does not answer")
    return JSONResponse({"status": "ok"})


def _unready(reason: str) -> JSONResponse:
    return JSONResponse({"status": "unavailable", "reason": reason}, 503)


@router.get("/metrics", operation_id="metrics")
async def metrics(request: Request) -> Response:
    """Give the metrics in Prometheus' text format."""
    pending = await _pending(house(request))
    if pending is not None:
        OUTBOX_PENDING.set(pending)
        PUBLISHED_POSITION.set(await last_position(house(request).engine))
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _pending(it: House) -> int | None:
    """Give how many messages wait for the relay; None when the database does not answer in time."""
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            return await it.pool.fetchval("SELECT count(*) FROM bus.pending")
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return None
