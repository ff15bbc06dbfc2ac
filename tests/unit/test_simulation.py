"""Simulation without a database: what is counted alike on both sides, and what makes two ways the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from services.contracts.events import MOVED_BY_HAND, SOURCE, LeadEvent
from services.contracts.team import Person
from services.stage_service import funnel
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.rehearsal import Rehearsal
from services.stage_service.simulation import Past, Simulation, Step, Tally
from services.stage_service.simulation_differences import step_of
from tests.integration.wired import START, event
from tests.unit import test_playbook_succession as versions

ROOT = Path(__file__).parents[2]
SALES = (ROOT / "playbooks/sales.yaml").read_text()
LATER = datetime(2026, 6, 1, tzinfo=UTC)
LEAD = "ada@example.com"
EVENINGS = Person(
    "lea", "Lea", roles=("lead_agent",), hours=(((17 * 60, 21 * 60),),) * 5 + ((), ())
)
"""Four hours a day."""


def with_rule(stage: str, clock: str) -> str:
    """The sales playbook with a rule by which a missed deadline ends the journey's way."""
    return SALES.replace(
        "rules:\n",
        f"rules:\n  - key: given-up\n    from: [{stage}]\n    to: nurture\n    on: baton.clock.fired\n"
        f"    when: \"event.clock == '{clock}'\"\n    because: \"nothing was heard\"\n", 1,
    )  # fmt: skip


def playbook(text: str) -> Playbook:
    return parse_playbook(text, "candidate.yaml")


def steps(played: Playbook, events: Sequence[LeadEvent], until: datetime) -> list[Step]:
    """The moves of `events` as they are recorded."""
    story = Rehearsal({played.name: played})
    for told in events:
        story.tell(told)
    story.wait_until(until)
    return [step_of(move) for move in story.moves]


def simulated(
    candidate: str, events: Sequence[LeadEvent], past: Past | None = None, *, now: datetime = LATER,
    hours: Mapping[str, Person] | None = None, today: str = SALES,
) -> Tally:  # fmt: skip
    present = playbook(today)
    run = Simulation(playbook(candidate), {1: {"sales": present}}, hours or {}, now)
    return run.run(
        {"lead": [(e, 1) for e in events]}, {"lead": {"sales/main": past} if past else {}}
    )


def recorded(moves: Sequence[Step], *handoffs: tuple[str, datetime, datetime | None]) -> Past:
    stage = moves[-1].to_stage
    return Past("sales", "main", stage, moves[0].to_stage, moves, handoffs)


def test_todays_alerts_are_of_todays_playbook() -> None:
    events = [event("lead.created", 0, LEAD), event("demo.requested", 1, LEAD)]
    louder = SALES.replace("    alerts: [lead_agent]\n", "    alerts: [lead_agent, marketing]\n", 1)
    tally = simulated(louder, events, recorded(steps(playbook(SALES), events, LATER)))
    day = {"2026-01-05": 1}
    assert tally.today.alerts == {"lead_agent": day}
    assert tally.candidate.alerts == {"lead_agent": day, "marketing": day}


def test_who_has_to_answer_is_alerted_though_the_stage_names_nobody() -> None:
    events = [event("lead.created", 0, LEAD), event("demo.requested", 1, LEAD)]
    silent = SALES.replace("    alerts: [lead_agent]\n", "", 1)
    assert simulated(silent, events).candidate.alerts == {"lead_agent": {"2026-01-05": 1}}


def test_what_clocks_moved_is_no_difference_though_they_rang_at_another_time() -> None:
    text = with_rule("proposal", "silent")
    events = [event("lead.created", 0, LEAD), event("proposal.sent", 10, LEAD)]
    moves = steps(playbook(text), events, LATER)
    assert [m.to_stage for m in moves] == ["proposal", "nurture"]
    moves[1] = msgspec.structs.replace(
        moves[1], occurred_at=moves[1].occurred_at + timedelta(milliseconds=7), event_id="another"
    )
    offer = ("ae", events[1].time, moves[1].occurred_at)
    tally = simulated(text, events, recorded(moves, offer), today=text)
    assert (tally.differing, tally.differences) == (0, [])
    assert tally.today == tally.candidate


