"""Settings as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.stage_service.settings import StageSettings


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("playbooks/sales.yaml", ["playbooks/sales.yaml"]),
        ('["a.yaml", "b.yaml"]', ["a.yaml", "b.yaml"]),
    ],
)
def test_playbooks_are_a_path_or_a_list(
    text: str, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_PLAYBOOK_FILES", text)
    monkeypatch.setenv("BATON_DATABASE_URL", "postgresql://x")
    assert StageSettings().playbook_files == [Path(f) for f in files]  # pyright: ignore[reportCallIssue]


def test_a_broken_list_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_PLAYBOOK_FILES", '["a.yaml"')
    monkeypatch.setenv("BATON_DATABASE_URL", "postgresql://x")
    with pytest.raises(ValidationError, match="playbook_files"):
        StageSettings()  # pyright: ignore[reportCallIssue]
