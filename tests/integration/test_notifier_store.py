"""Alerts and deliveries on a real PostgreSQL: recorded once, attempted until they end, never gone."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from services.contracts import postgres_log
from services.contracts.audit import Actor
from services.contracts.bus import Bus, Received
from services.contracts.events import DEAD_LETTERS_TOPIC, TRANSITIONED, TRANSITIONS_TOPIC, Message
from services.contracts.postgres_log import PostgresLog
from services.contracts.team import Person
from services.notifier import claims, reads, store
from services.notifier.channels import Channels
from services.notifier.consumer import Consumer
from services.notifier.deliveries import CLAIM_MARGIN_S, Dispatcher, Patience
from services.notifier.letters import Letter, Outcome
from services.notifier.roster import Roster

TEAM = """
people:
  - {id: ana, name: Ana Silva, roles: [lead_agent], channels: [inbox]}
  - {id: ben, name: Ben Ott, roles: [ae], email: ben@baton.example, channels: [inbox, email]}
  - id: pat
    name: Pat Pager
    roles: [ae]
    email: pat@baton.example
    channels: [email]
    alerts: {group_over: 1000, per_hour_max: 1000}
  - {id: cy, name: Cy Wu, roles: [csm], email: cy@baton.example, channels: [email, console]}
"""
PATIENCE = Patience(tries=3, window_s=60, timeout_s=5)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.moment = datetime(2025, 3, 1, 10, tzinfo=UTC)

    def now(self) -> datetime:
        """Give the moment."""
        return self.moment

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.moment += timedelta(seconds=seconds)


class Wire(Channels):
    """Channels that answer what `outcomes` says, in turn, and remember what they sent."""

    def __init__(self) -> None:
        super().__init__(None, 5, 1)
        self.sent: list[tuple[str, str]] = []
        self.outcomes: list[Outcome] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, channel: str, person: Person | None, letter: Letter) -> Outcome:
        """Answer the next outcome."""
        await self.gate.wait()
        self.sent.append((channel, letter.alert_id))
        return self.outcomes.pop(0) if self.outcomes else Outcome("delivered")


class ListBus:
    """A bus of one list; `fail` raises at the next publish or commit."""

    def __init__(self, messages: Sequence[Message] = ()) -> None:
        self.messages = list(messages)
        self.committed = 0
        self.position = 0
        self.published: list[Message] = []
        self.fail: set[str] = set()

    async def publish(self, messages: Sequence[Message]) -> None:
        """Remember, or fail once."""
        self._maybe_fail("publish")
        self.published.extend(messages)

    async def subscribe(self, group: str, topics: Sequence[str]) -> ListBus:
        """Read from the last commit."""
        self.position = self.committed
        return self

    async def fetch(self, messages_max: int, wait_s: float) -> list[Received]:
        """Give what comes next."""
        self._maybe_fail("fetch")
        found = self.messages[self.position : self.position + messages_max]
        first = self.position
        self.position += len(found)
        if not found:
            await asyncio.sleep(0)
        return [Received(m, (m.topic, 0, first + n)) for n, m in enumerate(found)]

    async def commit(self, received: Sequence[Received]) -> None:
        """Move the group's place, or fail once."""
        self._maybe_fail("commit")
        self.committed = max(self.committed, received[-1].token[2] + 1)

    async def close(self) -> None:
        """Nothing to let go."""

    def _maybe_fail(self, what: str) -> None:
        if what in self.fail:
            self.fail.discard(what)
            raise ConnectionError(what)


