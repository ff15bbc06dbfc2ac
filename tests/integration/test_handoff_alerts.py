"""From a lead's events to people: what is published of handoffs and clocks, and who hears of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
import pytest

from services.contracts.events import HANDOFFS_TOPIC, TRANSITIONS_TOPIC, Message
from services.notifier.roster import Roster
from tests.integration.test_handoffs import HOUR, Timed, answer, timed
from tests.integration.test_notifier_handoffs import Counter as Desk
from tests.integration.wired import START, clean, event

TEAM = """
people:
  - {id: lena, name: Lena, roles: [lead_agent]}
  - id: adam
    name: Adam
    roles: [ae]
    email: a@x.example
    channels: [inbox, email]
    time_zone: America/New_York
  - {id: head, name: Head, roles: [], leads: [ae], weight: 0, channels: [inbox, console]}
  - {id: boss, name: Boss, roles: [sales_leadership], channels: [inbox, console]}
"""


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Timed]:
    """The stage service's lane and clocks, with told time."""
    async with timed(database_url, TEAM) as it:
        yield it


@pytest.fixture
async def desk(database_url: str, tmp_path: Path) -> AsyncIterator[Desk]:
    """The notifier on the same database."""
    file = tmp_path / "team.yaml"
    file.write_text(TEAM)
    async with asyncpg.create_pool(database_url, min_size=0, max_size=8) as pool:
        desk = Desk(pool, Roster(file))
        yield desk
        desk.wire.close()


async def hear(stage: Timed, desk: Desk, topics: tuple[str, ...] = ()) -> None:
    """Have the notifier read all that was published, from the beginning: repeats are normal."""
    desk.clock.moment = stage.now
    rows = await stage.pool.fetch(
        "SELECT topic, key, headers, value FROM bus.outbox WHERE topic = ANY($1) ORDER BY id",
        topics or (TRANSITIONS_TOPIC, HANDOFFS_TOPIC),
    )
    messages = [
        Message(r["topic"], r["key"], msgspec.json.decode(r["headers"], type=dict[str, str]),
                r["value"]) for r in rows
    ]  # fmt: skip
    for n in range(0, len(messages), 500):
        await desk.tell(*messages[n : n + 500])
    await desk.settle()
    assert await desk.dead_letters() == []


async def alerts_for(desk: Desk, person: str) -> list[dict[str, Any]]:
    """A person's alerts, oldest first."""
    return [a for a in (await desk.alerts())[::-1] if a["addressee_id"] == person]


async def test_a_handoff_that_nobody_answers_climbs_until_somebody_does(
    stage: Timed, desk: Desk
) -> None:
    """Offered, reminded of, overdue, escalated: each to whom it is for, once, in one thread."""
    await stage.tell(event("meeting.booked", 0))
    await hear(stage, desk)
    for hours in (3, 4, 6, 8):
        await stage.tick(START + hours * HOUR)
        await hear(stage, desk)
    mine = await alerts_for(desk, "adam")
    assert [a["kind"] for a in mine] == ["transition", "clock", "handoff"]
    assert [a["subject"].split(":")[0].split(" ")[0] for a in mine] == ["Yours", "Due", "Overdue"]
    deadline = (START + 4 * HOUR).astimezone(ZoneInfo("America/New_York"))
    until = f"{deadline:%a %Y-%m-%d %H:%M %Z}"  # Adam's own clock
    assert f"Please accept or reject it until {until}." in mine[0]["body"]
    assert mine[1]["subject"].startswith(f"Due {until}: ")
    letters = [letter for who, letter in desk.letters if who == "adam"]
    assert all(letter.answer is not None for letter in letters)
    assert [len(letter.earlier) for letter in letters] == [0, 1, 2]
    [head] = await alerts_for(desk, "head")
    [boss] = await alerts_for(desk, "boss")
    assert (head["kind"], boss["kind"]) == ("clock", "clock")
    assert "Ask Adam for an answer" in head["body"]
    assert head["subject"].startswith("Escalated to you: ")

    await stage.tell(answer("accepted", 9 * 60, person="adam"))
    await hear(stage, desk)
    everybody = await desk.alerts()
    assert {a["status"] for a in everybody} == {"acknowledged"}
    assert {a["acknowledged_by"] for a in everybody} == {"adam"}
    await clean(stage.url)


async def test_a_rejection_ends_the_alert_and_goes_on(stage: Timed, desk: Desk) -> None:
    """The account executive gives it back: the lead agent hears of it, nothing stays open."""
    await stage.tell(event("demo.requested", 0), event("meeting.booked", 5))
    await hear(stage, desk)
    await stage.tell(answer("rejected", 30, person="adam", reason="No budget"))
    await hear(stage, desk)
    [rejected] = await alerts_for(desk, "adam")
    assert rejected["acknowledged_why"] == "rejected by adam: No budget"
    taken, back = await alerts_for(desk, "lena")
    assert (taken["status"], taken["acknowledged_why"]) == ("delivered", None)  # it went on
    assert (back["status"], back["stage"]) == ("delivered", "mql")
    await clean(stage.url)


async def test_topics_read_in_any_order_end_alike(stage: Timed, desk: Desk) -> None:
    """All handoffs before all transitions: what was answered is settled, the rest can be answered."""
    for n in range(4):
        lead = f"lead{n}@x{n}.example"
        await stage.tell(event("meeting.booked", n, lead))
        if n % 2:
            await stage.tell(event("handoff.accepted", n + 30, lead, person="adam"))
    await hear(stage, desk, (HANDOFFS_TOPIC,))
    await hear(stage, desk, (TRANSITIONS_TOPIC,))
    mine = await alerts_for(desk, "adam")
    assert Counter(a["status"] for a in mine) == {"acknowledged": 2, "delivered": 2}
    desk.clock.pass_(timedelta(minutes=31).total_seconds())
    assert await desk.escalate() == 2
    await clean(stage.url)
