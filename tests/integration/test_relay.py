"""The relay: gapless positions, order per lead, take-over, and a broker that fails (I5)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import asyncpg
import msgspec

from services.contracts import postgres_log
from services.contracts.bus import Subscription
from services.contracts.database import STEADY_PLANS
from services.contracts.events import TRANSITIONS_TOPIC, Message, message_headers
from services.contracts.postgres_log import Fresh
from services.stage_service.lane import new_id
from services.stage_service.relay import (
    _PUBLISHER_LOCK,
    _SEQUENCER_LOCK,
    AT_ONCE_MAX,
    KAFKA_CURSOR,
    Relay,
)
from tests.integration.wired import START


class Broker:
    """A bus that fails before, in the middle of, or after taking what it is given."""

    def __init__(self, seed: int) -> None:
        self.taken: list[Message] = []
        self.away = False
        self._chance = random.Random(seed)

    async def publish(self, messages: Sequence[Message]) -> None:
        """Take `messages` in order, and fail in a third of all calls."""
        if self.away:
            raise ConnectionError("away")
        cut = self._chance.choice((None, None, 0, len(messages) // 2, len(messages)))
        self.taken += messages[:cut]
        if cut is not None:
            raise ConnectionError("lost")

    async def subscribe(self, group: str, topics: Sequence[str]) -> Subscription:
        """Nobody reads here."""
        raise AssertionError("nobody reads from this bus")

    async def close(self) -> None:
        """Nothing to close."""


def message(key: str) -> Message:
    id = new_id()
    return Message(TRANSITIONS_TOPIC, key, message_headers(id, "t.v1", START), id.encode())


async def until(condition: object, within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def written(url: str, count: int, writers: int = 6) -> dict[str, list[str]]:
    """Write `count` messages from many connections at once; gives the ids of each key in order."""
    order: dict[str, list[str]] = {}

    async def write(writer: int) -> None:
        connection = await asyncpg.connect(url)
        for n in range(count // writers):
            some = [message(f"{writer}-{n % 3}") for _ in range(1 + n % 3)]
            async with connection.transaction():
                await postgres_log.write(connection, some)
                await asyncio.sleep(0)
            for each in some:
                order.setdefault(each.key, []).append(each.id)
        await connection.close()

    await asyncio.gather(*(write(w) for w in range(writers)))
    return order


def order_of(messages: Sequence[Message]) -> dict[str, list[str]]:
    """The ids of each key in order, repeats dropped as a consumer does."""
    found: dict[str, dict[str, None]] = {}
    for each in messages:
        found.setdefault(each.key, {}).setdefault(each.id)
    return {key: list(ids) for key, ids in found.items()}


async def test_positions_are_gapless_and_keep_each_leads_order(database_url: str) -> None:
    """Six writers commit at once, two relays compete: every position once, order per key kept."""
    relays = [Relay(database_url, None) for _ in range(2)]
    for relay in relays:
        relay.start()
    expected = await written(database_url, 300)
    connection = await asyncpg.connect(database_url)
    total = sum(len(ids) for ids in expected.values())

    async def all_logged() -> bool:
        return await connection.fetchval("SELECT count(*) FROM bus.log") == total

    await until(all_logged)
    messages = await postgres_log.read(connection, 0, [TRANSITIONS_TOPIC], 10_000)
    for relay in relays:
        await relay.stop()
    await connection.close()
    assert [m.position for m in messages] == list(range(1, total + 1))
    assert order_of(messages) == expected


async def test_a_failing_broker_sees_repeats_but_no_gap_and_no_other_order(
    database_url: str,
) -> None:
    broker = Broker(7)
    relay = Relay(database_url, broker)
    relay.start()
    expected = await written(database_url, 120)
    total = sum(len(ids) for ids in expected.values())

    async def all_taken() -> bool:
        return len({m.id for m in broker.taken}) == total

    await until(all_taken, 120)
    await relay.stop()
    assert order_of(broker.taken) == expected


async def test_a_broker_that_is_away_stops_no_stamping_and_catches_up(database_url: str) -> None:
    broker = Broker(1)
    broker.away = True
    relay = Relay(database_url, broker)
    relay.start()
    expected = await written(database_url, 60)
    connection = await asyncpg.connect(database_url)

    async def none_waits() -> bool:
        return await connection.fetchval("SELECT count(*) FROM bus.pending") == 0

    await until(none_waits)  # the feed and the streams go on
    assert broker.taken == []
    broker.away = False

    async def caught_up() -> bool:
        return order_of(broker.taken) == expected

    await until(caught_up, 120)
    await relay.stop()
    await connection.close()


class SlowBroker(Broker):
    """A bus that takes what it is given at once, but answers only when `answers` is set."""

    def __init__(self) -> None:
        super().__init__(0)
        self.answers = asyncio.Event()
        self.answers.set()
        self.at_once = 0
        self.overlapped = False

    async def publish(self, messages: Sequence[Message]) -> None:
        """Take `messages`; two calls at once would leave their order to chance."""
        self.overlapped |= self.at_once > 0
        self.at_once += 1
        self.taken += messages
        try:
            await self.answers.wait()
        finally:
            self.at_once -= 1


async def caught_up_with(
    connection: asyncpg.Connection, broker: Broker, relay: Relay, key: str
) -> None:
    """Publish messages until one was sent before the relay had its position from the log."""
    while True:
        sent = message(key)
        await postgres_log.write(connection, [sent])
        relay.committed(None)

        async def taken(id: str = sent.id) -> bool:
            return id in {m.id for m in broker.taken}

        await until(taken)
        if next(m for m in broker.taken if m.id == sent.id).position is None:
            return


async def test_a_relay_that_has_caught_up_sends_a_message_while_it_gets_its_position(
    database_url: str,
) -> None:
    """The broker's slow answer holds up neither the log nor, once it came, what follows."""
    broker = SlowBroker()
    relay = Relay(database_url, broker)
    relay.start()
    connection = await asyncpg.connect(database_url)
    await caught_up_with(connection, broker, relay, "a")
    broker.answers.clear()
    expected = order_of(broker.taken)

    async def sending() -> bool:
        return broker.at_once > 0

    for _ in range(6):
        each = message("a")
        expected["a"].append(each.id)
        await postgres_log.write(connection, [each])
        relay.committed(None)
        await until(sending)  # the first is on its way, without an answer: the others wait for it

    async def none_waits() -> bool:
        return await connection.fetchval("SELECT count(*) FROM bus.pending") == 0

    await until(none_waits)
    assert len(order_of(broker.taken)["a"]) < len(expected["a"])
    broker.answers.set()

    async def all_taken() -> bool:
        return order_of(broker.taken) == expected

    await until(all_taken)
    await relay.stop()
    assert not broker.overlapped
    stored = await postgres_log.cursor(connection, "relay:kafka")
    assert stored == len(expected["a"])  # and none is sent again after a restart
    await connection.close()


