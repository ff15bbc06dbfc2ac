"""The HubSpot connector against a strict HubSpot: what is written, what is not, what faults leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import aiohttp
import msgspec
import pytest

from services.baton.embedded import EmbeddedPostgres
from services.contracts.events import OWNER_CHANGED
from services.stage_service.subscriptions.connectors.calls import Calls
from tests.fakes.crm import Fault
from tests.fakes.house import House, connected, new_lead, told
from tests.fakes.hubspot import FakeHubSpot
from tests.integration.stage import fresh_database

TOKEN = {"access_token": "pat-eu1-token"}


@pytest.fixture(scope="module")
def module_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
async def house(module_database: str) -> AsyncIterator[House]:
    async with (
        FakeHubSpot() as crm,
        connected(module_database, crm, "hubspot", TOKEN, base_url=crm.url) as it,
    ):
        yield it


def hubspot(house: House) -> FakeHubSpot:
    """The fake, by its own type."""
    assert isinstance(house.crm, FakeHubSpot)
    return house.crm


def contact(house: House) -> dict[str, str]:
    """The one contact there is."""
    (found,) = hubspot(house).contacts.values()
    return found


async def test_a_new_lead_becomes_a_contact(house: House) -> None:
    outcome = await house.deliver_ok(told(new_lead(), "mql", phone="+49 30 1"))
    assert contact(house) == {
        "email": "ada@example.com", "firstname": "Ada", "lastname": "Ortiz", "phone": "+49 30 1",
        "company": "Example", "lifecyclestage": "marketingqualifiedlead",
        "hubspot_owner_id": "41629779",
    }  # fmt: skip
    assert outcome.reason is None
    assert outcome.request == "POST /crm/v3/objects/contacts/batch/upsert, 247 bytes (request 3)"


async def test_a_repeat_writes_nothing(house: House) -> None:
    message = told(new_lead())
    await house.deliver_ok(message)
    writes = len(house.crm.writes)
    house.restart()
    await house.deliver_ok(message)
    await house.deliver_ok(msg_again(message))
    assert len(house.crm.writes) == writes == 1


def msg_again(message: Any) -> Any:
    """The same event a position later, as a replay has it."""
    return msgspec.structs.replace(message, position=message.position + 1)


async def test_only_what_changed_is_written(house: House) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, "mql"))
    await house.deliver_ok(told(lead, "sql", title="CTO"))
    assert house.crm.writes[-1].body == {
        "properties": {"jobtitle": "CTO", "lifecyclestage": "salesqualifiedlead"}
    }


async def test_what_the_contact_had_stays_and_what_is_newer_is_written(house: House) -> None:
    """Attributes: the last writer; at the first meeting nobody knows who that is, and HubSpot's stays."""
    lead = new_lead()
    id = hubspot(house).by_hand(None, email="ada@example.com", company="Example Ltd")
    await house.deliver_ok(told(lead, "mql"))
    assert contact(house)["company"] == "Example Ltd"
    assert contact(house)["firstname"] == "Ada"
    await house.deliver_ok(told(lead, "sql", company="Example AG"))
    assert contact(house)["company"] == "Example AG"
    hubspot(house).by_hand(id, company="Example SE")
    await house.deliver_ok(told(lead, "proposal", company="Example AG"))
    assert contact(house)["company"] == "Example SE"


async def test_the_stage_is_batons_and_goes_back_by_being_cleared(house: House) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, "proposal"))
    hubspot(house).outbox.clear()
    await house.deliver_ok(told(lead, "mql"))
    assert contact(house)["lifecyclestage"] == "marketingqualifiedlead"
    values = [e["propertyValue"] for e in hubspot(house).outbox]
    assert values == ["", "marketingqualifiedlead"]


async def test_a_further_deal_takes_nobody_back(house: House) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, "closed_won"))
    outcome = await house.deliver_ok(told(lead, "sql", key="deal-2"))
    assert contact(house)["lifecyclestage"] == "customer"
    assert outcome.reason == "the contact is customer already, its lifecycle stage stays"


