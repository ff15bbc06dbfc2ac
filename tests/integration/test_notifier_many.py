"""Two notifiers on one database: thousands due at once go out once each, and soon."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.notifier.channels import Channels
from services.notifier.consumer import Consumer
from services.notifier.deliveries import Dispatcher, Patience
from services.notifier.escalations import Escalator, waits_of
from services.notifier.letters import Letter, Outcome
from services.notifier.roster import Roster
from tests.integration.test_notifier_store import ListBus, new_id, transition

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
PEOPLE = 500
ALERTS = 10_000
NIGHT = datetime(2026, 3, 4, 3, tzinfo=UTC)
MORNING = datetime(2026, 3, 4, 7, tzinfo=UTC)
PUBLIC_URL = "http://baton.example"


class Clock:
    """Time that stands still until it is set going."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment
        self.began: float | None = None

    def now(self) -> datetime:
        """Give the moment."""
        if self.began is None:
            return self.moment
        return self.moment + timedelta(seconds=time.monotonic() - self.began)

    def go(self, moment: datetime) -> None:
        """Be `moment` now, and go on from there."""
        self.moment, self.began = moment, time.monotonic()


class Wire(Channels):
    """Takes everything after 5 ms, and keeps which alerts."""

    def __init__(self) -> None:
        super().__init__(None, 5, 1)
        self.ids: list[str] = []

    async def send(self, channel: str, person: Any, letter: Letter) -> Outcome:
        """Take it."""
        await asyncio.sleep(0.005)
        self.ids.extend(letter.alert_ids)
        return Outcome("delivered")


def roster(directory: Path) -> Roster:
    """Five hundred people who sleep until seven, and one leader."""
    people = "".join(
        f"  - {{id: p{n}, name: P{n}, roles: [ae], email: p@x.example, channels: [email],"
        " quiet: ['22:00-07:00']}\n"
        for n in range(PEOPLE)
    )
    file = directory / "team.yaml"
    file.write_text(
        "people:\n" + people
        + "  - {id: top, name: Top, roles: [sales_leadership], channels: [inbox]}\n"
    )  # fmt: skip
    return Roster(file)


async def test_ten_thousand_held_and_escalated_go_out_once_each(
    database_url: str, tmp_path: Path
) -> None:
    clock, wire, people = Clock(NIGHT), Wire(), roster(tmp_path)
    async with asyncpg.create_pool(database_url, min_size=0, max_size=16) as pool:
        bus = ListBus([transition(f"p{n % PEOPLE}", "ae") for n in range(ALERTS)])

        async def opened() -> ListBus:
            return bus

        consumer = Consumer(
            opened, pool, people, PUBLIC_URL, 5, clock.now, new_id, lambda: None,
            escalate_after=waits_of("ae=1m"),
        )  # fmt: skip
        while await consumer.run_once():
            pass
        clock.go(MORNING - timedelta(seconds=1))
        dispatchers = [
            Dispatcher(pool, wire, people, Patience(5, 3600, 5), clock.now, lambda: 0.5, new_id,
                       PUBLIC_URL)
            for _ in range(2)
        ]  # fmt: skip
        for dispatcher in dispatchers:
            dispatcher.start()
        while len(wire.ids) < ALERTS:
            await asyncio.sleep(0.05)
        await asyncio.gather(*(d.stop() for d in dispatchers))
        assert len(set(wire.ids)) == len(wire.ids) == ALERTS
        late = await pool.fetchval(
            "SELECT percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - $1))"
            " FROM notifier.deliveries WHERE channel = 'email'", MORNING,
        )  # fmt: skip
        assert late < 10
        # Their minutes: spread as the alerts were, within one minute.
        await pool.execute(
            "UPDATE notifier.escalations e SET due_at = $1::timestamptz + n * interval '6 ms' FROM"
            " (SELECT alert_id, row_number() OVER () AS n FROM notifier.escalations) o"
            " WHERE o.alert_id = e.alert_id", MORNING + timedelta(hours=1),
        )  # fmt: skip
        clock.go(MORNING + timedelta(hours=1))
        escalators = [Escalator(pool, people, 5, clock.now, new_id, lambda: None) for _ in range(2)]
        for escalator in escalators:
            escalator.round.start()
        count = "SELECT count(*) FROM notifier.alerts WHERE kind = 'escalation'"
        while await pool.fetchval(count) < ALERTS:
            await asyncio.sleep(0.5)
        await asyncio.gather(*(e.round.stop() for e in escalators))
        rows = await pool.fetch(
            "SELECT extract(epoch FROM created_at - $1)::float8 - 0.006 * row_number() OVER (ORDER BY"
            " created_at) AS late FROM notifier.alerts WHERE kind = 'escalation'",
            MORNING + timedelta(hours=1),
        )  # fmt: skip
        assert len(rows) == ALERTS
        distinct = "SELECT count(DISTINCT escalated_from) FROM notifier.alerts"
        assert await pool.fetchval(distinct) == ALERTS
        ordered = sorted(r["late"] for r in rows)
        assert ordered[ALERTS * 99 // 100] < 10
    wire.close()
