"""The official clients, unmodified and pointed at Baton: 1,000 events each, a stop of Baton in between.

The clients of the Segment HTTP API try again by themselves; the libraries that only write or sign are
driven by a sender that does. Every event is there once, in all their modes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from standardwebhooks import Webhook

from services.baton.embedded import EmbeddedPostgres
from tests.conftest import ROOT, missing
from tests.system.running import RunningBaton, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

COUNT = 1000
STOP_AFTER = 150
CLIENTS = Path(__file__).parent / "clients"
MODULES = ROOT / ".cache" / "clients" / "node_modules"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
STANDARD = """
name: standard
title: Standard Webhooks
evidence: real samples
verify:
  - hmac:
      header: webhook-signature
      prefix: "v1,"
      separator: space
      encoding: base64
      key: whsec
      id_header: webhook-id
      content: "{id}.{timestamp}.{body}"
      timestamp: {header: webhook-timestamp}
read: json
events:
  - type: "{delivery.type}"
    id: "{headers['webhook-id']}"
    time: delivery.timestamp
    email: delivery.data.email
"""


@pytest.fixture(scope="module")
def baton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBaton]:
    """A Baton with the shipped sources and one that verifies Standard Webhooks."""
    sources = tmp_path_factory.mktemp("sources")
    shutil.copytree(ROOT / "sources", sources, dirs_exist_ok=True)
    (sources / "standard.yaml").write_text(STANDARD)
    running = RunningBaton(
        tmp_path_factory.mktemp("up") / "data",
        {"BATON_SOURCES_DIR": str(sources), "BATON_SOURCE_SECRET_STANDARD": SECRET},
    )
    running.start()
    yield running
    if running.process is not None:
        running.stop()


def stored(baton: RunningBaton, sql: str, *values: Any) -> Any:
    """Ask Baton's database."""

    async def ask() -> Any:
        connection = await asyncpg.connect(EmbeddedPostgres(baton.data).url())
        try:
            return await connection.fetchval(sql, *values)
        finally:
            await connection.close()

    return asyncio.run(ask())


def interrupted(baton: RunningBaton, count: Callable[[], int]) -> None:
    """Stop Baton when some events have come, and start it again."""
    until(lambda: count() >= STOP_AFTER, f"{STOP_AFTER} events", 60)
    baton.stop()
    time.sleep(1.0)  # long enough that a client meets a closed port
    baton.start()


def run_client(baton: RunningBaton, source: str, user: str, *command: str) -> None:
    """Run a client beside a stop of Baton; every event is there once."""
    users = (
        "SELECT count(*) FROM stage.events WHERE source = $1 AND data->'external_ids'->>$2 LIKE $3"
    )
    system = source.rpartition("/")[2]

    def count() -> int:
        return stored(baton, users, source, system, f"{user}-%")

    before = count()
    assert before == 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        interrupted(baton, lambda: count() or (STOP_AFTER if process.poll() else 0))
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, output
    until(lambda: count() >= COUNT, f"{COUNT} events of {count()}: {output}", 30)
    assert count() == COUNT, output
    assert stored(baton, "SELECT count(*) FROM stage.quarantine") == 0


@pytest.mark.parametrize("gzip", ["plain", "gzip"])
@pytest.mark.parametrize("client", ["segment", "rudder"])
def test_python_clients(baton: RunningBaton, client: str, gzip: str) -> None:
    """segment-analytics-python and rudder-sdk-python."""
    source = "segment" if client == "segment" else "rudderstack"
    url = baton.url if source == "segment" else f"{baton.url}/rudderstack"
    run_client(
        baton, f"/sources/{source}", f"python-{client}-{gzip}", sys.executable,
        str(CLIENTS / "segment_python.py"), client, url, baton.key, str(COUNT), gzip,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("client", "gzip"), [("segment", "plain"), ("rudder", "plain"), ("rudder", "gzip")]
)
def test_node_clients(baton: RunningBaton, client: str, gzip: str) -> None:
    """@segment/analytics-node and @rudderstack/rudder-sdk-node."""
    if shutil.which("node") is None or not MODULES.is_dir():
        missing("the Node.js clients: `make clients`")
    source = "segment" if client == "segment" else "rudderstack"
    url = baton.url if source == "segment" else f"{baton.url}/rudderstack"
    run_client(
        baton, f"/sources/{source}", f"node-{client}-{gzip}", "node", str(CLIENTS / "segment.mjs"),
        client, str(MODULES), url, baton.key, str(COUNT), gzip,
    )  # fmt: skip


