"""The roster (``playbooks/team.yaml``): who works here, in which roles, and how to reach them.

Both services read it: the stage service chooses owners from it, the notifier finds the channels.
"""

from __future__ import annotations

import os
import re
import zoneinfo
from dataclasses import dataclass, field
from pathlib import Path

from services.contracts.calendars import Away, Span, Week, span
from services.contracts.preferences import (
    BUILT_IN_CHANNELS,
    DEFAULT_PREFERENCES,
    AlertPreferences,
    read_channels,
    read_preferences,
)
from services.contracts.yaml_source import Node, SourceError, read_yaml

__all__ = ["BUILT_IN_CHANNELS", "ROLE_KEYS", "Person", "Team", "load_team", "parse_team", "team_of"]

ROLE_KEYS = ("marketing", "lead_agent", "ae", "sales_leadership", "csm")

_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_ADDRESS = re.compile(r"[^\s@<>,;]+@[^\s@<>,;]+")
_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")


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
    working_hours: str = "09:00-17:00"
    channels: tuple[str, ...] = ("inbox",)
    """``inbox``, ``console``, ``email``, or an Apprise URL (``${NAME}``: from the environment)."""
    hours: Week | None = None
    holidays: str | None = None
    away: tuple[Away, ...] = ()
    quiet: tuple[Span, ...] = ()
    """Spans of every day in which no alert rings, by the person's own clock."""
    alerts: AlertPreferences = DEFAULT_PREFERENCES
    leads: tuple[str, ...] = ()
    """Roles of which they are the lead: escalations go to them before sales leadership."""


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
    seen: set[str] = set()
    for node in top["people"].items() if "people" in top else ():
        person = _person(node)
        if person.id in seen:
            node.refuse(f"two people have the id {person.id!r}", "Give each an id of their own.")
        seen.add(person.id)
        people.append(person)
    if root.problems:
        raise SourceError(root.problems)
    return team_of(tuple(people))


def load_team(path: Path) -> Team:
    """Read the roster at `path`; raises OSError, or SourceError as `parse_team`."""
    return parse_team(path.read_text(encoding="utf-8"), os.fspath(path))


def _person(node: Node) -> Person:
    known = ("id", "name", "email", "roles", "territories", "weight", "time_zone", "working_hours",
             "channels", "quiet", "alerts", "leads")  # fmt: skip
    fields = node.mapping(known, ("id", "name", "roles"))
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
    zone = fields["time_zone"].text("UTC") if "time_zone" in fields else "UTC"
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        fields["time_zone"].refuse(f"unknown time zone {zone!r}", "Write it as Europe/Berlin.")
    hours = fields["working_hours"].text() if "working_hours" in fields else "09:00-17:00"
    if not _HOURS.fullmatch(hours):
        fields["working_hours"].refuse(f"{hours!r} are not hours", "Write them as '09:00-17:00'.")
    channels = read_channels(fields["channels"], id, email) if "channels" in fields else ()
    leads = tuple(
        r.one_of(ROLE_KEYS, "role") for r in (fields["leads"].items() if "leads" in fields else ())
    )
    return Person(
        id=id,
        name=fields["name"].text("?") if "name" in fields else "?",
        email=email,
        roles=roles,
        territories=fields["territories"].texts() if "territories" in fields else (),
        weight=fields["weight"].number(0, 100) if "weight" in fields else 1.0,
        time_zone=zone,
        working_hours=hours,
        channels=channels or ("inbox",),
        quiet=_quiet(fields["quiet"]) if "quiet" in fields else (),
        alerts=read_preferences(fields["alerts"], ROLE_KEYS, id, email)
        if "alerts" in fields
        else DEFAULT_PREFERENCES,
        leads=leads,
    )


def _quiet(node: Node) -> tuple[Span, ...]:
    spans: list[Span] = []
    for item in node.items():
        try:
            spans.append(span(item.text("22:00-06:00")))
        except ValueError as error:
            item.refuse(str(error), "Write it as '22:00-07:00'.")
    return tuple(spans)
