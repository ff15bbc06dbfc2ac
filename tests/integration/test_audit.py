"""The audit in PostgreSQL: with its deed or not at all, chained, and only ever added to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from services.baton.audit import Noted, verify_database, verify_file
from services.contracts import audit
from services.contracts.audit import CUT, Actor, Note, record, told
from services.stage_service import people
from services.stage_service.people import FILE
from tests.integration.stage import running_stage
from tests.integration.test_migrations import migrate
from tests.integration.wired import event, it

__all__ = ["it"]
OLGA = Actor("olga")
NINA = {"id": "nina", "name": "Nina", "roles": ["csm"]}


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection to an empty database of Baton's."""
    found = await asyncpg.connect(database_url)
    yield found
    await found.close()


def note(n: int) -> Note:
    """A deed."""
    return Note("published", "playbook", f"sales-{n}", None, {"version": n})


async def counted(connection: asyncpg.Connection[Any]) -> tuple[int, int, int]:
    """How many entries there are, where the head is, how many deeds wait (never any)."""
    row = await connection.fetchrow(
        """SELECT (SELECT count(*) FROM audit.entries), (SELECT seq FROM audit.head),
             (SELECT count(*) FROM audit.noted)"""
    )
    return tuple(row)


async def test_a_deed_and_its_entry_come_together_or_not_at_all(
    database_url: str, connection: asyncpg.Connection[Any]
) -> None:
    """I12: the connection is cut between the deed and the commit, at each of its statements."""
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=2)
    for at in range(4):
        victim = await asyncpg.connect(database_url)
        transaction = victim.transaction()
        await transaction.start()
        pid = victim.get_server_pid()
        await victim.execute(
            "INSERT INTO roster.people (id, document) VALUES ('x', '{}')" if at else "SELECT 1"
        )
        if at > 1:
            await record(victim, OLGA, Note("added", "person", "x"))
        if at > 2:  # as the commit does it, and then does not come to its end
            await victim.execute("SET CONSTRAINTS ALL IMMEDIATE")
        await connection.execute("SELECT pg_terminate_backend($1, 5000)", pid)
        victim.terminate()
        assert await counted(connection) == (0, 0, 0)
        assert await connection.fetchval("SELECT count(*) FROM roster.people") == 0
    await people.put(pool, NINA, OLGA)
    assert await counted(connection) == (1, 1, 0)
    # And the other way round: what cannot be recorded is not done.
    await connection.execute("ALTER TABLE audit.entries ADD CHECK (action <> 'changed') NOT VALID")
    with pytest.raises(asyncpg.CheckViolationError):
        await people.put(pool, {**NINA, "name": "Other"}, OLGA)
    assert await connection.fetchval("SELECT document ->> 'name' FROM roster.people") == "Nina"
    await pool.close()


async def test_it_is_only_ever_added_to(connection: asyncpg.Connection[Any]) -> None:
    await record(connection, OLGA, note(1))
    for replica in ("origin", "replica"):
        await connection.execute(f"SET session_replication_role = {replica}")
        for statement in (
            "DELETE FROM audit.entries", "UPDATE audit.entries SET actor = 'x'",
            "TRUNCATE audit.entries", "UPDATE audit.head SET seq = 0", "DELETE FROM audit.head",
            "TRUNCATE audit.head", "UPDATE audit.noted SET actor = 'x'", "TRUNCATE audit.noted",
            """INSERT INTO audit.entries (seq, actor, via, action, kind, subject, digest)
               VALUES (2, 'x', 'key', 'x', 'x', 'x', '')""",
        ):  # fmt: skip
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only ever added to"):
                await connection.execute(statement)
    assert await counted(connection) == (1, 1, 0)
    # Taken back before the commit it would be a deed without its entry.
    await connection.execute("SET session_replication_role = origin")
    async with connection.transaction():
        await record(connection, OLGA, note(2))
        await connection.execute("DELETE FROM audit.noted")
    assert await counted(connection) == (2, 2, 0)


async def test_who_may_only_add_cannot_do_more(connection: asyncpg.Connection[Any]) -> None:
    """A role that the application could have: it needs no right to the entries."""
    await connection.execute(
        """DO $$ BEGIN CREATE ROLE audit_adder; EXCEPTION WHEN duplicate_object THEN END $$;
           GRANT USAGE ON SCHEMA audit, access TO audit_adder; GRANT INSERT ON audit.noted TO audit_adder;
           GRANT SELECT ON access.keys TO audit_adder; SET ROLE audit_adder"""
    )
    await record(connection, OLGA, note(1))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute("SELECT * FROM audit.entries")
    await connection.execute("RESET ROLE")
    assert await counted(connection) == (1, 1, 0)


