"""One person is one lead, on real PostgreSQL: merges, what they publish, and undoing them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from services.baton.verify import verify_database
from services.contracts.events import (
    MAIN,
    MERGED_BY_HAND,
    MOVED_BY_HAND,
    UNMERGED_BY_HAND,
    LeadEvent,
    identities_of,
)
from services.contracts.problems import Defect
from services.contracts.roster import Roster
from services.stage_service.batch import Batch, Outcome, RacedError
from services.stage_service.errors import UnavailableError
from services.stage_service.identities import LEAD_IDENTITY
from services.stage_service.lane import Lane, new_id
from services.stage_service.playbook import parse_playbook
from tests.conftest import ROOT
from tests.integration.wired import START, Wired, clean, event, retried, wired


def said(type: str, minute: float, *, id: str = "", deal: str = MAIN, **data: Any) -> LeadEvent:
    """An event whose identities are in its data, as a tool sends it."""
    identities = identities_of(data)
    assert not isinstance(identities, Defect)
    time = START + timedelta(minutes=minute)
    return LeadEvent(
        id or f"{type}-{minute}-{sorted(map(str, identities))}", "/t", type, time, time, None,
        identities, deal, data, {},
    )  # fmt: skip


def by_hand(type: str, *leads: str, **data: Any) -> LeadEvent:
    """A merge or an unmerge as Baton's own API records it."""
    time = START + timedelta(days=1)
    return LeadEvent(
        new_id(), "baton", type, time, time, None, tuple((LEAD_IDENTITY, i) for i in leads), MAIN,
        {"reason": "they said so", "actor": "me", **data}, {},
    )  # fmt: skip


async def part(it: Wired, merged: str) -> Outcome:
    """Undo the merge of the lead `merged`."""
    row = await it.pool.fetchrow(
        "SELECT id::text, survivor::text FROM stage.merges WHERE merged = $1 AND undone_at IS NULL",
        merged,
    )
    survivor = row["survivor"]
    while into := await it.pool.fetchval(
        "SELECT merged_into::text FROM stage.leads WHERE id = $1", survivor
    ):
        survivor = into
    return await it.lane.submit_alone(
        by_hand(UNMERGED_BY_HAND, survivor, merge_id=row["id"], lead=merged)
    )


async def live(it: Wired) -> list[str]:
    """The leads that are not part of another, oldest first."""
    rows = await it.pool.fetch(
        "SELECT id::text FROM stage.leads WHERE merged_into IS NULL ORDER BY id"
    )
    return [r["id"] for r in rows]


async def owned(it: Wired) -> set[frozenset[str]]:
    """The partition of identities into leads."""
    rows = await it.pool.fetch(
        "SELECT array_agg(kind || ' ' || value) AS keys FROM stage.identities GROUP BY lead_id"
    )
    return {frozenset(r["keys"]) for r in rows}


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Wired]:
    async with wired(database_url) as w:
        yield w


async def test_an_event_that_names_two_leads_merges_them(it: Wired) -> None:
    """The older survives; its history is corrected; nobody is alerted twice; the old journeys end."""
    [one] = await it.lane.submit([said("lead.created", 0, email="a@b.example")])
    [other] = await it.lane.submit(
        [said("demo.requested", 5, external_ids={"crm": "7"}, employees=300)]
    )
    assert one.lead_id != other.lead_id
    alerts = [w for m in await it.messages() for w in m["alerts"]]
    assert len(alerts) == 1
    [link] = await it.lane.submit(
        [said("page.viewed", 9, email="a@b.example", external_ids={"crm": "7"})]
    )
    assert link.lead_id == one.lead_id
    assert [(b.kind, b.from_, b.to, b.replaces) for b in link.transitions] == [
        ("correction", "lead", "mql", [])
    ]
    assert await live(it) == [one.lead_id]
    assert await owned(it) == {frozenset({"email a@b.example", "external:crm 7"})}
    assert await it.pool.fetchval("SELECT count(*) FROM stage.journeys") == 1
    messages = await it.messages()
    merged = [m for m in messages if m["type"] == "baton.lead.merged.v1"]
    assert [m["lead_id"] for m in merged] == [other.lead_id, one.lead_id]
    assert {(m["survivor"], m["merged"]) for m in merged} == {(one.lead_id, other.lead_id)}
    assert len({m["merge_id"] for m in merged}) == 1
    assert merged[0]["identities"] == ["email", "external:crm"]
    # Told in the order of both leads: after the merged one's last record, before the survivor's first.
    assert [m["type"].split(".")[1] for m in messages] == ["stage", "lead", "lead", "transition"]
    assert [w for m in messages for w in m.get("alerts", ())] == alerts
    # Who had it keeps it.
    assert messages[-1]["responsible"]["owner"] == messages[0]["responsible"]["owner"]
    await clean(it.url)


