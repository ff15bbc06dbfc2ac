"""Assignments by hand and people who leave, over HTTP on real PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from typing import Any

import msgspec
import pytest

from services.baton.verify import verify_database
from services.contracts.events import HANDOFFS_TOPIC, OWNER_CHANGED, Message
from services.contracts.team import load_team
from services.notifier.alerts import alerts_of
from services.notifier.messages import read_transition
from tests.integration.stage import NOON, ROOT, MadeUpTime, Stage, running_stage


async def booked(stage: Stage, count: int, name: str = "p") -> list[str]:
    """Leads with a meeting booked; gives their ids."""
    results = await stage.send(*(
        {"specversion": "1.0", "id": f"{name}{n}", "source": "/t", "type": "meeting.booked",
         "data": {"email": f"{name}{n}@c.example"}}
        for n in range(count)
    ))  # fmt: skip
    return [r["lead_id"] for r in results]


async def owner_of(stage: Stage, lead: str) -> str:
    body = (await stage.client.get(f"/v1/leads/{lead}")).json()
    return body["journeys"][0]["owners"]["ae"]["id"]


async def changes(stage: Stage) -> list[Message]:
    """The published changes of owners."""
    rows = await stage.connection.fetch(
        """SELECT topic, key, headers, value FROM bus.outbox
           WHERE topic = $1 AND headers ->> 'ce_type' = $2 ORDER BY id""",
        HANDOFFS_TOPIC, OWNER_CHANGED,
    )  # fmt: skip
    return [
        Message(r["topic"], r["key"], msgspec.json.decode(r["headers"]), r["value"]) for r in rows
    ]


async def test_a_journey_is_given_to_somebody_else_by_hand(database_url: str) -> None:
    async with running_stage(database_url, MadeUpTime()) as stage:
        [lead] = await booked(stage, 1)
        assert await owner_of(stage, lead) == "marcus"
        answer = await stage.client.post(
            f"/v1/leads/{lead}/assign",
            json={"role": "ae", "person": "elena", "reason": "she knows them", "actor": "Sofia"},
        )
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["owner"] == {"id": "elena", "name": "Elena Petrova"}
        assert body["previous_owner"]["id"] == "marcus"
        assert body["why"] == "Elena Petrova: assigned by Sofia: she knows them"
        stored = await stage.stored("baton", body["event_id"])
        assert stored is not None
        assert (stored["type"], stored["data"]["role"]) == ("baton.lead.assigned", "ae")
        [message] = await changes(stage)
        assert message.type == OWNER_CHANGED
        told = read_transition(message)
        assert told is not None
        team = load_team(ROOT / "playbooks/team.yaml")
        [alert] = alerts_of(told, team, "http://x", uuid.uuid4, NOON)
        assert (alert.person_id, alert.subject[:10]) == ("elena", "Yours now:")
        assert "Sofia gave it to another person: she knows them" in alert.body
        assert alert.deliveries
        assert alert.journey_id is not None, "it is said in the journey's thread"
        # The next stages and a late event keep her: the fold does not choose.
        await stage.send(
            {"specversion": "1.0", "id": "late", "source": "/t", "type": "lead.created",
             "time": "2026-01-01T00:00:00Z", "data": {"email": "p0@c.example"}},
            {"specversion": "1.0", "id": "next", "source": "/t", "type": "proposal.sent",
             "data": {"email": "p0@c.example"}},
        )  # fmt: skip
        assert await owner_of(stage, lead) == "elena"
        again = await stage.client.post(
            f"/v1/leads/{lead}/assign", json={"role": "ae", "person": "elena", "reason": "x"}
        )
        assert again.status_code == 409
    report = await verify_database(database_url)
    assert [f for f in report.findings if "published log" not in f] == []


async def test_without_a_person_routing_chooses_another(database_url: str) -> None:
    async with running_stage(database_url, MadeUpTime()) as stage:
        [lead] = await booked(stage, 1)
        answer = await stage.client.post(
            f"/v1/leads/{lead}/assign", json={"role": "ae", "reason": "too many"}
        )
        assert answer.json()["owner"]["id"] == "elena"
        routing = (await stage.client.get(f"/v1/leads/{lead}/routing")).json()["items"]
        assert routing[0]["role"] == "ae"
        assert routing[0]["decision"]["candidates"] == [
            {"id": "elena", "name": "Elena Petrova", "why": "not their turn"},
            {"id": "marcus", "name": "Marcus Chen", "why": "gets it"},
        ]


async def test_the_same_assignment_sent_twice_has_one_effect(database_url: str) -> None:
    async with running_stage(database_url, MadeUpTime()) as stage:
        [lead] = await booked(stage, 1)
        wish = {"role": "ae", "person": "elena", "reason": "x"}
        headers = {"idempotency-key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
        for _ in range(2):
            answer = await stage.client.post(f"/v1/leads/{lead}/assign", json=wish, headers=headers)
            assert answer.status_code == 200
        assert len(await changes(stage)) == 1


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"role": "aes"}, 422, "has no role 'aes'"),
        ({"person": "zoe"}, 422, "there is no person 'zoe'"),
        ({"key": "deal-9"}, 404, "there is no journey 'sales/deal-9'"),
        ({"reason": " "}, 422, "reason"),
    ],
)
async def test_a_wrong_assignment_leaves_no_event(
    database_url: str, change: dict[str, Any], status: int, told: str
) -> None:
    async with running_stage(database_url, MadeUpTime()) as stage:
        [lead] = await booked(stage, 1)
        before = await stage.count()
        wish = {"role": "ae", "person": "elena", "reason": "x"} | change
        answer = await stage.client.post(f"/v1/leads/{lead}/assign", json=wish)
        assert (answer.status_code, told in answer.text) == (status, True), answer.text
        assert await stage.count() == before


async def add(stage: Stage, *ids: str) -> None:
    for id in ids:
        answer = await stage.client.put(f"/v1/people/{id}", json={"name": id, "roles": ["ae"]})
        assert answer.status_code == 201


async def owners(stage: Stage) -> Counter[str]:
    rows = await stage.connection.fetch("SELECT holder FROM stage.journeys")
    return Counter(r["holder"] for r in rows)


async def test_who_leaves_gives_every_open_journey_on_fairly(database_url: str) -> None:
    async with running_stage(database_url, MadeUpTime()) as stage:
        await add(stage, "nina")
        await booked(stage, 16)
        assert await owners(stage) == {"elena": 4, "marcus": 8, "nina": 4}
        answer = await stage.client.post("/v1/people/marcus/leave", json={})
        assert answer.json() == {"id": "marcus", "given_on": 8, "still_held": 0, "to": None}
        assert await owners(stage) == {"elena": 8, "nina": 8}
        assert len(await changes(stage)) == 8
        again = await stage.client.post("/v1/people/marcus/leave", json={})
        assert again.json()["given_on"] == 0
        assert (await stage.client.post("/v1/people/zoe/leave", json={})).status_code == 404
        one = await stage.client.post("/v1/people/nina/leave", json={"to": "elena"})
        assert one.json()["given_on"] == 8
        assert await owners(stage) == {"elena": 16}


async def test_two_who_leave_at_once_leave_every_journey_with_somebody_who_stays(
    database_url: str,
) -> None:
    """Over two services, while more leads come."""
    async with (
        running_stage(database_url, MadeUpTime()) as one,
        running_stage(database_url, MadeUpTime()) as two,
    ):
        await add(one, "nina", "kim")
        await booked(one, 30)
        await asyncio.gather(
            one.client.post("/v1/people/marcus/leave", json={}),
            two.client.post("/v1/people/elena/leave", json={}),
            *(booked(stage, 5, f"{name}-") for stage in (one, two) for name in "abcd"),
        )
        held = await owners(one)
        assert held.keys() == {"nina", "kim"}
        assert sum(held.values()) == 30 + 20  # the same leads over both


async def test_a_journey_whose_owner_left_while_it_rested_gets_another(database_url: str) -> None:
    async with running_stage(database_url, MadeUpTime()) as stage:
        [lead] = await booked(stage, 1)
        lost = {"specversion": "1.0", "id": "lost", "source": "/t", "type": "lead.recycled",
                "data": {"email": "p0@c.example"}}  # fmt: skip
        await stage.send(lost)
        await stage.client.post("/v1/people/marcus/leave", json={})
        await stage.send(lost | {"id": "back", "type": "meeting.booked"})
        assert await owner_of(stage, lead) == "elena"
