"""(h) Healthy channels while another one hangs, answers 429 or is away, against the same run undisturbed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from bench.ground import Ground
from bench.measure import Figure, Options, Result, alternate, percentile
from services.contracts import postgres_log
from services.contracts.bus import Bus, open_bus
from services.contracts.events import TRANSITIONED, TRANSITIONS_TOPIC, Message, message_headers
from tests.integration.test_notifier_trouble import Mood, Receiver

KEY = "h"
TITLE = "Healthy channels beside one in trouble"
RATE = 40
"""Alerts a second to healthy channels, and as many to the one in trouble."""
HOOKED = 40
MAILED = 20
TROUBLED = 40
TIMEOUT_S = 3
WARM_S = 3.0
WAIT_S = 30.0
STAMP_S = 0.005
METHOD = (
    f"{RATE} alerts a second for {HOOKED} people with a webhook each and {MAILED} with e-mail (a real HTTP "
    f"receiver and a real SMTP server in the client's process), and at the same time {RATE} a second for "
    f"{TROUBLED} people with webhooks at another receiver; paced whatever the answers do (open loop). "
    "Timed: from just before the transition is published on the log in PostgreSQL until the receiver or mail "
    "server has the message. Notifier and PostgreSQL are processes of their own. Baseline: both receivers "
    "answer at once. "
    "Ours: the other receiver takes every request and never answers (each attempt may take "
    f"{TIMEOUT_S} s), answers 429 with Retry-After, or does not listen. Between rounds the other receiver is "
    "back, rests are cut short, and all that waited must arrive before the next round begins."
)
TROUBLES: dict[str, Mood | None] = {"hangs": "slow", "answers 429": "429", "is away": None}

_LEAD = re.compile(rb"/leads/([0-9a-f-]{36})")


class _Mail:
    """A mail server's handler that calls `came` with the lead of each mail."""

    def __init__(self, came: Callable[[str], None]) -> None:
        self._came = came

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        """Take the mail."""
        # Long lines may be folded (RFC 2045, 6.7).
        found = _LEAD.search(envelope.content.replace(b"=\r\n", b""))
        if found is not None:
            self._came(found[1].decode())
        return "250 taken"


class _Hooks(Receiver):
    """A receiver that calls `came` with the lead of each message it answers."""

    def __init__(self, came: Callable[[str], None]) -> None:
        super().__init__()
        self._came = came

    async def _react(self, headers: dict[str, str], body: bytes) -> tuple[str | None, str]:
        answer = await super()._react(headers, body)
        if answer[0] == "200 OK":
            self._came(msgspec.json.decode(body)["data"]["lead_id"])
        self.requests.clear()
        return answer


class _Town:
    """The people, their receivers, and when which alert was published and came."""

    def __init__(self, bus: Bus, pool: asyncpg.Pool[Any]) -> None:
        self._bus = bus
        self._pool = pool
        self._sent: dict[str, float] = {}
        self._healthy: dict[str, float] = {}
        self._troubled: set[str] = set()
        self.repeats = 0
        self.healthy = _Hooks(self._came)
        self.other = _Hooks(self._troubled.add)
        self.mail = _Mail(self._came)
        self.published = 0

    def _came(self, lead: str) -> None:
        if lead in self._healthy:
            self.repeats += 1
        self._healthy.setdefault(lead, time.perf_counter())

    async def measure(self, seconds: float) -> list[float]:
        """Publish for `seconds`; give the milliseconds until each alert of a healthy channel came."""
        healthy: list[str] = []
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(seconds * RATE)):
                delay = began + number / RATE - time.perf_counter()
                if delay > 0:
                    await asyncio.sleep(delay)
                place = number % (HOOKED + MAILED)
                who = f"h{place}" if place < HOOKED else f"m{place - HOOKED}"
                healthy.append(self._publish(group, who))
                self._publish(group, f"t{number % TROUBLED}")
        await _until(
            lambda: len(self._healthy.keys() & set(healthy)),
            len(healthy),
            "alerts of healthy channels",
        )
        return [(self._healthy[lead] - self._sent[lead]) * 1000 for lead in healthy]

    def _publish(self, group: asyncio.TaskGroup, person: str) -> str:
        lead = str(uuid.uuid4())
        now = datetime.now(UTC)
        value = msgspec.json.encode({
            "transition_id": str(uuid.uuid4()), "from": "mql", "to": "sql", "recorded_at": now,
            "lead": {"id": lead, "name": "Ada Albers", "email": f"{lead[:8]}@bench.example"},
            "alerts": [{"role": "ae", "person": {"id": person, "name": person}}],
        })  # fmt: skip
        headers = message_headers(str(uuid.uuid4()), TRANSITIONED, now)
        self._sent[lead] = time.perf_counter()
        group.create_task(self._bus.publish([Message(TRANSITIONS_TOPIC, lead, headers, value)]))
        self.published += 1
        return lead

    async def trouble(self, mood: Mood | None) -> None:
        """Begin the trouble at the other receiver; None: it does not listen."""
        if mood is None:
            await self.other.go()
        else:
            self.other.mood = mood

    async def recover(self, mood: Mood | None) -> None:
        """End the trouble, and wait until all that waited has arrived."""
        if mood is None:
            await self.other.come()
        else:
            self.other.mood = "ok"
            released, self.other.released = self.other.released, asyncio.Event()
            released.set()
        await asyncio.sleep(TIMEOUT_S)  # what is under way ends
        failed = await self._pool.fetchval(
            "SELECT count(*) FROM notifier.deliveries WHERE status = 'failed'"
        )
        if not failed:
            raise RuntimeError("nothing failed: the round was not disturbed")
        async with asyncio.timeout(WAIT_S * 4):
            while await self._pool.fetchval(
                "SELECT EXISTS (SELECT FROM notifier.deliveries WHERE status IN ('pending', 'claimed'))"
            ):
                await self._pool.execute("UPDATE notifier.channels SET rests_until = now()")
                await self._pool.execute(
                    "UPDATE notifier.deliveries SET due_at = now()"
                    " WHERE status = 'pending' AND due_at > now()"
                )
                await asyncio.sleep(0.2)
        undelivered = await self._pool.fetchval(
            "SELECT count(*) FROM notifier.alerts WHERE status <> 'delivered'"
        )
        if undelivered:
            raise RuntimeError(f"{undelivered} alerts were not delivered once the channel was back")
        # The next round begins as the first did.
        await self._pool.execute(
            "TRUNCATE notifier.deliveries; TRUNCATE notifier.alerts; TRUNCATE notifier.channels"
        )


