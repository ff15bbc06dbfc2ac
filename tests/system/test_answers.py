"""Handoffs answered as people do it: from the mail's link and from Slack's buttons, over real processes."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiosmtpd.controller import Controller

from tests.system.running import RunningBaton, free_port, lead_event, until
from tests.system.test_walk import Mailbox

SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
TEAM = """
people:
  - {id: lena, name: Lena Agent, roles: [lead_agent], channels: [inbox]}
  - {id: adam, name: Adam Exec, roles: [ae], email: adam@x.example,
     channels: [inbox, email, "slack+%s/hook"]}
  - {id: cleo, name: Cleo Care, roles: [csm], channels: [inbox]}
  - {id: boss, name: Boss Top, roles: [sales_leadership], channels: [inbox]}
  - {id: mark, name: Mark Et, roles: [marketing], channels: [inbox]}
"""


class Slack:
    """A real HTTP server that stands for Slack."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                asked.append((self.path, json.loads(body)))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def token_of(self, company: str) -> str | None:
        """What carries the answer in the message about a lead of `company`."""
        for _, message in self.asked:
            for block in message.get("blocks", ()):
                ids = [e.get("action_id") for e in block.get("elements", ())]
                if company in message["text"] and "baton_accept" in ids:
                    return block["block_id"]
        return None

    def replies(self, path: str) -> list[str]:
        """What was said at a ``response_url``."""
        return [message["text"] for where, message in self.asked if where == path]


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningBaton, Slack, Mailbox]]:
    """A running Baton with a mail server and what stands for Slack."""
    slack, box = Slack(), Mailbox()
    threading.Thread(target=slack.server.serve_forever, daemon=True).start()
    controller = Controller(box, hostname="127.0.0.1", port=free_port())
    controller.start()
    directory = tmp_path_factory.mktemp("answers")
    (directory / "team.yaml").write_text(TEAM % slack.url)
    baton = RunningBaton(directory / "data", {
        "BATON_TEAM_FILE": str(directory / "team.yaml"), "BATON_SLACK_SIGNING_SECRET": SECRET,
        "BATON_SLACK_REPLY_URL": slack.url,
        "BATON_SMTP_URL": f"smtp://127.0.0.1:{controller.port}?from=baton@example.com&tls=no",
    }).start()  # fmt: skip
    try:
        yield baton, slack, box
    finally:
        baton.stop()
        controller.stop()
        slack.server.shutdown()
        slack.server.server_close()


def offered(baton: RunningBaton, company: str) -> str:
    """Bring a lead to the account executive; gives its id."""
    email = f"{uuid.uuid4().hex}@corp.example"
    baton.send(lead_event(uuid.uuid4().hex, "lead.created", email, company=company, name="Ada"))
    return baton.send(lead_event(uuid.uuid4().hex, "meeting.booked", email))[0]["lead_id"]


def press(baton: RunningBaton, token: str, reply: str, reason: str | None = None) -> int:
    """Press a button as Slack tells it; gives the status."""
    action: dict[str, Any] = {"action_id": "baton_accept", "block_id": token}
    if reason is not None:
        action |= {"action_id": "baton_reject", "selected_option": {"value": reason}}
    payload = {"user": {"id": "U123"}, "actions": [action], "response_url": reply}
    body = urllib.parse.urlencode({"payload": json.dumps(payload)}).encode()
    at = str(int(time.time()))
    signature = hmac.new(SECRET.encode(), b"v0:" + at.encode() + b":" + body, hashlib.sha256)
    headers = {
        "x-slack-request-timestamp": at, "x-slack-signature": "v0=" + signature.hexdigest(),
        "content-type": "application/x-www-form-urlencoded",
    }  # fmt: skip
    return httpx.post(
        f"{baton.notifier_url}/slack/actions", content=body, headers=headers, timeout=10
    ).status_code


def alert_of(baton: RunningBaton, lead: str) -> dict[str, Any] | None:
    """The account executive's alert of a lead, once it is settled by its answer."""
    found = [a for a in baton.alerts() if a["lead_id"] == lead and a["addressee_id"] == "adam"]
    return next((a for a in found if a["acknowledged_why"]), None)


def test_the_mails_link_shows_and_its_button_accepts_once(running: Any) -> None:
    """A scanner opens it as often as it likes; the button acts, and the alert is settled."""
    baton, _, box = running
    lead = offered(baton, "Mail Ltd")
    mail = until(lambda: next((m for m in box.mails if "Mail Ltd" in m["Subject"]), None), "a mail")
    text = mail.get_payload(decode=True).decode()
    assert re.search(
        r"Please accept or reject it until \w{3} \d{4}-\d\d-\d\d \d\d:\d\d \S+\.", text
    )
    [link] = re.findall(r"Accept or reject: (\S+)", text)
    assert link.startswith(f"{baton.url}/answer/")
    for _ in range(3):
        assert httpx.get(link).status_code == 200
    with baton.client() as client:
        [handoff] = client.get("/v1/handoffs", params={"lead_id": lead}).json()["items"]
        assert handoff["state"] == "offered"
        assert httpx.post(link, data={"answer": "accept"}).status_code == 200
        assert httpx.post(link, data={"answer": "reject", "reason": "x"}).status_code == 409
        assert client.get(f"/v1/handoffs/{handoff['id']}").json()["state"] == "accepted"
    alert = until(lambda: alert_of(baton, lead), "the alert is settled")
    assert (alert["status"], alert["acknowledged_why"]) == ("acknowledged", "accepted by Adam Exec")
    token = link.rpartition("/")[2]
    for log in Path(baton.data).glob("*.log"):
        assert token not in log.read_text()


def test_slacks_buttons_answer_and_a_double_click_answers_once(running: Any) -> None:
    baton, slack, _ = running
    lead = offered(baton, "Slack Ltd")
    token = until(lambda: slack.token_of("Slack Ltd"), "a message in Slack")
    with ThreadPoolExecutor(4) as clicks:
        statuses = list(clicks.map(lambda _: press(baton, token, f"{slack.url}/double"), range(4)))
    assert statuses == [200] * 4
    said = until(lambda: len(r := slack.replies("/double")) == 4 and r, "replies")
    assert "Accepted." in said
    assert all(s == "Accepted." or s.startswith("Answered already") for s in said), said
    assert press(baton, token, f"{slack.url}/late", "No budget") == 200
    [late] = until(lambda: slack.replies("/late"), "a reply")
    assert late.startswith("Answered already: ")
    alert = until(lambda: alert_of(baton, lead), "the alert is settled")
    assert alert["acknowledged_by"] == "slack:U123"
    events = [i for i in baton.get(f"/v1/leads/{lead}/timeline")["items"] if i["kind"] == "event"]
    assert [i["type"] for i in events].count("handoff.accepted") == 1


def test_a_rejection_in_slack_gives_it_back_with_the_reason(running: Any) -> None:
    baton, slack, _ = running
    lead = offered(baton, "Reject Ltd")
    token = until(lambda: slack.token_of("Reject Ltd"), "a message in Slack")
    assert press(baton, token, f"{slack.url}/reject", "No budget") == 200
    assert until(lambda: slack.replies("/reject"), "a reply") == ["Rejected: No budget"]
    alert = until(lambda: alert_of(baton, lead), "the alert is settled")
    assert alert["acknowledged_why"] == "rejected by slack:U123: No budget"
    assert baton.get(f"/v1/leads/{lead}")["journeys"][0]["stage"] == "mql"
