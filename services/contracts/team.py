"""The roster (``playbooks/team.yaml``): who works here, in which roles, when, and how to reach them.

Both services read it: the stage service chooses owners from it, the notifier finds the channels.
A `Person` is also the `Hours` that services.contracts.calendars counts in.
"""

from __future__ import annotations

import json
import os
import re
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, cast

from services.contracts import calendars
from services.contracts.calendars import WEEKDAYS, Away, Span, Week
from services.contracts.preferences import (
    BUILT_IN_CHANNELS,
    DEFAULT_PREFERENCES,
    AlertPreferences,
    read_channels,
    read_preferences,
)
from services.contracts.yaml_source import Node, Problem, SourceError, nearest, read_yaml

__all__ = [
    "BUILT_IN_CHANNELS", "ROLE_KEYS", "Person", "Team", "documents_of", "load_team", "parse_team",
    "read_person", "team_of",
]  # fmt: skip

ROLE_KEYS = ("marketing", "lead_agent", "ae", "sales_leadership", "csm")

_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_ADDRESS = re.compile(r"[^\s@<>,;]+@[^\s@<>,;]+")


@dataclass(frozen=True)
class Person:
    """One person of the roster."""

    id: str
    name: str
    email: str | None = None
    roles: tuple[str, ...] = ()
    territories: tuple[str, ...] = ()
    weight: float = 1.0
    """Share of a role's journeys, against the others'; 0: gets none."""
    time_zone: str = "UTC"
    channels: tuple[str, ...] = ("inbox",)
    """``inbox``, ``console``, ``email``, or an Apprise URL (``${NAME}``: from the environment)."""
    hours: Week | None = None
    """Working hours; None: always."""
    holidays: str | None = None
    away: tuple[Away, ...] = ()
    quiet: tuple[Span, ...] = ()
    """Spans of every day in which no alert rings, by the person's own clock."""
    skills: tuple[str, ...] = ()
    team: str | None = None
    capacity: int | None = None
    """How many open journeys they can hold; None: any number."""
    alerts: AlertPreferences = DEFAULT_PREFERENCES
    leads: tuple[str, ...] = ()
    """Roles of which they are the lead: escalations go to them before sales leadership."""

    def __hash__(self) -> int:
        """Give the hash of the id: two that are equal have the same, and it is asked for at every offer."""
        return hash(self.id)

    @property
    def all_channels(self) -> tuple[str, ...]:
        """Give their channels, those too that they want for some alerts only."""
        chosen = (channel for _, channels in self.alerts.channels for channel in channels)
        return tuple(dict.fromkeys((*self.channels, *chosen)))


@dataclass(frozen=True)
class Team:
    """All people, and those of each role in the roster's order."""

    people: tuple[Person, ...]
    by_role: dict[str, tuple[Person, ...]] = field(default_factory=dict[str, tuple[Person, ...]])
    by_id: dict[str, Person] = field(default_factory=dict[str, Person])


def team_of(people: tuple[Person, ...]) -> Team:
    """Make the team of `people`."""
    roles = dict.fromkeys(role for person in people for role in person.roles)
    by_role = {role: tuple(p for p in people if role in p.roles) for role in roles}
    return Team(people, by_role, {p.id: p for p in people})


def parse_team(text: str, file: str) -> Team:
    """Read a roster.

    Raises SourceError with every problem: its file, line, column and remedy.
    """
    root = read_yaml(text, file)
    top = root.mapping(("people",), ("people",))
    people: list[Person] = []
    nodes: list[Node] = []
    seen: set[str] = set()
    for node in top["people"].items() if "people" in top else ():
        person = _person(node)
        if person.id in seen:
            node.refuse(f"two people have the id {person.id!r}", "Give each an id of their own.")
        seen.add(person.id)
        people.append(person)
        nodes.append(node)
    for person, node in zip(people, nodes, strict=True):
        for away in person.away:
            if away.stand_in is not None and away.stand_in not in seen:
                node.refuse(
                    f"the stand-in of {person.id}, {away.stand_in!r}, is not in the roster",
                    nearest(away.stand_in, seen) or "Name the id of somebody here.",
                )
    if root.problems:
        raise SourceError(root.problems)
    return team_of(tuple(people))


def load_team(path: Path) -> Team:
    """Read the roster at `path`; raises OSError, or SourceError as `parse_team`."""
    return parse_team(path.read_text(encoding="utf-8"), os.fspath(path))


def documents_of(text: str, file: str) -> list[dict[str, Any]]:
    """Give the people of a roster as JSON documents; raises SourceError as `parse_team`."""
    parse_team(text, file)
    node = read_yaml(text, file).mapping()["people"]
    return [_plain(item.value) for item in node.items()]


