"""Routing: fair turns, and every way a rule, a calendar or a full desk decides who gets a journey."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts.team import Team, parse_team
from services.contracts.yaml_source import SourceError
from services.stage_service.playbook import Playbook, RoleRouting, RoutingRule, parse_playbook
from services.stage_service.rotation import Turns
from services.stage_service.routing import Case, Decision, route
from tests.conftest import examples

ROOT = Path(__file__).parents[2]
NOON = datetime(2026, 9, 2, 12, tzinfo=UTC)  # a Wednesday


def team(*lines: str) -> Team:
    people = [f"  - {{roles: [ae], {line}}}" for line in lines]
    return parse_team("people:\n" + "\n".join(people) + "\n", "team.yaml")


THREE = team("id: ada, name: Ada", "id: ben, name: Ben", "id: cem, name: Cem, weight: 2")


def case(**known: Any) -> Case:
    lead = known.pop("lead", {})
    values = {f"lead.{k}": v for k, v in lead.items()} | known.pop("values", {})
    return Case(
        known.pop("role", "ae"), known.pop("at", NOON), lead, values.get, known.pop("account", None),
        known.pop("owner", None), known.pop("loads", {}), frozenset(known.pop("without", ())),
    )  # fmt: skip


def rules(*found: RoutingRule, fallback: str | None = None) -> RoleRouting:
    return RoleRouting(found, fallback)


def why_not(decision: Decision) -> dict[str, str]:
    return {c.id: c.why for c in decision.candidates}


WEIGHTS = st.lists(
    st.one_of(st.integers(1, 100).map(float), st.floats(0.01, 100)), min_size=1, max_size=20
)


@settings(max_examples=examples(60), deadline=None)
@given(WEIGHTS, st.integers(1, 500))
def test_no_share_is_ever_a_lead_off_its_weight(weights: list[float], run: int) -> None:
    people = [(f"p{i}", w) for i, w in enumerate(weights)]
    turns = Turns()
    for given_out in range(1, run + 1):
        turns.take(people)
        for id, weight in people:
            fair = given_out * weight / sum(weights)
            assert abs(turns.given.get(id, 0) - fair) < 1


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(2, 9), st.lists(st.sets(st.integers(0, 8)), max_size=80), st.integers(1, 200))
def test_somebody_back_from_vacation_is_not_flooded(
    people: int, absences: list[set[int]], run: int
) -> None:
    """Whatever came before, from the moment all are there nobody is a lead off."""
    everybody = [(f"p{i}", 1.0 + i % 3) for i in range(people)]
    turns = Turns()
    for away in absences:
        there = [p for i, p in enumerate(everybody) if i not in away]
        if there:
            turns.take(there)
    turns.take(everybody[:1])  # the run of all begins now
    before = dict(turns.given)
    total = sum(w for _, w in everybody)
    for given_out in range(1, run + 1):
        turns.take(everybody)
        for id, weight in everybody:
            got = turns.given.get(id, 0) - before.get(id, 0)
            assert abs(got - given_out * weight / total) < 1


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.sampled_from(["ab", "ac", "bcd", "abcd", "d"]), min_size=1, max_size=400))
def test_runs_of_one_lead_are_fair_too(pools: list[str]) -> None:
    """As territories and hours make them: what each was due of the leads they were there for."""
    weights = {"a": 1.0, "b": 2.0, "c": 1.0, "d": 3.0}
    turns = Turns()
    due = dict.fromkeys(weights, 0.0)
    for pool in pools:
        turns.take([(id, weights[id]) for id in pool])
        for id in pool:
            due[id] += weights[id] / sum(weights[i] for i in pool)
    for id, fair in due.items():
        assert abs(turns.given.get(id, 0) - fair) < 4


def test_who_is_in_every_run_of_one_lead_does_not_get_them_all() -> None:
    turns = Turns()
    for n in range(200):
        turns.take([("a", 1.0), ("b" if n % 2 else "c", 1.0)])
    assert all(abs(turns.given[id] - fair) <= 2 for id, fair in (("a", 100), ("b", 50), ("c", 50)))


def test_turns_go_on_where_they_stood_after_a_restart() -> None:
    through, again = Turns(), Turns()
    people = [("a", 1.0), ("b", 2.0), ("c", 3.5)]
    for _ in range(50):
        first = through.take(people)
        again = msgspec.json.decode(msgspec.json.encode(again), type=Turns)
        assert again.take(people) == first


def test_a_decision_says_why() -> None:
    decision = route(case(), None, THREE, Turns())
    assert decision.why == "Cem: weighted among 3 eligible for ae"
    assert why_not(decision) == {"ada": "not their turn", "ben": "not their turn", "cem": "gets it"}


def test_round_robin_ignores_weights() -> None:
    turns = Turns()
    plan = rules(RoutingRule("all", strategy="round_robin"))
    got = [route(case(), plan, THREE, turns).person for _ in range(6)]
    assert got == ["ada", "ben", "cem"] * 2


def test_the_accounts_owner_comes_first_and_gives_way_only_when_they_cannot() -> None:
    plan = rules(RoutingRule("mine", of_account=True), RoutingRule("all"))
    decision = route(case(account="acme.com", owner="ben"), plan, THREE, Turns())
    assert (decision.person, decision.why) == ("ben", "Ben: account owner of acme.com")
    gone = route(case(account="acme.com", owner="zoe"), plan, THREE, Turns())
    assert (gone.person, gone.rule) == ("cem", "all")
    full = rules(RoutingRule("mine", of_account=True, capacity=2), RoutingRule("all"))
    decision = route(case(account="acme.com", owner="ben", loads={"ben": 2}), full, THREE, Turns())
    assert decision.person == "cem"


def test_capacity_counts_open_journeys_and_those_of_this_batch() -> None:
    plan = rules(RoutingRule("all", capacity=2), fallback="ada")
    loads = {"ada": 2, "ben": 1, "cem": 2}
    first = route(case(loads=loads), plan, THREE, Turns())
    assert first.person == "ben"
    assert why_not(first) == {"ada": "holds 2 of 2", "ben": "gets it", "cem": "holds 2 of 2"}
    second = route(case(loads=loads), plan, THREE, Turns())
    assert (second.person, second.rule) == ("ada", None)
    assert second.why == "Ada: fallback of ae, no rule found anybody"


def test_least_loaded_for_the_weight_and_in_turn_when_equal() -> None:
    plan = rules(RoutingRule("all", strategy="least_loaded"))
    assert route(case(loads={"ada": 3, "ben": 2, "cem": 3}), plan, THREE, Turns()).person == "cem"
    loads: dict[str, int] = {}
    turns = Turns()
    got = [route(case(loads=loads), plan, THREE, turns).person for _ in range(8)]
    assert sorted(map(str, got)) == ["ada"] * 2 + ["ben"] * 2 + ["cem"] * 4


def test_territory_skill_and_team_restrict_and_an_unknown_value_fits_nobody() -> None:
    people = team(
        "id: ada, name: Ada, territories: [DE, at], skills: [german]",
        "id: ben, name: Ben, team: enterprise, skills: [french]",
    )
    by_land = rules(RoutingRule("land", territory="lead.country"), RoutingRule("all"))
    assert route(case(lead={"country": "AT"}), by_land, people, Turns()).rule == "land"
    assert route(case(lead={}), by_land, people, Turns()).rule == "all"
    by_skill = rules(RoutingRule("tongue", skill="french"), RoutingRule("all"))
    decision = route(case(), by_skill, people, Turns())
    assert decision.person == "ben"
    assert why_not(decision)["ada"] == "without the skill french"
    by_team = rules(RoutingRule("big", team="enterprise"))
    assert route(case(), by_team, people, Turns()).person == "ben"
    by_name = rules(RoutingRule("named", people=("ada",)))
    assert route(case(), by_name, people, Turns()).person == "ada"


AWAY = "away: [{from: 2026-09-01, until: 2026-09-04%s}]"


def test_who_is_away_gives_to_the_stand_in_and_keeps_their_turn() -> None:
    people = team("id: ada, name: Ada, " + AWAY % ", stand_in: ben", "id: ben, name: Ben")
    turns = Turns()
    plan = rules(RoutingRule("all", strategy="round_robin"))
    first = route(case(), plan, people, turns)
    assert first.person == "ben"
    assert first.why.startswith("Ben: stands in for Ada (away until 2026-09-05 00:00), whose turn")
    assert turns.given == {"ada": 1}
    assert why_not(first)["ada"] == "away until 2026-09-05 00:00; Ben stands in"


def test_who_is_away_without_a_stand_in_is_left_out() -> None:
    people = team("id: ada, name: Ada, " + AWAY % "", "id: ben, name: Ben")
    decision = route(case(), None, people, Turns())
    assert decision.why == "Ben: weighted among 1 eligible for ae, 1 away"
    assert why_not(decision)["ada"] == "away until 2026-09-05 00:00, nobody stands in"


def test_two_who_stand_in_for_each_other_end() -> None:
    people = team(
        "id: ada, name: Ada, " + AWAY % ", stand_in: ben",
        "id: ben, name: Ben, " + AWAY % ", stand_in: ada",
    )
    decision = route(case(), rules(RoutingRule("all"), fallback="ada"), people, Turns())
    assert decision.why == "Ada: fallback of ae, though away"


def test_hours_are_respected_where_the_rule_says_so() -> None:
    people = team(
        "id: ada, name: Ada, time_zone: Asia/Tokyo, working_hours: '09:00-17:00'",
        "id: ben, name: Ben, time_zone: Europe/Berlin, working_hours: '09:00-17:00'",
    )
    plan = rules(RoutingRule("awake", in_hours=True), RoutingRule("all"))
    decision = route(case(), plan, people, Turns())
    assert (decision.person, why_not(decision)["ada"]) == ("ben", "not in working hours")
    night = route(case(at=NOON.replace(hour=20)), plan, people, Turns())
    assert night.rule == "all"


def test_an_empty_role_goes_to_sales_leadership_and_an_empty_roster_to_nobody() -> None:
    led = parse_team("people: [{id: sofia, name: Sofia, roles: [sales_leadership]}]", "team.yaml")
    decision = route(case(), None, led, Turns())
    assert decision.why == "Sofia: fallback of ae, no rule found anybody"
    nobody = route(case(), None, parse_team("people: []", "team.yaml"), Turns())
    assert nobody.person is None
    assert nobody.why == "nobody: no rule found anybody for ae, and it has no fallback"


def test_weight_nought_gets_none_and_who_gave_it_away_does_not_get_it_back() -> None:
    people = team("id: ada, name: Ada, weight: 0", "id: ben, name: Ben", "id: cem, name: Cem")
    decision = route(case(without=("ben",)), None, people, Turns())
    assert decision.person == "cem"
    assert why_not(decision) == {
        "ada": "weight 0: gets none by routing", "ben": "gave it away", "cem": "gets it",
    }  # fmt: skip


ROUTING = """
routing:
  ae:
    rules:
      - key: big
        when: "lead.employees >= 1000 && score.fit > 10"
        to: {team: enterprise}
        strategy: least_loaded
        capacity: 20
        respect: [hours, away]
      - to: {owner_of: account}
      - to: {territory: lead.region, skill: french}
      - {key: rest, to: everyone}
    fallback: {person: sofia}
    tell_before: true
