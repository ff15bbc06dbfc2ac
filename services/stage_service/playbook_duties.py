"""Checks of who has to act: roles nobody uses or nobody has, alerts to nobody, clocks that tell nobody."""

from __future__ import annotations

from services.contracts.team import Team
from services.stage_service.offers import WAITING_KINDS
from services.stage_service.playbook import Playbook
from services.stage_service.playbook_places import Places, part

LAST_RESORT = "sales_leadership"
"""The role that hears what reaches nobody else: it is used without being named."""


def check_duties(playbook: Playbook, places: Places) -> None:
    """Note what a playbook leaves undone whoever the people are."""
    _check_roles(playbook, places)
    _check_clocks(playbook, places)
    _check_handoffs(playbook, places)


def check_people(playbook: Playbook, team: Team, places: Places) -> None:
    """Note roles and alerts that reach nobody of `team`."""
    roles = places.each("roles")
    for role in sorted(_used(playbook) - team.by_role.keys()):
        if role in roles:
            roles[role].refuse(
                f"nobody of the roster has the role {role!r}: what it should do, nobody gets",
                f"Give somebody the role (`baton people`), or take {role!r} out of the playbook.",
                rule="role-without-people",
            )
    for key, node in places.each("stages").items():
        alerts = part(node, "alerts")
        for item in alerts.items() if alerts is not node else ():
            if item.value not in team.by_role:
                item.refuse(
                    f"entering {key!r} alerts {item.value!r}, a role that nobody of the roster has",
                    "Alert another role, or give somebody this one.",
                    rule="alert-to-nobody",
                )


def _used(playbook: Playbook) -> set[str]:
    plans = (*playbook.clocks, *(h.clock for h in playbook.handoffs.values()))
    used = {rung.to for plan in plans for rung in plan.escalate} & playbook.roles.keys()
    for stage in playbook.stages.values():
        used |= {*stage.responsible, *stage.alerts}
    return used


def _check_roles(playbook: Playbook, places: Places) -> None:
    used = _used(playbook) | {LAST_RESORT}
    for role, node in places.each("roles").items():
        if role not in used:
            node.refuse(
                f"nothing uses the role {role!r}: it is responsible for no stage, alerted by none, "
                "on no ladder",
                "Name it where it acts, or remove it.",
                rule="unused-role",
            )


def _check_clocks(playbook: Playbook, places: Places) -> None:
    nodes = zip(playbook.clocks, places.items("clocks"), strict=True)
    handoffs = places.each("handoffs")
    plans = [(f"the clock {plan.key!r}", plan, node) for plan, node in nodes]
    plans += [
        (f"the handoff to {role!r}", playbook.handoffs[role].clock, node)
        for role, node in handoffs.items()
    ]
    for what, plan, node in plans:
        if not plan.escalate:
            node.refuse(
                f"{what} has no escalation: past its deadline only the owner hears of it",
                "Add 'escalate' with whom to tell, like [{after: 4h, to: sales_leadership}].",
                rule="clock-without-escalation",
            )


def _check_handoffs(playbook: Playbook, places: Places) -> None:
    """A playbook without any ``handoffs`` asks nobody for an answer, and is left alone."""
    told: set[str] = set(playbook.handoffs)
    for key, stage in playbook.stages.items() if playbook.handoffs else ():
        role = stage.responsible[0]
        givers = {
            playbook.stages[s].responsible[0]
            for rule in playbook.rules if rule.to == key
            for s in rule.from_stages
        } - {role}  # fmt: skip
        if role not in told and givers and stage.kind in WAITING_KINDS:
            told.add(role)
            places.at("stages", key, "responsible").refuse(
                f"{role!r} takes over from {sorted(givers)[0]!r} in {key!r}, and has no plan in "
                "'handoffs': nobody notices when a lead is not taken up",
                f"Add 'handoffs: {role}: {{within: 4h, ...}}'.",
                rule="handoff-without-plan",
            )
