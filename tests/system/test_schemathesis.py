"""Schemathesis asks both services whatever their OpenAPI documents allow, and what they do not.

No 5xx, no status, header or body that is not documented, nothing taken that the document refuses; one call
after another too (stateful). CI asks a fixed set of questions; ``BATON_SCHEMATHESIS_S`` goes on with new
ones for so many seconds a service.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.system.running import RunningBaton, lead_event

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

CONFIG = ROOT / "tests" / "contracts" / "schemathesis.toml"
EXAMPLES = 1
CASES_MIN = {"stage": 900, "notifier": 300}
SECONDS = os.environ.get("BATON_SCHEMATHESIS_S")


@pytest.fixture(scope="module")
def baton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBaton]:
    """A Baton with some leads, handoffs and alerts to ask about."""
    it = RunningBaton(
        tmp_path_factory.mktemp("schemathesis") / "data",
        {"BATON_RATE_LIMIT_REQUESTS": "off", "BATON_RATE_LIMIT_FAILURES": "off"},
    ).start()
    try:
        ways = (("demo.requested",), ("demo.requested", "meeting.booked"))
        it.send(*(
            lead_event(f"{n}-{type}", type, f"l{n}@acme{n % 3}.example", company="Acme")
            for n in range(8)
            for type in ways[n % 2]
        ))  # fmt: skip
        yield it
    finally:
        it.stop()


def test_every_answer_is_a_documented_one(baton: RunningBaton, tmp_path: Path) -> None:
    urls = {"stage": baton.url, "notifier": baton.notifier_url}
    runs = {service: asking(url, baton.key, tmp_path / service) for service, url in urls.items()}
    told = {service: run.communicate()[0] for service, run in runs.items()}
    for service, said in told.items():
        assert runs[service].returncode == 0, said[-20_000:]
        found = re.search(r"(\d+) generated", said)
        assert found, said[-2000:]
        assert int(found[1]) >= CASES_MIN[service]
        logged = (baton.data / f"{service}.log").read_text()
        assert '"level": "error"' not in logged
        assert "Traceback" not in logged


def asking(url: str, key: str, directory: Path) -> subprocess.Popen[str]:
    """Start asking the service at `url`."""
    directory.mkdir()
    more = (
        ["--max-time", SECONDS, "--max-examples", "100"]
        if SECONDS
        else ["--generation-deterministic", "--max-examples", str(EXAMPLES)]
    )
    return subprocess.Popen(
        [
            Path(sys.executable).parent / "schemathesis", "--config-file", CONFIG, "run",
            f"{url}/openapi.json", "--header", f"Authorization: Bearer {key}",
            "--request-timeout", "15", "--workers", "1", "--no-color", *more,
        ],
        cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
