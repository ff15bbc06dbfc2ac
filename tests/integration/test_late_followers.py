"""Everything that follows a lead shows the corrected history after a late event, and nobody hears twice.

Feed, stream, bus, subscription, snapshot, lead, clocks, owners, funnel, durations, numbers of handoffs and
the page: each is asked after the same late events, and compared with a house where all came in time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from services.baton.embedded import EmbeddedPostgres
from services.baton.verify import verify_database
from services.stage_service.whole_leads import whole_lead
from tests.integration.receiver import receiving
from tests.integration.stage import NOON, Stage, fresh_database, serving_stage
from tests.integration.subscribing import CIPHER_TEXT, subscribe

START = NOON - timedelta(days=20)


def told(id: str, type: str, hour: float, **data: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0", "id": id, "source": "/crm", "type": type,
        "time": (START + timedelta(hours=hour)).isoformat(), "data": {"email": "a@b.example", **data},
    }  # fmt: skip


# What was told in time made a customer of somebody who was a student, and left again.
EVENTS = [
    told("1", "lead.created", 0, origin="fair"),
    told("2", "meeting.booked", 10),
    told("3", "handoff.accepted", 11, role="ae", person="marcus"),
    told("4", "proposal.sent", 30),
    told("5", "deal.won", 50),
    told("late-1", "demo.requested", 5, origin="web"),
    told("late-2", "lead.recycled", 20),
    told("late-3", "deal.lost", 40, reason="no budget"),
]


@pytest.fixture
async def house(database_url: str) -> AsyncIterator[Stage]:
    async with serving_stage(
        database_url, encryption_key=CIPHER_TEXT, subscriptions_allow="127.0.0.0/8"
    ) as it:
        yield it


async def everything_published(stage: Stage) -> None:
    async with asyncio.timeout(20):
        while await stage.connection.fetchval("SELECT count(*) FROM bus.pending"):
            await asyncio.sleep(0.01)


async def get(stage: Stage, path: str, **query: Any) -> Any:
    answer = await stage.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def kept(items: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The history that a reader has who does what docs/events.md asks of them."""
    records: dict[str, dict[str, Any]] = {}
    for item in items:
        if "transition_id" not in item:
            continue
        for old in item["replaces"]:
            del records[old]  # what is replaced was told before
        records[item["transition_id"]] = item
    way = sorted(records.values(), key=lambda r: r["sequence"])
    held = [r for r in way if r["from"] != r["to"]]
    for before, after in pairwise(way):
        assert before["to"] == after["from"]
    return [
        (r["from"], r["to"], r["occurred_at"], r["cause"]["event_id"], r["responsible"]["role"],
         r["skipped"], r["handoff"]) for r in held
    ]  # fmt: skip


async def facts(stage: Stage, lead: str) -> dict[str, Any]:
    """What the house says of the lead, without ids of ours, persons and when it became known."""
    shown = await get(stage, f"/v1/leads/{lead}")
    snapshot = await whole_lead(stage.house.engine, lead, stage.house.playbooks)
    assert snapshot is not None
    [journey] = shown["journeys"]
    clocks = await stage.connection.fetch(
        "SELECT key, kind, stage, role, since FROM stage.clocks WHERE lead_id = $1"
        " AND state = 'running' ORDER BY key", lead,
    )  # fmt: skip
    waiting = await get(stage, "/v1/handoffs", state="offered")
    numbers = (await get(stage, "/v1/handoffs/numbers", by="role"))["total"]
    items = (await get(stage, f"/v1/leads/{lead}/timeline"))["items"]
    return {
        "lead": {k: shown[k] for k in ("email", "attributes", "score", "first_seen_at", "last_seen_at")},
        "snapshot": [(j["stage"], j["furthest_stage"], j["entered_at"], set(j["owners"]))
                     for j in snapshot["journeys"]],
        "journey": {k: journey[k] for k in ("stage", "furthest_stage", "entered_at", "started_at")},
        "owners": sorted(journey["owners"]),
        "clocks": [tuple(r) for r in clocks],
        "waiting": [(h["stage"], h["role"], h["offered_at"]) for h in waiting["items"]],
        "numbers": {k: numbers[k] for k in ("offered", "accepted", "rejected", "withdrawn", "waiting")},
        "funnel": (await get(stage, "/v1/funnel", by="origin"))["stages"],
        "groups": (await get(stage, "/v1/funnel", by="origin"))["groups"],
        "durations": [
            await get(stage, "/v1/funnel/durations", from_stage="mql", to_stage=to)
            for to in ("sql", "proposal", "closed_won")
        ],
        "timeline": [
            (i["from"], i["to"], i["occurred_at"], i["cause"]["event_id"]) for i in items
            if i["kind"] in ("transition", "correction") and not i["replaced_by"] and i["from"] != i["to"]
        ],
        "on the board": await stage.connection.fetchval(
            "SELECT count(*) FROM stage.journeys WHERE holder IS NOT NULL"
        ),
    }  # fmt: skip