class Desk:
    """One notifier's parts on a test database."""

    def __init__(self, pool: asyncpg.Pool[Any], roster: Roster) -> None:
        self.pool = pool
        self.clock = Clock()
        self.wire = Wire()
        self.roster = roster
        self.dispatcher = self.new_dispatcher()

    def new_dispatcher(self) -> Dispatcher:
        """Another replica of the dispatcher."""
        return Dispatcher(
            self.pool, self.wire, self.roster, PATIENCE, self.clock.now, lambda: 0.5, new_id,
            "http://baton.example",
        )  # fmt: skip

    async def claim(self) -> list[claims.Parcel]:
        """What a process that dies at once claims."""
        now = self.clock.now()
        until = now + timedelta(seconds=PATIENCE.timeout_s + CLAIM_MARGIN_S)
        parcels, _ = await claims.claim(
            self.pool, now, until, claims.Lane(10, {}, 8),
            lambda who: self.roster.team().by_id.get(who or ""), new_id, "http://baton.example",
        )  # fmt: skip
        return parcels

    def consumer(self, bus: Bus) -> Consumer:
        """A consumer of `bus`."""

        async def opened() -> Bus:
            return bus

        return Consumer(
            opened, self.pool, self.roster, "http://baton.example", PATIENCE.tries,
            self.clock.now, new_id, self.dispatcher.wake,
        )  # fmt: skip

    async def alerts(self) -> list[dict[str, Any]]:
        """All alerts, newest first."""
        items, _ = await reads.list_alerts(
            self.pool, role=None, person=None, status=None, lead_id=None, before=None, limit=5000
        )
        return items

    async def dead_letters(self) -> list[dict[str, Any]]:
        """All dead letters, newest first."""
        return (await reads.list_dead_letters(self.pool, None, 200))[0]


def new_id() -> uuid.UUID:
    """A fresh id."""
    from services.notifier.app import new_id as made

    return made()


def transition(person: str | None = "ana", role: str = "lead_agent", **changes: Any) -> Message:
    """A published transition that wishes one alert."""
    who = {"id": person, "name": person.title()} if person else None
    body = {
        "transition_id": str(uuid.uuid4()),
        "lead": {"id": str(uuid.uuid4()), "email": "ada@acme.example", "name": "Ada"},
        "from": "lead_generation",
        "to": "lead_qualification",
        "recorded_at": "2025-03-01T10:00:00Z",
        "alerts": [{"role": role, "person": who}],
    } | changes
    headers = {"ce_id": str(uuid.uuid4()), "ce_type": TRANSITIONED}
    return Message(TRANSITIONS_TOPIC, "lead", headers, msgspec.json.encode(body))


@pytest.fixture
async def desk(database_url: str, tmp_path: Path) -> AsyncIterator[Desk]:
    """A notifier on an empty database."""
    file = tmp_path / "team.yaml"
    file.write_text(TEAM)
    async with asyncpg.create_pool(database_url, min_size=0, max_size=8) as pool:
        desk = Desk(pool, Roster(file))
        yield desk
        desk.wire.close()


async def test_an_inbox_alert_is_delivered_when_it_is_recorded(desk: Desk) -> None:
    bus = ListBus([transition()])
    assert await desk.consumer(bus).run_once() == 1
    [alert] = await desk.alerts()
    assert alert["status"] == "delivered"
    assert [(d["channel"], d["status"]) for d in alert["deliveries"]] == [("inbox", "delivered")]
    assert bus.committed == 1


async def test_i6_any_number_of_repeats_make_one_alert_a_person(desk: Desk) -> None:
    messages = [transition(p) for p in ("ana", "ben", "cy", None) for _ in range(20)]
    buses = [ListBus(messages * 2), ListBus(list(reversed(messages))), ListBus(messages)]
    await asyncio.gather(*(desk.consumer(bus).run_once() for bus in buses))
    alerts = await desk.alerts()
    assert len(alerts) == len(messages)
    pairs = {(a["alert_id"], a["channel"]) for a in await desk.pool.fetch(
        "SELECT alert_id, channel FROM notifier.deliveries")}  # fmt: skip
    assert len(pairs) == await desk.pool.fetchval("SELECT count(*) FROM notifier.deliveries")
    assert len(pairs) == 20 * (1 + 2 + 2 + 1)


async def test_offsets_wait_for_the_transaction(desk: Desk) -> None:
    bus = ListBus([transition()])
    consumer = desk.consumer(bus)
    bus.fail = {"commit"}
    with pytest.raises(ConnectionError):
        await consumer.run_once()
    assert bus.committed == 0
    assert len(await desk.alerts()) == 1
    await bus.subscribe("notifier", ())  # rejoins: the message comes again
    assert await consumer.run_once() == 1
    assert len(await desk.alerts()) == 1
    assert bus.committed == 1