async def test_an_owner_set_in_hubspot_stays(house: House) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, owner="elena"))
    await house.deliver_ok(told(lead, None, type=OWNER_CHANGED, owner="jonas"))
    assert contact(house)["hubspot_owner_id"] == "41629780"
    hubspot(house).owners["77"] = "somebody@example.com"
    hubspot(house).by_hand(next(iter(hubspot(house).contacts)), hubspot_owner_id="77")
    await house.deliver_ok(told(lead, None, type=OWNER_CHANGED, owner="elena"))
    assert contact(house)["hubspot_owner_id"] == "77"


async def test_what_is_not_mapped_is_told_and_not_guessed(house: House) -> None:
    outcome = await house.deliver_ok(told(new_lead(), "nurture", owner="mia"))
    assert contact(house)["lifecyclestage"] == "lead"  # HubSpot's own for a new contact
    assert "hubspot_owner_id" not in contact(house)
    assert outcome.reason is not None
    assert "the stage nurture is not in config.stages" in outcome.reason
    assert "mia is no owner in HubSpot" in outcome.reason


async def test_a_lead_without_an_address_is_left_alone(house: House) -> None:
    outcome = await house.deliver_ok(told(new_lead(), email=None))
    assert outcome.reason == "the lead has no e-mail address"
    assert house.crm.requests == []


async def test_an_older_event_does_not_set_the_contact_back(house: House) -> None:
    lead = new_lead()
    first = told(lead, "mql")
    await house.deliver_ok(told(lead, "sql"))
    outcome = await house.deliver_ok(first)
    assert contact(house)["lifecyclestage"] == "salesqualifiedlead"
    assert outcome.reason == "a newer event of this lead was written already"


@pytest.mark.parametrize("step", ["batch/upsert", "PATCH"])
async def test_an_answer_that_is_lost_has_one_effect(house: House, step: str) -> None:
    lead = new_lead()
    if step == "PATCH":
        await house.deliver_ok(told(lead, "lead"))
        house.crm.faults.append(Fault("PATCH", "/crm/v3/objects/contacts/", lost=True))
    else:
        house.crm.faults.append(Fault("POST", "/crm/v3/objects/contacts/batch", lost=True))
    message = told(lead, "mql")
    outcome = await house.deliver(message)
    assert not outcome.ok
    assert outcome.down
    version = house.crm.version()
    await house.deliver_ok(message)
    assert house.crm.version() == version
    assert contact(house)["lifecyclestage"] == "marketingqualifiedlead"


@pytest.mark.parametrize(
    ("body", "headers", "after", "reason"),
    [
        ({"policyName": "TEN_SECONDLY_ROLLING"}, {"Retry-After": "7"}, 7.0, "limit of requests"),
        ({"policyName": "DAILY"}, {}, 3600.0, "limit of requests a day"),
        ({}, {}, None, "limit of requests"),
    ],
)
async def test_limits_are_waited_for(
    house: House, body: Any, headers: dict[str, str], after: float | None, reason: str
) -> None:
    error = {"status": "error", "errorType": "RATE_LIMIT"} | body
    house.crm.faults.append(Fault("GET", "/crm/v3/owners", 429, error, headers))
    message = told(new_lead())
    outcome = await house.deliver(message)
    assert (outcome.ok, outcome.down, outcome.final) == (False, True, False)
    assert outcome.retry_after_s == after
    assert outcome.status == 429
    assert reason in (outcome.reason or "")
    await house.deliver_ok(message)


async def test_a_contact_that_was_deleted_is_made_again(house: House) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, "mql"))
    (id,) = hubspot(house).contacts
    hubspot(house).delete(id)
    await house.deliver_ok(told(lead, "sql"))
    assert contact(house)["lifecyclestage"] == "salesqualifiedlead"


async def test_one_that_is_deleted_between_reading_and_writing_is_made_again(house: House) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, "mql"))
    missing = {"status": "error", "category": "OBJECT_NOT_FOUND"}
    house.crm.faults.append(Fault("PATCH", "/crm/v3/objects/contacts/", 404, missing))
    await house.deliver_ok(told(lead, "sql"))
    assert contact(house)["lifecyclestage"] == "salesqualifiedlead"