class Sender:
    """Posts, and posts again until it hears 2xx: what a library that only writes leaves to its user."""

    def __init__(self, baton: RunningBaton) -> None:
        self._baton = baton
        self._client = httpx.Client(timeout=10)
        self.again = 0
        self.is_given_up = False

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def post(self, path: str, request: Callable[[], tuple[dict[str, str], bytes]]) -> None:
        """Post what `request` gives, made anew for each try."""
        while True:
            headers, body = request()
            try:
                answer = self._client.post(self._baton.url + path, headers=headers, content=body)
            except httpx.HTTPError:
                assert not self.is_given_up, "Baton did not come back"
                self.again += 1
                time.sleep(0.05)
                continue
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 200:
                return
            self.again += 1


async def _beside(work: Callable[[], None], other: Callable[[], None]) -> None:
    await asyncio.gather(asyncio.to_thread(work), asyncio.to_thread(other))


def deliver(baton: RunningBaton, source: str, send: Callable[[Sender], None]) -> None:
    """Run `send` beside a stop of Baton; every event of `source` is there once."""
    sql = "SELECT count(*) FROM stage.events WHERE source = $1"
    sender = Sender(baton)
    before = stored(baton, sql, source)

    def stop() -> None:
        try:
            until(lambda: stored(baton, sql, source) >= before + STOP_AFTER, "some events", 60)
            baton.stop()
            baton.start()
        except BaseException:
            sender.is_given_up = True
            raise

    with contextlib.closing(sender):
        asyncio.run(_beside(lambda: send(sender), stop))
    assert sender.again > 0, "the stop met nobody"
    assert stored(baton, sql, source) == before + COUNT


@pytest.mark.parametrize("mode", ["structured", "binary", "batch"])
def test_the_cloudevents_sdk(baton: RunningBaton, mode: str) -> None:
    """What the SDK writes, in all three modes of the HTTP binding."""
    key = {"authorization": f"Bearer {baton.key}"}
    source = f"/sdk/{mode}"

    def event(n: int) -> CloudEvent:
        return CloudEvent(
            {"id": f"{mode}-{n}", "source": source, "type": "page.viewed",
             "time": datetime.now(UTC), "datacontenttype": "application/json", "specversion": "1.0"},
            {"email": f"sdk-{n % 50}@example.com"},
        )  # fmt: skip

    def message(n: int) -> tuple[dict[str, str], bytes]:
        write = to_binary_event if mode == "binary" else to_structured_event
        written = write(event(n))
        return {**dict(written.headers), **key}, bytes(written.body)

    def batch(start: int) -> tuple[dict[str, str], bytes]:
        items = [json.loads(to_structured_event(event(n)).body) for n in range(start, start + 10)]
        headers = {"content-type": "application/cloudevents-batch+json", **key}
        return headers, json.dumps(items).encode()

    def send(sender: Sender) -> None:
        if mode == "batch":
            for start in range(0, COUNT, 10):
                sender.post("/v1/events", lambda start=start: batch(start))
        else:
            for n in range(COUNT):
                sender.post("/v1/events", lambda n=n: message(n))

    deliver(baton, source, send)


def test_standard_webhooks(baton: RunningBaton) -> None:
    """What the standard's library signs; each try is signed anew, with the same id."""
    webhook = Webhook(SECRET)

    def request(n: int) -> tuple[dict[str, str], bytes]:
        now = datetime.now(UTC)
        body = json.dumps({
            "type": "page.viewed", "timestamp": "2026-01-31T09:30:00Z",
            "data": {"email": f"sw-{n % 50}@example.com"},
        })  # fmt: skip
        return {
            "webhook-id": f"msg_{n}", "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": webhook.sign(f"msg_{n}", now, body),
        }, body.encode()  # fmt: skip

    def send(sender: Sender) -> None:
        for n in range(COUNT):
            sender.post("/webhooks/standard", lambda n=n: request(n))

    deliver(baton, "/sources/standard", send)


def test_nothing_is_amiss_after_all_that(baton: RunningBaton) -> None:
    baton.verify()
