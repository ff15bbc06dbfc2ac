"""When an alert goes out and with what: pure decisions, time as a parameter."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.contracts.calendars import Away, week
from services.contracts.preferences import AlertPreferences
from services.contracts.team import Person
from services.notifier.plans import Plan, Sent, Waiting, first_due, plan_lane

BERLIN = Person(
    "ana", "Ana", roles=("ae",), time_zone="Europe/Berlin", channels=("email",),
    quiet=((22 * 60, 31 * 60),),
)  # fmt: skip
NOON = datetime(2026, 3, 4, 11, tzinfo=UTC)
"""A Wednesday, 12:00 in Berlin."""


def working(person: Person = BERLIN) -> Person:
    """The person with office hours."""
    days = [(d, ["09:00-17:30"]) for d in ("mon", "tue", "wed", "thu", "fri")]
    return replace(person, hours=week(days))


def wanting(person: Person = BERLIN, **wishes: Any) -> Person:
    """The person with preferences."""
    return replace(person, alerts=AlertPreferences(**wishes))


def at(text: str) -> datetime:
    """A moment by Berlin's clock, as UTC."""
    from zoneinfo import ZoneInfo

    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)


@pytest.mark.parametrize(
    ("person", "urgent", "now", "due", "why"),
    [
        (replace(BERLIN, quiet=()), False, "2026-03-04T03:00", "2026-03-04T03:00", None),
        (BERLIN, False, "2026-03-04T12:00", "2026-03-04T12:00", None),
        (BERLIN, False, "2026-03-04T23:00", "2026-03-05T07:00",
         "held until 07:00 on 2026-03-05 Europe/Berlin: quiet hours"),
        (BERLIN, True, "2026-03-04T23:00", "2026-03-04T23:00", None),
        (working(), False, "2026-03-04T08:00", "2026-03-04T09:00",
         "held until 09:00 Europe/Berlin: outside working hours"),
        (working(), False, "2026-03-06T18:00", "2026-03-09T09:00",
         "held until 09:00 on 2026-03-09 Europe/Berlin: outside working hours"),
        (wanting(working(), hours="quiet-only"), False, "2026-03-07T12:00", "2026-03-07T12:00", None),
        (wanting(working(), hours="quiet-only"), False, "2026-03-07T23:00", "2026-03-08T07:00",
         "held until 07:00 on 2026-03-08 Europe/Berlin: quiet hours"),
        (wanting(working(), hours="always"), False, "2026-03-07T23:00", "2026-03-07T23:00", None),
        # The clocks jump from 2 to 3 at night: seven is seven.
        (BERLIN, False, "2026-03-28T23:30", "2026-03-29T07:00",
         "held until 07:00 on 2026-03-29 Europe/Berlin: quiet hours"),
        (wanting(deliver="hourly"), False, "2026-03-04T12:10", "2026-03-04T13:00",
         "hourly digest at 13:00 Europe/Berlin"),
        (wanting(deliver="daily", daily_at="08:30"), False, "2026-03-04T12:10", "2026-03-05T08:30",
         "daily digest at 08:30 on 2026-03-05 Europe/Berlin"),
        (wanting(deliver="daily", daily_at="08:30"), False, "2026-03-28T12:00", "2026-03-29T08:30",
         "daily digest at 08:30 on 2026-03-29 Europe/Berlin"),
        (wanting(deliver="daily", daily_at="23:00"), False, "2026-03-04T12:00", "2026-03-05T07:00",
         "daily digest at 23:00 Europe/Berlin; "
         "held until 07:00 on 2026-03-05 Europe/Berlin: quiet hours"),
    ],
)  # fmt: skip
def test_when_a_new_alert_is_due(
    person: Person, urgent: bool, now: str, due: str, why: str | None
) -> None:
    assert first_due(person, "email", urgent, at(now))[:2] == (at(due), why)


def test_somebody_away_is_told_when_they_are_back() -> None:
    away = Away(at("2026-03-02T00:00"), at("2026-03-16T00:00"))
    person = replace(working(), away=(away,))
    due, why, _ = first_due(person, "email", False, NOON)
    assert due == at("2026-03-16T09:00")
    assert why == "held until 09:00 on 2026-03-16 Europe/Berlin: away"


def test_the_inbox_disturbs_nobody_and_is_never_held() -> None:
    assert first_due(wanting(deliver="daily"), "inbox", False, NOON) == (NOON, None, False)
    assert first_due(working(), "console", False, at("2026-03-07T23:00"))[1] is None


def test_one_channel_may_be_gathered_and_another_not() -> None:
    person = wanting(deliver_by=(("email", "daily"),))
    assert first_due(person, "email", False, NOON)[2]
    assert first_due(person, "slack:12345678", False, NOON) == (NOON, None, False)


