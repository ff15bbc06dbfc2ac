"""Leads between a publication and their sweep, and those it cannot reach: nothing is lost or held up."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest
from prometheus_client import REGISTRY

from services.contracts.events import ASSIGNED_BY_HAND, HANDOFFS_TOPIC, SOURCE, LeadEvent
from services.stage_service.playbook import parse_playbook
from services.stage_service.sweeping import Sweeper
from tests.integration.test_handoffs import SALES, Timed, timed
from tests.integration.test_playbook_moves import (
    DISCOVERY,
    HOUR,
    crowd,
    publish,
    stages,
    sweep,
    sweeper,
)
from tests.integration.wired import START, clean, event

LQ = re.sub(r"\bmql\b", "lq", SALES) + "\nmigrate: {mql: lq}\n"


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Timed]:
    async with timed(database_url) as one:
        yield one


def failed() -> float:
    return REGISTRY.get_sample_value("baton_sweep_failed_total") or 0.0


async def rests(it: Timed) -> float:
    """In how many seconds the next pass of the sweep is due, from the end of the last."""
    return await it.pool.fetchval(
        "SELECT extract(epoch FROM due_at - clock_timestamp())::float8 FROM stage.playbook_sweeps"
    )


async def test_a_lead_that_cannot_be_read_holds_nobody_up(it: Timed) -> None:
    """It is passed by and counted; each pass tries it again, later and later; mended, it moves too."""
    await it.tell(*crowd(7))
    row = await it.pool.fetchrow("SELECT id, state FROM stage.leads ORDER BY id OFFSET 2")
    assert row is not None
    broken, state = row
    await it.pool.execute(r"UPDATE stage.leads SET state = '\xdeadbeef' WHERE id = $1", broken)
    await publish(it, DISCOVERY)
    it.now = START + HOUR
    before = failed()
    sweeper_ = sweeper(it, leads_a_time=4, events_a_batch=3)
    for _ in range(3):  # four leads, three, nobody more
        assert await sweeper_.run_some()
    assert await stages(it) == {"discovery": 6, "sql": 1}
    assert failed() == before + 1
    row = await it.pool.fetchrow("SELECT moved, pass, done_at FROM stage.playbook_sweeps")
    assert tuple(row or ()) == (6, 2, None)

    patient = Sweeper(it.pool, it.lane, lambda: it.now, again_s=60)
    for number, seconds in ((2, 120), (3, 240), (4, 480)):
        assert await patient.run_some()
        assert failed() == before + number, "tried again"
        assert await patient.run_some()
        assert seconds - 20 < await rests(it) <= seconds
        assert not await patient.run_some()
        await it.pool.execute("UPDATE stage.playbook_sweeps SET due_at = now()")

    await it.pool.execute("UPDATE stage.leads SET state = $2 WHERE id = $1", broken, state)
    await sweep(it)
    assert await stages(it) == {"discovery": 7}
    assert await it.pool.fetchval("SELECT done_at IS NOT NULL FROM stage.playbook_sweeps")
    await clean(it.url)


async def test_a_lead_of_a_stage_that_went_without_a_word_is_merged(it: Timed) -> None:
    """An older Baton took versions that say nothing of a stage that is gone; a later one renames another."""
    await it.tell(*crowd(1))
    gone = re.sub(r"\bsql\b", "discovery", SALES)
    await it.pool.execute(
        "INSERT INTO stage.playbook_versions (name, version, digest, source) VALUES ('sales', 2, $1, $2)",
        parse_playbook(gone, "p.yaml").digest, gone,
    )  # fmt: skip
    await publish(it, re.sub(r"\bmql\b", "lq", gone) + "\nmigrate: {mql: lq}\n")
    await it.tell(event("page.viewed", 100, "l0@x.example"))
    assert await it.pool.fetchval("SELECT stage || playbook_version FROM stage.journeys") == "sql3"
    browser = msgspec.structs.replace(
        event("page.viewed", 111), identities=(("anonymous", "b"),), data={"anonymous_id": "b"}
    )
    link = msgspec.structs.replace(
        event("page.viewed", 120, "l0@x.example", anonymous_id="b"),
        identities=(("email", "l0@x.example"), ("anonymous", "b")),
    )
    await it.tell(browser)
    [outcome] = await it.tell(link)
    assert outcome.status == "applied"
    assert await it.pool.fetchval("SELECT count(*) FROM stage.merges") == 1
    assert await stages(it) == {"sql": 1}
    await it.tell(event("proposal.sent", 130, "l0@x.example"))
    await clean(it.url)


async def test_a_handoff_is_rejected_before_the_sweep(it: Timed) -> None:
    """By an event of before the publication: who gets it instead is told of the stage by its new name."""
    await it.tell(event("demo.requested", 0))
    await it.tell(event("page.viewed", 10))
    await publish(it, LQ)
    it.now = START + HOUR
    await it.tell(event("handoff.rejected", 5, reason="no", person="lena"))
    assert await it.handoffs() == [
        ("mql", "lead_agent", 1, "lena", "rejected"), ("mql", "lead_agent", 2, "boss", "offered"),
    ]  # fmt: skip
    [changed] = [m for m in await it.messages(HANDOFFS_TOPIC) if "previous_owner" in m]
    assert (changed["owner"]["id"], changed["stage"]["key"]) == ("boss", "lq")
    await sweep(it)
    assert await stages(it) == {"lq": 1}
    await clean(it.url)


async def test_a_journey_is_given_to_somebody_before_the_sweep(it: Timed) -> None:
    """Late, so that the journey is told anew under the old name: it is theirs all the same."""
    await it.tell(event("meeting.booked", 0))
    await it.tell(event("page.viewed", 10))
    await publish(it, DISCOVERY)
    it.now = START + HOUR
    given = {"role": "ae", "person": "beth", "reason": "r", "actor": "me", "playbook": "sales"}
    assigned = event(ASSIGNED_BY_HAND, 5, **given)
    await it.tell(msgspec.structs.replace(assigned, source=SOURCE))
    owners = await it.pool.fetchval("SELECT owners FROM stage.journeys")
    assert msgspec.json.decode(owners)["ae"]["id"] == "beth"
    await sweep(it)
    await clean(it.url)


DEMO, MEETING, SEEN = (
    event("demo.requested", 5),
    event("meeting.booked", 10),
    event("page.viewed", 12),
)


@pytest.mark.parametrize(
    "late", [(), (DEMO,), (MEETING,), (DEMO, MEETING), (MEETING, DEMO)], ids=lambda late: len(late)
)
@pytest.mark.parametrize("is_swept_first", [False, True])
async def test_owners_do_not_depend_on_what_came_late_over_a_rename(
    it: Timed, late: Sequence[LeadEvent], is_swept_first: bool
) -> None:
    """I7: a new name asks for no owner, whatever of the past becomes known after the publication."""
    await it.tell(*(e for e in (DEMO, MEETING, SEEN) if e not in late))
    await publish(it, DISCOVERY.replace("    alerts: [ae]", "    alerts: [ae, sales_leadership]"))
    it.now = START + HOUR
    if is_swept_first:
        await sweep(it)
    for one in late:
        await it.tell(one)
    await sweep(it)
    await it.tell(event("page.viewed", 90))
    assert await stages(it) == {"discovery": 1}
    owners = await it.pool.fetchval("SELECT owners FROM stage.journeys")
    assert sorted(msgspec.json.decode(owners)) == ["ae", "lead_agent"]
    told = [w["role"] for m in await it.messages() for w in m["alerts"]]
    assert "sales_leadership" not in told
    await clean(it.url)
