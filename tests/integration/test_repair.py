"""`baton verify --repair`: each kind of damage is named, put right from the events, published and audited."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import asyncpg
import msgspec
import pytest

from services.baton.repair import repair
from services.baton.verify import verify_database
from services.baton.verify_command import CLEAN, NOT_CHECKED, command, told
from services.contracts.audit import Actor
from services.contracts.events import CORRECTED, HANDOFFS_TOPIC
from services.contracts.verification import Repair, Verification
from services.stage_service.identities import Policy
from services.stage_service.playbook import parse_playbook
from services.stage_service.relay import Relay
from tests.conftest import ROOT
from tests.integration.test_merging import said
from tests.integration.wired import Wired, it, walk, wired

__all__ = ["it"]
OLGA = Actor("olga@host", via="command")


async def published(url: str) -> None:
    """Everything that waits has its position."""
    relay = Relay(url, None)
    relay.start()
    await relay.stop()


async def damaged(it: Wired, *statements: str) -> Verification:
    """Two leads on their way, published; then `statements` are done by hand. Gives what verify says."""
    await it.lane.submit([*walk(), *walk("other@b.example")[:3]])
    await published(it.url)
    assert (await verify_database(it.url)).clean
    for statement in statements:
        assert not (await it.pool.execute(statement)).endswith(" 0"), statement
    found = await verify_database(it.url)
    assert not found.clean, "the damage is seen"
    return found


async def repaired(it: Wired, found: Verification) -> Repair:
    """Repair, publish, and see that all is well: history in order, and nothing deleted or renumbered."""
    said = "SELECT count(*) FROM audit.entries WHERE action = 'repaired'"
    before = await it.pool.fetchval(said)
    tried = await repair(it.url, found, OLGA, dry_run=True)
    assert (await verify_database(it.url)).findings == found.findings, "a dry run changes nothing"
    done = await repair(it.url, found, OLGA, dry_run=False)
    assert [m.findings for m in done.leads] == [m.findings for m in tried.leads]
    assert {(*m.left, m.why_not) for m in done.leads} <= {(None,)}
    await published(it.url)
    assert (await verify_database(it.url)).findings == []
    assert await it.pool.fetchval(said) - before == len(done.leads) + bool(done.others)
    again = await repair(it.url, found, OLGA, dry_run=False)
    assert (again.leads, again.others) == ([], []), "once more changes nothing"
    return done


FIRST = "(SELECT id FROM stage.leads ORDER BY id LIMIT 1)"
JOURNEY = "(SELECT j.id FROM stage.journeys j JOIN stage.leads l ON l.id = j.lead_id ORDER BY l.id LIMIT 1)"

SILENT = {
    "the journey's stage": "UPDATE stage.journeys SET stage = 'nurture' WHERE id = {journey}",
    "the furthest stage": "UPDATE stage.journeys SET furthest_stage = 'mql' WHERE id = {journey}",
    "the times": "UPDATE stage.journeys SET entered_at = now() WHERE id = {journey}",
    "the count": "UPDATE stage.journeys SET sequence = sequence + 3 WHERE id = {journey}",
    "the owners' column": "UPDATE stage.journeys SET owners = '{{}}' WHERE id = {journey}",
    "the journey": "DELETE FROM stage.journeys WHERE id = {journey}",
    "the attributes": """UPDATE stage.leads SET attributes = '{{"company": "X"}}' WHERE id = {lead}""",
    "the e-mail": "UPDATE stage.leads SET email = 'x@x.example' WHERE id = {lead}",
    "the name": "UPDATE stage.leads SET name = 'X', company = 'Y' WHERE id = {lead}",
    "the moments": "UPDATE stage.leads SET last_seen_at = now() WHERE id = {lead}",
    "what is held": """UPDATE stage.journeys SET held = '[{{"to": "sql"}}]' WHERE id = {journey}""",
    "the deal": """UPDATE stage.journeys SET deal = '{{"amount": 3}}' WHERE id = {journey}""",
    "another's state": """UPDATE stage.leads SET state =
        (SELECT state FROM stage.leads WHERE id <> {lead} LIMIT 1) WHERE id = {lead}""",
    "an unreadable state": "UPDATE stage.leads SET state = '\\xdeadbeef' WHERE id = {lead}",
    "a middle record": "DELETE FROM stage.transitions WHERE journey_id = {journey} AND sequence = 2",
    "the newest record": """DELETE FROM stage.transitions WHERE journey_id = {journey} AND sequence =
        (SELECT max(sequence) FROM stage.transitions WHERE journey_id = {journey})""",
    "all records": "DELETE FROM stage.transitions WHERE journey_id = {journey}",
    "an identity": "DELETE FROM stage.identities WHERE lead_id = {lead}",
    "an identity's lead": "UPDATE stage.identities SET lead_id = gen_random_uuid() WHERE lead_id = {lead}",
    "a clock": "DELETE FROM stage.clocks WHERE lead_id = {lead} AND state = 'running'",
    "a stopped clock": """UPDATE stage.clocks SET state = 'met', due_at = NULL, ended_at = now()
        WHERE lead_id = {lead} AND state = 'running'""",
    "a clock of nothing": """INSERT INTO stage.clocks
        SELECT (jsonb_populate_record(c, jsonb_build_object('id', gen_random_uuid()))).*
        FROM stage.clocks c WHERE lead_id = {lead} AND state = 'running' LIMIT 1""",
    "a handoff": "DELETE FROM stage.handoffs WHERE lead_id = {lead}",
    "a handoff's state": "UPDATE stage.handoffs SET state = 'rejected' WHERE lead_id = {lead}",
}  # fmt: skip


async def test_what_was_damaged_is_put_right_as_it_was(it: Wired) -> None:
    """Each kind on a lead of its own: the rows are as before, and nobody is told of a new one."""
    leads: dict[str, str] = {}
    for n, what in enumerate(SILENT):
        outcomes = await it.lane.submit(walk(f"p{n}@b.example")[: 5 if n % 2 else 3])
        leads[str(outcomes[0].lead_id)] = what
    await published(it.url)
    before = await rows(it, leads)
    for lead, what in leads.items():
        journey = f"(SELECT id FROM stage.journeys WHERE lead_id = '{lead}')"
        done = await it.pool.execute(SILENT[what].format(lead=f"'{lead}'", journey=journey))
        assert not done.endswith(" 0"), what
    found = await verify_database(it.url)
    assert {leads[id] for id in found.damaged} == set(SILENT), "all of it is seen"
    await repaired(it, found)
    assert await rows(it, leads) == before


async def test_what_the_relay_lost_is_published(it: Wired) -> None:
    await it.lane.submit(walk())
    await it.pool.execute("DELETE FROM bus.pending")
    found = await verify_database(it.url)
    done = await repaired(it, found)
    assert "messages wait for the relay again" in done.others[0]


async def rows(it: Wired, leads: dict[str, str] | None = None) -> list[list[Any]]:
    """The leads, journeys, records and handoffs as they are, but for when they were written.

    Of a record that was lost, why its owner was chosen is known no more; of a handoff, until when it was to
    be answered, and by whom; `leads` says what became of whom.
    """
    told = {id for id, what in (leads or {}).items() if "record" in what}
    lost = {id for id, what in (leads or {}).items() if what == "a handoff"}
    found = [
        [[v for k, v in r.items() if k != "why" or str(r["lead_id"]) not in told] for r in
         await it.pool.fetch("SELECT * FROM stage.transitions ORDER BY journey_id, sequence")],
        [[v for k, v in r.items() if k not in ("person_id", "due_at") or str(r["lead_id"]) not in lost]
         for r in await it.pool.fetch(
            """SELECT id, lead_id, state, person_id, due_at, answered_at, answered_by, reason
               FROM stage.handoffs ORDER BY id""")],
    ]  # fmt: skip
    for query in (
        "SELECT id, email, name, company, attributes, fit, intent FROM stage.leads ORDER BY id",
        """SELECT id, stage, furthest_stage, started_at, entered_at, sequence, owners, held, holder
           FROM stage.journeys ORDER BY id""",
        "SELECT kind, value, lead_id FROM stage.identities ORDER BY 1, 2",
        "SELECT id, lead_id, deadline, step, due_at FROM stage.clocks WHERE state = 'running' ORDER BY id",
    ):
        found.append([list(r) for r in await it.pool.fetch(query)])
    return found


async def test_wrong_history_is_corrected_and_published(it: Wired) -> None:
    """I3: the wrong record stays, and a correction replaces it; the feed says so, and alerts nobody."""
    found = await damaged(
        it,
        f"UPDATE stage.transitions SET to_stage = 'nurture' WHERE journey_id = {JOURNEY} AND sequence = 2",
    )
    ways = await it.transitions(held=False)
    done = await repaired(it, found)
    [mended] = done.leads
    assert mended.published >= 1
    now = await it.transitions(held=False)
    kept = {r["id"]: r for r in now}
    assert all(kept[r["id"]]["to_stage"] == r["to_stage"] for r in ways), "nothing is rewritten"
    wrong = next(r for r in now if r["to_stage"] == "nurture" and r["sequence"] == 2)
    assert wrong["replaced_by"] is not None
    corrections = [m for m in await it.messages() if m["type"] == CORRECTED]
    assert str(wrong["id"]) in {old for m in corrections for old in m["replaces"]}
    assert all(m["alerts"] == [] for m in corrections)
    assert "was repaired" in corrections[0]["explanation"]
    told_since = [
        m
        for m in await it.messages(HANDOFFS_TOPIC)
        if m["recorded_at"] >= corrections[0]["recorded_at"]
    ]
    assert all(m["alerts"] == [] for m in told_since)
    assert any("-> in" in line for line in told(done))


async def test_a_lost_message_is_told_as_it_was(it: Wired) -> None:
    """I5: the record is there, its message is not; it comes under the same id."""
    await it.lane.submit(walk())
    id = await it.pool.fetchval(
        "SELECT id::text FROM stage.transitions WHERE sequence = 2 ORDER BY journey_id LIMIT 1"
    )
    before = next(m for m in await it.messages() if m["transition_id"] == id)
    await it.pool.execute(
        "DELETE FROM bus.pending WHERE outbox_id IN (SELECT id FROM bus.outbox WHERE message_id = $1)",
        id,
    )
    await it.pool.execute("DELETE FROM bus.outbox WHERE message_id = $1", id)
    await published(it.url)
    found = await verify_database(it.url)
    assert found.findings == ["1 transitions have no message in the outbox"]
    await repaired(it, found)
    after = next(m for m in await it.messages() if m["transition_id"] == id)
    assert after["alerts"] == []
    same = ("type", "sequence", "from", "to", "occurred_at", "recorded_at", "cause", "explanation",
            "journey", "handoff", "skipped", "replaces", "playbook_version")  # fmt: skip
    assert {n: after[n] for n in same} == {n: before[n] for n in same}
    assert after["responsible"]["role"] == before["responsible"]["role"]


async def test_what_nothing_proves_is_left_and_said(it: Wired) -> None:
    """No event, no fold; and a record whose message is gone too cannot come back under its number."""
    found = await damaged(it, f"DELETE FROM stage.events WHERE lead_id = {FIRST}")
    before = await rows(it)
    done = await repair(it.url, found, OLGA, dry_run=False)
    [mended] = done.leads
    assert mended.why_not == "no event of it is stored: nothing proves how it was"
    assert mended.left == mended.findings
    assert await rows(it) == before
    assert "nothing was done" in "\n".join(told(done))


async def test_a_number_that_nothing_tells_stays_a_gap(it: Wired) -> None:
    id = "(SELECT id::text FROM stage.transitions WHERE sequence = 2 ORDER BY journey_id LIMIT 1)"
    await it.lane.submit(walk())
    await published(it.url)
    await it.pool.execute(f"DELETE FROM bus.outbox WHERE message_id = {id}")
    await it.pool.execute(f"DELETE FROM stage.transitions WHERE id::text = {id}")
    found = await verify_database(it.url)
    done = await repair(it.url, found, OLGA, dry_run=False)
    [mended] = done.leads
    assert any("records, numbered to" in left for left in mended.left), mended.left
    stage = await it.pool.fetchval("SELECT stage FROM stage.journeys")
    assert stage == (await it.transitions())[-1]["to_stage"], "the rest is right"


async def test_stopped_half_way_it_goes_on(it: Wired) -> None:
    """I12: each lead is whole or untouched; the next run does the others."""
    await it.lane.submit([e for n in range(6) for e in walk(f"p{n}@b.example")[:4]])
    await published(it.url)
    await it.pool.execute("UPDATE stage.journeys SET stage = 'nurture', sequence = sequence + 1")
    found = await verify_database(it.url)
    assert len(found.damaged) == 6
    for stop_after in (1, 2):
        seen: list[int] = []

        def progress(
            done: int, _: int, stop_after: int = stop_after, seen: list[int] = seen
        ) -> None:
            seen.append(done)
            if done == stop_after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await repair(it.url, found, OLGA, dry_run=False, progress=progress)
    left = await verify_database(it.url)
    assert len(left.damaged) == 4
    await repaired(it, left)


async def test_beside_live_traffic(it: Wired) -> None:
    """Events that come meanwhile wait for the lead's lock, or the repair for theirs: none is lost."""
    await it.lane.submit([e for n in range(8) for e in walk(f"p{n}@b.example")[:2]])
    await it.pool.execute("UPDATE stage.journeys SET stage = 'nurture', entered_at = now()")
    found = await verify_database(it.url)
    rest = [e for n in range(8) for e in walk(f"p{n}@b.example")[2:]]
    sent = [it.lane.submit([e]) for e in rest]
    done, *outcomes = await asyncio.gather(repair(it.url, found, OLGA, dry_run=False), *sent)
    assert {o.status for each in outcomes for o in each} == {"applied"}
    assert all(m.left == [] and m.why_not is None for m in done.leads)
    await published(it.url)
    assert (await verify_database(it.url)).findings == []