def rows(count: int, **changes: Any) -> list[Waiting]:
    """Deliveries that wait, of leads and companies of their own."""
    return [
        Waiting(**({
            "delivery_id": n, "alert_id": uuid.UUID(int=n), "lead_id": uuid.UUID(int=100 + n),
            "company": f"Company {n}", "attempt": 1,
        } | changes))
        for n in range(1, count + 1)
    ]  # fmt: skip


def sent(*seconds_ago: float, company: str = "Other") -> list[Sent]:
    """Messages that went out so long ago."""
    return [
        Sent(NOON - timedelta(seconds=s), frozenset({uuid.UUID(int=9)}), frozenset({company}))
        for s in seconds_ago
    ]


def ids(plan: Plan) -> list[int]:
    """What is sent."""
    return [w.delivery_id for w in plan.send]


def held(plan: Plan) -> dict[int, tuple[datetime, str, bool]]:
    """What is held, until when and why."""
    return {w.delivery_id: (h.until, h.why, h.gather) for h in plan.holds for w in h.rows}


def test_a_few_go_out_one_by_one_in_order() -> None:
    plan = plan_lane(rows(3), [], BERLIN, "email", NOON)
    assert (ids(plan), plan.why, plan.holds) == ([1], None, [])


def test_many_at_once_are_one_message_that_lists_them_all() -> None:
    plan = plan_lane(rows(400), [], BERLIN, "email", NOON)
    assert ids(plan) == list(range(1, 401))
    assert plan.why == "merged with 399 others: a burst of alerts"


def test_leads_of_one_company_are_one_message() -> None:
    plan = plan_lane(rows(2, company="Acme"), [], BERLIN, "email", NOON)
    assert (ids(plan), plan.why) == ([1, 2], "merged with 1 others: leads of one company")
    of_one_lead = rows(2, company="Acme", lead_id=uuid.UUID(int=7))
    assert ids(plan_lane(of_one_lead, [], BERLIN, "email", NOON)) == [1]


def test_after_some_within_a_minute_the_rest_wait_for_its_end() -> None:
    plan = plan_lane(rows(1), sent(50, 20, 1), BERLIN, "email", NOON)
    assert ids(plan) == []
    until, why, gather = held(plan)[1]
    assert (until, gather) == (NOON + timedelta(seconds=59), True)
    assert "burst" in why
    assert ids(plan_lane(rows(1), sent(70, 65, 1), BERLIN, "email", NOON)) == [1]


def test_another_lead_of_a_company_just_told_of_waits_for_more() -> None:
    plan = plan_lane(rows(1, company="Acme"), sent(40, company="Acme"), BERLIN, "email", NOON)
    assert held(plan)[1][0] == NOON + timedelta(seconds=20)
    assert "other leads of the company" in held(plan)[1][1]


def test_over_the_hours_limit_they_are_merged_into_the_next() -> None:
    person = wanting(per_hour_max=2)
    plan = plan_lane(rows(2), sent(3000, 600), person, "email", NOON)
    until, why, gather = held(plan)[2]
    assert (until, gather) == (NOON + timedelta(seconds=600), True)
    assert "2 messages an hour" in why
    later = plan_lane(rows(2, gather=True, why=why), sent(600), person, "email", NOON)
    assert ids(later) == [1, 2]
    assert "2 messages an hour" in (later.why or "")


def test_urgent_passes_hours_limits_and_bursts() -> None:
    night = at("2026-03-07T23:00")
    urgent = rows(1, urgent=True)
    others = [w for w in rows(3) if w.delivery_id > 1]
    person = wanting(working(), per_hour_max=1)
    plan = plan_lane([*urgent, *others], [Sent(night)], person, "email", night)
    assert ids(plan) == [1]
    assert set(held(plan)) == {2, 3}


def test_what_comes_due_at_a_bad_moment_is_held_with_the_reason() -> None:
    plan = plan_lane(rows(2, attempt=2), [], BERLIN, "email", at("2026-03-04T23:00"))
    assert ids(plan) == []
    assert held(plan)[1][0] == at("2026-03-05T07:00")


def test_a_message_that_failed_comes_again_alone_or_as_it_was() -> None:
    first, *others = rows(6)
    again = replace_row(first, attempt=2)
    assert ids(plan_lane([again, *others], [], BERLIN, "email", NOON)) == [1]
    digest = uuid.uuid4()
    merged = [replace_row(w, attempt=2, digest_id=digest) for w in rows(2)]
    assert ids(plan_lane([*merged, *others], [], BERLIN, "email", NOON)) == [1, 2]


def test_muted_and_acknowledged_are_not_sent() -> None:
    muted, seen, other = rows(3)
    waiting = [replace_row(muted, muted=True), replace_row(seen, acknowledged=True), other]
    plan = plan_lane(waiting, [], BERLIN, "email", NOON)
    assert [w.delivery_id for w in plan.suppress] == [1]
    assert [w.delivery_id for w in plan.skip] == [2]
    assert ids(plan) == [3]


def replace_row(row: Waiting, **changes: Any) -> Waiting:
    """The row with changes."""
    import msgspec

    return msgspec.structs.replace(row, **changes)
