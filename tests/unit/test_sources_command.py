"""`baton sources` on the command line: what a person sees who connects a tool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.baton.cli import app
from services.baton.encryption_key import ensure_key_file
from services.stage_service.encryption import EncryptionError, read_cipher
from tests.conftest import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "sources"
DIRECTORY = ["--dir", str(ROOT / "sources")]


def baton(*arguments: str, **more: str) -> tuple[int, str, str]:
    """Run `baton sources ...`: exit code, standard output, standard error."""
    result = CliRunner().invoke(app, ["sources", *arguments], env={"COLUMNS": "200", **more})
    return result.exit_code, result.stdout, result.stderr


def test_a_sample_is_shown_to_people_and_to_programs() -> None:
    sample = str(FIXTURES / "generic" / "zap.json")
    code, shown, _ = baton("test", "generic", sample, *DIRECTORY)
    assert code == 0
    assert "demo.requested" in shown
    assert "email=ada@example.com" in shown
    code, text, _ = baton("test", "generic", sample, "--json", *DIRECTORY)
    assert code == 0
    assert json.loads(text)["events"][0]["type"] == "demo.requested"


def test_a_sample_that_would_be_quarantined_says_why() -> None:
    code, shown, _ = baton("test", "hubspot", str(FIXTURES / "hubspot" / "batch.json"), *DIRECTORY)
    assert code == 1
    assert "item 7 would be quarantined: events: no mapping" in shown
    assert "6 events, 2 quarantined, 1 ignored" in shown


def test_a_whole_request_brings_its_headers(tmp_path: Path) -> None:
    file = tmp_path / "topics.yaml"
    file.write_text(
        "name: topics\ntitle: X\nevidence: real samples\nverify: [bearer]\nread: json\nevents:\n"
        "  - {type: '{headers[\"X-Topic\"]}.{query.list}', id: '{item.id}'}\n"
    )
    sample = tmp_path / "one.http"
    sample.write_text(
        "POST /webhooks/topics?list=7 HTTP/1.1\nX-Topic: lead.created\n"
        'Content-Type: application/json\n\n{"id": 1}\n'
    )
    code, text, _ = baton("test", str(file), str(sample), "--json")
    assert code == 0
    assert json.loads(text)["events"][0]["type"] == "lead.created.7"
    bare = tmp_path / "one.json"
    bare.write_text('{"id": 1}')
    code, text, _ = baton("test", str(file), str(bare), "--json", "--header", "X-Topic: a")
    assert json.loads(text)["quarantined"][0]["code"] == "no-type"


def test_mistakes_of_every_file_are_listed(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\ntitle: X\nevents: 5\n")
    (tmp_path / "other.yaml").write_text((ROOT / "sources" / "generic.yaml").read_text())
    code, shown, _ = baton("list", "--dir", str(tmp_path), "--data", str(tmp_path / "none"))
    assert code == 1
    assert "bad.yaml:" in shown
    assert "is in other.yaml" in shown
    code, _, told = baton("test", "bad", str(tmp_path / "bad.yaml"), "--dir", str(tmp_path))
    assert code == 2
    assert "has no 'verify'" in told
    code, _, told = baton("test", "nobody", str(tmp_path / "bad.yaml"), "--dir", str(tmp_path))
    assert code == 2


def test_the_list_counts_the_secrets_of_the_environment(tmp_path: Path) -> None:
    code, shown, _ = baton(
        "list", *DIRECTORY, "--data", str(tmp_path), BATON_SOURCE_SECRET_HUBSPOT="canary-a,canary-b"
    )
    assert code == 0
    assert "2 (environment)" in shown
    assert "canary" not in shown


def test_a_secret_needs_a_source_and_a_key(tmp_path: Path) -> None:
    code, _, told = baton("secret", "set", "nobody", *DIRECTORY, "--data", str(tmp_path))
    assert code == 2
    assert "nobody" in told


def test_the_key_file_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    path = ensure_key_file(tmp_path)
    first = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert ensure_key_file(tmp_path).read_text() == first
    sealed = read_cipher(None, path).seal("canary", "here")
    assert b"canary" not in sealed
    assert read_cipher(None, path).open(sealed, "here") == "canary"
    for cipher, place, change in (
        (read_cipher(None, path), "there", b""),
        (read_cipher(None, path), "here", b"x"),
        (read_cipher("A" * 43 + "=", None), "here", b""),
    ):
        with pytest.raises(EncryptionError):
            cipher.open(sealed + change, place)
    rotated = read_cipher("A" * 43 + "=," + first.strip(), None)
    assert rotated.open(sealed, "here") == "canary"
    assert rotated.seal("x", "here")[:4] != sealed[:4]


@pytest.mark.parametrize("key", ["short", "AAAA", "!" * 44])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(EncryptionError, match="32 bytes in base64"):
        read_cipher(key, None)
    with pytest.raises(EncryptionError, match="no encryption key"):
        read_cipher(None, None).seal("x", "here")


def test_a_source_or_a_sample_that_is_not_there_is_said(tmp_path: Path) -> None:
    """A slip is told with the nearest name, a new name with the file to write; no errno."""
    sample = tmp_path / "one.json"
    code, _, told = baton("test", "hubsot", str(sample), *DIRECTORY)
    assert code == 2
    assert told.strip().endswith("Did you mean 'hubspot'?")
    code, _, told = baton("test", "zzz-tool", str(sample), *DIRECTORY)
    assert code == 2
    assert f"Write {ROOT / 'sources' / 'zzz-tool.yaml'}" in told
    code, _, told = baton("test", "hubspot", str(sample), *DIRECTORY)
    assert (code, told.strip()) == (2, f"{sample}: No such file or directory")
    code, _, told = baton("secret", "set", "hubsot", *DIRECTORY)
    assert code == 2
    assert "Did you mean 'hubspot'?" in told
