"""Several tickers on one database: nobody ends what another has in hand, or what it does not know yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from services.contracts.events import LeadEvent
from services.contracts.roster import Roster
from services.contracts.team import parse_team
from services.stage_service import store_handoffs
from services.stage_service.lane import Lane
from services.stage_service.playbook import parse_playbook
from services.stage_service.shelf import Shelf
from services.stage_service.ticker import Ticker
from tests.integration.test_handoffs import HOUR, SALES, TEAM, Timed, timed
from tests.integration.wired import START, clean, event


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Timed]:
    async with timed(database_url) as t:
        yield t


class Interrupted:
    """A lane after each of whose commits something else happens, before its ticker hears of the commit."""

    def __init__(self, lane: Lane, then: Callable[[], Awaitable[Any]]) -> None:
        self._lane = lane
        self._then = then
        self.playbooks = lane.playbooks
        self.team = lane.team

    async def submit(self, events: Sequence[LeadEvent]) -> Any:
        """Submit them, and let the other thing happen."""
        outcomes = await self._lane.submit(events)
        await self._then()
        return outcomes

    async def look_at_playbooks(self) -> None:
        """As the lane does."""
        await self._lane.look_at_playbooks()


async def test_the_next_step_that_another_has_in_hand_is_left_to_it(it: Timed) -> None:
    """Back after a night, one ticker fires the deadline; a second claims the next rung, and is killed."""
    await it.tell(event("meeting.booked", 0))
    it.now = START + 9 * HOUR
    claimed: list[Any] = []

    async def claim() -> None:
        it.now += timedelta(milliseconds=1)
        async with it.pool.acquire() as connection:
            claimed.extend(await store_handoffs.claim_due(connection, it.now, 10))

    first = Ticker(it.pool, Interrupted(it.lane, claim), lambda: it.now)  # type: ignore[arg-type]
    await first.run_due()
    assert claimed
    await it.tick(it.now + timedelta(seconds=11))
    told = [who for type, who in await it.told() if type == "clock.rang.v1"]
    assert told == [["head"], ["boss"]]
    await clean(it.url)


async def test_a_clock_of_a_playbook_published_elsewhere_is_not_ended(it: Timed) -> None:
    """A replica that has had no events since the playbook was published finds its new clock due first."""
    shelf = Shelf()
    await shelf.load(it.pool)
    idle = Lane(it.pool, shelf, Roster(parse_team(TEAM, "team.yaml")), now=lambda: it.now)
    ticker = Ticker(it.pool, idle, lambda: it.now)
    changed = SALES.replace("  - key: qualify\n", "  - key: first-call\n", 1)
    await it.shelf.publish_file(it.pool, parse_playbook(changed, "sales.yaml"))
    await it.tell(event("demo.requested", 0))
    it.now = START + timedelta(days=2)
    idle.start()
    await ticker.run_due()
    await idle.stop()
    await it.tick(it.now + timedelta(seconds=11))
    rang = [m["clock"] for m in await it.messages("baton.handoffs") if "clock" in m]
    assert "first-call" in rang
    await clean(it.url)


async def test_a_clock_that_the_playbook_has_no_more_ends(it: Timed) -> None:
    await it.tell(event("demo.requested", 0))
    changed = SALES.replace("  - key: qualify\n", "  - key: first-call\n", 1)
    await it.shelf.publish_file(it.pool, parse_playbook(changed, "sales.yaml"))
    await it.tick(START + timedelta(days=9))
    assert (await it.clocks())["qualify"] != "running"
    due = await it.pool.fetch("SELECT key FROM stage.clocks WHERE due_at IS NOT NULL")
    assert [row["key"] for row in due] == ["first-call"], "begun when it was learned of"


async def test_ending_claims_waits_for_no_batch_and_so_never_in_a_circle(it: Timed) -> None:
    """A batch holds one of two clocks and wants the other, which the ticker's statement would hold."""
    await it.tell(*(event("meeting.booked", 0, f"{n}@c.example") for n in range(2)))
    now = START + 4 * HOUR
    async with it.pool.acquire() as ticker, it.pool.acquire() as batch:
        due = [c.id for c in await store_handoffs.claim_due(ticker, now, 10)]
        assert len(due) == 2
        await batch.execute("BEGIN")
        lock = "SELECT 1 FROM stage.clocks WHERE id = $1 FOR UPDATE"
        physical = [
            r["id"] for r in await ticker.fetch(
                "SELECT id::text FROM stage.clocks WHERE id = ANY($1::uuid[]) ORDER BY ctid", due)
        ]  # fmt: skip
        await batch.execute(lock, physical[1])
        ending = asyncio.create_task(store_handoffs.release(ticker, due, now, void=False))
        waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
        async with asyncio.timeout(10):
            while not ending.done() and not await it.pool.fetchval(waits):
                await asyncio.sleep(0.01)
        await batch.execute(lock, physical[0])
        await batch.execute("COMMIT")
        await ending
