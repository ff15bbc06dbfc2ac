"""Any interleaving and any batching of what tools tell about people ends with the same leads (I2, I7)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.baton.verify import verify_database
from services.contracts.events import MAIN, MERGED_BY_HAND, LeadEvent
from tests.conftest import examples
from tests.integration.test_merging import by_hand, live, owned, part, said, snapshot
from tests.integration.wired import TYPES, Wired, wired

EMPTY = (
    "TRUNCATE stage.events, stage.leads, stage.identities, stage.journeys, stage.transitions, "
    "stage.rotations, stage.merges, stage.barriers, bus.outbox, bus.pending, bus.log"
)
# Each example is two runs on a database: a failing one is small enough to read without shrinking.
HELD_EXAMPLES = settings(
    max_examples=examples(40), deadline=None, phases=[p for p in Phase if p is not Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Wired]:
    async with wired(database_url) as w:
        yield w


def strong(person: int, n: int) -> dict[str, Any]:
    """One of a person's identities that name them alone: two addresses, three ids in two systems."""
    return [
        {"email": f"p{person}@x.example"}, {"email": f"p{person}.other@y.example"},
        {"external_ids": {"crm": f"c{person}"}}, {"external_ids": {"segment": f"s{person}"}},
        {"external_ids": {"segment": f"old{person}"}},
    ][n]  # fmt: skip


def weak(person: int, n: int) -> dict[str, Any]:
    """One of a person's browsers or their phone."""
    return [
        {"anonymous_id": f"a{person}"}, {"anonymous_id": f"b{person}"},
        {"phone": f"+49 30 90182{person}"},
    ][n]  # fmt: skip


def together(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both identities in one event's data; two ids of one system as a list."""
    both = {**one, **other}
    if "external_ids" in one and "external_ids" in other:
        ids: dict[str, Any] = {}
        for data in (one, other):
            for system, id in data["external_ids"].items():
                ids.setdefault(system, []).append(id)
        both["external_ids"] = {s: v if len(v) > 1 else v[0] for s, v in ids.items()}
    return both


people = st.integers(0, 2)
strongs = st.integers(0, 4)
# A browser or phone is seen with one address or id of its owner: which is the person's business.
partners = (0, 2, 0)
telling = st.one_of(
    st.tuples(st.just("track"), people, strongs, st.just(0)),
    st.tuples(st.just("visit"), people, st.integers(0, 2), st.just(0)),
    st.tuples(st.just("identify"), people, st.integers(0, 2), st.just(0)),
    st.tuples(st.just("alias"), people, strongs, strongs),
    st.tuples(st.just("mailbox"), people, strongs, st.just(0)),
)


def tell(kind: str, person: int, n: int, other: int) -> dict[str, Any]:
    """The identities of one event."""
    match kind:
        case "track":
            return strong(person, n)
        case "visit":
            return weak(person, n)
        case "identify":
            return together(weak(person, n), strong(person, partners[n]))
        case "mailbox":
            return {"email": "info@z.example", "external_ids": {"crm": f"c{person}"}}
        case _:
            one, two = strong(person, n), strong(person, other)
            if n != other and "email" in one and "email" in two:
                two = strong(person, 2)
            return together(one, two) if n != other else one


specs = st.lists(
    st.tuples(
        telling, st.sampled_from(TYPES), st.integers(0, 40), st.booleans(),
        st.sampled_from([MAIN, MAIN, "D-1"]), st.sampled_from([None, 3, 900]),
    ),
    min_size=2, max_size=22,
)  # fmt: skip


def events_of(drawn: list[Any]) -> list[LeadEvent]:
    """The events that `specs` describes."""
    return [
        said(type, minute, id=f"e{n}", deal=deal, **tell(*telling),
             **({"reason": "r"} if reason else {}), **({"employees": size} if size else {}))
        for n, (telling, type, minute, reason, deal, size) in enumerate(drawn)
    ]  # fmt: skip


def partition(events: list[LeadEvent]) -> set[frozenset[str]]:
    """Who belongs together, by joining what one event names; written without the code under test."""
    groups: list[set[str]] = []
    for event in events:
        keys = {f"{k} {v}" for k, v in event.identities}
        if len(keys) > 1:
            keys.discard("email info@z.example")
        keys = {k.replace(" +49 30 ", " +4930") for k in keys}
        joined = [g for g in groups if g & keys]
        groups = [g for g in groups if not g & keys] + [keys.union(*joined)]
    return {frozenset(g) for g in groups}


@HELD_EXAMPLES
@given(data=st.data(), drawn=specs)
async def test_any_interleaving_ends_with_the_same_people(
    it: Wired, data: st.DataObject, drawn: list[Any]
) -> None:
    events = events_of(drawn)
    await it.pool.execute(EMPTY)
    rest = list(data.draw(st.permutations(events + events[: len(events) // 3])))
    while rest:
        size = data.draw(st.integers(1, 6))
        await it.lane.submit(rest[:size])
        rest = rest[size:]
    report = await verify_database(it.url)
    assert report.findings == []
    assert await owned(it) == partition(events)
    found = await snapshot(it)
    await it.pool.execute(EMPTY)
    for event in sorted(events, key=lambda e: e.place):
        await it.lane.submit([event])
    assert await snapshot(it) == found
    assert (await verify_database(it.url)).findings == []


async def scoreless(it: Wired) -> list[Any]:
    """What is known of each live lead but for its points, which fade until its newest event."""
    return [(*row[:3], *row[5:]) for row in await snapshot(it)]


@HELD_EXAMPLES
@given(data=st.data(), drawn=specs)
async def test_a_merge_undone_leaves_all_as_it_was(
    it: Wired, data: st.DataObject, drawn: list[Any]
) -> None:
    """By hand, of any two leads, in any state; and what comes between goes to whom it names."""
    events = events_of(drawn)
    cut = data.draw(st.integers(0, len(events) - 1))
    await it.pool.execute(EMPTY)
    await it.lane.submit(events[: cut + 1])
    leads = await live(it)
    if len(leads) < 2:
        return
    before, people = await scoreless(it), await owned(it)
    one, other = sorted(data.draw(st.permutations(leads))[:2])
    outcome = await it.lane.submit_alone(by_hand(MERGED_BY_HAND, one, other))
    assert outcome.lead_id == one
    assert (await verify_database(it.url)).findings == []
    await part(it, other)
    assert (await verify_database(it.url)).findings == []
    assert (await scoreless(it), await owned(it)) == (before, people)
    # Merged again, with events that come while they are one lead.
    await it.lane.submit_alone(by_hand(MERGED_BY_HAND, one, other))
    for event in events[cut + 1 :]:
        await it.lane.submit([event])
    merged = await it.pool.fetchval(
        "SELECT count(*) FROM stage.merges WHERE merged = $1 AND undone_at IS NULL", other
    )
    assert merged == 1
    await part(it, other)
    assert other in await live(it)
    assert (await verify_database(it.url)).findings == []
