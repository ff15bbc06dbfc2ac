"""Order in each lead, at size: 100,000 deliveries to 50 endpoints that fail three times in ten."""

from __future__ import annotations

import os
import random

import asyncpg
import pytest
from aiohttp import web

from tests.fakes.clock import Clock
from tests.integration.receiver import Request, receiving
from tests.integration.subscribing import Log, delivering, subscribe

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

DELIVERIES = int(os.environ.get("BATON_ORDER_DELIVERIES", "2000"))
"""100,000 in full."""
ENDPOINTS = 50
LEADS = 40
FAILS = 0.3
FASTER = 3000.0
"""The retry schedule's hours pass in seconds."""


async def test_no_inversion_within_endpoint_and_lead(database_url: str) -> None:
    """Statuses of all kinds, some of them after the event was taken: the answer got lost."""
    chance = random.Random(5)
    first_seen: dict[tuple[str, str], dict[str, int]] = {}
    requests = 0

    def react(request: Request) -> web.Response:
        nonlocal requests
        requests += 1
        failed = chance.random() < FAILS
        if not failed or chance.random() < 0.2:
            event = request.event
            key = (request.path, event["subject"])
            first_seen.setdefault(key, {}).setdefault(request.id, event["data"]["sequence"])
        if not failed:
            return web.Response()
        status = chance.choice([500, 503, 502, 429, 400, 404])
        return web.Response(status=status, headers={"retry-after": "1"} if status == 429 else None)

    connection = await asyncpg.connect(database_url)
    log = Log(connection)
    async with (
        receiving() as receiver,
        delivering(database_url, Clock(FASTER), random=chance.random),
    ):
        receiver.keep = False
        receiver.react = react
        for number in range(ENDPOINTS):
            await subscribe(connection, f"{receiver.url}/{number}")
        events = DELIVERIES // ENDPOINTS
        await log.publish(*[f"lead-{chance.randrange(LEADS)}" for _ in range(events)])
        wanted = events * ENDPOINTS

        def all_there() -> bool:
            receiver.taken.clear()
            return sum(len(ids) for ids in first_seen.values()) == wanted

        await receiver.until(all_there, f"{wanted} events", 3000)
    given_up = await connection.fetchval(
        "SELECT count(*) FROM stage.deliveries WHERE state = 'failed'"
    )
    await connection.close()
    assert given_up <= 2
    assert requests > wanted
    for (path, lead), ids in first_seen.items():
        assert list(ids.values()) == list(range(1, len(ids) + 1)), f"{path} {lead}"
        assert list(ids) == log.ids[lead]
