"""Olist's 8,000 leads and 842 deals in time order, reversed, shuffled: identical timelines and funnels (I7).

All events go over HTTP into a database of their own for each order. What may differ is what was known when:
numbers of records, what was replaced, and the persons chosen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.baton.embedded import EmbeddedPostgres
from services.baton.verify import verify_database
from tests.integration.stage import BATCHED, Stage, fresh_database, running_stage
from tests.system.test_olist import olist_events

pytestmark = [pytest.mark.long, pytest.mark.real_data, pytest.mark.timeout(600)]

A_REQUEST = 500
TIMELINES_OVER_HTTP = 150
Order = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def in_time(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(events, key=lambda e: (e["time"], e["source"], e["id"]))


def reversed_(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return in_time(events)[::-1]


def shuffled(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In any order, every tenth twice."""
    chance = random.Random(20180613)
    mixed = events + chance.sample(events, len(events) // 10)
    chance.shuffle(mixed)
    return mixed


_HISTORY = """
SELECT l.external_ids ->> 'olist' AS who, l.fit, l.intent, l.attributes, l.first_seen_at, l.last_seen_at,
  j.stage, j.furthest_stage, j.started_at, j.entered_at,
  ARRAY(SELECT jsonb_object_keys(j.owners) ORDER BY 1) AS roles,
  (SELECT jsonb_agg(jsonb_build_array(e.type, e.time, e.source, e.id, e.data)
     ORDER BY e.time, e.source, e.id) FROM stage.events e WHERE e.lead_id = l.id) AS events,
  (SELECT jsonb_agg(jsonb_build_array(t.from_stage, t.to_stage, t.occurred_at, t.visit_entered_at, t.rule,
     t.role, t.skipped, t.handoff, t.event_id) ORDER BY t.sequence) FROM stage.transitions t
   WHERE t.journey_id = j.id AND t.replaced_by IS NULL AND t.kind <> 'retraction') AS moves
FROM stage.leads l JOIN stage.journeys j ON j.lead_id = l.id ORDER BY 1
"""


async def told(stage: Stage, events: list[dict[str, Any]]) -> None:
    """Send the events; a request that took too long is sent again, as every client does."""
    for start in range(0, len(events), A_REQUEST):
        body = msgspec.json.encode(events[start : start + A_REQUEST])
        for _ in range(20):
            answer = await stage.post(body, BATCHED)
            if answer.status_code != 503:
                break
        assert answer.status_code == 200, answer.text


def holding(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a timeline says that holds, without ids of ours, numbers, persons and when it became known."""
    found: list[dict[str, Any]] = []
    for item in items:
        if item["kind"] == "event":
            found.append({k: item[k] for k in ("type", "source", "id", "data", "occurred_at")})
        elif item["kind"] in ("transition", "correction") and not item["replaced_by"]:
            if item["from"] != item["to"]:
                kept = (
                    "from",
                    "to",
                    "occurred_at",
                    "skipped",
                    "handoff",
                    "seconds_in_stage",
                    "cause",
                )
                found.append({k: item[k] for k in kept} | {"role": item["responsible"]["role"]})
        elif item["kind"] == "handoff" and item.get("state") != "withdrawn":
            kept = ("action", "occurred_at", "stage", "role", "round")
            found.append({k: item.get(k) for k in kept})
    return found


async def outcome(stage: Stage) -> dict[str, Any]:
    """Everything of the funnel, and all timelines; a sample of these as HTTP tells them."""

    async def get(path: str, **query: str) -> Any:
        answer = await stage.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    rows = await stage.connection.fetch(_HISTORY)
    leads = await stage.connection.fetch(
        "SELECT id::text, external_ids ->> 'olist' AS who FROM stage.leads ORDER BY 2"
    )
    sample = leads[:: len(leads) // TIMELINES_OVER_HTTP]
    return {
        "history": [tuple(r) for r in rows],
        "timelines": {
            r["who"]: holding((await get(f"/v1/leads/{r['id']}/timeline"))["items"]) for r in sample
        },
        "funnel": await get("/v1/funnel"),
        "by origin": await get("/v1/funnel", by="origin"),
        "since": await get("/v1/funnel", **{"from": "2018-01-01", "to": "2018-04-01"}),
        "durations": [
            await get("/v1/funnel/durations", from_stage=one, to_stage=other)
            for one, other in (("lead", "mql"), ("mql", "sql"), ("mql", "closed_won"))
        ],
    }  # fmt: skip


@pytest.fixture
def stages(postgres: EmbeddedPostgres) -> Callable[[Order, Path], Any]:
    async def run(order: Order, data: Path) -> dict[str, Any]:
        with fresh_database(postgres) as url:
            async with running_stage(url) as stage:
                await told(stage, order(olist_events(data / "olist")))
                assert await stage.count() == 8842
                found = await outcome(stage)
            assert (await verify_database(url)).findings == []
        return found

    return run


async def test_three_orders_one_history(stages: Any, shared_data: Path) -> None:
    """In time order, reversed, and shuffled with repeats."""
    first = await stages(in_time, shared_data)
    assert len(first["history"]) == 8000
    assert first["funnel"]["stages"][-1]["reached"] == 842
    for order in (reversed_, shuffled):
        other = await stages(order, shared_data)
        for part, expected in first.items():
            assert other[part] == expected, f"{part} of {order.__name__}"
