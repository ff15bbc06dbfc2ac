"""Journeys in stages that are gone, and those that enter another playbook: moved once, by stored events."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from services.contracts.events import MOVED_BY_HAND, PLAYBOOK_PUBLISHED, SOURCE, LeadEvent
from services.contracts.roster import Roster
from services.stage_service.batch import Batch, RacedError
from services.stage_service.funnel_numbers import funnel
from services.stage_service.identities import LEAD_IDENTITY
from services.stage_service.lane import Lane, new_id
from services.stage_service.playbook import parse_playbook
from services.stage_service.shelf import Shelf
from services.stage_service.sweeping import Sweeper
from tests.integration.test_handoffs import SALES, Timed, timed
from tests.integration.wired import START, clean, event

HOUR = timedelta(hours=1)
DISCOVERY = re.sub(r"\bsql\b", "discovery", SALES) + "\nmigrate: {sql: discovery}\n"
EXPANSION = (Path(__file__).parents[2] / "playbooks/expansion.yaml").read_text()


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Timed]:
    async with timed(database_url) as one:
        yield one


async def publish(it: Timed, text: str, **more: Any) -> int:
    done = await it.shelf.publish(
        it.pool, parse_playbook(text, "p.yaml"), author="ada", message="m", expected=None, **more
    )
    return done.version


def sweeper(it: Timed, **sizes: int) -> Sweeper:
    return Sweeper(it.pool, it.lane, lambda: it.now, again_s=0, **sizes)


async def sweep(it: Timed, **sizes: int) -> None:
    """All passes of what is to be swept."""
    while await sweeper(it, **sizes).run_some():
        pass


async def stages(it: Timed, playbook: str = "sales") -> dict[str, int]:
    rows = await it.pool.fetch(
        "SELECT stage, count(*) AS n FROM stage.journeys WHERE playbook = $1 GROUP BY stage",
        playbook,
    )
    return {r["stage"]: r["n"] for r in rows}


async def heard(it: Timed) -> int:
    return await it.pool.fetchval(
        "SELECT count(*) FROM stage.events WHERE type = $1", PLAYBOOK_PUBLISHED
    )


def crowd(many: int, type: str = "meeting.booked", of: str = "l") -> list[LeadEvent]:
    return [event(type, 0, f"{of}{n}@x.example") for n in range(many)]


async def test_quiet_leads_move_and_nobody_is_told(it: Timed) -> None:
    await it.tell(
        *crowd(7), *crowd(2, "proposal.sent", "p"), event("demo.requested", 0, "m@x.example")
    )
    before = await it.pool.fetch(
        "SELECT id, entered_at, owners FROM stage.journeys WHERE stage = 'sql' ORDER BY id"
    )
    told = len(await it.told())
    await publish(it, DISCOVERY)
    it.now = START + HOUR
    await sweep(it)
    assert await stages(it) == {"discovery": 7, "proposal": 2, "mql": 1}
    assert await heard(it) == 7, "who stands elsewhere hears nothing"
    after = await it.pool.fetch(
        "SELECT id, entered_at, owners FROM stage.journeys WHERE stage = 'discovery' ORDER BY id"
    )
    assert after == before
    moved = [m for m in await it.messages() if m["cause"]["rule"] == "migrate"]
    assert len(moved) == 7
    assert [(m["from"], m["to"], m["alerts"], m["handoff"]) for m in moved] == [
        ("sql", "discovery", [], False)
    ] * 7
    assert {m["playbook_version"] for m in moved} == {2}
    assert len(await it.told()) == told, "the open handoffs wait on"
    assert {r["stage"] for r in await it.pool.fetch("SELECT stage FROM stage.visits")} == {
        "lead", "mql", "discovery", "proposal",
    }  # fmt: skip
    row = await it.pool.fetchrow("SELECT moved, pass, done_at FROM stage.playbook_sweeps")
    assert row is not None
    assert (row["moved"], row["done_at"] is not None) == (7, True)
    assert not await sweeper(it).run_some()
    await clean(it.url)


async def test_the_funnel_counts_a_stage_under_all_its_names(it: Timed) -> None:
    """Who was there and went on before the rename is counted as who came after it, with the same times."""
    await it.tell(*crowd(3), event("proposal.sent", 60, "l0@x.example"))
    engine = create_async_engine(it.url.replace("postgresql://", "postgresql+asyncpg://", 1))
    before = (await funnel(engine, it.shelf.playbooks["sales"]))["stages"]
    await publish(it, DISCOVERY)
    it.now = START + 2 * HOUR
    await sweep(it)
    after = await funnel(engine, it.shelf.playbooks["sales"])
    at = [s["stage"] for s in before].index("sql")
    assert (before[at]["reached"], before[at]["current"]) == (3, 2)
    assert before[at]["median_seconds"] == 3600
    before[at]["stage"] = "discovery"
    assert after["stages"] == before
    await engine.dispose()


async def test_a_clock_runs_on_under_the_new_name(it: Timed) -> None:
    """No deadline comes twice or later, and none is missed that was met: a rename restarts nothing."""
    await it.tell(event("demo.requested", 0))
    await it.tell(event("meeting.booked", 1), event("meeting.held", 2))
    [running] = await it.pool.fetch("SELECT * FROM stage.clocks WHERE state = 'running'")
    assert running["key"] == "silent"
    await it.tick(START + timedelta(days=12))
    reminded = await it.told()
    await publish(it, DISCOVERY)
    await sweep(it)
    [still] = await it.pool.fetch("SELECT * FROM stage.clocks WHERE state = 'running'")
    assert still["id"] == running["id"]
    for kept in ("since", "deadline", "person_id"):
        assert still[kept] == running[kept], kept
    assert still["step"] == 1, "it has reminded already"
    await clean(it.url)
    await it.tick(START + timedelta(days=15))
    assert [t for t, _ in (await it.told())[len(reminded) :]] == ["clock.rang.v1"]
    await clean(it.url)


async def test_a_clock_that_fired_under_the_old_name_counts(it: Timed) -> None:
    """It was read before the publication, and told after it: it stands, and rings once."""
    await it.tell(event("meeting.booked", 1), event("meeting.held", 2))
    it.now = START + timedelta(days=15)
    await publish(it, DISCOVERY)
    await it.tick(it.now)
    await sweep(it)
    await it.tick(it.now)
    rang = [t for t, _ in await it.told() if t == "clock.rang.v1"]
    assert len(rang) == 1
    assert await stages(it) == {"discovery": 1}
    await clean(it.url)


async def test_where_another_role_goes_on_it_is_a_handoff(it: Timed) -> None:
    await it.tell(event("meeting.booked", 1))
    text = DISCOVERY.replace(
        "    responsible: [ae]\n    alerts: [ae]\n",
        "    responsible: [csm]\n    alerts: [csm]\n",
        1,
    )
    assert text != DISCOVERY
    await publish(it, text)
    it.now = START + HOUR
    await sweep(it)
    assert [(h[0], h[1], h[4]) for h in await it.handoffs()] == [
        ("sql", "ae", "withdrawn"), ("discovery", "csm", "offered"),
    ]  # fmt: skip
    [moved] = [m for m in await it.messages() if m["cause"]["rule"] == "migrate"]
    assert {w["role"] for w in moved["alerts"]} == {"csm"}
    assert await it.pool.fetchval("SELECT entered_at FROM stage.journeys") == START + HOUR
    await clean(it.url)


async def test_rolling_back_moves_them_back(it: Timed) -> None:
    await it.tell(*crowd(3))
    await publish(it, DISCOVERY)
    await sweep(it)
    await publish(it, SALES, restores=1)
    await sweep(it)
    assert await stages(it) == {"sql": 3}
    await clean(it.url)


async def test_two_sweep_at_once_and_one_dies(it: Timed, database_url: str) -> None:
    """Each lead hears once, whoever tells it and whenever a process ends (I2, I12)."""
    await it.tell(*crowd(45))
    await publish(it, DISCOVERY)
    async with timed(database_url, playbook=SALES) as other:
        dying = asyncio.create_task(sweeper(it, leads_a_time=10, events_a_batch=3).run_some())
        async with asyncio.timeout(10):
            while await heard(it) == 0:
                await asyncio.sleep(0)
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        assert 0 < await heard(it) < 45
        await asyncio.gather(*(sweep(w, leads_a_time=10) for w in (it, other, it)))
        await sweep(it)
    assert await stages(it) == {"discovery": 45}
    assert await it.pool.fetchval(
        "SELECT count(*) FROM stage.transitions WHERE rule = 'migrate'"
    ) == 45  # fmt: skip
    await clean(it.url)


async def test_who_comes_to_a_stage_that_is_gone_after_the_first_pass_moves_with_the_next(
    it: Timed,
) -> None:
    """A batch that began before the publication commits after the pass, and its lead stays quiet."""
    behind = Shelf()
    await behind.load(it.pool)
    roster = Roster(it.lane.team)
    async with it.pool.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        await Batch(slow, behind, roster, START, new_id, it.lane.policy).apply(
            [event("meeting.booked", 0)]
        )
        await publish(it, DISCOVERY)
        assert await sweeper(it).run_some(), "the first pass finds nobody, and is not the last"
        await transaction.commit()
    assert await stages(it) == {"sql": 1}
    await sweep(it)
    assert await stages(it) == {"discovery": 1}
    await clean(it.url)


async def test_the_audit_tells_no_new_name_as_the_move_that_was_held(it: Timed) -> None:
    await it.tell(*crowd(1))
    lead = await it.pool.fetchval("SELECT id::text FROM stage.leads")
    await publish(it, DISCOVERY)
    it.now = START + HOUR
    for minutes, reason in ((60, ""), (61, "no budget")):
        asked = event(
            MOVED_BY_HAND, minutes, to="closed_lost", reason=reason, playbook="sales",
            actor="bob", force=False,
        )  # fmt: skip
        who = ((LEAD_IDENTITY, lead),)
        await it.tell(msgspec.structs.replace(asked, source=SOURCE, identities=who))
    told = await it.pool.fetch(
        "SELECT action, before ->> 'stage', after ->> 'stage' FROM audit.entries "
        "WHERE kind = 'journey' ORDER BY seq"
    )
    assert [tuple(row) for row in told] == [
        ("move held", None, None), ("moved", "discovery", "closed_lost"),
    ]  # fmt: skip


async def test_customers_enter_the_expansion_playbook(it: Timed) -> None:
    """Those of before when it is published, others as they become customers; each deal by itself."""
    await it.tell(*crowd(3, "deal.won"), event("demo.requested", 0, "m@x.example"))
    second = msgspec.structs.replace(
        event("deal.won", 1, "l0@x.example", id="second"), deal="second"
    )
    await it.tell(second)
    await publish(it, EXPANSION)
    it.now = START + HOUR
    await sweep(it)
    assert await stages(it, "expansion") == {"onboarding": 4}
    assert await heard(it) == 4
    await it.tell(
        event("deal.won", 90, "m@x.example"), event("customer.went_live", 91, "l0@x.example")
    )
    assert await stages(it, "expansion") == {"onboarding": 4, "adoption": 1}
    keys = await it.pool.fetch(
        "SELECT key, stage FROM stage.journeys WHERE playbook = 'expansion' AND lead_id = "
        "(SELECT id FROM stage.leads WHERE email = 'l0@x.example') ORDER BY key"
    )
    assert [tuple(k) for k in keys] == [("main", "adoption"), ("second", "onboarding")]
    await clean(it.url)


async def test_an_entry_that_a_late_event_takes_back(it: Timed) -> None:
    """The deal was lost before it was won twice over: no customer, and so no journey there (I7)."""
    await publish(it, EXPANSION)
    await it.tell(event("meeting.booked", 0), event("deal.won", 10))
    await it.tell(event("customer.went_live", 20))
    assert await stages(it, "expansion") == {"adoption": 1}
    await it.tell(event("deal.lost", 5, reason="no budget"))
    assert await stages(it) == {"closed_lost": 1}
    assert await stages(it, "expansion") == {}
    ended = [m for m in await it.messages() if m.get("ended")]
    assert [m["journey"]["playbook"] for m in ended] == ["expansion"]
    await it.tell(event("page.viewed", 30))
    await clean(it.url)


async def test_who_waited_for_a_lead_folds_under_the_newest_version(it: Timed) -> None:
    """A batch read the epoch and waited for the lead's lock; meanwhile another published and told it."""
    await it.tell(event("meeting.booked", 0))
    behind = Shelf()  # of another process
    await behind.load(it.pool)
    roster = Roster(it.lane.team)
    async with it.pool.acquire() as here, it.pool.acquire() as there:
        faster, slower = here.transaction(), there.transaction()
        await faster.start()
        await slower.start()
        await here.execute("SELECT FROM stage.leads FOR UPDATE")
        waiting = asyncio.create_task(
            Batch(there, behind, roster, START, new_id, it.lane.policy).apply([event("x", 9)])
        )
        async with asyncio.timeout(10):
            while not await it.pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert not waiting.done()
        await publish(it, DISCOVERY)
        await Batch(here, it.shelf, roster, START, new_id, it.lane.policy).apply([event("x", 5)])
        await faster.commit()
        with pytest.raises(RacedError):
            await waiting
        await slower.rollback()
    other = Lane(it.pool, behind, roster)  # as the lane does it: again
    other.start()
    await other.submit([event("x", 9)])
    await other.stop()
    rows = await it.pool.fetch("SELECT epoch FROM stage.events ORDER BY time")
    assert [r["epoch"] for r in rows] == sorted(r["epoch"] for r in rows)
    assert await stages(it) == {"discovery": 1}
    await clean(it.url)


