"""What is read between a publication that renames a stage and its leads' moves: all as it is after them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.stage_service import reads, reads_people
from services.stage_service.funnel_numbers import funnel
from services.stage_service.past_funnel import basis_at
from tests.integration.stage import NOON, Stage, running_stage
from tests.integration.test_handoffs import SALES, Timed, timed
from tests.integration.test_lane import START, clean, event
from tests.integration.test_playbook_moves import DISCOVERY, HOUR, crowd, publish, sweep

REUSED = DISCOVERY.replace("nurture", "sql").replace(
    "migrate: {sql: discovery}", "migrate: {nurture: sql}"
)


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Timed]:
    async with timed(database_url) as one:
        yield one


@pytest.fixture
async def engine(it: Timed) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(it.url.replace("postgresql://", "postgresql+asyncpg://", 1))
    yield made
    await made.dispose()


async def told(it: Timed, engine: AsyncEngine) -> dict[str, Any]:
    """What readers are told of stages: the board, lists by stage, and the funnel."""
    playbooks = it.shelf.playbooks
    sales = playbooks["sales"]
    board = await reads.board(engine, sales, 5, it.now)
    listed: dict[str, Any] = {}
    for key in sales.stages:
        for playbook in (None, "sales"):
            items, _ = await reads.list_leads(
                engine, stage=key, playbook=playbook, playbooks=playbooks
            )
            listed[key, playbook] = [
                (i["email"], j["stage"], j["furthest_stage"], j["held"], j["playbook_version"])
                for i in items for j in i["journeys"]
            ]  # fmt: skip
    basis = await basis_at(engine, sales, it.now, None, playbooks)
    return {
        "board": {
            key: (now["count"], [(c["email"], c["stage"], c["entered_at"]) for c in now["latest"]])
            for key, now in board.items() if now["count"]
        },
        "listed": listed,
        "funnel": await funnel(engine, sales),
        "by": await funnel(engine, sales, by="company"),
        "past": await funnel(engine, sales, basis=basis),
    }  # fmt: skip


async def moving(it: Timed) -> None:
    await it.tell(
        *(event("meeting.booked", n, f"l{n}@x.example", company=f"C{n % 2}") for n in range(7)),
        event("proposal.sent", 30, "p@x.example"), event("deal.lost", 30, "n@x.example"),
    )  # fmt: skip


@pytest.mark.parametrize("texts", [(DISCOVERY,), (DISCOVERY, REUSED), (DISCOVERY, SALES)])
async def test_readers_are_told_before_the_sweep_what_they_are_told_after_it(
    it: Timed, engine: AsyncEngine, texts: tuple[str, ...]
) -> None:
    """Renamed once; another stage with the old name since; and renamed back by a roll back."""
    await moving(it)
    for number, text in enumerate(texts):
        more = {"restores": 1} if text == SALES else {}
        await publish(it, text, **more)
        if number == 0:  # one has heard of it: under both names there are some
            await it.tell(event("page.viewed", 40, "l0@x.example"))
    before = await told(it, engine)
    it.now = START + HOUR
    await sweep(it)
    after = await told(it, engine)
    assert before == after
    assert before["funnel"]["exits"] == before["past"]["exits"]
    assert sum(count for count, _ in before["board"].values()) == 9
    key = "sql" if texts[-1] == SALES else "discovery"
    assert before["board"][key][0] == 7
    assert len(before["board"][key][1]) == 5
    await clean(it.url)


async def test_the_stored_key_is_looked_for_by_the_index(it: Timed, engine: AsyncEngine) -> None:
    """No function of a row is computed: old and new key, each with its place in the index."""
    await it.tell(*crowd(3))
    await publish(it, DISCOVERY)
    condition = reads.stands_in("discovery", "sales", it.shelf.playbooks)
    async with engine.connect() as connection:
        await connection.exec_driver_sql("SET enable_seqscan = off")
        query = condition.compile(engine, compile_kwargs={"literal_binds": True})
        plan = await connection.exec_driver_sql(f"EXPLAIN SELECT FROM stage.journeys WHERE {query}")
        text = "\n".join(row[0] for row in plan)
    assert "journeys_in_stage" in text, text
    assert re.search(r"Index Cond: .*stage = ANY.*(sql.*discovery|discovery.*sql)", text), text


async def test_over_http_by_another_process_than_the_one_that_published(database_url: str) -> None:
    """The stage is asked for by its new name at once; who asks by the old one is told the new."""
    async with running_stage(database_url) as one, running_stage(database_url) as other:
        for n in range(3):
            event = {"specversion": "1.0", "id": f"e{n}", "source": "/s", "type": "meeting.booked",
                     "time": NOON.isoformat(), "data": {"email": f"l{n}@b.example"}}  # fmt: skip
            await one.send(event)
        answer = await one.client.put(
            "/v1/playbooks/sales", content=DISCOVERY,
            headers={"content-type": "application/yaml", "if-match": "*"},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        for stage in (other, one):
            await asked(stage)


async def asked(stage: Stage) -> None:
    found = await stage.client.get("/v1/leads", params={"stage": "discovery"})
    assert found.status_code == 200, found.text
    assert [[j["stage"] for j in i["journeys"]] for i in found.json()["items"]] == [
        ["discovery"]
    ] * 3
    lead = (await stage.client.get(f"/v1/leads/{found.json()['items'][0]['id']}")).json()
    assert [j["stage"] for j in lead["journeys"]] == ["discovery"]
    old = await stage.client.get("/v1/leads", params={"stage": "sql"})
    assert old.status_code == 422
    assert old.json()["remedy"] == "It is 'discovery' now."
    funnel = (await stage.client.get("/v1/funnel")).json()
    assert {s["stage"]: s["current"] for s in funnel["stages"]}["discovery"] == 3
    assert {s["stage"] for s in funnel["exits"]} == {"nurture", "disqualified", "closed_lost"}
    board = (await stage.client.get("/")).text
    assert re.search(r'id="stage-discovery">[^<]*</h3><span class="count">3<', board)
    for page in ("/leads?stage=discovery", "/leads?stage=sql"):
        assert "l1@b.example" in (await stage.client.get(page)).text


async def test_a_company_counts_its_leads_in_the_stage_of_the_new_name(
    it: Timed, engine: AsyncEngine
) -> None:
    """Those that have moved and those that have not, together, as the list beside it says."""
    await it.tell(*(event("meeting.booked", n, f"l{n}@acme.com") for n in range(3)))
    await publish(it, DISCOVERY)
    await it.tell(event("page.viewed", 40, "l0@acme.com"))
    for account in (None, "acme.com"):
        [found], _ = await reads_people.list_accounts(engine, it.shelf.playbooks, account=account)
        assert found["stages"] == {"sales": {"discovery": 3}}
    await clean(it.url)
