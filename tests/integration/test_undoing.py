"""Undoing merges in the hard cases: weak identities shared before, later merges, barriers, other orders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.contracts.events import MERGED_BY_HAND, UNMERGED_BY_HAND
from services.contracts.roster import Roster
from services.stage_service.batch import Batch, RacedError
from services.stage_service.errors import UnavailableError
from services.stage_service.lane import new_id
from services.stage_service.playbook import parse_playbook
from services.stage_service.shelf import Shelf
from tests.conftest import ROOT
from tests.integration.test_merging import by_hand, live, owned, part, said
from tests.integration.wired import START, Wired, clean, wired


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Wired]:
    async with wired(database_url) as w:
        yield w


async def leads_of_events(it: Wired) -> dict[str, str]:
    """Whose each tool's event is."""
    rows = await it.pool.fetch("SELECT id, lead_id::text FROM stage.events WHERE source = '/t'")
    return {r["id"]: r["lead_id"] for r in rows}


async def test_what_came_before_the_merge_stays_whose_it_was(it: Wired) -> None:
    """The survivor named itself by an event with a phone that the other had first: it is the survivor's."""
    phone = {"phone": "+49 30 901820"}
    await it.lane.submit([said("page.viewed", 0, id="visit", anonymous_id="x")])
    await it.lane.submit([said("lead.created", 1, id="other", email="c@d.example", **phone)])
    await it.lane.submit(
        [said("demo.requested", 2, id="demo", email="a@b.example", anonymous_id="x", **phone)]
    )
    one, other = await live(it)
    before, people = await leads_of_events(it), await owned(it)
    assert before == {"visit": one, "demo": one, "other": other}
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, one, other))
    await part(it, other)
    assert await leads_of_events(it) == before
    assert await owned(it) == people
    await clean(it.url)


async def test_what_one_batch_brought_stays_together(it: Wired) -> None:
    """Events of one request were recorded in the same moment, whatever their ids."""
    phone = {"phone": "+49 30 901820"}
    [first] = await it.lane.submit([said("page.viewed", 0, id="z", external_ids={"crm": "1"})])
    await it.lane.submit([said("lead.created", 0, id="other", email="c@d.example", **phone)])
    await it.lane.submit(
        [
            said("lead.created", 0, id="y", external_ids={"crm": "1"}, email="a@b.example"),
            said("demo.requested", 0, id="a", email="a@b.example", **phone),
        ]
    )
    one, other = await live(it)
    before, people = await leads_of_events(it), await owned(it)
    assert (before["a"], before["y"]) == (one, one) == (first.lead_id, first.lead_id)
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, one, other))
    await part(it, other)
    assert await leads_of_events(it) == before
    assert await owned(it) == people
    await clean(it.url)


async def test_what_came_between_goes_with_it_after_later_merges_too(it: Wired) -> None:
    """C was merged into B, an event named C, and B was merged into A: undone, the event is C's."""
    for n, name in enumerate("abc"):
        await it.lane.submit([said("lead.created", n, email=f"{name}@b.example")])
    a, b, c = await live(it)
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, b, c))
    await it.lane.submit(
        [said("demo.requested", 5, id="demo", email="c@b.example", external_ids={"crm": "7"})]
    )
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, a, b))
    await part(it, c)
    assert await live(it) == [a, c]
    assert (await leads_of_events(it))["demo"] == c
    assert frozenset({"email c@b.example", "external:crm 7"}) in await owned(it)
    await clean(it.url)


async def test_a_third_lead_goes_with_it_after_later_merges_too(it: Wired) -> None:
    for n, name in enumerate("abcd"):
        await it.lane.submit([said("lead.created", n, email=f"{name}@b.example")])
    a, b, c, d = await live(it)
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, b, c))
    for n, name in enumerate("cd"):
        await it.lane.submit(
            [said("x", 5 + n, email=f"{name}@b.example", external_ids={"crm": "7"})]
        )
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, a, b))
    assert await live(it) == [a]
    await part(it, c)
    assert await live(it) == [a, c]
    assert await it.pool.fetchval("SELECT merged_into::text FROM stage.leads WHERE id = $1", d) == c
    await clean(it.url)


