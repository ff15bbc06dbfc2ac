"""The HTTP API of Segment: its calls are lead events, its errors are what its clients read."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from services.contracts.access import create_key
from tests.integration.stage import Stage
from tests.integration.vendor import module_database, stage

__all__ = ["module_database", "stage"]


async def test_segment_calls(stage: Stage) -> None:
    """A write key by basic user name, a call that says by its path what it is, exactly 200."""
    _, key = await stage.new_key("ingest")
    auth = httpx.BasicAuth(key, "")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(stage.app), base_url=stage.url, auth=auth
    ) as client:
        call = {"userId": "u-1", "traits": {"email": "seg@example.com"}, "messageId": "sg-1"}
        answer = await client.post("/v1/identify", json=call)
        assert (answer.status_code, answer.json()) == (200, {"success": True})
        track = {"userId": "u-1", "event": "Demo Requested", "messageId": "sg-2"}
        packed = gzip.compress(json.dumps({"batch": [track | {"type": "track"}]}).encode())
        headers = {"content-encoding": "gzip", "content-type": "application/x-www-form-urlencoded"}
        answer = await client.post("/v1/batch", content=packed, headers=headers)
        assert answer.status_code == 200
        hour_slow = datetime.now(UTC) - timedelta(hours=1)
        page = {"type": "page", "messageId": "sg-3", "userId": "u-1",
                "timestamp": (hour_slow - timedelta(seconds=5)).isoformat()}  # fmt: skip
        body = {"batch": [page], "sentAt": hour_slow.isoformat()}
        assert (await client.post("/rudderstack/v1/batch", json=body)).status_code == 200
        assert (await client.get("/v1/batch")).status_code == 405
    identified = await stage.stored("/sources/segment", "sg-1")
    demo = await stage.stored("/sources/segment", "sg-2")
    viewed = await stage.stored("/sources/rudderstack", "sg-3")
    assert identified is not None
    assert identified["type"] == "lead.identified"
    assert demo is not None
    assert demo["type"] == "demo.requested"
    assert demo["lead_id"] == identified["lead_id"]
    assert viewed is not None
    # The sender's clock is an hour slow: the view was five seconds ago.
    assert timedelta(seconds=4) < viewed["recorded_at"] - viewed["time"] < timedelta(seconds=9)


@pytest.mark.parametrize("authorization", [None, "Basic ====", "Basic d3JvbmcGOg==", "Bearer x"])
async def test_segment_errors_are_what_its_clients_read(
    stage: Stage, authorization: str | None
) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(stage.app), base_url=stage.url
    ) as client:
        headers = {"authorization": authorization} if authorization else {}
        answer = await client.post("/v1/batch", json={"batch": []}, headers=headers)
    assert answer.status_code == 401
    assert {"code", "message"} <= set(answer.json())


async def test_a_key_that_is_bound_to_a_source_says_which_it_is(stage: Stage) -> None:
    """And ingests for no other one."""
    _, key = await create_key(
        stage.connection, "rudder", ["ingest"], sources=["rudderstack"], rate="3/h"
    )
    call = {"userId": "b-1", "messageId": "bound-1", "traits": {"email": "bound@example.com"}}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(stage.app), base_url=stage.url, auth=httpx.BasicAuth(key, "")
    ) as client:
        assert (await client.post("/v1/identify", json=call)).status_code == 200
        assert await stage.stored("/sources/rudderstack", "bound-1") is not None
        assert (await client.post("/segment/v1/identify", json=call)).status_code == 403
        assert (await client.post("/webhooks/generic", json=call)).status_code == 403
        limited = await client.post("/v1/identify", json=call)
    assert limited.status_code == 429
    assert limited.headers["retry-after"].isdigit()
    assert {"code", "message"} <= set(limited.json())