def test_a_candidates_clocks_run_in_the_roles_working_hours() -> None:
    """16 hours of work are four of Lea's days; on the wall they are over in the night."""
    text = with_rule("mql", "qualify")
    events = [event("lead.created", 0, LEAD), event("demo.requested", 1, LEAD)]
    hours = {"lead_agent": EVENINGS}
    soon, late = START + timedelta(days=2), START + timedelta(days=4)
    assert simulated(text, events, now=soon, hours=hours).candidate.stage("mql").current == 1
    assert simulated(text, events, now=late, hours=hours).candidate.stage("nurture").current == 1


def test_a_late_event_may_begin_a_journey_of_a_playbook_that_came_later() -> None:
    sales = playbook(SALES)
    other = playbook(SALES.replace("name: sales", "name: expansion", 1))
    active = {1: {"sales": sales}, 2: {"sales": sales, "expansion": other}}
    run = Simulation(playbook(with_rule("mql", "qualify")), active, {}, LATER)
    late, known = event("demo.requested", 0, LEAD), event("page.viewed", 5, LEAD)
    tally = run.run({"lead": [(known, 1), (late, 2)]}, {})
    assert tally.candidate.stage("nurture").current == 1


def test_an_event_that_leads_elsewhere_names_both_rules() -> None:
    events = [event("lead.created", 0, LEAD), event("demo.requested", 1, LEAD)]
    moves = steps(playbook(SALES), events, LATER)
    faster = SALES.replace(
        "    to: mql\n    on: demo.requested\n", "    to: sql\n    on: demo.requested\n", 1
    )
    assert faster != SALES
    [one] = simulated(faster, events, recorded(moves)).differences
    assert (one.today, one.candidate) == (["mql"], ["sql"])
    assert (one.rule_today, one.rule) == ("demo-requested", "demo-requested")
    assert one.why.startswith("Moved from Lead Generation to Discovery")


def test_an_answer_meets_the_handoff_though_it_was_offered_earlier() -> None:
    easier = SALES.replace('when: "score.total >= 60"', 'when: "score.total >= 20"')
    events = [
        event("lead.created", 0, LEAD), event("webinar.attended", 10, LEAD),
        event("content.downloaded", 20, LEAD), event("demo.requested", 30, LEAD),
    ]  # fmt: skip
    moves = steps(playbook(SALES), events, LATER)
    offered, answered = event("x", 30).time, event("x", 60).time
    said = event(
        "handoff.accepted", 60, LEAD, role="lead_agent", round=1, offered_at=offered.isoformat()
    )
    past = recorded(moves, ("lead_agent", offered, answered))
    tally = simulated(easier, [*events, said], past)
    for side in (tally.today, tally.candidate):
        assert (side.handoffs, side.waiting, side.missed) == ({"lead_agent": 1}, {}, {})
    stale = recorded(moves, ("lead_agent", offered, None))
    assert simulated(easier, [*events, said], stale).candidate.waiting == {"lead_agent": 1}


def test_a_gate_that_holds_the_move_is_named_with_what_is_missing() -> None:
    """The rule fires, so it is not said that none does. Facts are told by their names alone."""
    events = [event("lead.created", 0, LEAD), event("demo.requested", 1, LEAD)]
    moves = steps(playbook(SALES), events, LATER)
    gated = SALES.replace(
        "    alerts: [lead_agent]\n",
        "    alerts: [lead_agent]\n    gate: {require: [lead.company, lead.employees], reason: true}\n", 1,
    )  # fmt: skip
    [one] = simulated(gated, events, recorded(moves)).differences
    assert (one.rule, one.rule_today) == (None, "demo-requested")
    assert one.why == (
        "The gate of mql holds the move from lead to mql at demo.requested: company and employees and reason "
        "are missing."
    )
    # It comes to know of it, and moves then.
    later = [*events, event("page.viewed", 5, LEAD, company="X", employees=3, reason="r")]
    [one] = simulated(gated, later, recorded(moves)).differences
    assert one.why.startswith("The gate of mql holds the move from lead to mql at demo.requested: ")
    assert "; later: Moved from Lead Generation to Lead Qualification by rule" in one.why
    # Another rule, whose gate holds.
    elsewhere = gated.replace(
        "    to: mql\n    on: demo.requested\n", "    to: sql\n    on: demo.requested\n", 1
    ).replace("    alerts: [ae]\n", "    alerts: [ae]\n    gate: {require: [lead.budget]}\n", 1)
    [one] = simulated(elsewhere, events, recorded(moves)).differences
    assert one.why == (
        "No rule moves it from lead to mql at demo.requested; the gate of sql holds the move of rule "
        "demo-requested: budget is missing."
    )
    # In truth no rule.
    none = SALES.replace("    on: demo.requested\n", "    on: demo.never\n", 1)
    [one] = simulated(none, events, recorded(moves)).differences
    assert one.why == "No rule moves it from lead to mql at demo.requested."