async def test_a_visitor_who_says_who_they_are_is_that_lead(it: Wired) -> None:
    [visit] = await it.lane.submit([said("page.viewed", 0, anonymous_id="x")])
    [named] = await it.lane.submit([said("lead.created", 1, anonymous_id="x", email="a@b.example")])
    assert named.lead_id == visit.lead_id
    [known] = await it.lane.submit([said("lead.created", 2, email="c@d.example")])
    [phone] = await it.lane.submit([said("page.viewed", 3, anonymous_id="y")])
    [both] = await it.lane.submit([said("page.viewed", 4, anonymous_id="y", email="c@d.example")])
    assert both.lead_id == known.lead_id
    assert set(await live(it)) == {visit.lead_id, known.lead_id}
    assert phone.lead_id not in await live(it)
    await clean(it.url)


async def test_a_shared_browser_merges_nobody(it: Wired) -> None:
    await it.lane.submit([said("lead.created", 0, anonymous_id="x", email="a@b.example")])
    [other] = await it.lane.submit([said("lead.created", 1, anonymous_id="x", email="c@d.example")])
    assert len(await live(it)) == 2
    assert "anonymous id also belongs to lead" in (other.warning or "")
    [again] = await it.lane.submit([said("lead.created", 2, email="c@d.example")])
    assert again.lead_id == other.lead_id
    await clean(it.url)


async def test_alerts_only_when_the_responsible_changed(it: Wired) -> None:
    """The survivor had the AE, the merged lead the lead agent: together the AE has it, and knows."""
    await it.lane.submit([said("meeting.booked", 5, email="a@b.example")])
    await it.lane.submit([said("demo.requested", 0, external_ids={"crm": "7"})])
    before = [w for m in await it.messages() for w in m.get("alerts", ())]
    [link] = await it.lane.submit(
        [said("page.viewed", 9, email="a@b.example", external_ids={"crm": "7"})]
    )
    assert [(b.kind, b.from_, b.to) for b in link.transitions] == [
        ("correction", "lead", "mql"), ("correction", "mql", "sql"),
    ]  # fmt: skip
    after = [w for m in await it.messages() for w in m.get("alerts", ())]
    assert after == before
    owners = msgspec.json.decode(await it.pool.fetchval("SELECT owners FROM stage.journeys"))
    assert set(owners) == {"lead_agent", "ae"}
    await clean(it.url)


async def test_a_chain_of_merges_in_one_batch(it: Wired) -> None:
    ids = [
        (await it.lane.submit([said("lead.created", n, email=f"p{n}@b.example")]))[0].lead_id
        for n in range(4)
    ]
    outcomes = await it.lane.submit(
        [
            said("page.viewed", 20, email="p2@b.example", external_ids={"crm": "1"}),
            said("page.viewed", 21, email="p3@b.example", external_ids={"crm": "1"}),
            said("page.viewed", 22, email="p1@b.example", external_ids={"erp": "2"}),
            said("page.viewed", 23, email="p3@b.example", external_ids={"erp": "2"}),
            said("demo.requested", 24, email="p2@b.example", external_ids={"erp": "2"}),
            said("page.viewed", 25, email="p0@b.example"),
        ]
    )
    assert [o.lead_id for o in outcomes] == [ids[1]] * 5 + [ids[0]]
    assert await live(it) == [ids[0], ids[1]]
    assert (await it.ways()) == [("lead", "mql")]
    await clean(it.url)


