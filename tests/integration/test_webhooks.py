"""Deliveries over HTTP: what is authentic is applied or kept whole, what is not is refused."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
import pytest
from hubspot.utils.signature import Signature

from services.baton.embedded import EmbeddedPostgres
from services.baton.sources import remove_secrets, set_secret
from services.contracts.access import create_key
from services.stage_service import quarantine
from services.stage_service.encryption import read_cipher
from services.stage_service.source_secrets import SourceSecrets
from tests.integration.stage import ROOT, Stage, fresh_database, running_stage

SECRET = "a-secret-of-hubspots-app"
URL = "http://stage.test/webhooks/hubspot"
CREATED = {
    "eventId": 1, "subscriptionId": 2, "portalId": 3, "appId": 4, "occurredAt": 1782371969536,
    "subscriptionType": "contact.creation", "attemptNumber": 0, "objectId": 508369434347,
    "changeFlag": "CREATED", "changeSource": "CRM_UI", "sourceId": "userId:1",
}  # fmt: skip


@pytest.fixture(scope="module")
def module_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
async def stage(module_database: str) -> AsyncIterator[Stage]:
    secrets = {"hubspot": ["an-old-secret", SECRET], "generic": ["generic-secret-0123456789"]}
    async with running_stage(module_database, source_secrets=secrets) as it:
        yield it


def signed(body: bytes, *, secret: str = SECRET, at: float | None = None, url: str = URL) -> Any:
    """Headers of a HubSpot delivery, signed by HubSpot's own library."""
    timestamp = str(int((time.time() if at is None else at) * 1000))
    signature = Signature.get_signature(
        secret, body.decode(), "v3", url, "POST", timestamp
    )  # fmt: skip
    return {"x-hubspot-signature-v3": signature, "x-hubspot-request-timestamp": timestamp}


