"""`baton.leads`: a table built from the topic is what the API shows, whatever merged, moved or died."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from services.contracts.events import LEAD_SNAPSHOT, LEADS_TOPIC, Snapshot, message_headers
from services.contracts.kafka import KafkaBus
from services.contracts.kafka_snapshots import snapshot_writer
from services.contracts.topics import BY_NAME
from services.stage_service.snapshots import NOTES_KEPT_MAX, Snapshots, fill_again, kafka_snapshots
from services.stage_service.whole_leads import without_the_longest
from tests.integration.kafka_broker import KafkaBroker
from tests.integration.stage import Stage, running_stage
from tests.integration.test_relay import until

pytestmark = pytest.mark.kafka


async def records(kafka: KafkaBroker) -> list[Any]:
    """Everything committed on the topic, each partition in order."""
    # Not a seek after the assignment: the default's own one, to the end, may come after it.
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        partitions = [
            TopicPartition(LEADS_TOPIC, n) for n in range(BY_NAME[LEADS_TOPIC].partitions)
        ]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[Any] = []
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for batch in (await consumer.getmany(timeout_ms=200)).values():
                found += batch
        return found
    finally:
        await consumer.stop()


async def table(kafka: KafkaBroker) -> dict[str, Any]:
    """What a reader keeps: the newest value of each key; a null takes it away."""
    kept: dict[str, Any] = {}
    for record in await records(kafka):
        if record.value is None:
            kept.pop(record.key.decode(), None)
        else:
            kept[record.key.decode()] = msgspec.json.decode(record.value)
    return kept


async def shown(stage: Stage) -> dict[str, Any]:
    """All leads as the API shows them."""
    rows = await stage.connection.fetch(
        "SELECT id::text FROM stage.leads WHERE merged_into IS NULL"
    )
    answers = [await stage.client.get(f"/v1/leads/{row['id']}") for row in rows]
    return {answer.json()["id"]: answer.json() for answer in answers}


async def everything_published(stage: Stage) -> None:
    async def done() -> bool:
        return await stage.connection.fetchval(
            """SELECT (SELECT count(*) FROM stage.lead_changes) = 0
               AND (SELECT filled_at IS NOT NULL FROM stage.snapshot_feed)"""
        )

    await until(done, 30)


async def agreed(stage: Stage, kafka: KafkaBroker) -> dict[str, Any]:
    """Wait until all is published, and the table built from the topic is what the API shows; gives that.

    Kafka makes a transaction visible a moment after it said that it is committed.
    """
    await everything_published(stage)
    expected = await shown(stage)
    try:
        await until(lambda: _is(kafka, expected), 10)
    except TimeoutError:
        assert await table(kafka) == expected
    return expected


async def _is(kafka: KafkaBroker, expected: dict[str, Any]) -> bool:
    return await table(kafka) == expected


def told(id: str, type: str = "demo.requested", **data: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": id, "source": "/t", "type": type, "data": data}


@pytest.fixture
async def clear(kafka: KafkaBroker) -> None:
    """The topic as if there had never been one."""
    await deleted(kafka)


async def deleted(kafka: KafkaBroker) -> None:
    """Delete the topic, as an operator may."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        if LEADS_TOPIC in await admin.list_topics():
            await admin.delete_topics([LEADS_TOPIC])
        while LEADS_TOPIC in await admin.list_topics():
            await asyncio.sleep(0.05)
    finally:
        await admin.close()


@asynccontextmanager
async def with_kafka(database_url: str, kafka: KafkaBroker) -> AsyncIterator[Stage]:
    async with running_stage(
        database_url, kafka_bootstrap_servers=kafka.bootstrap_servers
    ) as stage:
        yield stage


