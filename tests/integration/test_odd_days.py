"""Deadlines of handoffs on odd days, and where somebody is missing: each with its stated outcome."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.baton.verify import verify_database
from services.contracts.events import HANDOFFS_TOPIC
from services.stage_service.ticker import Ticker
from tests.integration.stage import running_stage
from tests.integration.test_handoffs import TEAM, Timed, timed
from tests.integration.wired import START, clean, event

OFFICE = "working_hours: '09:00-17:00'"
NIGHT = "hours: {sat: ['22:00-06:00'], sun: ['22:00-06:00']}"
BERLIN = "time_zone: Europe/Berlin"
NEW_YORK = "time_zone: America/New_York, holidays: US"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def adam(*has: str) -> str:
    """The roster with Adam alone as account executive, who `has` this."""
    lines = [line for line in TEAM.splitlines() if "id: beth" not in line]
    return "\n".join(lines).replace("roles: [ae]", f"roles: [ae], {', '.join(has)}")


async def steps(it: Timed, offered: datetime) -> dict[str, datetime]:
    """Offer a handoff to Adam at `offered`, tick from step to step, and give when each fired."""
    minute = (offered - START) / timedelta(minutes=1)
    await it.tell(event("meeting.booked", minute))
    while (due := await it.pool.fetchval(
        "SELECT min(due_at) FROM stage.clocks WHERE state = 'running' AND key = 'handoff-ae'"
    )) is not None:  # fmt: skip
        assert await it.tick(due - timedelta(seconds=1)) == 0
        assert await it.tick(due) >= 1
    rows = await it.pool.fetch(
        "SELECT time, data ->> 'step' AS step FROM stage.events WHERE source = 'baton' ORDER BY time"
    )
    return {_called(r["step"]): r["time"] for r in rows}


def _called(step: str) -> str:
    """Give ``remind``, ``due``, or who a rung is for."""
    kind, _, rest = step.partition("-")
    return rest.partition("-")[2] if kind == "escalate" else kind


@pytest.mark.parametrize(
    ("has", "offered", "due"),
    [
        # The clocks are put on, on a Sunday at 02:00: an office's Monday begins at nine all the same.
        ((OFFICE, BERLIN), "2026-03-27T16:00+01:00", "2026-03-30T12:00+02:00"),
        # Put back: the same.
        ((OFFICE, BERLIN), "2026-10-23T16:00+02:00", "2026-10-26T12:00+01:00"),
        # Whoever works through the night of the change works an hour less, by the same clocks on the wall ...
        ((NIGHT, BERLIN), "2026-03-28T23:00+01:00", "2026-03-29T04:00+02:00"),
        # ... or an hour more.
        ((NIGHT, BERLIN), "2026-10-24T23:00+02:00", "2026-10-25T02:00+01:00"),
        # A leap day is a working day like any other.
        ((OFFICE, BERLIN), "2028-02-28T16:00+01:00", "2028-02-29T12:00+01:00"),
        ((OFFICE, BERLIN), "2028-02-29T16:00+01:00", "2028-03-01T12:00+01:00"),
        # 4 July 2026 is a Saturday: the United States keep the Friday before it.
        ((OFFICE, NEW_YORK), "2026-07-02T16:00-04:00", "2026-07-06T12:00-04:00"),
        # 3 October 2026 is a Saturday too: Germany keeps no other day for it.
        ((OFFICE, BERLIN, "holidays: DE"), "2026-10-01T16:00+02:00", "2026-10-02T12:00+02:00"),
        ((OFFICE, BERLIN, "holidays: DE"), "2026-10-02T16:00+02:00", "2026-10-05T12:00+02:00"),
        # Without working hours a person's deadline runs day and night; quiet hours do not stop it.
        ((BERLIN, "quiet: ['22:00-07:00']"), "2026-03-06T22:00+01:00", "2026-03-07T02:00+01:00"),
    ],
)
async def test_a_deadline_is_four_hours_of_its_owners_working_time(
    database_url: str, has: tuple[str, ...], offered: str, due: str
) -> None:
    async with timed(database_url, team=adam(*has)) as it:
        fired = await steps(it, at(offered))
        assert fired["due"] == at(due)
        row = await it.pool.fetchrow("SELECT person_id, due_at, overdue_at FROM stage.handoffs")
        assert tuple(row) == ("adam", at(due), at(due))
        await clean(it.url)


async def test_the_ladder_counts_the_hour_that_the_night_lacks(database_url: str) -> None:
    """Of the shift 22:00-06:00 seven hours are left in spring: the eighth is the next evening's first."""
    async with timed(database_url, team=adam(NIGHT, BERLIN)) as it:
        fired = await steps(it, at("2026-03-28T22:00+01:00"))
        assert fired == {
            "remind": at("2026-03-29T01:00+01:00"), "due": at("2026-03-29T03:00+02:00"),
            "stand_in": at("2026-03-29T03:00+02:00"), "role_lead": at("2026-03-29T05:00+02:00"),
            "sales_leadership": at("2026-03-29T23:00+02:00"),
        }  # fmt: skip