def _plain(value: Any) -> Any:
    """Give a value of the YAML reader, which knows its place in the file, as plain JSON."""
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {str(key): _plain(inner) for key, inner in items}
    if isinstance(value, list):
        return [_plain(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    return str(value)


def read_person(document: Mapping[str, Any]) -> Person:
    """Read one person from JSON; raises SourceError with every problem (their lines are of no use)."""
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        text.encode()
    except ValueError:
        text = "\\u0000"
    if "\\u0000" in text:
        told = "a value is no text or number that can be kept"
        raise SourceError([Problem("person", 1, 1, told, "Remove NUL, NaN and lone surrogates.")])
    node = read_yaml(text, "person")
    node.path = "person"
    person = _person(node)
    if node.problems:
        raise SourceError(node.problems)
    return person


_KEYS = ("id", "name", "email", "roles", "territories", "weight", "time_zone", "working_hours", "hours",
         "holidays", "away", "quiet", "skills", "team", "capacity", "channels", "alerts",
         "leads")  # fmt: skip


def _person(node: Node) -> Person:
    fields = node.mapping(_KEYS, ("id", "name", "roles"))
    id = fields["id"].text("?") if "id" in fields else "?"
    if id != "?" and not _ID.fullmatch(id):
        fields["id"].refuse(
            f"{id!r} is not an id", "Use lower-case letters, digits and _ . - (64 at most)."
        )
    email = fields["email"].text() if "email" in fields else None
    if email and not _ADDRESS.fullmatch(email):
        fields["email"].refuse(f"{email!r} is not an e-mail address", "Write name@example.com.")
    roles = tuple(
        r.one_of(ROLE_KEYS, "role") for r in (fields["roles"].items() if "roles" in fields else ())
    )
    zone = _time_zone(fields.get("time_zone"))
    return Person(
        id=id,
        name=fields["name"].text("?") if "name" in fields else "?",
        email=email,
        roles=roles,
        territories=fields["territories"].texts() if "territories" in fields else (),
        weight=fields["weight"].number(0, 100) if "weight" in fields else 1.0,
        time_zone=zone,
        channels=(read_channels(fields["channels"], id, email) if "channels" in fields else ())
        or ("inbox",),
        hours=_hours(fields),
        holidays=_holidays(fields.get("holidays")),
        away=_away(fields.get("away"), zone, id),
        quiet=_quiet(fields.get("quiet")),
        skills=fields["skills"].texts() if "skills" in fields else (),
        team=fields["team"].text() if "team" in fields else None,
        capacity=_capacity(fields.get("capacity")),
        alerts=read_preferences(fields["alerts"], ROLE_KEYS, id, email)
        if "alerts" in fields
        else DEFAULT_PREFERENCES,
        leads=tuple(r.one_of(ROLE_KEYS, "role") for r in fields["leads"].items())
        if "leads" in fields
        else (),
    )


def _time_zone(node: Node | None) -> str:
    if node is None:
        return "UTC"
    zone = node.text("UTC")
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        node.refuse(f"unknown time zone {zone!r}", "Write it as Europe/Berlin.")
        return "UTC"
    return zone


_T = TypeVar("_T")


def _read(node: Node, read: Callable[[], _T], otherwise: _T) -> _T:
    """Give what `read` gives; the ValueError it raises (what: remedy) is noted at `node`."""
    try:
        return read()
    except ValueError as error:
        what, _, remedy = str(error).partition(": ")
        node.refuse(what, f"{remedy[:1].upper()}{remedy[1:]}." if remedy else "Correct it.")
        return otherwise


def _hours(fields: dict[str, Node]) -> Week | None:
    """Read ``hours``, by weekday, or ``working_hours``, the same from Monday to Friday."""
    node = fields.get("hours")
    short = fields.get("working_hours")
    if node is not None and short is not None:
        short.refuse("both 'hours' and 'working_hours' are there", "Keep 'hours'.")
    if node is not None:
        days = [(name, day.texts()) for name, day in node.mapping(WEEKDAYS).items()]
        return _read(node, lambda: calendars.week(days), None)
    if short is not None:
        text = short.text("09:00-17:00")
        return _read(short, lambda: calendars.week((d, [text]) for d in WEEKDAYS[:5]), None)
    return None


def _holidays(node: Node | None) -> str | None:
    if node is None:
        return None
    region = node.text()
    _read(node, lambda: calendars.check_holidays(region) if region else None, None)
    return region or None


def _away(node: Node | None, zone: str, id: str) -> tuple[Away, ...]:
    found: list[Away] = []
    for item in node.items() if node else ():
        fields = item.mapping(("from", "until", "stand_in"), ("from", "until"))
        start = fields["from"].day() if "from" in fields else None
        until = fields["until"].day() if "until" in fields else None
        other = fields["stand_in"].text() if "stand_in" in fields else None
        if other == id:
            fields["stand_in"].refuse(f"{id} cannot stand in for {id}", "Name somebody else.")
        if start is not None and until is not None:
            away = _read(
                item, lambda a=start, b=until, c=other: calendars.absence(a, b, zone, c), None
            )
            if away is not None:
                found.append(away)
    return tuple(found)


def _quiet(node: Node | None) -> tuple[Span, ...]:
    spans: list[Span] = []
    for item in node.items() if node else ():
        text = item.text("22:00-07:00")
        spans.append(_read(item, lambda text=text: calendars.span(text), (0, 1)))
    if node is not None and sum(b - a for a, b in spans) >= calendars.DAY_MINUTES:
        node.refuse("it is quiet all day", "Leave an hour in which messages may come.")
    return tuple(spans)


def _capacity(node: Node | None) -> int | None:
    return None if node is None else int(node.number(0, 1_000_000))
