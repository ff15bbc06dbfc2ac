"""The lead's story: an alert of a clock stands under the step that it tells of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from services.stage_service.pages.lead_view import story

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