async def test_one_that_is_made_meanwhile_is_updated(house: House) -> None:
    """Two at once cannot make two contacts of one address."""
    missing = {"status": "error", "category": "OBJECT_NOT_FOUND"}
    hubspot(house).by_hand(None, email="ada@example.com", lifecyclestage="subscriber")
    house.crm.faults.append(Fault("GET", "/crm/v3/objects/contacts/ada", 404, missing))
    await house.deliver_ok(told(new_lead(), "mql"))
    assert contact(house)["lifecyclestage"] == "marketingqualifiedlead"


async def test_what_hubspot_refuses_is_final_and_says_why(house: House) -> None:
    house.subscription.config["stages"] = {"mql": "no-such-stage"}
    house.restart()
    outcome = await house.deliver(told(new_lead(), "mql"))
    assert (outcome.ok, outcome.final, outcome.down) == (False, True, False)
    assert "VALIDATION_ERROR INVALID_OPTION" in (outcome.reason or "")
    assert "ada" not in f"{outcome.reason}{outcome.request}"


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_trouble_at_hubspot_is_waited_for(house: House, status: int) -> None:
    house.crm.faults.append(Fault("POST", "/crm/v3/objects/contacts/batch", status, {}))
    message = told(new_lead())
    outcome = await house.deliver(message)
    assert (outcome.ok, outcome.down, outcome.final) == (False, True, False)
    await house.deliver_ok(message)


async def test_a_wrong_token_is_told_without_it(house: House) -> None:
    hubspot(house).tokens.clear()
    outcome = await house.deliver(told(new_lead()))
    assert (outcome.down, outcome.final) == (True, False)
    assert outcome.reason == "owner: HubSpot refuses the token (EXPIRED_AUTHENTICATION)"


async def test_a_server_that_does_not_answer_in_time(house: House) -> None:
    await house.calls.close()
    house.calls = Calls(aiohttp.ClientSession, 0.2)
    house.restart()
    house.crm.hold = asyncio.Event()
    outcome = await house.deliver(told(new_lead()))
    assert outcome.down
    assert outcome.reason == "create: no answer within 0.2 s"
    house.crm.hold.set()


async def test_oauth_tokens_are_kept_and_got_anew_once_when_refused(module_database: str) -> None:
    credentials = {
        "client_id": "client-1", "client_secret": "client-secret-1", "refresh_token": "refresh-1",
    }  # fmt: skip
    async with (
        FakeHubSpot() as crm,
        connected(module_database, crm, "hubspot", credentials, base_url=crm.url) as house,
    ):
        crm.tokens.clear()
        lead = new_lead()
        await house.deliver_ok(told(lead, "lead"))
        await house.deliver_ok(told(lead, "mql"))
        assert [r.path for r in crm.requests].count("/oauth/v1/token") == 1
        crm.tokens.clear()  # revoked before its time
        await house.deliver_ok(told(lead, "sql"))
        assert [r.path for r in crm.requests].count("/oauth/v1/token") == 2
        house.late += timedelta(seconds=1800)  # expired, and nobody asks HubSpot first
        await house.deliver_ok(told(lead, "proposal"))
        assert [r.path for r in crm.requests].count("/oauth/v1/token") == 3
        crm.refresh_tokens.clear()
        crm.tokens.clear()
        outcome = await house.deliver(told(lead, "closing"))
        assert outcome.down
        assert outcome.reason == "no access token: answered 400 (BAD_REFRESH_TOKEN)"


async def test_without_credentials_it_says_which(module_database: str) -> None:
    async with (
        FakeHubSpot() as crm,
        connected(module_database, crm, "hubspot", {}, base_url=crm.url) as house,
    ):
        outcome = await house.deliver(told(new_lead()))
        assert outcome.reason == (
            "the subscription lacks credentials: access_token or client_id, client_secret, refresh_token"
        )
