"""The Salesforce connector against a strict Salesforce, and what its change events then say to Baton."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from services.baton.embedded import EmbeddedPostgres
from tests.fakes.clock import wall
from tests.fakes.crm import Fault
from tests.fakes.house import House, connected, new_lead, told
from tests.fakes.salesforce import API, FakeSalesforce
from tests.integration.stage import Stage, fresh_database, running_stage

SECRETS = {"client_id": "consumer", "client_secret": "secret"}


@pytest.fixture(scope="module")
def module_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
async def house(module_database: str) -> AsyncIterator[House]:
    async with (
        FakeSalesforce() as crm,
        connected(
            module_database, crm, "salesforce", SECRETS, login_url=crm.url,
            statuses={"proposal": "Closed - Not Converted"},
        ) as it,
    ):  # fmt: skip
        yield it


def salesforce(house: House) -> FakeSalesforce:
    """The fake, by its own type."""
    assert isinstance(house.crm, FakeSalesforce)
    return house.crm


async def test_a_lead_is_upserted_by_its_external_id_in_two_calls(house: House) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, "mql", title="CTO"))
    (row,) = salesforce(house).leads.values()
    assert {n: v for n, v in row.items() if n not in ("Id", "CreatedDate")} == {
        "Baton_Lead_Id__c": lead, "FirstName": "Ada", "LastName": "Ortiz", "Email": "ada@example.com",
        "Title": "CTO", "Company": "Example", "Status": "Working - Contacted", "IsConverted": False,
        "OwnerId": "005000000000021",
    }  # fmt: skip
    assert [(r.method, r.path) for r in house.crm.requests] == [
        ("POST", "/services/oauth2/token"), ("POST", f"{API}/composite"),
        ("PATCH", f"{API}/sobjects/Lead/Baton_Lead_Id__c/{lead}"),
    ]  # fmt: skip


async def test_only_what_changed_is_written(house: House) -> None:
    lead = new_lead()
    message = told(lead, "mql")
    await house.deliver_ok(message)
    await house.deliver_ok(message)
    assert len(house.crm.writes) == 1
    await house.deliver_ok(told(lead, "proposal", title="CEO"))
    assert house.crm.writes[-1].body == {"Status": "Closed - Not Converted", "Title": "CEO"}


async def test_a_lead_that_salesforce_has_by_its_address_is_taken_over(house: House) -> None:
    id = salesforce(house).add(
        {"LastName": "O'Ortiz", "Company": "Example", "Email": "o'ada@example.com"}
    )
    lead = new_lead()
    await house.deliver_ok(told(lead, "mql", email="o'ada@example.com"))
    assert list(salesforce(house).leads) == [id]
    row = salesforce(house).leads[id]
    assert (row["Baton_Lead_Id__c"], row["LastName"]) == (lead, "O'Ortiz")
    assert row["Status"] == "Working - Contacted"


async def test_a_quote_in_a_value_asks_for_nothing_else(house: House) -> None:
    """What a lead says is no part of the query."""
    other = salesforce(house).add({"LastName": "X", "Company": "X", "Email": "x@example.com"})
    evil = "a' OR Email != '@example.com"
    await house.deliver_ok(told(new_lead(), "mql", email=evil))
    assert salesforce(house).leads[other].get("Baton_Lead_Id__c") is None


async def test_a_lead_without_a_company_gets_salesforces_word_and_later_its_own(
    house: House,
) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, "mql", company=None))
    (row,) = salesforce(house).leads.values()
    assert row["Company"] == "[not provided]"
    await house.deliver_ok(told(lead, "mql", company="Example"))
    assert row["Company"] == "Example"


async def test_a_converted_lead_is_left_alone(house: House) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, "mql"))
    (row,) = salesforce(house).leads.values()
    row |= {"IsConverted": True, "Status": "Closed - Converted"}
    outcome = await house.deliver_ok(told(lead, "proposal"))
    assert outcome.reason == "find: the Lead is converted: its stage is the opportunity's now"
    assert row["Status"] == "Closed - Converted"


async def test_an_answer_that_is_lost_has_one_effect(house: House) -> None:
    house.crm.faults.append(Fault("PATCH", f"{API}/sobjects/Lead/", lost=True))
    message = told(new_lead(), "mql")
    assert (await house.deliver(message)).down
    version = house.crm.version()
    await house.deliver_ok(message)
    assert house.crm.version() == version
    assert len(salesforce(house).leads) == 1


@pytest.mark.parametrize(
    ("status", "code", "down", "final", "after"),
    [
        (403, "REQUEST_LIMIT_EXCEEDED", True, False, 900.0),
        (400, "UNABLE_TO_LOCK_ROW", False, False, 2.0),
        (503, "SERVER_UNAVAILABLE", True, False, None),
        (403, "API_DISABLED_FOR_ORG", True, False, None),
        (400, "FIELD_CUSTOM_VALIDATION_EXCEPTION", False, True, None),
        (400, "DUPLICATES_DETECTED", False, True, None),
    ],
)
async def test_what_salesforce_refuses(
    house: House, status: int, code: str, down: bool, final: bool, after: float | None
) -> None:
    error = [{"errorCode": code, "message": "ada@example.com is not right", "fields": []}]
    house.crm.faults.append(Fault("PATCH", f"{API}/sobjects/Lead/", status, error))
    outcome = await house.deliver(told(new_lead(), "mql"))
    assert (outcome.ok, outcome.down, outcome.final) == (False, down, final)
    assert outcome.retry_after_s == after
    assert "ada" not in (outcome.reason or "")


async def test_a_session_that_ended_is_renewed_once(house: House) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, "lead"))
    salesforce(house).tokens.clear()
    await house.deliver_ok(told(lead, "mql"))
    paths = [r.path for r in house.crm.requests]
    assert paths.count("/services/oauth2/token") == 2
    ended = [{"errorCode": "INVALID_SESSION_ID", "message": "Session expired or invalid"}]
    house.crm.faults.append(Fault("POST", f"{API}/composite", 401, ended, times=9))
    outcome = await house.deliver(told(lead, "proposal"))
    assert outcome.reason == "find: Salesforce refuses the token (INVALID_SESSION_ID)"
    assert (outcome.down, outcome.final) == (True, False)
    assert [r.path for r in house.crm.requests].count("/services/oauth2/token") == 3


async def test_a_deleted_lead_is_made_again(house: House) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, "mql"))
    salesforce(house).leads.clear()
    await house.deliver_ok(told(lead, "proposal"))
    (row,) = salesforce(house).leads.values()
    assert row["Status"] == "Closed - Not Converted"


async def test_the_jwt_flow_signs_who_it_is(module_database: str) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    credentials = {"client_id": "consumer", "username": "api@example.com", "private_key": pem}
    async with FakeSalesforce() as crm:
        crm.public_key = key.public_key()
        async with connected(
            module_database, crm, "salesforce", credentials, login_url=crm.url
        ) as house:
            await house.deliver_ok(told(new_lead(), "mql"))
            assert len(crm.leads) == 1


async def post(stage: Stage, event: dict[str, Any]) -> dict[str, Any]:
    """Post a change event as an event relay does."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(stage.app)) as client:
        answer = await client.post(
            f"{stage.url}/webhooks/salesforce-cdc", content=json.dumps(event).encode(),
            headers={"authorization": "Bearer relay-secret", "content-type": "application/json"},
        )  # fmt: skip
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_what_was_written_comes_back_and_changes_nothing(database_url: str) -> None:
    secrets = {"salesforce-cdc": ["relay-secret"]}
    async with (
        FakeSalesforce(wall) as crm,
        connected(database_url, crm, "salesforce", SECRETS, login_url=crm.url) as house,
        running_stage(database_url, source_secrets=secrets) as stage,
    ):
        event = {"specversion": "1.0", "id": "1", "source": "/website", "type": "demo.requested",
                 "data": {"email": "ada@example.com", "name": "Ada Ortiz"}}  # fmt: skip
        (result,) = await stage.send(event)
        await house.deliver_ok(told(result["lead_id"], "lead"))
        await house.deliver_ok(told(result["lead_id"], "mql"))
        sent, crm.outbox = crm.outbox, []
        assert [s["ChangeEventHeader"]["changeType"] for s in sent] == ["CREATE", "UPDATE"]
        assert (await post(stage, sent[0]))["echo"] == 1
        # Not marked, as when another relay drops the header: what it says is known all the same.
        sent[1]["ChangeEventHeader"]["changeOrigin"] = ""
        assert (await post(stage, sent[1]))["echo"] == 1
        types = await stage.connection.fetch("SELECT type FROM stage.events ORDER BY type")
        assert [t["type"] for t in types] == ["crm.linked", "demo.requested"]
        (id,) = crm.leads
        crm.change(id, Title="CTO", Status="Closed - Not Converted")
        assert (await post(stage, crm.outbox[0]))["applied"] == 1
        (lead,) = await stage.connection.fetch("SELECT id::text, attributes FROM stage.leads")
        assert lead["id"] == result["lead_id"]
        assert json.loads(lead["attributes"])["title"] == "CTO"
