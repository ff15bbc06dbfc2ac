"""What `baton verify` and the numbers count of handoffs: alerts still to come, and what was nobody's."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest

from services.baton.verify import Report, verify_database
from services.stage_service.handoff_numbers import HISTORY
from tests.integration.stage import Stage
from tests.integration.test_handoffs_api import START, listed, ring, stage, tell, waiting

__all__ = ["stage"]


async def verified(stage: Stage, database_url: str) -> Report:
    """What `baton verify` says once all is published."""
    async with asyncio.timeout(10):
        while await stage.connection.fetchval("SELECT count(*) FROM bus.pending"):
            await asyncio.sleep(0.01)
    return await verify_database(database_url)


async def test_alerts_of_handoffs_that_the_notifier_has_not_recorded_are_counted(
    stage: Stage, database_url: str
) -> None:
    item = await waiting(stage)
    offered = (await verified(stage, database_url)).alerts_waiting
    assert offered >= 1, "that of the transition"
    await ring(stage, datetime.fromisoformat(item["due_at"]) + timedelta(seconds=1))
    report = await verified(stage, database_url)
    wished = await stage.connection.fetch(
        """SELECT o.message_id, o.headers ->> 'ce_type' AS type, w ->> 'role' AS role,
             coalesce(w -> 'person' ->> 'id', 'role:' || (w ->> 'role')) AS recipient
           FROM bus.outbox o, jsonb_array_elements(convert_from(o.value, 'UTF8')::jsonb -> 'alerts') w
           WHERE o.topic = 'baton.handoffs'"""
    )
    assert "baton.handoff.overdue.v1" in {w["type"] for w in wished}
    assert report.alerts_waiting == offered + len(wished)
    for n, wish in enumerate(wished, 1):
        await stage.connection.execute(
            """INSERT INTO notifier.alerts (id, transition_id, recipient, lead_id, role, status, subject,
                 body, stage, created_at)
               VALUES (gen_random_uuid(), $1::uuid, $2, gen_random_uuid(), $3, 'delivered', '', '', 'sql',
                 now())""",
            wish["message_id"], wish["recipient"], wish["role"],
        )  # fmt: skip
        again = await verify_database(database_url)
        assert again.alerts_waiting == offered + len(wished) - n


@pytest.mark.parametrize("by", ["person", "role"])
async def test_handoffs_known_only_when_over_are_a_group_of_their_own(
    stage: Stage, by: str
) -> None:
    """A lead arrives with its whole past: who had it then, nobody knows."""
    at = START
    for type in ("meeting.booked", "proposal.sent"):
        await tell(stage, "ada", type, at)
        at += timedelta(minutes=5)
    late = START - timedelta(days=20)
    lead = await tell(stage, "ben", "deal.won")
    stage_events = [("demo.requested", late), ("meeting.booked", late + timedelta(days=1))]
    for type, moment in stage_events:
        await stage.send({
            "specversion": "1.0", "id": type, "source": "/old", "type": type, "time": moment.isoformat(),
            "data": {"email": "ben@ben.example"},
        })  # fmt: skip
    history = [i for i in await listed(stage, lead_id=lead) if i["person"] is None]
    assert history, "some were over when they became known"
    assert all(i["state"] != "offered" for i in history)
    answer = (await stage.client.get("/v1/handoffs/numbers", params={"by": by})).json()
    groups = {g["value"]: g for g in answer["groups"]}
    if by == "role":
        assert HISTORY not in groups
        return
    assert None not in groups, "nobody's are those that nobody could be found for"
    assert groups[HISTORY]["offered"] == len(history)
    assert groups[HISTORY]["title"] == "nobody: known only when it was over"
    assert sum(g["offered"] for g in groups.values()) == answer["total"]["offered"]
