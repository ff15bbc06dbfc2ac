"""What subscribers get: signed, in order, at least once, whatever either side does."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.integration.subscribing import Log, delivering, receiving, rows_of, subscribe, until_in


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[Log]:
    """The log of this test."""
    connection = await asyncpg.connect(database_url)
    yield Log(connection)
    await connection.close()


async def test_an_event_is_posted_signed_and_recorded(database_url: str, log: Log) -> None:
    async with receiving() as receiver, delivering(database_url):
        id = await subscribe(log.connection, f"{receiver.url}/hook?key=k", headers={"X-Team": "sales"})
        (sent,) = await log.publish("ada")
        await receiver.until(lambda: receiver.taken, "the event")
        (request,) = receiver.requests
        assert request.id == sent.id
        assert request.headers["x-team"] == "sales"
        assert request.headers["content-type"] == "application/cloudevents+json"
        assert request.event["data"]["sequence"] == 1
        await until_in(log.connection, "SELECT position = 1 FROM stage.subscription_cursors")
        (row,) = await rows_of(log.connection, id)
        assert row["state"] == "delivered"
        (attempt,) = row["attempts"]
        assert (attempt["status"], attempt["response"]) == (200, "thanks")
        assert "key=k" not in attempt["request"]