async def test_a_late_event_of_before_the_rename_and_the_sweep(it: Timed) -> None:
    """The journey is told anew under the old names, keeps its clocks, and goes on under the new."""
    await it.tell(event("lead.created", 0), event("meeting.booked", 20))
    await publish(it, DISCOVERY)
    it.now = START + HOUR
    await it.lane.submit([event("demo.requested", 10)])
    assert await stages(it) == {"sql": 1}, "it has not heard yet"
    assert (await it.clocks())["silent"] == "running"
    await sweep(it)
    assert await stages(it) == {"discovery": 1}
    assert (await it.clocks())["silent"] == "running"
    assert await it.ways() == [("lead", "mql"), ("mql", "sql"), ("sql", "discovery")]
    await clean(it.url)


@asynccontextmanager
async def at_0017(url: str) -> AsyncGenerator[asyncpg.Connection[Any]]:
    from tests.integration.test_migrations import migrate

    migrate(url, "0017")
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_versions_of_before_go_on_after_the_migration(bare_database_url: str) -> None:
    """Rows of 0017 keep when they were published; a process of before still publishes and reads (expand)."""
    from tests.integration.test_migrations import migrate

    old = "INSERT INTO stage.playbook_versions (name, version, digest, source) VALUES ($1, $2, $3, $4)"
    async with at_0017(bare_database_url) as connection:
        await connection.execute(old, "sales", 1, "d", SALES)
        await connection.execute("UPDATE stage.playbook_versions SET activated_at = '2026-01-01Z'")
        migrate(bare_database_url)
        await connection.execute(old, "sales", 2, "e", SALES + "\n# two\n")
        shelf = Shelf()
        await shelf.load(connection)
        second, first = await shelf.versions(connection, "sales")
        assert first.published_at == first.activated_at
        assert first.activated_at.year == 2026
        assert (second.author, second.migrate, second.restores) == (None, {}, None)
        assert shelf.playbooks["sales"].version == 2
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("UPDATE stage.playbook_versions SET restores = version")
