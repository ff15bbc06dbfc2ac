"""The examples do what they say, against a running Baton: in Python, in JavaScript, and with curl.

What the receivers get here is signed by the standard's own library.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from baton.client import Client, Event
from services.baton.embedded import EmbeddedPostgres
from tests.conftest import ROOT, missing
from tests.integration.stage import fresh_database
from tests.system.running import free_port, stage_process, until
from tests.system.test_feed_readers import new_key

EXAMPLES = ROOT / "examples"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD = "whsec_" + "b2xk" * 10
SENDERS = ["python/send_event.py", "javascript/send-event.mjs", "curl/send-event.sh"]
FOLLOWERS = ["python/follow_feed.py", "javascript/follow-feed.mjs", "curl/follow-feed.sh"]
RECEIVERS = ["python/receive_webhook.py", "javascript/receive-webhook.mjs"]


@pytest.fixture(scope="module")
def environment(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """What the examples take from their environment; a stage service answers there."""
    with fresh_database(postgres) as database_url:
        process, url = stage_process(database_url, tmp_path_factory.mktemp("stage") / "log")
        try:
            key = asyncio.run(new_key(database_url))
            yield os.environ | {
                "BATON_URL": url, "BATON_API_KEY": key, "BATON_WEBHOOK_SECRET": SECRET,
                "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
            }  # fmt: skip
        finally:
            process.terminate()
            process.wait(20)


def command(example: str, *arguments: str) -> list[str]:
    """How an example is run; a missing tool skips the test, or fails it where all is required."""
    suffix = Path(example).suffix
    program = {".py": sys.executable, ".mjs": "node", ".sh": "sh"}[suffix]
    for tool in ([program], ["curl", "openssl"])[suffix == ".sh"]:
        if shutil.which(tool) is None:
            missing(tool)
    return [program, str(EXAMPLES / example), *arguments]


@contextlib.contextmanager
def started(out: Path, environment: dict[str, str], *words: str) -> Iterator[None]:
    """Run a program that has no end, and kill it at once with all that it started."""
    with out.open("ab") as to:
        process = subprocess.Popen(
            words, env=environment, stdout=to, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
        assert process.poll() is None, out.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.mark.parametrize("example", SENDERS)
def test_sending(environment: dict[str, str], example: str) -> None:
    email = f"{Path(example).stem}-{Path(example).suffix[1:]}@example.com"
    done = subprocess.run(
        command(example, email), env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "applied" in done.stdout
    assert "demo" in done.stdout  # why it moved
    with Client(environment["BATON_URL"], environment["BATON_API_KEY"]) as baton:
        lead = baton.lead_by_email(email)
    assert lead is not None
    assert lead.stage() == "mql"


@pytest.mark.parametrize("example", SENDERS)
def test_a_refusal_is_said(environment: dict[str, str], example: str) -> None:
    done = subprocess.run(
        command(example, "nobody@example.com"), env=environment | {"BATON_API_KEY": "wrong"},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode != 0
    assert "no valid API key" in done.stdout + done.stderr


@pytest.mark.parametrize("example", FOLLOWERS)
def test_following(environment: dict[str, str], example: str, tmp_path: Path) -> None:
    """Killed and started again it goes on where it was."""
    place, out = tmp_path / "place", tmp_path / "out"

    def sent(number: int) -> str:
        name = f"{Path(example).suffix[1:]}{number}@follow.example"
        with Client(environment["BATON_URL"], environment["BATON_API_KEY"]) as baton:
            baton.send(Event("demo.requested", "/follow", {"email": name}))
        return name

    def kept() -> int:
        return int((place.read_text() if place.exists() else "") or 0)

    with Client(environment["BATON_URL"], environment["BATON_API_KEY"]) as baton:
        for item in baton.transitions():
            place.write_text(str(item.position))
    began = kept()
    for number in range(3):
        # One comes while it runs, the next while it does not.
        name = sent(2 * number)
        with started(out, environment, *command(example, str(place))):
            until(lambda name=name: name in out.read_text(), f"{name} is told")
            name = sent(2 * number + 1)
            until(lambda number=number: kept() == began + 2 * number + 2, "its place is kept")
    told = [line for line in out.read_text().splitlines() if "@follow.example" in line]
    positions = [int(json.loads(t)["position"] if t[0] == "{" else t.split()[0]) for t in told]
    assert positions == list(range(began + 1, began + 7))


def delivery(
    body: bytes, *secrets: str, id: str = "m1", age: timedelta = timedelta()
) -> dict[str, str]:
    """The headers of a delivery signed with each of `secrets`."""
    at = datetime.now(UTC) - age
    signatures = " ".join(Webhook(s).sign(id, at, body.decode()) for s in secrets)
    return {
        "webhook-id": id, "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": signatures, "content-type": "application/cloudevents+json",
    }  # fmt: skip


def event(**data: Any) -> bytes:
    """A delivery's body."""
    return json.dumps(
        {"specversion": "1.0", "id": "m1", "source": "baton", "type": "baton.stage.transitioned.v1",
         "subject": "l", "data": {"to": "mql", **data}}, ensure_ascii=False,
    ).encode()  # fmt: skip


