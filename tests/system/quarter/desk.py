"""Baton's parts in one process, on a real PostgreSQL, driven by a clock that is told the time.

The stage service's lane, ticker and sequencer, the notifier's consumer, dispatcher and escalator: each does
what is due now when it is asked, and nothing by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import uuid_utils.compat

from services.contracts import postgres_log
from services.contracts.bus import Bus
from services.contracts.events import HANDOFFS_TOPIC, TRANSITIONS_TOPIC, LeadEvent, Message
from services.contracts.postgres_log import PostgresLog
from services.contracts.roster import Roster as SharedRoster
from services.contracts.team import team_of
from services.notifier.consumer import Consumer
from services.notifier.deliveries import Dispatcher, Patience
from services.notifier.escalations import Escalator, waits_of
from services.notifier.roster import Roster
from services.stage_service import people
from services.stage_service.lane import Lane
from services.stage_service.people import Actor
from services.stage_service.playbook import parse_playbook
from services.stage_service.shelf import Shelf
from services.stage_service.ticker import Ticker
from tests.system.quarter.receivers import Clock, Received, Wire

PUBLIC_URL = "http://baton.example"
PATIENCE = Patience(tries=5, window_s=3600, timeout_s=10)
EVENTS_AT_ONCE = 4000
HAND = Actor("Sofia", None)

NEXT = """
SELECT least(
  (SELECT min(due_at) FROM stage.clocks WHERE state = 'running' AND due_at IS NOT NULL),
  (SELECT min(coalesce(claimed_until, due_at)) FROM notifier.deliveries
   WHERE status IN ('pending', 'claimed')),
  (SELECT min(due_at) FROM notifier.escalations WHERE ended_at IS NULL))
"""

STUCK = """
SELECT 'clock' AS what, to_jsonb(c)::text AS row FROM stage.clocks c
WHERE state = 'running' AND due_at <= $1
UNION ALL SELECT 'delivery', to_jsonb(d)::text FROM notifier.deliveries d
WHERE status IN ('pending', 'claimed') AND coalesce(claimed_until, due_at) <= $1
UNION ALL SELECT 'escalation', to_jsonb(e)::text FROM notifier.escalations e
WHERE ended_at IS NULL AND due_at <= $1 LIMIT 5
"""
HELD = """
SELECT j.lead_id::text, o.key AS role FROM stage.journeys j CROSS JOIN LATERAL jsonb_each(j.owners) AS o
WHERE j.holder = $1 AND o.value ->> 'id' = $1 ORDER BY j.entered_at, j.id, o.key
"""


def new_id() -> UUID:
    """Make an id that sorts by the moment it was made."""
    return uuid_utils.compat.uuid7()


class Desk:
    """The parts; `settle` has them do all that is due."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        sequencer: asyncpg.Connection[Any],
        clock: Clock,
        lane: Lane,
        ticker: Ticker,
        consumer: Consumer,
        dispatcher: Dispatcher,
        escalator: Escalator,
        shared: SharedRoster,
        roster: Roster,
    ) -> None:
        self.pool = pool
        self.clock = clock
        self.lane = lane
        self.ticker = ticker
        self._sequencer = sequencer
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._escalator = escalator
        self._shared = shared
        self._roster = roster
        self._position = 0

    async def submit(self, events: list[LeadEvent]) -> None:
        """Apply lead events, as many at once as came."""
        for start in range(0, len(events), EVENTS_AT_ONCE):
            outcomes = await self.lane.submit(events[start : start + EVENTS_AT_ONCE])
            assert {o.status for o in outcomes} <= {"applied"}, outcomes

    async def put(self, document: dict[str, Any]) -> None:
        """Add or change a person."""
        await people.put(self.pool, document, HAND)
        await self._look()

    async def take_off(self, id: str) -> None:
        """Take a person off the roster."""
        async with self.pool.acquire() as connection, connection.transaction():
            await people.remove(connection, id, HAND)
        await self._look()

    async def _look(self) -> None:
        await self.lane.look_at_roster()
        if await self._shared.look(self.pool):
            self._roster.adopt(self._shared.team)

    def be(self, moment: datetime) -> None:
        """Make it `moment`."""
        self.clock.be(moment)

    async def held_by(self, id: str) -> list[tuple[str, str]]:
        """Give the lead and the role of each journey that the person holds."""
        rows = await self.pool.fetch(HELD, id)
        return [(r["lead_id"], r["role"]) for r in rows]

    async def settle(self) -> list[Message]:
        """Do what is due until nothing is; gives what was published meanwhile, in order."""
        published: list[Message] = []
        while True:
            busy = await self.ticker.run_due()
            while (await postgres_log.stamp(self._sequencer))[0]:
                busy += 1
            if busy:
                published += await self._read()
                while await self._consumer.run_once():
                    pass
            busy += await self._escalator.run_due()
            while await self._dispatcher.run_due():
                busy += 1
            if not busy:
                return published

    async def _read(self) -> list[Message]:
        """Read what was published, as a subscriber of the log does."""
        found: list[Message] = []
        topics = [TRANSITIONS_TOPIC, HANDOFFS_TOPIC]
        while some := await postgres_log.read(self._sequencer, self._position, topics, 1000):
            self._position = some[-1].position or 0
            found += some
        return found

    async def next_due(self) -> datetime | None:
        """Give the next moment at which a clock, a delivery or an escalation is due."""
        return await self.pool.fetchval(NEXT)

    async def what_is_due(self) -> list[str]:
        """Name what is due, for whoever has to find out why it stays so."""
        return [str(dict(r)) for r in await self.pool.fetch(STUCK, self.clock.moment)]


@asynccontextmanager
async def desk(
    url: str, clock: Clock, received: Received, playbook: str, documents: list[dict[str, Any]],
    directory: Path,
) -> AsyncIterator[Desk]:  # fmt: skip
    """Put the parts together on the empty database at `url`."""
    async with AsyncExitStack() as parts:
        pool = await parts.enter_async_context(asyncpg.create_pool(url, min_size=4, max_size=10))
        shelf = Shelf()
        await shelf.load(pool)
        await shelf.publish_file(pool, parse_playbook(playbook, "sales.yaml"))
        await people.take_file(pool, documents, wins=False)
        stage_roster, shared = SharedRoster(team_of(())), SharedRoster(team_of(()))
        await stage_roster.load(pool)
        await shared.load(pool)
        file = directory / "team.yaml"
        file.write_text("people: []\n")
        roster = Roster(file)
        roster.adopt(shared.team)
        lane = Lane(pool, shelf, stage_roster, now=clock.now)
        lane.start()
        parts.push_async_callback(lane.stop)
        wire = Wire(received)
        parts.push_async_callback(wire.aclose)
        dispatcher = Dispatcher(
            pool, wire, roster, PATIENCE, clock.now, lambda: 0.5, new_id, PUBLIC_URL
        )

        async def opened() -> Bus:
            return await PostgresLog.open(url)

        consumer = Consumer(
            opened, pool, roster, PUBLIC_URL, PATIENCE.tries, clock.now, new_id, lambda: None,
            escalate_after=waits_of("csm=1d"),
        )  # fmt: skip
        parts.push_async_callback(consumer.stop)
        escalator = Escalator(pool, roster, PATIENCE.tries, clock.now, new_id, lambda: None)
        sequencer = await asyncpg.connect(url)
        parts.push_async_callback(sequencer.close)
        ticker = Ticker(pool, lane, clock.now)
        yield Desk(
            pool, sequencer, clock, lane, ticker, consumer, dispatcher, escalator, shared, roster
        )
