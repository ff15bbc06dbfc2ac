"""What the commands share: where the services are, and how it is told that they are not there."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from services.baton.cli import app
from services.baton.command import NOTIFIER_URL_FILE, URL_FILE, told


def baton(*arguments: str) -> tuple[int, str]:
    """Run a command where nobody listens: exit code, standard error."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "BATON_API_KEY": "k"})
    return result.exit_code, result.stderr


def test_commands_ask_where_baton_up_of_the_data_directory_listens(tmp_path: Path) -> None:
    (tmp_path / URL_FILE).write_text("http://127.0.0.1:9")
    (tmp_path / NOTIFIER_URL_FILE).write_text("http://127.0.0.1:7")
    code, said = baton("quarantine", "list", "--data", str(tmp_path))
    assert code == 1
    assert said.startswith("Baton does not answer at http://127.0.0.1:9 (--url, BATON_URL)")
    code, said = baton("dead-letters", "list", "--data", str(tmp_path))
    assert "at http://127.0.0.1:7 " in said
    code, said = baton("quarantine", "list", "--data", str(tmp_path), "--url", "http://127.0.0.1:5")
    assert "at http://127.0.0.1:5 " in said


def test_an_error_is_told_in_sentences() -> None:
    assert told({"detail": "there is no lead 'a'", "remedy": "Ids are UUIDs."}) == (
        "there is no lead 'a'. Ids are UUIDs."
    )
    assert told({"detail": "Not now."}) == "Not now."
    assert told({}) == ""


def test_a_file_that_is_not_there_is_no_traceback(tmp_path: Path) -> None:
    code, said = baton("events", "send", str(tmp_path / "none.json"))
    assert (code, said) == (2, f"{tmp_path / 'none.json'}: No such file or directory\n")
