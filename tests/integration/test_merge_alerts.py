"""The whole path over a merge: from the lane over the bus to the notifier; nobody is told twice (I6)."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

from services.contracts.events import MERGED_BY_HAND
from services.contracts.postgres_log import PostgresLog
from services.notifier.consumer import Consumer
from services.notifier.roster import Roster
from services.stage_service.relay import Relay
from tests.integration.test_merging import by_hand, live, part, said
from tests.integration.wired import Wired, clean, wired

ROOT = Path(__file__).parents[2]


class Told:
    """A notifier that reads the log of `it` when asked."""

    def __init__(self, it: Wired) -> None:
        self._it = it
        self._consumer = Consumer(
            self._open, it.pool, Roster(ROOT / "playbooks/team.yaml"), "http://baton.test", 3,
            lambda: datetime.now(UTC), uuid.uuid4, lambda: None,
        )  # fmt: skip

    async def _open(self) -> PostgresLog:
        return PostgresLog(self._it.pool, self._it.url)

    async def aclose(self) -> None:
        """Leave the log."""
        await self._consumer.stop()

    async def alerts(self) -> list[tuple[str, str, str]]:
        """Publish and read all there is; give (lead, role, stage) of every alert."""
        relay = Relay(self._it.url, None)
        relay.start()
        async with asyncio.timeout(10):
            while await self._it.pool.fetchval("SELECT count(*) FROM bus.pending"):
                relay.committed(None)
                await asyncio.sleep(0)
        await relay.stop()
        while await self._consumer.run_once():
            pass
        rows = await self._it.pool.fetch(
            "SELECT lead_id::text, role, stage FROM notifier.alerts ORDER BY created_at, id"
        )
        return [tuple(r.values()) for r in rows]


async def test_nobody_is_told_twice_over_a_merge(database_url: str) -> None:
    async with wired(database_url) as it, aclosing(Told(it)) as told:
        await it.lane.submit([said("lead.created", 0, email="a@b.example")])
        await it.lane.submit([said("demo.requested", 5, external_ids={"crm": "7"})])
        one, other = await live(it)
        assert await told.alerts() == [(other, "lead_agent", "mql")]
        await it.lane.submit([said("x", 9, email="a@b.example", external_ids={"crm": "7"})])
        assert await live(it) == [one]
        assert await told.alerts() == [(other, "lead_agent", "mql")]
        # What comes after is told of the survivor, once.
        await it.lane.submit([said("meeting.booked", 12, external_ids={"crm": "7"})])
        assert await told.alerts() == [(other, "lead_agent", "mql"), (one, "ae", "sql")]
        # Parted: the meeting was the other's, whom the AE has, and knows of it.
        owner = await it.pool.fetchval("SELECT owners -> 'ae' FROM stage.journeys")
        await part(it, other)
        assert await told.alerts() == [(other, "lead_agent", "mql"), (one, "ae", "sql")]
        stages = {
            r["lead"]: (r["stage"], r["ae"])
            for r in await it.pool.fetch(
                "SELECT lead_id::text AS lead, stage, owners -> 'ae' AS ae FROM stage.journeys"
            )
        }
        assert stages[other] == ("sql", owner)
        assert stages[one][0] == "lead"
        assert await it.pool.fetchval("SELECT count(*) FROM notifier.dead_letters") == 0
    await clean(database_url)


async def test_both_had_told_the_same_role(database_url: str) -> None:
    """Two leads with two owners: the survivor's keeps it, the other is not told again either."""
    async with wired(database_url) as it, aclosing(Told(it)) as told:
        for n in range(2):
            await it.lane.submit([said("meeting.booked", n, email=f"p{n}@b.example")])
        one, other = await live(it)
        before = await told.alerts()
        assert sorted(before) == [(one, "ae", "sql"), (other, "ae", "sql")]
        owner = await it.pool.fetchval("SELECT owners FROM stage.journeys WHERE lead_id = $1", one)
        await it.lane.submit_alone(by_hand(MERGED_BY_HAND, one, other))
        assert await told.alerts() == before
        assert await it.pool.fetchval("SELECT owners FROM stage.journeys") == owner
        await part(it, other)
        assert await told.alerts() == before
        owners = await it.pool.fetch("SELECT DISTINCT owners FROM stage.journeys")
        assert len(owners) == 2
    await clean(database_url)