async def deliver(stage: Stage, body: bytes, headers: dict[str, str]) -> httpx.Response:
    """Post a delivery as HubSpot does: without any API key."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(stage.app, raise_app_exceptions=False), base_url=stage.url
    ) as client:
        return await client.post(
            "/webhooks/hubspot", content=body, headers={"content-type": "application/json"} | headers
        )  # fmt: skip


async def test_what_hubspots_library_signs_is_applied_once(stage: Stage) -> None:
    body = json.dumps([CREATED, CREATED | {"eventId": 2, "subscriptionType": "ticket.creation"}])
    headers = signed(body.encode())
    answer = await deliver(stage, body.encode(), headers)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "success": True, "applied": 1, "duplicate": 0, "quarantined": 0, "ignored": 1
    }  # fmt: skip
    again = await deliver(stage, body.encode(), headers)  # the same signed delivery, replayed
    assert again.json()["duplicate"] == 1
    retried = json.dumps([CREATED | {"attemptNumber": 1}]).encode()
    assert (await deliver(stage, retried, signed(retried))).json()["duplicate"] == 1
    stored = await stage.stored("/sources/hubspot", "3-2-1-1782371969536-508369434347-")
    assert stored is not None
    assert stored["data"]["external_ids"] == {"hubspot": 508369434347}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"at": -301.0}, "too far from now"),
        ({"at": 301.0}, "too far from now"),
        ({"secret": "another"}, "not the right one"),
        ({"url": "http://elsewhere.test/webhooks/hubspot"}, "not the right one"),
    ],
)
async def test_what_is_not_authentic_is_refused(
    stage: Stage, change: dict[str, Any], why: str
) -> None:
    body = json.dumps([CREATED | {"eventId": 77}]).encode()
    if "at" in change:
        change = change | {"at": time.time() + change["at"]}
    answer = await deliver(stage, body, signed(body, **change))
    assert answer.status_code == 401
    assert why in answer.json()["message"]
    assert await stage.stored("/sources/hubspot", "3-2-77-1782371969536-508369434347-") is None


async def test_an_older_secret_counts_until_it_is_removed(stage: Stage) -> None:
    body = json.dumps([CREATED | {"eventId": 5}]).encode()
    assert (await deliver(stage, body, signed(body, secret="an-old-secret"))).status_code == 200


async def test_what_cannot_be_mapped_is_kept_whole(stage: Stage) -> None:
    """The good event of a delivery is applied, the delivery is kept for the other one."""
    odd = {"subscriptionType": "unheard.of", "occurredAt": "yesterday"}
    body = json.dumps([CREATED | {"eventId": 6}, odd]).encode()
    for times in (1, 2):
        answer = await deliver(stage, body, signed(body))
        assert answer.status_code == 200
        assert answer.json()["quarantined"] == 1
        row = await stage.connection.fetchrow(
            "SELECT * FROM stage.quarantine WHERE body = $1", body
        )
        assert row["times"] == times
        assert json.loads(row["reasons"])[0]["item"] == 1
        assert "signature" not in row["headers"]
        assert row["content_type"] == "application/json"


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"[", b"null", b"{}", b'[{"a": NaN}]', b"[" * 5000, b'["x", 3, null]'],
)
async def test_an_authentic_delivery_that_cannot_be_read_is_kept(stage: Stage, body: bytes) -> None:
    timestamp = str(int(time.time() * 1000))
    content = b"POST" + URL.encode() + body + timestamp.encode()
    digest = hmac.digest(SECRET.encode(), content, hashlib.sha256)
    answer = await deliver(
        stage, body,
        {"x-hubspot-signature-v3": base64.b64encode(digest).decode(),
         "x-hubspot-request-timestamp": timestamp},
    )  # fmt: skip
    assert answer.status_code == 200
    assert answer.json()["quarantined"] >= 1
    kept = "SELECT count(*) FROM stage.quarantine WHERE body = $1"
    assert await stage.connection.fetchval(kept, body) == 1


async def test_unknown_sources_and_methods(stage: Stage) -> None:
    answer = await stage.client.post("/webhooks/nobody", content=b"{}")
    assert answer.status_code == 404
    assert answer.json()["code"] == "not-found"
    answer = await stage.client.get("/webhooks/hubspot")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


async def test_a_baton_key_stands_in_for_a_signature(stage: Stage) -> None:
    body = {"event": "Demo Requested", "email": "Ada@Example.com", "event_id": "z-1"}
    answer = await stage.client.post("/webhooks/generic", json=body)
    assert answer.status_code == 200, answer.text
    stored = await stage.stored("/sources/generic", "z-1")
    assert stored is not None
    assert stored["type"] == "demo.requested"
    _, read_only = await stage.new_key("read")
    headers = {"authorization": f"Bearer {read_only}"}
    answer = await stage.client.post("/webhooks/generic", json=body, headers=headers)
    assert answer.status_code == 403


async def test_what_happens_next_to_a_contact_is_no_repeat(stage: Stage) -> None:
    """Most tools send the contact's or the row's id: the next fact about it has the same one."""
    ada = {"id": 77, "email": "next@example.com"}
    facts = [{**ada, "event": "Form Submitted"}, {**ada, "event": "Demo Requested"}]
    answers = [await stage.client.post("/webhooks/generic", json=fact) for fact in facts]
    assert [a.json()["applied"] for a in answers] == [1, 1]
    again = await stage.client.post("/webhooks/generic", json=facts[0])
    assert again.json()["duplicate"] == 1


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda b: zlib.compress(b)[2:-4]),
        ("gzip", lambda b: gzip.compress(b[:9]) + gzip.compress(b[9:])),
    ],
)
async def test_packed_bodies(stage: Stage, encoding: str, pack: Any) -> None:
    body = pack(json.dumps({"type": "demo.requested", "email": "p@example.com"}).encode())
    headers = {"content-encoding": encoding, "content-type": "application/x-www-form-urlencoded"}
    answer = await stage.client.post("/webhooks/generic", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["applied"] + answer.json()["duplicate"] == 1


@pytest.mark.parametrize("path", ["/webhooks/generic", "/v1/events"])
async def test_a_bomb_is_refused(stage: Stage, path: str) -> None:
    bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    answer = await stage.client.post(path, content=bomb, headers={"content-encoding": "gzip"})
    assert answer.status_code == 413
    torn = gzip.compress(b"{}" * 1000)[:-9]
    answer = await stage.client.post(path, content=torn, headers={"content-encoding": "gzip"})
    assert answer.status_code == 400
    answer = await stage.client.post(path, content=b"x", headers={"content-encoding": "br"})
    assert answer.status_code == 415


async def kept(stage: Stage, *bodies: dict[str, Any]) -> list[str]:
    """Quarantine deliveries of the source generic, and give their ids, oldest first."""
    for body in bodies:
        answer = await stage.client.post("/webhooks/generic", json=body)
        assert answer.status_code == 200
        assert answer.json()["quarantined"] == 1
    listed = await stage.client.get("/v1/quarantine", params={"source": "generic"})
    assert listed.status_code == 200
    ids = [item["id"] for item in listed.json()["items"]][: len(bodies)]
    return ids[::-1]


async def test_a_mended_source_file_and_a_replay(module_database: str, tmp_path: Path) -> None:
    """Dry run first, then applied once, however often it is replayed."""
    text = (ROOT / "sources" / "generic.yaml").read_text()
    file = tmp_path / "generic.yaml"
    file.write_text(text.replace("of: coalesce(item.type,", "of: coalesce(item.kind,"))
    async with running_stage(module_database, sources_dir=tmp_path) as stage:
        unknown = {"what": "demo.requested", "event_id": "mend-1", "email": "mend@example.com"}
        (id,) = await kept(stage, unknown)
        path = f"/v1/quarantine/{id}"
        whole = (await stage.client.get(path)).json()
        assert json.loads(whole["body"]) == unknown
        assert whole["reasons"][0]["code"] == "no-type"
        assert "authorization" not in whole["headers"]

        answer = await stage.client.post(f"{path}/replay", json={})
        assert answer.json()["dry_run"] is True
        assert answer.json()["mapped"]["events"] == []

        file.write_text(text.replace("of: coalesce(item.type,", "of: coalesce(item.what,"))
        # The file counts at once for who replays, without waiting for the next look.
        dry = (await stage.client.post(f"{path}/replay", json={"dry_run": True})).json()
        assert dry["mapped"]["events"][0]["type"] == "demo.requested"
        assert dry["status"] == "open"
        assert await stage.stored("/sources/generic", "mend-1") is None

        done = (await stage.client.post(f"{path}/replay", json={"dry_run": False})).json()
        assert done["status"] == "replayed"
        assert [r["status"] for r in done["results"]] == ["applied"]
        stored = await stage.stored("/sources/generic", "mend-1")
        assert stored is not None
        again = await stage.client.post(f"{path}/replay", json={"dry_run": False})
        assert again.status_code == 409
        # The vendor sends it once more: the same event, no second effect.
        answer = await stage.client.post("/webhooks/generic", json=unknown)
        assert answer.json()["duplicate"] == 1


async def test_all_of_a_source_are_replayed_and_one_is_discarded(stage: Stage) -> None:
    ids = await kept(stage, {"a": 1, "email": "q@example.com"}, {"a": 2, "email": "r@example.com"})
    assert (await stage.client.post(f"/v1/quarantine/{ids[0]}/discard")).status_code == 200
    assert (await stage.client.post(f"/v1/quarantine/{ids[0]}/discard")).status_code == 409
    answer = await stage.client.post(
        "/v1/quarantine/replay", json={"source": "generic", "dry_run": False}
    )
    body = answer.json()
    assert ids[1] in [item["id"] for item in body["items"]]
    assert ids[0] not in [item["id"] for item in body["items"]]
    assert body["counts"]["still_quarantined"] == body["counts"]["deliveries"]
    answer = await stage.client.post("/v1/quarantine/replay", json={"source": "genric"})
    assert (answer.status_code, answer.json()["detail"]) == (404, "there is no source 'genric'")


async def test_a_repeated_discard_is_answered_alike(stage: Stage) -> None:
    """Idempotency-Key: who did not hear the first answer hears it, not that it is done already."""
    (id,) = await kept(stage, {"once": 1})
    path, key = f"/v1/quarantine/{id}/discard", {"idempotency-key": '"discard-once"'}
    first = await stage.client.post(path, headers=key)
    again = await stage.client.post(path, headers=key)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"


async def test_the_newest_are_found_without_reading_all(stage: Stage) -> None:
    """Whatever lies in quarantine, a page of it is read from the index."""
    plans: list[str] = []

    class Explained:
        async def fetch(self, query: str, *args: Any) -> list[Any]:
            rows = await stage.house.pool.fetch(f"EXPLAIN {query}", *args)
            plans.append("\n".join(row[0] for row in rows))
            return []

        async def execute(self, query: str, *args: Any) -> str:
            raise AssertionError(query)

    await quarantine.list_kept(Explained(), source=None)
    await quarantine.list_kept(Explained(), source="generic", before=str(uuid.uuid4()))
    await SourceSecrets({}, read_cipher(None, None)).refresh(Explained())
    assert len(plans) == 3
    for plan in plans:
        assert "(id)::text" not in plan, plan  # sorted by the text: all of them, at every look
        assert "Seq Scan" not in plan, plan


async def test_quarantine_is_for_admins_and_knows_its_ids(stage: Stage) -> None:
    _, token = await stage.new_key("read", "move", "ingest")
    headers = {"authorization": f"Bearer {token}"}
    for method, path in (
        ("GET", "/v1/quarantine"), ("GET", "/v1/quarantine/x"),
        ("POST", "/v1/quarantine/x/replay"), ("POST", "/v1/quarantine/x/discard"),
        ("POST", "/v1/quarantine/replay"),
    ):  # fmt: skip
        answer = await stage.client.request(method, path, headers=headers, json={})
        assert answer.status_code == 403, path
    assert (await stage.client.get("/v1/quarantine/x")).status_code == 404
    unknown = "01234567-89ab-7def-8123-456789abcdef"
    answer = await stage.client.post(f"/v1/quarantine/{unknown}/replay", json={})
    assert answer.status_code == 404


async def test_segment_calls(stage: Stage) -> None:
    """A write key by basic user name, a call that says by its path what it is, exactly 200."""
    _, key = await stage.new_key("ingest")
    auth = httpx.BasicAuth(key, "")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(stage.app), base_url=stage.url, auth=auth
    ) as client:
        call = {"userId": "u-1", "traits": {"email": "seg@example.com"}, "messageId": "sg-1"}
        answer = await client.post("/v1/identify", json=call)
        assert (answer.status_code, answer.json()) == (200, {"success": True})
        track = {"userId": "u-1", "event": "Demo Requested", "messageId": "sg-2"}
        packed = gzip.compress(json.dumps({"batch": [track | {"type": "track"}]}).encode())
        headers = {"content-encoding": "gzip", "content-type": "application/x-www-form-urlencoded"}
        answer = await client.post("/v1/batch", content=packed, headers=headers)
        assert answer.status_code == 200
        hour_slow = datetime.now(UTC) - timedelta(hours=1)
        page = {"type": "page", "messageId": "sg-3", "userId": "u-1",
                "timestamp": (hour_slow - timedelta(seconds=5)).isoformat()}  # fmt: skip
        body = {"batch": [page], "sentAt": hour_slow.isoformat()}
        assert (await client.post("/rudderstack/v1/batch", json=body)).status_code == 200
        assert (await client.get("/v1/batch")).status_code == 405
    identified = await stage.stored("/sources/segment", "sg-1")
    demo = await stage.stored("/sources/segment", "sg-2")
    viewed = await stage.stored("/sources/rudderstack", "sg-3")
    assert identified is not None
    assert identified["type"] == "lead.identified"
    assert demo is not None
    assert demo["type"] == "demo.requested"
    assert demo["lead_id"] == identified["lead_id"]
    assert viewed is not None
    # The sender's clock is an hour slow: the view was five seconds ago.
    assert timedelta(seconds=4) < viewed["recorded_at"] - viewed["time"] < timedelta(seconds=9)


@pytest.mark.parametrize("authorization", [None, "Basic ====", "Basic d3JvbmcGOg==", "Bearer x"])
async def test_segment_errors_are_what_its_clients_read(
    stage: Stage, authorization: str | None
) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(stage.app), base_url=stage.url
    ) as client:
        headers = {"authorization": authorization} if authorization else {}
        answer = await client.post("/v1/batch", json={"batch": []}, headers=headers)
    assert answer.status_code == 401
    assert {"code", "message"} <= set(answer.json())


async def test_nothing_is_accepted_while_the_database_is_slow(stage: Stage) -> None:
    """503 with an integer Retry-After within 3 s, for what can be mapped and for what cannot."""
    async with stage.connection.transaction():
        await stage.connection.execute("LOCK TABLE stage.events, stage.quarantine")
        began = time.monotonic()
        answers = await asyncio.gather(
            *(
                stage.client.post("/webhooks/generic", json=body)
                for body in (
                    {"type": "demo.requested", "email": "slow@example.com"},
                    {"odd": "slow"},
                )
            )
        )
        assert time.monotonic() - began < 3
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert answer.headers["retry-after"].isdigit()
        assert {"code", "message"} <= set(answer.json())


async def test_a_key_that_cannot_be_looked_up_in_time_is_not_refused(stage: Stage) -> None:
    """503, so that the sender comes again; within 3 s, as when the events wait."""
    _, token = await stage.new_key("ingest")
    async with stage.connection.transaction():
        await stage.connection.execute("LOCK TABLE access.keys")
        began = time.monotonic()
        answers = await asyncio.gather(*(
            stage.client.post(path, json={"type": "a.b"}, headers={"authorization": f"Bearer {token}"})
            for path in ("/v1/events", "/v1/track", "/webhooks/generic")
        ))  # fmt: skip
        assert time.monotonic() - began < 3
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert answer.headers["retry-after"].isdigit()


async def test_a_delivery_that_is_kept_and_applied_is_answered_in_time_too(
    stage: Stage, module_database: str
) -> None:
    """Both waits together: the vendor has given up after 3 s."""
    other = await asyncpg.connect(module_database)
    async with other.transaction():
        await other.execute("LOCK TABLE stage.events")
        kept = stage.connection.transaction()
        await kept.start()
        await stage.connection.execute("LOCK TABLE stage.quarantine")
        began = time.monotonic()
        body = [{"type": "demo.requested", "email": "both@example.com"}, {"odd": "both"}]
        task = asyncio.create_task(stage.client.post("/webhooks/generic", json=body))
        await asyncio.wait({task}, timeout=1.5)
        await kept.rollback()
        answer = await task
        assert time.monotonic() - began < 3
    assert answer.status_code == 503, answer.text
    again = await stage.client.post("/webhooks/generic", json=body)
    assert again.json()["applied"] + again.json()["duplicate"] == 1
    await other.close()


async def test_handshakes_and_answers(module_database: str, tmp_path: Path) -> None:
    """GET and HEAD with a token in the path, challenges echoed, the vendor's own answer."""
    head = "title: X\nevidence: real samples\nread: json\n"
    event = "events:\n  - {type: a.b, id: '{item.id}'}\n"
    (tmp_path / "token.yaml").write_text(
        f"name: token\n{head}verify: [{{token: path}}]\n{event}"
        "handshakes:\n  - {method: GET, body: hello}\n"
        "answer: {status: 202, content_type: text/xml, body: '<Ack>true</Ack>'}\n"
    )
    (tmp_path / "echo.yaml").write_text(
        f"name: echo\n{head}verify: [bearer]\n{event}handshakes:\n"
        "  - {method: GET, verify: false, when: 'query[\"hub.challenge\"] != null',"
        " body: \"{query['hub.challenge']}\"}\n"
        "  - {method: POST, when: delivery.type == 'url_verification', body: '{delivery.challenge}'}\n"
    )
    (tmp_path / "broken.yaml").write_text("name: broken\n")
    secrets = {"token": "a-token-of-22-characters", "echo": "s3cret"}
    async with running_stage(
        module_database, sources_dir=tmp_path, source_secrets=secrets
    ) as stage, httpx.AsyncClient(
        transport=httpx.ASGITransport(stage.app), base_url=stage.url
    ) as client:  # fmt: skip
        good = "/webhooks/token/a-token-of-22-characters"
        assert (await client.get(good)).text == "hello"
        head_answer = await client.head(good)
        assert (head_answer.status_code, head_answer.text) == (200, "")
        assert (await client.get("/webhooks/token/another")).status_code == 401
        assert (await client.post("/webhooks/token", json={"id": 1})).status_code == 401
        answer = await client.post(good, json={"id": 1})
        assert (answer.status_code, answer.text) == (202, "<Ack>true</Ack>")

        answer = await client.get("/webhooks/echo?hub.challenge=<b>1</b>")
        assert (answer.status_code, answer.text) == (200, "<b>1</b>")
        assert answer.headers["content-type"] == "text/plain"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert (await client.get("/webhooks/echo")).status_code == 405
        challenge = {"type": "url_verification", "challenge": "c-1"}
        assert (await client.post("/webhooks/echo", json=challenge)).status_code == 401
        bearer = {"authorization": "Bearer s3cret"}
        answer = await client.post("/webhooks/echo", json=challenge, headers=bearer)
        assert answer.text == "c-1"
        # Its file is being mended: the vendor is to try again.
        assert (await client.post("/webhooks/broken", json={})).status_code == 503


