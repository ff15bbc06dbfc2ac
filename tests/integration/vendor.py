"""A vendor that delivers: a stage service that knows its secrets, and deliveries signed as HubSpot's."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from hubspot.utils.signature import Signature

from services.baton.embedded import EmbeddedPostgres
from tests.integration.stage import Stage, fresh_database, running_stage

SECRET = "a-secret-of-hubspots-app"
URL = "http://stage.test/webhooks/hubspot"
CREATED = {
    "eventId": 1, "subscriptionId": 2, "portalId": 3, "appId": 4, "occurredAt": 1782371969536,
    "subscriptionType": "contact.creation", "attemptNumber": 0, "objectId": 508369434347,
    "changeFlag": "CREATED", "changeSource": "CRM_UI", "sourceId": "userId:1",
}  # fmt: skip


@pytest.fixture(scope="module")
def module_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """One database for all deliveries of a module."""
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
async def stage(module_database: str) -> AsyncIterator[Stage]:
    """A stage service with the secrets of two sources."""
    secrets = {"hubspot": ["an-old-secret", SECRET], "generic": ["generic-secret-0123456789"]}
    async with running_stage(module_database, source_secrets=secrets) as it:
        yield it


def signed(body: bytes, *, secret: str = SECRET, at: float | None = None, url: str = URL) -> Any:
    """Headers of a HubSpot delivery, signed by HubSpot's own library."""
    timestamp = str(int((time.time() if at is None else at) * 1000))
    signature = Signature.get_signature(secret, body.decode(), "v3", url, "POST", timestamp)
    return {"x-hubspot-signature-v3": signature, "x-hubspot-request-timestamp": timestamp}


async def deliver(stage: Stage, body: bytes, headers: dict[str, str]) -> httpx.Response:
    """Post a delivery as HubSpot does: without any API key."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(stage.app, raise_app_exceptions=False), base_url=stage.url
    ) as client:
        return await client.post(
            "/webhooks/hubspot", content=body, headers={"content-type": "application/json"} | headers
        )  # fmt: skip