async def test_undoing_a_merge_restores_both(it: Wired) -> None:
    await it.lane.submit([said("lead.created", 0, email="a@b.example")])
    await it.lane.submit([said("demo.requested", 5, external_ids={"crm": "7"})])
    before = await snapshot(it)
    one, other = await live(it)
    [link] = await it.lane.submit(
        [said("page.viewed", 9, email="a@b.example", external_ids={"crm": "7"})]
    )
    await it.lane.submit([said("meeting.booked", 12, external_ids={"crm": "7", "erp": "9"})])
    assert await live(it) == [one]
    outcome = await part(it, other)
    assert outcome.status == "applied"
    assert await live(it) == [one, other]
    assert await owned(it) == {
        frozenset({"email a@b.example"}), frozenset({"external:crm 7", "external:erp 9"})
    }  # fmt: skip
    stages = dict(await it.pool.fetch("SELECT lead_id::text, stage FROM stage.journeys"))
    assert stages == {one: "lead", other: "sql"}
    await clean(it.url)
    # The same link does not merge them again by itself.
    [again] = await it.lane.submit(
        [said("page.viewed", 30, email="a@b.example", external_ids={"crm": "7"})]
    )
    assert (again.lead_id, link.lead_id) == (one, one)
    assert "parted by hand" in (again.warning or "")
    assert await live(it) == [one, other]
    # But a person may.
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, one, other))
    assert await live(it) == [one]
    await clean(it.url)
    assert before


async def snapshot(it: Wired) -> list[Any]:
    """What is known of each live lead, but for ids and numbers."""
    return [tuple(r.values()) for r in await it.pool.fetch(STATE)]


STATE = """
SELECT (SELECT array_agg(kind || ' ' || value ORDER BY kind, value) FROM stage.identities i
        WHERE i.lead_id = l.id), l.email, l.attributes, l.fit, l.intent, j.playbook, j.key, j.stage,
  j.furthest_stage, t.from_stage, t.to_stage, t.occurred_at, t.visit_entered_at, t.event_id, t.rule
FROM stage.leads l JOIN stage.journeys j ON j.lead_id = l.id
  LEFT JOIN stage.transitions t
    ON t.journey_id = j.id AND t.replaced_by IS NULL AND t.kind <> 'retraction'
WHERE l.merged_into IS NULL
ORDER BY 1, 2, 6, 7, t.occurred_at, t.sequence
"""


async def test_a_chain_is_undone_link_by_link(it: Wired) -> None:
    """Undoing an old merge after the survivor was merged itself takes that lead out of the whole."""
    for n in range(3):
        await it.lane.submit([said("demo.requested", n, email=f"p{n}@b.example")])
    a, b, c = await live(it)
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, b, c))
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, a, b))
    assert await live(it) == [a]
    await clean(it.url)
    await part(it, c)
    assert await live(it) == [a, c]
    assert await owned(it) == {
        frozenset({"email p0@b.example", "email p1@b.example"}), frozenset({"email p2@b.example"})
    }  # fmt: skip
    await clean(it.url)
    await part(it, b)
    assert await live(it) == [a, b, c]
    assert len(await owned(it)) == 3
    await clean(it.url)