"""


def playbook(routing: str) -> Playbook:
    return parse_playbook((ROOT / "playbooks/sales.yaml").read_text() + routing, "sales.yaml")


def test_a_playbook_says_how_a_role_is_routed() -> None:
    routing = playbook(ROUTING).routing["ae"]
    big, account, land, rest = routing.rules
    assert big.when is not None
    assert (big.team, big.strategy, big.capacity, big.in_hours) == (
        "enterprise", "least_loaded", 20, True,
    )  # fmt: skip
    assert account.of_account
    assert (land.key, land.territory, land.skill) == ("rule-3", "lead.region", "french")
    assert rest.key == "rest"
    assert (routing.fallback, routing.tell_before) == ("sofia", True)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("  ae:", "  aes:", "unknown key 'aes' in routing. Did you mean 'ae'?"),
        ("lead.employees", "lead.employes", "undeclared reference to 'lead.employes'"),
        ("score.fit > 10", "event.type == 'x'", "uses 'event.type'. Routing sees lead, deal"),
        ("least_loaded", "least", "unknown strategy 'least' in"),
        ("owner_of: account", "owner_of: lead", "unknown owner 'lead'"),
        ("owner_of: account", "owner_of: account, team: x", "owner_of stands with something else"),
        ("territory: lead.region", "territory: lead.regoin", "Did you mean 'lead.region'?"),
        ("key: rest", "key: big", "the key 'big' is used twice"),
        ("    fallback: {person: sofia}\n", "", "routing.ae has no 'fallback'"),
        ("[hours, away]", "[lunch]", "unknown calendar 'lunch'"),
    ],
)
def test_wrong_routing_is_refused_with_its_place(old: str, new: str, told: str) -> None:
    with pytest.raises(SourceError) as refused:
        playbook(ROUTING.replace(old, new, 1))
    assert told in str(refused.value)