async def test_poison_is_kept_and_the_partition_goes_on(desk: Desk) -> None:
    poison = [
        Message(TRANSITIONS_TOPIC, "k\0", {"ce_id": "bad\0", "ce_type": TRANSITIONED}, b"\xff{"),
        Message(TRANSITIONS_TOPIC, "", {"ce_id": "bad\0", "ce_type": TRANSITIONED}, b"[]"),
        Message(TRANSITIONS_TOPIC, "", {}, b""),
        transition(transition_id="nonsense"),
    ]
    bus = ListBus([transition(), *poison, transition(), *poison])
    await desk.consumer(bus).run_once()
    assert len(await desk.alerts()) == 2
    letters = await desk.dead_letters()
    assert len(letters) == 4
    assert all(x["kind"] == "message" and x["reason"] for x in letters)
    assert bus.committed == 10
    assert [m.topic for m in bus.published] == [DEAD_LETTERS_TOPIC] * 8
    assert bus.published[0].value == b"\xff{"
    assert bus.published[0].headers["baton_reason"]
    kept = await store.dead_message(desk.pool, letters[-1]["id"])
    assert kept is not None


async def test_poison_is_published_again_when_that_failed(desk: Desk) -> None:
    bus = ListBus([Message(TRANSITIONS_TOPIC, "", {}, b"x")])
    bus.fail = {"publish"}
    consumer = desk.consumer(bus)
    with pytest.raises(ConnectionError):
        await consumer.run_once()
    await bus.subscribe("notifier", ())
    await consumer.run_once()
    assert len(bus.published) == 1
    assert len(await desk.dead_letters()) == 1


async def test_what_the_database_refuses_does_not_stop_the_others(desk: Desk) -> None:
    bad = transition()
    bad_id = msgspec.json.decode(bad.value)["transition_id"]
    await desk.pool.execute(
        f"ALTER TABLE notifier.alerts ADD CHECK (transition_id <> '{bad_id}'::uuid)"
    )
    bus = ListBus([transition(), bad, transition()])
    await desk.consumer(bus).run_once()
    assert len(await desk.alerts()) == 2
    [letter] = await desk.dead_letters()
    assert "CheckViolation" in letter["reason"]
    assert bus.committed == 3


async def test_a_dead_letter_can_be_read_again(desk: Desk) -> None:
    consumer = desk.consumer(ListBus())
    assert await consumer.take([transition(transition_id="bad")]) is not None
    assert await consumer.take([transition()]) is None
    assert len(await desk.alerts()) == 1


async def test_an_email_is_attempted_once_and_the_alert_delivered(desk: Desk) -> None:
    await desk.consumer(ListBus([transition("ben")])).run_once()
    [alert] = await desk.alerts()
    assert alert["status"] == "pending"
    assert await desk.dispatcher.run_due() == 1
    assert await desk.dispatcher.run_due() == 0
    [alert] = await desk.alerts()
    assert alert["status"] == "delivered"
    assert desk.wire.sent == [("email", alert["id"])]


async def test_failures_are_tried_again_later_and_end_dead(desk: Desk) -> None:
    desk.wire.outcomes = [Outcome("failed", "busy")] * 6
    await desk.consumer(ListBus([transition("ben")])).run_once()
    waits: list[float] = []
    for _ in range(3):
        assert await desk.dispatcher.run_due() == 1
        assert await desk.dispatcher.run_due() == 0  # not due yet
        [alert] = await desk.alerts()
        last = alert["deliveries"][-1]
        if last["status"] == "pending":
            due_at = datetime.fromisoformat(last["due_at"])
            waits.append((due_at - desk.clock.now()).total_seconds())
            desk.clock.pass_(waits[-1])
    assert waits == pytest.approx([12, 48])  # 60 s in all, each four times the one before
    assert [d["status"] for d in alert["deliveries"]] == ["delivered", "failed", "failed", "dead"]
    assert alert["status"] == "delivered"  # by the inbox
    [letter] = await desk.dead_letters()
    assert (letter["kind"], letter["channel"], letter["reason"]) == ("delivery", "email", "busy")


