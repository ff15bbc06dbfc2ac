"""Whatever goes wrong on the way, the CRM ends as Baton says, with one record a lead.

``BATON_CONNECTOR_FAULTS`` is how many leads (10): 500 take a few minutes.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from services.baton.embedded import EmbeddedPostgres
from services.contracts.events import Message
from tests.fakes.clock import Clock, wall
from tests.fakes.crm import FakeCrm, Fault, Seen
from tests.fakes.house import House, connected, new_lead, told
from tests.fakes.hubspot import FakeHubSpot
from tests.fakes.pipedrive import FakePipedrive
from tests.fakes.salesforce import FakeSalesforce
from tests.integration.stage import fresh_database, running_stage
from tests.integration.vendor import deliver, signed

LEADS = int(os.environ.get("BATON_CONNECTOR_FAULTS", "10"))
WAY = ["lead", "mql", "sql", "proposal", "mql", "sql", "closing"]
ATTEMPTS_MAX = 60
SECRET = "a-secret-of-hubspots-app"


@pytest.fixture(scope="module")
def module_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as url:
        yield url


def trouble(dice: random.Random, share: float) -> Callable[[Seen], Fault | None]:
    """A CRM that fails a `share` of its requests, in every way."""

    def fault(seen: Seen) -> Fault | None:
        if "token" in seen.path or dice.random() > share:
            return None
        kind = dice.choice(["lost", "lost", 429, 500, 503, 401])
        if kind == "lost":
            return Fault(seen.method, seen.path, lost=True)
        return Fault(seen.method, seen.path, int(kind), {})

    return fault


async def push(house: House, message: Message, dice: random.Random) -> None:
    """Try until it went through, as the dispatcher does; another process now and then, and time passes."""
    for _ in range(ATTEMPTS_MAX):
        if dice.random() < 0.1:
            house.restart()
        outcome = await house.deliver(message)
        if outcome.ok:
            return
        assert not outcome.final, outcome
        assert isinstance(house.crm.clock, Clock)
        house.crm.clock.skip(seconds=outcome.retry_after_s or 0.1)
        if isinstance(house.crm, FakePipedrive) and (outcome.retry_after_s or 0) > 1:
            house.crm.unindexed.clear()
    raise AssertionError(f"not delivered in {ATTEMPTS_MAX} attempts")


async def troubled(house: House, dice: random.Random) -> dict[str, str]:
    """Send all leads their way through trouble; gives the last stage of each by its address."""
    # Time passes for both alike: an echo is told by when its write was made.
    house.crm.clock = Clock(began=wall())
    house.crm.chance = trouble(dice, 0.25)
    leads = {f"p{n}@example.com": new_lead() for n in range(LEADS)}
    place = dict.fromkeys(leads, 0)
    last: dict[str, str] = {}
    while place:
        email = dice.choice(list(place))
        step = place[email]
        message = told(leads[email], WAY[step], email=email, name=email)
        await push(house, message, dice)
        if dice.random() < 0.2:
            await push(house, message, dice)  # again, as after a crash of the dispatcher
        last[email] = WAY[step]
        place[email] = step + 1
        if place[email] == len(WAY) or dice.random() < 0.1:
            del place[email]
    house.crm.chance = lambda _: None
    return last


@pytest.mark.parametrize("seed", [1, 2])
async def test_hubspot_ends_as_baton_says_and_all_its_webhooks_are_echoes(
    database_url: str, seed: int
) -> None:
    dice = random.Random(seed)
    credentials = {
        "client_id": "client-1", "client_secret": "client-secret-1", "refresh_token": "refresh-1",
    }  # fmt: skip
    async with (
        FakeHubSpot() as crm,
        connected(database_url, crm, "hubspot", credentials, base_url=crm.url) as house,
        running_stage(database_url, source_secrets={"hubspot": [SECRET]}) as stage,
    ):
        last = await troubled(house, dice)
        stages = {"lead": "lead", "mql": "marketingqualifiedlead", "sql": "salesqualifiedlead",
                  "proposal": "opportunity", "closing": "opportunity"}  # fmt: skip
        found = {c["email"]: c["lifecyclestage"] for c in crm.contacts.values()}
        assert found == {email: stages[stage] for email, stage in last.items()}
        assert len(crm.contacts) == len(last)
        # In any order, in any batches, some twice.
        events = crm.sent()
        events += dice.sample(events, len(events) // 5)
        dice.shuffle(events)
        told_again = 0
        while events:
            batch, events = events[:50], events[50:]
            body = json.dumps(batch).encode()
            answer = await deliver(stage, body, signed(body, secret=SECRET))
            counts = answer.json()
            told_again += counts["applied"]
            assert counts["quarantined"] == 0
        assert told_again == 0
        assert await stage.connection.fetchval("SELECT count(*) FROM stage.leads") == 0


@pytest.mark.parametrize("seed", [1, 2])
async def test_pipedrive_ends_as_baton_says(module_database: str, seed: int) -> None:
    dice = random.Random(seed)
    stages: dict[str, Any] = {"lead": 1, "mql": 2, "sql": 3, "proposal": 4, "closing": 5}
    async with (
        FakePipedrive() as crm,
        connected(
            module_database, crm, "pipedrive", {"api_token": "a-token-of-40-characters"},
            base_url=crm.url, stages=stages, create_deals=True,
        ) as house,
    ):  # fmt: skip
        crm.index_at_once = False  # its search learns of somebody new within the minute
        last = await troubled(house, dice)
        persons = {p["emails"][0]["value"]: p["id"] for p in crm.persons.values()}
        assert len(crm.persons) == len(persons) == len(last)
        deals = {d["person_id"]: d["stage_id"] for d in crm.deals.values()}
        assert len(crm.deals) == len(last)
        assert deals == {persons[email]: stages[stage] for email, stage in last.items()}


@pytest.mark.parametrize("seed", [1, 2])
async def test_salesforce_ends_as_baton_says(module_database: str, seed: int) -> None:
    dice = random.Random(seed)
    statuses = {"lead": "Open - Not Contacted", "mql": "Working - Contacted",
                "sql": "Closed - Not Converted", "proposal": "Open - Not Contacted",
                "closing": "Working - Contacted"}  # fmt: skip
    credentials = {"client_id": "consumer", "client_secret": "secret"}
    async with (
        FakeSalesforce() as crm,
        connected(
            module_database, crm, "salesforce", credentials, login_url=crm.url, statuses=statuses
        ) as house,
    ):
        last = await troubled(house, dice)
        found = {row["Email"]: row["Status"] for row in crm.leads.values()}
        assert len(crm.leads) == len(last)
        assert found == {email: statuses[stage] for email, stage in last.items()}


def test_the_fakes_answer_as_they_should() -> None:
    """The trouble is real: it has every kind."""
    chance = trouble(random.Random(1), 1.0)
    kinds = {(f.status, f.lost) for _ in range(100) if (f := chance(_seen())) is not None}
    assert kinds == {(None, True), (429, False), (500, False), (503, False), (401, False)}
    assert isinstance(FakeHubSpot(), FakeCrm)


def _seen() -> Seen:
    return Seen("GET", "/x", {}, {}, None)