async def test_many_at_once_make_one_chain(
    database_url: str, connection: asyncpg.Connection[Any]
) -> None:
    """Numbered without gap in the order of commits; what was rolled back took no number."""

    async def act(n: int) -> None:
        own = await asyncpg.connect(database_url)
        transaction = own.transaction()
        await transaction.start()
        await record(own, OLGA, note(n), note(n))
        await (transaction.rollback() if n % 4 == 3 else transaction.commit())
        await own.close()

    await asyncio.gather(*map(act, range(12)))
    assert await counted(connection) == (18, 18, 0)
    chain = await verify_database(database_url)
    assert (chain.broken, chain.seq) == (None, 18)


TOUCHED = (
    "UPDATE audit.entries SET actor = 'mallory' WHERE seq = 3",
    "UPDATE audit.entries SET after = '{\"version\":9}' WHERE seq = 3",
    "UPDATE audit.entries SET at = at + interval '1 microsecond' WHERE seq = 3",
    "UPDATE audit.entries SET on_behalf_of = '' WHERE seq = 3",
    "UPDATE audit.entries SET action = kind, kind = action WHERE seq = 3",
    "DELETE FROM audit.entries WHERE seq = 3",
    "DELETE FROM audit.entries WHERE seq = 5",
    "UPDATE audit.entries SET seq = 6 WHERE seq = 5",
    "INSERT INTO audit.entries SELECT 6, at, actor, via, key_id, on_behalf_of, action, kind, subject, "
    "lead_id, before, after, digest FROM audit.entries WHERE seq = 5",
)


@pytest.mark.parametrize("statement", TOUCHED)
async def test_whatever_is_touched_shows(
    database_url: str, connection: asyncpg.Connection[Any], statement: str
) -> None:
    """Whoever owns the tables can take the triggers away; that something was changed then, shows."""
    for n in range(5):
        await record(connection, OLGA, note(n))
    assert (await verify_database(database_url)).broken is None
    await connection.execute("ALTER TABLE audit.entries DISABLE TRIGGER ALL")
    await connection.execute(statement)
    assert (await verify_database(database_url)).broken is not None


async def test_an_end_that_was_cut_off_shows_to_who_noted_it(
    database_url: str, connection: asyncpg.Connection[Any]
) -> None:
    for n in range(5):
        await record(connection, OLGA, note(n))
    end = await verify_database(database_url)
    noted = f"{end.seq}:{end.digest.hex()}"
    await record(connection, OLGA, note(9))
    assert (await verify_database(database_url, Noted(noted))).broken is None
    await connection.execute(
        """ALTER TABLE audit.entries DISABLE TRIGGER ALL; ALTER TABLE audit.head DISABLE TRIGGER ALL;
           DELETE FROM audit.entries WHERE seq > 4;
           UPDATE audit.head SET (seq, digest) = (SELECT seq, digest FROM audit.entries WHERE seq = 4)"""
    )
    assert (await verify_database(database_url)).broken is None
    assert "entry 5" in str((await verify_database(database_url, Noted(noted))).broken)
    for text in ("", "5", "x:y", "5:ab"):
        with pytest.raises(ValueError, match="ID:DIGEST"):
            Noted(text)


async def test_an_export_is_checked_without_the_database(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "audit.ndjson"
    async with running_stage(database_url) as stage:
        await stage.client.put("/v1/people/nina", json={"name": "Nína ☃", "roles": ["csm"]})
        file.write_bytes((await stage.client.get("/v1/audit/export")).content)
    chain = verify_file(file)
    assert chain.broken is None
    assert chain.seq == len(file.read_text().splitlines()) > 2
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:1], lines[1].replace("command", "system"), *lines[2:]]))
    touched = verify_file(file).broken
    file.write_text("".join([*lines[:1], *lines[2:]]))
    assert (touched, verify_file(file).broken) != (None, None)
    assert "missing" in str(verify_file(file).broken)
    file.write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"audit\.ndjson:1: not a line of an export"):
        verify_file(file)


