"""Handoffs and their answers, on a real PostgreSQL: who can answer, and that the answer ends their alerts."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from services.contracts.events import TRANSITIONED, TRANSITIONS_TOPIC, Message
from services.contracts.handoffs import ACCEPTED, CLOCK_RANG, OFFERED, OVERDUE, REJECTED, WITHDRAWN
from services.contracts.links import ANSWER, Links
from services.contracts.published import AlertWish, OfferRef, PersonRef
from services.notifier.deliveries import Dispatcher
from services.notifier.letters import Letter, Outcome
from services.notifier.roster import Roster
from tests.integration.test_notifier_attention import Post
from tests.integration.test_notifier_store import PATIENCE, ListBus, new_id, transition
from tests.unit.test_notifier_handoffs import message, rang, told

KEY = "0123456789abcdef0123456789abcdef"
LINKS = Links(ANSWER, KEY, "https://b.example/", 86_400)
TEAM = """
people:
  - {id: ben, name: Ben Ott, roles: [ae], email: ben@baton.example, channels: [email]}
  - {id: ivo, name: Ivo Box, roles: [ae], channels: [inbox, console]}
  - {id: kim, name: Kim Lead, roles: [marketing], leads: [ae], email: k@baton.example, channels: [email]}
"""
BEN = PersonRef("ben", "Ben Ott")
KIM = PersonRef("kim", "Kim Lead")
NOW = datetime(2026, 3, 2, 10, tzinfo=UTC)
DUE = NOW + timedelta(hours=4)


class Counter(Post):
    """A notifier that makes links to answer."""

    def new_dispatcher(self) -> Dispatcher:
        """Another replica of the dispatcher."""
        return Dispatcher(
            self.pool, self.wire, self.roster, PATIENCE, self.clock.now, lambda: 0.5, new_id,
            "http://baton.example", answer_links=LINKS,
        )  # fmt: skip

    def letter_to(self, person: str) -> Letter:
        """The last letter to somebody."""
        return [letter for who, letter in self.letters if who == person][-1]


@pytest.fixture
async def counter(database_url: str, tmp_path: Path) -> AsyncIterator[Counter]:
    """A notifier on an empty database."""
    file = tmp_path / "team.yaml"
    file.write_text(TEAM)
    async with asyncpg.create_pool(database_url, min_size=0, max_size=8) as pool:
        counter = Counter(pool, Roster(file))
        counter.clock.moment = NOW
        yield counter
        counter.wire.close()


def offer(handoff: uuid.UUID, due_at: datetime = DUE) -> OfferRef:
    """What a message says of a handoff that can be answered."""
    return OfferRef(str(handoff), "ae", due_at, ["No budget", "No time"])


def offering(
    handoff: uuid.UUID, *people: str, at: datetime = NOW, informs: str | None = None
) -> Message:
    """A transition that offers a handoff to `people`, and informs somebody of another role."""
    roles = dict.fromkeys(people, "ae") | ({informs: "lead_agent"} if informs else {})
    wishes = [{"role": role, "person": {"id": p, "name": p.title()}} for p, role in roles.items()]
    offered = msgspec.json.decode(msgspec.json.encode(offer(handoff)))
    return transition(alerts=wishes, offer=offered, recorded_at=at.isoformat())


def change(handoff: uuid.UUID, type: str, at: datetime, **changes: Any) -> Message:
    """A published change of a handoff."""
    state = type.split(".")[2].replace("overdue", "offered")
    body = told(
        handoff_id=str(handoff), state=state, recorded_at=at, occurred_at=at, owner=BEN,
        due_at=DUE, offer=offer(handoff) if state == "offered" else None, **changes,
    )  # fmt: skip
    return message(body, type)


def accepted(handoff: uuid.UUID, by: str | None = "ben", after_s: float = 60) -> Message:
    """The handoff was accepted."""
    at = NOW + timedelta(seconds=after_s)
    return change(handoff, ACCEPTED, at, answered_by=by, answered_at=at, implied=by is None)


async def everything_stored(pool: asyncpg.Pool[Any]) -> str:
    """All rows of the notifier's tables, as text."""
    tables = await pool.fetch(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'notifier'"
    )
    rows = [
        row[0]
        for table in tables
        for row in await pool.fetch(f"SELECT t::text FROM notifier.{table['table_name']} t")
    ]
    return "\n".join(rows)


