"""Whatever arrives late, twice, and in whatever batches: all ends as if it had come in order (I2, I6, I7).

Every example goes through the lane and the batch on a real PostgreSQL and is compared with the fold of
each person's events in the order of their places. `BATON_CONVERGENCE_EXAMPLES` says how many there are in
all: when it is not set 2,000 in `make test-full`, a quarter of that in `make test`; the nightly run takes
20,000.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.contracts.events import ASSIGNED_BY_HAND, ENVELOPE_MEMBERS, MAIN, SOURCE, LeadEvent
from services.stage_service import funnel, store
from services.stage_service.funnel import Move, journey_name
from services.stage_service.journal import journey_id
from services.stage_service.offers import ANSWERS
from services.stage_service.playbook import Playbook
from services.stage_service.store import unpack_record
from tests.conftest import examples
from tests.integration.converging import Drawn, History, addressed, histories, people_of, read
from tests.integration.wired import Wired, clean, retried, wired

EXAMPLES = int(os.environ.get("BATON_CONVERGENCE_EXAMPLES", examples(2000)))
# What an example is rich in: a quarter of all examples each.
KINDS = {
    "people": ("say", "say", "visit", "identify", "alias", "facts"),
    "hands": ("say", "say", "say", "move", "assign", "answer", "clock"),
    "deals": ("say", "say", "deal", "deal", "facts", "move"),
    "all": ("say", "say", "facts", "visit", "identify", "alias", "deal", "move", "assign", "answer",
            "clock"),
}  # fmt: skip
AT_ONCE = 10
"""How many histories a run of the property holds, side by side in the same batches: a round trip for all."""
_numbers = itertools.count()


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Wired]:
    """A lane; what all examples left behind is verified at the end."""
    async with wired(database_url) as w:
        yield w
    await clean(database_url)


Which = tuple[int, int]
"""An event: the number of its history and its own."""


async def arrive(it: Wired, histories: list[History]) -> None:
    """Send the batches; what is about a lead by its id waits until that lead is there, as it does in life."""
    lead_of: dict[Which, str] = {}
    for batch in itertools.zip_longest(*(h.batches for h in histories), fillvalue=()):
        now = [(h, n) for h, numbers in enumerate(batch) for n in numbers]
        plain = [w for w in now if histories[w[0]].said[w[1]].target is None]
        await _send(it, [(w, histories[w[0]].said[w[1]].event) for w in plain], lead_of)
        await _address(it, histories, [w for w in now if w not in plain], lead_of)
    left = [
        (h, n) for h, history in enumerate(histories) for n, said in enumerate(history.said)
        if said.target is not None and (h, n) not in lead_of
    ]  # fmt: skip
    await _address(it, histories, left, lead_of)


async def _address(
    it: Wired, histories: list[History], which: list[Which], lead_of: dict[Which, str]
) -> None:
    """Send events of Baton's own about the leads that are there already."""
    known = [
        (w, said, lead_of[w[0], said.target]) for w in which
        if (said := histories[w[0]].said[w[1]]).target is not None and (w[0], said.target) in lead_of
    ]  # fmt: skip
    into: dict[str, str] = {}
    if known:
        into = dict(await it.pool.fetch(_MERGED))
    events: list[tuple[Which, LeadEvent]] = []
    for w, said, lead in known:
        while lead in into:
            lead = into[lead]
        events.append((w, addressed(said, lead)))
    await _send(it, events, lead_of)


async def _send(
    it: Wired, events: list[tuple[Which, LeadEvent]], lead_of: dict[Which, str]
) -> None:
    if not events:
        return
    outcomes = await retried(it.lane, [e for _, e in events])
    for (which, _), outcome in zip(events, outcomes, strict=True):
        assert outcome.lead_id is not None
        lead_of[which] = outcome.lead_id


def moved(move: Move) -> tuple[Any, ...]:
    """What history tells of a move."""
    return (*move.identity, move.visit_entered_at, move.role, move.skipped)


def asked_roles(
    playbook: Playbook, name: str, moves: list[Move], events: list[LeadEvent]
) -> set[str]:
    """The roles that a journey has owners for: who was responsible or told, or was given it by hand."""
    roles = {r for m in moves for r in (m.role, *playbook.stages[m.to_stage].alerts)}
    given = [e for e in events if e.type == ASSIGNED_BY_HAND]
    return roles | {
        e.data["role"] for e in given if journey_name(e.data["playbook"], e.deal) == name
    }


def last_told(playbook: Playbook, events: list[LeadEvent]) -> dict[str, Any]:
    """What is known of a lead: of each fact what the last event, by its place, that tells it says."""
    told: dict[str, tuple[Any, Any]] = {}
    for e in events:
        if e.source == SOURCE or e.type in ANSWERS:
            continue
        for name, value in e.data.items():
            is_deals = e.deal != MAIN and name in playbook.attributes["deal"]
            if value is None or name in (*ENVELOPE_MEMBERS, "reason") or is_deals:
                continue
            if name not in told or told[name][0] < e.place:
                told[name] = (e.place, value)
    return {name: value for name, (_, value) in told.items()}


