"""A lane on a real database as one process has it, and lead events to send down it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest

from services.baton.verify import verify_database
from services.contracts.events import MAIN, TRANSITIONS_TOPIC, LeadEvent
from services.contracts.roster import Roster
from services.contracts.team import load_team
from services.stage_service.batch import Outcome
from services.stage_service.errors import UnavailableError
from services.stage_service.lane import Lane
from services.stage_service.playbook import parse_playbook
from services.stage_service.relay import Relay
from services.stage_service.shelf import Shelf
from tests.conftest import ROOT

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def event(
    type: str, minute: float, lead: str = "a@b.example", *, id: str = "", **data: Any
) -> LeadEvent:
    """A lead event, `minute` minutes after START."""
    time = START + timedelta(minutes=minute)
    return LeadEvent(
        id or f"{lead}-{type}-{minute}", "/t", type, time, time, None, (("email", lead),), MAIN,
        {"email": lead, **data}, {},
    )  # fmt: skip


def walk(lead: str = "a@b.example", start: float = 0) -> list[LeadEvent]:
    """The events that bring a lead from its first to a won deal."""
    types = ("lead.created", "demo.requested", "meeting.booked", "proposal.sent", "contract.sent",
             "deal.won")  # fmt: skip
    return [event(t, start + i, lead) for i, t in enumerate(types)]


class Wired:
    """A lane on a database, as one process has it."""

    def __init__(self, url: str, pool: asyncpg.Pool[Any], lane: Lane, shelf: Shelf) -> None:
        self.url, self.pool, self.lane, self.shelf = url, pool, lane, shelf

    async def transitions(self, *, held: bool = True) -> list[Any]:
        """The records in the order they were written; only those not replaced with `held`."""
        where = "WHERE replaced_by IS NULL AND kind <> 'retraction'" if held else ""
        return await self.pool.fetch(
            f"SELECT * FROM stage.transitions {where} ORDER BY journey_id, sequence"
        )

    async def ways(self) -> list[tuple[str, str]]:
        """From and to of each record that holds."""
        return [(r["from_stage"], r["to_stage"]) for r in await self.transitions()]

    async def messages(self, topic: str = TRANSITIONS_TOPIC) -> list[dict[str, Any]]:
        """What was written to the outbox for `topic`, decoded, with its type."""
        rows = await self.pool.fetch(
            "SELECT headers, value FROM bus.outbox WHERE topic = $1 ORDER BY id", topic
        )
        return [
            {
                "type": msgspec.json.decode(r["headers"])["ce_type"],
                **msgspec.json.decode(r["value"]),
            }
            for r in rows
        ]


@asynccontextmanager
async def wired(url: str, **lane_options: Any) -> AsyncIterator[Wired]:
    """Run a lane with the sales playbook and the demo roster on the database at `url`."""
    pool = await asyncpg.create_pool(url, min_size=2, max_size=6)
    shelf = Shelf()
    await shelf.load(pool)
    sales = ROOT / "playbooks/sales.yaml"
    await shelf.publish_file(pool, parse_playbook(sales.read_text(), "sales.yaml"))
    lane = Lane(pool, shelf, Roster(load_team(ROOT / "playbooks/team.yaml")), **lane_options)
    lane.start()
    try:
        yield Wired(url, pool, lane, shelf)
    finally:
        await lane.stop()
        await pool.close()


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Wired]:
    """A lane on the test's own database."""
    async with wired(database_url) as w:
        yield w


async def clean(url: str) -> None:
    """`baton verify` finds nothing (the relay's stamp included)."""
    relay = Relay(url, None)
    relay.start()
    await relay.stop()
    report = await verify_database(url)
    assert report.findings == []


async def retried(lane: Lane, events: list[LeadEvent]) -> list[Outcome]:
    """Send again on 503, as every client of Baton must."""
    for _ in range(20):
        try:
            return await lane.submit(events)
        except UnavailableError:
            continue
    raise AssertionError("20 times unavailable")


TYPES = ("lead.created", "page.viewed", "content.downloaded", "demo.requested", "meeting.booked",
         "proposal.sent", "deal.won", "deal.lost", "lead.disqualified", "lead.recycled",
         "webinar.attended")  # fmt: skip
EMPTY = (
    "TRUNCATE stage.events, stage.leads, stage.identities, stage.journeys, stage.transitions, "
    "stage.rotations, bus.outbox, bus.pending, bus.log"
)
