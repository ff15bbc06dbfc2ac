"""The source files of a directory, as they are now: good ones ready for use, bad ones with their mistakes.

A file that is changed is read again; one that has become wrong leaves the last good version in use, and so
does one that cannot be read now, or a directory that is not there now: a vendor that heard 404 would not come
again.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from services.contracts.yaml_source import Problem, SourceError
from services.stage_service.sources.source import Source
from services.stage_service.sources.source_file import parse_source

FILES_MAX = 500
_log = structlog.get_logger("baton.sources")


def load_source(path: Path) -> Source:
    """Read one source file; raises OSError, or SourceError with all its mistakes.

    Its name in the file must be the file's.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SourceError([
            Problem(os.fspath(path), 1, 1, "not UTF-8", "Save it as UTF-8.")
        ]) from None  # fmt: skip
    source = parse_source(text, os.fspath(path))
    if source.name != path.stem:
        raise SourceError([Problem(
            os.fspath(path), 1, 1, f"the source {source.name!r} is in {path.name}",
            f"Name the file {source.name}.yaml.",
        )])  # fmt: skip
    return source


class SourceBook:
    """The sources by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sources: dict[str, Source] = {}
        self.refused: dict[str, SourceError] = {}
        """Files that cannot be used now, by the name of their source."""
        self._seen: dict[str, tuple[int, int] | None] = {}
        """When each file was written and how large it is; None: it could not be read."""
        self._is_missing = False

    def refresh(self) -> bool:
        """Read what is new or changed; True when something was. A mistake is logged, not raised."""
        was_missing, self._is_missing = self._is_missing, not self.directory.is_dir()
        if self._is_missing:
            if not was_missing:
                _log.error("sources.no_directory", directory=os.fspath(self.directory))
            return False
        seen: dict[str, tuple[int, int] | None] = {}
        paths = sorted(self.directory.glob("*.yaml"))[:FILES_MAX]
        for path in paths:
            name = path.stem
            try:
                stat = path.stat()
                seen[name] = (stat.st_mtime_ns, stat.st_size)
                if self._seen.get(name) != seen[name]:
                    self._read(path)
            except OSError as error:
                self._tell_unreadable(path, error)
                seen[name] = None  # looked at again at the next refresh, changed or not
        for name in set(self._seen) - set(seen):
            self.sources.pop(name, None)
            self.refused.pop(name, None)
        is_changed = seen != self._seen
        self._seen = seen
        return is_changed

    def _read(self, path: Path) -> None:
        try:
            self.sources[path.stem] = load_source(path)
            self.refused.pop(path.stem, None)
        except SourceError as error:
            self.refused[path.stem] = error
            for problem in error.problems:
                _log.error("source.refused", source=path.stem, problem=str(problem))

    def _tell_unreadable(self, path: Path, error: OSError) -> None:
        reason = type(error).__name__
        self.refused[path.stem] = SourceError([
            Problem(os.fspath(path), 1, 1, f"it cannot be read ({reason})", "Let Baton read it.")
        ])  # fmt: skip
        if self._seen.get(path.stem, ()) is not None:
            _log.error("source.unreadable", source=path.stem, reason=reason)