async def test_who_was_parted_in_a_chain_is_parted_from_every_link(it: Wired) -> None:
    """C was parted while B was part of A: neither A nor B, once by itself again, is merged with C."""
    for n, name in enumerate("abc"):
        await it.lane.submit([said("lead.created", n, email=f"{name}@b.example")])
    a, b, c = await live(it)
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, b, c))
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, a, b))
    await part(it, c)
    await part(it, b)
    assert await live(it) == [a, b, c]
    for n, name in enumerate("bc"):
        await it.lane.submit(
            [said("x", 9 + n, email=f"{name}@b.example", external_ids={"crm": "7"})]
        )
    assert await live(it) == [a, b, c]
    # Nothing parted A and C by themselves: that they were held apart went with B.
    for n, name in enumerate("ac"):
        await it.lane.submit(
            [said("x", 19 + n, email=f"{name}@b.example", external_ids={"erp": "7"})]
        )
    assert await live(it) == [a, b]
    await clean(it.url)


async def test_a_parting_that_others_overtook_changes_nothing(it: Wired) -> None:
    """Asked for while C was in A by way of B, and B was parted meanwhile: C is B's, and stays whole."""
    for n, name in enumerate("abc"):
        await it.lane.submit([said("demo.requested", n, email=f"{name}@b.example")])
    a, b, c = await live(it)
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, b, c))
    merge_id = await it.pool.fetchval("SELECT id::text FROM stage.merges")
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, a, b))
    await part(it, b)
    people = await owned(it)
    with pytest.raises(UnavailableError):
        await it.lane.submit_alone(by_hand(UNMERGED_BY_HAND, a, merge_id=merge_id, lead=c))
    assert await owned(it) == people
    await part(it, c)
    assert await live(it) == [a, b, c]
    await clean(it.url)


async def test_what_a_third_lead_told_before_it_was_merged_goes_with_it(it: Wired) -> None:
    """In the batch that merged the third lead in, it had been told of by itself."""
    for n, name in enumerate("ab"):
        await it.lane.submit([said("lead.created", n, email=f"{name}@b.example")])
    await it.lane.submit([said("lead.created", 2, external_ids={"crm": "7"})])
    a, b, c = await live(it)
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, a, b))
    await it.lane.submit(
        [
            said("demo.requested", 5, id="demo", external_ids={"crm": "7"}),
            said("x", 5, id="link", email="b@b.example", external_ids={"crm": "7"}),
        ]
    )
    assert await live(it) == [a]
    await part(it, b)
    assert await leads_of_events(it) | {"demo": b, "link": b} == await leads_of_events(it)
    await part(it, c)
    assert (await leads_of_events(it))["demo"] == c
    await clean(it.url)


async def test_a_barrier_is_inherited_through_a_chain_of_one_batch(it: Wired) -> None:
    """B was parted from X; one batch makes B part of A and A part of Z: Z and X stay apart too."""
    for n, name in enumerate("zabx"):
        await it.lane.submit([said("lead.created", n, email=f"{name}@b.example")])
    z, a, b, x = await live(it)
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, b, x))
    await part(it, x)
    links = [("a", "one"), ("b", "one"), ("z", "two"), ("a", "two")]
    await it.lane.submit(
        [
            said("x", 9 + n, email=f"{name}@b.example", external_ids={system: "1"})
            for n, (name, system) in enumerate(links)
        ]
    )
    assert await live(it) == [z, x]
    for n, name in enumerate("zx"):
        await it.lane.submit(
            [said("x", 19 + n, email=f"{name}@b.example", external_ids={"three": "1"})]
        )
    assert await live(it) == [z, x]
    # Once A is by itself again, B keeps A and X apart, and nothing keeps Z and X apart.
    await part(it, a)
    for n, (name, system) in enumerate(
        [("a", "four"), ("x", "four"), ("z", "five"), ("x", "five")]
    ):
        await it.lane.submit(
            [said("x", 29 + n, email=f"{name}@b.example", external_ids={system: "1"})]
        )
    assert await live(it) == [z, a]
    await clean(it.url)


