"""The connector files of a directory as they are now."""

from __future__ import annotations

from pathlib import Path

from services.contracts.yaml_book import YamlBook, load_named
from services.stage_service.subscriptions.connectors.connector import Connector
from services.stage_service.subscriptions.connectors.connector_file import parse_connector


def load_connector(path: Path) -> Connector:
    """Read one connector file; raises OSError, or SourceError with all its mistakes.

    Its name in the file must be the file's.
    """
    return load_named(path, parse_connector, "connector")


class ConnectorBook(YamlBook[Connector]):
    """The connectors by name."""

    kind = "connector"
    files_max = 200

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, load_connector)

    @property
    def connectors(self) -> dict[str, Connector]:
        """Give those that can be used."""
        return self._good
