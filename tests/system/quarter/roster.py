"""Twenty people in four time zones, made from a seed: hours, holidays, vacations, preferences, weights.

Gives the documents that the roster takes (``docs/schemas``: team), and who leaves and joins when.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from services.baton.places import PLAYBOOKS

BEGIN = date(2028, 2, 1)
"""A quarter with a leap day, and with the clocks of three of the four zones put on or back."""
DAYS = 90
END = BEGIN + timedelta(days=DAYS)

ZONES = (
    ("America/Los_Angeles", "US-CA"),
    ("Europe/Berlin", "DE-BE"),
    ("Asia/Singapore", "SG"),
    ("Australia/Sydney", "AU-NSW"),
)
ROLES = (
    ("lead_agent",) * 8 + ("ae",) * 6 + ("csm",) * 3 + ("marketing",) + ("sales_leadership",) * 2
)
WEEKS = (
    {d: ["09:00-17:30"] for d in ("mon", "tue", "wed", "thu", "fri")},
    {d: ["08:00-12:00", "13:00-17:00"] for d in ("mon", "tue", "wed", "thu", "fri")},
    {d: ["10:00-18:30"] for d in ("tue", "wed", "thu", "fri")} | {"sat": ["10:00-14:00"]},
)
LEAVES = ("lead-agent-5", 40)
"""Who leaves, and on which day of the quarter."""
JOINS = 55
"""On which day somebody joins."""


@dataclass(frozen=True)
class Change:
    """A change of the roster at `at`: a document to put, or the id of who leaves."""

    at: datetime
    document: dict[str, Any] | None = None
    leaves: str | None = None


def people(seed: int, hook: str | None = None) -> list[dict[str, Any]]:
    """Give the documents of the twenty who are here at the beginning.

    `hook` is the address of a receiver of webhooks; some get their alerts there, by their id.
    """
    chance = random.Random(seed)
    found: list[dict[str, Any]] = []
    counted: dict[str, int] = {}
    for place, role in enumerate(ROLES):
        counted[role] = counted.get(role, 0) + 1
        id = f"{role.replace('_', '-')}-{counted[role]}"
        found.append(_person(chance, id, role, ZONES[place % len(ZONES)], hook))
    by_role: dict[str, list[str]] = {}
    for document in found:
        by_role.setdefault(document["roles"][0], []).append(document["id"])
    for document in found:
        _vacations(chance, document, by_role[document["roles"][0]])
    _oddities({d["id"]: d for d in found})
    return found


def changes(seed: int, hook: str | None = None) -> list[Change]:
    """Give who leaves and who joins, in the order of time."""
    chance = random.Random(seed + 1)
    id, day = LEAVES
    newcomer = _person(chance, "newcomer", "lead_agent", ZONES[1], hook)
    return [
        Change(_noon(day), leaves=id),
        Change(_noon(JOINS), document=newcomer),
    ]


def _noon(day: int) -> datetime:
    return datetime(BEGIN.year, BEGIN.month, BEGIN.day, 12, tzinfo=UTC) + timedelta(days=day)


def _person(
    chance: random.Random, id: str, role: str, place: tuple[str, str], hook: str | None
) -> dict[str, Any]:
    zone, region = place
    by_hook = hook is not None and chance.random() < 0.3
    person: dict[str, Any] = {
        "id": id, "name": id.replace("-", " ").title(), "email": f"{id}@baton.example",
        "roles": [role], "time_zone": zone, "holidays": region, "hours": chance.choice(WEEKS),
        "weight": chance.choice([1.0, 1.0, 1.5, 2.0]),
        "channels": ["inbox", f"webhook+{hook}/{id}" if by_hook else "email"],
        "alerts": {
            "hours": chance.choice(["working", "working", "quiet-only"]),
            "deliver": chance.choice(["immediate", "immediate", "immediate", "hourly"]),
            "per_hour_max": chance.choice([10, 30]),
        },
    }  # fmt: skip
    if chance.random() < 0.7:
        person["quiet"] = [chance.choice(["20:00-07:30", "21:30-07:00"])]
    return person


def _vacations(chance: random.Random, document: dict[str, Any], colleagues: list[str]) -> None:
    """Give one or two weeks off, with a stand-in of the same role or without any."""
    if chance.random() < 0.2:
        return
    start = BEGIN + timedelta(days=chance.randrange(3, DAYS - 20))
    away: dict[str, Any] = {
        "from": start.isoformat(),
        "until": (start + timedelta(days=chance.choice([4, 6, 13]))).isoformat(),
    }
    others = [c for c in colleagues if c not in (document["id"], LEAVES[0])]
    if others and chance.random() < 0.6:
        away["stand_in"] = chance.choice(others)
    document["away"] = [away]


def _oddities(by_id: dict[str, dict[str, Any]]) -> None:
    """Set what must be in every quarter, whatever the seed: each way to want alerts, each kind of absence."""
    by_id["lead-agent-1"]["leads"] = ["lead_agent"]
    by_id["ae-1"]["leads"] = ["ae"]
    del by_id["lead-agent-2"][
        "hours"
    ]  # without working hours: there at any time but when it is quiet
    by_id["lead-agent-2"]["quiet"] = ["23:00-06:00"]
    by_id["lead-agent-3"]["alerts"] = {"deliver": "hourly"}
    by_id["csm-1"]["alerts"] = {"deliver": "daily", "daily_at": "10:30"}
    by_id["ae-2"]["capacity"] = 150
    by_id["ae-3"]["alerts"] = {"hours": "always"}
    by_id["lead-agent-4"]["away"] = [{"from": "2028-02-28", "until": "2028-03-03",
                                      "stand_in": "lead-agent-6"}]  # fmt: skip
    by_id["lead-agent-6"].pop("away", None)
    by_id["lead-agent-7"]["away"] = [{"from": "2028-03-27", "until": "2028-04-05"}]


ROUTING = """
routing:
  lead_agent:
    rules:
      - {key: all, to: everyone}
    fallback: {person: sales-leadership-1}
  ae:
    rules:
      - {key: region, to: {territory: lead.region}}
      - {key: rest, to: everyone}
    fallback: {person: sales-leadership-1}
  csm:
    rules:
      - {key: all, to: everyone, strategy: round_robin}
    fallback: {person: sales-leadership-2}
"""


def playbook() -> str:
    """Give the sales playbook with a routing that says who is responsible for what nobody gets."""
    return (PLAYBOOKS / "sales.yaml").read_text(encoding="utf-8") + ROUTING
