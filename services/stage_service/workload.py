"""Who holds how many journeys, who is there, and whose turn is next. Reads only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.calendars import away_at, is_open
from services.contracts.team import Person, Team
from services.stage_service.rotation import Fairness, Turns
from services.stage_service.store import Connection


class Workload(msgspec.Struct):
    """Open journeys by person, and the turns by role."""

    held: dict[str, int]
    turns: dict[str, Turns]


async def workload(connection: Connection) -> Workload:
    """Read what people hold, and the rotations."""
    held = await connection.fetch(
        "SELECT holder, count(*) AS n FROM stage.journeys WHERE holder IS NOT NULL GROUP BY holder"
    )
    rotations = await connection.fetch("SELECT role, counts, fairness FROM stage.rotations")
    decode = msgspec.json.decode
    return Workload(
        {r["holder"]: r["n"] for r in held},
        {
            r["role"]: Turns(decode(r["counts"]), msgspec.json.decode(r["fairness"], type=Fairness))
            for r in rotations
        },
    )


def state_of(person: Person, team: Team, load: Workload, at: datetime) -> dict[str, Any]:
    """Give what a person holds and got, and whether they are there at the moment `at`."""
    away = away_at(person, at)
    return {
        "open_journeys": load.held.get(person.id, 0),
        "given": {
            r: load.turns[r].given.get(person.id, 0) for r in person.roles if r in load.turns
        },
        "next_for": [
            role for role in person.roles if next_of(role, team, load.turns, at) == person.id
        ],
        "is_open": is_open(person, at),
        "away_until": away.end if away else None,
        "stand_in": away.stand_in if away else None,
    }


def next_of(role: str, team: Team, turns: Mapping[str, Turns], at: datetime) -> str | None:
    """Give whose turn it is for `role` among all who are not away, by weight; None: nobody's.

    A playbook's rule may choose among fewer people.
    """
    there = [
        (p.id, p.weight)
        for p in team.by_role.get(role, ())
        if p.weight > 0 and away_at(p, at) is None
    ]
    if not there:
        return None
    return copy.deepcopy(turns.get(role, Turns())).take(there)
