"""Late events beyond the horizon: kept and flagged, and history that was long reported stands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.baton.verify import verify_database
from services.contracts.events import LeadEvent
from services.stage_service import funnel
from services.stage_service.batch import Outcome
from tests.conftest import examples
from tests.integration.stage import NOON, MadeUpTime, running_stage
from tests.integration.test_merging import live, said
from tests.integration.wired import EMPTY, START, TYPES, Wired, clean, event, wired

HORIZON = timedelta(days=90)
LATER = START + timedelta(days=100)


@pytest.fixture
def time() -> MadeUpTime:
    it = MadeUpTime()
    it.at = START + timedelta(days=1)
    return it


@pytest.fixture
async def it(database_url: str, time: MadeUpTime) -> AsyncIterator[Wired]:
    """A lane with a horizon, whose clock is ours."""
    async with wired(database_url, now=time, late_within=HORIZON) as w:
        yield w


def stamped(it: MadeUpTime, *events: LeadEvent) -> list[LeadEvent]:
    """The events as they come in now."""
    return [msgspec.structs.replace(e, recorded_at=it()) for e in events]


async def test_what_was_reported_a_quarter_ago_is_not_rewritten(
    it: Wired, time: MadeUpTime
) -> None:
    await it.lane.submit(stamped(time, event("lead.created", 0), event("demo.requested", 30)))
    time.at = LATER
    told = len(await it.messages())
    late = event("lead.disqualified", 10, reason="a student", employees=900, colour="red")
    [outcome] = await it.lane.submit(stamped(time, late))
    assert (outcome.status, outcome.late, outcome.beyond_horizon) == ("applied", True, True)
    assert "recorded more than 90 days ago" in (outcome.warning or "")
    assert await it.ways() == [("lead", "mql")]
    assert len(await it.messages()) == told
    [row] = await it.pool.fetch(
        "SELECT e.beyond_horizon, l.attributes FROM stage.events e JOIN stage.leads l ON l.id = e.lead_id "
        "WHERE e.type = 'lead.disqualified'"
    )
    assert row["beyond_horizon"]
    assert (
        "colour" not in row["attributes"]
    )  # its facts do not count, not even where none were known
    # A fold anew, of another late event within the horizon, leaves it out for good.
    await it.lane.submit(stamped(time, event("proposal.sent", 200_000)))
    [within] = await it.lane.submit(stamped(time, event("meeting.booked", 150_000)))
    assert (within.late, within.beyond_horizon) == (True, msgspec.UNSET)
    assert await it.ways() == [("lead", "mql"), ("mql", "sql"), ("sql", "proposal")]
    assert [o.status for o in await it.lane.submit([late])] == ["duplicate"]
    await clean(it.url)


async def test_old_history_is_imported_in_any_order(it: Wired, time: MadeUpTime) -> None:
    """When something happened plays no part, only how long it has been on record."""
    years = -1_000_000
    outcomes: list[Outcome] = []
    for type, minute in (("deal.won", 9), ("demo.requested", 3), ("meeting.booked", 5)):
        outcomes += await it.lane.submit(stamped(time, event(type, years + minute)))
    assert all(o.beyond_horizon is msgspec.UNSET for o in outcomes)
    assert await it.ways() == [("lead", "mql"), ("mql", "sql"), ("sql", "closed_won")]
    await clean(it.url)


async def test_the_horizon_is_of_the_recording(it: Wired, time: MadeUpTime) -> None:
    """At 90 days to the moment it counts, a moment later no more; other events of its batch count."""
    await it.lane.submit(stamped(time, event("page.viewed", 10)))
    assert time.at is not None
    time.at += HORIZON
    [on_it] = await it.lane.submit(stamped(time, event("page.viewed", 5)))
    assert on_it.beyond_horizon is msgspec.UNSET
    time.at += timedelta(microseconds=1)
    beyond, ahead, repeat = await it.lane.submit(
        stamped(time, event("deal.won", 4), event("demo.requested", 500), event("deal.won", 4))
    )
    assert (beyond.beyond_horizon, ahead.beyond_horizon) == (True, msgspec.UNSET)
    assert repeat.status == "duplicate"
    assert [b.to for b in ahead.transitions] == ["mql"]
    assert await it.ways() == [("lead", "mql")]
    await clean(it.url)


async def test_an_identity_told_beyond_the_horizon_counts(it: Wired, time: MadeUpTime) -> None:
    """Who somebody is does not rewrite what they did; a merge leaves out what was left out, and no more."""
    await it.lane.submit(stamped(time, said("demo.requested", 30, email="a@b.example")))
    await it.lane.submit(stamped(time, said("page.viewed", 40, external_ids={"crm": "7"})))
    time.at = LATER
    late = said("deal.won", 3, email="a@b.example", external_ids={"shop": "9"})
    [outcome] = await it.lane.submit(stamped(time, late))
    assert outcome.beyond_horizon
    [same] = await it.lane.submit(
        stamped(time, said("page.viewed", 200_000, external_ids={"shop": "9"}))
    )
    assert same.lead_id == outcome.lead_id
    link = said("page.viewed", 1, email="a@b.example", external_ids={"crm": "7"})
    [linked] = await it.lane.submit(stamped(time, link))
    assert linked.beyond_horizon
    assert await live(it) == [outcome.lead_id]
    assert await it.ways() == [("lead", "mql")]
    await clean(it.url)


async def test_without_a_horizon_history_is_always_rewritten(
    database_url: str, time: MadeUpTime
) -> None:
    async with wired(database_url, now=time) as it:
        await it.lane.submit(stamped(time, event("lead.created", 0), event("demo.requested", 30)))
        time.at = LATER
        [outcome] = await it.lane.submit(
            stamped(time, event("lead.disqualified", 10, reason="a student"))
        )
        assert outcome.beyond_horizon is msgspec.UNSET
        assert await it.ways() == [("lead", "disqualified")]


async def test_the_sender_the_timeline_and_the_page_say_so(database_url: str) -> None:
    """Over HTTP, with the setting's own default: the answer, what is stored, the timeline, the metric."""
    time = MadeUpTime()
    time.at = NOON
    async with running_stage(database_url, time) as stage:

        def told(id: str, type: str, at: datetime) -> dict[str, object]:
            return {"specversion": "1.0", "id": id, "source": "/t", "type": type,
                    "time": at.isoformat(), "data": {"email": "a@b.example"}}  # fmt: skip

        await stage.send(told("1", "demo.requested", NOON))
        time.at = NOON + timedelta(days=91)
        [result] = await stage.send(told("2", "deal.won", NOON - timedelta(hours=1)))
        assert (result["status"], result["late"], result["beyond_horizon"]) == (
            "applied",
            True,
            True,
        )
        assert "90 days" in result["warning"]
        [ahead] = await stage.send(told("3", "page.viewed", time.at + timedelta(days=2)))
        assert ahead["claimed_time"] == "2026-06-05T12:00:00Z"
        assert "beyond_horizon" not in ahead
        stored = await stage.stored("/t", "3")
        assert stored is not None
        assert stored["envelope"]["claimed_time"] == "2026-06-05T12:00:00Z"
        items = (await stage.client.get(f"/v1/leads/{result['lead_id']}/timeline")).json()["items"]
        events = {i["id"]: i for i in items if i["kind"] == "event"}
        assert [events[id]["beyond_horizon"] for id in "123"] == [False, True, False]
        assert [events[id]["claimed_time"] for id in "123"] == [None, None, "2026-06-05T12:00:00Z"]
        assert events["3"]["occurred_at"] == events["3"]["recorded_at"]
        page = await stage.client.get(f"/leads/{result['lead_id']}")
        assert "Recorded, not counted" in page.text
        assert "said to be of 2026-06-05T12:00:00Z" in page.text
        metrics = (await stage.client.get("/metrics")).text
        assert "baton_events_beyond_horizon_total" in metrics