async def test_it_is_filtered(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        await stage.client.put("/v1/people/nina", json={"name": "Nina", "roles": ["csm"]})
        await stage.client.delete("/v1/people/nina")

        async def found(**query: str) -> list[tuple[str, str]]:
            asked = {name.rstrip("_"): value for name, value in query.items()}
            answer = await stage.client.get("/v1/audit", params=asked)
            assert answer.status_code == 200, answer.text
            return [(i["action"], i["subject"]) for i in answer.json()["items"]]

        both = [("left", "nina"), ("added", "nina")]
        assert await found(object="person/nina") == both
        assert await found(kind="person", subject="nina", actor="test") == both
        assert await found(object="person", actor="test", action="left") == both[:1]
        assert await found(object="person/nina", to="2020-01-01") == []
        assert await found(object="person/nina", from_="2020-01-01") == both
        assert await found(lead_id="00000000-0000-0000-0000-000000000000") == []
        page = (await stage.client.get("/audit?object=person/nina")).text
        assert page.count("<tr id=") == 2
        assert "Nina" in page
        _, reader = await stage.new_key("read")
        for path in ("/v1/audit", "/v1/audit/export"):
            refused = await stage.client.get(path, headers={"authorization": f"Bearer {reader}"})
            assert refused.status_code == 403


async def test_what_machines_send_is_no_human_action(it: Any) -> None:
    before = await it.pool.fetchval("SELECT seq FROM audit.head")
    await it.lane.submit([event("demo.requested", 1), event("meeting.booked", 2)])
    assert len(await it.transitions()) > 1
    assert await it.pool.fetchval("SELECT seq FROM audit.head") == before


async def test_what_was_audited_before_is_in_the_chain_and_older_versions_go_on(
    bare_database_url: str,
) -> None:
    migrate(bare_database_url, "0017")
    connection = await asyncpg.connect(bare_database_url)
    old = """INSERT INTO stage.audit (actor, key_id, action, kind, subject, before, after)
             VALUES ('ben', 'k1', 'added', 'person', $1, NULL, '{"id": "nina"}')"""
    await connection.execute(old, "nina")
    await connection.execute(
        """INSERT INTO stage.audit (actor, action, kind, subject, before)
           SELECT 'eva', 'ended', 'person', 'p' || n, '{"a": "ü"}' FROM generate_series(1, 3000) AS n"""
    )
    await connection.close()
    migrate(bare_database_url)
    connection = await asyncpg.connect(bare_database_url)
    await connection.execute(old, "otto")
    assert await connection.fetchval("SELECT seq FROM audit.head") == 3002
    tries = await connection.fetchval(
        "SELECT count(*) FROM pg_trigger "
        "WHERE tgrelid IN ('audit.entries'::regclass, 'audit.head'::regclass) "
        "AND tgenabled <> 'A'"
    )
    assert tries == 0, "nobody gets round the chain again"
    rows = await connection.fetch(
        "SELECT actor, via, subject, after::text FROM audit.entries WHERE actor = 'ben' ORDER BY seq"
    )
    assert [tuple(r) for r in rows] == [
        ("ben", "key", "nina", '{"id": "nina"}'), ("ben", "key", "otto", '{"id": "nina"}')
    ]  # fmt: skip
    await connection.close()
    assert (await verify_database(bare_database_url)).broken is None


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("bat_0123456789ab_abcdefghijklmnopqrstuvwxyz", CUT),
        ("say whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw!", f"say {CUT}"),
        ("slack://TokenA/TokenB/TokenC", "slack://..."),
        ("mailto://user:pass@host", "mailto://..."),
        ("https://user:pa/ss@crm.example/x", "https://..."),
        ("https://hooks.example/T0/B0?key=1#x", "https://hooks.example/"),
        ("https://hooks.example?key=1", "https://hooks.example"),
        ("Bearer abcdefghij", CUT),
        ("a\x00b", "ab"),
        ("plain words", "plain words"),
    ],
)
def test_secrets_are_cut_out_wherever_they_stand(value: str, kept: str) -> None:
    assert told("person", {"name": value})["name"] == kept
    assert told("person", {"skills": [{"deep": [value]}]}) == {"skills": [{"deep": [kept]}]}
    assert told("person", {"hash": value, "password": value}) == {}, "only what is named is told"
    hidden = told("subscription", {"config": {"api_key": value, "auth_token": {"x": value}}})
    assert hidden == {"config": {"api_key": CUT, "auth_token": ["x"]}}
    assert told("subscription", {"headers": {"x-key": value}}) == {"headers": ["x-key"]}
    with pytest.raises(ValueError, match="knows no 'thing'"):
        told("thing", {})


def test_what_is_hashed_leaves_no_two_readings() -> None:
    """Lengths stand with the fields: moving a letter from one to the next is another entry."""
    base: dict[str, Any] = {
        "id": 1, "at": datetime(2026, 1, 1, tzinfo=UTC), "via": "key", "key_id": None, "on_behalf_of": None,
        "kind": "k", "subject": "s", "lead_id": None,
        "before": msgspec.Raw(b"null"), "after": msgspec.Raw(b"null"), "digest": "",
    }  # fmt: skip
    made = [
        audit.Entry(**base | {"actor": a, "action": b})
        for a, b in (("ab", "c"), ("a", "bc"), ("ab,1:", "c"))
    ]
    assert len({audit.digest_of(audit.FIRST, entry) for entry in made}) == 3
    assert FILE.via == "system"
