"""Where the files that are data lie: in the source tree, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

_TREE = Path(__file__).resolve().parents[2]
_INSTALLED = Path(__file__).resolve().parent / "data"


def _find(name: str) -> Path:
    return _INSTALLED / name if (_INSTALLED / name).exists() else _TREE / name


MIGRATIONS = _find("migrations")
"""The Alembic revisions."""
PLAYBOOKS = _find("playbooks")
"""The playbook and the roster that come with Baton."""
SOURCES = _find("sources")
"""The source files that come with Baton."""
CONNECTORS = _find("connectors")
"""The connector files that come with Baton."""
