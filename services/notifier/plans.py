"""When an alert goes out, and with what: held, gathered, grouped, limited. Pure: time is a parameter.

Two decisions. `first_due` says, when an alert is recorded, when its delivery is due. `plan_lane` says what
of a lane (one person's deliveries by one channel) goes out now, in order, as one message, and what waits;
it holds what came due at a bad moment too. Whatever is held, merged or suppressed says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from services.contracts import calendars
from services.contracts.team import Person
from services.notifier.redaction import kind as kind_of

WINDOW = timedelta(seconds=60)
"""Messages within this time are a burst."""
HOUR = timedelta(hours=1)
GROUP_MAX = 5000
"""Alerts one message lists at most."""
QUIET_CHANNELS = frozenset({"inbox", "console"})
"""They disturb nobody: nothing is held from them."""
TURNS_MAX = 400
BURST = "a burst of alerts"
NEVER_AFTER = timedelta(days=30)
"""Who is open at no time within sight is asked for again after this long."""


class Waiting(msgspec.Struct, frozen=True):
    """A delivery that is due in its lane."""

    delivery_id: int
    alert_id: UUID
    lead_id: UUID
    company: str | None
    attempt: int
    urgent: bool = False
    gather: bool = False
    muted: bool = False
    acknowledged: bool = False
    answered: bool = False
    """An escalation of an alert that somebody answers for by now."""
    digest_id: UUID | None = None
    why: str | None = None


class Sent(msgspec.Struct, frozen=True):
    """A message that went out in the lane: its companies and leads."""

    at: datetime
    leads: frozenset[UUID] = frozenset()
    companies: frozenset[str] = frozenset()


class Hold(msgspec.Struct, frozen=True):
    """Deliveries that wait until `until`, and why; `gather`: then with what else is due."""

    rows: tuple[Waiting, ...]
    until: datetime
    why: str
    gather: bool


class Plan(msgspec.Struct):
    """What happens in a lane now: at most one message is sent."""

    send: tuple[Waiting, ...] = ()
    why: str | None = None
    """Why several alerts go out as one message; None: it is one alert."""
    holds: list[Hold] = []
    skip: tuple[Waiting, ...] = ()
    suppress: tuple[Waiting, ...] = ()
    answered: tuple[Waiting, ...] = ()


def may_disturb(person: Person, at: datetime) -> datetime:
    """Give the first moment at or after `at` at which an alert may reach `person`, in UTC."""
    within = person.alerts.hours
    if within == "always":
        return at
    moment = at
    for _ in range(TURNS_MAX):
        next_moment = moment
        if within == "working":
            absence = calendars.away_at(person, moment)
            if absence is not None:
                next_moment = absence.end
            next_moment = calendars.next_open(person, next_moment) or at + NEVER_AFTER
        next_moment = calendars.after_quiet(person, next_moment) or at + NEVER_AFTER
        if next_moment == moment:
            return moment
        moment = next_moment
    return moment


def why_held(person: Person, at: datetime, until: datetime) -> str:
    """Say why nothing reaches `person` at `at`, and until when."""
    absence = calendars.away_at(person, at) if person.alerts.hours == "working" else None
    if absence is not None:
        reason = "away"
    elif calendars.is_quiet(person, at):
        reason = "quiet hours"
    else:
        reason = "outside working hours"
    return f"held until {_clock(person, at, until)}: {reason}"


def first_due(
    person: Person | None, channel: str, urgent: bool, now: datetime
) -> tuple[datetime, str | None, bool]:
    """Give when a new alert's delivery by `channel` is due, why not at once, and whether it is gathered."""
    if person is None or urgent or channel in QUIET_CHANNELS:
        return now, None, False
    deliver = person.alerts.deliver_on(kind_of(channel))
    at, why = now, None
    if deliver != "immediate":
        at = _next_digest(person, deliver, now)
        why = f"{deliver} digest at {_clock(person, now, at)}"
    until = may_disturb(person, at)
    if until > at:
        held = why_held(person, at, until)
        why = f"{why}; {held}" if why is not None else held
    return until, why, deliver != "immediate"


