"""Who gets the next journey of a role: fair round robin by weight. Pure.

Each person of a role has a count of journeys given. The next goes to the eligible person whose count,
after it, would be smallest for the weight; ties go by the roster's order. So after any run each
person's share differs from the weight by at most one lead. Somebody new starts level with the others
instead of being flooded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.contracts.team import Person, Team

TERRITORY_ATTRIBUTES = ("territory", "region", "country")


def eligible(team: Team, role: str, attributes: Mapping[str, Any]) -> Sequence[Person]:
    """Give the people of `role` for a lead: those of its territory, else those without one, else all.

    The territory is the lead's ``territory``, ``region`` or ``country``, compared without case.
    """
    people = team.by_role.get(role, ())
    asked = {
        str(attributes[name]).casefold() for name in TERRITORY_ATTRIBUTES if attributes.get(name)
    }
    if asked:
        local = [p for p in people if asked & {t.casefold() for t in p.territories}]
        if local:
            return local
    return [p for p in people if not p.territories] or people


def choose(people: Sequence[Person], counts: dict[str, int]) -> Person | None:
    """Choose who is next among `people` and add one to that person's entry in `counts`.

    None when nobody is eligible.
    """
    weighted = [p for p in people if p.weight > 0]
    if not weighted:
        return None
    known = [counts[p.id] / p.weight for p in weighted if p.id in counts]
    level = min(known, default=0.0)
    for person in weighted:
        counts.setdefault(person.id, int(level * person.weight))
    chosen = min(weighted, key=lambda p: (counts[p.id] + 1) / p.weight)
    counts[chosen.id] += 1
    return chosen
