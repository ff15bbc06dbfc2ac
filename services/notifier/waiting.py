"""What is waited for, in the reader's words: until when by their own clock, how late. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from typing import Any

from services.contracts.published import AlertWish
from services.notifier.harmless import one_line
from services.notifier.messages import Offer, Wait

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def clock(moment: datetime | None, zone: tzinfo) -> str | None:
    """Write a moment by the clock of `zone`: ``Mon 2026-03-02 15:00 CET``."""
    return f"{moment.astimezone(zone):%a %Y-%m-%d %H:%M %Z}" if moment is not None else None


def span(time: timedelta) -> str:
    """Write how long: its two largest units, or that it is less than a minute."""
    left = int(time.total_seconds())
    parts: list[str] = []
    for seconds, unit in _UNITS:
        count, left = divmod(left, seconds)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "less than a minute"


def wait_values(wait: Wait, wish: AlertWish, zone: tzinfo, now: datetime) -> dict[str, Any]:
    """Give what templates may say of a handoff or clock to the person of `wish`, at `now`."""
    over = now - wait.deadline if wait.deadline is not None and now >= wait.deadline else None
    owner = wait.owner
    return {
        "step": wait.step,
        "title": one_line(wait.title),
        "is_handoff": wait.handoff_id is not None,
        "owner": one_line(owner.name) if owner is not None else None,
        "you_own": owner is not None and wish.person is not None and owner.id == wish.person.id,
        "giver": one_line(wait.giver.name) if wait.giver is not None else None,
        "since": clock(wait.since, zone),
        "deadline": clock(wait.deadline, zone),
        "late_by": span(over) if over is not None else None,
        "told_at": clock(now, zone),
        "while_away": wait.late,
        "answered_by": one_line(wait.answered_by) if wait.answered_by else None,
        "reason": one_line(wait.reason) if wait.reason else None,
    }


def answer_values(offer: Offer, zone: tzinfo) -> dict[str, Any]:
    """Give what templates may say of the answer that the reader can give."""
    return {
        "until": clock(offer.due_at, zone),
        "reasons": [one_line(reason) for reason in offer.reasons],
    }
