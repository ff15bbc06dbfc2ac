"""Two-way with HubSpot: what a connector wrote comes back and changes nothing; news still counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest

from services.contracts.events import Message
from tests.fakes.clock import wall
from tests.fakes.crm import Fault
from tests.fakes.house import House, connected
from tests.fakes.hubspot import APP, FakeHubSpot
from tests.integration.stage import Stage, running_stage
from tests.integration.vendor import deliver, signed

SECRET = "a-secret-of-hubspots-app"
TOKEN = {"access_token": "pat-eu1-token"}


@dataclass
class Loop:
    """Baton and HubSpot, each hearing what the other tells; the dispatcher's part is done by hand."""

    stage: Stage
    crm: FakeHubSpot
    house: House
    done: int = 0

    async def say(self, type: str, id: str, **data: Any) -> dict[str, Any]:
        """Send a lead event to Baton."""
        event = {"specversion": "1.0", "id": id, "source": "/website", "type": type, "data": data}
        (result,) = await self.stage.send(event)
        return result

    async def published(self) -> list[Message]:
        """What Baton published and was not delivered yet."""
        rows = await self.stage.connection.fetch(
            "SELECT id, topic, key, headers, value FROM bus.outbox WHERE id > $1 ORDER BY id",
            self.done,
        )
        self.done = rows[-1]["id"] if rows else self.done
        return [
            Message(r["topic"], r["key"], msgspec.json.decode(r["headers"]), r["value"], r["id"])
            for r in rows
            if r["topic"] == "baton.transitions"
        ]

    async def to_hubspot(self) -> None:
        """Deliver what Baton published."""
        for message in await self.published():
            await self.house.deliver_ok(message)

    async def post(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        """Post webhook events as HubSpot does, and give Baton's answer."""
        body = json.dumps(events).encode()
        answer: httpx.Response = await deliver(self.stage, body, signed(body, secret=SECRET))
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def to_baton(self) -> dict[str, Any]:
        """Send HubSpot's webhooks to Baton."""
        return await self.post(self.crm.sent())

    async def state(self) -> dict[str, Any]:
        """All that an event may change."""
        fetch = self.stage.connection.fetch
        leads = "SELECT id::text, email, name, company, attributes FROM stage.leads ORDER BY id"
        journeys = "SELECT id::text, stage FROM stage.journeys ORDER BY id"
        transitions = "SELECT count(*) FROM stage.transitions"
        events = "SELECT type, source FROM stage.events ORDER BY recorded_at, id"
        return {
            "leads": [dict(r) for r in await fetch(leads)],
            "journeys": [dict(r) for r in await fetch(journeys)],
            "transitions": await self.stage.connection.fetchval(transitions),
            "events": [dict(r) for r in await fetch(events) if r["type"] != "crm.linked"],
        }


@pytest.fixture
def mark() -> str | None:
    """The subscription's mark; a test may set another."""
    return None


@pytest.fixture
async def loop(database_url: str, mark: str | None) -> AsyncIterator[Loop]:
    config = {"mark": mark} if mark else {}
    async with (
        FakeHubSpot(wall) as crm,
        connected(database_url, crm, "hubspot", TOKEN, base_url=crm.url, **config) as house,
        running_stage(database_url, source_secrets={"hubspot": [SECRET]}) as stage,
    ):
        yield Loop(stage, crm, house)


async def test_what_was_written_comes_back_and_changes_nothing(loop: Loop) -> None:
    result = await loop.say("demo.requested", "1", email="ada@example.com", first_name="Ada")
    await loop.to_hubspot()
    before = await loop.state()
    count = len(loop.crm.outbox)
    assert count >= 3
    answer = await loop.to_baton()
    assert answer == {
        "success": True, "applied": 0, "duplicate": 0, "quarantined": 0, "ignored": 0, "echo": count
    }  # fmt: skip
    assert await loop.state() == before
    assert await loop.published() == []
    echoes = await loop.stage.connection.fetch("SELECT source, record FROM stage.echoes")
    assert [tuple(e) for e in echoes] == [("/sources/hubspot", "contact")] * count
    assert result["lead_id"] == before["leads"][0]["id"]


async def test_a_person_at_hubspot_is_heard_about_the_same_lead(loop: Loop) -> None:
    """HubSpot names the contact by its id only; the connector told whose it is."""
    await loop.say("demo.requested", "1", email="ada@example.com")
    await loop.to_hubspot()
    await loop.to_baton()
    (id,) = loop.crm.contacts
    loop.crm.by_hand(id, jobtitle="CTO")
    answer = await loop.to_baton()
    assert (answer["applied"], answer.get("echo", 0)) == (1, 0)
    (lead,) = (await loop.state())["leads"]
    assert msgspec.json.decode(lead["attributes"])["title"] == "CTO"


async def test_hubspots_stage_is_an_event_and_the_playbook_decides(loop: Loop) -> None:
    await loop.say("demo.requested", "1", email="ada@example.com")
    await loop.to_hubspot()
    await loop.to_baton()
    (id,) = loop.crm.contacts
    loop.crm.by_hand(id, lifecyclestage="salesqualifiedlead")
    await loop.to_baton()
    assert [j["stage"] for j in (await loop.state())["journeys"]] == ["sql"]
    version = loop.crm.contacts[id]["lifecyclestage"]
    writes = len(loop.crm.writes)
    await loop.to_hubspot()
    assert [w.body["properties"].keys() - {"hubspot_owner_id"} for w in loop.crm.writes[writes:]] in (
        [], [set()],
    )  # fmt: skip
    assert loop.crm.contacts[id]["lifecyclestage"] == version
    # A stage that no rule asks for is known and moves nothing; Baton's is written at its next event.
    loop.crm.by_hand(id, lifecyclestage="customer")
    await loop.to_baton()
    assert [j["stage"] for j in (await loop.state())["journeys"]] == ["sql"]
    await loop.say("proposal.sent", "2", email="ada@example.com")
    await loop.to_hubspot()
    assert loop.crm.contacts[id]["lifecyclestage"] == "opportunity"


async def test_of_two_writers_of_an_attribute_the_later_wins(loop: Loop) -> None:
    await loop.say("demo.requested", "1", email="ada@example.com", company="Example")
    await loop.to_hubspot()
    await loop.to_baton()
    (id,) = loop.crm.contacts
    loop.crm.by_hand(id, company="Example AG")
    (late,) = loop.crm.sent()
    await loop.post([late | {"occurredAt": 1_700_000_000_000, "eventId": 1}])  # years ago
    await loop.say("content.downloaded", "2", email="ada@example.com")
    (lead,) = (await loop.state())["leads"]
    assert msgspec.json.decode(lead["attributes"])["company"] == "Example"
    await loop.post([late])
    (lead,) = (await loop.state())["leads"]
    assert msgspec.json.decode(lead["attributes"])["company"] == "Example AG"
    await loop.say("meeting.booked", "3", email="ada@example.com")
    await loop.to_hubspot()
    assert loop.crm.contacts[id]["company"] == "Example AG"


async def test_the_echo_that_comes_before_the_answer(loop: Loop) -> None:
    await loop.say("demo.requested", "1", email="ada@example.com")
    (message, *_) = await loop.published()
    loop.crm.hold = asyncio.Event()
    before = await loop.state()
    delivering = asyncio.create_task(loop.house.deliver(message))
    await loop.crm.held.wait()
    ours = loop.crm.sent()
    loop.crm.by_hand(None, email="grace@example.com", firstname="Ada")  # no less at that moment
    theirs = loop.crm.sent()
    posting = [asyncio.create_task(loop.post(events)) for events in (theirs, ours)]
    waits = """SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
               AND datname = current_database() AND query LIKE '%ended_at IS NULL AND begun_at%'"""
    while not await loop.stage.connection.fetchval(waits):
        await asyncio.sleep(0)
    loop.crm.hold.set()
    assert (await delivering).ok
    news, echo = await asyncio.gather(*posting)
    assert (news["applied"], news.get("echo", 0)) == (len(theirs), 0)
    assert (echo["applied"], echo["echo"]) == (0, len(ours))
    (ada, grace) = (await loop.state())["leads"]
    assert [ada] == before["leads"]
    assert grace["email"] == "grace@example.com"


async def test_the_echo_of_a_write_whose_answer_is_lost(loop: Loop) -> None:
    """The record's id is learned from the webhook that tells the address."""
    await loop.say("demo.requested", "1", email="ada@example.com")
    (message, *_) = await loop.published()
    loop.crm.faults.append(Fault("POST", "/crm/v3/objects/contacts/batch", lost=True))
    before = await loop.state()
    assert not (await loop.house.deliver(message)).ok
    count = len(loop.crm.outbox)
    assert (await loop.to_baton())["echo"] == count
    assert await loop.state() == before
    loop.crm.by_hand(next(iter(loop.crm.contacts)), jobtitle="CTO")
    assert (await loop.to_baton())["applied"] == 1
    assert len((await loop.state())["leads"]) == 1
    await loop.house.deliver_ok(message)
    assert len(loop.crm.contacts) == 1
    assert loop.crm.outbox == []


async def test_somebody_elses_contact_made_meanwhile_is_news(loop: Loop) -> None:
    await loop.say("demo.requested", "1", email="ada@example.com")
    await loop.to_hubspot()
    loop.crm.by_hand(None, email="grace@example.com", firstname="Ada")
    answer = await loop.to_baton()
    others = [e for e in (await loop.state())["events"] if e["source"] == "/sources/hubspot"]
    assert answer["applied"] == len(others) == 4
    assert len((await loop.state())["leads"]) == 2


async def test_an_echo_that_is_sent_again_is_the_same(loop: Loop) -> None:
    await loop.say("demo.requested", "1", email="ada@example.com")
    await loop.to_hubspot()
    events = loop.crm.sent()
    before = await loop.state()
    first = await loop.post(events)
    again = await loop.post([e | {"attemptNumber": 1} for e in events])
    assert first["echo"] == again["echo"] == len(events)
    at_once = await asyncio.gather(*(loop.post(events) for _ in range(4)))
    assert [a["echo"] for a in at_once] == [len(events)] * 4
    assert await loop.state() == before


async def test_the_same_value_set_again_by_somebody_is_news(loop: Loop) -> None:
    """One write has one echo."""
    await loop.say("demo.requested", "1", email="ada@example.com")
    await loop.to_hubspot()
    events = loop.crm.sent()
    await loop.post(events)
    stage = next(e for e in events if e.get("propertyName") == "lifecyclestage"
                 and e["propertyValue"] == "marketingqualifiedlead")  # fmt: skip
    answer = await loop.post([stage | {"eventId": 7, "changeSource": "CRM_UI", "sourceId": "1"}])
    assert (answer["applied"], answer.get("echo", 0)) == (1, 0)


async def test_another_value_is_news(loop: Loop) -> None:
    await loop.say("demo.requested", "1", email="ada@example.com")
    await loop.to_hubspot()
    event = next(e for e in loop.crm.sent() if e.get("propertyName") == "lifecyclestage")
    answer = await loop.post([event | {"propertyValue": "salesqualifiedlead"}])
    assert (answer["applied"], answer.get("echo", 0)) == (1, 0)
    assert [j["stage"] for j in (await loop.state())["journeys"]] == ["sql"]


@pytest.mark.parametrize("mark", [str(APP)])
async def test_hubspots_own_mark_is_enough(loop: Loop) -> None:
    """What the app changed is known by its id, also where nothing is remembered."""
    await loop.say("demo.requested", "1", email="ada@example.com")
    await loop.to_hubspot()
    await loop.stage.connection.execute("TRUNCATE stage.connector_writes")
    before = await loop.state()
    count = len(loop.crm.outbox)
    assert (await loop.to_baton())["echo"] == count
    assert await loop.state() == before


async def test_without_a_connector_every_delivery_is_news(loop: Loop) -> None:
    await loop.say("demo.requested", "1", email="ada@example.com")
    await loop.to_hubspot()
    await loop.stage.connection.execute(
        "UPDATE stage.subscriptions SET deleted_at = now() - interval '2 days'"
    )
    count = len(loop.crm.outbox)
    answer = await loop.to_baton()
    assert (answer["applied"], answer.get("echo", 0)) == (count, 0)


async def test_the_echoes_of_a_connector_that_is_new_are_known_at_once(loop: Loop) -> None:
    await loop.say("demo.requested", "1", email="ada@example.com")
    gone = "UPDATE stage.subscriptions SET deleted_at = now() - interval '2 days'"
    await loop.stage.connection.execute(gone)
    await loop.stage.app.state.intake._echoes.refresh(loop.stage.house.lane.submit)
    await loop.stage.connection.execute("UPDATE stage.subscriptions SET deleted_at = NULL")
    await loop.to_hubspot()
    count = len(loop.crm.outbox)
    assert (await loop.to_baton())["echo"] == count


async def test_what_a_person_sets_later_is_news_also_if_an_answer_was_lost(loop: Loop) -> None:
    """That the lost write had happened is found out an hour later: its echo was not to come until then."""
    await loop.say("demo.requested", "1", email="ada@example.com")
    (message, *_) = await loop.published()
    loop.crm.faults.append(Fault("POST", "/crm/v3/objects/contacts/batch", lost=True))
    assert not (await loop.house.deliver(message)).ok
    stage = next(e for e in loop.crm.sent() if e.get("propertyName") == "lifecyclestage"
                 and e["propertyValue"] == "marketingqualifiedlead")  # fmt: skip
    await loop.stage.connection.execute(
        "UPDATE stage.connector_writes SET begun_at = begun_at - interval '1 hour'"
    )
    await loop.house.deliver_ok(message)
    by_hand = {"eventId": 7, "changeSource": "CRM_UI", "sourceId": "1"}
    answer = await loop.post([stage | by_hand])
    assert (answer["applied"], answer.get("echo", 0)) == (1, 0)


async def test_of_two_writes_of_a_value_the_nearest_is_echoed(loop: Loop) -> None:
    """The earlier one's echo may be still to come."""
    await loop.say("demo.requested", "1", email="ada@example.com")
    await loop.to_hubspot()
    await loop.stage.connection.execute(
        """INSERT INTO stage.connector_writes (id, field, subscription_id, connector, record, record_id,
             lead_id, value_hash, creates, is_key, begun_at, ended_at)
           SELECT '00000000-0000-7000-8000-000000000000', field, subscription_id, connector, record,
             record_id, lead_id, value_hash, creates, is_key, begun_at - interval '90 s',
             ended_at - interval '90 s'
           FROM stage.connector_writes WHERE field = 'lifecyclestage'"""
    )
    await loop.to_baton()
    rows = await loop.stage.connection.fetch(
        "SELECT echoed_by FROM stage.connector_writes WHERE field = 'lifecyclestage' ORDER BY id"
    )
    assert [r["echoed_by"] for r in rows] == [[], ["hubspot"]]


async def test_somebody_elses_contact_is_news_while_an_answer_is_lost(loop: Loop) -> None:
    """What is being made is known by its address: an event that does not tell it may be anybody's."""
    await loop.say("demo.requested", "1", email="ada@example.com")
    (message, *_) = await loop.published()
    loop.crm.faults.append(Fault("POST", "/crm/v3/objects/contacts/batch", lost=True))
    assert not (await loop.house.deliver(message)).ok
    ours = loop.crm.sent()
    loop.crm.by_hand(
        None, email="grace@example.com", firstname="Ada", lifecyclestage="marketingqualifiedlead"
    )
    for event in loop.crm.sent():
        news = await loop.post([event])
        assert (news["applied"], news.get("echo", 0)) == (1, 0), event
    assert (await loop.post(ours))["echo"] == len(ours)
