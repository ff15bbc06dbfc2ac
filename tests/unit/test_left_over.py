"""What a killed test run left in memory is removed, and nothing that a run still uses."""

from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import hold, is_left_over


def test_only_what_no_process_holds_is_left_over(tmp_path: Path) -> None:
    """Also one whose process goes by another number here: it holds its directory."""
    mine, other = tmp_path / f"baton-test-{os.getpid()}-a", tmp_path / "baton-test-999999999-b"
    for each in (mine, other):
        each.mkdir()
    assert not is_left_over(mine)
    held = hold(other)
    assert not is_left_over(other)
    os.close(held)
    assert is_left_over(other)
    assert not is_left_over(tmp_path / "baton-test-999999999-c")
