"""How a playbook version follows another: stages that are gone say where their journeys go."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.events import MAIN, MOVED_BY_HAND, PLAYBOOK_PUBLISHED, SOURCE, LeadEvent
from services.contracts.handoffs import CLOCK_FIRED
from services.contracts.yaml_source import SourceError
from services.stage_service import funnel
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_succession import following, in_order, succession

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def text(stages: str = "new, talks, won", extra: str = "", **roles: str) -> str:
    """A playbook with the path `stages`, of which ``b`` is the responsible role unless `roles` says another.

    An event ``to.X`` moves to the stage X; ``back.X`` back to it.
    """
    path = [s.strip() for s in stages.split(",")]
    lines = ["name: sales", "title: Sales", "roles:"]
    lines += [f"  {r}: {{title: {r}, does: it}}" for r in ("a", "b", "c")]
    lines += [f"path: [{', '.join(path)}]", "stages:"]
    lines += [
        f"  {s}: {{title: The {s}, band: mofu, focus: f, goal: g, responsible: {roles.get(s, 'b')},"
        f" alerts: {roles.get(s, 'b')}}}"
        for s in path
    ]
    lines += ["handoffs:", "  c: {within: 4h}", "rules:"]
    for s in path[1:]:
        before = ", ".join(path[: path.index(s)])
        lines.append(f"  - {{key: to-{s}, from: [{before}], to: {s}, on: to.{s}, because: x}}")
    for s in path[:-1]:
        after = ", ".join(path[path.index(s) + 1 :])
        lines.append(
            f"  - {{key: back-{s}, from: [{after}], to: {s}, on: back.{s}, back: true, because: x}}"
        )
    return "\n".join(lines) + "\n" + extra


@cache
def parsed(source: str) -> Playbook:
    return parse_playbook(source, "sales.yaml")


def chain(*sources: str) -> list[Playbook]:
    """Versions 1..n as they are loaded."""
    found: list[Playbook] = []
    for n, source in enumerate(sources, 1):
        before = found[-1] if found else None
        playbook = parsed(source)
        moved = succession(playbook, {"sales": before} if before is not None else {})
        found.append(following(playbook, before, n, moved))
    return found


def at(playbooks: list[Playbook]) -> Any:
    return lambda epoch: {"sales": playbooks[epoch - 1]}


def event(
    type: str, minute: float, *, source: str = "/t", deal: str = MAIN, **data: Any
) -> LeadEvent:
    time = START + timedelta(minutes=minute)
    return LeadEvent(f"{type}-{minute}", source, type, time, time, None, (), deal, data, {})


def problems(*sources: str) -> list[str]:
    with pytest.raises(SourceError) as refused:
        chain(*sources)
    return [str(p) for p in refused.value.problems]


OLD = text("new, talks, won")
RENAMED = text("new, calls, won", "migrate: {talks: calls}\n")


def test_a_stage_that_is_gone_must_say_where_its_journeys_go() -> None:
    [told] = problems(OLD, text("new, calls, won"))
    assert told == (
        "sales.yaml:8:1: stage 'talks' of version 1 is gone, and nothing says where its journeys go on. "
        "Add a line under 'migrate', as 'talks: calls', or keep the stage."
    )


def test_it_is_told_at_migrate_where_there_is_one() -> None:
    [told] = problems(OLD, text("new, calls, won", "migrate: {talk: calls}\n"))
    line = RENAMED.splitlines().index("migrate: {talks: calls}") + 1
    assert told.startswith(f"sales.yaml:{line}:1: stage 'talks' of version 1 is gone")


@pytest.mark.parametrize(
    ("migrate", "told"),
    [
        ("{talks: call}", "unknown stage 'call' in migrate.talks. Did you mean 'calls'?"),
        ("{new: calls}", "stage 'new' is still there, so its journeys stay"),
        ("{talks: x, x: talks}", "migrate goes in a circle: talks > x > talks"),
        ("[talks]", "migrate must be a mapping"),
    ],
)
def test_mistakes_in_migrate_have_line_and_remedy(migrate: str, told: str) -> None:
    with pytest.raises(SourceError, match=r"sales\.yaml:") as refused:
        parsed(text("new, calls, won", f"migrate: {migrate}\n"))
    assert told in str(refused.value)
    assert refused.value.problems[0].line == OLD.count("\n") + 1


def test_a_first_version_may_remember_older_ones() -> None:
    """A file that was published elsewhere keeps its history; here nothing stands in those stages."""
    [first] = chain(RENAMED)
    assert (first.renames, first.migrate) == ((), {"talks": "calls"})


def test_lines_that_stay_in_the_file_do_nothing_again() -> None:
    versions = chain(OLD, RENAMED, RENAMED + "# the same\n")
    assert versions[2].renames == ((2, {"talks": "calls"}),)


def test_a_chain_in_one_file() -> None:
    """Who skipped a version goes all the way."""
    [_, second] = chain(OLD, text("new, chats, won", "migrate: {talks: calls, calls: chats}\n"))
    assert second.renames == ((2, {"talks": "chats"}),)


def restored(*sources: str, given: Mapping[str, str] | None = None) -> dict[str, str]:
    versions = chain(*sources)
    return succession(parsed(sources[0]), {"sales": versions[-1]}, given=given, restored=1)


def test_a_rename_is_turned_around() -> None:
    assert restored(OLD, RENAMED) == {"calls": "talks"}


def test_a_stage_that_was_added_needs_to_be_said() -> None:
    with pytest.raises(SourceError, match="stage 'demo' of version 2 is gone"):
        restored(OLD, text("new, talks, demo, won"))
    added = text("new, talks, demo, won")
    assert restored(OLD, added, given={"demo": "talks"}) == {"demo": "talks"}
    with pytest.raises(SourceError, match="unknown stage 'tlks'"):
        restored(OLD, added, given={"demo": "tlks"})


def test_two_stages_that_became_one_need_to_be_said() -> None:
    wide = text("new, talks, calls, won")
    merged = text("new, chats, won", "migrate: {talks: chats, calls: chats}\n")
    with pytest.raises(SourceError, match="stage 'chats' of version 2 is gone"):
        restored(wide, merged)


def test_a_journey_that_slept_through_both_does_not_move() -> None:
    first, second = chain(OLD, RENAMED)
    third = following(parsed(OLD), second, 3, {"calls": "talks"})
    whole = funnel.refold(
        [(event("to.talks", 0), 1), (event("x", 1), 3)], at([first, second, third])
    )
    assert [(m.from_stage, m.to_stage) for m in whole.moves] == [("new", "talks")]
    slow = funnel.refold(
        [(event("to.talks", 0), 1), (event("y", 1), 2), (event("x", 2), 3)],
        at([first, second, third]),
    )
    assert [m.to_stage for m in slow.moves] == ["talks", "calls", "talks"]


def entering(enters: str) -> Playbook:
    source = text("live, grown", f"enters: {enters}\n").replace("name: sales", "name: grow")
    return parse_playbook(source, "grow.yaml")


def test_the_playbook_and_the_stage_are_known() -> None:
    sales = chain(OLD)[0]
    good = entering("{playbook: sales, stage: won}")
    assert succession(good, {"sales": sales}) == {}
    for enters, told in (
        ("{playbook: sale, stage: won}", "no playbook 'sale' is active. Did you mean 'sales'?"),
        (
            "{playbook: sales, stage: win}",
            "the playbook 'sales' has no stage 'win'. Did you mean 'won'?",
        ),
        ("{playbook: grow, stage: live}", "in a circle: grow > grow"),
    ):
        with pytest.raises(SourceError) as refused:
            succession(entering(enters), {"sales": sales})
        assert told in str(refused.value), enters
        assert str(refused.value).startswith("grow.yaml:")


def test_a_circle_over_several_is_refused() -> None:
    grow = entering("{playbook: sales, stage: won}")
    source = text(extra="enters: {playbook: grow, stage: grown}\n")
    with pytest.raises(SourceError, match="in a circle: sales > grow > sales"):
        succession(parsed(source), {"sales": chain(OLD)[0], "grow": grow})


def test_it_comes_after_the_one_it_is_entered_from() -> None:
    grow = entering("{playbook: sales, stage: won}")
    assert list(in_order({"grow": grow, "sales": chain(OLD)[0]})) == ["sales", "grow"]


def books_with(*sales: str) -> list[dict[str, Playbook]]:
    grow = following(entering("{playbook: sales, stage: won}"), None, 1, {})
    return [in_order({"grow": grow, "sales": p}) for p in chain(*sales)]


def test_a_journey_begins_where_the_other_stands() -> None:
    [books] = books_with(OLD)
    told = [event("to.grown", 0), event("to.won", 1), event("x", 2)]
    for many, began in ((1, False), (2, True)):
        whole = funnel.refold([(e, 1) for e in told[:many]], lambda _: books)
        assert whole.lead is not None
        assert ("grow/main" in whole.lead.journeys) == began
    whole = funnel.refold([(e, 1) for e in told], lambda _: books)
    assert whole.lead is not None
    assert whole.lead.journeys["grow/main"].started_at == told[1].time
    assert "grow" in whole.lead.scoring


def test_each_deal_by_itself() -> None:
    [books] = books_with(OLD)
    told = [
        event("to.won", 0, deal="one"),
        event("to.talks", 1, deal="two"),
        event("to.won", 2, deal="two"),
    ]
    for many, there in ((2, {"grow/one"}), (3, {"grow/one", "grow/two"})):
        lead = funnel.refold([(e, 1) for e in told[:many]], lambda _: books).lead
        assert lead is not None
        assert {n for n in lead.journeys if n.startswith("grow")} == there


def test_a_move_by_hand_enters_too() -> None:
    [books] = books_with(OLD)
    hand = event(MOVED_BY_HAND, 1, source=SOURCE, to="won", playbook="sales", reason="r")
    lead = funnel.refold([(event("x", 0), 1), (hand, 1)], lambda _: books).lead
    assert lead is not None
    assert lead.journeys["grow/main"].stage == "live"


def test_customers_of_before_enter_when_they_hear_of_it() -> None:
    [books] = books_with(OLD)
    only = {"sales": books["sales"]}
    heard = event(PLAYBOOK_PUBLISHED, 5, source=SOURCE, playbook="grow", version=1)
    lead = funnel.refold(
        [(event("to.won", 0), 1), (heard, 2)], lambda epoch: only if epoch == 1 else books
    ).lead
    assert lead is not None
    assert lead.journeys["grow/main"].entered_at == heard.time


def test_the_stage_it_is_entered_from_may_have_another_name() -> None:
    books = books_with(OLD, text("new, talks, gained", "migrate: {won: gained}\n"))
    lead = funnel.refold(
        [(event("x", 0), 1), (event("to.gained", 1), 2)], lambda epoch: books[epoch - 1]
    ).lead
    assert lead is not None
    assert lead.journeys["grow/main"].stage == "live"


def test_a_name_only_starts_nothing_anew() -> None:
    versions = chain(OLD, RENAMED)
    before = funnel.refold([(event("to.talks", 0), 1)], at(versions))
    whole = funnel.refold([(event("to.talks", 0), 1), (event("x", 90), 2)], at(versions))
    assert before.lead is not None
    assert whole.lead is not None
    old, new = (f.lead.journeys["sales/main"] for f in (before, whole) if f.lead)
    assert (new.stage, new.furthest, new.version) == ("calls", "calls", 2)
    assert (new.entered_at, new.offer, new.asked_at) == (
        old.entered_at,
        old.offer,
        old.asked_at,
    )
    move = whole.moves[-1]
    assert (move.from_stage, move.to_stage, move.rule) == ("talks", "calls", "migrate")
    assert (move.role, move.previous_role, move.offer, move.skipped) == ("b", "b", None, [])
    assert move.explanation == (
        "Now in The calls: The talks is gone since version 2 of the playbook. The same people go on, "
        "and its time there counts on."
    )


def test_an_open_handoff_waits_on() -> None:
    versions = chain(
        text(talks="c"), text("new, calls, won", "migrate: {talks: calls}\n", calls="c")
    )
    whole = funnel.refold([(event("to.talks", 0), 1), (event("x", 90), 2)], at(versions))
    assert whole.lead is not None
    offer = whole.lead.journeys["sales/main"].offer
    assert offer is not None
    assert offer.is_open
    assert [h.event.type for h in whole.handed] == ["to.talks"]


def test_another_role_is_a_move_like_any_other() -> None:
    versions = chain(OLD, text("new, calls, won", "migrate: {talks: calls}\n", calls="c"))
    whole = funnel.refold([(event("to.talks", 0), 1), (event("x", 90), 2)], at(versions))
    assert whole.lead is not None
    journey, move = whole.lead.journeys["sales/main"], whole.moves[-1]
    assert journey.entered_at == START + timedelta(minutes=90)
    assert (move.role, move.previous_role) == ("c", "b")
    assert move.offer is not None
    assert journey.offer is move.offer
    assert move.explanation == (
        "Moved from The talks to The calls because version 2 of the playbook has no such stage any more."
    )


def test_an_open_handoff_to_a_role_that_goes_is_withdrawn() -> None:
    versions = chain(text(talks="c"), text("new, calls, won", "migrate: {talks: calls}\n"))
    whole = funnel.refold([(event("to.talks", 0), 1), (event("x", 90), 2)], at(versions))
    assert [(h.offer.state, h.offer.reason) for h in whole.handed] == [
        ("offered", None), ("withdrawn", "its stage is gone from the playbook"),
    ]  # fmt: skip


def test_who_missed_several_versions_goes_all_the_way() -> None:
    versions = chain(OLD, RENAMED, text("new, chats, won", "migrate: {calls: chats}\n"))
    whole = funnel.refold([(event("to.talks", 0), 1), (event("to.won", 90), 3)], at(versions))
    assert [(m.from_stage, m.to_stage, m.version) for m in whole.moves] == [
        ("new", "talks", 1), ("talks", "chats", 3), ("chats", "won", 3),
    ]  # fmt: skip


def test_a_name_that_comes_back_means_another_stage() -> None:
    """Who stood in the first `talks` goes to `calls`; who enters the second one stays there."""
    versions = chain(OLD, RENAMED, text("new, calls, talks, won"))
    asleep = funnel.refold([(event("to.talks", 0), 1), (event("x", 1), 3)], at(versions))
    fresh = funnel.refold([(event("to.talks", 0), 3), (event("x", 1), 3)], at(versions))
    for whole, stage in ((asleep, "calls"), (fresh, "talks")):
        assert whole.lead is not None
        assert whole.lead.journeys["sales/main"].stage == stage


def test_held_moves_and_the_furthest_stage_have_the_new_names() -> None:
    gate = "responsible: b, gate: {reason: true}"
    gated = OLD.replace(
        "goal: g, responsible: b, alerts: b}\n  won", "goal: g, alerts: b, " + gate + "}\n  won"
    )
    assert gated != OLD
    versions = chain(gated, RENAMED)
    whole = funnel.refold([(event("to.talks", 0), 1), (event("x", 1), 2)], at(versions))
    assert whole.lead is not None
    assert [m.to_stage for m in whole.moves] == ["calls"], "the gate is gone: the held move is made"
    back = funnel.refold(
        [(event("to.talks", 0), 1), (event("back.new", 1), 1), (event("x", 2), 2)],
        at(chain(OLD, RENAMED)),
    )
    assert back.lead is not None
    journey = back.lead.journeys["sales/main"]
    assert (journey.stage, journey.furthest) == ("new", "calls")
    assert len(back.moves) == 2, "who only was there once is not moved"


def test_a_clock_that_names_the_old_stage_still_stands() -> None:
    versions = chain(
        OLD + "clocks: [{key: slow, title: Slow, stages: [talks], within: 1h}]\n",
        RENAMED + "clocks: [{key: slow, title: Slow, stages: [calls], within: 1h}]\n",
    )
    since = START.isoformat()
    rang = event(CLOCK_FIRED, 60, source=SOURCE, playbook="sales", clock="slow", kind="stage",
                 stage="talks", since=since, step="due", role="b")  # fmt: skip
    whole = funnel.refold([(event("to.talks", 0), 1), (rang, 2)], at(versions))
    assert [r.event for r in whole.rings] == [rang]
    assert [m.to_stage for m in whole.moves] == ["talks", "calls"]


def test_a_move_by_hand_to_the_old_name_goes_to_the_new() -> None:
    hand = event(MOVED_BY_HAND, 1, source=SOURCE, to="talks", playbook="sales", reason="r")
    whole = funnel.refold([(event("x", 0), 1), (hand, 2)], at(chain(OLD, RENAMED)))
    assert [m.to_stage for m in whole.moves] == ["calls"]


def test_a_late_event_comes_into_the_past_as_it_was() -> None:
    """Recorded under version 2, but before an event of version 1: the old rules find it."""
    late, after = event("to.talks", 5), event("to.won", 10)
    versions = chain(OLD, RENAMED)
    whole = funnel.refold([(event("x", 0), 1), (after, 1), (late, 2)], at(versions))
    assert [(m.to_stage, m.version) for m in whole.moves] == [("talks", 1), ("won", 1)]


def test_each_is_folded_under_the_oldest_from_there_on() -> None:
    told = [(event("a", 0), 2), (event("b", 1), 5), (event("c", 2), 3), (event("d", 3), 4)]
    assert [epoch for _, epoch in funnel.in_place(reversed(told))] == [2, 3, 3, 4]
    assert funnel.in_place([]) == []


TYPES = ("to.talks", "to.calls", "to.chats", "to.won", "back.new", "x")
VERSIONS = chain(
    OLD, RENAMED, text("new, chats, won", "migrate: {calls: chats}\n", chats="c"),
    text("new, talks, chats, won"),
)  # fmt: skip


@given(
    st.lists(
        st.tuples(st.sampled_from(TYPES), st.integers(0, 30)), min_size=1, max_size=12, unique=True
    ),
    st.data(),
)
def test_one_by_one_and_all_at_once_come_to_the_same(
    told: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Whatever comes late, and whatever is renamed meanwhile: incremental fold = re-fold (I4)."""
    arrivals = data.draw(st.permutations([event(type, minute) for type, minute in told]))
    epoch, recorded, lead = 1, list[tuple[LeadEvent, int]](), None
    moves: list[funnel.Move] = []
    for arrival in arrivals:
        epoch = min(epoch + data.draw(st.sampled_from((0, 0, 1))), len(VERSIONS))
        recorded.append(
            (arrival, epoch)
        )  # as the lane: epochs never fall in the order of recording
        if lead is None or arrival.place > lead.last:
            folded = funnel.fold(at(VERSIONS)(epoch), lead, arrival)
            lead = folded.lead
            moves += folded.moves
        else:
            late = funnel.refold(recorded, at(VERSIONS))
            lead, moves = late.lead, late.moves
    whole = funnel.refold(data.draw(st.permutations(recorded)), at(VERSIONS))
    assert (lead, moves) == (whole.lead, whole.moves)
    assert lead is not None
    assert all(a.to_stage == b.from_stage for a, b in pairwise(moves)), "an unbroken way"
    journey = lead.journeys["sales/main"]
    # The epoch of the newest event is the newest of all, unless it came before others did.
    assert journey.stage in VERSIONS[funnel.in_place(recorded)[-1][1] - 1].stages