async def test_an_unpublished_record_of_a_merged_lead_is_left_and_said(it: Wired) -> None:
    await it.lane.submit([*walk(), *walk("other@b.example")[:3]])
    await published(it.url)
    gone, other = [r[0] for r in await it.pool.fetch("SELECT id FROM stage.leads ORDER BY id DESC")]
    await it.pool.execute("UPDATE stage.leads SET merged_into = $2 WHERE id = $1", gone, other)
    await it.pool.execute(
        "DELETE FROM bus.outbox WHERE message_id IN "
        "(SELECT id::text FROM stage.transitions WHERE lead_id = $1)", gone,
    )  # fmt: skip
    done = await repair(it.url, Verification(), OLGA, dry_run=False)
    [mended] = done.leads
    assert (mended.lead_id, mended.left) == (str(gone), mended.findings)
    assert mended.why_not is not None
    assert "merged" in mended.why_not


async def test_a_publication_meanwhile_does_not_end_it(it: Wired) -> None:
    """Published after the repair read the versions, and folded under by an event that came since."""
    await it.lane.submit([e for n in range(2) for e in walk(f"p{n}@b.example")[:2]])
    await it.pool.execute("UPDATE stage.journeys SET stage = 'nurture'")
    found = await verify_database(it.url)
    _, second = sorted(found.damaged)

    def progress(done: int, _: int) -> None:
        if done == 1:
            publish_now(it.url, second)

    done = await repair(it.url, found, OLGA, dry_run=False, progress=progress)
    assert [m.why_not for m in done.leads] == [None, None]