async def test_a_third_lead_goes_with_whom_it_was_merged_for(it: Wired) -> None:
    """While two were one, an event merged a third in, naming the second: the third is part of the second."""
    for n in range(3):
        await it.lane.submit([said("demo.requested", n, email=f"p{n}@b.example")])
    a, b, c = await live(it)
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, a, b))
    for n in (1, 2):
        await it.lane.submit(
            [said("page.viewed", 9 + n, email=f"p{n}@b.example", external_ids={"crm": "7"})]
        )
    assert await live(it) == [a]
    await part(it, b)
    assert await live(it) == [a, b]
    assert await owned(it) == {
        frozenset({"email p0@b.example"}),
        frozenset({"email p1@b.example", "email p2@b.example", "external:crm 7"}),
    }
    alerted = [m["lead"]["id"] for m in await it.messages() for _ in m.get("alerts", ())]
    assert alerted == [a, b, c]
    await clean(it.url)
    await part(it, c)
    assert await live(it) == [a, b, c]
    await clean(it.url)


async def test_the_cap_and_the_shared_mailbox(it: Wired) -> None:
    [info] = await it.lane.submit([said("lead.created", 0, email="info@b.example")])
    [person] = await it.lane.submit(
        [said("lead.created", 1, email="info@b.example", external_ids={"crm": "1"})]
    )
    assert info.lead_id != person.lead_id
    for n in range(0, 60, 10):
        await it.lane.submit([
            said("page.viewed", n, external_ids={"crm": "1", **{f"s{i}": "1" for i in range(n, n + 10)}})
        ])  # fmt: skip
    count = await it.pool.fetchval(
        "SELECT count(*) FROM stage.identities WHERE lead_id = $1", person.lead_id
    )
    assert count == 50
    await clean(it.url)


async def test_two_lanes_link_the_same_people_at_once(database_url: str) -> None:
    """No deadlock that is not retried, no event lost, one lead a person, whoever is faster."""
    people = range(12)
    events: list[LeadEvent] = []
    for p in people:
        keys: list[dict[str, Any]] = [
            {"email": f"p{p}@x.example"}, {"external_ids": {"crm": f"c{p}"}},
            {"external_ids": {"erp": f"e{p}"}}, {"anonymous_id": f"a{p}"},
        ]  # fmt: skip
        events += [said("page.viewed", n, **k) for n, k in enumerate(keys)]
        events += [said("demo.requested", 5, **keys[1])]
        events += [
            said("page.viewed", 6, **keys[0], **keys[3]),
            said("page.viewed", 7, **keys[0], **keys[1]),
            said("page.viewed", 8, external_ids={"crm": f"c{p}", "erp": f"e{p}"}),
        ]
    async with wired(database_url) as one, wired(database_url) as two:
        requests = [events[n::24] for n in range(24)]
        await asyncio.gather(
            *(retried(lane.lane, some) for some in requests for lane in (one, two))
        )
        assert len(await owned(one)) == len(people)
        assert len(await live(one)) == len(people)
        assert await one.ways() == [("lead", "mql")] * len(people)
        assert await one.pool.fetchval("SELECT count(*) FROM stage.events") == len(events)
    await clean(database_url)


@pytest.mark.parametrize("parting", [False, True])
async def test_who_waited_for_a_merge_or_a_parting_looks_again(it: Wired, parting: bool) -> None:
    """What was looked up before the other's commit holds no more: the batch is rolled back (I12)."""
    await it.lane.submit([said("lead.created", 0, email="a@b.example")])
    await it.lane.submit([said("lead.created", 1, external_ids={"crm": "7"})])
    one, other = await live(it)
    first = said("x", 2, email="a@b.example", external_ids={"crm": "7"})
    if parting:
        await it.lane.submit([first])
        merge_id = await it.pool.fetchval("SELECT id::text FROM stage.merges")
        first = by_hand(UNMERGED_BY_HAND, one, merge_id=merge_id, lead=other)

    def batch(connection: Any) -> Batch:
        return Batch(connection, it.shelf, Roster(it.lane.team), START, new_id, it.lane.policy)

    second = said("demo.requested", 3, external_ids={"crm": "7"})
    async with it.pool.acquire() as here, it.pool.acquire() as there:
        faster, slower = here.transaction(), there.transaction()
        await faster.start()
        await slower.start()
        await batch(here).apply([first])
        waiting = asyncio.create_task(batch(there).apply([second]))
        async with asyncio.timeout(10):
            while not await it.pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert not waiting.done()
        await faster.commit()
        with pytest.raises(RacedError):
            await waiting
        await slower.rollback()
    [outcome] = await it.lane.submit([second])
    assert outcome.lead_id == (other if parting else one)
    await clean(it.url)


