"""Signed links, Slack's buttons, snooze, mutes and trials over HTTP, on a real PostgreSQL."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
import urllib.parse
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from structlog.testing import capture_logs

from services.contracts import access
from services.contracts.links import ANSWER, SEEN, Links, Purpose
from services.notifier.app import create_app
from services.notifier.slack_actions import slack_signed
from tests.integration.test_notifier_api import Served, serve, settings, transition
from tests.integration.test_notifier_channels import Mailbox, mailbox, smtp_port
from tests.integration.test_notifier_handoffs import accepted, offer

__all__ = ["mailbox", "smtp_port"]
KEY = "0123456789abcdef0123456789abcdef"
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
SECRET = "8f742231b10e8888abcd99yyyzzz85a5"


class Clock:
    """Time that passes when told to, from now on."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        """Give the moment."""
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.fixture
async def served(database_url: str, tmp_path: Path, clock: Clock) -> AsyncIterator[Served]:
    """The notifier with links and Slack's secret, running."""
    connection = await asyncpg.connect(database_url)
    _, token = await access.create_key(connection, "tests", access.SCOPES)
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "alert.txt.j2").write_text("{{ nobody }}")
    chosen = settings(
        database_url, tmp_path, link_key=KEY, notifier_public_url="https://n.example/",
        slack_signing_secret=SECRET, templates_dir=tmp_path / "templates",
    )  # fmt: skip
    app = create_app(chosen, now=clock.now)
    async with serve(app, token) as client:
        yield Served(app, client, connection)
    await connection.close()


async def alert_of(served: Served) -> dict[str, Any]:
    """An alert to Ana's inbox."""
    await served.publish(transition("ana", "lead_agent"))
    [alert] = await served.alerts(1)
    return alert


def path_of(served: Served, alert: dict[str, Any], moment: datetime) -> str:
    """The path of Ana's link."""
    assert served.house.links is not None
    links = served.house.links
    url = links.url(links.token(uuid.UUID(alert["id"]), "ana", moment))
    assert url.startswith("https://n.example/seen/")
    return urllib.parse.urlsplit(url).path


async def test_opening_a_link_shows_and_its_button_acts_once(served: Served, clock: Clock) -> None:
    alert = await alert_of(served)
    path = path_of(served, alert, clock.now())
    plain = {"authorization": ""}
    for _ in range(3):  # scanners open it as often as they like
        page = await served.client.get(path, headers=plain)
        assert page.status_code == 200
        assert "<button>Got it</button>" in page.text
        assert page.headers["referrer-policy"] == "no-referrer"
    assert (await served.client.head(path, headers=plain)).status_code == 405
    [alert] = await served.alerts(1)
    assert alert["status"] == "delivered"
    done = await served.client.post(path, headers=plain)
    assert done.status_code == 200
    [alert] = await served.alerts(1)
    assert (alert["status"], alert["acknowledged_by"]) == ("acknowledged", "ana")
    assert (await served.client.post(path, headers=plain)).status_code == 409
    assert "Already acknowledged" in (await served.client.get(path, headers=plain)).text


async def test_a_link_expires_and_cannot_be_changed(served: Served, clock: Clock) -> None:
    alert = await alert_of(served)
    path = path_of(served, alert, clock.now())
    forged = Links(SEEN, "f" * 32, "", 600).token(uuid.uuid4(), "ana", clock.now())
    bad = [path[:-5] + ("A" if path[-5] != "A" else "B") + path[-4:], "/seen/x", "/seen/" + "a." * 600,
           f"/seen/{forged}", "/seen/%00%ff"]  # fmt: skip
    for each in bad:
        assert (await served.client.get(each)).status_code == 404, each
        assert (await served.client.post(each)).status_code == 404, each
    clock.ahead = timedelta(days=8)
    assert (await served.client.post(path)).status_code == 404
    [alert] = await served.alerts(1)
    assert alert["status"] == "delivered"


def pressed(action: str, value: str) -> bytes:
    """What Slack posts when a button is pressed."""
    payload = {
        "type": "block_actions", "user": {"id": "U123", "username": "ana"},
        "actions": [{"action_id": action, "value": value}],
    }  # fmt: skip
    return urllib.parse.urlencode({"payload": json.dumps(payload)}).encode()


def signed(body: bytes, at: float, secret: str = SECRET) -> dict[str, str]:
    """Slack's headers."""
    text = b"v0:" + str(int(at)).encode() + b":" + body
    return {
        "x-slack-request-timestamp": str(int(at)),
        "x-slack-signature": "v0=" + hmac.new(secret.encode(), text, hashlib.sha256).hexdigest(),
        "content-type": "application/x-www-form-urlencoded",
    }


