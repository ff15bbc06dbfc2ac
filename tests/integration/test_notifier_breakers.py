"""Channels that rest: what others learn meanwhile must neither wake one early nor keep one shut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.contracts.audit import Actor
from services.notifier import attention, breakers
from services.notifier.letters import Outcome
from services.notifier.roster import Roster
from tests.integration.test_notifier_store import Desk, ListBus, transition

TEAM = "people:\n" + "".join(
    f"  - {{id: p{n}, name: P{n}, roles: [ae], email: p{n}@baton.example, channels: [email]}}\n"
    for n in range(6)
)
DOWN = Outcome("failed", "mail server: away", down=True)


class Office(Desk):
    """A notifier of six people who have nothing but e-mail."""

    async def tell(self, *people: str) -> None:
        """Have one alert each recorded."""
        await self.consumer(ListBus([transition(p, "ae") for p in people])).run_once()

    async def trip(self) -> None:
        """Let three messages fail, so that e-mail rests; then let the rest pass."""
        self.wire.outcomes = [DOWN, DOWN, DOWN]
        await self.tell("p0", "p1", "p2")
        assert await self.dispatcher.run_due() == 3
        [state] = await breakers.states(self.pool)
        assert state["failures"] == 3
        self.clock.pass_(120)  # the waits between the tries of each message too


@pytest.fixture
async def office(database_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    """A notifier on an empty database."""
    file = tmp_path / "team.yaml"
    file.write_text(TEAM)
    async with asyncpg.create_pool(database_url, min_size=0, max_size=8) as pool:
        office = Office(pool, Roster(file))
        yield office
        office.wire.close()


@pytest.mark.parametrize("other", [Outcome("delivered"), DOWN])
async def test_what_a_channel_asked_for_outlasts_what_was_under_way(
    office: Office, other: Outcome
) -> None:
    """One message is told to wait for ten minutes while another, sent before, ends well or ill."""
    await breakers.failed(office.pool, "email", "one failure before", office.clock.now())
    office.clock.pass_(1)
    office.wire.gate.clear()
    await office.tell("p0", "p1")
    sending = asyncio.create_task(office.dispatcher.run_due())
    while len(office.dispatcher._attempts) < 2:
        await asyncio.sleep(0)
    office.clock.pass_(1)
    office.wire.outcomes = [Outcome("failed", "429", retry_after_s=600), other]
    office.wire.gate.set()
    await sending
    await office.tell("p2")
    office.clock.pass_(590)
    assert await office.dispatcher.run_due() == 0
    office.clock.pass_(10)
    assert await office.dispatcher.run_due() > 0


async def test_the_longer_of_two_rests_counts(office: Office) -> None:
    now = office.clock.now()
    await breakers.rest(office.pool, "email", 600, "429", now)
    await breakers.rest(office.pool, "email", 1, "429", now)
    [state] = await breakers.states(office.pool)
    assert (state["rests_until"] - now).total_seconds() == 600


async def test_a_refusal_of_one_message_is_an_answer_and_opens_the_channel(office: Office) -> None:
    """The server is back, and refuses the first recipient: the others need not wait for another probe."""
    await office.trip()
    office.wire.outcomes = [Outcome("failed", "550 no such user", permanent=True)]
    assert await office.dispatcher.run_due() == 1
    assert await breakers.states(office.pool) == []
    assert await office.dispatcher.run_due() == 2


async def test_what_is_not_sent_is_no_probe(office: Office) -> None:
    """The first lanes of a resting channel are muted: the next one tries it all the same, at once."""
    await office.trip()
    now = office.clock.now()
    for alert in await office.alerts():
        if alert["addressee_id"] in ("p0", "p1"):
            await attention.mute(
                office.pool, alert["addressee_id"], alert["lead_id"], None, Actor("them"), now
            )
    for _ in range(4):
        await office.dispatcher.run_due()
    assert await breakers.states(office.pool) == []
    statuses = {a["addressee_id"]: a["status"] for a in await office.alerts()}
    assert statuses == {"p0": "suppressed", "p1": "suppressed", "p2": "delivered"}


async def test_who_has_left_keeps_no_channel_shut(office: Office) -> None:
    """Alerts of people who are not in the roster any more are first in line at a resting channel."""
    await office.trip()
    gone = Outcome("skipped", "the person is not in the roster any more")
    office.wire.outcomes = [gone, gone]
    for _ in range(3):
        assert await office.dispatcher.run_due() == 1
    assert await breakers.states(office.pool) == []
    statuses = sorted(a["status"] for a in await office.alerts())
    assert statuses == ["dead_lettered", "dead_lettered", "delivered"]
