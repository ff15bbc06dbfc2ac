"""A real Kafka broker that a test can start, crash and start again.

It is the one of ``deploy/kafka``, unless ``KAFKA_BOOTSTRAP_SERVERS`` names another: that one is then
used as it is, and cannot be killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

KAFKA_PY = Path(__file__).resolve().parents[2] / "deploy" / "kafka" / "kafka.py"
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 20.0


def external_bootstrap_servers() -> str | None:
    """Return the broker the environment names, if it names one."""
    return os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or None


def available() -> tuple[bool, str]:
    """Say whether tests can have a broker now, and which one (or what is missing)."""
    if servers := external_bootstrap_servers():
        return True, f"the broker at {servers} (KAFKA_BOOTSTRAP_SERVERS)"
    asked = _kafka_py("check")
    return asked.returncode == 0, (asked.stdout or asked.stderr).strip()


class KafkaBroker:
    """One broker, with its state in `data`; `kill` is a crash, `start` after it a recovery."""

    def __init__(self, data: Path, port: int | None = None) -> None:
        self._data = data
        self._port = port or _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def fetch() -> None:
        """Copy Kafka's jars to this machine's cache, unless they are there."""
        if not external_bootstrap_servers():
            fetched = _kafka_py("fetch")
            if fetched.returncode != 0:
                raise RuntimeError(fetched.stderr)

    @property
    def bootstrap_servers(self) -> str:
        """Return what a Kafka client is given; the same after a restart."""
        return external_bootstrap_servers() or f"127.0.0.1:{self._port}"

    @property
    def log(self) -> str:
        """Return what the broker wrote to its output."""
        return (self._data / "broker.log").read_text("utf-8", "replace")

    def start(self) -> KafkaBroker:
        """Start the broker and return once it answers (2 s; 3 s after a crash)."""
        if external_bootstrap_servers() or self._process is not None:
            return self
        self._data.mkdir(parents=True, exist_ok=True)
        with (self._data / "broker.log").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    KAFKA_PY,
                    "start",
                    "--data",
                    self._data,
                    "--port",
                    str(self._port),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while _kafka_py("wait", "--port", str(self._port), "--timeout", "2").returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"Kafka did not start:\n{self.log[-4000:]}")
        return self

    def kill(self) -> None:
        """End the broker at whatever instruction it is (SIGKILL)."""
        if external_bootstrap_servers():
            raise RuntimeError("a broker that KAFKA_BOOTSTRAP_SERVERS names is not ours to kill")
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the broker cleanly; nothing happens when it does not run."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> KafkaBroker:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._end(signal.SIGKILL)


def _kafka_py(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, KAFKA_PY, *arguments], capture_output=True, text=True, check=False
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