_MERGED = "SELECT id::text, merged_into::text FROM stage.leads WHERE merged_into IS NOT NULL"
_IDENTITIES = """
SELECT kind, value, lead_id::text
FROM unnest($1::text[], $2::text[]) AS k(kind, value) JOIN stage.identities USING (kind, value)
"""
_JOURNEYS = """
SELECT id::text, stage, furthest_stage, started_at, entered_at, owners, held, deal FROM stage.journeys
WHERE lead_id = ANY($1::uuid[])
"""
_ALERTS = """
SELECT t.journey_id, t.from_stage, t.to_stage, t.occurred_at, t.event_source, t.event_id, t.rule,
  convert_from(o.value, 'UTF8')::jsonb -> 'alerts' AS alerts
FROM bus.outbox o JOIN stage.transitions t ON t.id = o.message_id::uuid
WHERE o.id > $1 AND o.topic = 'baton.transitions'
  AND convert_from(o.value, 'UTF8')::jsonb ? 'alerts'
"""


async def check(it: Wired, histories: list[History], began: int) -> None:
    """What is recorded is what the events fold to in order; nobody was alerted twice of one transition."""
    playbooks = it.shelf.at(it.shelf.epoch)
    people = [person for h in histories for person in people_of(h.said)]
    named = sorted({key for names, _ in people for key in names})
    owned: dict[str, set[tuple[str, str]]] = {}
    for kind, value, lead in await it.pool.fetch(
        _IDENTITIES, [k[0] for k in named], [k[1] for k in named]
    ):
        owned.setdefault(lead, set()).add((kind, value))
    assert sorted(map(sorted, owned.values())) == sorted(sorted(names) for names, _ in people)
    leads = list(owned)
    rows = await it.pool.fetch(
        "SELECT id::text, state, fit, intent, attributes, email FROM stage.leads WHERE id = ANY($1::uuid[])",
        leads,
    )
    states = {r["id"]: r for r in rows}
    journeys = {r["id"]: r for r in await it.pool.fetch(_JOURNEYS, leads)}
    async with it.pool.acquire() as connection:
        past = await store.history(connection, leads)
    for lead_id, names in owned.items():
        events = next(events for mine, events in people if mine == names)
        whole = funnel.refold(((e, it.shelf.epoch) for e in events), it.shelf.at)
        expected, row = whole.lead, states[lead_id]
        assert expected is not None
        found = unpack_record(lead_id, row["state"]).lead
        assert _plain(found) == _plain(expected)
        score = funnel.score_of(expected, playbooks["sales"], expected.last[0])
        assert (row["fit"], row["intent"], row["email"]) == (
            score.fit,
            score.intent,
            expected.email,
        )
        assert msgspec.json.decode(row["attributes"]) == last_told(playbooks["sales"], events)
        for name, journey in expected.journeys.items():
            id = journey_id(lead_id, name)
            mine = [m for m in whole.moves if m.journey == name]
            there = journeys.pop(id)
            assert (there["stage"], there["furthest_stage"]) == (journey.stage, journey.furthest)
            assert (there["started_at"], there["entered_at"]) == (
                journey.started_at, journey.entered_at,
            )  # fmt: skip
            held = [p for p in past.get(lead_id, {}).get(id, []) if p.kind != "retraction"]
            assert [(*p.identity, p.visit_entered_at, p.role, p.skipped) for p in held] == [
                moved(m) for m in mine
            ]
            roles = asked_roles(playbooks[journey.playbook], name, mine, events)
            assert set(msgspec.json.decode(there["owners"])) == roles
    assert journeys == {}
    told: Counter[tuple[Any, ...]] = Counter()
    for *which, alerts in await it.pool.fetch(_ALERTS, began):
        for wish in msgspec.json.decode(alerts):
            told[*which, (wish["person"] or {}).get("id"), wish["role"]] += 1
    assert [key for key, times in told.items() if times > 1] == []


def _plain(value: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("rich_in", KINDS)
@settings(
    max_examples=max(EXAMPLES // len(KINDS) // AT_ONCE, 1), deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(drawn=st.lists(histories(), min_size=AT_ONCE, max_size=AT_ONCE))
async def test_any_arrival_ends_as_the_events_in_order(
    it: Wired, rich_in: str, drawn: list[Drawn]
) -> None:
    """Stages, history, scores, attributes, owners' roles; one alert a person and transition."""
    marked = [read(each, f"m{next(_numbers)}z", KINDS[rich_in]) for each in drawn]
    began = await it.pool.fetchval("SELECT coalesce(max(id), 0) FROM bus.outbox")
    await arrive(it, marked)
    await check(it, marked, began)
