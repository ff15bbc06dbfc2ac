"""The walk, as a user would do it: `baton up`, curl, the feed, the bus, the alerts, the mails."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MessageHandler

from tests.integration.kafka_broker import KafkaBroker
from tests.system.running import STRUCTURED, RunningBaton, free_port, lead_event, until

WALK = (
    "lead.created",
    "demo.requested",
    "meeting.booked",
    "proposal.sent",
    "contract.sent",
    "deal.won",
)
WAYS = [
    ("lead", "mql"), ("mql", "sql"), ("sql", "proposal"), ("proposal", "closing"),
    ("closing", "closed_won"),
]  # fmt: skip
EMAIL = "ada@walk.example"


class Mailbox(MessageHandler):
    """Keeps what the real SMTP server got."""

    def __init__(self) -> None:
        super().__init__()
        self.mails: list[Any] = []

    def handle_message(self, message: Any) -> None:
        """Keep one mail."""
        self.mails.append(message)


@pytest.fixture(scope="module")
def mailbox() -> Iterator[tuple[Mailbox, str]]:
    box = Mailbox()
    controller = Controller(box, hostname="127.0.0.1", port=free_port())
    controller.start()
    yield box, f"smtp://127.0.0.1:{controller.port}?from=baton@example.com&tls=no"
    controller.stop()


@pytest.fixture(scope="module", params=["postgres", pytest.param("kafka", marks=pytest.mark.kafka)])
def walked(
    request: pytest.FixtureRequest, mailbox: tuple[Mailbox, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningBaton, list[Any], str]]:  # fmt: skip
    """A running Baton on each bus through which one lead has walked, by curl."""
    box, smtp_url = mailbox
    box.mails.clear()
    environment = {"BATON_SMTP_URL": smtp_url}
    if request.param == "kafka":
        broker: KafkaBroker = request.getfixturevalue("kafka")
        environment["BATON_KAFKA_BOOTSTRAP_SERVERS"] = broker.bootstrap_servers
    baton = RunningBaton(tmp_path_factory.mktemp("walk") / "data", environment).start()
    try:
        answers = [_curl(baton, event) for event in _events()]
        until(lambda: len(box.mails) >= 3, "three mails")
        yield baton, answers, request.param
    finally:
        baton.stop()


def _events() -> list[dict[str, Any]]:
    more = {"lead.created": {"company": "Walk Ltd", "employees": 250, "name": "Ada Walker"}}
    return [lead_event(f"w{n}", t, EMAIL, **more.get(t, {})) for n, t in enumerate(WALK)]


def _curl(baton: RunningBaton, event: dict[str, Any]) -> Any:
    done = subprocess.run(
        ["curl", "-sS", "-X", "POST", f"{baton.url}/v1/events", "-H", f"authorization: Bearer {baton.key}",
         "-H", f"content-type: {STRUCTURED}", "-d", json.dumps(event)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_five_transitions_in_the_answers_and_in_the_feed(walked: Any) -> None:
    baton, answers, _ = walked
    told = [t for a in answers for r in a["results"] for t in r["transitions"]]
    assert [(t["from"], t["to"]) for t in told] == WAYS
    assert [t["sequence"] for t in told] == [1, 2, 3, 4, 5]
    feed = until(lambda: len(f := baton.feed()) == 5 and f, "five transitions in the feed")
    assert [(i["from"], i["to"], i["sequence"]) for i in feed] == [
        (*way, n) for n, way in enumerate(WAYS, 1)
    ]
    assert [i["position"] for i in feed] == [1, 2, 3, 4, 5]
    assert {i["type"] for i in feed} == {"baton.stage.transitioned.v1"}
    assert all(i["explanation"] and i["playbook_version"] == 1 for i in feed)


def test_three_alerts_each_once_each_says_why(walked: Any) -> None:
    baton, _, _ = walked
    alerts = until(lambda: len(a := baton.alerts()) == 3 and a, "three alerts")
    assert {a["role"] for a in alerts} == {"lead_agent", "ae", "csm"}
    why = {
        "lead_agent": "because they asked for a demo",
        "ae": "because a meeting with an Account Executive is booked",
        "csm": "because the deal was won",
    }
    for alert in alerts:
        assert why[alert["role"]] in alert["body"]
        assert "Walk Ltd" in alert["body"]
        assert f"/leads/{alert['lead_id']}" in alert["body"]
        assert alert["person"]["id"]


def test_a_real_mail_server_got_the_mails(walked: Any, mailbox: tuple[Mailbox, str]) -> None:
    baton, _, _ = walked
    people = {a["person"]["name"].split()[0].lower() for a in baton.alerts()}
    mails: list[EmailMessage] = mailbox[0].mails
    assert len(mails) == 3
    assert {str(m["to"]).split("<")[-1].strip(">") for m in mails} == {
        f"{name}@baton.example" for name in people
    }
    assert all("Walk Ltd" in str(m["subject"]) for m in mails)


def test_all_events_again_change_nothing(walked: Any, mailbox: tuple[Mailbox, str]) -> None:
    """I2 from outside: repeats are answered as repeats; feed, alerts and mails stay."""
    baton, _, _ = walked
    before = (baton.feed(), sorted(a["id"] for a in baton.alerts()), len(mailbox[0].mails))
    for event in _events():
        [result] = _curl(baton, event)["results"]
        assert result["status"] == "duplicate"
        assert result["transitions"] == []
    after = (baton.feed(), sorted(a["id"] for a in baton.alerts()), len(mailbox[0].mails))
    assert after == before
    assert "clean" in baton.verify()


def test_the_lead_and_its_timeline(walked: Any) -> None:
    baton, _, _ = walked
    [lead] = baton.get("/v1/leads", email="ADA@walk.example")["items"]
    [journey] = lead["journeys"]
    assert (journey["stage"], journey["furthest_stage"]) == ("closed_won", "closed_won")
    assert set(journey["owners"]) == {"lead_agent", "ae", "csm"}
    assert lead["attributes"]["employees"] == 250
    timeline = baton.get(f"/v1/leads/{lead['id']}/timeline")
    kinds = [i["kind"] for i in timeline["items"]]
    assert (kinds.count("event"), kinds.count("transition"), kinds.count("alert")) == (6, 5, 3)
    times = [i["occurred_at"] for i in timeline["items"]]
    assert times == sorted(times)


@pytest.mark.kafka
def test_a_stranger_reads_the_topic_with_kcat(walked: Any, request: pytest.FixtureRequest) -> None:
    """On Kafka: any client sees CloudEvents in binary mode, keyed by lead."""
    baton, _, bus = walked
    if bus != "kafka":
        return
    broker: KafkaBroker = request.getfixturevalue("kafka")
    done = subprocess.run(
        ["kcat", "-C", "-b", broker.bootstrap_servers, "-t", "baton.transitions", "-e", "-q", "-J"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(messages) == 5
    [lead] = baton.get("/v1/leads", email=EMAIL)["items"]
    for message in messages:
        headers = dict(zip(message["headers"][::2], message["headers"][1::2], strict=True))
        assert headers["ce_type"] == "baton.stage.transitioned.v1"
        assert headers["ce_id"] == json.loads(message["payload"])["transition_id"]
        assert message["key"] == lead["id"]


def test_the_stream_goes_on_where_one_stopped(walked: Any) -> None:
    """SSE with Last-Event-ID."""
    baton, _, _ = walked
    with (
        baton.client() as client,
        client.stream("GET", "/v1/transitions/stream", headers={"last-event-id": "3"}) as answer,
    ):
        ids: list[str] = []
        for line in answer.iter_lines():
            if line.startswith("id:"):
                ids.append(line[3:].strip())
            if len(ids) == 2:
                break
    assert ids == ["4", "5"]


def test_files_of_the_data_directory_keep_secrets(walked: Any) -> None:
    baton, _, _ = walked
    assert (baton.data / "api-key").stat().st_mode & 0o777 == 0o600
    for log in Path(baton.data).glob("*.log"):
        text = log.read_text(errors="replace")
        assert baton.key not in text, log
        assert baton.key.split("_", 2)[2] not in text, log
        assert EMAIL not in text, log
        assert "Ada Walker" not in text, log
