"""Simulation on real history: equal to having run that playbook from the start; writes nothing."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from services.baton.embedded import EmbeddedPostgres
from services.contracts.events import LeadEvent
from services.contracts.roster import Roster
from services.contracts.simulations import encoded
from services.contracts.team import load_team
from services.stage_service.lane import Lane
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.shelf import Shelf
from services.stage_service.simulation import Side, Tally
from services.stage_service.simulations.history import parse_candidate
from services.stage_service.simulations.pool import hours_of, simulate, since_of
from services.stage_service.simulations.report import _harmless, report, write_csv
from tests.integration.wired import event

ROOT = Path(__file__).parents[2]
TEAM = load_team(ROOT / "playbooks/team.yaml")
HOURS = hours_of(TEAM)
SALES = (ROOT / "playbooks/sales.yaml").read_text()
EASIER = SALES.replace('when: "score.total >= 60"', 'when: "score.total >= 20"')
ENDED = datetime(2026, 6, 1, tzinfo=UTC)


def playbook(text: str) -> Playbook:
    return parse_playbook(text, "candidate.yaml")


def stories(leads: int, seed: int = 7) -> list[LeadEvent]:
    """Events of `leads` leads, told in a mixed order: some deals won, lost, recycled, many just looking."""
    chance = random.Random(seed)
    told: list[LeadEvent] = []
    usual = (
        "page.viewed",
        "email.clicked",
        "content.downloaded",
        "webinar.attended",
        "form.submitted",
    )
    moving = ("demo.requested", "meeting.booked", "proposal.sent", "contract.sent", "deal.won")
    for number in range(leads):
        lead, minute = f"lead{number}@example.com", number * 7.0
        told.append(event("lead.created", minute, lead, employees=chance.choice((10, 80, 400))))
        for _ in range(chance.randrange(2, 9)):
            minute += chance.randrange(1, 4000)
            told.append(event(chance.choice(usual), minute, lead))
        for type in moving[: chance.choice((0, 0, 1, 2, 3, 5))]:
            minute += chance.randrange(1, 4000)
            told.append(event(type, minute, lead))
        if chance.random() < 0.2:
            told.append(event("deal.lost", minute + 5, lead, reason="Price"))
    chance.shuffle(told)
    return told


async def run_under(url: str, text: str, events: list[LeadEvent]) -> None:
    """Have the lane take `events` under the playbook `text`."""
    pool = await asyncpg.create_pool(url, min_size=1, max_size=4)
    try:
        shelf = Shelf()
        await shelf.load(pool)
        await shelf.publish_file(pool, playbook(text))
        lane = Lane(pool, shelf, Roster(TEAM))
        lane.start()
        for start in range(0, len(events), 200):
            await lane.submit(events[start : start + 200])
        await lane.stop()
    finally:
        await pool.close()


async def simulated_on(url: str, text: str, **options: Any) -> Tally:
    return await simulate(url, playbook(text), "candidate.yaml", HOURS, ENDED, workers=1, **options)


@pytest.fixture
def other_url(postgres: EmbeddedPostgres, database_url: str) -> Iterator[str]:
    """A second empty, migrated database."""
    name = f"{database_url.partition('?')[0].rpartition('/')[2]}_other"
    postgres.statement(f"CREATE DATABASE {name} TEMPLATE template_baton STRATEGY FILE_COPY")
    yield postgres.url(name)
    postgres.statement(f"DROP DATABASE {name} WITH (FORCE)")


async def recorded(url: str) -> dict[str, tuple[int, int]]:
    """By stage, straight from the tables: journeys in it, and moves into it."""
    connection = await asyncpg.connect(url)
    try:
        current = dict(
            await connection.fetch("SELECT stage, count(*) FROM stage.journeys GROUP BY 1")
        )
        entered = dict(await connection.fetch(
            "SELECT to_stage, count(*) FROM stage.transitions WHERE replaced_by IS NULL "
            "AND kind <> 'retraction' GROUP BY 1"
        ))  # fmt: skip
        return {k: (current.get(k, 0), entered.get(k, 0)) for k in current.keys() | entered.keys()}
    finally:
        await connection.close()


def numbers(side: Side) -> dict[str, tuple[int, int]]:
    return {k: (t.current, t.entered) for k, t in side.stages.items() if t.current or t.entered}


async def test_equal_to_running_it_from_the_start(database_url: str, other_url: str) -> None:
    events = stories(120)
    await run_under(database_url, SALES, events)
    await run_under(other_url, EASIER, events)
    there = await simulated_on(database_url, EASIER)
    assert numbers(there.today) == await recorded(database_url)
    assert numbers(there.candidate) == await recorded(other_url)
    assert there.differing > 10
    assert there.events == len(events)
    here = await simulated_on(other_url, EASIER)
    assert here.differing == 0
    assert here.today == here.candidate == there.candidate


async def test_the_same_answer_with_any_number_of_processes(database_url: str) -> None:
    await run_under(database_url, SALES, stories(60))
    one = await simulated_on(database_url, EASIER)
    done: list[int] = []
    many = await simulate(
        database_url, playbook(EASIER), "c", HOURS, ENDED, workers=3, leads_a_task=7,
        progress=lambda leads, total: done.append(leads * 1000 + total),
    )  # fmt: skip
    assert many == one
    assert (done[0], done[-1]) == (60, 60_060)
    assert len(done) == 10


@pytest.mark.parametrize("since", [None, 9000.0, 20_000.0, 10_000_000.0])
@pytest.mark.parametrize("leads_a_task", [7, 2000])
async def test_progress_ends_at_its_total(
    database_url: str, since: float | None, leads_a_task: int
) -> None:
    """Of the leads that are folded, not of all there are; with none of them, too."""
    await run_under(database_url, SALES, stories(30))
    told: list[tuple[int, int]] = []
    tally = await simulated_on(
        database_url, SALES, leads_a_task=leads_a_task,
        since=None if since is None else event("x", since).time,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told[0] == (0, tally.leads)
    assert told[-1] == (tally.leads, tally.leads)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {tally.leads}


async def test_the_present_playbook_changes_nothing_and_nothing_is_written(
    database_url: str,
) -> None:
    events = stories(40)
    await run_under(database_url, SALES, events)
    before = await everything(database_url)
    tally = await simulated_on(database_url, SALES + "\n# the same\n")
    assert (tally.differing, tally.differences) == (0, [])
    assert tally.today == tally.candidate
    assert tally.journeys == 40
    assert await everything(database_url) == before


async def everything(url: str) -> list[tuple[str, int]]:
    """How many rows each table has, and was written."""
    connection = await asyncpg.connect(url)
    try:
        tables = await connection.fetch(
            "SELECT schemaname || '.' || tablename AS t FROM pg_tables "
            "WHERE schemaname IN ('stage', 'bus', 'access', 'roster') ORDER BY 1"
        )
        return [
            (r["t"], await connection.fetchval(f"SELECT count(*) FROM {r['t']}")) for r in tables
        ]
    finally:
        await connection.close()


async def test_a_difference_says_where_the_ways_part_and_why(database_url: str) -> None:
    lead = "ada@example.com"
    await run_under(database_url, SALES, [
        event("lead.created", 0, lead), event("webinar.attended", 10, lead),
        event("content.downloaded", 20, lead), event("demo.requested", 30, lead),
    ])  # fmt: skip
    tally = await simulated_on(database_url, EASIER)
    [one] = tally.differences
    assert (one.today, one.candidate) == (["mql"], ["mql"])
    assert (one.event_type, one.rule, one.rule_today) == (
        "content.downloaded",
        "score-reached",
        None,
    )
    assert one.why == (
        "Moved from Lead Generation to Lead Qualification by rule score-reached: their score reached "
        "{score.total} (fit {score.fit}, intent {score.intent}); 60 is enough."
    )
    harder = SALES.replace("from: [lead, nurture]\n    to: mql\n    on: demo.requested",
                           "from: [nurture]\n    to: mql\n    on: demo.requested")  # fmt: skip
    [one] = (await simulated_on(database_url, harder)).differences
    assert (one.today, one.candidate, one.rule_today) == (["mql"], [], "demo-requested")
    assert one.why == "No rule moves it from lead to mql at demo.requested."
    out = io.StringIO()
    write_csv(tally.differences, out)
    [row] = csv.DictReader(io.StringIO(out.getvalue()))
    assert (row["today"], row["candidate"], row["rule"]) == ("mql", "mql", "score-reached")
    document = msgspec.json.decode(encoded(report(tally, playbook(EASIER), ENDED)))
    assert document["differing"] == 1
    assert document["candidate"]["stages"]["mql"] == {
        "reached": 1, "entered": 1, "current": 1, "rate": 0.0,
    }  # fmt: skip
    assert document["stages"][0] == {
        "stage": "lead", "title": "Lead Generation", "on_path": True,
    }  # fmt: skip


async def test_alerts_by_role_and_day_and_deadlines(database_url: str) -> None:
    lead = "ada@example.com"
    await run_under(database_url, SALES, [
        event("lead.created", 0, lead), event("demo.requested", 60, lead),
        event("meeting.booked", 60 * 50, lead), event("meeting.held", 60 * 51, lead),
    ])  # fmt: skip
    tally = await simulated_on(database_url, SALES + "\n# same\n")
    for side in (tally.today, tally.candidate):
        assert side.alerts == {"lead_agent": {"2026-01-05": 1}, "ae": {"2026-01-07": 1}}
        assert side.handoffs == {"lead_agent": 1, "ae": 1}
        assert side.missed == {"lead_agent": 1}
        assert side.due == {"lead_agent": {"2026-01-05": 1}, "ae": {"2026-01-07": 1}}
        assert side.overdue == {"lead_agent": {"2026-01-05": 1}}
        assert side.waiting == {}
    longer = SALES.replace("  lead_agent:\n    within: 4h", "  lead_agent:\n    within: 100h")
    assert longer != SALES
    tally = await simulated_on(database_url, longer)
    assert (tally.today.missed, tally.candidate.missed) == ({"lead_agent": 1}, {})


async def test_a_handoff_by_assignment_counts_on_both_sides(database_url: str) -> None:
    """It stays within its role, and no transition offers it."""
    lead = "ada@example.com"
    given = event(
        "baton.lead.assigned", 90, lead, playbook="sales", role="ae", person="jonas", actor="mara",
        reason="knows the company",
    )  # fmt: skip
    await run_under(database_url, SALES, [
        event("lead.created", 0, lead), event("meeting.booked", 10, lead),
        event("meeting.held", 20, lead), event("proposal.sent", 60, lead),
        msgspec.structs.replace(given, source="baton"),
    ])  # fmt: skip
    tally = await simulated_on(database_url, SALES + "\n# the same\n")
    assert tally.candidate.handoffs == {"ae": 2}
    assert tally.today == tally.candidate


async def test_since_counts_what_came_after(database_url: str) -> None:
    old = [
        event("lead.created", 0, "old@example.com"),
        event("demo.requested", 1, "old@example.com"),
    ]
    new = [
        event("lead.created", 0, "new@example.com"), event("demo.requested", 9000, "new@example.com"),
    ]  # fmt: skip
    await run_under(database_url, SALES, [*old, *new])
    begin = event("x", 5000).time
    tally = await simulated_on(database_url, SALES, since=begin)
    assert (tally.leads, tally.today.stage("mql").entered) == (1, 1)
    assert tally.candidate.alerts == {"lead_agent": {"2026-01-11": 1}}
    tally = await simulated_on(database_url, SALES, since=event("x", 9500).time)
    assert tally.leads == 0


async def test_a_candidate_whose_rules_ask_for_clocks_has_them_fire(database_url: str) -> None:
    lead = "ada@example.com"
    await run_under(
        database_url, SALES, [event("lead.created", 0, lead), event("proposal.sent", 10, lead)]
    )
    silent = SALES.replace(
        "rules:\n",
        "rules:\n  - key: given-up\n    from: [proposal]\n    to: nurture\n    on: baton.clock.fired\n"
        "    when: \"event.clock == 'silent'\"\n    because: \"nothing was heard\"\n", 1,
    )  # fmt: skip
    tally = await simulated_on(database_url, silent)
    [one] = tally.differences
    assert (one.today, one.candidate) == (["proposal"], ["proposal", "nurture"])
    assert one.at == event("x", 10).time + timedelta(days=14)


async def test_the_candidate_is_the_next_version(database_url: str) -> None:
    await run_under(database_url, SALES, [event("lead.created", 0)])
    connection = await asyncpg.connect(database_url)
    shelf = Shelf()
    await shelf.load(connection)
    await connection.close()
    assert parse_candidate(EASIER, "c", shelf).version == shelf.playbooks["sales"].version + 1
    other = EASIER.replace("name: sales", "name: expansion", 1)
    assert parse_candidate(other, "c", shelf).version == 1


def test_since_is_days_or_a_date() -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    assert since_of("", now) is None
    assert since_of("90d", now) == now - timedelta(days=90)
    assert since_of("2026-09-01", now) == datetime(2026, 9, 1, tzinfo=UTC)
    for text in ("ninety", "d", "-3d", "1000000d"):
        with pytest.raises(ValueError, match="write 90d, or 2026-09-01"):
            since_of(text, now)


def test_tallies_add_up_in_any_order() -> None:
    first, second = Tally(leads=1), Tally(leads=2)
    first.today.stage("mql").reached = 3
    second.today.stage("mql").reached = 4
    second.candidate.alerts["ae"] = {"2026-01-01": 2}
    one, other = msgspec.convert(msgspec.to_builtins(first), Tally), Tally()
    one.add(second)
    other.add(second)
    other.add(first)
    assert one == other


def test_a_spreadsheet_reads_no_formula() -> None:
    assert _harmless("=1+1") == "'=1+1"
    assert _harmless("plain") == "plain"