async def test_owners_stick_through_a_chain_of_one_batch(it: Wired) -> None:
    """B, whom an AE has, became part of A and A of Z at once: A by itself again has B's AE, who knows."""
    for n, name in enumerate("za"):
        await it.lane.submit([said("lead.created", n, email=f"{name}@b.example")])
    await it.lane.submit([said("meeting.booked", 3, email="b@b.example")])
    z, a, b = await live(it)
    had = await it.pool.fetchval("SELECT owners -> 'ae' FROM stage.journeys WHERE lead_id = $1", b)
    links = [("a", "one"), ("b", "one"), ("z", "two"), ("a", "two")]
    await it.lane.submit(
        [
            said("x", 9 + n, email=f"{name}@b.example", external_ids={system: "1"})
            for n, (name, system) in enumerate(links)
        ]
    )
    assert await live(it) == [z]
    alerts = [w for m in await it.messages() for w in m.get("alerts", ())]
    await part(it, a)
    assert await live(it) == [z, a]
    rows = await it.pool.fetch(
        "SELECT stage, owners -> 'ae' AS ae FROM stage.journeys ORDER BY stage"
    )
    assert [(r["stage"], r["ae"]) for r in rows] == [("lead", None), ("sql", had)]
    assert [w for m in await it.messages() for w in m.get("alerts", ())] == alerts
    await part(it, b)
    assert [w for m in await it.messages() for w in m.get("alerts", ())] == alerts
    await clean(it.url)


async def test_a_playbook_published_while_a_merge_waited(it: Wired) -> None:
    """The other moved under a version that was not out when the merge was begun: it is begun again."""
    await it.lane.submit([said("lead.created", 0, email="a@b.example")])
    await it.lane.submit([said("lead.created", 1, external_ids={"crm": "7"})])
    behind = Shelf()  # of another process
    await behind.load(it.pool)
    async with it.pool.acquire() as here, it.pool.acquire() as there:
        faster, slower = here.transaction(), there.transaction()
        await faster.start()
        await slower.start()
        await here.execute("SELECT FROM stage.leads FOR UPDATE")
        link = said("x", 9, email="a@b.example", external_ids={"crm": "7"})
        merging = asyncio.create_task(
            Batch(there, behind, Roster(it.lane.team), START, new_id, it.lane.policy).apply([link])
        )
        async with asyncio.timeout(10):
            while not await it.pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert not merging.done()
        text = (ROOT / "playbooks/sales.yaml").read_text() + "\n# another version\n"
        assert await it.shelf.publish_file(it.pool, parse_playbook(text, "sales.yaml")) == 2
        moved = said("demo.requested", 5, external_ids={"crm": "7"})
        await Batch(here, it.shelf, Roster(it.lane.team), START, new_id, it.lane.policy).apply(
            [moved]
        )
        await faster.commit()
        with pytest.raises(RacedError):
            await merging
        await slower.rollback()
    async with it.pool.acquire() as there, there.transaction():
        await Batch(there, behind, Roster(it.lane.team), START, new_id, it.lane.policy).apply(
            [link]
        )
    assert len(await live(it)) == 1
    assert await it.pool.fetchval("SELECT stage FROM stage.journeys") == "mql"
    await clean(it.url)


async def test_a_merge_undone_at_once_alerts_nobody(it: Wired) -> None:
    """Who held each lead was told of it before the merge, and holds it again (I6, I7)."""
    await it.lane.submit([said("demo.requested", 0, email="a@b.example")])
    await it.lane.submit([said("deal.won", 1, email="c@d.example")])
    one, other = await live(it)
    alerts = [w for m in await it.messages() for w in m.get("alerts", ())]
    assert [w["role"] for w in alerts] == ["lead_agent", "csm"]
    for _ in range(2):
        await it.lane.submit_alone(by_hand(MERGED_BY_HAND, one, other))
        assert await it.pool.fetchval("SELECT stage FROM stage.journeys") == "closed_won"
        await part(it, other)
        assert [w for m in await it.messages() for w in m.get("alerts", ())] == alerts
    await clean(it.url)