async def test_the_table_is_what_the_api_shows(
    database_url: str, kafka: KafkaBroker, clear: None
) -> None:
    """Leads from before, new ones, attributes that publish nothing, merges, a parting: all leads agree."""
    async with running_stage(database_url) as stage:
        await stage.send(*(told(f"b{n}", email=f"{n}@before.example") for n in range(300)))
        assert await stage.connection.fetchval("SELECT count(*) FROM stage.lead_changes") == 0
    async with with_kafka(database_url, kafka) as stage:
        assert len(await agreed(stage, kafka)) == 300
        await stage.send(
            *(
                told(f"n{n}", email=f"{n}@new.example", external_ids={"crm": f"n{n}"})
                for n in range(40)
            ),
            *(told(f"x{n}", external_ids={"hubspot": f"h{n}"}) for n in range(10)),
        )
        await everything_published(stage)
        # Nothing of this is published as an event of its own.
        await stage.send(
            *(
                told(f"p{n}", "page.viewed", email=f"{n}@before.example", colour="red")
                for n in range(9)
            )
        )
        results = await stage.send(
            *(
                told(
                    f"m{n}",
                    "page.viewed",
                    email=f"{n}@new.example",
                    external_ids={"hubspot": f"h{n}"},
                )
                for n in range(10)
            )
        )
        merged = await stage.connection.fetchrow(
            "SELECT survivor::text, merged::text FROM stage.merges LIMIT 1"
        )
        assert len(results) == 10
        assert await stage.connection.fetchval("SELECT count(*) FROM stage.merges") == 10
        await agreed(stage, kafka)
        answer = await stage.client.post(
            f"/v1/leads/{merged['survivor']}/unmerge",
            json={"lead": merged["merged"], "reason": "two"},
        )
        assert answer.status_code == 200, answer.text
        expected = await agreed(stage, kafka)
        assert len(expected) == 341
        gone = [r for r in await records(kafka) if r.value is None]
        names = {dict(r.headers)["ce_mergedinto"].decode() for r in gone}
        assert len({r.key for r in gone}) == 10
        assert names <= set(expected)
        assert dict(gone[0].headers)["ce_type"].decode() == LEAD_SNAPSHOT
        assert "content-type" not in dict(gone[0].headers)


async def test_a_busy_lead_has_about_one_message_a_second(
    database_url: str, kafka: KafkaBroker, clear: None
) -> None:
    async with with_kafka(database_url, kafka) as stage:
        await everything_published(stage)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for n in range(150):
            await stage.send(told(f"e{n}", "page.viewed", email="busy@b.example", n=n))
        await agreed(stage, kafka)
        assert len(await records(kafka)) <= loop.time() - began + 2


async def test_a_new_topic_and_a_wish_publish_all_again(
    database_url: str, kafka: KafkaBroker, clear: None
) -> None:
    async with with_kafka(database_url, kafka) as stage:
        await stage.send(*(told(f"e{n}", email=f"{n}@b.example") for n in range(5)))
        await agreed(stage, kafka)
        seen = len(await records(kafka))
        assert await fill_again(stage.connection)

        async def all_again() -> bool:
            return len(await records(kafka)) == seen + 5

        await until(all_again, 10)


@pytest.mark.parametrize("is_made_again", [True, False])
async def test_a_topic_deleted_while_it_is_written_is_filled_again(
    database_url: str, kafka: KafkaBroker, clear: None, is_made_again: bool
) -> None:
    """Nothing changes meanwhile, so that no write finds it out; also when the operator made it again."""
    async with running_stage(database_url) as stage:
        snapshots = kafka_snapshots(
            database_url, kafka.bootstrap_servers, stage.house.engine, lambda: datetime.now(UTC), 0.2
        )  # fmt: skip
        snapshots.start()
        try:
            await until(lambda: stage.connection.fetchval("SELECT true FROM stage.snapshot_feed"))
            await stage.send(*(told(f"e{n}", email=f"{n}@b.example") for n in range(5)))
            await agreed(stage, kafka)
            await deleted(kafka)
            if is_made_again:
                await (await KafkaBus.open(kafka.bootstrap_servers)).create_topics()

            async def filled() -> bool:
                return len(await table(kafka)) == 5

            await until(filled, 30)
        finally:
            await snapshots.stop()


async def test_while_nothing_can_be_published_notes_do_not_grow_for_ever(
    database_url: str,
) -> None:
    """Kafka is away, or refuses the transactional id: each lead is noted about once."""

    def refused() -> Any:
        raise KafkaError("not authorised")

    async with running_stage(database_url) as stage:
        snapshots = Snapshots(
            database_url, stage.house.engine, refused, lambda: datetime.now(UTC)
        )  # fmt: skip
        await stage.connection.execute(
            """INSERT INTO stage.lead_changes (lead_ids)
               SELECT ARRAY[('00000000-0000-4000-8000-' || lpad((n % 1000)::text, 12, '0'))::uuid]
               FROM generate_series(1, $1::int) AS n""",
            NOTES_KEPT_MAX + 3000,
        )  # fmt: skip
        snapshots.start()
        try:
            few = "SELECT count(*) < 5000 FROM stage.lead_changes"
            await until(lambda: stage.connection.fetchval(few))
        finally:
            await snapshots.stop()
        noted = "SELECT count(DISTINCT lead) FROM stage.lead_changes, unnest(lead_ids) AS lead"
        assert await stage.connection.fetchval(noted) == 1000


