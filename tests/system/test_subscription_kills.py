"""Subscribers that fail in every way while Baton's processes are killed get each event, in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from aiohttp import web

from services.baton.command import database_url
from tests.integration.certificates import certificates
from tests.integration.receiver import Receiver, Request, receiving
from tests.integration.subscribing import CIPHER_TEXT, subscribe
from tests.system.running import BATCHED, ROOT, RunningBaton, free_port, lead_event, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("BATON_SUBSCRIPTION_KILLS", "6"))
"""50 in full."""
FASTER = 1200.0
"""Half an hour is a second and a half."""
DELIVERERS = 2
WAY = (
    "lead.created",
    "demo.requested",
    "page.viewed",
    "meeting.booked",
    "proposal.sent",
    "deal.won",
)
TYPES = ["baton.stage.*", "baton.transition.*", "baton.lead.*"]


class Deliverers:
    """Processes that deliver, started again when they were killed."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log
        self._since = str(time.time())
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start one more."""
        with self._log.open("ab") as out:
            self.processes.append(subprocess.Popen(
                [sys.executable, "-m", "tests.system.deliverer", self._since, str(FASTER)], cwd=ROOT,
                env=self._environment | {"BATON_SUBSCRIPTIONS_PORT": str(free_port())},
                stdout=out, stderr=subprocess.STDOUT,
            ))  # fmt: skip

    def kill(self, chance: random.Random) -> None:
        """Kill one with kill -9, and start another."""
        process = self.processes.pop(chance.randrange(len(self.processes)))
        process.kill()
        process.wait()
        self.start()

    def stop(self) -> None:
        """Stop all."""
        for process in self.processes:
            process.terminate()
        try:
            for process in self.processes:
                process.wait(30)
        finally:
            for process in self.processes:
                process.kill()


class Load(threading.Thread):
    """Sends lead events, each again until it is acknowledged."""

    def __init__(self, baton: RunningBaton) -> None:
        super().__init__(daemon=True)
        self._baton = baton
        self.enough = threading.Event()
        self.sent = 0

    def run(self) -> None:
        """Send until told that it is enough."""
        chance = random.Random(3)
        headers = {"authorization": f"Bearer {self._baton.key}", "content-type": BATCHED}
        steps: dict[str, int] = {}
        with httpx.Client(base_url=self._baton.url, headers=headers, timeout=10) as client:
            while not self.enough.is_set():
                events = []
                for _ in range(10):
                    lead = f"l{chance.randrange(1 + self.sent // 5)}@kill.example"
                    step = steps[lead] = steps.get(lead, -1) + 1
                    type_ = WAY[step] if step < len(WAY) else "email.clicked"
                    events.append(lead_event(f"e{self.sent}", type_, lead, company="K"))
                    self.sent += 1
                while not self.enough.is_set():
                    with contextlib.suppress(httpx.HTTPError):
                        if client.post("/v1/events", content=json.dumps(events)).status_code == 200:
                            break
                    time.sleep(0.05)
                time.sleep(0.1)


class Moody:
    """Answers as its mood is: well, or failing at random in every way there is."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.is_well = False
        self.asked = 0
        self.failures = 0

    async def react(self, request: Request) -> web.StreamResponse:
        """Answer."""
        self.asked += 1
        if self.is_well or self.chance.random() < 0.6:
            return web.Response(text="ok")
        self.failures += 1
        kind = self.chance.choice(["500", "503", "429", "404", "hang", "lost"])
        if kind == "429":
            return web.Response(status=429, headers={"retry-after": "30"})
        if kind == "hang":
            await asyncio.sleep(1.0)
            return web.Response(text="too late")
        if kind == "lost":
            request.hang_up()
            return web.Response(status=500)
        return web.Response(status=int(kind))


