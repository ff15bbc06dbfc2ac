"""Handoffs and clocks through the lane on real PostgreSQL: offered, answered, missed, escalated, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.contracts.events import HANDOFFS_TOPIC, MAIN, UNMERGED_BY_HAND, LeadEvent
from services.contracts.roster import Roster
from services.contracts.team import parse_team
from services.stage_service.identities import LEAD_IDENTITY
from services.stage_service.lane import Lane
from services.stage_service.playbook import parse_playbook
from services.stage_service.shelf import Shelf
from services.stage_service.ticker import Ticker
from tests.conftest import ROOT, examples
from tests.integration.wired import START, Wired, clean, event, wired

SALES = (ROOT / "playbooks/sales.yaml").read_text()

HOUR = timedelta(hours=1)
TEAM = """
people:
  - {id: lena, name: Lena, roles: [lead_agent]}
  - {id: adam, name: Adam, roles: [ae]}
  - {id: beth, name: Beth, roles: [ae]}
  - {id: cleo, name: Cleo, roles: [csm]}
  - {id: head, name: Head, roles: [], leads: [ae], weight: 0}
  - {id: boss, name: Boss, roles: [sales_leadership]}
  - {id: mark, name: Mark, roles: [marketing]}
"""


class Timed(Wired):
    """A lane with a clock of its own: `now` is moved by hand, and `tick` fires what is due then."""

    now: datetime
    ticker: Ticker

    async def tick(self, to: datetime) -> int:
        """Move the clock and fire what is due; gives how many steps that were."""
        self.now = to
        fired = 0
        while (found := await self.ticker.run_due()) > 0:
            fired += found
        return fired

    async def tell(self, *events: LeadEvent) -> list[Any]:
        """Submit events, the clock moved to the newest."""
        self.now = max(self.now, *(e.time for e in events))
        return await self.lane.submit(
            [msgspec.structs.replace(e, recorded_at=self.now) for e in events]
        )

    async def handoffs(self) -> list[tuple[Any, ...]]:
        """(stage, role, round, person, state) of each, the oldest first."""
        rows = await self.pool.fetch("SELECT * FROM stage.handoffs ORDER BY offered_at, round, id")
        return [(r["stage"], r["role"], r["round"], r["person_id"], r["state"]) for r in rows]

    async def clocks(self) -> dict[str, str]:
        """The newest state of each clock, by key."""
        rows = await self.pool.fetch(
            "SELECT key, state FROM stage.clocks ORDER BY created_at, since, id"
        )
        return {r["key"]: r["state"] for r in rows}

    async def told(self) -> list[tuple[str, list[str]]]:
        """(type, who is alerted) of what was published about handoffs."""
        return [
            (
                m["type"].removeprefix("baton."),
                [w["person"]["id"] for w in m["alerts"] if w["person"]],
            )
            for m in await self.messages(HANDOFFS_TOPIC)
        ]


@asynccontextmanager
async def timed(url: str, team: str = TEAM, playbook: str = SALES) -> AsyncIterator[Timed]:
    async with wired(url) as w:
        await w.lane.stop()
        it = Timed(w.url, w.pool, w.lane, w.shelf)
        it.now = START
        await it.shelf.publish_file(it.pool, parse_playbook(playbook, "sales.yaml"))
        roster = Roster(parse_team(team, "team.yaml"))
        it.lane = Lane(it.pool, it.shelf, roster, now=lambda: it.now)
        it.ticker = Ticker(it.pool, it.lane, lambda: it.now)
        it.lane.start()
        try:
            yield it
        finally:
            await it.lane.stop()


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Timed]:
    async with timed(database_url) as t:
        yield t


def answer(kind: str, minute: float, **data: Any) -> LeadEvent:
    return event(f"handoff.{kind}", minute, **data)


async def test_a_transition_offers_and_moving_on_accepts(it: Timed) -> None:
    """Each handoff of the walk is offered to its owner; going forward is a yes."""
    for type, minute in (("demo.requested", 0), ("meeting.booked", 5), ("proposal.sent", 9),
                         ("contract.sent", 12), ("deal.won", 20)):  # fmt: skip
        await it.tell(event(type, minute))
    assert await it.handoffs() == [
        ("mql", "lead_agent", 1, "lena", "accepted"),
        ("sql", "ae", 1, "adam", "accepted"),
        ("closed_won", "csm", 1, "cleo", "offered"),
    ]
    assert [t for t, _ in await it.told()] == [
        "handoff.offered.v1", "handoff.accepted.v1", "handoff.offered.v1", "handoff.accepted.v1",
        "handoff.offered.v1",
    ]  # fmt: skip
    [offered] = [m for m in await it.messages() if m["to"] == "sql"]
    rows = await it.pool.fetch("SELECT id::text, due_at FROM stage.handoffs WHERE stage = 'sql'")
    assert offered["offer"]["handoff_id"] == rows[0]["id"]
    assert rows[0]["due_at"] == START + timedelta(minutes=5) + 4 * HOUR
    assert "No budget" in offered["offer"]["reasons"]
    assert await it.clocks() == {
        "handoff-lead-agent": "met", "qualify": "met", "handoff-ae": "met", "silent": "met",
        "signature": "met", "handoff-csm": "running",
    }  # fmt: skip
    await clean(it.url)


async def test_the_owner_accepts_and_no_clock_rings(it: Timed) -> None:
    await it.tell(event("meeting.booked", 0))
    await it.tell(answer("accepted", 30, person="adam"))
    assert await it.handoffs() == [("sql", "ae", 1, "adam", "accepted")]
    assert await it.tick(START + timedelta(days=9)) == 0
    row = (await it.pool.fetch("SELECT * FROM stage.handoffs"))[0]
    assert (row["answered_at"], row["answered_by"]) == (START + timedelta(minutes=30), "adam")
    assert not row["implied"]
    await clean(it.url)


async def test_a_rejection_returns_the_lead_to_the_giver_by_the_rule(it: Timed) -> None:
    await it.tell(event("demo.requested", 0), event("meeting.booked", 5))
    [outcome] = await it.tell(answer("rejected", 9, person="adam", reason="No budget"))
    assert [(b.from_, b.to) for b in outcome.transitions] == [("sql", "mql")]
    assert "gave it back: No budget" in outcome.transitions[0].explanation
    assert await it.handoffs() == [
        ("mql", "lead_agent", 1, "lena", "accepted"),
        ("sql", "ae", 1, "adam", "rejected"),
        ("mql", "lead_agent", 1, "lena", "offered"),
    ]
    back = (await it.messages())[-1]
    assert [w["person"]["id"] for w in back["alerts"]] == ["lena"]
    await clean(it.url)


async def test_a_rejection_without_a_rule_goes_to_somebody_else(it: Timed) -> None:
    """In the stage mql nothing leads back: other lead agents get it, and at last sales leadership."""
    await it.tell(event("demo.requested", 0))
    await it.tell(answer("rejected", 5, person="lena", reason="Not mine"))
    assert await it.handoffs() == [
        ("mql", "lead_agent", 1, "lena", "rejected"),
        ("mql", "lead_agent", 2, "boss", "offered"),
    ]
    assert await it.told() == [
        ("handoff.offered.v1", []), ("handoff.rejected.v1", []), ("owner.changed.v1", ["boss"]),
        ("handoff.offered.v1", []),
    ]  # fmt: skip
    changed = (await it.messages(HANDOFFS_TOPIC))[2]
    assert changed["previous_owner"]["id"] == "lena"
    assert changed["offer"]["handoff_id"] != (await it.messages())[0]["offer"]["handoff_id"]
    assert (changed["reason"], changed["actor"]) == ("Not mine", "lena")
    await clean(it.url)


async def test_an_answer_that_meets_no_open_offer_changes_nothing(it: Timed) -> None:
    await it.tell(event("meeting.booked", 0))
    offered = START.isoformat()
    await it.tell(answer("rejected", 1, offered_at=offered, round=2, reason="the second offer"))
    await it.tell(answer("rejected", 2, role="csm", reason="another role"))
    await it.tell(answer("rejected", 3, offered_at="2020-01-01T00:00:00Z", reason="long ago"))
    assert await it.handoffs() == [("sql", "ae", 1, "adam", "offered")]
    await it.tell(answer("accepted", 4, offered_at=offered, round=1, role="ae"))
    await it.tell(answer("rejected", 5, reason="too late"))
    assert await it.handoffs() == [("sql", "ae", 1, "adam", "accepted")]
    assert await it.ways() == [("lead", "sql")]
    await clean(it.url)


async def test_a_crm_hears_that_its_answer_met_nothing_or_has_no_reason(it: Timed) -> None:
    await it.tell(event("demo.requested", 0))
    [late] = await it.tell(answer("accepted", 1, role="ae"))
    assert "no handoff waited for this answer" in (late.warning or "")
    [bare] = await it.tell(answer("rejected", 2))
    assert bare.warning == "a rejection without data.reason"
    [good] = await it.tell(answer("accepted", 3))
    assert good.warning is None


async def test_a_missed_deadline_climbs_the_ladder_once(it: Timed) -> None:
    """Reminder, deadline, the lead of the role, sales leadership: each once, and then it waits."""
    await it.tell(event("meeting.booked", 0))
    assert await it.tick(START + 3 * HOUR - timedelta(seconds=1)) == 0
    assert await it.tick(START + 3 * HOUR) == 1
    assert (await it.told())[-1] == ("clock.rang.v1", ["adam"])
    # At the deadline: it is overdue; nobody stands in for somebody who is there.
    assert await it.tick(START + 4 * HOUR) == 2
    assert (await it.told())[-1] == ("handoff.overdue.v1", ["adam"])
    assert await it.tick(START + 6 * HOUR) == 1
    assert (await it.told())[-1] == ("clock.rang.v1", ["head"])
    assert await it.tick(START + 8 * HOUR) == 1
    assert (await it.told())[-1] == ("clock.rang.v1", ["boss"])
    assert await it.tick(START + timedelta(days=9)) == 0
    assert len(await it.told()) == 5
    rows = await it.pool.fetch("SELECT * FROM stage.handoffs")
    assert (rows[0]["state"], rows[0]["overdue_at"]) == ("offered", START + 4 * HOUR)
    # A late answer is an answer.
    await it.tell(answer("accepted", 60 * 24 * 10, person="adam"))
    assert (await it.clocks())["handoff-ae"] == "missed"
    stored = await it.pool.fetch(
        "SELECT type FROM stage.events WHERE source = 'baton' ORDER BY time, id"
    )
    assert [r["type"] for r in stored] == [
        "baton.clock.reminded", "baton.clock.fired", "baton.clock.escalated",
        "baton.clock.escalated", "baton.clock.escalated",
    ]  # fmt: skip
    await clean(it.url)


async def test_what_came_due_while_nobody_ran_fires_late_without_its_reminder(it: Timed) -> None:
    await it.tell(event("meeting.booked", 0))
    await it.tick(START + 5 * HOUR)
    told = await it.messages(HANDOFFS_TOPIC)
    assert [m["type"] for m in told] == ["baton.handoff.offered.v1", "baton.handoff.overdue.v1"]
    stored = await it.pool.fetchrow(
        "SELECT time, data FROM stage.events WHERE type = 'baton.clock.fired'"
    )
    assert stored["time"] == START + 4 * HOUR
    assert msgspec.json.decode(stored["data"])["late"] is True
    await clean(it.url)


async def test_an_import_of_history_makes_nobody_late(it: Timed) -> None:
    """What happened long ago is learned today: deadlines count from today, silence too."""
    it.now = START + timedelta(days=400)
    await it.lane.submit([event("demo.requested", 0), event("meeting.booked", 9, "b@b.example")])
    assert await it.tick(it.now + HOUR) == 0
    due = await it.pool.fetch("SELECT due_at FROM stage.handoffs")
    assert {r["due_at"] for r in due} == {START + timedelta(days=400) + 4 * HOUR}
    await it.tick(START + timedelta(days=400) + 4 * HOUR)
    assert [t for t, _ in await it.told()].count("handoff.overdue.v1") == 2
    rows = await it.pool.fetch("SELECT due_at FROM stage.clocks WHERE key = 'silent'")
    assert [r["due_at"] for r in rows] == [START + timedelta(days=411)]
    await clean(it.url)


async def test_two_tickers_fire_each_clock_once(it: Timed) -> None:
    await it.tell(*(event("meeting.booked", 0, f"{n}@c.example") for n in range(60)))
    it.now = START + 4 * HOUR
    other = Ticker(it.pool, it.lane, lambda: it.now)
    await asyncio.gather(*(t.run_due() for t in (it.ticker, other) * 4))
    await it.tick(it.now)
    types = [t for t, _ in await it.told()]
    assert types.count("handoff.overdue.v1") == 60
    assert (
        await it.pool.fetchval("SELECT count(*) FROM stage.events WHERE type = 'baton.clock.fired'")
        == 60
    )
    await clean(it.url)


async def test_a_claim_that_was_never_kept_runs_out(it: Timed) -> None:
    """A process claimed the clock and died: another fires it some seconds later."""
    await it.tell(event("meeting.booked", 0))
    due = START + 4 * HOUR
    await it.pool.execute("UPDATE stage.clocks SET claimed_until = $1", due + timedelta(seconds=10))
    assert await it.tick(due + timedelta(seconds=9)) == 0
    assert await it.tick(due + timedelta(seconds=11)) > 0
    assert "handoff.overdue.v1" in [t for t, _ in await it.told()]
    await clean(it.url)


async def test_an_acceptance_told_late_takes_the_missed_deadline_back(it: Timed) -> None:
    """I7: it was accepted in time, and the CRM said so a day later."""
    await it.tell(event("meeting.booked", 0))
    await it.tick(START + 5 * HOUR)
    it.now = START + timedelta(days=1)
    await it.lane.submit([answer("accepted", 90, person="adam")])
    row = (await it.pool.fetch("SELECT * FROM stage.handoffs"))[0]
    assert (row["state"], row["overdue_at"]) == ("accepted", None)
    assert (await it.told())[-1] == ("handoff.accepted.v1", [])
    assert await it.tick(START + timedelta(days=9)) == 0
    await clean(it.url)


async def test_a_late_event_withdraws_what_was_never_offered(it: Timed) -> None:
    await it.tell(event("lead.created", 0), event("meeting.booked", 30))
    await it.tell(event("page.viewed", 40))
    await it.lane.submit([event("lead.disqualified", 10, reason="spam")])
    assert await it.handoffs() == [("sql", "ae", 1, "adam", "withdrawn")]
    assert (await it.told())[-1] == ("handoff.withdrawn.v1", [])
    assert set((await it.clocks()).values()) == {"void", "met"}
    assert await it.tick(START + timedelta(days=30)) == 0
    await clean(it.url)


async def test_activity_moves_a_clock_and_silence_fires_it(it: Timed) -> None:
    day = 24 * 60
    await it.tell(event("meeting.booked", 0), answer("accepted", 1))
    await it.tell(event("page.viewed", 5 * day))
    assert await it.tick(START + timedelta(days=11, hours=1)) == 1  # looked at, and moved
    assert (await it.told())[-1][0] == "handoff.accepted.v1"
    assert await it.tick(START + timedelta(days=16, hours=1)) == 1
    assert (await it.told())[-1] == ("clock.rang.v1", ["adam"])
    await it.tell(event("page.viewed", 17 * day))  # reminded, and active again: from the start
    assert await it.tick(START + timedelta(days=19)) == 0
    assert await it.tick(START + timedelta(days=31)) == 1
    assert (await it.clocks())["silent"] == "running"
    assert await it.pool.fetchval("SELECT count(*) FROM stage.clocks WHERE key = 'silent'") == 2
    await clean(it.url)


async def test_a_rule_moves_on_a_missed_deadline(database_url: str) -> None:
    rule = """
  - key: gone-silent
    from: [sql, proposal]
    to: nurture
    on: baton.clock.fired
    when: "event.clock == 'silent'"
    because: "nothing happened for two weeks"
