"""Channels in trouble, against real servers: nothing lost, in order, twice only where it is marked so."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import asyncpg
import msgspec
import pytest
import standardwebhooks

from services.contracts.team import Person
from services.notifier import breakers
from services.notifier.channels import Channels
from services.notifier.deliveries import Dispatcher, Patience
from services.notifier.letters import Letter
from services.notifier.redaction import label
from services.notifier.roster import Roster
from tests.integration.test_notifier_store import Desk, ListBus, new_id, transition

Mood = Literal["ok", "slow", "429", "500", "hangs up", "garbage"]


class Receiver:
    """A real HTTP server that stands for a service, in a mood; keeps what it was sent."""

    def __init__(self) -> None:
        self.mood: Mood = "ok"
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer: dict[str, Any] = {"ok": True, "ts": "1700000000.000100"}
        self.released = asyncio.Event()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def come(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def go(self) -> None:
        """Be away."""
        assert self._server is not None
        self._server.close()
        self.released.set()
        for writer in list(self._open):
            writer.close()
        await self._server.wait_closed()
        self.released = asyncio.Event()

    @property
    def ids(self) -> list[str]:
        """The webhook ids that came, in order."""
        return [headers["webhook-id"] for headers, _ in self.requests]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {
                    k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)
                }
                body = await reader.readexactly(int(headers["content-length"]))
                status, more = await self._react(headers, body)
                if status is None:
                    return
                text = msgspec.json.encode(self.answer)
                writer.write(
                    f"HTTP/1.1 {status}\r\ncontent-length: {len(text)}\r\n{more}\r\n".encode()
                    + text
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._open.discard(writer)
            writer.close()

    async def _react(self, headers: dict[str, str], body: bytes) -> tuple[str | None, str]:
        mood = self.mood
        if mood == "429":
            return "429 Too Many", "retry-after: 20\r\n"
        if mood == "500":
            return "500 Oh", ""
        self.requests.append((headers, body))
        if mood == "slow":
            await self.released.wait()
            return None, ""
        return (None, "") if mood == "hangs up" else ("200 OK", "")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver()
    await receiver.come()
    yield receiver
    with contextlib.suppress(OSError):
        await receiver.go()


class Line(Desk):
    """A notifier with real channels and told time."""

    def __init__(self, pool: asyncpg.Pool[Any], roster: Roster, timeout_s: float) -> None:
        super().__init__(pool, roster)
        self.channels = Channels(None, timeout_s, 8, {}, now=self.clock.now)
        self.dispatcher = self.new_line()
        self.timeout_s = timeout_s

    def new_line(self) -> Dispatcher:
        """A dispatcher with the real channels."""
        channels = getattr(self, "channels", self.wire)
        patience = Patience(tries=5, window_s=3600, timeout_s=0.3)
        return Dispatcher(
            self.pool, channels, self.roster, patience, self.clock.now, lambda: 0.5, new_id,
            "http://baton.example",
        )  # fmt: skip

    async def tell(self, *people: str) -> None:
        """Have one alert each recorded."""
        await self.consumer(ListBus([transition(p, "ae") for p in people])).run_once()


@contextlib.asynccontextmanager
async def lined(database_url: str, directory: Path, **hooks: int) -> AsyncIterator[Line]:
    """A notifier whose people have webhooks on ports."""
    file = directory / "team.yaml"
    people = "\n".join(
        f"  - {{id: {p}, name: {p}, roles: [ae], channels: ['webhook+http://127.0.0.1:{port}/{p}'],"
        " alerts: {group_over: 1000, per_hour_max: 1000}}"
        for p, port in hooks.items()
    )
    file.write_text("people:\n" + people)
    async with asyncpg.create_pool(database_url, min_size=0, max_size=8) as pool:
        line = Line(pool, Roster(file), 0.3)
        yield line
        line.wire.close()
        await line.channels.aclose()


async def pass_time(line: Line, seconds: int, step: int) -> None:
    """Let time pass, with what is due sent all along."""
    for _ in range(0, seconds, step):
        while await line.dispatcher.run_due():
            pass
        line.clock.pass_(step)


async def test_in_any_trouble_everything_arrives_in_order_and_others_feel_nothing(
    database_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    """Slow, 429, 500, hanging up, an hour away: then all is delivered, in order."""
    healthy = Receiver()
    await healthy.come()
    async with lined(database_url, tmp_path, bea=receiver.port, cal=healthy.port) as line:
        told = 0
        moods: list[Mood] = ["slow", "429", "500", "hangs up"]
        for mood in moods:
            receiver.mood = mood
            await line.tell("bea", "cal", "bea")
            told += 1
            await line.dispatcher.run_due()
            assert len(healthy.ids) == told  # at once, whatever the other channel does
            await pass_time(line, 60, 20)
        await receiver.go()
        await line.tell("bea", "cal", "bea")
        await pass_time(line, 3600, 60)
        assert len(healthy.ids) == told + 1
        states = await breakers.states(line.pool)
        assert [s["label"].partition(":")[0] for s in states] == ["webhook+http"]
        receiver.mood = "ok"
        await receiver.come()
        await pass_time(line, 600, 20)
        alerts = await line.alerts()
        assert {a["status"] for a in alerts} == {"delivered"}
        mine = [a for a in alerts if a["addressee_id"] == "bea"]
        assert set(receiver.ids) == {a["id"] for a in mine}
        assert receiver.ids == sorted(receiver.ids)  # ids sort by time
        unsure = {a["id"] for a in mine if any(d["ambiguous"] for d in a["deliveries"])}
        twice = {id for id in receiver.ids if receiver.ids.count(id) > 1}
        assert twice <= unsure
        repeats = [msgspec.json.decode(body)["data"]["repeat"] for _, body in receiver.requests]
        assert all(repeats[n] for n, id in enumerate(receiver.ids) if id in receiver.ids[:n])
        assert all(len(a["deliveries"]) == 1 for a in alerts if a["addressee_id"] == "cal")
        assert await breakers.states(line.pool) == []
    await healthy.go()


async def test_a_slow_channel_delays_nobody_elses_alert(
    database_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    """While one channel hangs with all its places taken, the others' alerts go out at once."""
    healthy = Receiver()
    await healthy.come()
    slow = {f"s{n}": receiver.port for n in range(30)}
    async with lined(database_url, tmp_path, **slow, cal=healthy.port) as line:
        receiver.mood = "slow"
        await line.tell(*slow)
        hanging = asyncio.create_task(line.dispatcher.run_due())
        while not receiver.requests:
            await asyncio.sleep(0)
        other = line.new_line()
        began = time.monotonic()
        await line.tell("cal")
        while not healthy.ids:
            await other.run_due() if healthy.ids else await asyncio.gather(other._claim())
            await asyncio.sleep(0)
        assert time.monotonic() - began < 0.25
        receiver.released.set()
        await hanging
        await other.stop()
    await healthy.go()


