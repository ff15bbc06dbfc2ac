"""Deliveries over HTTP: what is authentic is applied or kept whole, what is not is refused."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import time
import zlib
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.baton.sources import remove_secrets, set_secret
from services.stage_service.encryption import read_cipher
from services.stage_service.source_secrets import SourceSecrets
from tests.integration.stage import Stage, running_stage
from tests.integration.vendor import CREATED, SECRET, deliver, module_database, signed, stage

__all__ = ["module_database", "stage"]


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