async def test_stored_secrets_count_and_are_sealed(module_database: str, tmp_path: Path) -> None:
    """Set with the command, used by the service, unreadable in the database."""
    key = base64.b64encode(b"k" * 32).decode()
    cipher = read_cipher(key, None)
    (tmp_path / "sealed.yaml").write_text(
        "name: sealed\ntitle: X\nevidence: real samples\nread: json\nverify: [bearer]\n"
        "events:\n  - {type: a.b, id: '{item.id}'}\n"
    )
    await set_secret(module_database, cipher, "sealed", "first-canary-secret", keep=False)
    await set_secret(module_database, cipher, "sealed", "second-canary-secret", keep=True)
    async with running_stage(module_database, sources_dir=tmp_path, encryption_key=key) as stage:
        for secret, status in (
            ("first-canary-secret", 200), ("second-canary-secret", 200), ("third", 401)
        ):  # fmt: skip
            answer = await stage.client.post(
                "/webhooks/sealed", json={"id": 1}, headers={"authorization": f"Bearer {secret}"}
            )
            assert answer.status_code == status
        rows = await stage.connection.fetch("SELECT * FROM stage.source_secrets")
        assert b"canary" not in b"".join(r["ciphertext"] for r in rows)
        # Copied to another row or source it is nothing.
        await stage.connection.execute("UPDATE stage.source_secrets SET source = 'generic'")
        fresh = SourceSecrets({}, cipher)
        await fresh.refresh(stage.connection)
        assert fresh.of("generic") == ()
    assert await remove_secrets(module_database, "generic") == 2