async def test_only_who_can_answer_gets_a_link_and_it_is_kept_nowhere(counter: Counter) -> None:
    handoff = uuid.uuid4()
    await counter.tell(offering(handoff, "ben", informs="kim"))
    await counter.settle()
    assert counter.letter_to("kim").answer is None
    answer = counter.letter_to("ben").answer
    assert answer is not None
    assert answer.reasons == ("No budget", "No time")
    assert answer.url == f"https://b.example/answer/{answer.token}"
    grant = LINKS.read(answer.token, DUE + timedelta(hours=23))  # well after the deadline
    assert grant is not None
    assert (grant.about, grant.person) == (handoff, "ben")
    assert LINKS.read(answer.token, DUE + timedelta(days=2)) is None
    kept = await everything_stored(counter.pool)
    assert str(handoff) in kept
    assert answer.token not in kept
    assert answer.token not in str(await counter.alerts())


async def test_the_link_is_for_whom_it_was_offered_to_and_nobody_else(counter: Counter) -> None:
    """Nobody eligible, an escalation, somebody who left: none of them can answer."""
    nobody = transition(None, "ae", offer=msgspec.json.decode(msgspec.json.encode(offer(new_id()))))
    await counter.tell(nobody, offering(uuid.uuid4(), "ben"), offering(uuid.uuid4(), "gone"))
    await counter.settle()
    counter.letters.clear()
    counter.clock.pass_(31 * 60)
    assert await counter.escalate() == 3
    await counter.settle()
    assert {(who, letter.answer) for who, letter in counter.letters} == {("kim", None)}
    [left] = [a for a in await counter.alerts() if a["addressee_id"] == "gone"]
    assert [(d["channel"], d["status"]) for d in left["deliveries"]] == [("inbox", "delivered")]


async def test_an_overdue_handoff_can_be_answered_from_its_alert(counter: Counter) -> None:
    handoff = uuid.uuid4()
    late = change(handoff, OVERDUE, DUE, alerts=[AlertWish("ae", BEN), AlertWish("marketing", KIM)])
    await counter.tell(late)
    clock = rang(step="escalate", handoff_id=str(handoff), owner=BEN, offer=offer(handoff),
                 alerts=[AlertWish("ae", BEN)], recorded_at=DUE)  # fmt: skip
    await counter.settle()
    assert counter.letter_to("ben").answer is not None
    assert counter.letter_to("kim").answer is None
    await counter.tell(message(clock, CLOCK_RANG))
    await counter.settle()
    letter = counter.letter_to("ben")
    assert letter.answer is not None
    assert letter.subject == "Overdue: No activity, Ada Lovelace (Acme)"
    assert len(letter.earlier) == 1  # in the thread of the journey
    kinds = {a["kind"] for a in await counter.alerts()}
    assert kinds == {"handoff", "clock"}


async def test_an_answer_settles_what_was_told_of_the_handoff(counter: Counter) -> None:
    handoff, other = uuid.uuid4(), uuid.uuid4()
    counter.wire.outcomes = [Outcome("failed", "busy")] * 4
    overdue = change(handoff, OVERDUE, NOW, alerts=[AlertWish("marketing", KIM)])
    await counter.tell(offering(handoff, "ben", "ivo"), overdue, offering(other, "ben"))
    await counter.settle()
    await counter.tell(accepted(handoff))
    counter.clock.pass_(3600)
    assert await counter.escalate() == 1  # the other handoff's
    counter.letters.clear()
    await counter.settle()
    alerts = await counter.alerts()
    settled = [a for a in alerts if a["handoff_id"] == str(handoff)]
    assert len(settled) == 3
    for alert in settled:
        assert (alert["status"], alert["acknowledged_by"], alert["acknowledged_why"]) == (
            "acknowledged", "ben", "accepted by ben",
        )  # fmt: skip
        assert not [d for d in alert["deliveries"] if d["status"] in ("pending", "claimed")]
    skipped = [d["reason"] for a in settled for d in a["deliveries"] if d["status"] == "skipped"]
    assert skipped == ["accepted by ben"] * 3  # their next attempts
    assert {letter.alert_id for _, letter in counter.letters} == {
        a["id"] for a in alerts if a["handoff_id"] == str(other)
    }
    why = await counter.pool.fetchval(
        "SELECT e.why FROM notifier.escalations e JOIN notifier.alerts a ON a.id = e.alert_id "
        "WHERE a.handoff_id = $1 AND a.person_id = 'ben'", handoff,
    )  # fmt: skip
    assert why == "accepted by ben"