async def committed(connection: asyncpg.Connection, *keys: str) -> Fresh:
    """Commit a message for each of `keys` as the lane does: with their leads locked, in one statement."""
    some = [message(key) for key in keys]
    rows = postgres_log.message_rows(some)
    async with connection.transaction():
        for key in sorted(keys):
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", key)
        row = await connection.fetchrow(
            f"WITH {postgres_log.OUTBOX_CTES.format(rows='$1')} SELECT {postgres_log.OUTBOX_PLACE}",
            rows,
        )
    assert row is not None
    ids, is_next, after = row
    return Fresh(ids, some, after, is_next)


async def until_idle(relay: Relay) -> None:
    """Wait until `relay` has nothing to send, and sends nothing."""

    async def idle() -> bool:
        return relay._is_idle and relay._ahead is None

    await until(idle)


async def test_what_was_just_committed_is_sent_without_asking_for_it(database_url: str) -> None:
    """At once when all before it is in Kafka; after what another process committed before it, when not."""
    broker = SlowBroker()
    relay = Relay(database_url, broker)
    relay.start()
    connection = await asyncpg.connect(database_url)
    await caught_up_with(connection, broker, relay, "a")

    await until_idle(relay)
    fresh = await committed(connection, "a", "b")
    assert fresh.is_next
    relay.committed(fresh)
    broker.answers.clear()
    await asyncio.sleep(0)
    assert broker.taken[-2:] == fresh.messages  # no statement was run for it
    broker.answers.set()
    await until_idle(relay)

    other = await committed(connection, "a")  # of another process: nobody tells us
    fresh = await committed(connection, "a")
    assert not fresh.is_next
    relay.committed(fresh)

    async def taken() -> bool:
        return {fresh.messages[0].id} <= {m.id for m in broker.taken}

    await until(taken)
    order = order_of(broker.taken)["a"]
    assert order.index(other.messages[0].id) < order.index(fresh.messages[0].id)
    await relay.stop()
    total = await connection.fetchval("SELECT count(*) FROM bus.outbox")
    logged = await postgres_log.read(connection, 0, [TRANSITIONS_TOPIC], 1000)
    assert [m.position for m in logged] == list(range(1, total + 1))
    await connection.close()