def plan_lane(
    rows: Sequence[Waiting],
    sent: Sequence[Sent],
    person: Person | None,
    channel: str,
    now: datetime,
) -> Plan:
    """Plan what goes out now of `rows` (in their order); `sent`: the lane's last hour, oldest first."""
    plan = Plan(
        skip=tuple(r for r in rows if r.acknowledged),
        suppress=tuple(r for r in rows if r.muted and not r.acknowledged),
        answered=tuple(r for r in rows if r.answered and not r.muted and not r.acknowledged),
    )
    left = tuple(r for r in rows if not (r.acknowledged or r.muted or r.answered))
    if not left:
        return plan
    if person is None or channel in QUIET_CHANNELS:
        plan.send = left[:1]
        return plan
    left = _hold_for_hours(plan, left, person, now)
    if not left:
        return plan
    head = next((r for r in left if r.urgent and r.digest_id is None), left[0])
    if head.urgent and head.digest_id is None:
        plan.send = (head,)
    elif head.digest_id is not None:  # a message that was tried before is tried again as it was
        plan.send = tuple(r for r in left if r.digest_id == head.digest_id)
        plan.why = head.why or "merged"
    elif head.attempt > 1 and not head.gather:
        plan.send = (head,)
    else:
        fresh = tuple(r for r in left if r.digest_id is None and not r.urgent)
        _choose(plan, fresh, sent, person, now)
    return plan


def _choose(
    plan: Plan, rows: tuple[Waiting, ...], sent: Sequence[Sent], person: Person, now: datetime
) -> None:
    preferences = person.alerts
    hour = [s for s in sent if s.at > now - HOUR]
    if len(hour) >= preferences.per_hour_max:
        until = hour[-preferences.per_hour_max].at + HOUR
        why = (
            f"held until {_clock(person, now, until)}: {preferences.per_hour_max} messages an hour"
            " are reached; merged into the next"
        )
        plan.holds.append(Hold(rows, until, why, gather=True))
        return
    gathered = [r for r in rows if r.gather]
    burst = [s for s in sent if s.at > now - WINDOW]
    told = sum(max(len(s.leads), 1) for s in burst)
    if gathered and len(rows) > 1:
        plan.send = rows[:GROUP_MAX]
        plan.why = f"merged with {len(plan.send) - 1} others: {gathered[0].why}"
    elif not gathered and told >= preferences.group_over:
        _await_burst(plan, rows, burst[-1], person, now, BURST)
    elif len(rows) > preferences.group_over:
        plan.send = rows[:GROUP_MAX]
        plan.why = f"merged with {len(plan.send) - 1} others: {BURST}"
    else:
        _choose_one(plan, rows, burst, person, now)


def _choose_one(
    plan: Plan, rows: tuple[Waiting, ...], burst: Sequence[Sent], person: Person, now: datetime
) -> None:
    head = next(iter(rows))
    together = _same_company(rows, head)
    of_company = [s for s in burst if head.company in s.companies and head.lead_id not in s.leads]
    if head.company is not None and of_company and not head.gather:
        _await_burst(plan, together, of_company[-1], person, now, "other leads of the company")
    elif len({r.lead_id for r in together}) > 1:
        plan.send = together
        plan.why = f"merged with {len(together) - 1} others: leads of one company"
    else:
        plan.send = (head,)


def _await_burst(
    plan: Plan, rows: tuple[Waiting, ...], first: Sent, person: Person, now: datetime, what: str
) -> None:
    until = first.at + WINDOW
    why = f"held until {_clock(person, now, until)}: {what}, merged into one message"
    plan.holds.append(Hold(rows, until, why, gather=True))


def _same_company(rows: tuple[Waiting, ...], head: Waiting) -> tuple[Waiting, ...]:
    if head.company is None:
        return (head,)
    return tuple(r for r in rows if r.company == head.company)


def _hold_for_hours(
    plan: Plan, rows: tuple[Waiting, ...], person: Person, now: datetime
) -> tuple[Waiting, ...]:
    until = may_disturb(person, now)
    if until <= now:
        return rows
    held = tuple(r for r in rows if not r.urgent)
    if held:
        why = why_held(person, now, until)
        plan.holds.append(Hold(held, until, why, gather=False))
    return tuple(r for r in rows if r.urgent)


def _next_digest(person: Person, deliver: str, now: datetime) -> datetime:
    zone = ZoneInfo(person.time_zone)
    local = now.astimezone(zone)
    if deliver == "hourly":
        return _utc(local.replace(minute=0, second=0, microsecond=0)) + HOUR
    hour, _, minute = person.alerts.daily_at.partition(":")
    day = local.replace(hour=int(hour), minute=int(minute), second=0, microsecond=0, fold=0)
    if _utc(day) <= now:
        day += timedelta(days=1)  # the wall clock's next day: 23 or 25 hours where it jumps
    return _utc(day)


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def _clock(person: Person, now: datetime, moment: datetime) -> str:
    """Write a moment by the person's clock; the day only when it is another."""
    zone = ZoneInfo(person.time_zone)
    local = moment.astimezone(zone)
    same_day = local.date() == now.astimezone(zone).date()
    return f"{local:%H:%M}" + ("" if same_day else f" on {local:%Y-%m-%d}") + f" {person.time_zone}"