async def test_statements_of_a_batch_without_links(it: Wired) -> None:
    """Nothing is asked or written for merging when no event links two leads."""
    statements: list[str] = []
    async with it.pool.acquire() as connection:
        connection.add_query_logger(lambda record: statements.append(record.query))

        async def run(*events: LeadEvent) -> int:
            statements.clear()
            batch = Batch(connection, it.shelf, Roster(it.lane.team), START, new_id, it.lane.policy)
            async with connection.transaction():
                await batch.apply(events)
            return len([s for s in statements if "BEGIN" not in s and "COMMIT" not in s])

        await run(said("page.viewed", 0, email="first@b.example"))  # asks for the types once
        # Look up and write, as ever: also a new lead with several identities, also a known one.
        keys: dict[str, Any] = {"email": "a@b.example", "external_ids": {"crm": "1"}}
        assert await run(said("page.viewed", 0, **keys)) == 2
        assert (
            await run(said("page.viewed", 1, **keys), said("page.viewed", 1, email="n@b.example"))
            == 2
        )
        # One more identity of a known lead: what is known of that lead is asked.
        assert await run(said("page.viewed", 2, email="a@b.example", anonymous_id="x")) == 3


async def test_verify_notices_a_merge_that_is_not_whole(it: Wired) -> None:
    await it.lane.submit([said("lead.created", 0, email="a@b.example")])
    await it.lane.submit([said("demo.requested", 5, external_ids={"crm": "7"})])
    await it.lane.submit([said("x", 9, email="a@b.example", external_ids={"crm": "7"})])
    [other] = await it.lane.submit([said("lead.created", 0, email="other@b.example")])
    await clean(it.url)
    tables = ("leads", "identities", "merges", "events", "journeys")
    for breakage in (
        "UPDATE stage.leads SET merged_into = NULL",
        "UPDATE stage.identities SET lead_id = own_lead_id WHERE own_lead_id IS NOT NULL",
        "DELETE FROM stage.merges",
        "UPDATE stage.merges SET event_id = 'other'",
        "UPDATE stage.events SET own_lead_id = gen_random_uuid() WHERE own_lead_id IS NOT NULL",
        "UPDATE stage.identities SET lead_id = %other%, own_lead_id = NULL WHERE value = '7'",
        "UPDATE stage.events SET lead_id = %other%, own_lead_id = NULL WHERE type = 'x'",
        "DELETE FROM stage.identities WHERE value = '7'",
        "UPDATE stage.journeys SET lead_id = (SELECT id FROM stage.leads WHERE merged_into IS NOT NULL) "
        "WHERE lead_id <> %other%",
        "UPDATE stage.leads SET merged_into = id WHERE merged_into IS NOT NULL",
    ):
        await it.pool.execute("CREATE SCHEMA kept")
        for table in tables:
            await it.pool.execute(f"CREATE TABLE kept.{table} AS TABLE stage.{table}")
        await it.pool.execute(breakage.replace("%other%", f"'{other.lead_id}'"))
        report = await verify_database(it.url)
        assert report.findings, breakage
        for table in tables:
            await it.pool.execute(f"TRUNCATE stage.{table}")
            await it.pool.execute(f"INSERT INTO stage.{table} SELECT * FROM kept.{table}")
        await it.pool.execute("DROP SCHEMA kept CASCADE")
    await clean(it.url)


