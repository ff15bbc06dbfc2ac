"""Others read the topics: the official CloudEvents SDK, kcat, and who has the AsyncAPI document alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from referencing import Registry
from referencing.jsonschema import DRAFT7
from structlog.testing import capture_logs

from services.baton.embedded import EmbeddedPostgres
from services.contracts.kafka import KafkaBus, topics_of
from services.contracts.topics import BY_NAME, TOPICS
from tests.conftest import missing
from tests.integration.kafka_broker import KafkaBroker
from tests.integration.stage import Stage, fresh_database, running_stage
from tests.integration.test_relay import until

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="module")]

WITH_EVENTS = {"baton.transitions", "baton.handoffs", "baton.leads"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(postgres: EmbeddedPostgres, kafka: KafkaBroker) -> AsyncIterator[Stage]:
    """A stage service that has published transitions, handoffs, leads, a merge and its tombstone."""
    with fresh_database(postgres) as url:
        async with running_stage(url, kafka_bootstrap_servers=kafka.bootstrap_servers) as it:
            await walked(it)
            yield it


async def walked(it: Stage) -> None:
    """Let some leads move, and two of them become one."""
    for n in range(6):
        await it.send(told(f"d{n}", "demo.requested", email=f"{n}@b.example"))
        await it.send(told(f"m{n}", "meeting.booked", email=f"{n}@b.example"))
    await it.send(told("x1", "demo.requested", external_ids={"crm": "7"}))
    await published(it)
    await it.send(told("x2", "page.viewed", email="0@b.example", external_ids={"crm": "7"}))
    await published(it)


def told(id: str, type: str, **data: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": id, "source": "/t", "type": type, "data": data}


async def published(stage: Stage) -> None:
    """Wait until nothing waits to be published."""

    async def done() -> bool:
        return await stage.connection.fetchval(
            """SELECT (SELECT count(*) FROM bus.pending) = 0
               AND (SELECT count(*) FROM stage.lead_changes) = 0
               AND (SELECT filled_at IS NOT NULL FROM stage.snapshot_feed)"""
        )

    await until(done, 30)


async def consumed(servers: str, topics: list[str], want: dict[str, int]) -> list[Any]:
    """What is on `topics`, read until each of `want` has at least so many messages."""
    consumer = AIOKafkaConsumer(
        *topics, bootstrap_servers=servers, auto_offset_reset="earliest",
        isolation_level="read_committed", group_id=None,
    )  # fmt: skip
    await consumer.start()
    found: list[Any] = []
    try:
        async with asyncio.timeout(30):
            while any(sum(r.topic == t for r in found) < n for t, n in want.items()):
                for batch in (await consumer.getmany(timeout_ms=250)).values():
                    found += batch
    finally:
        await consumer.stop()
    return found


class Document:
    """A consumer that knows AsyncAPI and JSON Schema, and nothing of Baton."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        whole = {"$id": "urn:document", **document}
        self._registry: Any = Registry().with_resource(
            "urn:document", DRAFT7.create_resource(whole)
        )

    def at(self, node: Any) -> Any:
        """Follow a reference."""
        while isinstance(node, dict) and "$ref" in node:
            found: Any = self.document
            for part in node["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            node = found
        return node

    def brokers(self) -> str:
        """Where the Kafka is."""
        servers = self.document["servers"].values()
        return ",".join(s["host"] for s in servers if s["protocol"] == "kafka")

    def channels(self) -> dict[str, dict[str, Any]]:
        """The Kafka channels that the application sends on, by their topic."""
        found: dict[str, dict[str, Any]] = {}
        for operation in self.document["operations"].values():
            channel = self.at(operation["channel"])
            if operation["action"] == "send" and "kafka" in channel.get("bindings", {}):
                found[channel["bindings"]["kafka"]["topic"]] = channel
        return found

    def errors(self, schema: Any, value: Any) -> list[str]:
        """What is wrong with `value` by `schema`, a part of the document."""
        checker = jsonschema.Draft7Validator(
            schema, registry=self._registry, format_checker=jsonschema.FormatChecker()
        )
        return [e.message for e in checker.iter_errors(value)]

    def message_of(self, channel: dict[str, Any], headers: Any, payload: Any) -> str | None:
        """The name of the one message of the channel that headers and payload fit; None: of none."""
        fitting = [
            name
            for name, reference in channel["messages"].items()
            if (message := self.at(reference))
            and not self.errors(based(message.get("headers", {})), headers)
            and not self.errors(based(message["payload"]), payload)
        ]
        return fitting[0] if len(fitting) == 1 else None


def based(schema: Any) -> Any:
    """A part of the document with its references made absolute."""
    return json.loads(json.dumps(schema).replace('"#/', '"urn:document#/'))


async def test_a_consumer_written_from_the_document_reads_everything(stage: Stage) -> None:
    """Broker, topics, keys and schemas come from /asyncapi.json; every message fits one of its channel."""
    answer = await stage.client.get("/asyncapi.json")
    reader = Document(answer.json())
    channels = reader.channels()
    assert set(channels) == {t.name for t in TOPICS}
    counts = await sent(stage)
    records = await consumed(reader.brokers(), list(channels), counts)
    seen: dict[str, set[str]] = {}
    for record in records:
        channel = channels[record.topic]
        headers = {name: value.decode() for name, value in record.headers}
        payload = None if record.value is None else json.loads(record.value)
        name = reader.message_of(channel, headers, payload)
        assert name is not None, (record.topic, headers, payload)
        seen.setdefault(record.topic, set()).add(name)
        key = reader.at(channel["messages"][name])["bindings"]["kafka"]["key"]
        assert reader.errors(key, record.key.decode()) == []
        assert record.partition < channel["bindings"]["kafka"]["partitions"]
    assert seen["baton.leads"] == {"baton.lead.snapshot.v1", "baton.lead.snapshot.v1.gone"}
    assert {"baton.stage.transitioned.v1", "baton.lead.merged.v1"} <= seen["baton.transitions"]
    assert "baton.handoff.offered.v1" in seen["baton.handoffs"]
    broken = json.loads(next(r.value for r in records if r.topic == "baton.transitions"))
    del broken["journey"]
    assert reader.errors(based({"$ref": "#/components/schemas/StageTransitioned"}), broken)


async def sent(stage: Stage) -> dict[str, int]:
    """How many messages there are at least on each topic."""
    rows = await stage.connection.fetch("SELECT topic, count(*) FROM bus.outbox GROUP BY topic")
    leads = await stage.connection.fetchval("SELECT count(*) FROM stage.leads")
    return {**{r["topic"]: r["count"] for r in rows}, "baton.leads": leads + 1}


async def test_the_feed_fits_the_document_too(stage: Stage) -> None:
    reader = Document((await stage.client.get("/asyncapi.json")).json())
    channel = reader.document["channels"]["transitions_feed"]
    items = (await stage.client.get("/v1/transitions", params={"limit": 1000})).json()["items"]
    assert items
    assert all(reader.message_of(channel, {}, item) for item in items)


async def test_where_kafka_is_only_a_key_is_told(stage: Stage, kafka: KafkaBroker) -> None:
    known = (await stage.client.get("/asyncapi.json")).text
    told_anybody = await stage.client.get("/asyncapi.json", headers={"authorization": ""})
    assert told_anybody.status_code == 200
    assert kafka.bootstrap_servers in known
    assert kafka.bootstrap_servers not in told_anybody.text
    _, only_in = await stage.new_key("ingest")
    refused = await stage.client.get(
        "/asyncapi.json", headers={"authorization": f"Bearer {only_in}"}
    )
    assert refused.status_code == 403


async def test_the_official_sdk_reads_every_message(stage: Stage, kafka: KafkaBroker) -> None:
    """Binary mode (Kafka binding 1.0.2): each is a valid CloudEvent, tombstones too."""
    records = await consumed(kafka.bootstrap_servers, sorted(WITH_EVENTS), await sent(stage))
    gone = 0
    for record in records:
        message = KafkaMessage(dict(record.headers), record.key, record.value or b"")
        event = from_binary_event(message)
        assert event.get_source() == "baton"
        assert event.get_type().startswith("baton.")
        assert event.get_subject() == record.key.decode() or event.get_subject() is None
        assert event.get_time() is not None
        if record.value is None:
            gone += 1
        else:
            assert isinstance(event.get_data(), dict)
            assert event.get_datacontenttype() == "application/json"
    assert gone
    assert {r.topic for r in records} == WITH_EVENTS


async def test_kcat_reads_the_topics(stage: Stage, kafka: KafkaBroker) -> None:
    """The lines of docs/kafka.md; a tombstone is shown as NULL."""
    if shutil.which("kcat") is None:
        missing("kcat")
    await consumed(kafka.bootstrap_servers, sorted(WITH_EVENTS), await sent(stage))
    printed = {topic: await kcat(kafka, topic) for topic in WITH_EVENTS}
    for topic, lines in printed.items():
        assert lines, topic
        for line in lines:
            key, headers, value = line.split(" ", 2)
            assert len(key) == 36
            assert "ce_specversion=1.0" in headers
            assert value == "NULL" or json.loads(value)
    assert any(line.endswith(" NULL") for line in printed["baton.leads"])


async def kcat(kafka: KafkaBroker, topic: str) -> list[str]:
    """Run kcat as the documentation says, to the end of the topic."""
    process = await asyncio.create_subprocess_exec(
        "kcat", "-b", kafka.bootstrap_servers, "-t", topic, "-C", "-e", "-q", "-Z",
        "-f", "%k %h %s\\n", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().splitlines()


async def test_the_topics_are_as_declared_and_a_difference_is_told(
    stage: Stage, kafka: KafkaBroker
) -> None:
    """`baton kafka topics`; a topic that somebody made without compaction is found, and exits 1."""
    code, said = await baton(kafka, "kafka", "topics")
    assert (code, said.splitlines()[-1]) == (0, "as declared")
    assert all(topic.name in said for topic in TOPICS)
    found = await topics_of(kafka.bootstrap_servers)
    assert {t.name: found[t.name].partitions for t in TOPICS} == dict.fromkeys(found, 6)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        for policy, expected in (("delete", 1), ("compact", 0)):
            await admin.alter_configs([
                ConfigResource(
                    ConfigResourceType.TOPIC, "baton.leads",
                    {**BY_NAME["baton.leads"].configs, "cleanup.policy": policy},
                )
            ])  # fmt: skip
            code, said = await baton(kafka, "kafka", "topics")
            assert code == expected
            assert ("cleanup.policy=compact" in said) == bool(expected)
            with capture_logs() as logged:
                await (await KafkaBus.open(kafka.bootstrap_servers)).create_topics()
            assert [e["event"] for e in logged] == ["bus.topic_differs"] * expected
    finally:
        await admin.close()


async def test_all_leads_are_published_again_on_demand(stage: Stage, kafka: KafkaBroker) -> None:
    leads = await stage.connection.fetchval("SELECT count(*) FROM stage.leads")
    code, said = await baton(kafka, "leads", "snapshot", BATON_DATABASE_URL=database_of(stage))
    assert (code, said) == (0, f"{leads} leads are published to baton.leads once more\n")
    await published(stage)
    await consumed(kafka.bootstrap_servers, ["baton.leads"], {"baton.leads": 2 * leads + 1})


def database_of(stage: Stage) -> str:
    """The URL of the stage service's database."""
    return stage.house.engine.url.render_as_string(hide_password=False).replace("+asyncpg", "")


async def baton(kafka: KafkaBroker, *arguments: str, **environment: str) -> tuple[int | None, str]:
    """Run the command line; gives its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "baton", *arguments,
        env={"PATH": os.environ["PATH"], "BATON_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
             **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode, out.decode()
