"""A subscription that Baton stopped: its contact hears of it, once."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import msgspec
import pytest

from services.contracts.events import (
    SUBSCRIPTION_STOPPED,
    SUBSCRIPTIONS_TOPIC,
    Message,
    message_headers,
)
from services.contracts.published import SubscriptionStopped
from services.notifier.roster import Roster
from tests.integration.test_notifier_store import Desk, ListBus

TEAM = """
people:
  - {id: ben, name: Ben Ott, roles: [ae], email: ben@baton.example, channels: [console]}
  - {id: kim, name: Kim Lead, roles: [sales_leadership], channels: [console]}
"""


@pytest.fixture
async def desk(database_url: str, tmp_path: Path) -> AsyncIterator[Desk]:
    """A notifier's parts with two people."""
    file = tmp_path / "team.yaml"
    file.write_text(TEAM)
    async with asyncpg.create_pool(database_url, min_size=1, max_size=4) as pool:
        yield Desk(pool, Roster(file))


def stopped(desk: Desk, contact: str | None, name: str = "HubSpot") -> Message:
    """A message that a subscription was stopped."""
    now = desk.clock.now()
    told = SubscriptionStopped(
        str(uuid.uuid4()),
        str(uuid.uuid4()),
        name,
        "failing",
        "answered 503",
        contact,
        now,
        now,
        now,
    )
    headers = message_headers(told.stop_id, SUBSCRIPTION_STOPPED, now, subject=told.subscription_id)
    return Message(SUBSCRIPTIONS_TOPIC, told.subscription_id, headers, msgspec.json.encode(told))


@pytest.mark.parametrize(
    ("contact", "person"), [("ben", "ben"), ("ae", "ben"), ("nobody", None), (None, None)]
)
async def test_its_contact_hears_of_it_once(
    desk: Desk, contact: str | None, person: str | None
) -> None:
    """A person's id, a role's key; whom nobody knows leadership stands in for."""
    message = stopped(desk, contact, "Hub\nSpot")
    consumer = desk.consumer(ListBus([message, message]))
    assert await consumer.run_once() == 2
    (alert,) = await desk.alerts()
    assert (alert["person"] or {}).get("id") == person
    assert alert["subject"] == "Subscription stopped: Hub Spot"
    assert "answered 503" in alert["body"]
    assert f"/subscriptions/{message.key}" in alert["body"]
    (parcel,) = await desk.claim()
    assert parcel.addressee_id == (person or "kim")
    assert (
        desk.dispatcher._letter(parcel).link == f"http://baton.example/subscriptions/{message.key}"
    )


async def test_one_that_cannot_be_read_is_a_dead_letter(desk: Desk) -> None:
    message = stopped(desk, "ben")
    broken = Message(message.topic, message.key, message.headers, b"{}")
    await desk.consumer(ListBus([broken])).run_once()
    assert await desk.alerts() == []
    assert len(await desk.dead_letters()) == 1
