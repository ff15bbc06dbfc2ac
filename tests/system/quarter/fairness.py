"""The fairness bound, checked from what was decided: nobody is a whole lead off their share."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime
from typing import Any

import msgspec

from services.contracts.events import OWNER_CHANGED
from tests.system.quarter.evidence import Quarter


def check_fair(it: Quarter, role: str, transitions: list[Any], weighted: bool) -> Counter[str]:
    """While the same people were there, each one's share of the turns was within one lead of their weight.

    A turn is the person's whose it was, also where somebody stood in. Who was there is read from the roster.
    """
    found: Counter[str] = Counter()
    run: frozenset[str] = frozenset()
    got: Counter[str] = Counter()
    for at, decided, without, said in _decisions(it, role, transitions):
        there = {
            p.document["id"]: float(p.document.get("weight", 1)) if weighted else 1.0
            for p in it.book.of_role(role, at)
            if (taker := it.book.taker(p, at)) and taker.document["id"] not in without
        }
        if not there:
            found["fallback"] += len(decided)
            continue
        if there.keys() != run:
            run, got = frozenset(there), Counter()
            found["runs"] += 1
        got.update(decided)
        found["turns"] += len(decided)
        total, weights = sum(got.values()), sum(there.values())
        assert got.keys() <= there.keys(), (
            f"{decided} at {at}, without {without}, of {there}: {said}"
        )
        for id, weight in there.items():
            off = got[id] - total * weight / weights
            assert abs(off) < 1, f"{id} is {off:+.2f} leads off their share at {at}: {got}"
        found["longest run"] = max(found["longest run"], total)
    return found


def _decisions(
    it: Quarter, role: str, transitions: list[Any]
) -> list[tuple[datetime, list[str], frozenset[str], str]]:
    """Give whose turns were taken when, of whom some could not be chosen, and what was said; in order."""
    by_name: dict[str, str] = {}
    for reading in it.book.everybody():
        by_name[reading.document["name"]] = reading.document["id"]
    together: dict[datetime, list[str]] = defaultdict(list)
    for row in transitions:
        decision = msgspec.json.decode(row["why"]).get("routing", {}).get(role)
        if decision is not None and decision["rule"] is not None:
            together[row["recorded_at"]].append(_turn(decision["why"], by_name))
    found = [(at, turns, frozenset[str](), "") for at, turns in together.items()]
    for m in it.of_type(OWNER_CHANGED):
        if m.body["role"] == role and "no rule found" not in m.body["why"]:
            at = m.moment("recorded_at")
            asked = it.without[m.body["lead"]["id"]]
            without = max((each for each in asked if each[0] <= at), key=lambda each: each[0])[1]
            said = f"{m.body['why']}; {m.body['reason']}; asked {asked}"
            found.append((at, [_turn(m.body["why"], by_name)], without, said))
    return sorted(found, key=lambda each: each[0])


def _turn(why: str, by_name: dict[str, str]) -> str:
    """Give whose turn it was, from what routing says of its choice."""
    name, _, rest = why.partition(": ")
    if rest.startswith("stands in for "):
        name = rest.removeprefix("stands in for ").partition(" (")[0]
    return by_name[name]