"""
    playbook = SALES.replace("\nlabels:\n", rule + "\nlabels:\n")
    async with timed(database_url, playbook=playbook) as it:
        await it.tell(event("meeting.booked", 0), answer("accepted", 1))
        await it.tick(START + timedelta(days=15))
        assert await it.ways() == [("lead", "sql"), ("sql", "nurture")]
        last = (await it.messages())[-1]
        assert last["cause"]["event_type"] == "baton.clock.fired"
        assert (await it.clocks())["silent"] == "missed"
        await clean(it.url)


async def test_an_assignment_by_hand_offers_it_anew(it: Timed) -> None:
    [outcome] = await it.tell(event("meeting.booked", 0))
    data = {"role": "ae", "person": "beth", "reason": "she knows them", "playbook": "sales",
            "actor": "Boss", "without": ["adam"]}  # fmt: skip
    it.now = at = START + 2 * HOUR
    await it.lane.submit([LeadEvent(
        "by-hand", "baton", "baton.lead.assigned", at, at, None, ((LEAD_IDENTITY, outcome.lead_id),),
        MAIN, data, {},
    )])  # fmt: skip
    assert await it.handoffs() == [
        ("sql", "ae", 1, "adam", "withdrawn"), ("sql", "ae", 2, "beth", "offered"),
    ]  # fmt: skip
    assert await it.tick(START + 4 * HOUR) == 0, "beth has four hours of her own"
    assert await it.tick(START + 6 * HOUR) == 2 + 1 - 1
    assert (await it.told())[-1] == ("handoff.overdue.v1", ["beth"])
    await clean(it.url)


async def test_nobody_for_the_role_still_climbs(database_url: str) -> None:
    team = "\n".join(line for line in TEAM.splitlines() if "[ae]" not in line or "leads" in line)
    async with timed(database_url, team=team) as it:
        await it.tell(event("meeting.booked", 0))
        assert await it.handoffs() == [("sql", "ae", 1, "boss", "offered")]
        await it.tick(START + 9 * HOUR)
        assert [who for t, who in await it.told() if t != "handoff.offered.v1"] == [
            ["boss"], ["head"], [],
        ]  # fmt: skip
        await clean(it.url)


async def test_a_stand_in_hears_of_the_deadline_of_somebody_away(database_url: str) -> None:
    away = "away: [{from: 2026-01-05T12:00, until: 2026-01-20, stand_in: beth}]"
    adam = "{id: adam, name: Adam, roles: [ae]"
    team = TEAM.replace(adam, f"{adam}, {away}")
    async with timed(database_url, team=team) as it:
        await it.tell(event("meeting.booked", 0))
        await it.tick(START + 4 * HOUR)
        who = [who for t, who in await it.told() if t == "clock.rang.v1"]
        assert who[-1] == ["beth"]
        await clean(it.url)


async def test_a_merge_carries_the_handoff_over_and_an_undo_brings_it_back(it: Timed) -> None:
    await it.tell(event("meeting.booked", 0, "a@b.example"))
    await it.tell(event("demo.requested", 5, "c@d.example", external_ids={"crm": "7"}))
    link = event("page.viewed", 9, "a@b.example", external_ids={"crm": "7"})
    link = msgspec.structs.replace(
        link, identities=(("email", "a@b.example"), ("external:crm", "7"))
    )
    await it.tell(msgspec.structs.replace(
        event("page.viewed", 8, "c@d.example"), identities=(("email", "c@d.example"), ("external:crm", "7")),
    ))  # fmt: skip
    await it.tell(link)
    assert await it.pool.fetchval("SELECT count(*) FROM stage.leads WHERE merged_into IS NULL") == 1
    waiting = [h for h in await it.handoffs() if h[4] == "offered"]
    assert waiting == [("sql", "ae", 1, "adam", "offered")]
    running = await it.pool.fetch(
        """SELECT c.key FROM stage.clocks c JOIN stage.leads l ON l.id = c.lead_id
           WHERE c.state = 'running' AND l.merged_into IS NULL ORDER BY 1"""
    )
    assert [r["key"] for r in running] == ["handoff-ae", "silent"]
    await clean(it.url)
    await it.tick(START + 5 * HOUR)
    assert [t for t, _ in await it.told()].count("handoff.overdue.v1") == 1
    await clean(it.url)


async def test_a_new_version_with_other_steps_still_tells_the_deadline_first(it: Timed) -> None:
    """Wound with a reminder, which has rung; the next version has none, and one without the clock ends it."""
    await it.tell(event("meeting.booked", 0), event("meeting.booked", 0, "b@b.example"))
    assert await it.tick(START + 3 * HOUR) == 2
    bare = SALES.replace("    within: 4h\n    remind: 1h\n", "    within: 4h\n")
    await it.shelf.publish_file(it.pool, parse_playbook(bare, "sales.yaml"))
    await it.tick(START + 4 * HOUR)
    assert [t for t, _ in await it.told()].count("handoff.overdue.v1") == 2
    assert (
        await it.pool.fetchval("SELECT count(*) FROM stage.handoffs WHERE overdue_at IS NOT NULL")
        == 2
    )
    start, end = SALES.index("\nhandoffs:\n"), SALES.index("\nclocks:\n")
    await it.shelf.publish_file(it.pool, parse_playbook(SALES[:start] + SALES[end:], "sales.yaml"))
    await it.tick(START + 9 * HOUR)
    assert [t for t, _ in await it.told()].count("clock.rang.v1") == 2  # the reminders
    assert (await it.clocks())["handoff-ae"] == "missed"
    await clean(it.url)


async def test_a_process_with_an_old_playbook_loses_no_clock(database_url: str) -> None:
    """Another process published a version with a new clock and wound it; this one finds it due."""
    start, end = SALES.index("\nhandoffs:\n"), SALES.index("\n# What rules may ask for")
    before = SALES[:start] + SALES[end:].replace("on: handoff.rejected", "on: lead.rejected")
    async with timed(database_url, playbook=before) as it:
        shelf = Shelf()
        await shelf.load(it.pool)
        await shelf.publish_file(it.pool, parse_playbook(SALES + "\n", "sales.yaml"))
        roster = Roster(parse_team(TEAM, "team.yaml"))
        other = Lane(it.pool, shelf, roster, now=lambda: it.now)
        other.start()
        await other.submit([event("meeting.booked", 0)])
        await other.stop()
        assert it.lane.playbooks["sales"].clocks == ()
        await it.tick(START + 4 * HOUR)
        assert "handoff.overdue.v1" in [t for t, _ in await it.told()]
        await clean(it.url)


KINDS: Sequence[tuple[str, dict[str, Any]]] = (
    ("demo.requested", {}), ("meeting.booked", {}), ("meeting.held", {}), ("handoff.accepted", {}),
    ("handoff.rejected", {"reason": "no"}), ("lead.recycled", {}), ("form.submitted", {}),
    ("proposal.sent", {}), ("page.viewed", {}), ("deal.won", {}),
)  # fmt: skip


@settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    told=st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 3000), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    order=st.randoms(use_true_random=False),
)
async def test_any_order_of_arrival_ends_in_the_same_handoffs(
    database_url: str, told: list[tuple[tuple[str, dict[str, Any]], int, bool]], order: Any
) -> None:
    """I7, I4: whatever arrives late, and whatever clocks fired between, verify is clean."""
    async with timed(database_url) as it:
        await it.pool.execute("TRUNCATE stage.events, stage.leads, stage.identities, stage.journeys, "
                              "stage.transitions, stage.handoffs, stage.clocks")  # fmt: skip
        await it.pool.execute("TRUNCATE bus.outbox, bus.log, bus.pending")
        events = [
            event(kind, minute, id=f"{i}", **data)
            for i, ((kind, data), minute, _) in enumerate(told)
        ]
        pairs = list(zip(events, (tick for _, _, tick in told), strict=True))
        order.shuffle(pairs)
        it.now = START + timedelta(minutes=3001)
        for each, tick in pairs:
            await it.lane.submit([each])
            if tick:
                await it.tick(it.now + HOUR)
        await it.tick(it.now + timedelta(days=20))
        await clean(it.url)
        open_ = await it.pool.fetchval(
            "SELECT count(*) FROM stage.handoffs WHERE state = 'offered'"
        )
        assert open_ <= 1


async def test_a_clock_of_silence_that_a_late_event_sets_back_still_rings(it: Timed) -> None:
    """Moved by hand on day 12; the meeting of day 3 that had moved it is told on day 13."""
    day = 24 * 60
    await it.tell(event("lead.created", 0))
    lead = await it.pool.fetchval("SELECT id::text FROM stage.leads")
    moved = msgspec.structs.replace(
        event("baton.lead.moved", 12 * day, to="sql", playbook="sales", reason="met", actor="a"),
        source="baton", identities=((LEAD_IDENTITY, lead),),
    )  # fmt: skip
    await it.tell(moved)
    it.now = START + timedelta(days=13)
    await it.lane.submit([event("meeting.booked", 3 * day), answer("accepted", 4 * day)])
    assert await it.ways() == [("lead", "sql")]
    await it.tick(START + timedelta(days=40))
    rang = [m["step"] for m in await it.messages(HANDOFFS_TOPIC) if m.get("clock") == "silent"]
    assert rang == ["due", "escalate"]
    await clean(it.url)


async def test_a_rejection_undone_with_its_merge_leaves_one_answer_to_who_waits(it: Timed) -> None:
    """The other lead's rejection gave it to Boss; parted, it waits for who owns it, and the row says so."""
    crm = ("external:crm", "7")
    await it.tell(event("deal.won", 0), event("page.viewed", 1, "c@d.example"))
    for who, minute in (("c@d.example", 2), ("a@b.example", 3)):
        linked = event("page.viewed", minute, who, external_ids={"crm": "7"})
        await it.tell(msgspec.structs.replace(linked, identities=(("email", who), crm)))
    await it.tick(START + timedelta(days=1))
    await it.tell(event("handoff.rejected", 60 * 25, "c@d.example", reason="not mine"))
    assert (await it.handoffs())[-1] == ("closed_won", "csm", 2, "boss", "offered")
    row = await it.pool.fetchrow("SELECT id::text, survivor::text, merged::text FROM stage.merges")
    it.now = START + timedelta(days=2)
    parting = msgspec.structs.replace(
        event(UNMERGED_BY_HAND, 60 * 48), id="part", source="baton",
        identities=((LEAD_IDENTITY, row["survivor"]),),
        data={"reason": "two people", "actor": "me", "merge_id": row["id"], "lead": row["merged"]},
    )  # fmt: skip
    await it.lane.submit_alone(parting)
    [waiting] = [h for h in await it.handoffs() if h[4] == "offered"]
    held = await it.pool.fetch("SELECT holder FROM stage.journeys WHERE stage = 'closed_won'")
    assert [waiting[3]] == [r["holder"] for r in held]
