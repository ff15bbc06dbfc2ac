"""A running Baton for tests: `baton up` as a user starts it, in a directory and on ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
BATCHED = "application/cloudevents-batch+json"
STRUCTURED = "application/cloudevents+json"
# One for all: httpx reads the certificate authorities anew for each client, 16 ms, and tests ask often.
TLS = httpx.create_ssl_context()


def free_port() -> int:
    """Give a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], Any], what: str, within_s: float = 30.0) -> Any:
    """Wait until `condition` gives something true, and give that; fail with `what` otherwise."""
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


def lead_event(
    id: str, type: str, email: str, source: str = "/test", **more: Any
) -> dict[str, Any]:
    """Make a CloudEvent about the lead `email`; `time` among `more` is its time, the rest data."""
    event: dict[str, Any] = {"specversion": "1.0", "id": id, "source": source, "type": type}
    if "time" in more:
        event["time"] = more.pop("time")
    return event | {"data": {"email": email, **more}}


class RunningBaton:
    """`baton up` in a directory; stop it, kill it or its parts, start it again."""

    def __init__(
        self, data: Path, environment: dict[str, str] | None = None, *options: str
    ) -> None:
        self.data = data
        self.port = free_port()
        self.notifier_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.notifier_url = f"http://127.0.0.1:{self.notifier_port}"
        self._environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("BATON_", "KAFKA_"))
        } | (environment or {})
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None
        self._printed = data.with_suffix(".out")

    @property
    def output(self) -> str:
        """What the present run printed so far."""
        return self._printed.read_text()

    def start(self, within_s: float = 60.0) -> RunningBaton:
        """Start it and wait until it says that it is up."""
        with self._printed.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    Path(sys.executable).parent / "baton", "up", "--data", self.data,
                    "--port", str(self.port), "--notifier-port", str(self.notifier_port),
                    *self._options,
                ],
                cwd=ROOT, env=self._environment, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

        def is_up() -> bool:
            assert self.process.poll() is None, f"baton up ended: {self.output}"
            return "Stop with Ctrl-C" in self.output

        try:
            until(is_up, "baton up", within_s)
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def login_url(self) -> str:
        """The one-time link it printed."""
        found = re.search(r"http://\S+/login#\S+", self.output)
        assert found, self.output
        return found[0]

    def stop(self) -> str:
        """Stop it as Ctrl-C does and give what it printed."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        self.process.wait(40)
        self.process = None
        return self.output

    @property
    def key(self) -> str:
        """The all-scopes key."""
        return (self.data / "api-key").read_text().strip()

    def client(self) -> httpx.Client:
        """An HTTP client of the stage service with the key."""
        return httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=30,
            verify=TLS,
        )  # fmt: skip

    def send(self, *events: dict[str, Any]) -> list[dict[str, Any]]:
        """Post `events` in batches of 500 and give the results."""
        results: list[dict[str, Any]] = []
        with self.client() as client:
            for start in range(0, len(events), 500):
                answer = client.post(
                    "/v1/events", content=json.dumps(events[start : start + 500]),
                    headers={"content-type": BATCHED},
                )  # fmt: skip
                assert answer.status_code == 200, answer.text
                results += answer.json()["results"]
        return results

    def get(self, path: str, **parameters: Any) -> Any:
        """Read from the stage service."""
        with self.client() as client:
            answer = client.get(path, params=parameters)
            assert answer.status_code == 200, answer.text
            return answer.json()

    def feed(self) -> list[dict[str, Any]]:
        """The whole transition feed."""
        items: list[dict[str, Any]] = []
        while page := self.get("/v1/transitions", after=len(items), limit=1000)["items"]:
            items += page
        return items

    def alerts(self, **parameters: Any) -> list[dict[str, Any]]:
        """All alerts of the notifier that `parameters` select."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        with httpx.Client(
            base_url=self.notifier_url,
            headers={"authorization": f"Bearer {self.key}"},
            timeout=30,
            verify=TLS,
        ) as client:
            while True:
                query = {"limit": 200, **parameters} | ({"cursor": cursor} if cursor else {})
                answer = client.get("/v1/alerts", params=query)
                assert answer.status_code == 200, answer.text
                items += answer.json()["items"]
                cursor = answer.json()["next_cursor"]
                if cursor is None:
                    return items

    def pids(self, name: str) -> list[int]:
        """The process ids of its parts by name: ``stage``, ``notifier``, ``postgres``."""
        assert self.process is not None
        children = _children(self.process.pid)
        if name == "postgres":
            return [p for p in children if _command(p)[:1] and _command(p)[0].endswith("/postgres")]
        return [p for p in children if _command(p)[-2:] == ["serve", name]]

    def verify(self) -> str:
        """Run `baton verify`; it must be clean."""
        done = subprocess.run(
            [Path(sys.executable).parent / "baton", "verify", "--data", self.data],
            cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def _children(pid: int) -> Iterable[int]:
    tasks = Path(f"/proc/{pid}/task")
    found: list[int] = []
    for task in tasks.iterdir():
        found += [int(p) for p in (task / "children").read_text().split()]
    return found


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    except OSError:
        return []


def stage_process(
    database_url: str, log: Path, **settings: str
) -> tuple[subprocess.Popen[bytes], str]:
    """Run `baton serve stage` until it listens and give (the process, its URL); `settings` without BATON_."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BATON_", "KAFKA_"))}
    port = str(free_port())
    environment |= {"BATON_DATABASE_URL": database_url, "BATON_PORT": port}
    environment |= {f"BATON_{name.upper()}": value for name, value in settings.items()}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "baton", "serve", "stage"],
            cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"{url}/livez", verify=TLS).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(listens, "the stage service listens", 120)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process, url


@contextlib.contextmanager
def serving_process(database_url: str, log: Path, **settings: str) -> Iterator[httpx.Client]:
    """Give a client of a `stage_process`, and stop that after."""
    process, url = stage_process(database_url, log, **settings)
    try:
        with httpx.Client(base_url=url, timeout=30, verify=TLS) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        ended = process.wait(20)
    assert ended in (0, -signal.SIGTERM)  # the server passes its signal on
    assert "Traceback" not in log.read_text()