async def test_a_service_that_hangs_leaves_places_for_the_others(
    database_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    """Two hundred people have a hook of their own at a service that hangs; another kind is not held up."""
    healthy = Receiver()
    await healthy.come()
    slow = {f"s{n}": receiver.port for n in range(200)}
    async with lined(database_url, tmp_path, **slow) as line:
        file = tmp_path / "team.yaml"
        cal = f"  - {{id: cal, name: Cal, roles: [ae], channels: ['slack+http://127.0.0.1:{healthy.port}/']}}"
        file.write_text(file.read_text() + "\n" + cal)
        line.channels._timeout_s = 10
        receiver.mood = "slow"
        await line.tell(*slow)
        hanging = asyncio.create_task(line.dispatcher.run_due())
        while not receiver.requests:
            await asyncio.sleep(0)
        await line.tell("cal")
        assert await line.dispatcher._claim() == 1
        while not healthy.requests:
            await asyncio.sleep(0)
        receiver.released.set()
        await hanging
        await line.dispatcher.stop()
    await healthy.go()


async def test_429_is_heeded_and_uses_up_no_tries(
    database_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    async with lined(database_url, tmp_path, bea=receiver.port) as line:
        receiver.mood = "429"
        await line.tell("bea")
        for _ in range(10):
            assert await line.dispatcher.run_due() == 1
            assert await line.dispatcher.run_due() == 0
            line.clock.pass_(19)
            assert await line.dispatcher.run_due() == 0
            line.clock.pass_(1)
        receiver.mood = "ok"
        assert await line.dispatcher.run_due() == 1
        assert (await line.alerts())[0]["status"] == "delivered"


async def test_after_keep_s_what_waits_for_a_dead_channel_is_a_dead_letter(
    database_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    async with lined(database_url, tmp_path, bea=receiver.port) as line:
        await receiver.go()
        await line.tell("bea")
        await pass_time(line, 4 * 86_400, 1800)
        [letter] = await line.dead_letters()
        assert "not reached" in letter["reason"]


async def sent_by(url: str, letter: Letter, **more: Any) -> Any:
    """Send one letter by a channel of that URL; gives the outcome."""
    channels = Channels(None, 2, 2, more.pop("environment", {}), **more)
    outcome = await channels.send(label(url), Person("ana", "Ana", channels=(url,)), letter)
    await channels.aclose()
    return outcome


LETTER = Letter(
    str(uuid.UUID(int=7)), "Yours now: <Zoë> & co", "Line *one*\nLine two\n",
    "https://baton.example/leads/1", alert_ids=(str(uuid.UUID(int=7)),),
)  # fmt: skip


async def test_a_webhook_is_signed_as_the_standard_says(receiver: Receiver) -> None:
    secret = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    url = f"webhook+http://127.0.0.1:{receiver.port}/in#${{HOOK}}"
    outcome = await sent_by(url, LETTER, environment={"HOOK": secret})
    assert outcome.result == "delivered"
    [(headers, body)] = receiver.requests
    verified = standardwebhooks.Webhook(secret).verify(body, headers)
    assert verified["data"]["subject"] == LETTER.subject
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body + b" ", headers)


async def test_a_bad_secret_says_so_and_nothing_is_sent(receiver: Receiver) -> None:
    outcome = await sent_by(f"webhook+http://127.0.0.1:{receiver.port}/in#whsec_!", LETTER)
    assert (outcome.result, outcome.permanent) == ("failed", True)
    assert receiver.requests == []


async def test_slack_by_a_bot_answers_in_the_thread(receiver: Receiver) -> None:
    url = f"slack+bot://xoxb-1@C012AB?api=http://127.0.0.1:{receiver.port}/api"
    first = await sent_by(url, LETTER, buttons=True)
    assert (first.result, first.ref) == ("delivered", "1700000000.000100")
    await sent_by(url, msgspec.structs.replace(LETTER, thread=first.ref))
    (headers, plain), (_, threaded) = receiver.requests
    assert headers["authorization"] == "Bearer xoxb-1"
    message = msgspec.json.decode(plain)
    assert message["channel"] == "C012AB"
    actions = message["blocks"][-1]["elements"]
    assert [a["action_id"] for a in actions] == ["baton_seen", "baton_open", "baton_snooze"]
    texts = [b["text"] for b in message["blocks"] if "text" in b]
    assert {t["type"] for t in texts} == {"plain_text"}  # Slack reads no mark-up in it
    assert msgspec.json.decode(threaded)["thread_ts"] == first.ref


@pytest.mark.parametrize(
    ("error", "permanent", "down"),
    [("channel_not_found", True, False), ("invalid_auth", False, True),
     ("ratelimited", False, False)],
)  # fmt: skip
async def test_slacks_refusals(receiver: Receiver, error: str, permanent: bool, down: bool) -> None:
    receiver.answer = {"ok": False, "error": error}
    url = f"slack+bot://xoxb-1@C012AB?api=http://127.0.0.1:{receiver.port}/api"
    outcome = await sent_by(url, LETTER)
    assert (outcome.result, outcome.permanent, outcome.down) == ("failed", permanent, down)
    assert error in outcome.reason


async def test_teams_gets_a_card_whose_text_is_no_markdown(receiver: Receiver) -> None:
    outcome = await sent_by(f"teams+http://127.0.0.1:{receiver.port}/workflows/x", LETTER)
    assert outcome.result == "delivered"
    card = msgspec.json.decode(receiver.requests[0][1])["attachments"][0]["content"]
    assert card["type"] == "AdaptiveCard"
    assert [b["text"] for b in card["body"]][1] == "Line \\*one\\*"
    assert card["actions"][0]["url"] == LETTER.link


@pytest.mark.parametrize(
    ("mood", "ambiguous", "down"),
    [("slow", True, True), ("hangs up", True, True), ("500", False, True), ("429", False, False)],
)
async def test_what_got_no_answer_is_marked_so(
    receiver: Receiver, mood: Mood, ambiguous: bool, down: bool
) -> None:
    receiver.mood = mood
    url = f"slack+http://127.0.0.1:{receiver.port}/services/T/secret-part"
    channels = Channels(None, 0.3, 2, {})
    outcome = await channels.send(label(url), Person("a", "A", channels=(url,)), LETTER)
    await channels.aclose()
    assert (outcome.result, outcome.permanent) == ("failed", False)
    assert (outcome.ambiguous, outcome.down) == (ambiguous, down)
    assert "secret-part" not in (outcome.reason or "")


@pytest.mark.long
async def test_a_channel_that_hangs_holds_up_no_other(
    database_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    """Forty people's receiver never answers; one more person's alerts arrive all the same, in order."""
    healthy = Receiver()
    await healthy.come()
    names = [f"s{n}" for n in range(40)]
    people = dict.fromkeys(names, receiver.port)
    receiver.mood = "slow"
    async with lined(database_url, tmp_path, **people, cal=healthy.port) as line:
        dispatcher = line.new_line()
        dispatcher.start()
        for n in range(60):
            await line.tell("cal", *names[n % len(names) :][:2])
            dispatcher.wake()
            async with asyncio.timeout(30):
                while len(healthy.requests) <= n:
                    await asyncio.sleep(0.001)
            line.clock.pass_(1)
        assert len(healthy.requests) == 60
        receiver.released.set()
        await dispatcher.stop()
    await healthy.go()