async def test_the_ladder_counts_the_hour_that_comes_twice(database_url: str) -> None:
    """Nine hours lie between 22:00 and 06:00 in autumn: all eight are in one shift."""
    async with timed(database_url, team=adam(NIGHT, BERLIN)) as it:
        fired = await steps(it, at("2026-10-24T22:00+02:00"))
        assert fired == {
            "remind": at("2026-10-25T01:00+02:00"), "due": at("2026-10-25T02:00+02:00"),
            "stand_in": at("2026-10-25T02:00+02:00"), "role_lead": at("2026-10-25T03:00+01:00"),
            "sales_leadership": at("2026-10-25T05:00+01:00"),
        }  # fmt: skip


@pytest.mark.parametrize(
    ("offered", "due"),
    [
        ("2026-03-20T09:00+01:00", "2026-04-03T10:00+02:00"),
        ("2026-10-20T09:00+02:00", "2026-11-03T08:00+01:00"),
        ("2028-02-20T09:00+01:00", "2028-03-05T09:00+01:00"),
    ],
)
async def test_fourteen_days_on_the_wall_are_336_hours(
    database_url: str, offered: str, due: str
) -> None:
    """Day and night are counted, a leap day too; that the clocks were put on or back changes nothing."""
    async with timed(database_url, team=adam(OFFICE, BERLIN)) as it:
        await it.tell(event("meeting.booked", (at(offered) - START) / timedelta(minutes=1)))
        row = await it.pool.fetchrow(
            "SELECT deadline, due_at FROM stage.clocks WHERE key = 'silent'"
        )
        assert row["deadline"] == at(due)
        assert row["due_at"] == at(due) - timedelta(days=3)


async def test_where_the_roster_has_nobody_the_role_itself_is_told(database_url: str) -> None:
    """No account executive, no leadership: it waits for the role, and its deadline is the wall's."""
    team = "people: [{id: mark, name: Mark, roles: [marketing]}]"
    async with timed(database_url, team=team) as it:
        fired = await steps(it, START)
        assert fired["due"] == START + timedelta(hours=4)
        assert await it.handoffs() == [("sql", "ae", 1, None, "offered")]
        overdue = [m for m in await it.messages(HANDOFFS_TOPIC) if m["type"].endswith("overdue.v1")]
        assert [m["alerts"] for m in overdue] == [[{"role": "ae", "person": None}]]
        await clean(it.url)


class Office:
    """A stage service whose time is told, and its people."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 4, 9, tzinfo=UTC)

    def now(self) -> datetime:
        """Give the moment."""
        return self.moment


async def test_two_who_leave_in_one_hour_leave_no_handoff_behind(
    database_url: str, tmp_path: Path
) -> None:
    """Whoever stays gets what waited, offered anew with a deadline of its own; each is overdue once."""
    team = tmp_path / "team.yaml"
    team.write_text(TEAM + "  - {id: gus, name: Gus, roles: [ae]}\n")
    office = Office()
    async with running_stage(database_url, now=office.now, team_file=team) as stage:
        await stage.send(*(
            {"specversion": "1.0", "id": f"{n}", "source": "/t", "type": "meeting.booked",
             "data": {"email": f"{n}@c.example"}}
            for n in range(9)
        ))  # fmt: skip
        assert await _waiting(stage.connection) == {"adam": 3, "beth": 3, "gus": 3}
        for minutes, who in ((20, "adam"), (50, "beth")):
            office.moment = datetime(2026, 3, 4, 9, minutes, tzinfo=UTC)
            answer = await stage.client.post(f"/v1/people/{who}/leave", json={})
            assert answer.status_code == 200, answer.text
            assert answer.json()["still_held"] == 0
        assert await _waiting(stage.connection) == {"gus": 9}
        clocks = await stage.connection.fetch(
            "SELECT person_id, deadline - since AS within FROM stage.clocks"
            " WHERE state = 'running' AND key = 'handoff-ae'"
        )
        assert [tuple(r) for r in clocks] == [("gus", timedelta(hours=4))] * 9
        office.moment = datetime(2026, 3, 4, 14, tzinfo=UTC)
        house = stage.house
        overdue = "SELECT count(*) FROM stage.handoffs WHERE overdue_at IS NOT NULL"
        while (
            await stage.connection.fetchval(overdue) < 9
        ):  # the service's own ticker may have claimed some
            await Ticker(house.pool, house.lane, office.now).run_due()
        told = await stage.connection.fetchval(
            "SELECT count(*) FROM bus.outbox WHERE headers ->> 'ce_type' = 'baton.handoff.overdue.v1'"
        )
        assert told == 9
    assert (await verify_database(database_url)).findings == []


async def _waiting(connection: Any) -> Counter[str]:
    rows = await connection.fetch("SELECT person_id FROM stage.handoffs WHERE state = 'offered'")
    return Counter(r["person_id"] for r in rows)
