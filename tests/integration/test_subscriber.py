"""A subscriber that knows docs/events.md only has the same leads, journeys and histories as the database."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from services.contracts.events import MAIN, MERGED_BY_HAND, LeadEvent
from tests.integration.test_merging import by_hand, live, part, said
from tests.integration.wired import START, TYPES, Wired, clean, wired

PEOPLE = 4


class Subscriber:
    """Does what "What a reader must do" and "Merges" of docs/events.md say, and no more."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.records: dict[str, dict[str, Any]] = {}
        self.replaced: set[str] = set()
        self.parts: dict[str, str] = {}

    def hear(self, message: dict[str, Any]) -> None:
        """Take one published event."""
        if message["type"] in ("baton.lead.merged.v1", "baton.lead.unmerged.v1"):
            if message["type"] == "baton.lead.merged.v1":
                self.parts[message["merged"]] = message["survivor"]
            else:
                self.parts.pop(message["merged"], None)
            return
        if message["transition_id"] in self.seen:
            return
        self.seen.add(message["transition_id"])
        self.records[message["transition_id"]] = message
        self.replaced.update(message["replaces"])

    def _of_living(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for record in self.records.values():
            if record["lead"]["id"] not in self.parts:
                found.setdefault(record["journey"]["id"], []).append(record)
        return {id: sorted(r, key=lambda m: m["sequence"]) for id, r in found.items()}

    def stages(self) -> dict[str, str]:
        """Where each journey stands: the ``to`` of its newest record."""
        return {
            id: records[-1]["to"]
            for id, records in self._of_living().items()
            if not records[-1].get("ended")
        }

    def ended(self) -> set[str]:
        """The journeys that are no more, or have begun again without a record."""
        return {id for id, records in self._of_living().items() if records[-1].get("ended")}

    def histories(self) -> dict[str, list[tuple[str, str]]]:
        """Each journey's records that hold."""
        return {
            id: held
            for id, records in self._of_living().items()
            if (held := [
                (r["from"], r["to"]) for r in records
                if r["transition_id"] not in self.replaced and r["from"] != r["to"]
            ])
        }  # fmt: skip


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Wired]:
    async with wired(database_url) as w:
        yield w


def told(chance: random.Random, request: int, n: int) -> LeadEvent:
    """What some tool says in the `request`: late or not, of one identity or two, of a shared phone too."""
    person = chance.randrange(PEOPLE)
    mine: list[dict[str, Any]] = [
        {"email": f"p{person}@x.example"}, {"external_ids": {"crm": f"c{person}"}},
        {"anonymous_id": f"a{person}"}, {"phone": f"+49 30 90182{person % 2}"},
    ]  # fmt: skip
    one, other = chance.sample(mine, 2)
    data = one | other if chance.random() < 0.3 else one
    made = said(
        chance.choice(TYPES), chance.randrange(60), id=f"e{n}", reason="r",
        deal=chance.choice([MAIN, MAIN, "D-1", "D-2"]), employees=chance.choice([5, 300, 4000]),
        **data,
    )  # fmt: skip
    return msgspec.structs.replace(made, recorded_at=START + timedelta(hours=2, seconds=request))


async def regroup(it: Wired, chance: random.Random) -> None:
    """Merge two leads by hand, or undo some merge, whichever came first."""
    leads = await live(it)
    merged = await it.pool.fetch(
        "SELECT merged::text FROM stage.merges WHERE undone_at IS NULL ORDER BY id"
    )
    if merged and chance.random() < 0.6:
        await part(it, chance.choice(merged)["merged"])
    elif len(leads) > 1:
        await it.lane.submit_alone(by_hand(MERGED_BY_HAND, *chance.sample(leads, 2)))


async def owner_of_some_key(it: Wired) -> list[str]:
    """Events of a lead that owns none of what they name, and identities of one that no event names."""
    found: list[str] = []
    rows = await it.pool.fetch("SELECT kind, value, lead_id::text FROM stage.identities")
    owned = {(k, v.replace("+4930", "+49 30 ")): lead for k, v, lead in rows}
    named: set[tuple[str, str, str]] = set()
    for id, data, lead in await it.pool.fetch(
        "SELECT id, data, lead_id::text FROM stage.events WHERE source = '/t'"
    ):
        keys = said("x", 0, **msgspec.json.decode(data)).identities
        named |= {(k, v, lead) for k, v in keys}
        if lead not in {owned.get(key) for key in keys}:
            found.append(f"event {id}")
    return found + [f"{k} {v}" for (k, v), lead in owned.items() if (k, v, lead) not in named]


@pytest.mark.parametrize("seed", [0, 1, 2, 11, 30, 53])
async def test_who_follows_the_docs_knows_what_the_database_knows(it: Wired, seed: int) -> None:
    chance = random.Random(seed)
    heard = 0
    subscriber = Subscriber()
    for n in range(60):
        if n > 8 and chance.random() < 0.25:
            await regroup(it, chance)
        else:
            size = chance.randrange(1, 4)
            await it.lane.submit([told(chance, n, n * 3 + i) for i in range(size)])
        messages = await it.messages()
        for message in messages[heard:]:
            subscriber.hear(message)
        heard = len(messages)
        stored = await it.pool.fetch(
            "SELECT id::text, stage FROM stage.journeys WHERE sequence > 0"
        )
        stages = {r["id"]: r["stage"] for r in stored}
        assert {stages.pop(id, "lead") for id in subscriber.ended()} <= {"lead"}
        assert subscriber.stages() == stages
        histories: dict[str, list[tuple[str, str]]] = {}
        for r in await it.transitions():
            if str(r["lead_id"]) not in subscriber.parts:
                histories.setdefault(str(r["journey_id"]), []).append(
                    (r["from_stage"], r["to_stage"])
                )
        assert subscriber.histories() == histories
        assert await owner_of_some_key(it) == []
    assert await it.pool.fetchval("SELECT count(*) FROM stage.merges WHERE undone_at IS NOT NULL")
    assert subscriber.parts == {
        r["id"]: r["into"]
        for r in await it.pool.fetch(
            "SELECT id::text, merged_into::text AS into FROM stage.leads WHERE merged_into IS NOT NULL"
        )
    }
    await clean(it.url)
