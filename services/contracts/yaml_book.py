"""The YAML files of a directory, as they are now: good ones ready for use, bad ones with their mistakes.

A file that is changed is read again; one that has become wrong leaves the last good version in use, and so
does one that cannot be read now, or a directory that is not there now: who asks for it would take it for
gone. A file that was deleted is gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog

from services.contracts.yaml_source import Problem, SourceError


class Named(Protocol):
    """What a file holds: it says its own name."""

    @property
    def name(self) -> str:
        """Give it."""
        ...


T = TypeVar("T", bound=Named)


class YamlBook(Generic[T]):
    """What the files hold, by name. `load` raises OSError, or SourceError; `kind` is the word for one."""

    kind: str
    files_max: int

    def __init__(self, directory: Path, load: Callable[[Path], T]) -> None:
        self.directory = directory
        self.refused: dict[str, SourceError] = {}
        """Files that cannot be used now, by name."""
        self._good: dict[str, T] = {}
        self._load = load
        self._log = structlog.get_logger(f"baton.{self.kind}s")
        self._seen: dict[str, tuple[int, int] | None] = {}
        """When each file was written and how large it is; None: it could not be read."""
        self._is_missing = False

    def refresh(self) -> bool:
        """Read what is new or changed; True when something was. A mistake is logged, not raised."""
        was_missing, self._is_missing = self._is_missing, not self.directory.is_dir()
        if self._is_missing:
            if not was_missing:
                self._log.error(f"{self.kind}s.no_directory", directory=os.fspath(self.directory))
            return False
        seen: dict[str, tuple[int, int] | None] = {}
        for path in sorted(self.directory.glob("*.yaml"))[: self.files_max]:
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
            self._good.pop(name, None)
            self.refused.pop(name, None)
        is_changed = seen != self._seen
        self._seen = seen
        return is_changed

    def _read(self, path: Path) -> None:
        try:
            self._good[path.stem] = self._load(path)
            self.refused.pop(path.stem, None)
        except SourceError as error:
            self.refused[path.stem] = error
            for problem in error.problems:
                self._log.error(
                    f"{self.kind}.refused", **{self.kind: path.stem}, problem=str(problem)
                )

    def _tell_unreadable(self, path: Path, error: OSError) -> None:
        reason = type(error).__name__
        self.refused[path.stem] = SourceError([
            Problem(os.fspath(path), 1, 1, f"it cannot be read ({reason})", "Let Baton read it.")
        ])  # fmt: skip
        if self._seen.get(path.stem, ()) is not None:
            self._log.error(f"{self.kind}.unreadable", **{self.kind: path.stem}, reason=reason)


def load_named(path: Path, parse: Callable[[str, str], T], kind: str) -> T:
    """Read one file with `parse`, which takes its text and its name for people.

    The name in the file must be the file's. Raises OSError, or SourceError with all its mistakes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SourceError([
            Problem(os.fspath(path), 1, 1, "not UTF-8", "Save it as UTF-8.")
        ]) from None  # fmt: skip
    found = parse(text, os.fspath(path))
    if found.name != path.stem:
        raise SourceError([Problem(
            os.fspath(path), 1, 1, f"the {kind} {found.name!r} is in {path.name}",
            f"Name the file {found.name}.yaml.",
        )])  # fmt: skip
    return found
