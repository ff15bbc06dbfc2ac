"""Two stage services, two notifiers, one database, one Kafka: what is due fires once and is told once."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from bench import clocks
from services.baton.verify import verify_database
from services.contracts import access
from tests.integration.kafka_broker import KafkaBroker
from tests.system.quarter.receivers import HookServer, Received
from tests.system.running import ROOT, free_port, stage_process

pytestmark = [pytest.mark.long, pytest.mark.kafka, pytest.mark.timeout(900)]

CLOCKS = int(os.environ.get("BATON_CLOCKS", "10000"))
WITHIN_S = 60.0
HEAD_S = 45.0


@contextmanager
def processes(database_url: str, directory: Path, settings: dict[str, str]) -> Iterator[list[str]]:
    """Run two stage services and two notifiers; gives the stage services' URLs."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        urls: list[str] = []
        for number in range(2):
            process, url = stage_process(database_url, directory / f"stage{number}.log", **settings)
            started.append(process)
            urls.append(url)
        for number in range(2):
            started.append(_notifier(database_url, directory / f"notifier{number}.log", settings))
        yield urls
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(30)
    for log in directory.glob("*.log"):
        assert "Traceback" not in log.read_text(), log.read_text()[-3000:]


def _notifier(database_url: str, log: Path, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BATON_", "KAFKA_"))}
    environment |= {f"BATON_{name.upper()}": value for name, value in settings.items()}
    environment |= {"BATON_DATABASE_URL": database_url, "BATON_NOTIFIER_PORT": str(free_port())}
    with log.open("ab") as out:
        return subprocess.Popen(
            [Path(sys.executable).parent / "baton", "serve", "notifier"],
            cwd=ROOT, env=environment, stdout=out, stderr=out,
        )  # fmt: skip


async def test_ten_thousand_clocks_due_in_one_minute_fire_once_and_are_told_once(
    database_url: str, kafka: KafkaBroker, tmp_path: Path
) -> None:
    """Each handoff is overdue once, and its owner gets one message of it by a real HTTP server."""
    received = Received(lambda: datetime.now(UTC))
    connection = await asyncpg.connect(database_url)
    _, key = await access.create_key(connection, "clocks", access.SCOPES)
    playbook, team = tmp_path / "sales.yaml", tmp_path / "team.yaml"
    playbook.write_text(clocks.playbook())
    async with HookServer(received) as hooks:
        team.write_text(clocks.team(f"webhook+{hooks.url}/{{id}}"))
        settings = {
            "playbook_files": f'["{playbook}"]', "team_file": str(team),
            "kafka_bootstrap_servers": kafka.bootstrap_servers,
        }  # fmt: skip
        with processes(database_url, tmp_path, settings) as urls:
            first = datetime.now(UTC) + timedelta(seconds=HEAD_S)
            bodies = clocks.offers(secrets.token_hex(4), CLOCKS, first, WITHIN_S)
            await clocks.post(urls, key, bodies)
            await clocks.until_count(connection, "SELECT count(*) FROM notifier.alerts", 2 * CLOCKS)
            settled = "SELECT count(*) FROM notifier.alerts WHERE status <> 'pending'"
            await clocks.until_count(connection, settled, 2 * CLOCKS)
    await clocks.once(connection)
    assert await connection.fetchval(
        "SELECT count(*) FROM stage.events WHERE type = 'baton.clock.fired'"
    ) == CLOCKS  # fmt: skip
    alerts = await connection.fetch("SELECT id::text, status, person_id FROM notifier.alerts")
    assert Counter(a["status"] for a in alerts) == {"delivered": 2 * CLOCKS}
    came = Counter((arrival.id, arrival.person) for arrival in received.arrivals)
    assert came == Counter((a["id"], a["person_id"]) for a in alerts)
    await connection.close()
    assert (await verify_database(database_url)).findings == []
