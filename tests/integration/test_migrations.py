"""Migrations: forward-only, one head, on a database with rows in it, and the tables match the code."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
import pytest

from services.baton.migrations import current_revision, newest_revision
from services.contracts.access import Gatekeeper
from services.contracts.team import Person
from services.notifier import claims
from services.stage_service.tables import bus_metadata, metadata
from tests.integration.wired import clean, event, walk, wired

ROOT = Path(__file__).parents[2]


MIGRATE = """
import asyncio, sys
from alembic import command
import services.baton.migrations as m
upgrade, url = command.upgrade, sys.argv[1]
for revision in sys.argv[2:]:
    command.upgrade = lambda config, _: upgrade(config, revision)
    m._upgrade(url)
    print("at", asyncio.run(m.current_revision(url)))
"""


def migrate(url: str, *revisions: str) -> list[str]:
    """Bring the database to each of `revisions` (none: the newest), as `baton migrate` does.

    Gives where it was after each. One process for all: most of a step is the start of Python.
    """
    done = subprocess.run(
        [sys.executable, "-c", MIGRATE, url, *(revisions or ("head",))],
        cwd=ROOT, env=os.environ, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return [line[3:] for line in done.stdout.splitlines() if line.startswith("at ")]


def newest_but_one() -> str:
    """The revision before the newest."""
    names = sorted(p.name.partition("_")[0] for p in (ROOT / "migrations/versions").glob("*.py"))
    return names[-2]


async def test_step_by_step_from_nothing(bare_database_url: str) -> None:
    revisions = sorted(
        p.name.partition("_")[0] for p in (ROOT / "migrations/versions").glob("*.py")
    )
    assert revisions == [f"{n:04}" for n in range(1, len(revisions) + 1)]
    assert await current_revision(bare_database_url) is None
    assert migrate(bare_database_url, *revisions) == revisions
    assert await current_revision(bare_database_url) == revisions[-1]
    assert newest_revision() == revisions[-1]


async def copied(source: str, target: str) -> None:
    """Copy the rows of `source` to the older schema of `target`: the columns that it has."""
    there, here = await asyncpg.connect(source), await asyncpg.connect(target)
    try:
        rows = await here.fetch(
            """SELECT table_schema || '.' || table_name AS name, array_agg(column_name::text) AS columns
               FROM information_schema.columns JOIN information_schema.tables
                 USING (table_schema, table_name)
               WHERE table_schema IN ('stage', 'bus') AND table_type = 'BASE TABLE' GROUP BY 1"""
        )
        for name, columns in rows:
            listed = ", ".join(f'"{c}"' for c in columns)
            values = await there.fetchval(
                f"SELECT json_agg(t) FROM (SELECT {listed} FROM {name}) t"
            )
            await here.execute(
                f"INSERT INTO {name} ({listed}) OVERRIDING SYSTEM VALUE "
                f"SELECT {listed} FROM json_populate_recordset(NULL::{name}, $1)",
                values or "[]",
            )
        for name, column in (("bus.outbox", "id"), ("stage.playbook_versions", "epoch")):
            await here.execute(
                f"SELECT setval(pg_get_serial_sequence('{name}', '{column}'), max({column})) FROM {name}"
            )
    finally:
        await there.close()
        await here.close()


@pytest.mark.parametrize("revision", ["0002", "0003", newest_but_one()])
async def test_the_newest_on_a_database_with_rows(
    bare_database_url: str, database_url: str, revision: str
) -> None:
    """The stage service's rows of an older revision are all there after the newest one, and go on."""
    async with wired(database_url) as it:
        await it.lane.submit([*walk(), *walk("other@b.example")[:4]])
        before = await it.transitions()
        holders = await it.pool.fetch("SELECT id, holder FROM stage.journeys ORDER BY id")
    migrate(bare_database_url, revision)
    await copied(database_url, bare_database_url)
    migrate(bare_database_url)
    async with wired(bare_database_url) as it:
        assert await it.transitions() == before
        found = await it.pool.fetch("SELECT id, holder FROM stage.journeys ORDER BY id")
        assert found == holders
        assert {h["holder"] for h in holders} & {"tom", "yuki"}
        assert {o.status for o in await it.lane.submit(walk())} == {"duplicate"}
        both = event("page.viewed", 9, external_ids={"crm": "1"})
        both = msgspec.structs.replace(both, identities=(*both.identities, ("external:crm", "1")))
        other = event("page.viewed", 10, "other@b.example")
        other = msgspec.structs.replace(
            other, identities=(*other.identities, ("external:crm", "1"))
        )
        await it.lane.submit([both])
        [outcome] = await it.lane.submit([other])
        assert outcome.lead_id == min(str(row["lead_id"]) for row in before)
        assert await it.pool.fetchval("SELECT count(*) FROM stage.merges") == 1
    await clean(bare_database_url)