def publish_now(url: str, lead_id: str) -> None:
    """Publish a version, and have the newest event of the lead recorded in its epoch."""

    async def publish() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(
            """INSERT INTO stage.playbook_versions (name, version, digest, source)
               SELECT name, version + 1, digest || '2', source FROM stage.playbook_versions
               ORDER BY epoch DESC LIMIT 1"""
        )
        await connection.execute(
            """UPDATE stage.events SET epoch = (SELECT max(epoch) FROM stage.playbook_versions)
               WHERE lead_id = $1::uuid""",
            lead_id,
        )
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(publish()))
    thread.start()
    thread.join()


async def test_what_is_wrong_is_said_in_one_order_wherever_the_rows_lie(it: Wired) -> None:
    found = await damaged(it, f"DELETE FROM stage.identities WHERE lead_id = {FIRST}")
    assert len(found.findings) > 2
    await it.pool.execute(
        """WITH gone AS (DELETE FROM stage.events WHERE time = (SELECT min(time) FROM stage.events)
             RETURNING *) INSERT INTO stage.events SELECT * FROM gone"""
    )
    assert (await verify_database(it.url)).findings == found.findings


async def test_any_number_of_processes_says_the_same(it: Wired) -> None:
    await it.lane.submit([e for n in range(9) for e in walk(f"p{n}@b.example")[:4]])
    await published(it.url)
    await it.pool.execute("UPDATE stage.journeys SET stage = 'nurture' WHERE id::text < '9'")
    await it.pool.execute(f"UPDATE stage.leads SET state = '' WHERE id = {FIRST}")
    seen: list[tuple[int, int]] = []
    one = await verify_database(it.url, leads_a_task=2)
    two = await verify_database(
        it.url, workers=2, leads_a_task=2, progress=lambda done, total: seen.append((done, total))
    )
    assert not one.clean
    assert msgspec.json.encode(one) == msgspec.json.encode(two)
    assert seen[-1] == (9, 9)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


