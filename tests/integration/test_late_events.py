"""Late events on real PostgreSQL: any order of arrival ends in the same history (I7), told by corrections."""

from __future__ import annotations

from datetime import timedelta

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.baton.verify import verify_database
from services.contracts.events import MAIN
from services.stage_service.playbook import parse_playbook
from tests.conftest import ROOT, examples
from tests.integration.wired import EMPTY, TYPES, Wired, clean, event, it

__all__ = ["it"]
SALES = (ROOT / "playbooks/sales.yaml").read_text()


async def test_a_late_event_corrects_history(it: Wired) -> None:
    """I7: proposal first told, then the earlier demo: the record is replaced and named."""
    await it.lane.submit([event("lead.created", 0), event("proposal.sent", 30)])
    [first] = await it.messages()
    [outcome] = await it.lane.submit([event("demo.requested", 10)])
    assert outcome.late
    assert [b.kind for b in outcome.transitions] == ["correction", "correction"]
    assert await it.ways() == [("lead", "mql"), ("mql", "proposal")]
    messages = await it.messages()
    corrected = messages[1:]
    assert [m["type"] for m in messages] == [
        "baton.stage.transitioned.v1", "baton.transition.corrected.v1",
        "baton.transition.corrected.v1",
    ]  # fmt: skip
    assert [m["sequence"] for m in messages] == [1, 2, 3]
    assert [m["replaces"] for m in corrected] == [[], [first["transition_id"]]]
    # The present responsible is the AE as before: nobody is alerted again.
    assert all(m["alerts"] == [] for m in corrected)
    assert "arrived late" in corrected[0]["explanation"]
    await clean(it.url)


async def test_after_a_new_version_a_late_event_tells_only_what_it_changes(it: Wired) -> None:
    """What was judged by the version before stands as it was told; and nothing is told twice."""
    await it.lane.submit([event("lead.created", 0), event("demo.requested", 10)])
    await it.shelf.publish_file(it.pool, parse_playbook(SALES + "\n# 2\n", "sales.yaml"))
    await it.lane.submit([event("meeting.booked", 30)])
    told = await it.messages()
    for minute in (5, 20, 1):  # before what either version judged, and between
        [outcome] = await it.lane.submit([event("page.viewed", minute)])
        assert (outcome.late, outcome.transitions) == (True, [])
    assert await it.messages() == told
    assert [r["playbook_version"] for r in await it.transitions()] == [1, 2]
    [outcome] = await it.lane.submit([event("proposal.sent", 20)])
    assert [b.from_ for b in outcome.transitions] == ["mql"]
    corrected = (await it.messages())[len(told) :]
    assert [(m["playbook_version"], m["alerts"]) for m in corrected] == [(2, [])]
    assert corrected[0]["replaces"] == [told[1]["transition_id"]]
    await clean(it.url)


async def test_a_late_event_that_changes_the_present_responsible_alerts(it: Wired) -> None:
    await it.lane.submit([event("lead.created", 0), event("lead.recycled", 30)])
    assert (await it.messages())[-1]["to"] == "nurture"
    [outcome] = await it.lane.submit([event("meeting.booked", 40)])
    assert [b.kind for b in outcome.transitions] == ["transition"]
    [outcome] = await it.lane.submit([event("deal.won", 35)])
    assert [b.to for b in outcome.transitions] == ["closed_won"]
    last = (await it.messages())[-1]
    assert last["type"] == "baton.transition.corrected.v1"
    assert [w["role"] for w in last["alerts"]] == ["csm"]
    await clean(it.url)


async def test_a_late_event_that_takes_a_move_back(it: Wired) -> None:
    """Disqualified before the meeting: what came after never counted."""
    await it.lane.submit([event("lead.created", 0), event("demo.requested", 30)])
    [outcome] = await it.lane.submit([event("lead.disqualified", 10, reason="a student")])
    assert await it.ways() == [("lead", "disqualified")]
    assert [b.replaces != [] for b in outcome.transitions] == [True]
    await clean(it.url)


