"""I12: kill -9 of any process, at any moment, fifty times, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from tests.integration.kafka_broker import KafkaBroker
from tests.system.running import BATCHED, RunningBaton, lead_event, until

pytestmark = [pytest.mark.long, pytest.mark.kafka, pytest.mark.timeout(900)]

KILLS = 50
PARTS = ("stage", "notifier", "postgres", "kafka")
WAY = ("lead.created", "demo.requested", "page.viewed", "meeting.booked", "proposal.sent",
       "contract.sent", "deal.won")  # fmt: skip
BATCH = 20


class Load(threading.Thread):
    """Sends events without a pause and again until each is acknowledged, as a good client does."""

    def __init__(self, baton: RunningBaton, seed: int) -> None:
        super().__init__(daemon=True)
        self._baton = baton
        self._chance = random.Random(seed)
        self._seed = seed
        self.enough = threading.Event()
        self.acknowledged: list[dict[str, Any]] = []
        self.refused = 0

    def run(self) -> None:
        """Send until told that it is enough."""
        steps: dict[str, int] = {}
        headers = {"authorization": f"Bearer {self._baton.key}", "content-type": BATCHED}
        number = 0
        with httpx.Client(base_url=self._baton.url, headers=headers, timeout=10) as client:
            while not self.enough.is_set():
                events: list[dict[str, Any]] = []
                for _ in range(BATCH):
                    lead = f"s{self._seed}-{self._chance.randrange(1 + number // 4)}@kill.example"
                    step = steps.get(lead, 0)
                    steps[lead] = step + 1
                    type_ = WAY[step] if step < len(WAY) else "email.clicked"
                    number += 1
                    event = lead_event(f"{self._seed}-{number}", type_, lead, company="K")
                    self._identify(event["data"], lead)
                    events.append(event)
                self._send(client, events)

    def _identify(self, data: dict[str, Any], lead: str) -> None:
        """Let another tool tell some of it under its own id, and some events name both: leads merge."""
        draw = self._chance.random()
        if draw < 0.25:
            data["external_ids"] = {"crm": lead}
        if draw < 0.15:
            del data["email"]

    def _send(self, client: httpx.Client, events: list[dict[str, Any]]) -> None:
        while True:
            try:
                answer = client.post("/v1/events", content=json.dumps(events))
            except httpx.HTTPError:
                self.refused += 1
                time.sleep(0.05)
                continue
            if answer.status_code == 200:
                assert all(r["status"] != "rejected" for r in answer.json()["results"])
                self.acknowledged += events
                return
            assert answer.status_code == 503, answer.text
            self.refused += 1
            time.sleep(0.05)


def test_fifty_kills_lose_nothing_and_double_nothing(kafka: KafkaBroker, tmp_path: Path) -> None:
    chance = random.Random(50)
    baton = RunningBaton(
        tmp_path / "data", {"BATON_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}
    ).start()
    loads = [Load(baton, seed) for seed in (1, 2)]
    try:
        for load in loads:
            load.start()
        order = [PARTS[n % len(PARTS)] for n in range(KILLS)]
        chance.shuffle(order)
        for part in order:
            _kill(part, baton, kafka)
            time.sleep(chance.uniform(0.1, 1.6))  # the moment of the next kill is any moment
        for load in loads:
            load.enough.set()
            load.join(60)
            assert not load.is_alive()
        _check(baton, kafka, [e for load in loads for e in load.acknowledged])
    finally:
        for load in loads:
            load.enough.set()
        baton.stop()


def _kill(part: str, baton: RunningBaton, kafka: KafkaBroker) -> None:
    if part == "kafka":
        kafka.kill()
        kafka.start()
        return
    for pid in until(lambda: baton.pids(part), f"{part} runs again", 60):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _check(baton: RunningBaton, kafka: KafkaBroker, acknowledged: list[dict[str, Any]]) -> None:
    for url in (baton.url, baton.notifier_url):
        until(lambda url=url: _ready(url), f"{url} is ready", 90)
    # Every acknowledged event is there: sent again, each is a repeat (I1, I2).
    assert len(acknowledged) > 1000
    results = baton.send(*acknowledged)
    assert {r["status"] for r in results} == {"duplicate"}
    feed = baton.feed()
    assert len(feed) > 300
    # Positions and sequences without gap (I3, I5).
    assert [i["position"] for i in feed] == list(range(1, len(feed) + 1))
    last: dict[str, int] = {}
    merged = [item for item in feed if "merge_id" in item]
    assert len(merged) > 20
    feed = [item for item in feed if "merge_id" not in item]
    for item in feed:
        journey = item["journey"]["id"]
        assert item["sequence"] == last.get(journey, 0) + 1
        last[journey] = item["sequence"]
    # No alert missing, none doubled (I6).
    wished = sorted((i["transition_id"], w["person"]["id"]) for i in feed for w in i["alerts"])
    alerts = until(
        lambda: len(a := baton.alerts()) >= len(wished) and a, f"{len(wished)} alerts", 120
    )
    assert sorted((a["transition_id"], a["person"]["id"]) for a in alerts) == wished
    until(lambda: not baton.alerts(status="pending"), "every alert settled", 60)
    # Every transition is on the bus, per journey in order once repeats are dropped by id (I5).
    _check_topic(kafka, feed)
    _check_leads(kafka, baton)
    # Each merge is told once in the order of each of its leads.
    told = [(item["merge_id"], item["lead_id"]) for item in merged]
    assert len(set(told)) == len(told)
    assert len({merge_id for merge_id, _ in told}) * 2 == len(told)
    assert "clean" in baton.verify()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _check_leads(kafka: KafkaBroker, baton: RunningBaton) -> None:
    """A table built from `baton.leads` is what the API shows, for every lead."""
    expected: dict[str, Any] = {}
    cursor: dict[str, str] = {}
    with baton.client() as client:
        while True:
            page = client.get("/v1/leads", params={"limit": 200, **cursor}).json()
            for lead in page["items"]:
                expected[lead["id"]] = client.get(f"/v1/leads/{lead['id']}").json()
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
    assert len(expected) > 100
    tombstones, kept = until(
        lambda: (read := asyncio.run(table(kafka)))[1] == expected and read, "leads on Kafka", 90
    )
    assert tombstones > 10
    assert len(kept) == len(expected)


async def table(kafka: KafkaBroker) -> tuple[int, dict[str, Any]]:
    """What a reader of `baton.leads` keeps, and how many tombstones came."""
    consumer = AIOKafkaConsumer(
        "baton.leads", bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest",
        isolation_level="read_committed", enable_auto_commit=False,
    )  # fmt: skip
    await consumer.start()
    kept: dict[str, Any] = {}
    tombstones = 0
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for some in (await consumer.getmany(timeout_ms=500)).values():
                for record in some:
                    if record.value is None:
                        tombstones += 1
                        kept.pop(record.key.decode(), None)
                    else:
                        kept[record.key.decode()] = json.loads(record.value)
    finally:
        await consumer.stop()
    return tombstones, kept


def _check_topic(kafka: KafkaBroker, feed: list[dict[str, Any]]) -> None:
    async def read() -> list[Any]:
        consumer = AIOKafkaConsumer(
            "baton.transitions", bootstrap_servers=kafka.bootstrap_servers,
            auto_offset_reset="earliest", enable_auto_commit=False,
        )  # fmt: skip
        await consumer.start()
        wanted = {i["transition_id"] for i in feed}
        records: list[Any] = []
        try:
            async with asyncio.timeout(90):
                while wanted:
                    for some in (await consumer.getmany(timeout_ms=1000)).values():
                        records += some
                        wanted -= {dict(r.headers)["ce_id"].decode() for r in some}
        finally:
            await consumer.stop()
        return records

    seen: dict[str, int] = {}
    known: set[str] = set()
    for record in asyncio.run(read()):
        data = json.loads(record.value)
        if "merge_id" in data or data["transition_id"] in known:
            continue
        known.add(data["transition_id"])
        journey = data["journey"]["id"]
        assert data["sequence"] == seen.get(journey, 0) + 1
        seen[journey] = data["sequence"]
