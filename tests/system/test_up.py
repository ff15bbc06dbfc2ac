"""`baton up` as a newcomer meets it: starts, says where it is, survives, stops clean."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.system.running import ROOT, RunningBaton, lead_event, until

pytestmark = pytest.mark.long
BATON = Path(sys.executable).parent / "baton"


def test_demo_fills_the_board_and_keeps_it_alive(tmp_path: Path) -> None:
    baton = RunningBaton(tmp_path / "data", None, "--demo").start()
    try:
        stages = {s["stage"]: s for s in baton.get("/v1/funnel")["stages"]}
        until(
            lambda: baton.get("/v1/funnel")["stages"][0]["reached"] >= 80, "80 leads on the board"
        )
        stages = {s["stage"]: s for s in baton.get("/v1/funnel")["stages"]}
        assert all(stages[key]["reached"] for key in ("lead", "mql", "sql", "proposal"))
        until(lambda: baton.alerts(), "alerts")
        (odd,) = until(lambda: baton.get("/v1/quarantine")["items"], "the delivery nobody maps")
        assert odd["source"] == "generic"
        leads = baton.get("/v1/leads", limit=200)["items"]
        merged = [lead for lead in leads if baton.get(f"/v1/leads/{lead['id']}")["merged_from"]]
        assert len(merged) >= 3
        before = len(baton.feed())
        until(lambda: len(baton.feed()) > before, "the trickle")
    finally:
        baton.stop()


def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    baton = RunningBaton(tmp_path / "data").start()
    baton.send(lead_event("1", "demo.requested", "a@b.example"))
    first = baton.feed() or until(baton.feed, "the feed")
    key = baton.key
    printed = baton.stop()
    assert "Stopped; everything is kept in" in printed
    assert "Traceback" not in printed
    again = baton.start()
    try:
        assert baton.key == key
        assert again.feed() == first
        assert "clean" in again.verify()
    finally:
        again.stop()


def test_a_killed_supervisor_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """kill -9 of `baton up` itself: its children stop, and the next start finds the data."""
    baton = RunningBaton(tmp_path / "data").start()
    baton.send(lead_event("1", "demo.requested", "a@b.example"))
    pids = [p for name in ("stage", "notifier") for p in baton.pids(name)]
    assert len(pids) == 2
    assert baton.process is not None
    baton.process.kill()
    baton.process.wait()
    until(
        lambda: not any(Path(f"/proc/{p}/cmdline").exists() and _alive(p) for p in pids),
        "their end",
    )
    baton.start()
    try:
        assert len(until(baton.feed, "the feed")) == 1
        assert "clean" in baton.verify()
    finally:
        baton.stop()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("option", ["--port", "--notifier-port"])
def test_a_taken_port_is_said_clearly(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [BATON, "up", "--data", tmp_path / "data", option, str(port)],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"port {port} is taken by another program" in done.stderr
    assert option in done.stderr
    assert "Traceback" not in done.stderr


def test_two_in_one_directory_are_refused(tmp_path: Path) -> None:
    baton = RunningBaton(tmp_path / "data").start()
    try:
        done = subprocess.run(
            [BATON, "up", "--data", tmp_path / "data", "--port", "18491", "--notifier-port", "18492"],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 1
        assert "another `baton up` uses" in done.stderr
    finally:
        baton.stop()


def test_readiness_fails_first_when_it_stops(tmp_path: Path) -> None:
    """On SIGTERM /readyz says 503 while requests are still served; then the socket closes."""
    baton = RunningBaton(tmp_path / "data", {"BATON_DRAIN_S": "1.5"}).start()
    try:
        [pid] = baton.pids("stage")
        assert httpx.get(f"{baton.url}/readyz").status_code == 200
        os.kill(pid, signal.SIGTERM)
        until(lambda: httpx.get(f"{baton.url}/readyz").status_code == 503, "readiness fails")
        assert httpx.get(f"{baton.url}/livez").status_code == 200
        [result] = baton.send(lead_event("1", "demo.requested", "a@b.example"))
        assert result["status"] == "applied"
        until(lambda: baton.pids("stage") not in ([pid], []), "the supervisor starts it again")
    finally:
        baton.stop()


def test_nothing_listens_beyond_loopback(tmp_path: Path) -> None:
    baton = RunningBaton(tmp_path / "data").start()
    try:
        ports = {baton.port, baton.notifier_port}
        listening = [
            line.split()[1]
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) in ports
        ]
        assert len(listening) == 2
        assert all(address.startswith("0100007F:") for address in listening)
    finally:
        baton.stop()
