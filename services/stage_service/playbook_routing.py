"""From a playbook's ``routing`` to who gets the journeys of each role, with the place of each mistake."""

from __future__ import annotations

from collections.abc import Callable, Collection

from services.contracts.yaml_source import Node, nearest
from services.stage_service.conditions import Condition
from services.stage_service.playbook import STRATEGIES, RoleRouting, RoutingRule

_RULE_KEYS = ("key", "when", "to", "strategy", "capacity", "respect")
_TO_KEYS = ("people", "team", "territory", "skill", "owner_of")


def read_routing(
    node: Node | None,
    roles: Collection[str],
    attributes: Collection[str],
    condition: Callable[[Node], Condition | None],
) -> dict[str, RoleRouting]:
    """Read the routing of each role; `attributes` are the declared ``lead.x``, `condition` compiles CEL."""
    found: dict[str, RoleRouting] = {}
    for role, inner in (node.mapping(tuple(roles)) if node is not None else {}).items():
        fields = inner.mapping(("rules", "fallback", "tell_before"), ("rules", "fallback"))
        rules = [
            _rule(item, index, attributes, condition)
            for index, item in enumerate(fields["rules"].items() if "rules" in fields else ())
        ]
        keys = [rule.key for rule in rules]
        for key in {k for k in keys if keys.count(k) > 1}:
            fields["rules"].refuse(
                f"the key {key!r} is used twice", "Give each its own.", rule="duplicate-key"
            )
        fallback = (
            fields["fallback"].mapping(("person",), ("person",)) if "fallback" in fields else {}
        )
        found[role] = RoleRouting(
            tuple(rules),
            fallback["person"].text() if "person" in fallback else None,
            fields["tell_before"].flag() if "tell_before" in fields else False,
        )
    return found


def _rule(
    node: Node,
    index: int,
    attributes: Collection[str],
    condition: Callable[[Node], Condition | None],
) -> RoutingRule:
    fields = node.mapping(_RULE_KEYS, ("to",))
    to = (
        fields["to"].mapping(_TO_KEYS)
        if "to" in fields and fields["to"].value != "everyone"
        else {}
    )
    when = condition(fields["when"]) if "when" in fields else None
    if when is not None:
        strange = [v for v in when.variables if "event." in v]
        if strange:
            fields["when"].refuse(
                f"{node.path} uses {strange[0]!r}", "Routing sees lead, deal, score and journey."
            )
    of_account = "owner_of" in to and bool(to["owner_of"].one_of(("account",), "owner"))
    if of_account and len(to) > 1:
        fields["to"].refuse(
            "owner_of stands with something else in 'to'", "An account's owner is one person."
        )
    respect = [
        r.one_of(("hours", "away"), "calendar")
        for r in (fields["respect"].items() if "respect" in fields else ())
    ]
    return RoutingRule(
        key=fields["key"].text() if "key" in fields else f"rule-{index + 1}",
        when=when,
        people=to["people"].texts() if "people" in to else (),
        team=to["team"].text() if "team" in to else None,
        territory=_wanted(to.get("territory"), attributes),
        skill=_wanted(to.get("skill"), attributes),
        of_account=of_account,
        strategy=fields["strategy"].one_of(STRATEGIES, "strategy", "weighted")
        if "strategy" in fields
        else "weighted",
        capacity=int(fields["capacity"].number(0, 1_000_000)) if "capacity" in fields else None,
        in_hours="hours" in respect,
    )


def _wanted(node: Node | None, attributes: Collection[str]) -> str | None:
    """Read a text, or the name of a lead's attribute (``lead.region``)."""
    if node is None:
        return None
    text = node.text()
    if text.startswith("lead.") and text not in attributes:
        node.refuse(
            f"unknown attribute {text!r}",
            nearest(text, attributes) or "Declare it under 'attributes' (lead).",
            rule="undeclared-attribute",
        )
    return text or None