def counted(days: Sequence[tuple[int, list[LeadEvent]]]) -> list[LeadEvent]:
    """The events that count, by the definition: written without the code under test."""
    kept: list[tuple[int, LeadEvent]] = []
    seen: set[str] = set()
    for day, events in days:
        known = list(kept)
        for e in events:
            if e.id in seen:
                continue
            seen.add(e.id)
            if not any(day - then > 90 and e.place < other.place for then, other in known):
                kept.append((day, e))
    return [e for _, e in kept]


@settings(
    max_examples=examples(120), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    drawn=st.lists(
        st.tuples(
            st.integers(0, 60), st.lists(st.tuples(
                st.sampled_from(TYPES), st.integers(0, 400_000), st.booleans(),
                st.sampled_from([None, 3, 900]),
            ), min_size=1, max_size=4),
        ), min_size=2, max_size=8,
    )
)  # fmt: skip
async def test_what_counts_is_what_the_definition_says(
    it: Wired, time: MadeUpTime, drawn: list[tuple[int, list[tuple[str, int, bool, int | None]]]]
) -> None:
    """Any events over months of made-up time: state and history are the fold of what counts, no more."""
    await it.pool.execute(EMPTY)
    day, days, n = 0, list[tuple[int, list[LeadEvent]]](), 0
    for after, told in drawn:
        day += after
        events: list[LeadEvent] = []
        for type, minute, reason, size in told:
            n += 1
            facts = ({"reason": "r"} if reason else {}) | ({"employees": size} if size else {})
            events.append(event(type, minute, id=f"e{n}", **facts))
        days.append((day, [*events, *days[-1][1][:1]] if days else events))
    for day, events in days:
        time.at = START + timedelta(days=day)
        await it.lane.submit(stamped(time, *events))
    assert (await verify_database(it.url)).findings == []
    kept = counted(days)
    flagged = await it.pool.fetch("SELECT id FROM stage.events WHERE beyond_horizon")
    assert {r["id"] for r in flagged} == {e.id for _, es in days for e in es} - {e.id for e in kept}
    whole = funnel.refold(((e, it.shelf.epoch) for e in kept), it.shelf.at)
    assert whole.lead is not None
    assert await it.ways() == [(m.from_stage, m.to_stage) for m in whole.moves]
    stored = await it.pool.fetchval("SELECT attributes FROM stage.leads")
    assert msgspec.json.decode(stored) == whole.lead.attributes
