"""Whom a playbook names: people of its routing and ladders that the roster does not have.

A playbook is valid without them: the roster changes by itself, and what goes to nobody has its fallback,
or sales leadership. Most often it is a slip of the pen: so it is told, with who may have been meant. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from services.contracts.team import Team
from services.contracts.yaml_source import Node, nearest
from services.stage_service.playbook_clocks import LADDER
from services.stage_service.playbook_places import Places


def check_strangers(team: Team, places: Places) -> None:
    """Note each place of a playbook that names nobody of `team`."""
    roles = places.each("roles")
    for place in _rungs(places):
        if _text(place) not in (*LADDER, *roles, *team.by_role, *team.by_id):
            known = [*LADDER, *roles, *team.by_id]
            _refuse(place, known, "sales leadership hears of it instead")
    for place in _routed(places):
        if _text(place) not in team.by_id:
            _refuse(place, team.by_id, "gets no lead")


def _rungs(places: Places) -> Iterator[Node]:
    """Give every ``to`` of a ladder."""
    for plan in (*places.each("handoffs").values(), *places.items("clocks")):
        ladder = plan.mapping().get("escalate")
        for step in ladder.items() if ladder is not None else ():
            yield step.mapping()["to"]


def _routed(places: Places) -> Iterator[Node]:
    """Give every person that routing names: the fallbacks, and those of rules."""
    for role in places.each("routing").values():
        keys = role.mapping()
        yield keys["fallback"].mapping()["person"]
        for rule in keys["rules"].items():
            to = rule.mapping()["to"]
            chosen = to.mapping().get("people") if to.value != "everyone" else None
            yield from chosen.items() if chosen is not None else ()


def _text(place: Node) -> str:
    return str(place.value)


def _refuse(place: Node, known: Collection[str], so: str) -> None:
    name = _text(place)
    hint = nearest(name, known) or f"Known: {', '.join(sorted(known)[:10]) or 'nobody'}."
    place.refuse(f"{name!r} is nobody of the roster: {so}", hint, rule="nobody")