async def test_all_that_follows_shows_the_corrected_history(
    house: Stage, database_url: str, postgres: EmbeddedPostgres
) -> None:
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(receiving())
        await subscribe(house.connection, f"{receiver.url}/crm", position=0)
        streaming = await stack.enter_async_context(
            house.client.stream("GET", "/v1/transitions/stream", params={"after": 0})
        )
        for event in EVENTS:
            [result] = await house.send(event)
            lead = result["lead_id"]
        await everything_published(house)
        feed = (await get(house, "/v1/transitions", after=0, limit=1000))["items"]
        assert sum(i["type"] == "baton.transition.corrected.v1" for i in feed) >= 3

        # Feed, stream, bus and subscription: the same messages, and a reader of them has the new history.
        heard: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            async for line in streaming.aiter_lines():
                if line.startswith("data: {"):
                    heard.append(msgspec.json.decode(line[6:]))
                if len(heard) == len(feed):
                    break
        logged = await house.connection.fetch(
            """SELECT o.value FROM bus.log l JOIN bus.outbox o ON o.id = l.outbox_id
               WHERE l.topic = 'baton.transitions' ORDER BY l.position"""
        )
        bus = [msgspec.json.decode(r["value"]) for r in logged]
        ids = {i["transition_id"] for i in feed}
        await receiver.until(
            lambda: len({r.id for r in receiver.taken} & ids) == len(ids), "all records"
        )
        posted = [r.event for r in receiver.taken if r.id in ids]
        posted = [e.get("data", e) for e in posted]
        found = await facts(house, lead)
        page = (await house.client.get(f"/leads/{lead}")).text
        recorded = await alerts(house)
    assert (await verify_database(database_url)).findings == []
    for told_to in (feed, heard, bus, posted):
        assert [r[:4] for r in kept(told_to)] == found["timeline"]
    assert "No longer holds" in page
    assert max(recorded.values()) == 1

    # And where all came in time it is the same, but for who was chosen and what was believed meanwhile.
    with fresh_database(postgres) as url:
        async with serving_stage(url) as other:
            for event in sorted(EVENTS, key=lambda e: e["time"]):
                [result] = await other.send(event)
            expected = await facts(other, result["lead_id"])
            await everything_published(other)
            in_time = (await get(other, "/v1/transitions", after=0, limit=1000))["items"]
    assert found == expected
    assert kept(feed) == kept(in_time)


async def alerts(stage: Stage) -> Counter[tuple[str, ...]]:
    """How often who was alerted of which piece of history."""
    count: Counter[tuple[str, ...]] = Counter()
    for row in await stage.connection.fetch(
        "SELECT value FROM bus.outbox WHERE topic = 'baton.transitions' ORDER BY id"
    ):
        message = msgspec.json.decode(row["value"])
        for wish in message["alerts"]:
            person = (wish["person"] or {"id": wish["role"]})["id"]
            count[person, message["from"], message["to"], message["cause"]["event_id"]] += 1
    return count


async def test_a_move_that_is_believed_again_alerts_nobody_again(house: Stage) -> None:
    """Told, taken back and told again: who heard of it at first has heard of it, and has it again."""
    await house.send(told("1", "lead.created", 0, employees=900, seniority="vp"))
    await house.send(told("2", "content.downloaded", 2), told("3", "content.downloaded", 3))
    [first] = (await get(house, "/v1/leads"))["items"]
    assert (first["journeys"][0]["stage"], sum((await alerts(house)).values())) == ("mql", 1)
    await house.send(told("late-1", "lead.updated", 1, employees=3))
    [small] = (await get(house, "/v1/leads"))["items"]
    assert (small["journeys"][0]["stage"], small["journeys"][0]["owners"]) == ("lead", {})
    [result] = await house.send(told("late-2", "lead.updated", 1.5, employees=900))
    assert [(b["from"], b["to"]) for b in result["transitions"]] == [("lead", "mql")]
    [large] = (await get(house, "/v1/leads"))["items"]
    assert large["journeys"][0]["stage"] == "mql"
    assert large["journeys"][0]["owners"] == first["journeys"][0]["owners"]
    assert list((await alerts(house)).values()) == [1]


async def test_a_clock_of_a_stage_that_never_was_runs_no_more(house: Stage) -> None:
    """The clocks of the history that holds run, no others; a handoff that never was is withdrawn."""
    await house.send(told("1", "lead.created", 0), told("2", "meeting.booked", 30))
    running = "SELECT key FROM stage.clocks WHERE state = 'running' ORDER BY key"
    assert [r["key"] for r in await house.connection.fetch(running)] == ["handoff-ae", "silent"]
    await house.send(told("late", "deal.lost", 10, reason="no budget"))
    assert await house.connection.fetch(running) == []
    handoffs = (await get(house, "/v1/handoffs", state="withdrawn"))["items"]
    assert [h["reason"] for h in handoffs] == ["the history was corrected"]
    assert (await get(house, "/v1/handoffs/numbers", by="role"))["total"]["offered"] == 0