GOOD = event(name="Ada ☃")
UNGENUINE: dict[str, Callable[[], tuple[bytes, dict[str, str]]]] = {
    "another body": lambda: (GOOD + b" ", delivery(GOOD, SECRET)),
    "another secret": lambda: (GOOD, delivery(GOOD, OLD)),
    "too old": lambda: (GOOD, delivery(GOOD, SECRET, age=timedelta(minutes=6))),
    "from the future": lambda: (GOOD, delivery(GOOD, SECRET, age=-timedelta(minutes=6))),
    "another id": lambda: (GOOD, delivery(GOOD, SECRET) | {"webhook-id": "m2"}),
    "no signature": lambda: (GOOD, delivery(GOOD, SECRET) | {"webhook-signature": ""}),
    "cut off": lambda: (GOOD, delivery(GOOD, SECRET) | {"webhook-signature": "v1,"}),
    "no number": lambda: (GOOD, delivery(GOOD, SECRET) | {"webhook-timestamp": "now"}),
}
"""Made when they are sent: after five minutes each would be too old."""


@pytest.mark.parametrize("example", RECEIVERS)
def test_receiving(environment: dict[str, str], example: str, tmp_path: Path) -> None:
    """Signed deliveries are taken, once each; others are answered 401."""
    port, out = free_port(), tmp_path / "out"
    with (
        started(out, environment, *command(example, str(port))),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):

        def listens() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return client.post("/").status_code == 401
            return False

        until(listens, "the receiver listens")
        for name, made in UNGENUINE.items():
            body, headers = made()
            assert client.post("/", content=body, headers=headers).status_code == 401, name
        for headers in (delivery(GOOD, SECRET), delivery(GOOD, OLD, SECRET)):
            assert client.post("/", content=GOOD, headers=headers).status_code == 204
        assert client.post("/", content=GOOD, headers=delivery(GOOD, SECRET, id="m3")).is_success
        until(lambda: out.read_text().count("baton.stage.transitioned.v1 mql") == 2, "the work")
    assert out.read_text().count("\n") == 2


@pytest.mark.parametrize("name", ["genuine", *UNGENUINE])
def test_verifying_with_openssl(environment: dict[str, str], name: str) -> None:
    body, headers = UNGENUINE[name]() if name in UNGENUINE else (GOOD, delivery(GOOD, OLD, SECRET))
    told = (headers[f"webhook-{part}"] for part in ("id", "timestamp", "signature"))
    done = subprocess.run(
        command("curl/verify-webhook.sh", *told), input=body, env=environment,
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == (name == "genuine"), done.stderr