async def _until(come: Callable[[], int], wanted: int, what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while (here := come()) < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{here} of {wanted} {what} came within {WAIT_S} s")
        await asyncio.sleep(0.02)


def _roster(directory: Path, healthy: int, other: int) -> Path:
    wishes = "alerts: {group_over: 10000, per_hour_max: 10000}"
    hooks = [(f"h{n}", healthy) for n in range(HOOKED)] + [
        (f"t{n}", other) for n in range(TROUBLED)
    ]
    lines = [
        f"  - {{id: {id}, name: {id}, roles: [ae], channels: ['webhook+http://127.0.0.1:{port}/{id}'],"
        f" {wishes}}}"
        for id, port in hooks
    ] + [
        f"  - {{id: m{n}, name: m{n}, roles: [ae], email: m{n}@bench.example, channels: [email], {wishes}}}"
        for n in range(MAILED)
    ]
    file = directory / "team.yaml"
    file.write_text("people:\n" + "\n".join(lines) + "\n")
    return file


@contextlib.asynccontextmanager
async def _stamped(database: str) -> AsyncIterator[None]:
    """Give what is published its place in the log, as the relay does."""
    connection = await asyncpg.connect(database)

    async def run() -> None:
        while True:
            await postgres_log.stamp(connection)
            await asyncio.sleep(STAMP_S)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()


def _compared(
    town: _Town, mood: Mood | None, seconds: float
) -> tuple[Callable[[int], Awaitable[float]], Callable[[int], Awaitable[float]]]:
    """Give the undisturbed and the disturbed round of one trouble: each gives a p99 in ms."""

    async def undisturbed(number: int) -> float:
        return percentile(await town.measure(seconds if number else WARM_S), 0.99)

    async def disturbed(number: int) -> float:
        await town.trouble(mood)
        try:
            taken = await town.measure(seconds if number else WARM_S)
        finally:
            await town.recover(mood)
        return percentile(taken, 0.99)

    return undisturbed, disturbed


async def run(options: Options) -> Result:
    """Measure it."""
    from aiosmtpd.smtp import SMTP

    result = Result(KEY, TITLE, METHOD)
    seconds = options.seconds(12, 6)
    async with Ground() as ground:
        database, _ = await ground.database("bench")
        bus = await open_bus(database, None)
        async with (
            asyncpg.create_pool(database, min_size=1, max_size=2) as pool,
            _stamped(database),
        ):
            town = _Town(bus, pool)
            await town.healthy.come()
            await town.other.come()
            mails = await asyncio.get_running_loop().create_server(
                lambda: SMTP(town.mail, hostname="bench.example"), "127.0.0.1", 0
            )
            team = _roster(ground.directory, town.healthy.port, town.other.port)
            port = mails.sockets[0].getsockname()[1]
            await ground.service(
                "notifier", database, BATON_TEAM_FILE=str(team),
                BATON_SMTP_URL=f"smtp://127.0.0.1:{port}?from=b@bench.example&tls=no",
                BATON_DELIVERY_TIMEOUT_S=str(TIMEOUT_S), BATON_DELIVERY_TRIES="20",
            )  # fmt: skip
            for name, mood in TROUBLES.items():
                options.say(f"  the other channel {name}")
                plain, troubled = _compared(town, mood, seconds)
                rounds = await alternate(options.times(3), plain, troubled, options.say)
                result.figures.append(Figure(
                    f"p99 while another {name}", "ms", "undisturbed", rounds, target=1.5, at_most=True,
                ))  # fmt: skip
            result.notes += ground.complaints("notifier")
            await asyncio.to_thread(ground.stop_services)
            mails.close()
            await town.healthy.go()
            await town.other.go()
        await bus.close()
    if town.repeats:
        raise RuntimeError(f"{town.repeats} alerts came twice by a healthy channel")
    result.notes.append(
        f"{town.published:,} alerts published; those of healthy channels came once each, and those of the "
        "other arrived once it was back."
    )
    return result
