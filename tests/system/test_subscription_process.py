"""`baton serve subscriptions`, as a user starts it: ready, delivering, counting, and gone on SIGTERM."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import httpx

from tests.integration.receiver import receiving
from tests.integration.subscribing import CIPHER_TEXT, Log, subscribe
from tests.system.running import ROOT, free_port, until


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


async def test_it_delivers_and_stops(database_url: str, tmp_path: Path) -> None:
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BATON_")} | {
        "BATON_DATABASE_URL": database_url, "BATON_SUBSCRIPTIONS_PORT": str(port),
        "BATON_SUBSCRIPTIONS_ALLOW": "127.0.0.0/8", "BATON_ENCRYPTION_KEY": CIPHER_TEXT,
    }  # fmt: skip
    printed = tmp_path / "out"
    connection = await asyncpg.connect(database_url)
    async with receiving() as receiver:
        with printed.open("wb") as out:
            process = subprocess.Popen(
                [Path(sys.executable).parent / "baton", "serve", "subscriptions"], cwd=ROOT,
                env=environment, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            await asyncio.to_thread(until, lambda: _answers(f"{url}/readyz"), "it is ready", 60)
            id = await subscribe(connection, receiver.url)
            await Log(connection).publish("ada")
            await receiver.until(lambda: receiver.taken, "the event")
            metrics = await asyncio.to_thread(lambda: httpx.get(f"{url}/metrics").text)
            assert f'outcome="delivered",subscription="{id}"' in metrics
            process.terminate()
            began = time.monotonic()
            await asyncio.to_thread(process.wait, 20)
            assert time.monotonic() - began < 10
            assert "subscriptions.stopped" in printed.read_text()
        finally:
            process.kill()
            process.wait()
            await connection.close()
    assert "ada" not in printed.read_text()