async def test_an_alert_that_reached_nobody_is_dead_lettered_and_can_be_sent_again(
    desk: Desk,
) -> None:
    desk.wire.outcomes = [
        Outcome("failed", "550 unknown", permanent=True),
        Outcome("skipped", "no console here"),
    ]
    await desk.consumer(ListBus([transition("cy")])).run_once()
    await desk.dispatcher.run_due()
    [alert] = await desk.alerts()
    assert alert["status"] == "dead_lettered"
    assert len(await desk.dead_letters()) == 2
    id = uuid.UUID(alert["id"])
    retried = await store.retry(desk.pool, id, desk.clock.now(), PATIENCE.tries, Actor("ana"))
    assert sorted(retried) == ["console", "email"]
    assert await store.retry(desk.pool, id, desk.clock.now(), PATIENCE.tries, Actor("ana")) == []
    [alert] = await desk.alerts()
    assert alert["status"] == "pending"
    assert await desk.dead_letters() == []
    assert await desk.dispatcher.run_due() == 2
    [alert] = await desk.alerts()
    assert alert["status"] == "delivered"


async def test_a_retry_by_hand_has_all_its_tries_again(desk: Desk) -> None:
    desk.wire.outcomes = [Outcome("failed", "no", permanent=True)] + [Outcome("failed", "busy")] * 3
    await desk.consumer(ListBus([transition("ben")])).run_once()
    await desk.dispatcher.run_due()
    [alert] = await desk.alerts()
    await store.retry(
        desk.pool, uuid.UUID(alert["id"]), desk.clock.now(), PATIENCE.tries, Actor("ana")
    )
    for _ in range(3):
        assert await desk.dispatcher.run_due() == 1
        desk.clock.pass_(120)
    assert await desk.dispatcher.run_due() == 0
    [alert] = await desk.alerts()
    emails = [d["status"] for d in alert["deliveries"] if d["channel"] == "email"]
    assert emails == ["failed"] * 3 + ["dead"]


async def test_replicas_share_the_work_and_send_each_once(desk: Desk) -> None:
    await desk.consumer(ListBus([transition("pat") for _ in range(100)])).run_once()
    replicas = [desk.new_dispatcher() for _ in range(3)]
    while sum(await asyncio.gather(*(r.run_due() for r in replicas))):
        pass
    assert len(desk.wire.sent) == 100
    assert len(set(desk.wire.sent)) == 100
    assert {a["status"] for a in await desk.alerts()} == {"delivered"}


async def test_i12_a_claim_of_a_dead_process_runs_out(desk: Desk) -> None:
    await desk.consumer(ListBus([transition("ben")])).run_once()
    [ghost] = await desk.claim()  # and the process is gone
    assert await desk.dispatcher.run_due() == 0
    desk.clock.pass_(PATIENCE.timeout_s + CLAIM_MARGIN_S)
    assert await desk.dispatcher.run_due() == 1
    # The dead process was only slow: its word comes too late to count.
    late = await claims.finish(desk.pool, ghost, claims.Ending("dead", "late", 1, desk.clock.now()))
    assert late is False
    [alert] = await desk.alerts()
    assert alert["status"] == "delivered"
    assert len(desk.wire.sent) == 1


async def test_acknowledging_twice_keeps_the_first(desk: Desk) -> None:
    await desk.consumer(ListBus([transition("ben")])).run_once()
    [alert] = await desk.alerts()
    id = uuid.UUID(alert["id"])
    first = desk.clock.now()
    await store.acknowledge(desk.pool, id, Actor("ana"), first)
    desk.clock.pass_(60)
    await store.acknowledge(desk.pool, id, Actor("ben"), desk.clock.now())
    await desk.dispatcher.run_due()  # a delivery that ends later leaves it acknowledged
    [alert] = await desk.alerts()
    assert (alert["status"], alert["acknowledged_by"]) == ("acknowledged", "ana")
    assert datetime.fromisoformat(alert["acknowledged_at"]) == first


async def test_acknowledging_cancels_what_is_pending(desk: Desk) -> None:
    """Who has seen the alert is not told again, and it is no dead letter."""
    await desk.consumer(ListBus([transition("ben")])).run_once()
    [alert] = await desk.alerts()
    await store.acknowledge(desk.pool, uuid.UUID(alert["id"]), Actor("ana"), desk.clock.now())
    assert await desk.dispatcher.run_due() == 0
    assert desk.wire.sent == []
    [alert] = await desk.alerts()
    assert {d["channel"]: (d["status"], d["reason"]) for d in alert["deliveries"]} == {
        "inbox": ("delivered", None), "email": ("skipped", "acknowledged"),
    }  # fmt: skip
    assert alert["deliveries"][-1]["finished_at"]
    assert await desk.dead_letters() == []
    id = uuid.UUID(alert["id"])
    assert await store.retry(desk.pool, id, desk.clock.now(), PATIENCE.tries, Actor("ana")) == []


