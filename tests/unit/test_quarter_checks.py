"""The quarter's own check of who has to act at the end of a ladder: of several leaders, who hears first."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from services.contracts.events import HANDOFFS_TOPIC, Message
from services.contracts.handoffs import CLOCK_RANG, OFFERED, REJECTED
from tests.system.quarter.checks import SOON, check_answers
from tests.system.quarter.evidence import Published, Quarter, refusals
from tests.system.quarter.reading import Book

END = datetime(2028, 4, 30, 23, 30, tzinfo=UTC)  # a Sunday
FRIDAY = datetime(2028, 4, 28, 22, tzinfo=UTC)
HANDOFF = uuid.uuid4()


def leader(id: str, zone: str, *days: str) -> dict[str, Any]:
    """Somebody of sales leadership who works on `days`."""
    hours = {day: ["09:00-17:00"] for day in days}
    return {"id": id, "roles": ["sales_leadership"], "time_zone": zone, "hours": hours}


def rang(step: str, at: datetime, *people: str) -> Message:
    """A step of the handoff's clock, and who heard of it."""
    body = {
        "handoff_id": str(HANDOFF), "step": step, "recorded_at": at.isoformat(),
        "alerts": [{"role": "csm", "person": {"id": id, "name": id}} for id in people],
    }  # fmt: skip
    headers = {"ce_type": CLOCK_RANG, "ce_id": str(uuid.uuid4())}
    return Message(HANDOFFS_TOPIC, "lead", headers, msgspec.json.encode(body))


def waiting(*rings: Message) -> Quarter:
    """A quarter at whose end a handoff waits whose ladder is at its end."""
    book = Book()
    week = ("mon", "tue", "wed", "thu", "fri")
    book.put(FRIDAY - timedelta(days=60), leader("monday", "UTC", *week))
    book.put(FRIDAY - timedelta(days=60), leader("saturday", "UTC", *week, "sat"))
    it = Quarter(END, book, [], list(rings), SOON)
    it.handoffs = [{"id": HANDOFF, "state": "offered", "overdue_at": FRIDAY}]
    it.clocks = {HANDOFF: {"state": "running", "due_at": None}}
    return it


def test_the_first_who_hears_acts_by_hours_of_their_own() -> None:
    """On Friday night both hear. Monday's comes first, and has not been at work since: nothing is late."""
    found = check_answers(waiting(rang("escalate", FRIDAY, "monday", "saturday")))
    assert found == {"offered": 1, "overdue": 1}


def test_a_leader_who_is_reminded_as_its_owner_has_not_heard_of_a_missed_deadline() -> None:
    early = rang("remind", FRIDAY - timedelta(days=3), "saturday")
    check_answers(waiting(early, rang("escalate", FRIDAY, "monday")))


def test_who_was_at_work_and_did_nothing_is_found() -> None:
    with pytest.raises(AssertionError, match="waits in silence"):
        check_answers(waiting(rang("escalate", FRIDAY, "saturday", "monday")))
    with pytest.raises(AssertionError, match="nobody at the end"):
        check_answers(waiting(rang("remind", FRIDAY, "monday")))


def told(type: str, round: int, owner: str) -> Published:
    """A handoff of one lead, offered to `owner` or rejected by them."""
    body = {"lead": {"id": "ada"}, "stage": "mql", "role": "lead_agent", "round": round,
            "owner": {"id": owner}, "answered_by": owner, "recorded_at": END.isoformat()}  # fmt: skip
    return Published(type, f"{type}{round}{owner}", body)


def test_a_new_visit_forgets_who_said_no_before() -> None:
    """Also where its first rejection is of a later round: it was given away by hand before."""
    asked = refusals([
        told(OFFERED, 1, "a"), told(REJECTED, 1, "a"), told(OFFERED, 2, "b"), told(REJECTED, 2, "b"),
        told(OFFERED, 1, "c"), told(OFFERED, 2, "d"), told(REJECTED, 2, "d"),
    ])  # fmt: skip
    assert [without for _, _, without in asked] == [{"a"}, {"a", "b"}, {"d"}]
