"""Whatever arrives late, twice, and in whatever batches: all ends as if it had come in order (I2, I6, I7).

Every example goes through the lane and the batch on a real PostgreSQL and is compared with the fold of
each person's events in the order of their places. `BATON_CONVERGENCE_EXAMPLES` says how many there are in
all: 2,000 when it is not set; the nightly run takes 20,000.
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

from services.baton.verify import verify_database
from services.contracts.events import ASSIGNED_BY_HAND, LeadEvent
from services.stage_service import funnel, store
from services.stage_service.funnel import Move, journey_name
from services.stage_service.journal import journey_id
from services.stage_service.playbook import Playbook
from services.stage_service.store import unpack_record
from tests.integration.converging import History, addressed, histories, people_of
from tests.integration.test_lane import Wired, clean, wired

EXAMPLES = int(os.environ.get("BATON_CONVERGENCE_EXAMPLES", "2000"))
# What an example is rich in: a quarter of all examples each.
KINDS = {
    "people": ("say", "say", "visit", "identify", "alias", "facts"),
    "hands": ("say", "say", "say", "move", "assign", "answer", "clock"),
    "deals": ("say", "say", "deal", "deal", "facts", "move"),
    "all": ("say", "say", "facts", "visit", "identify", "alias", "deal", "move", "assign", "answer",
            "clock"),
}  # fmt: skip
_numbers = itertools.count()


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Wired]:
    """A lane; what all examples left behind is verified at the end."""
    async with wired(database_url) as w:
        yield w
    await clean(database_url)


async def arrive(it: Wired, history: History) -> None:
    """Send the batches; what is about a lead by its id waits until that lead is there, as it does in life."""
    lead_of: dict[int, str] = {}
    for batch in history.batches:
        late = [n for n in batch if history.said[n].target is not None]
        first = [n for n in batch if history.said[n].target is None]
        await _send(it, [(n, history.said[n].event) for n in first], lead_of)
        known = [(n, history.said[n].target) for n in late]
        await _send(it, [
            (n, addressed(history.said[n], await _living(it, lead_of[target])))
            for n, target in known if target in lead_of
        ], lead_of)  # fmt: skip
    left = [n for n, s in enumerate(history.said) if s.target is not None and n not in lead_of]
    for n in left:
        target = history.said[n].target
        assert target is not None
        event = addressed(history.said[n], await _living(it, lead_of[target]))
        await _send(it, [(n, event)], lead_of)


async def _living(it: Wired, lead: str) -> str:
    while into := await it.pool.fetchval(
        "SELECT merged_into::text FROM stage.leads WHERE id = $1", lead
    ):
        lead = into
    return lead


async def _send(it: Wired, events: list[tuple[int, LeadEvent]], lead_of: dict[int, str]) -> None:
    if not events:
        return
    for (n, _), outcome in zip(
        events, await it.lane.submit([e for _, e in events]), strict=True
    ):
        assert outcome.lead_id is not None
        lead_of[n] = outcome.lead_id


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


_IDENTITIES = """
SELECT kind, value, lead_id::text FROM stage.identities WHERE strpos(value, $1) > 0
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


async def check(it: Wired, history: History, mark: str, began: int) -> None:
    """What is recorded is what the events fold to in order; nobody was alerted twice of one transition."""
    playbooks = it.shelf.at(it.shelf.epoch)
    owned: dict[str, set[tuple[str, str]]] = {}
    for kind, value, lead in await it.pool.fetch(_IDENTITIES, mark):
        owned.setdefault(lead, set()).add((kind, value))
    people = people_of(history.said)
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
        whole = funnel.refold((e, playbooks) for e in events)
        expected, row = whole.lead, states[lead_id]
        assert expected is not None
        found = unpack_record(lead_id, row["state"]).lead
        assert _plain(found) == _plain(expected)
        score = funnel.score_of(expected, playbooks["sales"], expected.last[0])
        assert (row["fit"], row["intent"], row["email"]) == (score.fit, score.intent, expected.email)
        assert msgspec.json.decode(row["attributes"]) == _json(expected.attributes)
        for name, journey in expected.journeys.items():
            id = journey_id(lead_id, name)
            mine = [m for m in whole.moves if m.journey == name]
            there = journeys.pop(id)
            assert (there["stage"], there["furthest_stage"]) == (journey.stage, journey.furthest)
            assert (there["started_at"], there["entered_at"]) == (
                journey.started_at, journey.entered_at,
            )  # fmt: skip
            held = [p for p in past.get(lead_id, {}).get(id, []) if p.kind != "retraction"]
            assert [
                (*p.identity, p.visit_entered_at, p.role, p.skipped) for p in held
            ] == [moved(m) for m in mine]
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


def _json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("rich_in", KINDS)
@settings(
    max_examples=max(EXAMPLES // len(KINDS), 1), deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(data=st.data())
async def test_any_arrival_ends_as_the_events_in_order(
    it: Wired, rich_in: str, data: st.DataObject
) -> None:
    """Stages, history, scores, attributes, owners' roles; one alert a person and transition."""
    mark = f"m{next(_numbers)}z"
    history = data.draw(histories(mark, KINDS[rich_in]))
    began = await it.pool.fetchval("SELECT coalesce(max(id), 0) FROM bus.outbox")
    await arrive(it, history)
    await check(it, history, mark, began)
