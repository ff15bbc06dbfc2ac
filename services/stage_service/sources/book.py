"""The source files of a directory, as they are now; a vendor that heard 404 would not come again."""

from __future__ import annotations

from pathlib import Path

from services.contracts.yaml_book import YamlBook, load_named
from services.stage_service.sources.source import Source
from services.stage_service.sources.source_file import parse_source


def load_source(path: Path) -> Source:
    """Read one source file; raises OSError, or SourceError with all its mistakes.

    Its name in the file must be the file's.
    """
    return load_named(path, parse_source, "source")


class SourceBook(YamlBook[Source]):
    """The sources by name."""

    kind = "source"
    files_max = 500

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, load_source)

    @property
    def sources(self) -> dict[str, Source]:
        """Give those that can be used."""
        return self._good