async def test_without_kafka_nothing_is_noted(
    database_url: str, kafka: KafkaBroker, clear: None
) -> None:
    """Who goes back to the PostgreSQL bus does not gather notes that nobody takes; forth again fills anew."""
    async with with_kafka(database_url, kafka) as stage:
        await stage.send(told("1", email="a@b.example"))
        await everything_published(stage)
    async with running_stage(database_url) as stage:
        await stage.send(told("2", email="a@b.example"), told("3", email="c@d.example"))
        assert await stage.connection.fetchval("SELECT count(*) FROM stage.lead_changes") == 0
        assert not await fill_again(stage.connection)
    async with with_kafka(database_url, kafka) as stage:
        await agreed(stage, kafka)


async def test_a_leader_that_was_cut_off_cannot_write_an_older_state(
    kafka: KafkaBroker, clear: None
) -> None:
    """It read the state, was stopped, and goes on when another has written a newer one."""

    def state(value: bytes) -> Snapshot:
        return Snapshot("k", message_headers("1", LEAD_SNAPSHOT, datetime.now(UTC)), value)

    async with snapshot_writer(kafka.bootstrap_servers, LEADS_TOPIC) as first:
        assert await first.is_new_topic()
        await first.write([state(b"1")])
        async with snapshot_writer(kafka.bootstrap_servers, LEADS_TOPIC) as second:
            assert not await second.is_new_topic()
            await second.write([state(b"2")])
            with pytest.raises(KafkaError):
                await first.write([state(b"1")])
            await second.write([state(b"3")])

    async def all_three() -> bool:
        return [r.value for r in await records(kafka)] == [b"1", b"2", b"3"]

    await until(all_three, 10)


async def test_what_was_noted_before_a_crash_is_published_after_it(
    database_url: str, kafka: KafkaBroker, clear: None
) -> None:
    """Two processes: who leads loses its session in the middle, the other goes on; nothing is skipped."""
    async with with_kafka(database_url, kafka) as stage:
        other = kafka_snapshots(
            database_url, kafka.bootstrap_servers, stage.house.engine, lambda: datetime.now(UTC)
        )
        other.start()
        try:
            for round in range(4):
                await stage.send(
                    *(told(f"{round}-{n}", email=f"{n}@b.example", round=round) for n in range(50))
                )
                await stage.connection.execute(
                    """SELECT pg_terminate_backend(pid) FROM pg_locks
                       WHERE locktype = 'advisory' AND granted AND objid = $1 AND classid = $2""",
                    0x6261746F_0003 & 0xFFFFFFFF,
                    0x6261746F_0003 >> 32,
                )
            await agreed(stage, kafka)
        finally:
            await other.stop()


async def test_a_batch_that_ran_when_noting_began_is_filled_in_after_it(
    database_url: str, kafka: KafkaBroker, clear: None
) -> None:
    """Its changes are noted by nobody: its leads are read once it has ended."""
    running = await asyncpg.connect(database_url)
    try:
        async with running_stage(database_url) as stage:
            await stage.send(told("1", email="a@b.example"))
        transaction = running.transaction()
        await transaction.start()
        await running.execute("UPDATE stage.leads SET company = 'Late'")
        async with with_kafka(database_url, kafka) as stage:

            async def begun() -> bool:
                return await stage.connection.fetchval("SELECT count(*) FROM stage.snapshot_feed")

            await until(begun)
            await stage.send(told("2", email="c@d.example"))

            async def noted_is_published() -> bool:
                return len(await table(kafka)) == 1

            await until(noted_is_published)
            await transaction.commit()
            found = await agreed(stage, kafka)
            assert {lead["company"] for lead in found.values()} == {"Late", None}
    finally:
        await running.close()


def test_a_lead_too_large_for_a_broker_loses_its_longest_attributes() -> None:
    attributes = {f"a{n}": "x" * 8000 for n in range(200)} | {"short": 1}
    kept = without_the_longest(attributes, 256 * 1024)
    assert kept["short"] == 1
    assert 250_000 < len(msgspec.json.encode(kept)) <= 256 * 1024
    assert without_the_longest({"a": 1}, 100) == {"a": 1}


async def test_an_erased_lead_is_a_tombstone(
    database_url: str, kafka: KafkaBroker, clear: None
) -> None:
    async with with_kafka(database_url, kafka) as stage:
        [result] = await stage.send(told("1", email="a@b.example"))
        await agreed(stage, kafka)
        await stage.connection.execute("DELETE FROM stage.journeys")
        await stage.connection.execute("DELETE FROM stage.leads")
        await stage.connection.execute(
            "INSERT INTO stage.lead_changes (lead_ids) VALUES (ARRAY[$1::uuid])", result["lead_id"]
        )
        assert await agreed(stage, kafka) == {}
        assert "ce_mergedinto" not in dict((await records(kafka))[-1].headers)
