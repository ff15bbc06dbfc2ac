"""Held, gathered, grouped, limited, muted, snoozed, escalated: on a real PostgreSQL, with told time."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.contracts.audit import Actor
from services.contracts.bus import Bus
from services.contracts.events import Message
from services.notifier import attention, reads, store
from services.notifier.consumer import Consumer
from services.notifier.escalations import Escalator, waits_of
from services.notifier.letters import Letter, Outcome
from services.notifier.pruning import Pruner
from services.notifier.roster import Roster
from tests.integration.test_notifier_store import PATIENCE, Desk, ListBus, new_id, transition

TEAM = """
people:
  - id: ben
    name: Ben Ott
    roles: [ae]
    email: ben@baton.example
    time_zone: Europe/Berlin
    channels: [inbox, email]
    quiet: ["22:00-07:00"]
  - {id: dan, name: Dan Digest, roles: [ae], email: d@baton.example, channels: [inbox, email],
     alerts: {deliver: hourly}}
  - {id: lim, name: Lim Ited, roles: [ae], email: l@baton.example, channels: [email],
     alerts: {per_hour_max: 2, group_over: 100}}
  - {id: kim, name: Kim Lead, roles: [marketing], leads: [ae], email: k@baton.example, channels: [email]}
  - {id: sofia, name: Sofia Top, roles: [sales_leadership], channels: [inbox]}
  - {id: sven, name: Sven Top, roles: [sales_leadership], channels: [inbox]}
