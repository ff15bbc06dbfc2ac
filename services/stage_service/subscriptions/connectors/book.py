"""The connector files of a directory as they are now; one that has become wrong leaves the last good one."""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from services.contracts.yaml_source import Problem, SourceError
from services.stage_service.subscriptions.connectors.connector import Connector
from services.stage_service.subscriptions.connectors.connector_file import parse_connector

FILES_MAX = 200
_log = structlog.get_logger("baton.connectors")


def load_connector(path: Path) -> Connector:
    """Read one connector file; raises OSError, or SourceError with all its mistakes.

    Its name in the file must be the file's.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SourceError([
            Problem(os.fspath(path), 1, 1, "not UTF-8", "Save it as UTF-8.")
        ]) from None  # fmt: skip
    connector = parse_connector(text, os.fspath(path))
    if connector.name != path.stem:
        raise SourceError([Problem(
            os.fspath(path), 1, 1, f"the connector {connector.name!r} is in {path.name}",
            f"Name the file {connector.name}.yaml.",
        )])  # fmt: skip
    return connector


class ConnectorBook:
    """The connectors by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.connectors: dict[str, Connector] = {}
        self.refused: dict[str, SourceError] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def refresh(self) -> bool:
        """Read what is new or changed; True when something was. A mistake is logged, not raised."""
        seen: dict[str, tuple[int, int]] = {}
        for path in sorted(self.directory.glob("*.yaml"))[:FILES_MAX]:
            try:
                stat = path.stat()
                seen[path.stem] = (stat.st_mtime_ns, stat.st_size)
                if self._seen.get(path.stem) != seen[path.stem]:
                    self.connectors[path.stem] = load_connector(path)
                    self.refused.pop(path.stem, None)
            except SourceError as error:
                self.refused[path.stem] = error
                for problem in error.problems:
                    _log.error("connector.refused", connector=path.stem, problem=str(problem))
            except OSError as error:
                _log.error("connector.unreadable", connector=path.stem, reason=type(error).__name__)
        is_changed = seen != self._seen
        self._seen = seen
        return is_changed
