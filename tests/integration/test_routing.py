"""Routing on real PostgreSQL: decided with the transition, told with it, and fair over every lane."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from services.contracts.roster import Roster
from services.contracts.team import Team, load_team, parse_team
from services.stage_service.batch import Batch
from services.stage_service.lane import Lane, new_id
from services.stage_service.playbook import parse_playbook
from services.stage_service.shelf import Shelf
from tests.integration.wired import START, Wired, clean, event, walk, wired

ROOT = Path(__file__).parents[2]
SALES = (ROOT / "playbooks/sales.yaml").read_text()
ROUTED = (
    SALES
    + """
routing:
  ae:
    rules:
      - {key: account, to: {owner_of: account}}
      - {key: big, when: "lead.employees >= 1000", to: {people: [elena]}}
      - {key: rest, to: everyone, capacity: 3}
    fallback: {person: sofia}
"""
)


async def route_by(it: Wired, playbook: str) -> None:
    await it.shelf.publish_file(it.pool, parse_playbook(playbook, "sales.yaml"))


async def owners(it: Wired) -> Counter[str]:
    rows = await it.pool.fetch(
        "SELECT owner_id FROM stage.transitions WHERE to_stage = 'sql' AND kind = 'transition'"
    )
    return Counter(r["owner_id"] for r in rows)


async def test_a_transition_says_how_its_owner_was_chosen(database_url: str) -> None:
    async with wired(database_url) as it:
        await it.lane.submit([event("meeting.booked", 0)])
        [message] = await it.messages()
        assert message["responsible"] == {
            "role": "ae", "owner": {"id": "marcus", "name": "Marcus Chen"},
            "why": "Marcus Chen: weighted among 2 eligible for ae",
        }  # fmt: skip
        [record] = await it.transitions()
        decided = msgspec.json.decode(record["why"])["routing"]["ae"]
        assert decided["rule"] == "territory"
        assert [(c["id"], c["why"]) for c in decided["candidates"]] == [
            ("elena", "not their turn"), ("marcus", "gets it"),
        ]  # fmt: skip
        # A re-fold keeps the fact: nothing is chosen again.
        await it.lane.submit([event("lead.created", -60, late=True)])
        assert (await it.messages())[-1]["responsible"] == message["responsible"]
    await clean(database_url)


async def test_a_known_accounts_leads_go_to_its_owner_until_they_leave(database_url: str) -> None:
    async with wired(database_url) as it:
        await route_by(it, ROUTED)
        first = event("meeting.booked", 0, "a@acme.example", employees=2000)
        await it.lane.submit([first])
        for n in range(5):
            await it.lane.submit([event("meeting.booked", n, f"b{n}@acme.example")])
        assert await owners(it) == {"elena": 6}
        decided = [msgspec.json.decode(r["why"])["routing"]["ae"] for r in await it.transitions()]
        assert Counter(d["rule"] for d in decided) == {"big": 1, "account": 5}
        assert "Elena Petrova: account owner of acme.example" in {d["why"] for d in decided}
        # A mail provider is nobody's account.
        await it.lane.submit([event("meeting.booked", 0, "x@gmail.com", employees=1)])
        assert await owners(it) == {"elena": 6, "marcus": 1}


async def test_capacity_holds_over_batches_and_frees_with_the_stage(database_url: str) -> None:
    async with wired(database_url) as it:
        await route_by(it, ROUTED)
        leads = [f"p{n}@c{n}.example" for n in range(8)]
        await it.lane.submit([event("meeting.booked", 0, lead) for lead in leads])
        assert await owners(it) == {"elena": 3, "marcus": 3, "sofia": 2}
        held = await it.pool.fetch("SELECT holder, count(*) FROM stage.journeys GROUP BY 1")
        assert dict(held) == {"elena": 3, "marcus": 3, "sofia": 2}
        await it.lane.submit([event("deal.lost", 5, leads[0], reason="price")])
        await it.lane.submit([event("meeting.booked", 0, "next@d.example")])
        counted = await owners(it)
        assert counted["elena"] + counted["marcus"] == 7


async def test_capacity_and_shares_hold_over_two_processes_at_once(database_url: str) -> None:
    """Two lanes with pools of their own: no person over capacity, no share a lead off."""
    fair = SALES + (
        "\nrouting: {ae: {rules: [{key: all, to: everyone, capacity: 40}], "
        "fallback: {person: sofia}}}\n"
    )
    async with wired(database_url) as one, wired(database_url) as two:
        await route_by(one, fair)
        leads = [f"p{n}@c{n}.example" for n in range(60)]
        await asyncio.gather(*(
            (one, two)[n % 2].lane.submit([event("meeting.booked", 0, lead)])
            for n, lead in enumerate(leads)
        ))  # fmt: skip
        counted = await owners(one)
        assert sum(counted.values()) == 60
        assert abs(counted["marcus"] - 40) < 1
        assert abs(counted["elena"] - 20) < 1
        more = [f"q{n}@d{n}.example" for n in range(30)]
        await asyncio.gather(*(
            (one, two)[n % 2].lane.submit([event("meeting.booked", 0, lead)])
            for n, lead in enumerate(more)
        ))  # fmt: skip
        assert await owners(one) == {"marcus": 40, "elena": 40, "sofia": 10}


async def test_turns_go_on_after_a_restart(database_url: str) -> None:
    for round in range(5):
        async with wired(database_url) as it:
            leads = [f"r{round}-{n}@x.example" for n in range(7)]
            await it.lane.submit([event("meeting.booked", 0, lead) for lead in leads])
            counted = await owners(it)
            given_out = 7 * (round + 1)
            assert abs(counted["marcus"] - given_out * 2 / 3) < 1
            assert abs(counted["elena"] - given_out / 3) < 1


async def _lane_with(it: Wired, team: Team) -> Lane:
    shelf = Shelf()
    await shelf.load(it.pool)
    lane = Lane(it.pool, shelf, Roster(team))
    lane.start()
    return lane


async def test_an_empty_role_is_sales_leaderships(database_url: str) -> None:
    async with wired(database_url) as it:
        team = parse_team("people: [{id: s, name: S, roles: [sales_leadership]}]", "team.yaml")
        lane = await _lane_with(it, team)
        try:
            await lane.submit(walk())
        finally:
            await lane.stop()
        assert {r["owner_id"] for r in await it.transitions()} == {"s"}


async def test_an_old_roster_is_noticed_before_anybody_is_chosen(database_url: str) -> None:
    """A change another process committed holds for the very next decision."""
    async with wired(database_url) as it:
        await it.lane.submit([event("meeting.booked", 0)])
        people: list[dict[str, Any]] = [{"id": "nina", "name": "Nina", "roles": ["ae"]}]
        await it.pool.executemany(
            "INSERT INTO roster.people (id, document) VALUES ($1, $2)",
            [(p["id"], msgspec.json.encode(p).decode()) for p in people],
        )
        await it.pool.execute("UPDATE roster.revision SET revision = revision + 1")
        await it.lane.submit([event("meeting.booked", 0, "next@c.example")])
        assert await owners(it) == {"marcus": 1, "nina": 1}
        assert load_team(ROOT / "playbooks/team.yaml") != it.lane.team


async def test_choosing_an_owner_costs_one_statement(database_url: str) -> None:
    """Look up, lock what routing needs, write: no more, also where loads are asked for."""
    async with wired(database_url) as it:
        for playbook in (
            SALES,
            ROUTED.replace("      - {key: account, to: {owner_of: account}}\n", ""),
        ):
            await route_by(it, playbook)
            told: list[str] = []
            roster = Roster(load_team(ROOT / "playbooks/team.yaml"))
            async with it.pool.acquire() as connection, connection.transaction():
                # The first batch of a connection also learns the types.
                first = Batch(connection, it.shelf, roster, START, new_id, it.lane.policy)
                await first.apply([event("meeting.booked", 0, f"warm{len(playbook)}@c.example")])
                with connection.query_logger(lambda record, told=told: told.append(record.query)):
                    batch = Batch(connection, it.shelf, roster, START, new_id, it.lane.policy)
                    await batch.apply([event("meeting.booked", 0, f"x{len(playbook)}@c.example")])
            assert len(told) == 3, told