async def test_many_processes_commit_for_the_same_leads_and_order_is_kept(
    database_url: str,
) -> None:
    """Ours are sent at once where that is right; sessions of the relay die meanwhile."""
    broker = Broker(3)
    relay = Relay(database_url, broker)
    relay.start()
    random_ = random.Random(5)

    async def write(writer: int) -> None:
        connection = await asyncpg.connect(database_url)
        for n in range(60):
            keys = random_.sample(["a", "b", "c"], random_.choice([1, 1, 2]))
            fresh = await committed(connection, *keys)
            if writer < 2:  # of this process
                relay.committed(fresh)
            if n % 20 == 10:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
                    "AND objid = $1", (_SEQUENCER_LOCK + writer % 2) & 0xFFFFFFFF,
                )  # fmt: skip
            await asyncio.sleep(random_.choice([0, 0, 0.001, 0.004]))
        await connection.close()

    await asyncio.gather(*(write(w) for w in range(3)))
    connection = await asyncpg.connect(database_url)
    # Under the leads' locks ids were given in the order of commits.
    rows = await connection.fetch("SELECT key, message_id FROM bus.outbox ORDER BY id")
    expected: dict[str, list[str]] = {}
    for row in rows:
        expected.setdefault(row["key"], []).append(row["message_id"])

    async def all_taken() -> bool:
        return len({m.id for m in broker.taken}) == len(rows)

    await until(all_taken)
    await relay.stop()
    logged = await postgres_log.read(connection, 0, [TRANSITIONS_TOPIC], 1000)
    await connection.close()
    assert order_of(broker.taken) == expected
    assert order_of(logged) == expected
    assert [m.position for m in logged] == list(range(1, len(rows) + 1))


async def test_what_another_sequencer_stamped_meanwhile_is_sent_too(database_url: str) -> None:
    """A sequencer that lost its session, and has it again, sends nothing past what it did not stamp."""
    broker = SlowBroker()
    relay = Relay(database_url, broker)
    relay.start()
    connection = await asyncpg.connect(database_url)
    await caught_up_with(connection, broker, relay, "a")
    expected = order_of(broker.taken)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1",
        _SEQUENCER_LOCK & 0xFFFFFFFF,
    )
    await connection.execute("SELECT pg_advisory_lock($1)", _SEQUENCER_LOCK)
    broker.answers.clear()
    for _ in range(5):
        each = message("a")
        expected["a"].append(each.id)
        await postgres_log.write(connection, [each])
        await postgres_log.stamp(connection)

    async def sending() -> bool:
        return broker.at_once > 0

    await until(sending)
    last = message("a")
    expected["a"].append(last.id)
    await postgres_log.write(connection, [last])
    await connection.execute("SELECT pg_advisory_unlock($1)", _SEQUENCER_LOCK)

    async def none_waits() -> bool:
        return await connection.fetchval("SELECT count(*) FROM bus.pending") == 0

    await until(none_waits)
    broker.answers.set()

    async def all_taken() -> bool:
        return order_of(broker.taken) == expected

    await until(all_taken)
    await relay.stop()
    assert not broker.overlapped
    await connection.close()