async def test_the_pages_of_quarantine(stage: Stage) -> None:
    """List, delivery, dry run, replay and discard, as a browser without a script asks for them."""
    (id,) = await kept(stage, {"<b>odd</b>": 1, "email": "page@example.com"})
    listed = await stage.client.get("/quarantine")
    assert f"/quarantine/{id}" in listed.text
    shown = await stage.client.get(f"/quarantine/{id}")
    assert "&lt;b&gt;odd" in shown.text
    assert "gives no type" in shown.text
    dry = await stage.client.get(f"/quarantine/{id}?dry=true")
    assert "1 item still amiss" in dry.text
    replayed = await stage.client.post(f"/quarantine/{id}/replay")
    assert replayed.headers["location"] == f"/quarantine/{id}"
    discarded = await stage.client.post(f"/quarantine/{id}/discard")
    assert discarded.status_code == 303
    again = await stage.client.post(f"/quarantine/{id}/discard")
    assert again.status_code == 409
    assert "discarded already" in again.text
    _, reader = await stage.new_key("read")
    headers = {"authorization": f"Bearer {reader}"}
    assert (await stage.client.get("/quarantine", headers=headers)).status_code == 403
    assert "/quarantine" not in (await stage.client.get("/leads", headers=headers)).text


async def test_a_key_that_is_bound_to_a_source_says_which_it_is(stage: Stage) -> None:
    """And ingests for no other one."""
    _, key = await create_key(
        stage.connection, "rudder", ["ingest"], sources=["rudderstack"], rate="3/h"
    )
    call = {"userId": "b-1", "messageId": "bound-1", "traits": {"email": "bound@example.com"}}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(stage.app), base_url=stage.url, auth=httpx.BasicAuth(key, "")
    ) as client:
        assert (await client.post("/v1/identify", json=call)).status_code == 200
        assert await stage.stored("/sources/rudderstack", "bound-1") is not None
        assert (await client.post("/segment/v1/identify", json=call)).status_code == 403
        assert (await client.post("/webhooks/generic", json=call)).status_code == 403
        limited = await client.post("/v1/identify", json=call)
    assert limited.status_code == 429
    assert limited.headers["retry-after"].isdigit()
    assert {"code", "message"} <= set(limited.json())