async def test_keys_made_before_they_could_be_bound_go_on(bare_database_url: str) -> None:
    """They are bound to nothing, and the version before can still make its own."""
    migrate(bare_database_url, "0003")
    connection = await asyncpg.connect(bare_database_url)
    insert = (
        "INSERT INTO access.keys (id, name, kind, hash, scopes) "
        "VALUES ($1, 'old', 'key', sha256('secret'), '{admin,ingest}')"
    )
    try:
        await connection.execute(insert, "before")
        migrate(bare_database_url)
        await connection.execute(insert, "after")
        for id in ("before", "after"):
            who = await Gatekeeper(connection).authenticate(f"bat_{id}_secret")
            assert who is not None
            assert (who.sources, who.rate, who.event_rate) == (None, None, None)
            assert who.may_ingest_for("/anything")
    finally:
        await connection.close()


async def test_alerts_recorded_before_they_could_wait_go_on(bare_database_url: str) -> None:
    """What was pending belongs to a lane, and the version before can still write its own."""
    migrate(bare_database_url, "0007")
    connection = await asyncpg.connect(bare_database_url)
    insert_alert = """
        INSERT INTO notifier.alerts (id, transition_id, recipient, lead_id, role, person_id,
          person_name, addressee_id, status, subject, body, stage, created_at)
        VALUES ($1, gen_random_uuid(), 'ana', gen_random_uuid(), 'ae', 'ana', 'Ana', 'ana',
          'pending', 's', 'b', 'sql', now())"""
    insert_delivery = """
        INSERT INTO notifier.deliveries (alert_id, channel, attempt, last_attempt, status, due_at)
        VALUES ($1, 'email', 1, 5, 'pending', now() - interval '1 s')"""
    try:
        for migrates in (True, False):
            id = uuid.uuid4()
            await connection.execute(insert_alert, id)
            await connection.execute(insert_delivery, id)
            if migrates:
                migrate(bare_database_url)
        lanes = await connection.fetch("SELECT addressee_id FROM notifier.deliveries ORDER BY id")
        assert [r["addressee_id"] for r in lanes] == ["ana", None]
        async with asyncpg.create_pool(bare_database_url, min_size=0) as pool:
            now = datetime.now(UTC)
            parcels, _ = await claims.claim(
                pool, now, now + timedelta(seconds=30), claims.Lane(10, {}, 8),
                lambda who: Person("ana", "Ana"), uuid.uuid4, "http://baton.example",
            )  # fmt: skip
            assert len(parcels) == 2
            for parcel in parcels:
                assert await claims.finish(pool, parcel, claims.Ending("delivered", None, 1, now))
        statuses = await connection.fetch("SELECT DISTINCT status FROM notifier.alerts")
        assert [r["status"] for r in statuses] == ["delivered"]
    finally:
        await connection.close()