@settings(
    max_examples=examples(40), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(data=st.data())
async def test_any_order_of_arrival_ends_in_the_same_history(
    it: Wired, data: st.DataObject
) -> None:
    """I7 on the database: random events, random batches, random repeats, against the events in order."""
    specs = data.draw(st.lists(
        st.tuples(
            st.sampled_from(TYPES), st.integers(0, 40), st.integers(0, 1), st.booleans(),
            st.sampled_from([MAIN, MAIN, "D-1"]), st.sampled_from([None, 3, 900]),
        ),
        min_size=1, max_size=20,
    ))  # fmt: skip
    await it.pool.execute(EMPTY)
    events = [
        msgspec.structs.replace(
            event(
                type, minute, f"l{lead}@x.example", id=f"e{n}",
                **({"reason": "r"} if reason else {}), **({"employees": size} if size else {}),
            ),
            deal=deal,
        )
        for n, (type, minute, lead, reason, deal, size) in enumerate(specs)
    ]  # fmt: skip
    arrival = data.draw(st.permutations(events + events[: len(events) // 3]))
    rest = list(arrival)
    while rest:
        size = data.draw(st.integers(1, 6))
        await it.lane.submit(rest[:size])
        rest = rest[size:]
    report = await verify_database(it.url)
    # verify re-folds in the order of time and compares stages, history, scores and numbering.
    assert report.findings == []
    # The same events in order and at once: the same history, told by a database of its own.
    expected = [tuple(r.values()) for r in await it.pool.fetch(HISTORY)]
    await it.pool.execute(EMPTY)
    await it.lane.submit(sorted(events, key=lambda e: e.place))
    assert [tuple(r.values()) for r in await it.pool.fetch(HISTORY)] == expected


HISTORY = """
SELECT l.email, j.key, j.stage, j.furthest_stage, l.fit, l.intent, t.from_stage, t.to_stage,
  t.occurred_at, t.visit_entered_at, t.event_id, t.role, t.skipped
FROM stage.leads l JOIN stage.journeys j ON j.lead_id = l.id
  LEFT JOIN stage.transitions t
    ON t.journey_id = j.id AND t.replaced_by IS NULL AND t.kind <> 'retraction'
ORDER BY l.email, j.key, t.occurred_at, t.sequence
"""


async def test_a_move_that_never_happened_is_retracted(it: Wired) -> None:
    """The score was reached only because a fact was not known yet: the move is taken back by a record
    that starts and ends in the stage that holds, and nothing else moved instead."""
    await it.lane.submit([event("lead.created", 0, employees=900, seniority="vp")])
    await it.lane.submit([event("content.downloaded", m) for m in (2, 3)])
    assert await it.ways() == [("lead", "mql")]
    [outcome] = await it.lane.submit([event("lead.updated", 1, employees=3)])
    assert [(b.kind, b.from_, b.to) for b in outcome.transitions] == [
        ("retraction", "lead", "lead")
    ]
    first, taken_back = await it.transitions(held=False)
    assert (taken_back["replaces"], first["replaced_by"]) == ([first["id"]], taken_back["id"])
    told = (await it.messages())[-1]
    assert (told["type"], told["from"], told["to"]) == (
        "baton.transition.corrected.v1",
        "lead",
        "lead",
    )
    assert told["replaces"] == [str(first["id"])]
    # Back with marketing, which the playbook alerts of nothing: nobody is told again.
    assert (told["responsible"]["role"], told["alerts"]) == ("marketing", [])
    assert await it.ways() == []
    [outcome] = await it.lane.submit([event("demo.requested", 50)])
    assert [(b.kind, b.sequence) for b in outcome.transitions] == [("transition", 3)]
    await clean(it.url)


async def test_a_retraction_alerts_nobody_who_holds_the_lead_already(it: Wired) -> None:
    """Won is taken back to sql, from AE's proposal: the AE held it before and is not told again."""
    await it.lane.submit([event("meeting.booked", 0), event("lead.recycled", 20)])
    before = len([w for m in await it.messages() for w in m["alerts"]])
    await it.lane.submit([event("proposal.sent", 10)])  # from proposal nobody is recycled
    rows = await it.transitions(held=False)
    assert [(r["kind"], r["from_stage"], r["to_stage"]) for r in rows] == [
        ("transition", "lead", "sql"), ("transition", "sql", "nurture"),
        ("correction", "sql", "proposal"),
    ]  # fmt: skip
    assert rows[2]["replaces"] == [rows[1]["id"]]
    # `proposal` alerts nobody by the playbook; the AE who has it since `sql` is its owner still.
    assert len([w for m in await it.messages() for w in m["alerts"]]) == before
    assert rows[2]["owner_id"] == rows[0]["owner_id"]
    await clean(it.url)


async def test_an_earlier_first_event_moves_the_start_of_the_visit(it: Wired) -> None:
    """The time in the first stage does not depend on the order of arrival."""
    await it.lane.submit([event("demo.requested", 100)])
    await it.lane.submit([event("page.viewed", 10)])
    [row] = await it.transitions()
    assert row["occurred_at"] - row["visit_entered_at"] == timedelta(minutes=90)
    await clean(it.url)


async def test_what_comes_back_from_the_database_folds_the_same(it: Wired) -> None:
    """Order of keys and kinds of numbers in jsonb are not those that came (I4)."""
    facts = {f"z{n % 7}_{n}": n for n in range(700)}
    await it.lane.submit(
        [event("lead.created", 5, **facts, employees=300, big=1e18, budget=2.5e17)]
    )
    await it.lane.submit([event("page.viewed", 1)])  # late: everything is folded again
    await clean(it.url)