async def test_acknowledged_while_it_is_sent_it_is_not_tried_again(desk: Desk) -> None:
    """The attempt under way ends as it ends; nothing follows it."""
    await desk.consumer(ListBus([transition("ben")])).run_once()
    [alert] = await desk.alerts()
    desk.wire.gate.clear()
    desk.wire.outcomes = [Outcome("failed", "busy")]
    sending = asyncio.create_task(desk.dispatcher.run_due())
    while not await desk.pool.fetchval(
        "SELECT count(*) FROM notifier.deliveries WHERE status = 'claimed'"
    ):
        pass
    await store.acknowledge(desk.pool, uuid.UUID(alert["id"]), Actor("ana"), desk.clock.now())
    desk.wire.gate.set()
    assert await sending == 1
    desk.clock.pass_(3600)
    assert await desk.dispatcher.run_due() == 0
    [alert] = await desk.alerts()
    assert alert["status"] == "acknowledged"
    assert [d["status"] for d in alert["deliveries"] if d["channel"] == "email"] == ["failed"]


async def test_acknowledged_after_a_process_died_it_is_not_sent_again(desk: Desk) -> None:
    """A claim that ran out is skipped, not sent."""
    await desk.consumer(ListBus([transition("ben")])).run_once()
    [alert] = await desk.alerts()
    now = desk.clock.now()
    assert len(await desk.claim()) == 1  # and the process is gone
    await store.acknowledge(desk.pool, uuid.UUID(alert["id"]), Actor("ana"), now)
    desk.clock.pass_(30)
    assert await desk.dispatcher.run_due() == 1
    assert desk.wire.sent == []
    [alert] = await desk.alerts()
    assert [(d["status"], d["reason"]) for d in alert["deliveries"] if d["channel"] == "email"] == [
        ("skipped", "acknowledged")
    ]


async def test_stopping_finishes_what_is_held(desk: Desk) -> None:
    await desk.consumer(ListBus([transition("ben")])).run_once()
    desk.wire.gate.clear()
    dispatcher = desk.new_dispatcher()
    dispatcher.start()
    while not await desk.pool.fetchval(
        "SELECT count(*) FROM notifier.deliveries WHERE status = 'claimed'"
    ):
        pass
    stopping = asyncio.create_task(dispatcher.stop())
    await asyncio.sleep(0)
    desk.wire.gate.set()
    await stopping
    [alert] = await desk.alerts()
    assert alert["status"] == "delivered"


async def test_the_loop_survives_a_bus_that_fails(desk: Desk) -> None:
    bus = ListBus([transition()])
    bus.fail = {"fetch", "commit"}
    consumer = desk.consumer(bus)
    consumer.start()
    while not bus.committed and not await desk.alerts():
        assert consumer.alive
    await consumer.stop()
    assert len(await desk.alerts()) == 1


async def test_on_the_postgres_bus(desk: Desk, database_url: str) -> None:
    bus = await PostgresLog.open(database_url)
    await bus.publish([transition() for _ in range(3)] + [transition(transition_id="bad")])
    async with desk.pool.acquire() as connection:
        await postgres_log.stamp(connection)  # type: ignore[arg-type]
    consumer = desk.consumer(bus)
    assert await consumer.run_once() == 4
    assert await consumer.run_once() == 0
    assert len(await desk.alerts()) == 3
    await consumer.stop()
    topics = await desk.pool.fetch("SELECT topic FROM bus.outbox ORDER BY id")
    assert topics[-1]["topic"] == DEAD_LETTERS_TOPIC


async def test_the_roster_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "team.yaml"
    file.write_text(TEAM)
    roster = Roster(file)
    assert "dee" not in roster.team().by_id
    file.write_text(TEAM + "  - {id: dee, name: Dee, roles: [ae]}\n")
    assert "dee" in roster.team().by_id
    file.write_text("people: [")
    assert "dee" in roster.team().by_id  # the last good one
