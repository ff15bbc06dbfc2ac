"""The quarter again, with its processes killed at any moment: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.conftest import REQUIRE_ALL, missing
from tests.integration.kafka_broker import KafkaBroker, available, external_bootstrap_servers
from tests.system.quarter import checks, leads, roster, seed
from tests.system.quarter.process import SharedClock
from tests.system.quarter.reading import Book
from tests.system.quarter.receivers import HookServer, Received
from tests.system.quarter.remote import Remote
from tests.system.quarter.walk import Walk

_log = logging.getLogger("quarter")
LEADS = int(os.environ.get("BATON_QUARTER_KILLED_LEADS", "2000"))
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800 + LEADS // 4)]

KILLS = int(os.environ.get("BATON_QUARTER_KILLS", "30"))
SEED = seed()
BEGIN = datetime(roster.BEGIN.year, roster.BEGIN.month, roster.BEGIN.day, tzinfo=UTC)
GRID = timedelta(hours=1)
"""Time goes on by whole hours: each step waits for two processes."""
PARTS = ("stage", "notifier") * 7 + ("postgres",)
"""A kill's part is one of these; with a broker of our own, or Kafka. Each is killed once at least."""
SOON = GRID + timedelta(minutes=1)
"""What is due is done in the next step, once the claims have ended that killed processes left."""
AT_ANY_MOMENT_S = 0.06
"""A kill comes within so long of the beginning of a step, while it is worked on."""


class Mailbox:
    """A mail server's handler that notes what it takes."""

    def __init__(self, received: Received) -> None:
        self._received = received

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Note the mail: its id is the alert's or the digest's."""
        assert isinstance(envelope.content, bytes)
        id = message_from_bytes(envelope.content)["Message-ID"].strip("<>").partition("@")[0]
        for address in envelope.rcpt_tos:
            self._received.note(address.partition("@")[0], "email", id)
        return "250 OK"


@asynccontextmanager
async def mail_server(received: Received) -> AsyncIterator[str]:
    """Run a real SMTP server; gives the URL for ``BATON_SMTP_URL``."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Mailbox(received)), "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"smtp://127.0.0.1:{port}?from=baton@baton.example&tls=no"
    finally:
        server.close()
        await server.wait_closed()


class Killer:
    """Kills parts at moments drawn from a seed, spread over the walk; gives each time to come back."""

    def __init__(self, remote: Remote, seed: int, kills: int) -> None:
        self._remote = remote
        self._chance = random.Random(seed)
        parts = PARTS if remote.broker is None else (*PARTS, "kafka")
        each = sorted(set(parts))[:kills]
        self._parts = each + self._chance.choices(parts, k=kills - len(each))
        self._chance.shuffle(self._parts)
        days = timedelta(days=roster.DAYS - 2)
        self._moments = sorted(BEGIN + days * self._chance.random() for _ in range(kills))
        self._tasks: list[asyncio.Task[None]] = []
        self.killed: list[str] = []

    def before_step(self) -> None:
        """Begin the kills whose moment has come."""
        while self._moments and self._moments[0] <= self._remote.clock.now():
            del self._moments[0]
            part = self._parts.pop()
            after_s = self._chance.uniform(0, AT_ANY_MOMENT_S)
            self._tasks.append(asyncio.create_task(self._kill(part, after_s)))

    async def _kill(self, part: str, after_s: float) -> None:
        await asyncio.sleep(after_s)  # the moment of a kill is any moment
        self.killed.append(part)
        await asyncio.to_thread(self._remote.kill, part)

    async def done(self) -> None:
        """Wait for the kills that have begun."""
        await asyncio.gather(*self._tasks)


@contextmanager
def broker(data: Path) -> Iterator[KafkaBroker | None]:
    """Run a Kafka that may be killed; None where there is none, or it is somebody else's."""
    possible, which = available()
    if not possible and REQUIRE_ALL:
        missing(f"Kafka: {which}")
    if not possible or external_bootstrap_servers():
        yield None
        return
    with KafkaBroker(data) as running:
        yield running


async def test_thirty_kills_in_a_quarter_lose_no_alert_and_double_none(tmp_path: Path) -> None:
    """`LEADS` leads; each step is work of two processes over real sockets.

    Stage service, notifier, PostgreSQL and, where there is one, Kafka are killed with -9, thirty times.
    """
    _log.warning("BATON_QUARTER_SEED=%d", SEED)
    with broker(tmp_path / "kafka") as kafka:
        await _quarter(kafka, tmp_path)


async def _quarter(kafka: KafkaBroker | None, tmp_path: Path) -> None:
    book, clock_file = Book(), tmp_path / "clock"
    clock = SharedClock(clock_file, BEGIN)
    received = Received(clock.now)
    playbook = tmp_path / "sales.yaml"
    playbook.write_text(roster.playbook())
    async with HookServer(received) as hooks, mail_server(received) as smtp:
        documents = roster.people(SEED, hooks.url)
        for document in documents:
            book.put(BEGIN, document)
        team = tmp_path / "team.yaml"
        team.write_text("people: []\n")
        remote = Remote(tmp_path, clock, clock_file, {
            "BATON_PLAYBOOK_FILES": f'["{playbook}"]', "BATON_TEAM_FILE": str(team),
            "BATON_SMTP_URL": smtp, "BATON_ESCALATE_AFTER": "csm=1d",
        }, kafka)  # fmt: skip
        try:
            await remote.start(documents)
            killer = Killer(remote, SEED, KILLS)
            stories = leads.stories(SEED, LEADS)
            walk = Walk(remote, book, SEED, stories, roster.changes(SEED, hooks.url), GRID)
            began = time.monotonic()
            await walk.run(killer.before_step)
            await killer.done()
            _log.warning(
                "%d events in %d steps, %.0f s; %d claims waited for, %d requests again",
                walk.events, walk.steps, time.monotonic() - began,
                remote.claims_waited_for, remote.refused,
            )  # fmt: skip
            walk.published += await remote.settle()
            counted = await checks.everything(
                remote.url, clock.now(), book, received.arrivals, walk.published, kills=True,
                soon=SOON,
            )  # fmt: skip
            _log.warning("%s", counted)
            assert len(killer.killed) == KILLS
            _log.warning("killed: %s", dict(Counter(killer.killed)))
            _check_logs(remote)
        finally:
            await remote.stop()


def _check_logs(remote: Remote) -> None:
    for name in ("stage", "notifier"):
        log = remote.log(name)
        assert "Traceback" not in log, log[-3000:]
        assert '"level": "error"' not in log, log[-3000:]
