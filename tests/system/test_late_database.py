"""The stage service starts before its database: it listens, says so, and goes on by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.baton.embedded import EmbeddedPostgres
from tests.integration.stage import STRUCTURED
from tests.system.running import ROOT, lead_event, serving_process, until


@pytest.fixture
def late() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that is not started yet."""
    directory = Path(tempfile.mkdtemp(prefix="baton-late-"))
    server = EmbeddedPostgres(directory, durable=False)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def client(late: EmbeddedPostgres, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a stage service whose database is away."""
    with serving_process(late.url(), tmp_path / "log") as it:
        yield it


def baton(database_url: str, *arguments: str) -> str:
    """Run a command and give what it prints."""
    return subprocess.run(
        [Path(sys.executable).parent / "baton", *arguments], cwd=ROOT, check=True,
        capture_output=True, text=True, env=os.environ | {"BATON_DATABASE_URL": database_url},
    ).stdout  # fmt: skip


def assert_waits(client: httpx.Client) -> None:
    """It is alive, not ready, and tells everybody else to come again."""
    assert client.get("/livez").status_code == 200
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    assert "database" in ready.json()["reason"]
    for method, path in (("POST", "/v1/events"), ("GET", "/v1/leads"), ("GET", "/"),
                         ("GET", "/openapi.json"), ("GET", "/metrics")):  # fmt: skip
        answer = client.request(method, path)
        assert answer.status_code == 503, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "unavailable"
        assert int(answer.headers["retry-after"]) > 0


def test_it_listens_before_its_database_is_there(
    late: EmbeddedPostgres, client: httpx.Client
) -> None:
    """Without a server, with an empty database, then with a migrated one."""
    assert_waits(client)
    late.start()
    late.ensure_database()
    assert_waits(client)
    baton(late.url(), "migrate")
    until(lambda: client.get("/readyz").status_code == 200, "the stage service is ready")
    made = baton(late.url(), "keys", "create", "late", "--scope", "ingest", "--source", "/test")
    key = next(line.split()[1] for line in made.splitlines() if line.startswith("key"))
    answer = client.post(
        "/v1/events", json=lead_event("e-1", "page.viewed", "ada@example.com"),
        headers={"authorization": f"Bearer {key}", "content-type": STRUCTURED},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert "source=/test" in baton(late.url(), "keys", "list")


def test_it_stops_while_it_waits(client: httpx.Client) -> None:
    """SIGTERM ends it at once, without an error."""
    assert_waits(client)