async def test_events_of_another_epoch_are_told_anew(it: Wired) -> None:
    """I4: the same moves under another version are other records; and once more changes nothing."""
    await it.lane.submit([*walk()[:3], *walk("other@b.example")[:3]])
    await published(it.url)
    text = (ROOT / "playbooks/sales.yaml").read_text()
    await it.shelf.publish_file(it.pool, parse_playbook(text + "\n# 2\n", "sales.yaml"))
    await it.pool.execute(f"UPDATE stage.events SET epoch = epoch + 1 WHERE lead_id = {FIRST}")
    found = await verify_database(it.url)
    await repaired(it, found)
    held = await it.pool.fetch(
        f"SELECT playbook_version FROM stage.transitions WHERE lead_id = {FIRST} AND replaced_by IS NULL"
    )
    assert {r["playbook_version"] for r in held} == {2}


async def test_what_a_record_says_besides_its_move_is_corrected(it: Wired) -> None:
    """Whom it made responsible, what it skipped: told anew, as another move would be."""
    await it.lane.submit([*walk()[:3], *walk("p1@b.example")[:3], *walk("p2@b.example")[:3]])
    await published(it.url)
    for n, (column, value) in enumerate((
        ("role", "'csm'"), ("skipped", "'{nurture}'"), ("playbook_version", "7")
    )):  # fmt: skip
        await it.pool.execute(
            f"UPDATE stage.transitions SET {column} = {value} WHERE sequence = 1 AND lead_id = "
            f"(SELECT id FROM stage.leads ORDER BY id OFFSET {n} LIMIT 1)"
        )
    found = await verify_database(it.url)
    assert len(found.damaged) == 3
    await repaired(it, found)


