"""The notifier's HTTP API, served by the whole app on a real PostgreSQL and its bus."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from fastapi import FastAPI

from services.contracts import access, postgres_log, problems
from services.contracts.events import TRANSITIONED, TRANSITIONS_TOPIC, Message
from services.contracts.problems import BatonError
from services.notifier import errors
from services.notifier.access import STATUS, House
from services.notifier.app import create_app
from services.notifier.settings import NotifierSettings
from services.stage_service import errors as stage_errors
from services.stage_service.api import access as stage_access

TEAM = """
people:
  - {id: ana, name: Ana Silva, roles: [lead_agent], channels: [inbox]}
  - {id: ben, name: Ben Ott, roles: [ae], email: ben@baton.example, channels: [email]}
  - {id: lea, name: Lea Vogt, roles: [sales_leadership], channels: [inbox, console]}
"""


@dataclass
class Served:
    """The running app, a client with an all-scopes key, and the app's database."""

    app: FastAPI
    client: httpx.AsyncClient
    connection: asyncpg.Connection[Any]

    @property
    def house(self) -> House:
        """The app's parts."""
        return self.app.state.house

    async def publish(self, *messages: Message) -> None:
        """Publish as the stage service and its relay do."""
        await postgres_log.write(self.connection, messages)
        await postgres_log.stamp(self.connection)

    async def alerts(self, count: int, **params: Any) -> list[dict[str, Any]]:
        """The alerts that match, once there are `count` of them and none is pending."""
        while True:
            answer = await self.client.get("/v1/alerts", params=params)
            assert answer.status_code == 200, answer.text
            items = answer.json()["items"]
            if len(items) >= count and all(i["status"] != "pending" for i in items):
                return items


def settings(database_url: str, directory: Path, **changes: Any) -> NotifierSettings:
    """Settings that take nothing from the environment's files."""
    team = directory / "team.yaml"
    team.write_text(TEAM)
    return NotifierSettings(
        _env_file=None, database_url=database_url, team_file=team, kafka_bootstrap_servers=None,
        smtp_url=None, **changes,
    )  # type: ignore[call-arg]  # fmt: skip


def transition(person: str | None, role: str, lead_id: str | None = None) -> Message:
    """A published transition that wishes one alert."""
    body = {
        "transition_id": str(uuid.uuid4()),
        "lead": {"id": lead_id or str(uuid.uuid4()), "name": "Ada", "company": "Acme"},
        "from": "lead_generation",
        "to": "lead_qualification",
        "recorded_at": "2025-03-01T10:00:00Z",
        "alerts": [{"role": role, "person": {"id": person, "name": "N"} if person else None}],
    }
    headers = {"ce_id": str(uuid.uuid4()), "ce_type": TRANSITIONED}
    return Message(TRANSITIONS_TOPIC, body["lead"]["id"], headers, msgspec.json.encode(body))


@contextlib.asynccontextmanager
async def serve(app: FastAPI, token: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run `app` from start to stop."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport,
            base_url="http://notifier",
            headers={"authorization": f"Bearer {token}"},
        ) as client,
    ):
        yield client


@pytest.fixture
async def served(database_url: str, tmp_path: Path) -> AsyncIterator[Served]:
    """The notifier, running."""
    connection = await asyncpg.connect(database_url)
    _, token = await access.create_key(connection, "tests", access.SCOPES)
    app = create_app(settings(database_url, tmp_path))
    async with serve(app, token) as client:
        yield Served(app, client, connection)
    await connection.close()


async def test_from_the_bus_to_the_inbox(served: Served) -> None:
    lead_id = str(uuid.uuid4())
    await served.publish(transition("ana", "lead_agent", lead_id), transition(None, "ae"))
    await served.alerts(2)
    [alert] = await served.alerts(1, person="ana")
    assert alert["lead_id"] == lead_id
    assert alert["role"] == "lead_agent"
    assert alert["person"] == {"id": "ana", "name": "N"}
    assert alert["status"] == "delivered"
    assert alert["subject"] == "Ada (Acme) is at lead qualification"
    assert lead_id in alert["body"]
    assert alert["stage"] == "lead_qualification"
    assert alert["company"] == "Acme"
    assert alert["created_at"].endswith("Z")
    [delivery] = alert["deliveries"]
    assert (delivery["channel"], delivery["attempt"], delivery["status"]) == (
        "inbox", 1, "delivered",
    )  # fmt: skip
    assert (await served.client.get(f"/v1/alerts/{alert['id']}")).json() == alert
    [unassigned] = await served.alerts(1, person="lea")
    assert unassigned["person"] is None
    assert unassigned["role"] == "ae"
    assert {d["channel"]: d["status"] for d in unassigned["deliveries"]} == {
        "inbox": "delivered", "console": "delivered",
    }  # fmt: skip