async def test_slacks_button_acknowledges(served: Served) -> None:
    alert = await alert_of(served)
    body = pressed("baton_seen", alert["id"])
    now = time.time()
    refused = [
        {}, signed(body, now, "wrong"), signed(body, now - 301), signed(body, now + 301),
        signed(body + b"x", now), signed(body, now) | {"x-slack-request-timestamp": "soon"},
        signed(body, now) | {"x-slack-signature": "v0=ü".encode("latin-1")},  # type: ignore[dict-item]
    ]  # fmt: skip
    for headers in refused:
        answer = await served.client.post("/slack/actions", content=body, headers=headers)
        assert answer.status_code == 401, headers
    assert (await served.alerts(1))[0]["status"] == "delivered"
    answer = await served.client.post("/slack/actions", content=body, headers=signed(body, now))
    assert (answer.status_code, answer.text) == (200, "")
    [alert] = await served.alerts(1)
    assert (alert["status"], alert["acknowledged_by"]) == ("acknowledged", "slack:U123")


async def test_slacks_button_snoozes_and_nonsense_is_refused(served: Served) -> None:
    alert = await alert_of(served)
    body = pressed("baton_snooze", alert["id"])
    headers = signed(body, time.time())
    assert (await served.client.post("/slack/actions", content=body, headers=headers)).is_success
    assert (await served.alerts(1))[0]["snoozed_until"] is not None
    for body in (b"", b"payload=[]", b"payload=%7B%7D", pressed("baton_seen", "x"), b"\xff"):
        headers = signed(body, time.time())
        answer = await served.client.post("/slack/actions", content=body, headers=headers)
        assert answer.status_code == 422, body
    opened = pressed("baton_open", "")
    headers = signed(opened, time.time())
    assert (await served.client.post("/slack/actions", content=opened, headers=headers)).is_success


def test_slacks_own_example() -> None:
    """The request and signature of Slack's documentation."""
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow"
        b"&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner"
        b"&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands"
        b"%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121"
        b".803a0bc887a14d10d2c447fce8b6703c"
    )
    at = datetime.fromtimestamp(1531420618, UTC)
    signature = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
    assert slack_signed(SECRET, "1531420618", signature, body, at)


async def test_snooze_over_http(served: Served, clock: Clock) -> None:
    alert = await alert_of(served)
    path = f"/v1/alerts/{alert['id']}/snooze"
    until = (clock.now() + timedelta(hours=1)).isoformat()
    answer = await served.client.post(path, json={"until": until})
    assert answer.status_code == 200
    assert answer.json()["snoozed_until"]
    for bad in ("2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"):
        answer = await served.client.post(path, json={"until": bad})
        assert (answer.status_code, answer.json()["field"]) == (422, "until")
    assert (await served.client.post(path, json={"until": "2030-01-01T00:00:00"})).is_client_error
    other = f"/v1/alerts/{uuid.uuid4()}/snooze"
    assert (await served.client.post(other, json={"until": until})).status_code == 404
    await served.client.post(f"/v1/alerts/{alert['id']}/ack")
    assert (await served.client.post(path, json={"until": until})).status_code == 409


async def test_mutes_over_http(served: Served) -> None:
    lead = str(uuid.uuid4())
    wish = {"person": "lea", "lead_id": lead}
    made = await served.client.post("/v1/mutes", json=wish)
    assert made.status_code == 201
    assert made.json()["created_by"] == "tests"
    listed = (await served.client.get("/v1/mutes", params={"person": "lea"})).json()["items"]
    assert [m["lead_id"] for m in listed] == [lead]
    assert (await served.client.get("/v1/mutes", params={"person": "ana"})).json()["items"] == []
    await served.publish(transition("lea", "sales_leadership", lead))
    [alert] = await served.alerts(1, person="lea")
    assert [(d["channel"], d["status"], d["reason"]) for d in alert["deliveries"]] == [
        ("inbox", "delivered", None), ("console", "suppressed", "muted"),
    ]  # fmt: skip
    assert (await served.client.delete(f"/v1/mutes/lea/{lead}")).status_code == 204
    assert (await served.client.delete(f"/v1/mutes/lea/{lead}")).status_code == 404
    unknown = await served.client.post("/v1/mutes", json=wish | {"person": "zoe"})
    assert unknown.status_code == 404


