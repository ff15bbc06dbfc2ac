"""Clocks without a database: their steps in any version of a playbook, and who hears of one."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.contracts.team import parse_team
from services.stage_service import clocks
from services.stage_service.ids import ids_of_names
from services.stage_service.playbook import ClockPlan, Rung

NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)
HOUR = 3600.0
PLAN = ClockPlan(
    "c", "C", frozenset(), "entered", 4 * HOUR, remind_s=(2 * HOUR, HOUR),
    escalate=(Rung(0, "stand_in"), Rung(HOUR, "role_lead")),
)  # fmt: skip
TEAM = parse_team(
    """
people:
  - {id: ann, name: Ann, roles: [ae]}
  - {id: bob, name: Bob, roles: [ae], leads: [ae]}
  - {id: boss, name: Boss, roles: [sales_leadership]}
""",
    "team.yaml",
)


@given(st.uuids(), st.text())
def test_ids_of_names_are_version_5(namespace: uuid.UUID, name: str) -> None:
    assert ids_of_names(namespace)(name) == str(uuid.uuid5(namespace, name))


def test_steps_come_in_the_order_they_are_due() -> None:
    steps = clocks.steps_of(PLAN)
    assert [s.kind for s in steps] == ["remind", "remind", "due", "escalate", "escalate"]
    assert [s.offset_s / HOUR for s in steps] == [2, 3, 4, 4, 5]
    assert len({s.name for s in steps}) == 5
    assert [clocks.step_named(PLAN, s.name) for s in steps] == list(range(5))


@given(
    step=st.integers(0, 9), due_h=st.integers(0, 9), now_h=st.integers(0, 9), missed=st.booleans()
)
def test_the_deadline_is_told_once_and_before_what_follows_it(
    step: int, due_h: int, now_h: int, missed: bool
) -> None:
    """Whatever step an older version of the playbook had come to."""
    due_at, now = NOW + timedelta(hours=due_h), NOW + timedelta(hours=now_h)
    deadline = NOW + timedelta(hours=4)
    chosen, at = clocks.step_now(PLAN, step, due_at, deadline, now, missed=missed)
    if missed:
        assert chosen > 2
    elif now >= deadline:
        assert (chosen, at) == (2, deadline)
    else:
        assert (chosen, at) == (step, due_at)


def heard(to: str, told: tuple[str, ...] = (), owner: str | None = "ann") -> list[str]:
    return [p.id for p, _ in clocks.listeners(to, "ae", owner, told, TEAM, NOW)]


def test_who_was_told_is_not_told_again_and_leadership_is_the_end() -> None:
    assert heard("owner") == ["ann"]
    assert heard("stand_in") == [], "ann is here"
    assert heard("role_lead") == ["bob"]
    assert heard("role_lead", owner="bob") == ["boss"]
    assert heard("role_lead", ("bob",)) == ["boss"]
    assert heard("sales_leadership", ("boss",)) == []
    assert heard("bob") == ["bob"]
    assert heard("owner", owner=None) == []