async def test_filters_and_pages(served: Served) -> None:
    lead_id = str(uuid.uuid4())
    await served.publish(
        *(transition("ana", "lead_agent", lead_id) for _ in range(5)),
        *(transition("lea", "sales_leadership") for _ in range(2)),
    )
    everything = await served.alerts(7)
    ids = [a["id"] for a in everything]
    assert ids == sorted(ids, reverse=True)
    assert len(await served.alerts(5, lead_id=lead_id)) == 5
    assert len(await served.alerts(2, role="sales_leadership")) == 2
    assert len(await served.alerts(0, role="csm")) == 0
    assert len(await served.alerts(7, status="delivered")) == 7
    paged: list[str] = []
    cursor: str | None = None
    while True:
        params: dict[str, Any] = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await served.client.get("/v1/alerts", params=params)).json()
        paged += [a["id"] for a in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert paged == ids


async def test_acknowledge_is_idempotent_and_says_who(served: Served) -> None:
    await served.publish(transition("ana", "lead_agent"))
    [alert] = await served.alerts(1)
    path = f"/v1/alerts/{alert['id']}/ack"
    first = (await served.client.post(path)).json()
    again = (await served.client.post(path)).json()
    assert first == again
    assert (first["status"], first["acknowledged_by"]) == ("acknowledged", "tests")
    assert first["acknowledged_at"]
    assert len(await served.alerts(1, status="acknowledged")) == 1


async def test_what_reached_nobody_is_shown_and_sent_again(served: Served) -> None:
    poison = Message(TRANSITIONS_TOPIC, "k", {"ce_id": "poison", "ce_type": TRANSITIONED}, b"{")
    await served.publish(poison, transition("ben", "ae"), transition("ana", "lead_agent"))
    await served.alerts(2)
    [alert] = await served.alerts(1, status="dead_lettered")
    assert "BATON_SMTP_URL" in alert["deliveries"][0]["reason"]
    letters = (await served.client.get("/v1/dead-letters")).json()
    assert letters["next_cursor"] is None
    kinds = {x["kind"]: x for x in letters["items"]}
    assert kinds["delivery"]["alert_id"] == alert["id"]
    assert kinds["message"]["message_id"] == "poison"

    page = (await served.client.get("/v1/dead-letters", params={"limit": 1})).json()
    rest = {"cursor": page["next_cursor"]}
    following = (await served.client.get("/v1/dead-letters", params=rest)).json()
    assert page["items"] + following["items"] == letters["items"]

    answer = await served.client.post(f"/v1/alerts/{alert['id']}/retry")
    assert answer.status_code == 200
    assert [d["attempt"] for d in answer.json()["deliveries"]] == [1, 2]

    answer = await served.client.post(f"/v1/dead-letters/{kinds['message']['id']}/retry")
    assert answer.status_code == 409
    assert answer.json()["code"] == "unreadable-message"
    # What this version of Baton can read is recorded after all.
    await served.connection.execute(
        "UPDATE notifier.dead_letters SET value = $1", transition("ana", "lead_agent").value
    )
    answer = await served.client.post(f"/v1/dead-letters/{kinds['message']['id']}/retry")
    assert answer.status_code == 200
    assert len(await served.alerts(2, person="ana")) == 2
    letters = (await served.client.get("/v1/dead-letters")).json()
    assert {x["kind"] for x in letters["items"]} <= {"delivery"}


async def test_nothing_to_retry_is_a_conflict(served: Served) -> None:
    await served.publish(transition("ana", "lead_agent"))
    [alert] = await served.alerts(1)
    answer = await served.client.post(f"/v1/alerts/{alert['id']}/retry")
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "conflict"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/alerts?status=gone", "status"),
        ("/v1/alerts?lead_id=x", "lead_id"),
        ("/v1/alerts?cursor=x", "cursor"),
        ("/v1/alerts?limit=0", "limit"),
        ("/v1/alerts?limit=x", "limit"),
        ("/v1/alerts?role=", "role"),
        ("/v1/alerts?person=a%00b", "person"),
        ("/v1/dead-letters?cursor=%FF", "cursor"),
        ("/v1/dead-letters?cursor=eA==", "cursor"),
        ("/v1/alerts/nonsense", "id"),
    ],
)
async def test_a_bad_parameter_is_named(served: Served, path: str, field: str) -> None:
    answer = await served.client.get(path)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"] == field


@pytest.mark.parametrize("method", ["GET", "ack", "retry"])
async def test_an_unknown_alert_is_not_found(served: Served, method: str) -> None:
    path = f"/v1/alerts/{uuid.uuid4()}"
    answer = (
        await served.client.get(path)
        if method == "GET"
        else await served.client.post(f"{path}/{method}")
    )
    assert answer.status_code == 404
    assert answer.json()["code"] == "not-found"


