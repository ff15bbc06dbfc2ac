"""The lane on real PostgreSQL: one effect an event (I2), gapless records (I3), however many come at once."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Sequence
from types import FunctionType

import asyncpg
import msgspec
import pytest

from services.contracts.database import STEADY_PLANS
from services.contracts.events import LeadEvent
from services.stage_service.batch import Batch, Outcome
from services.stage_service.errors import OverloadedError, UnavailableError
from services.stage_service.lane import WAITING_EVENTS_MAX, Lane
from services.stage_service.playbook import parse_playbook
from services.stage_service.store import _LOOK_UP
from tests.conftest import ROOT
from tests.integration.wired import START, Wired, clean, event, it, retried, walk, wired

__all__ = ["it"]


def garbage_of_ours() -> list[str]:
    """What only the garbage collector would free now, of our own code."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kinds = [o if isinstance(o, FunctionType) else type(o) for o in gc.garbage]
        return [k.__qualname__ for k in kinds if k.__module__.startswith("services.")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


async def test_a_batch_that_is_done_is_gone(it: Wired) -> None:
    """Left to the collector, each batch stays in memory until it stops everybody to find it."""
    await it.lane.submit(walk("first@b.example"))
    gc.collect()
    gc.disable()
    try:
        await it.lane.submit(walk("second@b.example"))
        await it.lane.submit([event("page.viewed", -5, "second@b.example")])  # folded anew
        assert garbage_of_ours() == []
    finally:
        gc.enable()


async def test_a_look_up_planned_for_few_leads_finds_one_of_many_by_its_key(it: Wired) -> None:
    await it.lane.submit(walk())
    connection = await asyncpg.connect(it.url, server_settings=STEADY_PLANS)
    try:
        await connection.execute("ANALYZE")
        await connection.execute(
            f"PREPARE planned(text[], text[], text[], text[], uuid[]) AS {_LOOK_UP}"
        )
        await connection.execute("EXECUTE planned('{}', '{}', '{}', '{}', '{}')")
        await it.lane.submit([event("lead.created", 0, f"{n}@b.example") for n in range(400)])
        told = await connection.fetchval(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
            "EXECUTE planned('{}', '{}', '{email}', '{7@b.example}', '{}')"
        )
    finally:
        await connection.close()
    plan = msgspec.json.decode(told)[0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100


async def test_a_lead_whose_lock_was_waited_for_is_given_as_it_is_then(it: Wired) -> None:
    """Not as the look-up's own snapshot has it, and not left out: the batch would begin it anew."""
    await it.lane.submit([event("lead.created", 0)])
    writer = await asyncpg.connect(it.url)
    looker = await asyncpg.connect(it.url, server_settings=STEADY_PLANS)
    try:
        writing = writer.transaction()
        await writing.start()
        await writer.execute("UPDATE stage.leads SET state = '\\x01'")
        looking = asyncio.create_task(
            looker.fetch(_LOOK_UP, [], [], ["email"], ["a@b.example"], [])
        )
        async with asyncio.timeout(10):
            while not await it.pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
        await writing.commit()
        [lead] = [row for row in await looking if row["what"] == "lead"]
        assert lead["state"] == b"\x01"
    finally:
        await looker.close()
        await writer.close()


async def test_the_walk_is_five_numbered_transitions(it: Wired) -> None:
    outcomes = await it.lane.submit(walk())
    assert [o.status for o in outcomes] == ["applied"] * 6
    rows = await it.transitions()
    assert [r["sequence"] for r in rows] == [1, 2, 3, 4, 5]
    told = await it.messages()
    assert [(m["from"], m["to"], m["sequence"]) for m in told] == [
        (r["from_stage"], r["to_stage"], r["sequence"]) for r in rows
    ]
    assert [[w["role"] for w in m["alerts"]] for m in told] == [
        ["lead_agent"],
        ["ae"],
        [],
        [],
        ["csm"],
    ]
    assert all(m["responsible"]["owner"] for m in told)
    # The AE stays the same person through three stages.
    assert (
        len({m["responsible"]["owner"]["id"] for m in told if m["responsible"]["role"] == "ae"})
        == 1
    )
    await clean(it.url)


async def test_all_events_again_change_nothing(it: Wired) -> None:
    """I2."""
    await it.lane.submit(walk())
    before = (await it.transitions(), await it.messages())
    for events in (walk(), walk()[::-1], [*walk(), *walk()]):
        outcomes = await it.lane.submit(events)
        assert {o.status for o in outcomes} == {"duplicate"}
        assert len({o.lead_id for o in outcomes}) == 1
    assert (await it.transitions(), await it.messages()) == before


async def test_the_same_events_at_once_from_many_sides(database_url: str) -> None:
    """I2 under concurrency: two processes' lanes, many requests, every event several times."""
    leads = [f"p{n}@x.example" for n in range(12)]
    events = [e for lead in leads for e in walk(lead)]
    chance = random.Random(3)
    async with wired(database_url) as one, wired(database_url) as two:
        requests: list[tuple[Lane, list[LeadEvent]]] = []
        for lane in (one.lane, two.lane, one.lane):
            mixed = chance.sample(events, len(events))
            requests += [(lane, mixed[i : i + 5]) for i in range(0, len(mixed), 5)]
        chance.shuffle(requests)
        answers = await asyncio.gather(*(retried(lane, some) for lane, some in requests))
        applied = [o for outcomes in answers for o in outcomes if o.status == "applied"]
        assert len(applied) == len(events)
        # 72 events in any order: whatever was corrected on the way, history ends the same.
        assert await one.ways() == [
            ("lead", "mql"), ("mql", "sql"), ("sql", "proposal"), ("proposal", "closing"),
            ("closing", "closed_won"),
        ] * len(leads)  # fmt: skip
        assert await one.pool.fetchval("SELECT count(*) FROM stage.leads") == len(leads)
    await clean(database_url)


async def test_nothing_is_left_of_a_batch_that_fails(
    it: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event that does what nobody foresaw costs only itself; the others are committed."""
    apply = Batch.apply

    async def failing(self: Batch, events: Sequence[LeadEvent]) -> list[Outcome]:
        outcomes = await apply(self, events)
        if any(e.id == "bad" for e in events):
            raise RuntimeError("a bug")
        return outcomes

    monkeypatch.setattr(Batch, "apply", failing)
    good = [event("lead.created", 0, f"g{n}@x.example") for n in range(30)]
    bad = event("lead.created", 0, "bad@x.example", id="bad")
    results = await asyncio.gather(
        *(retried(it.lane, [e]) for e in [*good[:15], bad, *good[15:]]), return_exceptions=True
    )
    assert sum(isinstance(r, RuntimeError) for r in results) == 1
    assert await it.pool.fetchval("SELECT count(*) FROM stage.events") == 30
    await clean(it.url)


async def test_a_full_lane_refuses(it: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never grows without bound."""
    monkeypatch.setattr(it.lane, "_waiting", WAITING_EVENTS_MAX)
    with pytest.raises(OverloadedError):
        await it.lane.submit([event("lead.created", 0)])


async def test_a_database_that_is_away_is_503_and_nothing_is_kept(it: Wired) -> None:
    blocker = await asyncpg.connect(it.url)
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("LOCK TABLE stage.events IN ACCESS EXCLUSIVE MODE")
    with pytest.raises(UnavailableError) as caught:
        await it.lane.submit([event("lead.created", 0)])
    assert "again" in (caught.value.remedy or "")
    await transaction.rollback()
    await blocker.close()
    [outcome] = await it.lane.submit([event("lead.created", 0)])
    # The first try may still have been committed: then it is a repeat. Either way it is there once.
    assert outcome.status in ("applied", "duplicate")
    assert await it.pool.fetchval("SELECT count(*) FROM stage.events") == 1


async def test_round_robin_is_fair_by_weight(it: Wired) -> None:
    """Marcus (weight 2) gets twice Elena's (weight 1) leads, to within one."""
    leads = [f"r{n}@x.example" for n in range(90)]
    for start in range(0, 90, 7):
        await it.lane.submit(
            [event("meeting.booked", 0, lead) for lead in leads[start : start + 7]]
        )
    rows = await it.pool.fetch("SELECT owner_id, count(*) FROM stage.transitions GROUP BY 1")
    assert dict(rows) == {"marcus": 60, "elena": 30}


async def test_a_lead_of_megabytes_is_still_published(it: Wired) -> None:
    """Long attributes stay out of the message: a broker would refuse it and all behind it."""
    for n in range(6):
        facts = {f"note_{n}_{i}": "\x1f" * 8000 for i in range(20)}
        await it.lane.submit([event("lead.updated", n, company="Acme", **facts)])
    await it.lane.submit([event("demo.requested", 9, huge={"x": ["y" * 100] * 5000})])
    value = await it.pool.fetchval("SELECT value FROM bus.outbox")
    assert len(value) < 400_000
    told = msgspec.json.decode(value)
    assert told["lead"]["attributes"]["company"] == "Acme"
    assert "huge" not in told["lead"]["attributes"]
    await clean(it.url)


async def test_the_longest_keys_fit_the_index(it: Wired) -> None:
    """The longest id and source that are let in can be stored and looked up."""
    import hashlib

    from services.contracts.cloudevents import check
    from services.contracts.events import lead_event

    noise = "".join(chr(0x4E00 + b) for n in range(40) for b in hashlib.sha256(bytes([n])).digest())
    attributes = {"specversion": "1.0", "id": noise[:426], "source": noise[400:826], "type": "t"}
    data = {"external_ids": {noise[:256]: noise[300:556]}, "anonymous_id": noise[256:512]}
    checked = check(attributes | {"data": data})
    assert not hasattr(checked, "remedy"), checked
    made = lead_event(checked, START)  # type: ignore[arg-type]
    for status in ("applied", "duplicate"):
        [outcome] = await it.lane.submit([made])  # type: ignore[list-item]
        assert outcome.status == status


async def test_the_trace_travels_with_the_event(it: Wired) -> None:
    """W3C trace context: from the request's event into the published headers."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    moved = msgspec.structs.replace(event("demo.requested", 0), traceparent=trace)
    await it.lane.submit([moved])
    headers = msgspec.json.decode(await it.pool.fetchval("SELECT headers FROM bus.outbox"))
    assert headers["traceparent"] == headers["ce_traceparent"] == trace


async def test_one_lead_from_two_processes_at_once(database_url: str) -> None:
    """Two lanes write the same lead side by side: no event's effect is lost."""
    async with wired(database_url) as one, wired(database_url) as two:
        views = [event("page.viewed", n, id=f"v{n}", **{f"k{n}": n}) for n in range(120)]
        await asyncio.gather(
            *(retried((one, two)[n % 2].lane, [view]) for n, view in enumerate(views))
        )
        stored = await one.pool.fetchval("SELECT attributes FROM stage.leads")
        assert {k for k in msgspec.json.decode(stored) if k.startswith("k")} == {
            f"k{n}" for n in range(120)
        }
    await clean(database_url)


async def test_a_playbook_published_while_events_come(database_url: str) -> None:
    """One batch, one playbook: what an event is stored under is what it was folded under (I4)."""
    text = (ROOT / "playbooks/sales.yaml").read_text()
    async with wired(database_url) as one, wired(database_url) as two:
        assert text.count("score.total >= 60") == 1

        async def publish() -> None:
            for n in range(12):
                threshold = 61 + n
                changed = text.replace("score.total >= 60", f"score.total >= {threshold}")
                await one.shelf.publish_file(one.pool, parse_playbook(changed, "sales.yaml"))
                await asyncio.sleep(0.01)

        async def send(lane: Lane, who: str) -> None:
            for n in range(60):
                lead = f"{who}{n % 7}@x.example"
                await retried(
                    lane, [event("content.downloaded", n, lead, id=f"{who}{n}", employees=300)]
                )
                await retried(lane, [event("page.viewed", n - 30.5, lead, id=f"{who}late{n}")])

        await asyncio.gather(
            publish(), send(one.lane, "a"), send(two.lane, "b"), send(one.lane, "c")
        )
    await clean(database_url)


async def test_two_events_with_one_key_and_two_identities(it: Wired) -> None:
    """The first counts; the batch is applied at once, with all that is beside it."""
    first = event("lead.created", 0, "one@x.example", id="same")
    second = event("lead.created", 0, "two@x.example", id="same")
    good = [event("lead.created", 0, f"g{n}@x.example") for n in range(20)]
    outcomes = await it.lane.submit([first, second, *good])
    assert [o.status for o in outcomes[:2]] == ["applied", "duplicate"]
    assert {o.status for o in outcomes[2:]} == {"applied"}
    assert await it.pool.fetchval("SELECT count(*) FROM stage.identities") == 21


async def test_an_urgent_stage_says_so_in_its_alerts_and_others_say_nothing(it: Wired) -> None:
    text = (ROOT / "playbooks/sales.yaml").read_text()
    changed = text.replace(
        "    alerts: [lead_agent]\n", "    alerts: [lead_agent]\n    urgent: true\n", 1
    )
    assert changed != text
    await it.shelf.publish_file(it.pool, parse_playbook(changed, "sales.yaml"))
    await it.lane.submit(walk())
    wishes = {w["role"]: w for m in await it.messages() for w in m["alerts"]}
    assert wishes["lead_agent"]["urgent"] is True
    assert "urgent" not in wishes["ae"]
