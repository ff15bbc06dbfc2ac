"""A lead's page: the path as the journey went it, and alerts of clocks under the steps that they tell of."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from services.stage_service.pages.lead_view import steps, story
from services.stage_service.playbook import parse_playbook

SALES = Path(__file__).parents[2] / "playbooks" / "sales.yaml"
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def clock(minutes: int, action: str, kind: str = "handoff") -> dict[str, Any]:
    """A step of a clock, recorded so many minutes after noon."""
    at = NOON + timedelta(minutes=minutes)
    return {
        "kind": "clock", "source": "baton", "id": f"{kind}-{action}-{minutes}", "counts": True,
        "type": "baton.clock.fired", "action": action, "clock_kind": kind,
        "occurred_at": at, "recorded_at": at, "arrived_after_s": 0.0,
    }  # fmt: skip


def alert(
    who: str, minutes: float, kind: str = "clock", handoff: str | None = "h"
) -> dict[str, Any]:
    """An alert whose message was made so many minutes after noon."""
    ms = int((NOON + timedelta(minutes=minutes)).timestamp() * 1000)
    id = f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7000-8000-000000000001"
    return {"kind": kind, "handoff_id": handoff, "transition_id": id, "who": who, "lead_id": "l"}


def told(items: list[dict[str, Any]], alerts: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Who was told of which step."""
    return {
        c.event["id"]: [a["who"] for a in c.told]
        for c in story(items, alerts)
        if c.event is not None
    }


def test_each_step_names_whom_it_told() -> None:
    items = [clock(0, "reminded"), clock(60, "fired"), clock(60, "fired", "stage"),
             clock(120, "escalated")]  # fmt: skip
    alerts = [
        alert("owner", 0), alert("owner late", 60.01, "handoff"), alert("of stage", 60, handoff=None),
        alert("head", 120), alert("boss", 120.1),
    ]  # fmt: skip
    assert told(items, alerts) == {
        "handoff-reminded-0": ["owner"], "handoff-fired-60": ["owner late"],
        "stage-fired-60": ["of stage"], "handoff-escalated-120": ["head", "boss"],
    }  # fmt: skip


def test_an_alert_of_something_else_stands_under_no_step() -> None:
    rejected = alert("giver", 60, "handoff", None)
    later, earlier = alert("boss", 61), alert("boss", 59)
    foreign = alert("boss", 60) | {"transition_id": "018f0000-0000-4000-8000-000000000001"}
    steps = [clock(60, "escalated"), clock(60, "fired", "stage")]
    assert not any(told(steps, [rejected, later, earlier, foreign]).values())


@pytest.mark.parametrize(
    ("stage", "furthest", "went", "states"),
    [
        ("lead", "lead", [], ["current", "ahead", "ahead"]),
        ("sql", "sql", ["mql", "sql"], ["done", "done", "current"]),
        ("sql", "sql", ["sql"], ["done", "skipped", "current"]),
        ("mql", "sql", ["sql", "mql"], ["done", "current", "left"]),
        ("nurture", "sql", ["sql", "nurture"], ["done", "skipped", "done"]),
    ],
)
def test_the_path_shows_where_a_journey_is_was_and_went_back_from(
    stage: str, furthest: str, went: list[str], states: list[str]
) -> None:
    """Of the first three stages; a stage that it went back from is not passed."""
    playbook = parse_playbook(SALES.read_text(encoding="utf-8"), "sales.yaml")
    journey = {
        "id": "j",
        "stage": stage,
        "furthest_stage": furthest,
        "started_at": NOON,
        "held": [],
    }
    items = [
        {"kind": "transition", "replaced_by": None, "journey": {"id": "j"}, "from": a, "to": b,
         "occurred_at": NOON + timedelta(hours=n)}
        for n, (a, b) in enumerate(pairwise(["lead", *went]), 1)
    ]  # fmt: skip
    found = steps(playbook, journey, items)
    assert [s.state for s in found][:3] == states
    assert [s.entered_at is not None for s in found][:3] == [
        s not in ("ahead", "skipped") for s in states
    ]


def test_the_path_shows_what_was_stored_under_names_of_before() -> None:
    """A lead that hears nothing keeps the old name of the furthest stage in its row."""
    text = SALES.read_text(encoding="utf-8")
    renamed = re.sub(r"\bsql\b", "discovery", text) + "\nmigrate: {sql: discovery}\n"
    playbook = parse_playbook(renamed, "sales.yaml")
    items = [
        {"kind": "transition", "replaced_by": None, "journey": {"id": "j"}, "from": a, "to": b,
         "occurred_at": NOON}
        for a, b in (("lead", "sql"), ("sql", "nurture"))
    ]  # fmt: skip
    held = {"to": "sql", "missing": ["lead.employees"]}
    for stage, states in (
        ("nurture", ["done", "skipped", "done", "ahead"]),
        ("sql", ["done", "skipped", "current", "ahead"]),
    ):
        journey = {"id": "j", "stage": stage, "furthest_stage": "sql", "started_at": NOON,
                   "held": [held]}  # fmt: skip
        found = steps(playbook, journey, items)
        assert [s.state for s in found][:4] == states
        assert (found[2].stage.key, found[2].entered_at, found[2].wanted) == (
            "discovery", NOON, held,
        )  # fmt: skip
