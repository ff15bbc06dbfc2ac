"""Quarantine over HTTP: what could not be mapped is kept whole, mended and replayed, or discarded."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from services.stage_service import quarantine
from services.stage_service.encryption import read_cipher
from services.stage_service.source_secrets import SourceSecrets
from tests.integration.stage import ROOT, Stage, running_stage
from tests.integration.vendor import CREATED, SECRET, URL, deliver, module_database, signed, stage

__all__ = ["module_database", "stage"]


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