async def test_alerts_of_before_answers_are_kept_and_those_of_the_version_before_taken(
    bare_database_url: str,
) -> None:
    """0012 with rows: an alert of before reads as it was, and the version before goes on writing."""
    migrate(bare_database_url, "0011")
    connection = await asyncpg.connect(bare_database_url)
    insert_alert = """
        INSERT INTO notifier.alerts (id, transition_id, recipient, lead_id, role, person_id,
          person_name, addressee_id, status, subject, body, stage, created_at, kind)
        VALUES (gen_random_uuid(), gen_random_uuid(), $1, gen_random_uuid(), 'ae', 'ana', 'Ana',
          'ana', 'delivered', 's', 'b', 'sql', now(), $2)"""
    try:
        await connection.execute(insert_alert, "ana", "transition")
        await connection.execute("INSERT INTO notifier.used_links VALUES ('x', now())")
        migrate(bare_database_url, "0012")
        await connection.execute(insert_alert, "ana", "escalation")
        await connection.execute(insert_alert, "ana", "clock")
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(insert_alert, "ana", "weather")
        rows = await connection.fetch(
            "SELECT kind, handoff_id, acknowledged_why FROM notifier.alerts ORDER BY kind"
        )
        assert [tuple(r) for r in rows] == [
            ("clock", None, None), ("escalation", None, None), ("transition", None, None),
        ]  # fmt: skip
    finally:
        await connection.close()


async def test_the_feed_goes_on_where_it_was_and_numbers_each_topic(bare_database_url: str) -> None:
    """0013 with rows: numbers are the positions of before; what the version before writes gets one too."""
    migrate(bare_database_url, "0012")
    connection = await asyncpg.connect(bare_database_url)
    insert = """INSERT INTO bus.log (position, outbox_id, topic)
                SELECT p, p, t FROM unnest($1::bigint[], $2::text[]) AS k(p, t)"""
    try:
        await connection.execute(insert, [1, 2, 3], ["moves", "others", "moves"])
        migrate(bare_database_url, "0013")
        await connection.execute(insert, [4, 5, 6], ["moves", "others", "moves"])
        rows = await connection.fetch("SELECT topic, number FROM bus.log ORDER BY position")
        assert [tuple(r) for r in rows] == [
            ("moves", 1), ("others", 2), ("moves", 3), ("moves", 4), ("others", 3), ("moves", 5),
        ]  # fmt: skip
    finally:
        await connection.close()


async def test_again_changes_nothing(database_url: str) -> None:
    migrate(database_url)
    assert await current_revision(database_url) == newest_revision()


def test_no_revision_goes_back() -> None:
    for path in (ROOT / "migrations/versions").glob("*.py"):
        assert "def downgrade" not in path.read_text(), path


@pytest.mark.parametrize("tables", [metadata, bus_metadata])
async def test_the_tables_of_the_code_are_those_of_the_database(
    database_url: str, tables: object
) -> None:
    """SQLAlchemy's tables name columns that exist, with the same type and nullability."""
    connection = await asyncpg.connect(database_url)
    try:
        for table in tables.tables.values():  # type: ignore[attr-defined]
            rows = await connection.fetch(
                """SELECT column_name, data_type, is_nullable FROM information_schema.columns
                   WHERE table_schema = $1 AND table_name = $2""",
                table.schema, table.name,
            )  # fmt: skip
            stored = {r["column_name"]: r for r in rows}
            assert set(stored) == {c.name for c in table.columns}, table.name
            for column in table.columns:
                assert (stored[column.name]["is_nullable"] == "YES") == bool(column.nullable), (
                    table.name, column.name,
                )  # fmt: skip
    finally:
        await connection.close()


async def test_a_migration_that_waits_holds_nobody_up(bare_database_url: str) -> None:
    """A long transaction on a table that is to be changed: the running version goes on meanwhile."""
    migrate(bare_database_url, "0006")
    reading = await asyncpg.connect(bare_database_url)
    running = await asyncpg.connect(bare_database_url)
    try:
        async with reading.transaction():
            await reading.fetch("SELECT * FROM access.keys")
            task = asyncio.create_task(asyncio.to_thread(migrate, bare_database_url, "0007"))
            waits = (
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
            )
            while not await running.fetchval(waits):
                assert not task.done()
                await asyncio.sleep(0.05)
            await running.fetch("SELECT * FROM access.keys", timeout=2.5)
        await task
        assert await current_revision(bare_database_url) == "0007"
    finally:
        await reading.close()
        await running.close()
