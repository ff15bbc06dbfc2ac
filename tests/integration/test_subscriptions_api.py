"""Subscriptions over HTTP on a real database: made, changed, paused, removed; secrets and deliveries."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import msgspec
import pytest
import pytest_asyncio

from services.baton.embedded import EmbeddedPostgres
from services.contracts import postgres_log
from services.contracts.events import Message, message_headers
from services.stage_service.subscriptions import reads
from services.stage_service.subscriptions.filters import TYPES
from services.stage_service.subscriptions.signing import kind_of
from tests.integration.stage import Stage, fresh_database, running_stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "https://crm.example.com/hooks/baton"
MOVED = "baton.stage.transitioned.v1"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def a_key() -> str:
    """A key that seals."""
    return base64.b64encode(os.urandom(32)).decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(postgres: EmbeddedPostgres) -> AsyncIterator[Stage]:
    """One stage service for this module; nobody delivers."""
    with fresh_database(postgres) as url:
        async with running_stage(url, encryption_key=a_key(), subscriptions="off") as it:
            yield it


@pytest_asyncio.fixture(loop_scope="module")
async def stage(whole: Stage) -> AsyncIterator[Stage]:
    """It, with no subscription and nothing published."""
    yield whole
    for table in (
        "stage.deliveries", "stage.subscription_cursors", "stage.subscription_secrets",
        "stage.subscriptions", "access.idempotency_keys", "bus.log", "bus.outbox",
    ):  # fmt: skip
        await whole.connection.execute(f"DELETE FROM {table}")


async def made(stage: Stage, **wish: Any) -> dict[str, Any]:
    """A new subscription, as its maker is told of it."""
    answer = await stage.client.post("/v1/subscriptions", json={"name": "CRM", "url": URL} | wish)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def publish(stage: Stage, *keys: str, type: str = MOVED) -> None:
    """Put messages into the published log."""
    messages = [
        Message(
            "baton.transitions", key, message_headers(f"{key}-{n}", type, NOW),
            msgspec.json.encode({"lead": {"id": key}, "to": "mql", "sequence": n}),
        )
        for n, key in enumerate(keys)
    ]  # fmt: skip
    before = await reads.last_position(stage.connection)
    await postgres_log.write(stage.connection, messages)
    async with asyncio.timeout(30):
        while await reads.last_position(stage.connection) < before + len(messages):
            await asyncio.sleep(0.01)


async def delivery(
    stage: Stage, id: str, position: int | None, state: str, lead: str = "l-1", **columns: Any
) -> str:
    """A delivery as whoever delivers records it; gives its id."""
    values = {
        "run": 0, "event_id": f"e-{position}", "event_type": MOVED, "attempts": "[]", "tries": 0,
        "next_at": NOW if state == "due" else None, "created_at": NOW,
        "done_at": NOW if state in ("delivered", "failed") else None,
    } | columns  # fmt: skip
    return await stage.connection.fetchval(
        f"""INSERT INTO stage.deliveries (id, subscription_id, position, state, lead_id, {", ".join(values)})
            VALUES (uuidv7(), $1::uuid, $2, $3, $4, {", ".join(f"${n + 5}" for n in range(len(values)))})
            RETURNING id::text""",
        id, position, state, lead, *values.values(),
    )  # fmt: skip


async def test_a_subscription_is_made_listed_and_its_secret_told_once(stage: Stage) -> None:
    await publish(stage, "l-1", "l-2")
    answer = await stage.client.post(
        "/v1/subscriptions",
        json={"name": "CRM", "url": URL, "types": ["baton.stage.*"], "filter": "to == 'mql'",
              "headers": {"authorization": "Bearer very-secret"}, "contact": "ae"},
    )  # fmt: skip
    assert answer.status_code == 201
    one = answer.json()
    assert answer.headers["location"] == f"/v1/subscriptions/{one['id']}"
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["cache-control"] == "no-store"
    assert kind_of(one["secrets"][0]["secret"]) == "v1"
    assert one["header_names"] == ["authorization"]
    assert (one["state"], one["ordered"], one["payload"]) == ("active", True, "full")
    assert one["health"]["position"] == 2
    assert one["health"]["lag"] == 0
    listed = (await stage.client.get("/v1/subscriptions")).json()
    assert [s["id"] for s in listed["items"]] == [one["id"]]
    whole = await stage.client.get(f"/v1/subscriptions/{one['id']}")
    assert whole.headers["etag"] == '"1"'
    assert whole.json()["secrets"][0]["secret"] is None
    for text in (whole.text, str(listed)):
        assert "very-secret" not in text
        assert one["secrets"][0]["secret"] not in text
    for column in ("headers::text", "state_reason", "config::text"):
        stored = await stage.connection.fetchval(f"SELECT {column} FROM stage.subscriptions")
        assert "very-secret" not in str(stored)
    audited = (await stage.client.get("/v1/audit?kind=subscription")).text
    assert "very-secret" not in audited
    assert "authorization" in audited


@pytest.mark.parametrize(
    ("start", "position"), [("now", 3), ("beginning", 0), (1, 1), (3, 3), (None, 3)]
)
async def test_where_it_begins(stage: Stage, start: Any, position: int) -> None:
    await publish(stage, "l-1", "l-2", "l-3")
    wish = {} if start is None else {"from": start}
    assert (await made(stage, **wish))["health"]["position"] == position


async def test_it_begins_at_a_time(stage: Stage) -> None:
    """Every message published from then on, none before, wherever the log is cut."""
    await publish(stage, *(f"l-{n}" for n in range(9)))
    for n in range(9):
        await stage.connection.execute(
            "UPDATE bus.log SET published_at = $2 WHERE position = $1",
            n + 1,
            NOW + timedelta(minutes=n),
        )
    for minute, position in ((-5, 0), (0, 0), (0.5, 1), (4, 4), (8, 8), (8.5, 9), (99, 9)):
        moment = NOW + timedelta(minutes=minute)
        assert await reads.position_before(stage.connection, moment) == position
        one = await made(stage, **{"from": moment.isoformat()})
        assert one["health"]["position"] == position
    empty = await stage.connection.fetch("DELETE FROM bus.log RETURNING position")
    assert len(empty) == 9
    assert await reads.position_before(stage.connection, NOW) == 0


@pytest.mark.parametrize(
    ("wish", "field", "code"),
    [
        ({"url": "http://crm.example.com/"}, "url", "invalid-url"),
        ({"url": "https://127.0.0.1/"}, "url", "address-refused"),
        ({"url": "https://169.254.169.254/latest"}, "url", "address-refused"),
        ({"url": "https://localhost/"}, "url", "address-refused"),
        ({"url": "https://u:p@crm.example.com/"}, "url", "invalid-url"),
        ({"url": None}, "url", "invalid-request"),
        ({"connector": "hubspot"}, "url", "invalid-request"),
        ({"url": None, "connector": "nosuch"}, "connector", "unknown-connector"),
        ({"types": ["baton.stage.transitiond.v1"]}, "types", "unknown-event-type"),
        ({"filter": "lead.employes > 3"}, "filter", "invalid-filter"),
        ({"filter": "x" * 5000}, "filter", "invalid-filter"),
        ({"headers": {"webhook-id": "x"}}, "headers.webhook-id", "invalid-header"),
        ({"headers": {"Host": "x"}}, "headers.Host", "invalid-header"),
        ({"headers": {"x y": "x"}}, "headers.x y", "invalid-header"),
        ({"headers": {"x": "a\r\nb: c"}}, "headers.x", "invalid-header"),
        ({"headers": {"x": ""}}, "headers.x", "invalid-header"),
        ({"headers": {"x": "ü"}}, "headers.x", "invalid-header"),
        ({"headers": {"x": "1", "X": "2"}}, "headers", "invalid-header"),
        ({"headers": {f"x-{n}": "1" for n in range(21)}}, "headers", "too-many"),
        ({"contact": "nobody"}, "contact", "unknown-contact"),
        ({"name": ""}, "name", "invalid-request"),
        ({"name": "a\u0000b"}, "name", "invalid-request"),
        ({"timeout_s": 31}, "timeout_s", "invalid-request"),
        ({"timeout_s": 0}, "timeout_s", "invalid-request"),
        ({"concurrency": 0}, "concurrency", "invalid-request"),
        ({"concurrency": 65}, "concurrency", "invalid-request"),
        ({"rate_per_s": 0}, "rate_per_s", "invalid-request"),
        ({"payload": "fat"}, "payload", "invalid-request"),
        ({"from": 1}, "from", "invalid-request"),
        ({"from": -1}, "from", "invalid-request"),
        ({"from": "yesterday"}, "from", "invalid-request"),
        ({"secret": "whsec_c2hvcnQ="}, "secret", "invalid-request"),
        ({"signature": "v2"}, "signature", "invalid-request"),
        ({"colour": "red"}, "colour", "invalid-request"),
        ({"filter": "to == 'a\u0000'"}, "filter", "invalid-request"),
        ({"rate_per_s": 1e-300}, "rate_per_s", "invalid-request"),
        ({"from": "5"}, "from", "invalid-request"),
        ({"config": {"a": 1}}, "config", "invalid-request"),
        ({"credentials": {"a": "1"}}, "credentials", "invalid-request"),
        ({"url": None, "connector": "x", "config": {"a": "\u0000"}}, "config", "invalid-request"),
        ({"url": None, "connector": "x", "config": {"a": "x" * 20_000}}, "config", "invalid-request"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_refused_and_nothing_is_stored(
    stage: Stage, wish: dict[str, Any], field: str, code: str
) -> None:
    answer = await stage.client.post("/v1/subscriptions", json={"name": "CRM", "url": URL} | wish)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["code"] == code
    assert problem["field"].startswith(field)
    assert problem["remedy"]
    assert "c2hvcnQ" not in answer.text
    assert await stage.connection.fetchval("SELECT count(*) FROM stage.subscriptions") == 0


@pytest.mark.parametrize("scope", ["read", "ingest", "move"])
async def test_only_admins(stage: Stage, scope: str) -> None:
    """Whoever may read leads may not send them elsewhere."""
    one = await made(stage)
    _, key = await stage.new_key(scope)
    here = f"/v1/subscriptions/{one['id']}"
    asked = [
        ("GET", "/v1/subscriptions"), ("POST", "/v1/subscriptions"), ("GET", here), ("PATCH", here),
        ("DELETE", here), ("POST", f"{here}/pause"), ("POST", f"{here}/resume"), ("POST", f"{here}/test"),
        ("GET", f"{here}/secrets?reveal=true"), ("POST", f"{here}/secrets/rotate"),
        ("DELETE", f"{here}/secrets/{one['secrets'][0]['id']}"), ("GET", f"{here}/deliveries"),
        ("GET", f"{here}/deliveries/{one['id']}"), ("POST", f"{here}/deliveries/{one['id']}/resend"),
        ("POST", f"{here}/deliveries/{one['id']}/skip"), ("POST", f"{here}/resend"),
        ("POST", f"{here}/replay"),
    ]  # fmt: skip
    for method, path in asked:
        answer = await stage.client.request(
            method, path, headers={"authorization": f"Bearer {key}"}, json={}
        )
        assert answer.status_code == 403, (method, path, answer.text)
        assert one["secrets"][0]["secret"] not in answer.text


async def test_a_change_asks_for_the_version_that_was_read(stage: Stage) -> None:
    one = await made(stage, headers={"x-a": "1", "x-b": "2"}, contact="ae")
    here = f"/v1/subscriptions/{one['id']}"
    changed = await stage.client.patch(
        here, json={"name": "Warehouse", "headers": {"x-a": None, "x-c": "3"}, "contact": None,
                    "types": ["*"], "ordered": False}, headers={"if-match": '"1"'},
    )  # fmt: skip
    assert changed.status_code == 200, changed.text
    body = changed.json()
    assert changed.headers["etag"] == '"2"'
    assert body["header_names"] == ["x-b", "x-c"]
    assert (body["name"], body["contact"], body["types"], body["ordered"]) == (
        "Warehouse",
        None,
        ["*"],
        False,
    )
    assert body["url"] == URL
    stale = await stage.client.patch(here, json={"name": "X"}, headers={"if-match": '"1"'})
    assert stale.status_code == 412
    assert stale.json()["code"] == "changed-meanwhile"
    assert (await stage.client.delete(here, headers={"if-match": '"1"'})).status_code == 412
    refused = await stage.client.patch(here, json={"url": "https://10.0.0.1/"})
    assert refused.json()["code"] == "address-refused"
    assert (await stage.client.patch(here, json={"name": None})).status_code == 422
    now = (await stage.client.get(here)).json()
    assert now["version"] == 2
    assert now["url"] == URL


async def test_pausing_keeps_the_place_and_resuming_hurries(stage: Stage) -> None:
    await publish(stage, "l-1", "l-2")
    one = await made(stage, **{"from": 1})
    here = f"/v1/subscriptions/{one['id']}"
    later = datetime.now(UTC) + timedelta(hours=9)
    waits = await delivery(stage, one["id"], 2, "due", next_at=later)
    await stage.connection.execute("UPDATE stage.subscriptions SET failing_since = now()")
    paused = (await stage.client.post(f"{here}/pause", json={"reason": "CRM moves"})).json()
    assert (paused["state"], paused["state_reason"]) == ("paused", "CRM moves")
    assert paused["health"]["position"] == 1
    again = (await stage.client.post(f"{here}/pause")).json()
    assert again["version"] == paused["version"]
    test = await stage.client.post(f"{here}/test")
    assert test.status_code == 409
    resumed = (await stage.client.post(f"{here}/resume")).json()
    assert (resumed["state"], resumed["state_reason"]) == ("active", None)
    assert resumed["health"]["failing_since"] is None
    assert resumed["health"]["position"] == 1
    next_at = await stage.connection.fetchval(
        "SELECT next_at FROM stage.deliveries WHERE id = $1::uuid", waits
    )
    assert next_at <= datetime.now(UTC)


async def test_a_removed_subscription_is_gone_with_its_secrets(stage: Stage) -> None:
    one = await made(stage, headers={"x-a": "1"})
    here = f"/v1/subscriptions/{one['id']}"
    assert (await stage.client.delete(here)).status_code == 204
    for path in (here, f"{here}/deliveries", f"{here}/secrets"):
        assert (await stage.client.get(path)).status_code == 404
    assert (await stage.client.delete(here)).status_code == 404
    assert (await stage.client.get("/v1/subscriptions")).json()["items"] == []
    assert await stage.connection.fetchval("SELECT count(*) FROM stage.subscription_secrets") == 0
    assert await stage.connection.fetchval("SELECT headers FROM stage.subscriptions") is None


async def test_secrets_rotate_are_revealed_and_ended(stage: Stage) -> None:
    one = await made(stage)
    here = f"/v1/subscriptions/{one['id']}/secrets"
    new = (await stage.client.post(f"{here}/rotate", json={"signature": "v1a"})).json()
    assert new["secret"].startswith("whsk_")
    assert new["public_key"].startswith("whpk_")
    plain = (await stage.client.get(here)).json()["items"]
    assert [s["kind"] for s in plain] == ["v1a", "v1"]
    assert all(s["secret"] is None for s in plain)
    assert plain[1]["expires_at"] is not None
    revealed = await stage.client.get(f"{here}?reveal=true")
    assert revealed.headers["cache-control"] == "no-store"
    told = [s["secret"] for s in revealed.json()["items"]]
    assert told == [new["secret"], one["secrets"][0]["secret"]]
    actions = [a["action"] for a in (await stage.client.get("/v1/audit")).json()["items"]]
    assert actions[0] == "revealed"
    assert (await stage.client.delete(f"{here}/{plain[0]['id']}")).status_code == 404
    assert (await stage.client.delete(f"{here}/{plain[1]['id']}")).status_code == 204
    assert len((await stage.client.get(here)).json()["items"]) == 1
    assert (await stage.client.delete(f"{here}/nonsense")).status_code == 404


async def test_an_idempotency_key_makes_one_and_keeps_no_secret(stage: Stage) -> None:
    """The answer is kept a day for repeats; the secret in it is not, and so a repeat does not tell it."""
    wish = {"name": "CRM", "url": URL}
    key = {"idempotency-key": '"make-1"'}
    first = await stage.client.post("/v1/subscriptions", json=wish, headers=key)
    again = await stage.client.post("/v1/subscriptions", json=wish, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotency-replayed"] == "true"
    secret = first.json()["secrets"][0]["secret"]
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["secrets"][0]["secret"] is None
    stored = await stage.connection.fetchval("SELECT body FROM access.idempotency_keys")
    assert secret.encode() not in stored
    assert await stage.connection.fetchval("SELECT count(*) FROM stage.subscriptions") == 1
    here = f"/v1/subscriptions/{first.json()['id']}/secrets/rotate"
    turned = await stage.client.post(here, headers={"idempotency-key": '"turn-1"'})
    repeated = await stage.client.post(here, headers={"idempotency-key": '"turn-1"'})
    assert repeated.json() == turned.json() | {"secret": None}
    assert await stage.connection.fetchval("SELECT count(*) FROM stage.subscription_secrets") == 2


async def test_an_answer_that_was_lost_is_told_again_with_its_secret(stage: Stage) -> None:
    """Whoever died between the commit and the stored answer had told nobody."""
    wish = {"name": "CRM", "url": URL}
    key = {"idempotency-key": '"make-2"'}
    first = (await stage.client.post("/v1/subscriptions", json=wish, headers=key)).json()
    await stage.connection.execute(
        """UPDATE access.idempotency_keys SET status = NULL, body = NULL, content_type = NULL,
           claimed_until = '-infinity'"""
    )
    again = (await stage.client.post("/v1/subscriptions", json=wish, headers=key)).json()
    assert again["id"] == first["id"]
    assert again["secrets"] == first["secrets"]
    assert again["secrets"][0]["secret"]


async def test_without_a_key_to_seal_nothing_is_made(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        answer = await stage.client.post("/v1/subscriptions", json={"name": "CRM", "url": URL})
        assert answer.status_code == 409
        assert "BATON_ENCRYPTION_KEY" in answer.text
        assert await stage.connection.fetchval("SELECT count(*) FROM stage.subscriptions") == 0


async def test_another_key_shows_what_it_can_and_says_what_it_cannot(database_url: str) -> None:
    """A replica with the wrong key lists subscriptions, and does not pretend that they have no headers."""
    async with running_stage(database_url, encryption_key=a_key()) as stage:
        one = await made(stage, headers={"x-a": "1"})
    async with running_stage(database_url, encryption_key=a_key()) as stage:
        here = f"/v1/subscriptions/{one['id']}"
        assert (await stage.client.get(here)).json()["header_names"] is None
        for answer in (
            await stage.client.get(f"{here}/secrets?reveal=true"),
            await stage.client.patch(here, json={"name": "X"}),
        ):
            assert answer.status_code == 409, answer.text
            assert "BATON_ENCRYPTION_KEY_FILE" in answer.json()["remedy"]


async def test_deliveries_are_listed_filtered_and_paged(stage: Stage) -> None:
    await publish(stage, *(["l-1", "l-2"] * 3))
    one = await made(stage, **{"from": "beginning"})
    here = f"/v1/subscriptions/{one['id']}/deliveries"
    attempts = [{"number": 1, "at": "2026-11-24T12:00:00Z", "ok": False, "status": 503, "duration_ms": 4.5,
                 "reason": "answered 503", "response": "busy"}]  # fmt: skip
    ids = [
        await delivery(stage, one["id"], 1, "delivered", created_at=NOW - timedelta(hours=2)),
        await delivery(
            stage, one["id"], 2, "failed", "l-2", attempts=msgspec.json.encode(attempts).decode()
        ),
        await delivery(stage, one["id"], 3, "due"),
        await delivery(
            stage, one["id"], 4, "waiting", "l-2", event_type="baton.handoff.offered.v1"
        ),
    ]

    async def listed(**query: Any) -> list[str]:
        answer = await stage.client.get(here, params=query)
        assert answer.status_code == 200, answer.text
        return [d["id"] for d in answer.json()["items"]]

    assert await listed() == ids[::-1]
    assert await listed(state="failed") == [ids[1]]
    assert await listed(lead_id="l-2") == [ids[3], ids[1]]
    assert await listed(type="baton.handoff.offered.v1") == [ids[3]]
    assert await listed(to=(NOW - timedelta(hours=1)).isoformat()) == [ids[0]]
    assert await listed(**{"from": (NOW - timedelta(hours=1)).isoformat()}) == ids[:0:-1]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await stage.client.get(here, params=query)).json()
        seen += [d["id"] for d in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    whole = (await stage.client.get(f"{here}/{ids[1]}")).json()
    assert whole["attempts"] == attempts
    assert whole["body"]["data"]["lead"]["id"] == "l-2"
    assert whole["body"]["position"] == 2
    health = (await stage.client.get(f"/v1/subscriptions/{one['id']}")).json()["health"]
    assert health["pending"] == 2
    assert health["recent"] == {"delivered": 1, "failed": 1, "due": 1, "waiting": 1}
    assert health["last_success_at"] == "2026-11-24T12:00:00Z"
    assert health["lag"] == 6
    for bad in (f"{here}/{one['id']}", f"{here}/x", "/v1/subscriptions/x/deliveries"):
        assert (await stage.client.get(bad)).status_code == 404
    assert (await stage.client.get(here, params={"state": "lost"})).status_code == 422
    assert (await stage.client.get(here, params={"to": "0.5"})).status_code == 422


async def test_resend_skip_and_replay(stage: Stage) -> None:
    await publish(stage, *(["l-1", "l-2"] * 3))
    one = await made(stage, **{"from": "now"})
    here = f"/v1/subscriptions/{one['id']}"
    failed = await delivery(stage, one["id"], 1, "failed")
    due = await delivery(stage, one["id"], 2, "due", "l-2")
    waits = await delivery(stage, one["id"], 4, "waiting", "l-2")
    again = await stage.client.post(f"{here}/deliveries/{failed}/resend")
    assert again.json()["state"] == "due"
    refused = await stage.client.post(f"{here}/deliveries/{waits}/resend")
    assert refused.status_code == 409
    skipped = await stage.client.post(f"{here}/deliveries/{due}/skip")
    assert skipped.json()["state"] == "skipped"
    assert (await stage.client.post(f"{here}/deliveries/{due}/skip")).status_code == 409
    next_one = (await stage.client.get(f"{here}/deliveries/{waits}")).json()
    assert next_one["state"] == "due"
    old = await delivery(stage, one["id"], 3, "failed", created_at=NOW - timedelta(days=2))
    ranged = {
        "since": (NOW - timedelta(days=3)).isoformat(),
        "until": (NOW - timedelta(days=1)).isoformat(),
    }
    key = {"idempotency-key": '"range-1"'}
    for _ in range(2):
        answer = await stage.client.post(f"{here}/resend", json=ranged, headers=key)
        assert answer.json() == {"resent": 1}
    assert (await stage.client.get(f"{here}/deliveries/{old}")).json()["state"] == "due"
    for start, position in (("beginning", 0), (4, 4), ("2020-01-01T00:00:00Z", 0)):
        answer = await stage.client.post(f"{here}/replay", json={"from": start})
        assert answer.json()["position"] == position, answer.text
    assert answer.json()["run"] == 3
    assert (await stage.client.get(f"{here}/deliveries/{waits}")).json()["state"] == "skipped"
    past = await stage.client.post(f"{here}/replay", json={"from": 7})
    assert past.status_code == 422
    assert (await stage.client.post(f"{here}/replay", json={})).status_code == 422


async def test_a_test_event_is_queued_for_its_subscription_alone(stage: Stage) -> None:
    one, _ = await made(stage), await made(stage)
    here = f"/v1/subscriptions/{one['id']}"
    key = {"idempotency-key": '"test-1"'}
    first = (await stage.client.post(f"{here}/test", headers=key)).json()
    again = (await stage.client.post(f"{here}/test", headers=key)).json()
    assert again == first
    assert first["event_type"] == "baton.test.v1"
    assert first["lead_id"] is None
    assert first["state"] == "due"
    assert first["body"]["data"]["subscription_id"] == one["id"]
    assert await stage.connection.fetchval("SELECT count(*) FROM stage.deliveries") == 1


async def test_a_repeated_test_is_the_first_one_or_none(stage: Stage) -> None:
    """Its answer was lost: a repeat tells of that very test, and that it is gone once it was pruned."""
    one = await made(stage)
    here = f"/v1/subscriptions/{one['id']}/test"
    key = {"idempotency-key": '"test-2"'}
    first = (await stage.client.post(here, headers=key)).json()
    await stage.client.post(here)  # somebody else's, after it
    lost = """UPDATE access.idempotency_keys SET status = NULL, body = NULL, content_type = NULL,
              claimed_until = '-infinity'"""
    await stage.connection.execute(lost)
    assert (await stage.client.post(here, headers=key)).json() == first
    await stage.connection.execute(lost)
    await stage.connection.execute("DELETE FROM stage.deliveries")
    again = await stage.client.post(here, headers=key)
    assert (again.status_code, again.json()["field"]) == (404, "delivery_id")
    assert await stage.connection.fetchval("SELECT count(*) FROM stage.deliveries") == 0


async def test_the_operator_may_allow_what_is_refused(database_url: str) -> None:
    async with running_stage(
        database_url, encryption_key=a_key(), subscriptions_allow="127.0.0.0/8"
    ) as stage:
        assert (await made(stage, url="http://127.0.0.1:9000/hook"))["url"].startswith("http://")
        assert (await made(stage, url="http://localhost:9000/hook"))["state"] == "active"
        for url in ("http://crm.example.com/", "https://10.0.0.1/"):
            answer = await stage.client.post("/v1/subscriptions", json={"name": "CRM", "url": url})
            assert answer.status_code == 422


async def test_every_published_type_is_taken(stage: Stage) -> None:
    await made(stage, types=list(TYPES), payload="thin", ordered=False, rate_per_s=5)


async def test_answers_are_as_the_document_says(stage: Stage) -> None:
    """Generators make types of it: what is answered fits, and every part that it names is there."""
    document = (await stage.client.get("/openapi.json")).json()
    await publish(stage, "l-1")
    one = await made(stage, headers={"x-a": "1"}, signature="v1a", **{"from": "beginning"})
    here = f"/v1/subscriptions/{one['id']}"
    id = await delivery(stage, one["id"], 1, "failed", attempts='[{"number": 1, "ok": false}]')
    asked = [
        ("get", "/v1/subscriptions", "/v1/subscriptions", None),
        ("get", here, "/v1/subscriptions/{id}", None),
        ("patch", here, "/v1/subscriptions/{id}", {"name": "N"}),
        ("get", f"{here}/secrets", "/v1/subscriptions/{id}/secrets", None),
        ("post", f"{here}/secrets/rotate", "/v1/subscriptions/{id}/secrets/rotate", {}),
        ("get", f"{here}/deliveries", "/v1/subscriptions/{id}/deliveries", None),
        ("get", f"{here}/deliveries/{id}", "/v1/subscriptions/{id}/deliveries/{delivery_id}", None),
        ("post", f"{here}/deliveries/{id}/resend",
         "/v1/subscriptions/{id}/deliveries/{delivery_id}/resend", None),
        ("post", f"{here}/resend", "/v1/subscriptions/{id}/resend", {"since": "2026-01-01T00:00:00Z"}),
        ("post", f"{here}/replay", "/v1/subscriptions/{id}/replay", {"from": 0}),
        ("post", f"{here}/test", "/v1/subscriptions/{id}/test", None),
        ("post", f"{here}/pause", "/v1/subscriptions/{id}/pause", {}),
    ]  # fmt: skip
    for method, path, name, body in asked:
        answer = await stage.client.request(method, path, json=body)
        assert answer.status_code == 200, (path, answer.text)
        content = document["paths"][name][method]["responses"]["200"]["content"]
        schema = {**content["application/json"]["schema"], "components": document["components"]}
        checker = jsonschema.Draft202012Validator(schema)
        assert [e.message for e in checker.iter_errors(answer.json())] == [], path
        required = schema["components"]["schemas"]["SubscriptionWithSecrets"]["required"]
        assert "id" in required