@contextlib.asynccontextmanager
async def coming_and_going(
    receiver: Receiver, good: ssl.SSLContext, wrong: ssl.SSLContext, over: asyncio.Event
) -> AsyncIterator[str]:
    """Serve `receiver` by TLS on one port: well, with a certificate of nobody's, and not at all, in turn."""
    port = free_port()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", receiver.handle)

    async def run() -> None:
        turn = 0
        while True:
            context = (good, wrong, None)[turn % 3]
            turn += 1
            if over.is_set():
                context = good
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            if context is not None:
                await web.TCPSite(
                    runner, "127.0.0.1", port, ssl_context=context, reuse_address=True
                ).start()
            try:
                # Away for a second and a half: half an hour by Baton's clock.
                await asyncio.sleep(3600 if over.is_set() else 1.5)
            finally:
                await runner.cleanup()

    task = asyncio.create_task(run())
    try:
        yield f"https://127.0.0.1:{port}/tls"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_each_event_comes_at_least_once_and_in_order(tmp_path: Path) -> None:
    chance = random.Random(50)
    for name in ("good", "wrong"):
        (tmp_path / name).mkdir()
    good, _ = certificates(tmp_path / "good")
    wrong, _ = certificates(tmp_path / "wrong")
    baton = RunningBaton(tmp_path / "data", {"BATON_SUBSCRIPTIONS": "off"}).start()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BATON_")} | {
        "BATON_DATABASE_URL": database_url(baton.data), "BATON_ENCRYPTION_KEY": CIPHER_TEXT,
        "BATON_SUBSCRIPTIONS_ALLOW": "127.0.0.0/8",
        "SSL_CERT_FILE": str(tmp_path / "good" / "server.pem"),
    }  # fmt: skip
    deliverers = Deliverers(environment, tmp_path / "deliverers.log")
    load = Load(baton)
    over = asyncio.Event()
    moody, steady = Moody(1), Moody(2)
    steady.is_well = True
    try:
        async with (
            receiving() as receiver,
            coming_and_going(receiver, good, wrong, over) as tls_url,
        ):
            receiver.keep = False
            receiver.by_path |= {"/moody": moody.react, "/steady": steady.react}
            connection = await asyncpg.connect(database_url(baton.data))
            for url in (f"{receiver.url}/moody", f"{receiver.url}/steady", tls_url):
                await subscribe(connection, url, types=TYPES, timeout_s=0.5, concurrency=4)
            await connection.close()
            for _ in range(DELIVERERS):
                deliverers.start()
            load.start()
            for number in range(KILLS):
                # Any moment, but for one at which nothing was delivered since the last kill.
                asked = moody.asked
                await receiver.until(
                    lambda asked=asked: moody.asked > asked + 8,
                    f"deliveries after {number} kills",
                    60,
                )
                await asyncio.sleep(chance.uniform(0.0, 1.0))
                part = ("deliverer", "deliverer", "deliverer", "stage", "postgres")[number % 5]
                if part == "deliverer":
                    await asyncio.to_thread(deliverers.kill, chance)
                else:
                    pids = await asyncio.to_thread(
                        until, lambda part=part: baton.pids(part), f"{part} runs again", 60
                    )
                    for pid in pids:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
            load.enough.set()
            await asyncio.to_thread(load.join, 60)
            moody.is_well = True
            over.set()
            await _check(baton, receiver, moody)
    finally:
        load.enough.set()
        try:
            await asyncio.to_thread(deliverers.stop)
        finally:
            await asyncio.to_thread(baton.stop)
    text = (tmp_path / "deliverers.log").read_text()
    assert "kill.example" not in text
    assert "subscription.broken" not in text


async def _check(baton: RunningBaton, receiver: Receiver, moody: Moody) -> None:
    await asyncio.to_thread(until, lambda: _ready(baton.url), "the stage service is ready", 90)
    await asyncio.to_thread(until, lambda: _published(baton), "everything is published", 60)
    feed = await asyncio.to_thread(baton.feed)
    wanted = {item.get("transition_id") or f"{item['merge_id']}" for item in feed}
    assert len(wanted) > 5 * KILLS

    def missing() -> int:
        got = {path: set() for path in ("/moody", "/steady", "/tls")}
        for request in receiver.taken:
            got[request.path].add(request.id)
        return sum(len(wanted - ids) for ids in got.values())

    await receiver.until(lambda: not missing(), "every event at each of the three", 300)
    assert moody.failures > 2 * KILLS
    for path in ("/moody", "/steady", "/tls"):
        sequences: dict[str, list[int]] = {}
        leads: dict[str, list[int]] = {}
        seen: set[str] = set()
        for request in receiver.taken:
            if request.path != path or request.id in seen:
                continue  # repeats are dropped by id
            seen.add(request.id)
            event = request.event
            leads.setdefault(event["subject"], []).append(event["position"])
            if "sequence" in event["data"]:
                journey = event["data"]["journey"]["id"]
                sequences.setdefault(journey, []).append(event["data"]["sequence"])
        for numbers in sequences.values():
            assert numbers == list(range(1, len(numbers) + 1))
        for positions in leads.values():
            assert positions == sorted(positions)


def _published(baton: RunningBaton) -> bool:
    text = httpx.get(f"{baton.url}/metrics", timeout=5).text
    pending = [line for line in text.splitlines() if line.startswith("baton_outbox_pending")]
    return bool(pending) and float(pending[0].split()[1]) == 0


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
