"""What the routes of people answer."""

from __future__ import annotations

from typing import Any

import msgspec

from services.stage_service.api.shapes import Person


class Left(msgspec.Struct):
    """What became of the journeys of somebody who left."""

    id: Person
    given_on: int
    still_held: int
    to: Person | None


class PersonShown(msgspec.Struct):
    """A person as in the roster (team.schema.json)."""

    id: Person
    name: str
    roles: list[str]


class PersonLoad(msgspec.Struct):
    """What a person holds and got, and whether they are there."""

    open_journeys: int
    given: dict[str, int]
    next_for: list[str]
    is_open: bool
    away_until: Any
    stand_in: str | None


class PersonListed(PersonShown):
    """A person with the version (``ETag``) and what they hold."""

    version: int
    load: PersonLoad


class ImportDone(msgspec.Struct):
    """What an import did, or would do: ids."""

    dry_run: bool
    added: list[str]
    changed: list[str]
    unchanged: list[str]