async def test_merges_and_partings_beside_traffic(database_url: str) -> None:
    """Two lanes link, people merge and part, all at once: whatever comes of it is whole."""
    chance = random.Random(7)
    keys: list[dict[str, Any]] = [
        *({"email": f"p{n}@x.example"} for n in range(8)),
        *({"external_ids": {"crm": f"c{n}"}} for n in range(8)),
        *({"anonymous_id": f"a{n}"} for n in range(4)),
    ]
    types = ("page.viewed", "demo.requested", "meeting.booked", "lead.recycled", "proposal.sent")
    sent: list[LeadEvent] = []

    async def traffic(lane: Lane, name: str) -> None:
        for n in range(60):
            one, other = chance.sample(keys, 2)
            both = one | other if chance.random() < 0.15 and one.keys() != other.keys() else one
            made = said(chance.choice(types), chance.randrange(60), id=f"{name}{n}", **both)
            sent.append(made)
            await retried(lane, [made])

    async def people(it: Wired) -> None:
        for _ in range(25):
            leads = await live(it)
            merged = await it.pool.fetch(
                "SELECT merged::text FROM stage.merges WHERE undone_at IS NULL"
            )
            try:
                if merged and chance.random() < 0.5:
                    await part(it, chance.choice(merged)["merged"])
                elif len(leads) > 1:
                    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, *chance.sample(leads, 2)))
            except (UnavailableError, TypeError):
                continue  # somebody else was faster: what was asked for is no more

    async with wired(database_url) as one, wired(database_url) as two:
        await asyncio.gather(
            traffic(one.lane, "a"), traffic(two.lane, "b"), traffic(one.lane, "c"),
            people(one), people(two),
        )  # fmt: skip
        assert await one.pool.fetchval(
            "SELECT count(*) FROM stage.events WHERE source = '/t'"
        ) == len(sent)
        assert await one.pool.fetchval("SELECT count(*) FROM stage.merges") > 5
    await clean(database_url)


async def test_a_move_that_a_merge_overtook_takes_nobody_along(it: Wired) -> None:
    """A move by hand of a lead that is part of another by now is refused; its batch is not."""
    await it.lane.submit([said("lead.created", 0, email="a@b.example")])
    await it.lane.submit([said("lead.created", 1, email="c@d.example")])
    one, other = await live(it)
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, one, other))
    moved, told = await asyncio.gather(
        it.lane.submit([by_hand(MOVED_BY_HAND, other, to="nurture", playbook="sales")]),
        it.lane.submit([said("demo.requested", 5, email="a@b.example")]),
        return_exceptions=True,
    )
    assert isinstance(moved, UnavailableError)
    assert not isinstance(told, BaseException)
    assert [o.status for o in told] == ["applied"]
    assert await it.ways() == [("lead", "mql")]
    await clean(it.url)


async def test_a_merge_that_puts_an_event_before_an_older_version_tells_it_anew(it: Wired) -> None:
    """Alone it was judged by the newer version; now events that are placed after it were judged before."""
    one, other = "one@b.example", "other@b.example"
    await it.lane.submit([event("lead.created", 0, one)])
    await it.lane.submit([event("page.viewed", 30, other)])
    text = (ROOT / "playbooks/sales.yaml").read_text()
    await it.shelf.publish_file(it.pool, parse_playbook(text + "\n# 2\n", "sales.yaml"))
    await it.lane.submit([event("demo.requested", 10, one)])
    leads = await live(it)
    [before] = [r for r in await it.transitions() if r["to_stage"] == "mql"]
    assert before["playbook_version"] == 2
    outcome = await it.lane.submit_alone(by_hand(MERGED_BY_HAND, *leads))
    assert outcome.lead_id == str(before["lead_id"])
    [told] = [r for r in await it.transitions() if r["to_stage"] == "mql"]
    assert (told["playbook_version"], told["replaces"]) == (1, [before["id"]])
    await clean(it.url)
    await part(it, next(id for id in leads if id != outcome.lead_id))
    await clean(it.url)