async def test_the_public_address_is_what_hubspot_signs(module_database: str) -> None:
    """Behind a proxy the service sees another host; what was signed for it is not signed for us."""
    public = "https://leads.example.com"
    async with running_stage(
        module_database, source_secrets={"hubspot": SECRET}, public_url=public
    ) as stage:
        body = json.dumps([CREATED | {"eventId": 900}]).encode()
        right = signed(body, url=f"{public}/webhooks/hubspot")
        assert (await deliver(stage, body, right)).status_code == 200
        assert (await deliver(stage, body, signed(body))).status_code == 401
    async with running_stage(
        module_database, source_secrets={"hubspot": SECRET}, public_url="http://127.0.0.1:8080"
    ) as stage:
        assert (await deliver(stage, body, signed(body))).status_code == 200


async def test_what_authenticates_is_not_kept(module_database: str, tmp_path: Path) -> None:
    """Neither in quarantine, whatever the header or field is called, nor in the answer."""
    canary = "canary-token%41-0123456789"
    escaped = quote(canary)
    (tmp_path / "odd.yaml").write_text(
        "name: odd\ntitle: X\nevidence: real samples\nread: json\n"
        "verify: [{token: {query: k}}, {token: {header: X-Odd}}, {token: path}]\n"
        "events:\n  - {type: a.b, id: '{item.id}'}\n"
    )
    async with running_stage(
        module_database, sources_dir=tmp_path, source_secrets={"odd": canary}
    ) as stage:
        for number, (path, headers) in enumerate((
            (f"/webhooks/odd?k={escaped}&list=7", {"x-original-uri": f"/webhooks/odd?k={escaped}"}),
            ("/webhooks/odd", {"x-odd": canary, "idempotency-key": "delivery-7"}),
            (f"/webhooks/odd/{escaped}", {"x-envoy-original-path": f"/webhooks/odd/{escaped}"}),
        )):  # fmt: skip
            answer = await stage.client.post(path, json={"n": number}, headers=headers)
            assert answer.status_code == 200, answer.text
            assert canary not in answer.text
        rows = await stage.connection.fetch(
            "SELECT * FROM stage.quarantine WHERE source = 'odd' ORDER BY id"
        )
        assert len(rows) == 3
        written = str([dict(row) for row in rows])
        assert canary not in written
        assert escaped not in written
        assert json.loads(rows[0]["query"]) == {"list": "7"}
        assert json.loads(rows[1]["headers"])["idempotency-key"] == "delivery-7"
        assert canary not in (await stage.client.get("/metrics")).text
