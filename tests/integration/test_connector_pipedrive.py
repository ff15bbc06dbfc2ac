"""The Pipedrive connector against a strict Pipedrive, and what Pipedrive's webhooks then say to Baton."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from services.baton.embedded import EmbeddedPostgres
from tests.fakes.clock import wall
from tests.fakes.crm import Fault
from tests.fakes.house import House, connected, new_lead, told
from tests.fakes.pipedrive import FakePipedrive
from tests.integration.stage import Stage, fresh_database, running_stage

TOKEN = {"api_token": "a-token-of-40-characters"}
STAGES = {"mql": 1, "sql": 2, "proposal": 3, "closing": 4}


@pytest.fixture(scope="module")
def module_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
async def house(module_database: str) -> AsyncIterator[House]:
    async with (
        FakePipedrive() as crm,
        connected(
            module_database, crm, "pipedrive", TOKEN, base_url=crm.url, stages=STAGES, create_deals=True
        ) as it,
    ):  # fmt: skip
        yield it


def pipedrive(house: House) -> FakePipedrive:
    """The fake, by its own type."""
    assert isinstance(house.crm, FakePipedrive)
    return house.crm


def written(house: House) -> list[tuple[str, str, Any]]:
    """What was written, in order."""
    return [(w.method, w.path, w.body) for w in house.crm.writes]


async def test_a_lead_becomes_a_person_with_a_deal(house: House) -> None:
    lead = new_lead()
    await house.deliver_ok(told(lead, "mql", phone="+49 30 901820"))
    (person,) = pipedrive(house).persons.values()
    (deal,) = pipedrive(house).deals.values()
    assert person["name"] == "Ada Ortiz"
    assert person["emails"] == [{"value": "ada@example.com", "primary": True, "label": "work"}]
    assert person["phones"][0]["value"] == "+49 30 901820"
    assert (person["owner_id"], deal["owner_id"]) == (21, 21)
    assert (deal["person_id"], deal["stage_id"], deal["status"]) == (person["id"], 1, "open")
    assert deal["title"] == "Example"


async def test_only_what_changed_is_written(house: House) -> None:
    lead = new_lead()
    first = told(lead, "mql")
    await house.deliver_ok(first)
    count = len(house.crm.writes)
    await house.deliver_ok(first)
    assert len(house.crm.writes) == count
    await house.deliver_ok(told(lead, "sql"))
    (deal,) = pipedrive(house).deals
    assert written(house)[count:] == [("PATCH", f"/api/v2/deals/{deal}", {"stage_id": 2})]
    await house.deliver_ok(told(lead, "closed_won"))
    assert written(house)[count + 1 :] == [("PATCH", f"/api/v2/deals/{deal}", {"status": "won"})]


async def test_the_deal_that_the_journey_names_is_moved(house: House) -> None:
    crm = pipedrive(house)
    person = crm.add("persons", {"name": "Ada", "emails": [{"value": "ADA@example.com"}]})
    other = crm.add("deals", {"title": "other", "person_id": person["id"]})
    mine = crm.add("deals", {"title": "mine", "person_id": person["id"]})
    await house.deliver_ok(told(new_lead(), "proposal", key=str(mine["id"])))
    assert crm.deals[mine["id"]]["stage_id"] == 3
    assert crm.deals[other["id"]]["stage_id"] == 1
    assert len(crm.persons) == 1


async def test_a_lost_answer_makes_no_second_person(house: House) -> None:
    """The search does not know the new person yet: another is made only when it would."""
    crm = pipedrive(house)
    crm.index_at_once = False
    crm.faults.append(Fault("POST", "/api/v2/persons", lost=True))
    message = told(new_lead(), "mql")
    assert (await house.deliver(message)).down
    outcome = await house.deliver(message)
    assert (outcome.ok, outcome.final, outcome.down) == (False, False, False)
    assert outcome.retry_after_s is not None
    assert 50 < outcome.retry_after_s <= 60
    crm.unindexed.clear()
    await house.deliver_ok(message)
    assert len(crm.persons) == 1
    assert len(crm.deals) == 1


async def test_the_next_event_knows_the_new_person_before_the_search_does(house: House) -> None:
    crm = pipedrive(house)
    crm.index_at_once = False
    lead = new_lead()
    await house.deliver_ok(told(lead, "mql"))
    await house.deliver_ok(told(lead, "sql"))
    assert (len(crm.persons), len(crm.deals)) == (1, 1)


async def test_an_attempt_that_never_came_there_is_made_good(house: House) -> None:
    crm = pipedrive(house)
    crm.faults.append(Fault("POST", "/api/v2/persons", 502, {}))
    message = told(new_lead(), "mql")
    assert (await house.deliver(message)).down
    assert not (await house.deliver(message)).ok
    house.late += timedelta(seconds=61)
    await house.deliver_ok(message)
    assert len(crm.persons) == 1


async def test_a_lost_answer_makes_no_second_deal(house: House) -> None:
    crm = pipedrive(house)
    crm.faults.append(Fault("POST", "/api/v2/deals", lost=True))
    message = told(new_lead(), "mql")
    assert (await house.deliver(message)).down
    await house.deliver_ok(message)
    assert (len(crm.persons), len(crm.deals)) == (1, 1)


async def test_limits_are_waited_for(house: House) -> None:
    limit = {"success": False, "error": "request over limit"}
    house.crm.faults.append(
        Fault("GET", "/api/v2/persons/search", 429, limit, {"x-ratelimit-reset": "2"})
    )
    message = told(new_lead())
    outcome = await house.deliver(message)
    assert (outcome.down, outcome.retry_after_s) == (True, 2.0)
    house.crm.faults.append(Fault("GET", "/api/v2/persons/search", 403, {"success": False}))
    outcome = await house.deliver(message)
    assert (outcome.down, outcome.retry_after_s) == (True, 300.0)


async def test_a_person_that_was_deleted_is_made_again(house: House) -> None:
    crm = pipedrive(house)
    lead = new_lead()
    await house.deliver_ok(told(lead, "mql"))
    (id,) = crm.persons
    crm.persons[id]["is_deleted"] = True
    crm.deals.clear()
    await house.deliver_ok(told(lead, "sql"))
    assert [p["is_deleted"] for p in crm.persons.values()] == [True, False]
    (deal,) = crm.deals.values()
    assert deal["stage_id"] == 2


async def test_what_is_not_mapped_is_told(house: House) -> None:
    outcome = await house.deliver_ok(told(new_lead(), "nurture", owner="mia"))
    assert outcome.reason == (
        "the stage nurture is in neither config.stages nor config.statuses, the deal stays; "
        "mia is no user in Pipedrive by e-mail address, nor in config.owners, the owner stays"
    )
    assert pipedrive(house).deals == {}


async def deliver(stage: Stage, body: dict[str, Any]) -> dict[str, Any]:
    """Post a webhook as Pipedrive does."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(stage.app)) as client:
        answer = await client.post(
            f"{stage.url}/webhooks/pipedrive", content=json.dumps(body).encode(),
            auth=("user", "password"), headers={"content-type": "application/json"},
        )  # fmt: skip
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_what_was_written_comes_back_and_changes_nothing(database_url: str) -> None:
    secrets = {"pipedrive": ["user:password"]}
    config: dict[str, Any] = {"stages": STAGES, "create_deals": True}
    async with (
        FakePipedrive(wall) as crm,
        connected(database_url, crm, "pipedrive", TOKEN, base_url=crm.url, **config) as house,
        running_stage(database_url, source_secrets=secrets) as stage,
    ):
        event = {"specversion": "1.0", "id": "1", "source": "/website", "type": "demo.requested",
                 "data": {"email": "ada@example.com", "name": "Ada Ortiz"}}  # fmt: skip
        (result,) = await stage.send(event)
        await house.deliver_ok(told(result["lead_id"], "mql"))
        await house.deliver_ok(told(result["lead_id"], "sql"))
        sent, crm.outbox = crm.outbox, []
        assert [s["meta"]["action"] for s in sent] == ["create", "create", "change"]
        for body in sent:
            assert (await deliver(stage, body))["echo"] == 1
        types = await stage.connection.fetch("SELECT type FROM stage.events ORDER BY type")
        assert [t["type"] for t in types] == ["crm.linked", "demo.requested"]
        # Somebody moves the deal on, and somebody else calls the person by another name.
        (deal,) = crm.deals
        (person,) = crm.persons
        crm.change("deals", deal, {"status": "won"})
        crm.change("persons", person, {"name": "Ada Byron"})
        for body in crm.outbox:
            assert (await deliver(stage, body))["applied"] == 1
        (lead,) = await stage.connection.fetch("SELECT id::text, name FROM stage.leads")
        assert (lead["id"], lead["name"]) == (result["lead_id"], "Ada Byron")