"""


class Post(Desk):
    """A notifier whose letters can be read, and its escalator."""

    def __init__(self, pool: asyncpg.Pool[Any], roster: Roster) -> None:
        super().__init__(pool, roster)
        self.letters: list[tuple[str, Letter]] = []
        wire = self.wire
        plain = wire.send

        async def send(channel: str, person: Any, letter: Letter) -> Outcome:
            self.letters.append((person.id, letter))
            return await plain(channel, person, letter)

        wire.send = send  # type: ignore[method-assign]  # the wire is the test's own

    def new_escalator(self) -> Escalator:
        """Another replica of the escalator."""
        return Escalator(
            self.pool, self.roster, PATIENCE.tries, self.clock.now, new_id, self.dispatcher.wake
        )

    def consumer(self, bus: Bus) -> Consumer:
        """A consumer of `bus` whose alerts for account executives escalate after half an hour."""

        async def opened() -> Bus:
            return bus

        return Consumer(
            opened, self.pool, self.roster, "http://baton.example", PATIENCE.tries, self.clock.now,
            new_id, self.dispatcher.wake, escalate_after=waits_of("ae=30m"),
        )  # fmt: skip

    async def tell(self, *messages: Message) -> None:
        """Have the transitions recorded."""
        await self.consumer(ListBus(messages)).run_once()

    async def settle(self) -> None:
        """Send what is due until nothing is."""
        while await self.dispatcher.run_due():
            pass

    async def escalate(self) -> int:
        """Fire what is due, by three replicas at once."""
        return sum(await asyncio.gather(*(self.new_escalator().run_due() for _ in range(3))))

    def emails(self, alert: dict[str, Any]) -> list[dict[str, Any]]:
        """The deliveries of an alert by e-mail."""
        return [d for d in alert["deliveries"] if d["channel"] == "email"]


@pytest.fixture
async def post(database_url: str, tmp_path: Path) -> AsyncIterator[Post]:
    """A notifier on an empty database."""
    file = tmp_path / "team.yaml"
    file.write_text(TEAM)
    async with asyncpg.create_pool(database_url, min_size=0, max_size=8) as pool:
        post = Post(pool, Roster(file))
        yield post
        post.wire.close()


def ae(person: str, **changes: Any) -> Message:
    """A transition that wishes an account executive told."""
    return transition(person, "ae", **changes)


def of(lead: str, company: str | None = None) -> dict[str, Any]:
    """A lead."""
    return {"id": lead, "name": "Ada", "email": "ada@acme.example", "company": company}


async def test_at_night_it_is_recorded_at_once_and_sent_in_the_morning(post: Post) -> None:
    post.clock.moment = datetime(2026, 3, 4, 22, 30, tzinfo=UTC)  # 23:30 in Berlin
    await post.tell(ae("ben"), ae("ben", alerts=[
        {"role": "ae", "person": {"id": "ben", "name": "Ben Ott"}, "urgent": True}]))  # fmt: skip
    await post.settle()
    urgent, quiet = await post.alerts()
    assert (urgent["urgent"], urgent["status"]) == (True, "delivered")
    assert quiet["status"] == "pending"
    [email] = post.emails(quiet)
    assert email["due_at"] == "2026-03-05T06:00:00Z"
    assert email["why"] == "held until 07:00 on 2026-03-05 Europe/Berlin: quiet hours"
    assert {d["channel"]: d["status"] for d in quiet["deliveries"]}["inbox"] == "delivered"
    post.clock.moment = datetime(2026, 3, 5, 6, tzinfo=UTC)
    await post.settle()
    assert [letter.alert_id for _, letter in post.letters] == [urgent["id"], quiet["id"]]
    quiet = (await post.alerts())[1]
    assert quiet["status"] == "delivered"
    assert post.emails(quiet)[0]["why"] == email["why"]


async def test_a_digest_lists_all_and_each_alert_says_so(post: Post) -> None:
    await post.tell(*(ae("dan") for _ in range(5)))
    await post.settle()
    assert post.letters == []
    post.clock.pass_(3600)
    await post.settle()
    [(_, letter)] = post.letters
    alerts = await post.alerts()
    assert letter.is_digest
    assert sorted(letter.alert_ids) == sorted(a["id"] for a in alerts)
    assert all(f"/leads/{a['lead_id']}" in letter.body for a in alerts)
    assert {a["status"] for a in alerts} == {"delivered"}
    for alert in alerts:
        [email] = post.emails(alert)
        assert email["digest_id"] == letter.alert_id
        assert email["why"] == "merged with 4 others: hourly digest at 11:00 UTC"
    digest = await reads.get_digest(post.pool, uuid.UUID(letter.alert_id))
    assert digest is not None
    assert len(digest["alerts"]) == 5


async def test_a_digest_that_failed_comes_again_as_it_was(post: Post) -> None:
    await post.tell(*(ae("dan") for _ in range(3)))
    post.clock.pass_(3600)
    post.wire.outcomes = [Outcome("failed", "busy", ambiguous=True)]
    await post.settle()
    await post.tell(ae("dan"))
    post.clock.pass_(120)
    await post.settle()
    first, again = (letter for _, letter in post.letters)
    assert (again.alert_id, again.body) == (first.alert_id, first.body)
    assert again.is_repeat
    [attempt, *_] = post.emails((await post.alerts())[-1])
    assert (attempt["status"], attempt["ambiguous"]) == ("failed", True)


async def test_r15_a_storm_for_one_person_is_a_few_messages_and_loses_nothing(post: Post) -> None:
    """10,000 transitions of one owner within a minute: at most five messages."""
    for _ in range(20):
        await post.tell(*(ae("ben") for _ in range(500)))
        await post.settle()
        post.clock.pass_(3)
    post.clock.pass_(60)
    await post.settle()
    assert len(post.letters) <= 5
    listed = [id for _, letter in post.letters for id in letter.alert_ids]
    assert len(listed) == len(set(listed)) == 10_000
    whys = await post.pool.fetch(
        "SELECT why, count(*) FROM notifier.deliveries WHERE channel = 'email' GROUP BY why"
    )
    assert all(r["why"] or r["count"] <= 3 for r in whys)
    assert await post.pool.fetchval(
        "SELECT count(*) FROM notifier.alerts WHERE status <> 'delivered'"
    ) == 0  # fmt: skip


async def test_leads_of_one_company_come_together(post: Post) -> None:
    for _ in range(3):
        await post.tell(ae("ben", lead=of(str(uuid.uuid4()), "Acme")))
        await post.settle()
    assert len(post.letters) == 1
    post.clock.pass_(60)
    await post.settle()
    _, letter = post.letters[1]
    assert letter.subject == "2 alerts about 2 leads of Acme"


async def test_over_the_limit_of_an_hour_they_are_merged_into_the_next(post: Post) -> None:
    for _ in range(6):
        await post.tell(ae("lim"))
        await post.settle()
        post.clock.pass_(61)
    assert len(post.letters) == 2
    waiting = [post.emails(a)[0] for a in await post.alerts() if a["status"] == "pending"]
    assert len(waiting) == 4
    assert all("2 messages an hour are reached" in d["why"] for d in waiting)
    post.clock.pass_(3600)
    await post.settle()
    assert len(post.letters) == 3
    assert len(post.letters[2][1].alert_ids) == 4


async def test_a_muted_lead_is_recorded_and_suppressed_with_the_reason(post: Post) -> None:
    lead = str(uuid.uuid4())
    now = post.clock.now()
    until = now + timedelta(hours=1)
    await attention.mute(post.pool, "lim", uuid.UUID(lead), until, Actor("lim"), now)
    await post.tell(ae("lim", lead=of(lead)), ae("ben", lead=of(lead)))
    await post.settle()
    ben, lim = await post.alerts()
    assert (ben["status"], lim["status"]) == ("delivered", "suppressed")
    assert post.emails(lim)[0]["reason"] == "muted"
    assert await post.dead_letters() == []
    assert await store.retry(post.pool, uuid.UUID(lim["id"]), now, 3, Actor("ana")) == []
    post.clock.pass_(3601)  # the mute has ended by itself
    assert await attention.list_mutes(post.pool, None, post.clock.now(), 10) == []
    await post.tell(ae("lim", lead=of(lead)))
    await post.settle()
    assert (await post.alerts())[0]["status"] == "delivered"


async def test_a_snoozed_alert_comes_again_and_its_escalation_later(post: Post) -> None:
    await post.tell(ae("ben"))
    await post.settle()
    [alert] = await post.alerts()
    id, now = uuid.UUID(alert["id"]), post.clock.now()
    until = now + timedelta(hours=2)
    assert await attention.snooze(post.pool, id, until, Actor("ben"), now, PATIENCE.tries)
    post.clock.pass_(3600)
    await post.settle()
    assert await post.escalate() == 0
    assert len(post.letters) == 1
    [alert] = await post.alerts()
    assert (alert["status"], alert["snoozed_until"]) == ("pending", "2025-03-01T12:00:00Z")
    assert post.emails(alert)[-1]["why"] == "snoozed until 2025-03-01T12:00:00Z by ben"
    post.clock.pass_(3600)
    await post.settle()
    assert len(post.letters) == 2
    post.clock.pass_(1799)
    assert await post.escalate() == 0
    post.clock.pass_(1)
    assert await post.escalate() == 1
    await store.acknowledge(post.pool, id, Actor("ben"), post.clock.now())
    assert not await attention.snooze(post.pool, id, until, Actor("ben"), now, PATIENCE.tries)


async def test_what_failed_on_its_second_coming_can_be_retried_and_snoozed(post: Post) -> None:
    """Delivered, snoozed, dead at its second coming, snoozed again: a retry then begins after all of them."""
    await post.tell(ae("ben"))
    await post.settle()
    id = uuid.UUID((await post.alerts())[0]["id"])
    for _ in range(2):
        now = post.clock.now()
        until = now + timedelta(hours=1)
        assert await attention.snooze(post.pool, id, until, Actor("ben"), now, PATIENCE.tries)
        post.wire.outcomes = [Outcome("failed", "no", permanent=True)]
        if await post.pool.fetchval("SELECT max(attempt) FROM notifier.deliveries") == 2:
            post.clock.pass_(3600)
            await post.settle()
    assert await store.retry(post.pool, id, post.clock.now(), PATIENCE.tries, Actor("ana")) == []
    post.clock.pass_(3600)
    await post.settle()
    assert await store.retry(post.pool, id, post.clock.now(), PATIENCE.tries, Actor("ana")) == [
        "email"
    ]
    post.wire.outcomes = []
    await post.settle()
    [alert] = await post.alerts()
    assert alert["status"] == "delivered"
    assert [d["attempt"] for d in post.emails(alert)] == [1, 2, 3, 4]


async def test_a_retry_has_the_text_of_its_channel(post: Post) -> None:
    await post.tell(ae("ben"))
    await post.pool.execute(
        "UPDATE notifier.deliveries SET body = 'by mail' WHERE channel = 'email'"
    )
    post.wire.outcomes = [Outcome("failed", "no", permanent=True)]
    await post.settle()
    id = uuid.UUID((await post.alerts())[0]["id"])
    assert await store.retry(post.pool, id, post.clock.now(), PATIENCE.tries, Actor("ana")) == [
        "email"
    ]
    await post.settle()
    assert [letter.body for _, letter in post.letters] == ["by mail", "by mail"]


async def test_nobody_answers_it_climbs_each_step_once(post: Post) -> None:
    await post.tell(ae("ben"))
    await post.settle()
    fired: list[int] = []
    for _ in range(6):
        post.clock.pass_(1799)
        fired.append(await post.escalate())
        post.clock.pass_(1)
        fired.append(await post.escalate())
        await post.settle()
    # Kim who leads, Sofia and Sven at the top, then the end.
    assert fired == [0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0]
    *climbed, first = await post.alerts()
    assert [a["addressee_id"] for a in reversed(climbed)] == ["kim", "sofia", "sven"]
    assert {a["escalated_from"] for a in climbed} == {first["id"]}
    assert {a["kind"] for a in climbed} == {"escalation"}
    assert climbed[-1]["why"] == "not acknowledged by Ben within 30 min: to the lead of ae"
    assert climbed[-1]["subject"] == f"Escalated: {first['subject']}"
    ended = await post.pool.fetchrow("SELECT why, told FROM notifier.escalations")
    assert (ended["why"], ended["told"]) == ("the ladder is at its end", ["kim", "sofia", "sven"])


async def test_whoever_acknowledges_an_escalation_ends_it(post: Post) -> None:
    await post.tell(ae("ben"))
    post.clock.pass_(1800)
    assert await post.escalate() == 1
    kim, _ = await post.alerts()
    await store.acknowledge(post.pool, uuid.UUID(kim["id"]), Actor("kim"), post.clock.now())
    post.clock.pass_(7200)
    assert await post.escalate() == 0
    assert await post.pool.fetchval("SELECT why FROM notifier.escalations") == (
        "acknowledged by kim"
    )


async def test_held_for_the_night_its_time_begins_in_the_morning(post: Post) -> None:
    """Nobody is escalated for sleeping."""
    post.clock.moment = datetime(2026, 3, 4, 22, 30, tzinfo=UTC)
    await post.tell(ae("ben"))
    post.clock.moment = datetime(2026, 3, 5, 6, 29, 59, tzinfo=UTC)
    assert await post.escalate() == 0
    post.clock.moment = datetime(2026, 3, 5, 6, 30, tzinfo=UTC)
    assert await post.escalate() == 1


async def test_due_while_nobody_ran_it_fires_at_the_start_and_says_late(post: Post) -> None:
    await post.tell(ae("ben"))
    post.clock.pass_(86_400)
    assert await post.escalate() == 1
    assert "within 30 min, late: to the lead" in (await post.alerts())[0]["why"]


async def test_later_alerts_of_a_journey_name_the_earlier(post: Post) -> None:
    lead = str(uuid.uuid4())
    journey = {"id": str(uuid.uuid4())}
    for _ in range(3):
        await post.tell(ae("ben", lead=of(lead), journey=journey))
        await post.settle()
        post.clock.pass_(120)
    await post.tell(ae("ben"))
    await post.settle()
    first, second, third, other = (letter for _, letter in post.letters)
    assert first.earlier == other.earlier == ()
    assert second.earlier == (first.alert_id,)
    assert third.earlier == (first.alert_id, second.alert_id)


async def test_a_failed_message_holds_back_the_ones_behind_it(post: Post) -> None:
    """In order per person, whatever fails; another person is not held up."""
    post.wire.outcomes = [Outcome("failed", "busy")]
    await post.tell(ae("ben"))
    await post.settle()
    await post.tell(ae("ben"), ae("kim"))
    await post.settle()
    assert [person for person, _ in post.letters] == ["ben", "kim"]
    post.clock.pass_(60)
    await post.settle()
    bens = [letter.alert_id for person, letter in post.letters if person == "ben"]
    assert bens == [bens[0], bens[0], bens[2]]
    assert bens[2] > bens[0]


async def test_what_is_past_its_time_is_forgotten_and_what_is_to_be_sent_is_not(post: Post) -> None:
    """Marks of links as long as the links are valid, texts of merged messages as long as is set."""
    post.clock.moment = datetime(2026, 3, 4, 10, 5, tzinfo=UTC)
    pruner = Pruner(post.pool, 7 * 86_400, 90 * 86_400, post.clock.now)
    await post.pool.executemany(
        "INSERT INTO notifier.used_links (id, used_at) VALUES ($1, $2)",
        [(f"link-{n}", post.clock.now() - timedelta(days=8)) for n in range(1500)]
        + [("fresh", post.clock.now() - timedelta(days=6))],
    )
    await post.tell(ae("dan"), ae("dan"))
    post.clock.moment = datetime(2026, 3, 4, 11, 0, 1, tzinfo=UTC)
    await post.settle()  # one message of two alerts
    post.wire.outcomes = [Outcome("failed", "busy")]
    await post.tell(ae("dan"), ae("dan"))
    post.clock.moment = datetime(2026, 3, 4, 12, 0, 1, tzinfo=UTC)
    assert await post.dispatcher.run_due() == 1  # the second is to be tried again
    assert await pruner.prune() == 1500
    assert await pruner.prune() == 0
    post.clock.pass_(91 * 86_400)
    assert sorted([await pruner.prune(), await pruner.prune()]) == [0, 2]  # the link and a digest
    assert await post.pool.fetchval("SELECT count(*) FROM notifier.used_links") == 0
    [waiting] = await post.pool.fetch("SELECT id FROM notifier.digests")
    pending = await post.pool.fetchval(
        "SELECT count(*) FROM notifier.deliveries WHERE digest_id = $1 AND status = 'pending'",
        waiting["id"],
    )
    assert pending == 2
