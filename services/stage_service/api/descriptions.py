"""``/asyncapi.json``: what Baton publishes, for who writes a consumer."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from services.contracts.access import required
from services.contracts.answers import admitted
from services.stage_service.api.access import house, token_of
from services.stage_service.asyncapi import asyncapi


def descriptions_router(kafka_bootstrap_servers: str | None) -> APIRouter:
    """Make the route. Where Kafka is, only a key with the scope `read` is told."""
    router = APIRouter(tags=["operations"])

    @router.get("/asyncapi.json", operation_id="get_asyncapi")
    async def get_asyncapi(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Give the AsyncAPI document; with a key that has `read` it names the Kafka of this deployment."""
        servers = None
        if token_of(request) is not None:
            required(await admitted(request), "read")
            servers = kafka_bootstrap_servers
        body = msgspec.json.encode(asyncapi(house(request).public_url, servers))
        return Response(body, media_type="application/json")

    return router
