"""Slack's buttons end to end: a real HTTP server stands for Slack, another for the stage service."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from structlog.testing import capture_logs

from services.contracts import access
from services.contracts.links import ANSWER, Links
from services.notifier.app import create_app
from services.notifier.slack_actions import TRY_AGAIN, is_slacks
from tests.integration.test_notifier_api import Served, serve, settings, transition
from tests.integration.test_notifier_callbacks import Clock, pressed, signed
from tests.integration.test_notifier_handoffs import offer

KEY = "0123456789abcdef0123456789abcdef"
SECRET = "8f742231b10e8888abcd99yyyzzz85a5"


class Listener:
    """A real HTTP server that keeps what it is asked and answers what it is told to, by default 200."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, Any]] | None] = []
        """What comes next; None: it hangs up."""
        self.released: asyncio.Event | None = None
        """It answers nothing before this."""
        self._server: asyncio.Server | None = None

    async def come(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def go(self) -> None:
        """Be away."""
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Where it is."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {k.lower(): v for k, _, v in (h.partition(": ") for h in head[1:] if h)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.asked.append((head[0].split(" ")[1], headers, body))
            if self.released is not None:
                await self.released.wait()
            answer = self.answers.pop(0) if self.answers else (200, {"ok": True})
            if answer is not None:
                text = json.dumps(answer[1]).encode()
                writer.write(
                    f"HTTP/1.1 {answer[0]} X\r\nconnection: close\r\n"
                    f"content-length: {len(text)}\r\n\r\n".encode()
                    + text
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def slack() -> AsyncIterator[Listener]:
    """What stands for Slack."""
    listener = Listener()
    await listener.come()
    yield listener
    await listener.go()


@pytest.fixture
async def stage() -> AsyncIterator[Listener]:
    """What stands for the stage service."""
    listener = Listener()
    await listener.come()
    yield listener
    await listener.go()


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.fixture
async def served(
    database_url: str, tmp_path: Path, clock: Clock, slack: Listener, stage: Listener
) -> AsyncIterator[Served]:
    """The notifier; Ben is told by Slack."""
    connection = await asyncpg.connect(database_url)
    _, token = await access.create_key(connection, "tests", access.SCOPES)
    chosen = settings(
        database_url, tmp_path, link_key=KEY, slack_signing_secret=SECRET, url=stage.url,
        public_url="https://baton.example", slack_reply_url=slack.url,
    )  # fmt: skip
    hook = f"slack+{slack.url}/services/T/B/x"
    ben = f"{{id: ben, name: Ben Ott, roles: [ae], channels: [inbox, '{hook}']}}"
    (tmp_path / "team.yaml").write_text(f"people:\n  - {ben}\n")
    app = create_app(chosen, now=clock.now)
    async with serve(app, token) as client:
        yield Served(app, client, connection)
    await connection.close()


async def message_of(served: Served, slack: Listener, handoff: uuid.UUID) -> dict[str, Any]:
    """The message that Slack got of an offered handoff."""
    message = transition("ben", "ae")
    body = msgspec.json.decode(message.value)
    body["offer"] = msgspec.to_builtins(offer(handoff))
    await served.publish(msgspec.structs.replace(message, value=msgspec.json.encode(body)))
    await served.alerts(1)
    [(path, _, posted)] = slack.asked
    assert path == "/services/T/B/x"
    slack.asked.clear()
    return json.loads(posted)


def answer_block(message: dict[str, Any]) -> dict[str, Any]:
    """The block by which the handoff is answered."""
    [found] = [
        b
        for b in message["blocks"]
        if any(e.get("action_id") == "baton_accept" for e in b.get("elements", ()))
    ]
    return found


def press(block: str, action: str, reply: str | None, reason: str | None = None) -> bytes:
    """What Slack posts when somebody accepts, or chooses a reason to reject."""
    done: dict[str, Any] = {"action_id": action, "block_id": block, "type": "button"}
    if reason is not None:
        done |= {"type": "static_select", "selected_option": {"value": reason}}
    payload = {
        "type": "block_actions", "user": {"id": "U123"}, "actions": [done], "response_url": reply,
    }  # fmt: skip
    return urllib.parse.urlencode({"payload": json.dumps(payload)}).encode()


async def send(served: Served, body: bytes, **headers: str) -> int:
    """Post as Slack does; gives the status."""
    signature = signed(body, time.time()) | headers
    answer = await served.client.post("/slack/actions", content=body, headers=signature)
    return answer.status_code


def replies(slack: Listener) -> list[str]:
    """What was said in Slack since."""
    found = [json.loads(body) for _, _, body in slack.asked]
    for each in found:
        assert each["response_type"] == "ephemeral"
        assert each["replace_original"] is False
    return [each["text"] for each in found]


async def test_accepting_in_slack_reaches_the_stage_service(
    served: Served, slack: Listener, stage: Listener, clock: Clock
) -> None:
    handoff = uuid.uuid4()
    block = answer_block(await message_of(served, slack, handoff))
    token = block["block_id"]
    grant = Links(ANSWER, KEY, "https://baton.example", 1).read(token, clock.now())
    assert grant is not None
    assert (grant.about, grant.person) == (handoff, "ben")
    accept, reject, other = block["elements"]
    assert accept["text"]["text"] == "Accept"
    assert [o["value"] for o in reject["options"]] == ["No budget", "No time"]
    assert other["url"] == f"https://baton.example/answer/{token}"
    with capture_logs() as lines:
        assert await send(served, press(token, "baton_accept", f"{slack.url}/actions/1")) == 200
    [(path, headers, body)] = stage.asked
    assert path == f"/answer/{token}"
    assert headers["accept"] == "application/json"
    assert urllib.parse.parse_qs(body.decode()) == {"answer": ["accept"], "actor": ["slack:U123"]}
    assert [path for path, _, _ in slack.asked] == ["/actions/1"]
    assert replies(slack) == ["Accepted."]
    assert token not in str(lines)


async def test_rejecting_says_why(served: Served, slack: Listener, stage: Listener) -> None:
    token = answer_block(await message_of(served, slack, uuid.uuid4()))["block_id"]
    body = press(token, "baton_reject", f"{slack.url}/r", "No budget")
    assert await send(served, body) == 200
    [(_, _, form)] = stage.asked
    assert urllib.parse.parse_qs(form.decode()) == {
        "answer": ["reject"], "actor": ["slack:U123"], "reason": ["No budget"],
    }  # fmt: skip
    assert replies(slack) == ["Rejected: No budget"]


async def test_what_the_stage_service_says_is_said_in_slack(
    served: Served, slack: Listener, stage: Listener
) -> None:
    body = press("some-token", "baton_accept", f"{slack.url}/r")
    for status, detail, said in (
        (409, "Elena accepted it at 10:02 <!channel>",
         "Answered already: Elena accepted it at 10:02 ‹!channel>"),
        (409, None, "It was answered already."),
        (410, "expired", "The time to answer by this button is over: open the lead to answer."),
        (422, "a reason is missing", "Not done: a reason is missing"),
        (404, None, "Not done: the button is not valid any more"),
        (302, None, TRY_AGAIN), (500, "secret", TRY_AGAIN), (503, None, TRY_AGAIN),
        (429, "slow down", TRY_AGAIN), (None, None, TRY_AGAIN),
    ):  # fmt: skip
        stage.answers = [(status, {"detail": detail} if detail else {}) if status else None]
        slack.asked.clear()
        assert await send(served, body) == 200
        assert replies(slack) == [said], status
    stage.answers = [(200, {"state": "accepted"}), (200, {"state": "rejected"})]
    slack.asked.clear()
    for _ in range(2):
        assert await send(served, body) == 200
    assert replies(slack) == ["Accepted.", "Answered already: rejected."]


async def test_a_second_press_asks_again_and_says_that_it_was_answered(
    served: Served, slack: Listener, stage: Listener
) -> None:
    body = press("some-token", "baton_accept", f"{slack.url}/r")
    stage.answers = [(200, {}), (409, {"detail": "slack:U123 accepted it"})]
    assert await asyncio.gather(send(served, body), send(served, body)) == [200, 200]
    assert sorted(replies(slack)) == ["Accepted.", "Answered already: slack:U123 accepted it"]


async def test_slack_is_answered_in_time_when_the_stage_service_is_not(
    served: Served, slack: Listener, stage: Listener
) -> None:
    stage.released = asyncio.Event()
    began = time.monotonic()
    assert await send(served, press("some-token", "baton_accept", f"{slack.url}/r")) == 200
    assert time.monotonic() - began < 3
    assert replies(slack) == [TRY_AGAIN]
    stage.released.set()


async def test_nothing_is_passed_on_without_slacks_signature(
    served: Served, slack: Listener, stage: Listener, clock: Clock
) -> None:
    body = press("some-token", "baton_accept", f"{slack.url}/r")
    wrong = {"x-slack-signature": "v0=" + "0" * 64}
    assert await send(served, body, **wrong) == 401
    clock.ahead = timedelta(minutes=6)
    assert await send(served, body) == 401
    assert (stage.asked, slack.asked) == ([], [])


async def test_nobody_but_slack_is_asked_to_take_a_reply(
    served: Served, slack: Listener, stage: Listener
) -> None:
    """Slack's signature is not enough to make Baton post somewhere else."""
    host = slack.url.removeprefix("http://")
    for url in (
        f"{stage.url}/r", f"http://x@{host}/r", f"http://{host}@{stage.url[7:]}/r",
        f"https://{host}/r", "http://127.0.0.1/r", "file:///etc/passwd", "//x", "http://[", "",
        None, 7,
    ):  # fmt: skip
        stage.asked.clear()
        assert await send(served, press("some-token", "baton_accept", url)) == 200  # type: ignore[arg-type]
        assert len(stage.asked) == 1, url  # the answer itself
        assert slack.asked == []


def test_whose_host_it_is() -> None:
    own = "https://hooks.slack.com/"
    assert is_slacks("https://hooks.slack.com/actions/T/1/x", own)
    for url in (
        "https://hooks.slack.com.evil.example/x", "https://evil.example/hooks.slack.com",
        "http://hooks.slack.com/x", "https://hooks.slack.com:8443/x", "https://hooks.slack.com@e/x",
        "https://e@hooks.slack.com/x", "https://e\\@hooks.slack.com/x", "https://hooks.slack.com:x/",
    ):  # fmt: skip
        assert not is_slacks(url, own), url


async def test_got_it_and_snooze_are_answered_too(served: Served, slack: Listener) -> None:
    await message_of(served, slack, uuid.uuid4())
    [alert] = await served.alerts(1)

    async def do(action: str, id: str) -> str:
        slack.asked.clear()
        body = pressed(action, id)
        payload = json.loads(urllib.parse.parse_qs(body.decode())["payload"][0])
        payload["response_url"] = f"{slack.url}/r"
        body = urllib.parse.urlencode({"payload": json.dumps(payload)}).encode()
        assert await send(served, body) == 200
        [said] = replies(slack)
        return said

    assert (await do("baton_snooze", alert["id"])).startswith("Snoozed until 20")
    assert await do("baton_seen", alert["id"]) == "Acknowledged: nothing more is sent about it."
    again = "Acknowledged already by slack:U123."
    assert [await do(a, alert["id"]) for a in ("baton_seen", "baton_snooze")] == [again, again]
    assert await do("baton_seen", str(uuid.uuid4())) == "There is no such alert."


async def test_a_reply_that_slack_does_not_take_changes_nothing(
    served: Served, slack: Listener, stage: Listener
) -> None:
    slack.answers = [(500, {}), None]
    for _ in range(2):
        assert await send(served, press("some-token", "baton_accept", f"{slack.url}/r")) == 200
    assert len(stage.asked) == 2


async def test_nonsense_is_refused(served: Served, stage: Listener) -> None:
    missing = {"user": {"id": "U1"}, "actions": [{"action_id": "baton_reject", "block_id": "x"}]}
    for payload in (
        missing,
        {"user": {"id": "U1"}, "actions": [7]},
        {"user": {"id": "U1"}, "actions": 7},
    ):
        body = urllib.parse.urlencode({"payload": json.dumps(payload)}).encode()
        assert await send(served, body) == 422, payload
    # A button that only opens a page is told to us too.
    assert await send(served, press("some-token", "baton_answer", None)) == 200
    assert stage.asked == []