async def test_channels_can_be_tried_and_their_troubles_listed(served: Served) -> None:
    tried = await served.client.post("/v1/channels/test", json={"person": "lea"})
    assert [(r["channel"], r["result"]) for r in tried.json()["items"]] == [
        ("console", "delivered")
    ]
    tried = await served.client.post("/v1/channels/test", json={"person": "ben"})
    assert tried.json()["items"][0]["reason"] == "no mail server is set (BATON_SMTP_URL)"
    nothing = await served.client.post("/v1/channels/test", json={"person": "ana"})
    assert nothing.status_code == 404
    channels = (await served.client.get("/v1/channels")).json()
    assert channels["items"] == []
    [broken] = channels["broken_templates"]
    assert (broken["line"], "nobody" in broken["message"]) == (1, True)
    assert (await served.client.get(f"/v1/digests/{uuid.uuid4()}")).status_code == 404


async def test_without_the_scope_nothing_is_set_aside(served: Served) -> None:
    _, token = await access.create_key(served.connection, "reader", frozenset({"read"}))
    headers = {"authorization": f"Bearer {token}"}
    for method, path, body in (
        ("POST", f"/v1/alerts/{uuid.uuid4()}/snooze", {"until": "2030-01-01T00:00:00Z"}),
        ("POST", "/v1/mutes", {"person": "ana", "lead_id": str(uuid.uuid4())}),
        ("DELETE", f"/v1/mutes/ana/{uuid.uuid4()}", None),
        ("POST", "/v1/channels/test", {"person": "lea"}),
    ):
        answer: httpx.Response = await served.client.request(
            method, path, json=body, headers=headers
        )
        assert answer.status_code == 403, path


def test_a_key_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(ValueError, match="BATON_LINK_KEY"):
        Links(SEEN, "secret", "https://n.example", 60)


@pytest.mark.parametrize("purpose", [SEEN, ANSWER])
def test_a_link_written_in_another_way_is_the_same_link(purpose: Purpose) -> None:
    """The last character of a signature has bits that nobody reads: they must not make a used link fresh."""
    links = Links(purpose, KEY, "https://b.example", 60)
    token = links.token(uuid.UUID(int=7), "ben", NOON)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(token[-1])
    others = [token[:-1] + alphabet[last // 4 * 4 + n] for n in range(4)] + [token + "="]
    read = [links.read(other, NOON) for other in others]
    grants = [grant for grant in read if grant is not None]
    assert grants
    assert len({grant.id for grant in grants}) == 1


def test_a_link_is_good_for_its_purpose_only() -> None:
    token = Links(SEEN, KEY, "https://n.example", 60).token(uuid.UUID(int=7), "ben", NOON)
    assert Links(ANSWER, KEY, "https://b.example", 60).read(token, NOON) is None


async def test_an_offer_goes_out_by_mail_with_its_link_until_it_is_answered(
    database_url: str, tmp_path: Path, clock: Clock, mailbox: Mailbox, smtp_port: int
) -> None:
    """From the bus to a real mail server: the link is in the mail, and neither in the API nor in a log."""
    connection = await asyncpg.connect(database_url)
    _, token = await access.create_key(connection, "tests", access.SCOPES)
    chosen = settings(
        database_url, tmp_path, link_key=KEY, public_url="https://b.example",
    ).model_copy(update={"smtp_url": f"smtp://127.0.0.1:{smtp_port}?tls=no"})  # fmt: skip
    handoff, offered = uuid.uuid4(), transition("ben", "ae")
    body = msgspec.json.decode(offered.value) | {"offer": msgspec.to_builtins(offer(handoff))}
    offered = msgspec.structs.replace(offered, value=msgspec.json.encode(body))
    app = create_app(chosen, now=clock.now)
    with capture_logs() as lines:
        async with serve(app, token) as client:
            served = Served(app, client, connection)
            await served.publish(offered)
            [alert] = await served.alerts(1)
            assert alert["status"] == "delivered"
            [(_, _, message)] = mailbox.mails
            [link] = re.findall(r"Accept or reject: (\S+)", message.get_content())
            secret = link.removeprefix("https://b.example/answer/")
            grant = Links(ANSWER, KEY, "https://b.example", 1).read(secret, clock.now())
            assert grant is not None
            assert (grant.about, grant.person) == (handoff, "ben")
            await served.publish(accepted(handoff), transition("ana", "lead_agent"))
            await served.alerts(1, person="ana")
            [answered] = await served.alerts(1, status="acknowledged")
            assert answered["acknowledged_why"] == "accepted by ben"
            shown = (await client.get("/v1/alerts")).text
    assert secret not in shown + str(lines)
    await connection.close()
