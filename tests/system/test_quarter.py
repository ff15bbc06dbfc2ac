"""A sales team's quarter in made-up time: nothing waits in silence, nobody is disturbed out of hours."""

from __future__ import annotations

import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.system.quarter import checks, leads, roster, seed
from tests.system.quarter.desk import desk
from tests.system.quarter.reading import Book
from tests.system.quarter.receivers import Clock, HookServer, Received
from tests.system.quarter.walk import Walk

_log = logging.getLogger("quarter")
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

FULL = 20_000
LEADS = int(os.environ.get("BATON_QUARTER_LEADS", FULL))
EVERY_KIND = (
    "accepted", "rejected", "withdrawn", "overdue", "stand_in", "role_lead", "sales_leadership", "merged",
    "skipped", "why: quiet hours", "why: outside working hours", "why: away", "why: digest", "why: burst",
)  # fmt: skip
"""What a quarter must have had, or its checks have seen nothing."""
SEED = seed()
BEGIN = datetime(roster.BEGIN.year, roster.BEGIN.month, roster.BEGIN.day, tzinfo=UTC)


async def test_a_quarter_of_twenty_people_and_twenty_thousand_leads(
    database_url: str, tmp_path: Path
) -> None:
    """Owners, deadlines, ladders, shares, hours, each once; `BATON_QUARTER_SEED` makes it the same again."""
    _log.warning("BATON_QUARTER_SEED=%d", SEED)
    clock, book = Clock(BEGIN), Book()
    received = Received(clock.now)
    async with HookServer(received) as hooks:
        documents = roster.people(SEED, hooks.url)
        for document in documents:
            book.put(BEGIN, document)
        async with desk(
            database_url, clock, received, roster.playbook(), documents, tmp_path
        ) as world:
            walk = Walk(
                world, book, SEED, leads.stories(SEED, LEADS), roster.changes(SEED, hooks.url)
            )
            began = time.monotonic()
            await walk.run()
            _log.warning(
                "%d events in %d steps, %.0f s",
                walk.events, walk.steps, time.monotonic() - began,
            )  # fmt: skip
    counted = await checks.everything(
        database_url, clock.moment, book, received.arrivals, walk.published
    )
    _log.warning("%s", counted)
    if LEADS >= FULL:
        seen = {**counted["handoffs"], **counted["escalations"], **counted["deliveries"]}
        assert not [each for each in EVERY_KIND if not seen.get(each)], (
            "what was checked never came"
        )