async def test_a_large_batch_is_sent_after_its_sender_was_answered(database_url: str) -> None:
    """Handing many messages to the client takes the time in which the sender could hear."""
    broker = SlowBroker()
    relay = Relay(database_url, broker)
    relay.start()
    connection = await asyncpg.connect(database_url)
    await caught_up_with(connection, broker, relay, "a")

    await until_idle(relay)
    before = len(broker.taken)
    fresh = await committed(connection, *["a"] * (AT_ONCE_MAX + 1))
    assert fresh.is_next
    relay.committed(fresh)
    await asyncio.sleep(0)
    assert len(broker.taken) == before

    async def taken() -> bool:
        return order_of(broker.taken)["a"][before:] == [m.id for m in fresh.messages]

    await until(taken)
    await relay.stop()
    await connection.close()


async def test_a_publisher_that_leads_again_goes_by_the_cursor(database_url: str) -> None:
    """What it sent as its session was lost is old by then: what others sent since is not sent again."""
    broker = SlowBroker()
    relay = Relay(database_url, broker)
    relay.start()
    connection = await asyncpg.connect(database_url)
    await caught_up_with(connection, broker, relay, "a")
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1",
        _PUBLISHER_LOCK & 0xFFFFFFFF,
    )
    await connection.execute("SELECT pg_advisory_lock($1)", _PUBLISHER_LOCK)
    async with asyncio.timeout(60):
        while relay._position >= 0:  # until it has noticed
            relay.committed(await committed(connection, "a"))
            await asyncio.sleep(0.01)
    ours = {m.id for m in broker.taken}
    others = [await committed(connection, "a") for _ in range(3)]

    async def none_waits() -> bool:
        return await connection.fetchval("SELECT count(*) FROM bus.pending") == 0

    await until(none_waits)
    last = await connection.fetchval("SELECT max(position) FROM bus.log")
    await postgres_log.advance(connection, KAFKA_CURSOR, last)
    await connection.execute("SELECT pg_advisory_unlock($1)", _PUBLISHER_LOCK)
    await caught_up_with(connection, broker, relay, "a")
    await relay.stop()
    await connection.close()
    again = {m.id for m in broker.taken} - ours
    assert again.isdisjoint(m.id for fresh in others for m in fresh.messages)


async def test_another_relay_takes_over_when_one_dies(database_url: str) -> None:
    """A leader whose session dies is followed by the one that stands by."""
    first, second = Broker(1), Broker(2)
    relays = [Relay(database_url, first), Relay(database_url, second)]
    connection = await asyncpg.connect(database_url)
    relays[0].start()
    await postgres_log.write(connection, [message("a")])

    async def first_sent() -> bool:
        return bool(first.taken)

    await until(first_sent)
    relays[1].start()
    for task in relays[0]._tasks:  # as kill -9 does: no farewell, only the session ends
        task.cancel()
    sent = message("b")
    await postgres_log.write(connection, [sent])

    async def second_sent() -> bool:
        return sent.id in {m.id for m in second.taken}

    await until(second_sent)
    await relays[1].stop()
    await connection.close()


async def pages_read(url: str, statement: str, prepare: str, then: str) -> int:
    """Give how many pages `statement` reads when it was planned while its tables were known to be empty.

    `prepare` names its parameters' types and `then` its values; messages come in between.
    """
    connection = await asyncpg.connect(url, server_settings=STEADY_PLANS)
    try:
        await connection.execute("VACUUM ANALYZE bus.outbox, bus.pending, bus.log")
        await connection.execute(f"PREPARE planned({prepare}) AS {statement}")
        await connection.execute(f"EXECUTE planned({then})")
        await postgres_log.write(connection, [message(new_id()) for _ in range(1000)])
        told = await connection.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE planned({then})"
        )
        plan = msgspec.json.decode(told)[0]["Plan"]
        return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    finally:
        await connection.close()


async def test_a_plan_made_while_nothing_waited_is_good_for_much(database_url: str) -> None:
    """A message costs some pages, not some for each other message: planned once, used for ever."""
    statement = postgres_log._STAMP_NEXT
    assert await pages_read(database_url, statement, "int", "2000") < 40 * 1000


async def test_what_is_pending_is_found_by_its_key(database_url: str) -> None:
    assert await pages_read(database_url, postgres_log._PENDING, "int", "2000") < 40 * 1000
