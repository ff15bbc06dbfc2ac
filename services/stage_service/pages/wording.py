"""How values read to people: the filters of the templates."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from jinja2 import Environment

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))

_ROLE_NAMED = re.compile(r"((?:eligible|fallback|found anybody) (?:for|of) |fallback of )([a-z_]+)")
"""Where routing names a role by its key."""

STATUS_WORDS = {
    "pending": "on its way",
    "delivered": "delivered",
    "acknowledged": "acknowledged",
    "dead_lettered": "undelivered",
    "dead": "failed for good",
    "skipped": "skipped",
    "suppressed": "not sent on purpose",
    "failed": "failed, tried again",
    "claimed": "being sent",
}


def span(seconds: float | None) -> str:
    """Give a length of time in its two largest units: ``2 d 4 h``, ``45 s``; ``–`` for none."""
    if seconds is None:
        return "–"
    left = max(0, round(seconds))
    i = next((i for i, (size, _) in enumerate(_UNITS) if left >= size), len(_UNITS) - 1)
    whole, rest = divmod(left, _UNITS[i][0])
    text = f"{whole:,} {_UNITS[i][1]}"
    if whole < 10 and rest:
        size, unit = _UNITS[i + 1]
        text += f" {rest // size} {unit}" if rest >= size else ""
    return text


def as_moment(value: datetime | str) -> datetime:
    """Give a moment that may come as RFC 3339 text."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def ago(value: datetime | str) -> str:
    """Say how long ago a moment was; the page's script keeps it fresh in the same words."""
    seconds = (datetime.now(UTC) - as_moment(value)).total_seconds()
    if seconds < -1:
        return f"in {_ahead(-seconds)}"
    return "just now" if seconds < 5 else f"{_coarse(seconds)} ago"


def since(value: datetime | str) -> str:
    """Say for how long something has lasted: ``3 h``."""
    return _coarse((datetime.now(UTC) - as_moment(value)).total_seconds())


def _coarse(seconds: float) -> str:
    left = max(0, int(seconds))
    size, unit = next(((s, u) for s, u in _UNITS if left >= s), (1, "s"))
    return f"{left // size} {unit}"


def _ahead(seconds: float) -> str:
    """Say a length of time to the nearest unit: what is due in 4 h is not due in 3 h a second later."""
    size = next((s for s, _ in _UNITS if seconds >= s), 1)
    return _coarse(int(seconds / size + 0.5) * size)


def iso(value: datetime | str) -> str:
    """Give a moment for ``<time datetime>``."""
    return as_moment(value).astimezone(UTC).isoformat().replace("+00:00", "Z")


def absolute(value: datetime | str) -> str:
    """Give a moment in full; the page's script shows it in the reader's own zone."""
    return f"{as_moment(value).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def shortly_after(value: datetime) -> str:
    """Give the first whole second after a moment as a form sends it, in UTC."""
    return f"{value.astimezone(UTC) + timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}"


def percent(share: float | None) -> str:
    """Give a share of one as per cent; ``–`` for none."""
    if share is None:
        return "–"
    return f"{share * 100:.1f} %" if 0 < share < 0.1 else f"{share * 100:.0f} %"


def points(value: float) -> str:
    """Give points of a score with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def fact(name: str) -> str:
    """Give a fact's name as people say it: ``lead.budget`` is budget."""
    return name.partition(".")[2].replace("_", " ") or name


def happening(type: str) -> str:
    """Give an event's type that no playbook has a label for: ``email.spam_reported``, Email spam reported."""
    words = type.replace(".", " ").replace("_", " ")
    return words[:1].upper() + words[1:]


def facts(names: Iterable[str]) -> str:
    """Give the names of missing facts as one text."""
    return ", ".join(fact(n) for n in names)


def initials(name: str) -> str:
    """Give two letters for a person."""
    words = name.split()
    return "".join(w[0] for w in (words[:1] + words[-1:] if len(words) > 1 else words)).upper()


def reason_told(owner: Mapping[str, Any], roles: Mapping[str, str]) -> str:
    """Say why somebody is a journey's owner: without their name again, the roles by their titles."""
    why = str(owner["why"]).removeprefix(f"{owner['name']}: ")
    why = _ROLE_NAMED.sub(lambda found: found[1] + roles.get(found[2], found[2]), why)
    return why[:1].upper() + why[1:]


def status_word(status: str) -> str:
    """Give an alert's or a delivery's status as people say it."""
    return STATUS_WORDS.get(status, status)


def shown(value: Any) -> str:
    """Give an attribute's value as text."""
    if value is None:
        return "unknown"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def pretty(value: Any) -> str:
    """Give a value as indented JSON."""
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def handed(item: Mapping[str, Any]) -> str:
    """Say what became of a handoff (a timeline item of kind ``handoff``)."""
    person = item["person"]["name"] if item["person"] else "nobody yet"
    who = item.get("answered_by") or person
    took = span(item.get("age_seconds"))
    reason = f": {item['reason']}" if item.get("reason") else ""
    match item["action"]:
        case "offered":
            again = f" It is offer no. {item['round']}." if item["round"] > 1 else ""
            return f"Offered to {person} as {item['role_title']}.{again}"
        case "accepted" if item["implied"]:
            return f"{person} took it up after {took}: what was done shows it."
        case "accepted":
            return f"{who} accepted it after {took}."
        case "rejected":
            return f"{who} rejected it after {took}{reason or ': no reason given'}."
        case "overdue":
            return f"Overdue: {person} had not answered by the deadline."
        case _:
            return f"No longer waits for {person}{reason}."


def rung(item: Mapping[str, Any]) -> str:
    """Say which step of a clock it was (a timeline item of kind ``clock``)."""
    words = {"reminded": "Reminder", "fired": "Deadline passed", "escalated": "Escalated"}
    return f"{words[item['action']]}: {item['title']}"


def teach(environment: Environment) -> None:
    """Give the templates these words."""
    words: tuple[Callable[..., Any], ...] = (
        span, ago, since, iso, absolute, shortly_after, percent, points, fact, facts, happening, initials,
        reason_told, status_word, shown, pretty, handed, rung,
    )  # fmt: skip
    taught: dict[str, Any] = {word.__name__: word for word in words}
    environment.filters.update(taught)