@pytest.mark.parametrize(
    ("type", "more", "by", "why"),
    [
        (REJECTED, {"answered_by": "ben", "reason": "No budget"}, "ben", "rejected by ben: No budget"),
        (WITHDRAWN, {}, "baton", "withdrawn"),
        (WITHDRAWN, {"implied": True}, "baton", "withdrawn, by what was done"),
        (ACCEPTED, {"answered_by": "slack:U1"}, "slack:U1", "accepted by slack:U1"),
    ],
)  # fmt: skip
async def test_the_alert_says_how_it_was_answered(
    counter: Counter, type: str, more: dict[str, Any], by: str, why: str
) -> None:
    handoff = uuid.uuid4()
    await counter.tell(offering(handoff, "ben"))
    await counter.tell(change(handoff, type, NOW, **more))  # recorded in the same moment
    [alert] = await counter.alerts()
    assert (alert["status"], alert["acknowledged_by"], alert["acknowledged_why"]) == (
        "acknowledged", by, why,
    )  # fmt: skip
    await counter.settle()
    assert counter.letters == []


async def test_who_was_only_informed_is_informed_whatever_was_answered(counter: Counter) -> None:
    handoff = uuid.uuid4()
    await counter.tell(offering(handoff, "ben", informs="kim"), accepted(handoff))
    await counter.settle()
    assert [who for who, _ in counter.letters] == ["kim"]
    assert sorted(a["status"] for a in await counter.alerts()) == ["acknowledged", "delivered"]


async def test_what_went_on_by_itself_is_told_and_asks_for_nothing(counter: Counter) -> None:
    """A lead that moves on took the handoff up: its transition is told, what waits for an answer is over."""
    handoff = uuid.uuid4()
    overdue = change(handoff, OVERDUE, NOW, alerts=[AlertWish("marketing", KIM)])
    await counter.tell(offering(handoff, "ben"), overdue, accepted(handoff, by=None))
    await counter.settle()
    [letter] = [letter for who, letter in counter.letters if who == "ben"]
    assert letter.answer is None
    assert [who for who, _ in counter.letters] == ["ben"]
    handoffs, told = await counter.alerts()
    assert (handoffs["status"], handoffs["acknowledged_why"]) == (
        "acknowledged", "accepted, by what was done",
    )  # fmt: skip
    assert (told["status"], told["acknowledged_why"]) == ("delivered", None)
    counter.clock.pass_(3600)
    assert await counter.escalate() == 0


async def test_an_answer_that_is_read_before_the_offer_settles_it_too(counter: Counter) -> None:
    handoff = uuid.uuid4()
    await counter.tell(accepted(handoff))
    await counter.tell(offering(handoff, "ben"))
    await counter.settle()
    [alert] = await counter.alerts()
    assert (alert["status"], alert["acknowledged_why"]) == ("acknowledged", "accepted by ben")
    assert [d["reason"] for d in alert["deliveries"]] == ["accepted by ben"]
    assert counter.letters == []


async def test_a_handoff_that_is_open_again_is_told_again(counter: Counter) -> None:
    """A late event takes an answer back: what is told from then on can be answered."""
    handoff = uuid.uuid4()
    await counter.tell(offering(handoff, "ben"), accepted(handoff, after_s=60))
    again = change(handoff, OFFERED, NOW + timedelta(hours=1), alerts=[AlertWish("ae", BEN)])
    await counter.tell(again)
    await counter.tell(accepted(handoff, after_s=30))  # an old message, read again
    await counter.settle()
    [letter] = [letter for _, letter in counter.letters]
    assert letter.answer is not None
    assert [a["status"] for a in await counter.alerts()] == ["delivered", "acknowledged"]