async def test_i11_scopes_are_demanded(served: Served) -> None:
    _, reader = await access.create_key(served.connection, "reader", ["read"])
    _, ingest = await access.create_key(served.connection, "ingest", ["ingest"])
    _, admin = await access.create_key(served.connection, "admin", ["admin"])
    _, session = await access.create_key(served.connection, "Ana", ["read"], kind="session")
    await served.publish(transition("ana", "lead_agent"))
    [alert] = await served.alerts(1)
    transport = httpx.ASGITransport(served.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://notifier") as client:

        async def status(method: str, path: str, token: str | None) -> int:
            headers = {"authorization": f"Bearer {token}"} if token else {}
            return (await client.request(method, path, headers=headers)).status_code

        ack = f"/v1/alerts/{alert['id']}/ack"
        for path in ("/v1/alerts", f"/v1/alerts/{alert['id']}", "/v1/dead-letters"):
            assert await status("GET", path, None) == 401
            assert await status("GET", path, "bat_x_y") == 401
            assert await status("GET", path, ingest) == 403
            assert await status("GET", path, reader) == 200
        for path in (ack, ack.replace("ack", "retry"), "/v1/dead-letters/1/retry"):
            assert await status("POST", path, None) == 401
            assert await status("POST", path, reader) == 403
        assert await status("POST", ack, admin) == 200
        client.cookies.set(access.SESSION_COOKIE, session)
        assert await status("GET", "/v1/alerts", None) == 200
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await httpx.AsyncClient(transport=transport, base_url="http://n").get(path)
                    ).status_code == 200  # fmt: skip


async def test_readiness_fails_first(served: Served) -> None:
    assert (await served.client.get("/readyz")).status_code == 200
    served.house.stopping.set()
    answer = await served.client.get("/readyz")
    assert answer.status_code == 503
    assert (await served.client.get("/livez")).status_code == 200


async def test_it_starts_and_stops_while_everything_is_away(tmp_path: Path) -> None:
    away = f"postgresql://nobody@/baton?host={tmp_path}"
    app = create_app(settings(away, tmp_path))
    async with serve(app, "bat_a_b") as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["consumer"] == "ok"
        answer = await client.get("/v1/alerts")
        assert answer.status_code == 503
        assert answer.json()["code"] == "unavailable"
        assert "retry-after" in answer.headers
        assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    ("statuses", "own"), [(STATUS, errors), (stage_access.STATUS, stage_errors)]
)
def test_every_error_has_a_status(statuses: dict[type[BatonError], int], own: Any) -> None:
    """Of both services: what they share, and their own."""
    named = {
        e for module in (problems, own) for e in vars(module).values()
        if isinstance(e, type) and issubclass(e, BatonError) and e is not BatonError
    }  # fmt: skip
    assert named == set(statuses)


async def test_a_retry_whose_answer_was_lost_is_not_done_twice(served: Served) -> None:
    """A retry carries no id: that it was done is recorded in its transaction (I12)."""
    await served.publish(transition("ben", "ae"))
    [alert] = await served.alerts(1, person="ben", status="dead_lettered")
    path, key = f"/v1/alerts/{alert['id']}/retry", {"idempotency-key": '"again"'}
    assert (await served.client.post(path, headers=key)).status_code == 200
    [alert] = await served.alerts(1, person="ben", status="dead_lettered")
    attempts = len(alert["deliveries"])
    lost = await served.connection.execute(
        "UPDATE access.idempotency_keys SET status = NULL, body = NULL, claimed_until = now() WHERE done"
    )
    assert lost == "UPDATE 1"
    for repeated in (None, "true"):
        answer = await served.client.post(path, headers=key)
        assert answer.status_code == 200, answer.text
        assert answer.headers.get("idempotency-replayed") == repeated
        assert len(answer.json()["deliveries"]) == attempts


async def test_the_notifier_limits_too(database_url: str, tmp_path: Path) -> None:
    """A key's own rate counts here as at the stage service, and so do wrong keys."""
    connection = await asyncpg.connect(database_url)
    _, token = await access.create_key(connection, "slow", ["read"], rate="1/h burst 2")
    await connection.close()
    app = create_app(settings(database_url, tmp_path, rate_limit_failures="1/h burst 2"))
    async with serve(app, token) as client:
        codes = [(await client.get("/v1/alerts")).status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        client.headers["authorization"] = "Bearer bat_000000000000_wrong"
        codes = [(await client.get("/v1/alerts")).status_code for _ in range(3)]
        assert codes == [401, 401, 429]
