"""The stage service starts before its database: it listens, says so, and goes on by itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.baton.embedded import EmbeddedPostgres
from tests.integration.stage import STRUCTURED
from tests.system.running import ROOT, free_port, lead_event, until


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
def environment(late: EmbeddedPostgres) -> dict[str, str]:
    """What `baton` is told."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("BATON_", "KAFKA_"))}
    return ours | {"BATON_DATABASE_URL": late.url(), "BATON_PORT": str(free_port())}


@pytest.fixture
def client(environment: dict[str, str], tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a stage service whose database is away."""
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "baton", "serve", "stage"],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    with httpx.Client(base_url=f"http://127.0.0.1:{environment['BATON_PORT']}") as it:

        def listens() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                return it.get("/livez").status_code == 200
            except httpx.TransportError:
                return False

        try:
            until(listens, "the stage service listens")
            yield it
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) in (0, -signal.SIGTERM)  # the server passes its signal on
    assert "Traceback" not in (tmp_path / "log").read_text()


def baton(environment: dict[str, str], *arguments: str) -> str:
    """Run a command and give what it prints."""
    return subprocess.run(
        [Path(sys.executable).parent / "baton", *arguments], cwd=ROOT, env=environment, check=True,
        capture_output=True, text=True,
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
    late: EmbeddedPostgres, environment: dict[str, str], client: httpx.Client
) -> None:
    """Without a server, with an empty database, then with a migrated one."""
    assert_waits(client)
    late.start()
    late.ensure_database()
    assert_waits(client)
    baton(environment, "migrate")
    until(lambda: client.get("/readyz").status_code == 200, "the stage service is ready")
    made = baton(environment, "keys", "create", "late", "--scope", "ingest", "--source", "/test")
    key = next(line.split()[1] for line in made.splitlines() if line.startswith("key"))
    answer = client.post(
        "/v1/events", json=lead_event("e-1", "page.viewed", "ada@example.com"),
        headers={"authorization": f"Bearer {key}", "content-type": STRUCTURED},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert "source=/test" in baton(environment, "keys", "list")


def test_it_stops_while_it_waits(client: httpx.Client) -> None:
    """SIGTERM ends it at once, without an error."""
    assert_waits(client)
