"""The roster as it is now: the one that both services share, else its file, read whenever that changes."""

from __future__ import annotations

from pathlib import Path

import structlog

from services.contracts.team import Team, load_team
from services.contracts.yaml_source import SourceError

_log = structlog.get_logger("baton.notifier")


class Roster:
    """Gives the team of `file`; raises OSError or SourceError when it cannot be read at first."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = self._stamp()
        self._team = load_team(file)
        self._adopted = False

    def adopt(self, team: Team) -> None:
        """Give `team` from now on: the shared roster was written, and the file does not count any more."""
        self._team = team
        self._adopted = True

    def team(self) -> Team:
        """Give the team. A file that has become unreadable is logged, and the last good one kept."""
        if self._adopted:
            return self._team
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                self._team = load_team(self._file)
                _log.info("roster.read", people=len(self._team.people))
        except (OSError, SourceError) as error:
            _log.warning("roster.unreadable", reason=type(error).__name__)
        return self._team

    def _stamp(self) -> tuple[int, int]:
        status = self._file.stat()
        return status.st_mtime_ns, status.st_size
