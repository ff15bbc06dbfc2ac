"""What will become of publications that wait, if nothing else is published until then. No I/O.

Each is judged as it will be when it is due (`shelf`), on what the ones before it will have made active. So
who publishes, or schedules one more, hears at once what they break, and not whoever reads the log that night.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC
from typing import NamedTuple, Protocol

from services.contracts.problems import BatonError
from services.contracts.yaml_source import SourceError
from services.stage_service.errors import PlaybookChangedError, PlaybookUnchangedError
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_succession import following, succession
from services.stage_service.versions import Scheduled


class Active(Protocol):
    """What is known of an active version: its row, or what was read of it."""

    @property
    def version(self) -> int:
        """Its number."""
        ...

    @property
    def digest(self) -> str:
        """Of its text."""
        ...


class Prospect(NamedTuple):
    """What will become of `scheduled`: the `version`, or None where it will be refused, for `reason`."""

    scheduled: Scheduled
    version: int | None
    reason: str | None

    @property
    def told(self) -> str:
        """Say it in a sentence."""
        it = self.scheduled
        when = f"{it.activate_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        what = f"what {it.author} has scheduled for {when} ({it.id})"
        if self.reason is not None:
            return f"{what} will be refused then: {self.reason.rstrip('.')}"
        return f"{what} will take its place then, as version {self.version}"

    @property
    def remedy(self) -> str:
        """Say what can be done."""
        if self.reason is not None:
            return "Call it off, or schedule it again on top of what is active."
        return "Call it off if that is not meant."


def expect(playbook: Playbook, active: Active | None, expected: int | None) -> None:
    """Hold that the `active` version is the `expected` one, and another text than the `playbook`.

    Raises PlaybookChangedError, PlaybookUnchangedError.
    """
    number = active.version if active is not None else 0
    if expected is not None and number != expected:
        raise PlaybookChangedError(
            f"version {number} of the playbook {playbook.name!r} is active, not {expected}",
            field="expected", value=expected,
            remedy="Look at what changed since, and publish on top of it.", extra={"active": number},
        )  # fmt: skip
    if active is not None and active.digest == playbook.digest:
        raise PlaybookUnchangedError(
            f"version {number} of the playbook {playbook.name!r} has this very text",
            remedy="There is nothing to publish.", extra={"active": number},
        )  # fmt: skip


def refusal_of(error: SourceError | BatonError) -> str:
    """Give why a publication is refused, as it is kept beside it."""
    return error.reason if isinstance(error, BatonError) else str(error)


def prospects(active: Mapping[str, Playbook], waiting: Iterable[Scheduled]) -> list[Prospect]:
    """Give what will become of `waiting`, the next first, on top of the `active` playbooks."""
    playbooks = dict(active)
    found: list[Prospect] = []
    for each in sorted(waiting, key=lambda s: (s.activate_at, s.id)):
        before = playbooks.get(each.name)
        try:
            playbook = parse_playbook(each.source, each.name)
            expect(playbook, before, each.base_version)
            moved = succession(playbook, playbooks, given=each.migrate, restored=each.restores)
        except (SourceError, BatonError) as error:
            found.append(Prospect(each, None, refusal_of(error)))
            continue
        version = (before.version if before is not None else 0) + 1
        playbooks[each.name] = following(playbook, before, version, moved)
        found.append(Prospect(each, version, None))
    return found