RENAMED = versions.RENAMED.replace("on: to.calls", "on: to.talks")
RENAMED_AGAIN = versions.text("new, chats, won", "migrate: {calls: chats}\n").replace(
    "on: to.chats", "on: to.talks"
)


def told_of_renames(candidate: str) -> Tally:
    """Of two leads that stood in `talks` when it became `calls`, one that is there, one won later."""
    known = versions.chain(versions.OLD, RENAMED)
    leads = {
        "stays": [(versions.event("to.talks", 0), 1), (versions.event("page.viewed", 5), 2)],
        "won": [(versions.event("to.talks", 0), 1), (versions.event("to.won", 5), 2)],
    }
    past: dict[str, dict[str, Past]] = {}
    for lead, events in leads.items():
        whole = funnel.refold(events, versions.at(known))
        assert whole.lead is not None
        journey = whole.lead.journeys["sales/main"]
        moves = [step_of(m) for m in whole.moves]
        assert [m.to_stage for m in moves][:2] == ["talks", "calls"]
        past[lead] = {"sales/main": Past(
            "sales", "main", journey.stage, journey.furthest, moves, ()
        )}  # fmt: skip
    active = {epoch: {"sales": known[epoch - 1]} for epoch in (1, 2)}
    return Simulation(playbook(candidate), active, {}, LATER).run(leads, past)


def test_the_active_text_differs_nowhere_though_a_stage_was_renamed() -> None:
    tally = told_of_renames(RENAMED)
    assert (tally.journeys, tally.differing, tally.differences) == (2, 0, [])
    assert tally.today == tally.candidate
    assert tally.today.stages.keys() == {"new", "calls", "won"}


def test_a_candidate_that_only_renames_differs_nowhere() -> None:
    """What is recorded is counted by its names; who was alerted, by the names of then."""
    tally = told_of_renames(RENAMED_AGAIN)
    assert (tally.journeys, tally.differing, tally.differences) == (2, 0, [])
    assert tally.today == tally.candidate
    assert tally.today.stage("chats").entered == 2
    assert tally.today.alerts == {"b": {"2026-01-05": 3}}
    assert tally.today.stages.keys() == {"new", "chats", "won"}


def test_why_says_nothing_that_is_known_of_people() -> None:
    """It is kept with the simulation: neither why a deal was lost, nor who moved it and what was said."""
    said = "Ada Lovelace of Engines Ltd is ill"
    lost = event("deal.lost", 9, LEAD, reason=said)
    [one] = simulated(SALES, [event("lead.created", 0, LEAD), lost]).differences
    assert one.why.endswith(" by rule deal-lost: the deal was lost: {event.reason}.")
    by_hand = msgspec.structs.replace(
        event(MOVED_BY_HAND, 9, LEAD, playbook="sales", to="mql", actor="Mara", reason=said),
        source=SOURCE,
    )
    [one] = simulated(SALES, [event("lead.created", 0, LEAD), by_hand]).differences
    assert one.why == "Moved by hand from Lead Generation to Lead Qualification."
    tally = simulated(SALES, [
        event("lead.created", 0, LEAD), event("demo.requested", 1, LEAD), by_hand, lost,
    ])  # fmt: skip
    assert b"Ada" not in msgspec.json.encode(tally)
