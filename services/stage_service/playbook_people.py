"""Whom a playbook names: people of its routing and ladders that the roster does not have.

A playbook is valid without them: the roster changes by itself, and what goes to nobody has its fallback,
or sales leadership. Most often it is a slip of the pen: so it is told, with who may have been meant. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from services.contracts.team import Team
from services.contracts.yaml_source import Node, Problem, SourceError, nearest, read_yaml
from services.stage_service.playbook import Playbook
from services.stage_service.playbook_clocks import LADDER


def names_strangers(playbook: Playbook, team: Team) -> bool:
    """Tell whether a playbook names anybody who is not in `team`; where, `strangers` says."""
    plans = (*playbook.clocks, *(h.clock for h in playbook.handoffs.values()))
    rungs = {rung.to for plan in plans for rung in plan.escalate}
    routings = playbook.routing.values()
    routed = {r.fallback for r in routings if r.fallback is not None}
    routed |= {person for r in routings for rule in r.rules for person in rule.people}
    known = team.by_id.keys()
    return not (routed <= known and rungs <= {*LADDER, *playbook.roles, *team.by_role, *known})


def strangers(text: str, file: str, team: Team) -> list[Problem]:
    """Give each place of a playbook's text that names nobody of `team`; none where it is not YAML."""
    try:
        top = read_yaml(text, file)
    except SourceError:
        return []
    top.problems = []  # what is wrong otherwise, `parse_playbook` tells
    fields = top.mapping()
    roles = fields["roles"].mapping() if "roles" in fields else {}
    found = [
        _stranger(place, [*LADDER, *roles, *team.by_id], "sales leadership hears of it instead")
        for place in _rungs(fields)
        if _text(place) not in (*LADDER, *roles, *team.by_role, *team.by_id)
    ]
    found += [
        _stranger(place, team.by_id, "gets no lead")
        for place in _routed(fields)
        if _text(place) not in team.by_id
    ]
    return sorted(found, key=lambda p: (p.line, p.column))


def _rungs(fields: dict[str, Node]) -> Iterator[Node]:
    """Give every ``to`` of a ladder."""
    handoffs = fields["handoffs"].mapping() if "handoffs" in fields else {}
    plans = [*handoffs.values(), *(fields["clocks"].items() if "clocks" in fields else ())]
    for plan in plans:
        ladder = plan.mapping().get("escalate")
        for step in ladder.items() if ladder is not None else ():
            to = step.mapping().get("to")
            if to is not None:
                yield to


def _routed(fields: dict[str, Node]) -> Iterator[Node]:
    """Give every person that routing names: the fallbacks, and those of rules."""
    routing = fields["routing"].mapping() if "routing" in fields else {}
    for role in routing.values():
        keys = role.mapping()
        fallback = keys["fallback"].mapping().get("person") if "fallback" in keys else None
        if fallback is not None:
            yield fallback
        for rule in keys["rules"].items() if "rules" in keys else ():
            to = rule.mapping().get("to")
            chosen = (
                to.mapping().get("people") if to is not None and to.value != "everyone" else None
            )
            yield from chosen.items() if chosen is not None else ()


def _text(place: Node) -> str:
    return str(place.value)


def _stranger(place: Node, known: Collection[str], so: str) -> Problem:
    name = _text(place)
    hint = nearest(name, known) or f"Known: {', '.join(sorted(known)[:10]) or 'nobody'}."
    return Problem(
        place.file, place.line, place.column, f"{name!r} is nobody of the roster: {so}", hint,
        "nobody",
    )  # fmt: skip