async def test_a_repair_goes_by_the_settings_of_identity(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A phone without country code is one of the region; what stands for no id here, nobody claims."""
    policy = Policy(region="DE", ignored_values=frozenset({"nobody"}))
    nobody = {"external_ids": {"crm": "nobody"}}
    async with wired(database_url, policy=policy) as it:
        await it.lane.submit([
            said("page.viewed", 0, phone="030 901820"), said("page.viewed", 1, email="a@b.example", **nobody),
        ])  # fmt: skip
        before = await it.pool.fetch(
            "SELECT kind, value, lead_id FROM stage.identities ORDER BY 1, 2"
        )
        assert [tuple(r)[:2] for r in before] == [
            ("email", "a@b.example"),
            ("phone", "+4930901820"),
        ]
        await it.pool.execute("DELETE FROM stage.identities")

        def asked() -> int:
            return command(database_url, 1, as_json=True, repair=True, yes=True)

        monkeypatch.setenv("BATON_IDENTITY_PHONE_REGION", "Germany")
        assert await asyncio.to_thread(asked) == NOT_CHECKED
        assert "BATON_IDENTITY_PHONE_REGION" in capsys.readouterr().err
        monkeypatch.setenv("BATON_IDENTITY_PHONE_REGION", "de")
        monkeypatch.setenv("BATON_IDENTITY_IGNORED_VALUES", '["nobody"]')
        assert await asyncio.to_thread(asked) == CLEAN
        assert await it.pool.fetch(
            "SELECT kind, value, lead_id FROM stage.identities ORDER BY 1, 2"
        ) == before  # fmt: skip


async def test_owners_are_facts_and_stay(it: Wired, database_url: str) -> None:
    """Who holds a journey is no function of the events: a repair keeps what its lead knows."""
    found = await damaged(
        it, f"UPDATE stage.journeys SET owners = '{{}}', holder = NULL WHERE id = {JOURNEY}"
    )
    owners = "SELECT owners::text FROM stage.journeys WHERE id = " + JOURNEY
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval(owners) == "{}"
    await repaired(it, found)
    assert "id" in await connection.fetchval(owners)
    await connection.close()