async def test_an_attempt_under_way_ends_and_is_not_made_again(counter: Counter) -> None:
    handoff = uuid.uuid4()
    await counter.tell(offering(handoff, "ben"))
    counter.wire.gate.clear()
    counter.wire.outcomes = [Outcome("failed", "busy")]
    sending = asyncio.create_task(counter.dispatcher.run_due())
    while not await counter.pool.fetchval(
        "SELECT count(*) FROM notifier.deliveries WHERE status = 'claimed'"
    ):
        await asyncio.sleep(0)
    await counter.tell(accepted(handoff))
    counter.wire.gate.set()
    await sending
    counter.clock.pass_(86_400)
    await counter.settle()
    [alert] = await counter.alerts()
    assert alert["status"] == "acknowledged"
    assert [d["status"] for d in alert["deliveries"]] == ["failed"]


async def test_repeats_change_nothing(counter: Counter) -> None:
    handoff = uuid.uuid4()
    overdue = change(handoff, OVERDUE, NOW, alerts=[AlertWish("ae", BEN), AlertWish("ae", KIM)])
    for _ in range(3):
        await counter.tell(overdue, overdue)
    assert len(await counter.alerts()) == 2
    for _ in range(3):
        await counter.tell(accepted(handoff), overdue)
    alerts = await counter.alerts()
    assert [a["status"] for a in alerts] == ["acknowledged"] * 2
    counter.clock.pass_(60)
    await counter.tell(accepted(handoff, by="kim", after_s=90))
    assert await counter.alerts() == alerts  # the first acknowledgement stays


async def test_whichever_comes_first_on_two_replicas_no_alert_stays_open(counter: Counter) -> None:
    """The offer on one topic, its answer on another: read at once, in any order, in small batches."""
    rng = random.Random(12)
    handoffs = [uuid.uuid4() for _ in range(60)]
    offers = [offering(h, "ivo", "ben") for h in handoffs]
    answers = [accepted(h, by="ivo") for h in handoffs]
    rng.shuffle(answers)

    async def read(messages: list[Message]) -> None:
        for n in range(0, len(messages), 3):
            await counter.tell(*messages[n : n + 3])

    await asyncio.gather(read(offers), read(answers), read(offers[::-1]))
    alerts = await counter.alerts()
    assert len(alerts) == 120
    assert {a["status"] for a in alerts} == {"acknowledged"}
    await counter.settle()
    assert counter.letters == []


async def test_nothing_is_written_before_the_handoffs_are_locked(counter: Counter) -> None:
    """Not even an alert about none: who waits for one of both could hold the other, in a circle."""
    handoff, first = uuid.uuid4(), transition("ivo", "ae", transition_id=str(uuid.UUID(int=1)))
    await counter.tell(offering(handoff, "ben"))
    async with counter.pool.acquire() as answering, answering.transaction():
        await answering.execute("SELECT FROM notifier.handoffs WHERE id = $1 FOR UPDATE", handoff)
        waiting = asyncio.create_task(counter.tell(first, offering(handoff, "ben")))
        async with asyncio.timeout(30):
            while not await counter.pool.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND datname = current_database()"
            ):
                await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            await counter.tell(first)  # another replica read it too, and does not wait
    await waiting
    assert len(await counter.alerts()) == 3


async def test_a_transition_without_an_offer_is_told_as_before(counter: Counter) -> None:
    await counter.tell(transition("ben", "ae"))
    await counter.settle()
    assert counter.letter_to("ben").answer is None
    [alert] = await counter.alerts()
    assert (alert["kind"], alert["handoff_id"], alert["acknowledged_why"]) == (
        "transition", None, None,
    )  # fmt: skip


async def test_a_handoff_message_that_cannot_be_read_is_kept_and_the_next_is_told(
    counter: Counter,
) -> None:
    handoff = uuid.uuid4()
    good = change(handoff, OVERDUE, NOW, alerts=[AlertWish("ae", BEN)])
    bus = ListBus([message(b"", OVERDUE, "no-uuid"), good])
    await counter.consumer(bus).run_once()
    assert [d["message_id"] for d in await counter.dead_letters()] == ["no-uuid"]
    assert len(await counter.alerts()) == 1


def test_the_topics_of_the_messages_here() -> None:
    """Offers come on one topic and answers on another, as they are published."""
    assert offering(uuid.uuid4(), "ben").topic == TRANSITIONS_TOPIC
    assert offering(uuid.uuid4(), "ben").type == TRANSITIONED
    assert accepted(uuid.uuid4()).topic != TRANSITIONS_TOPIC
