"""From a playbook's ``handoffs`` and ``clocks`` to deadlines and ladders, with the place of each mistake."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from services.contracts.yaml_source import Node
from services.stage_service.playbook import ClockPlan, HandoffPlan, Rung

LADDER = ("stand_in", "role_lead")
SINCE = ("entered", "activity")
TIMES = ("business", "wall")

_DURATION = re.compile(r"(\d{1,5})(m|h|d|w)")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_KEY = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_PERSON = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_CLOCK_KEYS = ("within", "time", "remind", "escalate")


def read_handoffs(
    node: Node | None,
    roles: Collection[str],
    event_types: Callable[[Node], frozenset[str]],
    taken: dict[str, Node],
) -> dict[str, HandoffPlan]:
    """Read how each role answers what is handed to it; `taken` gets the keys of their clocks."""
    found: dict[str, HandoffPlan] = {}
    for role, inner in (node.mapping(tuple(roles)) if node is not None else {}).items():
        fields = inner.mapping((*_CLOCK_KEYS, "accepted_by", "reasons"), ("within",))
        key = f"handoff-{role.replace('_', '-')}"
        taken[key] = inner
        clock = _clock(key, "Answer to the handoff", frozenset(), "offered", fields, roles)
        found[role] = HandoffPlan(
            role,
            clock,
            event_types(fields["accepted_by"]) if "accepted_by" in fields else frozenset(),
            fields["reasons"].texts() if "reasons" in fields else (),
        )
    return found


def read_clocks(
    node: Node | None, roles: Collection[str], stages: Collection[str], taken: dict[str, Node]
) -> tuple[ClockPlan, ...]:
    """Read the clocks of stages; a key in `taken` is refused."""
    found: list[ClockPlan] = []
    for item in node.items() if node is not None else ():
        needed = ("key", "stages", "within")
        fields = item.mapping((*needed, "title", "since", "time", "remind", "escalate"), needed)
        if not all(name in fields for name in needed):
            continue
        key = fields["key"].text("x")
        if not _KEY.fullmatch(key):
            fields["key"].refuse(
                f"{key!r} is not a key",
                "Use lower-case letters, digits, _ and - .",
                rule="bad-name",
            )
        if key in taken:
            fields["key"].refuse(
                f"the key {key!r} is used twice", "Give each its own.", rule="duplicate-key"
            )
        taken[key] = item
        named = [n.one_of(stages, "stage") for n in fields["stages"].items()]
        since = fields["since"].one_of(SINCE, "start", "entered") if "since" in fields else SINCE[0]
        title = fields["title"].text() if "title" in fields else key.replace("-", " ").capitalize()
        found.append(_clock(key, title, frozenset(n for n in named if n), since, fields, roles))
    return tuple(found)


def _clock(
    key: str,
    title: str,
    stages: frozenset[str],
    since: str,
    fields: dict[str, Node],
    roles: Collection[str],
) -> ClockPlan:
    time = fields["time"].one_of(TIMES, "time", TIMES[0]) if "time" in fields else TIMES[0]
    wall = time == "wall"
    within = _seconds(fields["within"], wall) if "within" in fields else 0.0
    remind = [
        (_seconds(n, wall), n) for n in (fields["remind"].items() if "remind" in fields else ())
    ]
    for before, n in remind:
        if within and before >= within:
            n.refuse(
                "the reminder comes before the clock starts",
                "Write less than 'within' says.",
                rule="bad-clock",
            )
    nodes = fields["escalate"].items() if "escalate" in fields else []
    rungs = [_rung(n, wall, roles) for n in nodes]
    for place, rung in enumerate(rungs[1:], 1):
        if rung.after_s < rungs[place - 1].after_s:
            nodes[place].refuse(
                "the steps are not in order", "Write the earliest first.", rule="bad-clock"
            )
        if rung in rungs[:place]:
            nodes[place].refuse("a step stands here twice", "Leave one out.", rule="bad-clock")
    return ClockPlan(
        key, title, stages, since, within, wall,
        tuple(sorted({before for before, _ in remind}, reverse=True)), tuple(rungs),
    )  # fmt: skip


def _rung(node: Node, wall: bool, roles: Collection[str]) -> Rung:
    fields = node.mapping(("after", "to"), ("after", "to"))
    to = fields["to"].text("sales_leadership") if "to" in fields else "sales_leadership"
    if to not in LADDER and to not in roles and not _PERSON.fullmatch(to):
        fields["to"].refuse(
            f"{to!r} is nobody", f"Write {', '.join(LADDER)}, a role, or a person's id.",
            rule="bad-name",
        )  # fmt: skip
    after = _seconds(fields["after"], wall, may_be_zero=True) if "after" in fields else 0.0
    return Rung(after, to)


def _seconds(node: Node, wall: bool, *, may_be_zero: bool = False) -> float:
    """Read a duration; in working time a day has no length, so days and weeks are refused there."""
    text = node.text("1h")
    match = _DURATION.fullmatch(text)
    if match is None or (int(match[1]) == 0 and not may_be_zero):
        node.refuse(
            f"{text!r} is not a duration",
            "Write a number and m, h, d or w: 30m, 4h.",
            rule="bad-duration",
        )
        return 0.0
    if not wall and match[2] in "dw":
        node.refuse(
            f"{text!r} has no length in working time",
            "Write hours (8h), or 'time: wall' for a clock that runs day and night.",
            rule="bad-duration",
        )
    return float(int(match[1]) * _SECONDS[match[2]])
