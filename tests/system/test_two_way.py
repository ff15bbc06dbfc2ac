"""The whole way round: a lead event, its transition, HubSpot by its API, HubSpot's webhook, and nothing more.

Everything runs as it does in production but for HubSpot, which is a strict fake over real HTTP that sends its
webhooks before it answers.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.fakes.clock import wall
from tests.fakes.hubspot import FakeHubSpot
from tests.integration.stage import Stage, running_stage
from tests.integration.subscribing import CIPHER_TEXT
from tests.integration.vendor import deliver, signed

SECRET = "a-secret-of-hubspots-app"
WITHIN_S = 30.0


async def subscribe(stage: Stage, crm: FakeHubSpot) -> None:
    """Make the subscription over HTTP; a mistake in it is told."""
    wish = {"name": "HubSpot", "connector": "hubspot", "config": {"base_url": crm.url},
            "credentials": {"access_token": "pat-eu1-token"}}  # fmt: skip
    wrong = await stage.client.post("/v1/subscriptions", json=wish | {"connector": "hubspt"})
    assert wrong.status_code == 422, wrong.text
    assert wrong.json()["remedy"] == "Did you mean 'hubspot'?"
    made = await stage.client.post("/v1/subscriptions", json=wish)
    assert made.status_code == 201, made.text
    await stage.app.state.intake._echoes.refresh(stage.house.lane.submit)


class World:
    """Baton and HubSpot, and HubSpot's webhooks on their way."""

    def __init__(self, stage: Stage, crm: FakeHubSpot) -> None:
        self.stage = stage
        self.crm = crm
        self.answers: list[dict[str, Any]] = []
        self._posting: set[asyncio.Task[None]] = set()
        crm.changed = self.changed

    async def changed(self) -> None:
        """HubSpot sends its webhooks at once, and does not wait for them."""
        events = self.crm.sent()
        task = asyncio.create_task(self._post(events))
        self._posting.add(task)
        task.add_done_callback(self._posting.discard)

    async def _post(self, events: list[dict[str, Any]]) -> None:
        body = json.dumps(events).encode()
        answer: httpx.Response = await deliver(self.stage, body, signed(body, secret=SECRET))
        assert answer.status_code == 200, answer.text
        self.answers.append(answer.json())

    async def until(self, condition: Callable[[], Awaitable[Any]], what: str) -> None:
        """Wait until `condition` holds, and HubSpot's webhooks are answered."""
        deadline = time.monotonic() + WITHIN_S
        while self._posting or not await condition():
            assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s: {what}"
            await asyncio.sleep(0.05)

    async def delivered(self) -> bool:
        """Whether all that was published was delivered."""
        return await self.stage.connection.fetchval(
            """SELECT coalesce((SELECT max(position) FROM bus.log), 0) > 0
                 AND (SELECT position FROM stage.subscription_cursors) = (SELECT max(position) FROM bus.log)
                 AND NOT EXISTS (SELECT FROM stage.deliveries WHERE state IN ('due', 'waiting'))
                 AND NOT EXISTS (SELECT FROM bus.pending)"""
        )

    async def counts(self) -> dict[str, int]:
        """What an echo must not add to."""
        row = await self.stage.connection.fetchrow(
            """SELECT (SELECT count(*) FROM stage.leads) AS leads,
                 (SELECT count(*) FROM stage.transitions) AS transitions,
                 (SELECT count(*) FROM stage.events WHERE source = '/sources/hubspot') AS told"""
        )
        return dict(row)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    settings: dict[str, Any] = {
        "source_secrets": {"hubspot": [SECRET]}, "encryption_key": CIPHER_TEXT,
        "subscriptions_allow": "127.0.0.0/8",
    }  # fmt: skip
    async with FakeHubSpot(wall) as crm, running_stage(database_url, **settings) as stage:
        await subscribe(stage, crm)
        yield World(stage, crm)
        assert crm.complaints == []


def said(type: str, id: str, **data: Any) -> dict[str, Any]:
    """A lead event."""
    return {"specversion": "1.0", "id": id, "source": "/website", "type": type, "data": data}


async def test_round_and_no_further(world: World) -> None:
    await world.stage.send(said("demo.requested", "1", email="ada@example.com", name="Ada Ortiz"))
    await world.until(world.delivered, "HubSpot has the lead")
    (id,) = world.crm.contacts
    assert world.crm.contacts[id]["lifecyclestage"] == "marketingqualifiedlead"
    assert await world.counts() == {"leads": 1, "transitions": 1, "told": 0}
    assert sum(a.get("echo", 0) for a in world.answers) >= 3
    assert sum(a["applied"] for a in world.answers) == 0

    # A person at HubSpot says that the lead is sales-qualified: the playbook agrees, nothing is written back.
    version = world.crm.version()
    world.crm.by_hand(id, lifecyclestage="salesqualifiedlead", jobtitle="CTO")
    await world.changed()

    async def moved() -> bool:
        return (await world.counts())["transitions"] == 2 and await world.delivered()

    await world.until(moved, "the playbook heard HubSpot")
    assert await world.counts() == {"leads": 1, "transitions": 2, "told": 2}
    assert world.crm.contacts[id]["lifecyclestage"] == "salesqualifiedlead"
    written = [w.body for w in world.crm.writes[1:]]
    assert all("lifecyclestage" not in w["properties"] for w in written)
    assert world.crm.version() - version == 2 + sum(len(w["properties"]) for w in written)


async def test_a_hundred_leads_go_round_at_once(world: World) -> None:
    """Webhooks overtake answers all the time; none of them makes a lead, or moves one."""
    events = [said("demo.requested", str(n), email=f"p{n}@example.com") for n in range(100)]
    await world.stage.send(*events)
    await world.until(world.delivered, "HubSpot has all leads")
    assert len(world.crm.contacts) == 100
    assert await world.counts() == {"leads": 100, "transitions": 100, "told": 0}
    assert sum(a["applied"] for a in world.answers) == 0
