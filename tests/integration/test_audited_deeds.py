"""Every deed of tests/contracts/audited.py is done once: its entry is there, and has no secret."""

from __future__ import annotations

import time
import urllib.parse
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.baton import access as keys
from services.baton.audit import verify_database
from services.baton.sources import remove_secrets, set_secret
from services.contracts import access
from services.contracts.links import ANSWER, SEEN, Links
from services.notifier.app import create_app
from services.stage_service.encryption import read_cipher
from tests.conftest import ROOT
from tests.contracts.audited import ROUTES
from tests.integration.stage import MadeUpTime, Stage, running_stage
from tests.integration.test_answer_links import KEY, TEAM
from tests.integration.test_handoffs_api import listed, tell, waiting
from tests.integration.test_notifier_api import Served, serve, settings, transition
from tests.integration.test_notifier_callbacks import SECRET, pressed, signed
from tests.integration.test_subscriptions_api import a_key

URL = "https://crm.example.com/hooks/hush-hush-path?token=hush-hush-query"
PLANTED = "hush-hush"
REASON = "Ms Secretive has no budget"


class Deeds:
    """Does deeds by their route, and looks at what the audit says of each."""

    def __init__(
        self, service: str, client: httpx.AsyncClient, connection: asyncpg.Connection[Any]
    ) -> None:
        self.service, self.client, self.connection = service, client, connection
        self.done: set[tuple[str, str, str]] = set()

    async def do(
        self, method: str, template: str, ids: dict[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """Do it; gives the answer. What it adds to the audit is what the table says, by this key."""
        route = (self.service, method, template)
        before = await self.connection.fetchval("SELECT seq FROM audit.head")
        answer = await self.client.request(method, template.format(**(ids or {})), **options)
        assert answer.status_code < 400, f"{route}: {answer.text}"
        added = await self.connection.fetch(
            "SELECT action, actor, via FROM audit.entries WHERE seq > $1", before
        )
        actions = {row["action"] for row in added}
        assert actions, f"{route} left no entry"
        assert actions <= set(ROUTES[route]), route
        self.done.add(route)
        return answer

    def missing(self) -> set[tuple[str, str, str]]:
        """The routes of the service that were not done."""
        return {route for route in ROUTES if route[0] == self.service} - self.done


async def nothing_planted(connection: asyncpg.Connection[Any], *words: str) -> None:
    """No entry holds one of `words`, in whatever column."""
    text = str([tuple(row) for row in await connection.fetch("SELECT * FROM audit.entries")])
    assert text != "[]"
    for word in words:
        assert word not in text


async def of_leads(deeds: Deeds, stage: Stage) -> None:
    """Moves, assignments, answers and merges, by the API, the pages and a link."""
    lead = await tell(stage, "ada", "demo.requested")
    to = {"to": "nurture", "reason": REASON}
    await deeds.do("POST", "/v1/leads/{id}/transitions", {"id": lead}, json=to)
    await deeds.do(
        "POST", "/leads/{id}/move", {"id": lead}, data={"to": "mql", "reason": REASON, "force": "1"}
    )
    give = {"role": "ae", "person": "beth", "reason": REASON, "actor": "Somebody Else"}
    await deeds.do("POST", "/v1/leads/{id}/assign", {"id": lead}, json=give)
    said = await deeds.connection.fetchrow(
        "SELECT actor, via, on_behalf_of, after FROM audit.entries WHERE action = 'assigned'"
    )
    assert tuple(said)[:3] == ("test", "key", "Somebody Else")
    assert '"owner":"beth"' in said["after"]
    for merge, unmerge, name in (
        ("/v1/leads/{id}/merge", "/v1/leads/{id}/unmerge", "bob"),
        ("/leads/{id}/merge", "/leads/{id}/unmerge", "cyd"),
    ):
        other = await tell(stage, name, "page.viewed")
        how = "json" if merge.startswith("/v1") else "data"
        form: dict[str, Any] = {how: {"lead": other, "reason": REASON}}
        await deeds.do("POST", merge, {"id": lead}, **form)
        if how == "data":
            id = await deeds.connection.fetchval(
                "SELECT id::text FROM stage.merges WHERE undone_at IS NULL"
            )
            form = {how: {"merge_id": id, "reason": REASON}}
        await deeds.do("POST", unmerge, {"id": lead}, **form)


async def of_handoffs(deeds: Deeds, stage: Stage) -> None:
    """Answers: by the API, by the page, by a signed link."""
    for name, said in (("dan", "accept"), ("eve", "reject")):
        item = await waiting(stage, name)
        body = {"reason": REASON} if said == "reject" else {}
        await deeds.do("POST", "/v1/handoffs/{id}/" + said, {"id": item["id"]}, json=body)
    item = await waiting(stage, "fay")
    await deeds.do(
        "POST", "/handoffs/{id}/{deed}", {"id": item["id"], "deed": "reject"},
        data={"words": REASON},
    )  # fmt: skip
    item = await waiting(stage, "gus")
    person = item["person"]["id"]
    links = Links(ANSWER, KEY, "https://baton.example/", 7 * 86_400)
    token = links.token(uuid.UUID(item["id"]), person, stage.house.now())
    await deeds.do("POST", "/answer/{token}", {"token": token}, data={"answer": "accept"})
    entry = await deeds.connection.fetchrow(
        "SELECT actor, via, kind, subject FROM audit.entries ORDER BY seq DESC LIMIT 1"
    )
    assert tuple(entry) == (person, "link", "handoff", item["id"])
    assert await listed(stage, state="accepted")


async def of_people(deeds: Deeds) -> None:
    """The roster."""
    hook = f"slack://T/{PLANTED}"
    nina = {"name": "Nina", "roles": ["csm"], "channels": ["inbox", hook]}
    await deeds.do("PUT", "/v1/people/{id}", {"id": "nina"}, json=nina)
    csv = f"id,name,roles,channels\notto,Otto,csm,{hook}\npia,Pia,csm,inbox\n"
    await deeds.do("POST", "/v1/people/import", content=csv)
    await deeds.do("DELETE", "/v1/people/{id}", {"id": "otto"})
    await deeds.do("POST", "/v1/people/{id}/leave", {"id": "pia"}, json={})


async def of_quarantine(deeds: Deeds, stage: Stage) -> None:
    """Deliveries that could not be mapped."""
    ids: list[str] = []
    for n in range(4):
        await stage.client.post("/webhooks/generic", json={"email": f"q{n}@x.example"})
        rows = await deeds.connection.fetch(
            "SELECT id::text FROM stage.quarantine ORDER BY received_at, id"
        )
        ids.append(next(r["id"] for r in rows if r["id"] not in ids))
    once = {"dry_run": False}
    await deeds.do("POST", "/v1/quarantine/{id}/replay", {"id": ids[0]}, json=once)
    everything = {**once, "source": "generic"}
    await deeds.do("POST", "/v1/quarantine/replay", json=everything)
    await deeds.do("POST", "/v1/quarantine/{id}/discard", {"id": ids[1]})
    await deeds.do("POST", "/quarantine/{id}/{deed}", {"id": ids[2], "deed": "discard"})


async def of_subscriptions(deeds: Deeds) -> None:
    """Subscriptions, their secrets and deliveries."""
    wish = {"name": "CRM", "url": URL, "headers": {"x-key": PLANTED}}
    made = (await deeds.do("POST", "/v1/subscriptions", json=wish)).json()
    id = {"id": made["id"]}
    change = {"headers": {"x-other": PLANTED}, "rate_per_s": 5}
    await deeds.do("PATCH", "/v1/subscriptions/{id}", id, json=change)
    await deeds.do("POST", "/v1/subscriptions/{id}/pause", id, json={"reason": "moves"})
    await deeds.do("POST", "/v1/subscriptions/{id}/resume", id)
    rotated = await deeds.do("POST", "/v1/subscriptions/{id}/secrets/rotate", id, json={})
    old = made["secrets"][0]["id"]
    await deeds.do("DELETE", "/v1/subscriptions/{id}/secrets/{secret_id}", {**id, "secret_id": old})
    test = (await deeds.do("POST", "/v1/subscriptions/{id}/test", id)).json()
    one = {**id, "delivery_id": test["id"]}
    await deeds.do("POST", "/v1/subscriptions/{id}/deliveries/{delivery_id}/resend", one)
    await deeds.do("POST", "/v1/subscriptions/{id}/deliveries/{delivery_id}/skip", one)
    since = {"since": "2026-01-01T00:00:00Z"}
    await deeds.do("POST", "/v1/subscriptions/{id}/resend", id, json=since)
    await deeds.do("POST", "/v1/subscriptions/{id}/replay", id, json={"from": "beginning"})
    page = "/subscriptions/{id}/deliveries/{delivery_id}/{deed}"
    await deeds.do("POST", page, {**one, "deed": "resend"})
    await deeds.do("POST", "/subscriptions/{id}/{deed}", {**id, "deed": "pause"})
    await deeds.do("POST", "/subscriptions", data={"name": "Second", "url": URL})
    await deeds.do("DELETE", "/v1/subscriptions/{id}", id)
    await nothing_planted(
        deeds.connection, made["secrets"][0]["secret"], rotated.json()["secret"], PLANTED
    )


async def of_playbooks(deeds: Deeds, stage: Stage) -> None:
    """Publishing now and later, calling off and rolling back, by the API and the page."""
    sales = (ROOT / "playbooks" / "sales.yaml").read_text()
    yaml = {"content-type": "application/yaml"}
    renamed = sales.replace("name: sales\n", "name: partners\n", 1)
    await deeds.do("POST", "/v1/playbooks", content=renamed, headers=yaml)
    name = {"name": "sales"}
    put, back = "/v1/playbooks/{name}", "/v1/playbooks/{name}/rollback"
    version = {**yaml, "if-match": "*"}
    await deeds.do("PUT", put, name, content=f"{sales}# 2\n", headers=version)
    await deeds.do("POST", back, name, json={"version": 1}, headers={"if-match": "*"})
    said = await deeds.connection.fetchrow(
        "SELECT actor, via, subject, before, after FROM audit.entries ORDER BY seq DESC LIMIT 1"
    )
    assert tuple(said)[:4] == ("test", "key", "sales", '{"version":2}')
    assert '"back_to":1' in said["after"]
    later = {"activate_at": "2100-01-01T00:00:00Z"}
    ids: list[str] = []
    for n in (3, 4):
        answer = await deeds.do(
            "PUT", put, name, content=f"{sales}# {n}\n", headers=version, params=later
        )
        ids.append(answer.json()["id"])
    await deeds.do("DELETE", "/v1/playbooks/scheduled/{id}", {"id": ids[0]})
    await deeds.do("POST", "/playbook/scheduled/{id}/cancel", {"id": ids[1]})
    form = {"playbook": "sales", "version": "3"}
    await deeds.do("POST", "/playbook/publish", data={**form, "text": f"{sales}# 5\n"})
    await deeds.do("POST", "/playbook/rollback", data={**form, "version": "4", "to": "1"})


async def of_sessions(deeds: Deeds, stage: Stage) -> None:
    """Logging in and out: who logs out is the session."""
    _, login = await access.create_key(
        stage.connection, "browser", access.SCOPES, kind="login", lifetime_s=60
    )
    answer = await deeds.do("POST", "/login", data={"token": login})
    cookie = answer.cookies[access.SESSION_COOKIE]
    headers = {"authorization": "", "cookie": f"{access.SESSION_COOKIE}={cookie}"}
    del headers["authorization"]
    transport = httpx.ASGITransport(stage.app)
    async with httpx.AsyncClient(
        transport=transport, base_url=stage.url, headers=headers
    ) as browser:
        deeds.client, before = browser, deeds.client
        await deeds.do("POST", "/logout")
        deeds.client = before
    last = await stage.connection.fetchrow(
        "SELECT actor, via, action, kind FROM audit.entries ORDER BY seq DESC LIMIT 1"
    )
    assert tuple(last) == ("browser", "session", "revoked", "session")
    await nothing_planted(stage.connection, login.rpartition("_")[2], cookie.rpartition("_")[2])


async def test_every_deed_in_the_stage_service(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM)
    async with running_stage(
        database_url, MadeUpTime(), encryption_key=a_key(), subscriptions="off", link_key=KEY,
        team_file=tmp_path / "team.yaml",
    ) as stage:  # fmt: skip
        stage.client.headers["origin"] = stage.url  # the pages' forms
        deeds = Deeds("stage", stage.client, stage.connection)
        await of_leads(deeds, stage)
        await of_handoffs(deeds, stage)
        await of_people(deeds)
        await of_quarantine(deeds, stage)
        await of_subscriptions(deeds)
        await of_playbooks(deeds, stage)
        await of_sessions(deeds, stage)
        assert deeds.missing() == set()
        await nothing_planted(stage.connection, PLANTED, REASON, "Secretive", stage.key)
        assert await stage.connection.fetchval("SELECT count(*) FROM audit.noted") == 0
        known = {e["id"] for e in (await stage.client.get("/v1/audit?limit=200")).json()["items"]}
        lines = (await stage.client.get("/v1/audit/export")).text.splitlines()
        assert len(lines) == max(known)
    chain = await verify_database(database_url)
    assert (chain.broken, chain.seq) == (None, len(lines))


async def test_every_deed_in_the_notifier(database_url: str, tmp_path: Path) -> None:
    connection = await asyncpg.connect(database_url)
    _, token = await access.create_key(connection, "tests", access.SCOPES)
    chosen = settings(database_url, tmp_path, link_key=KEY, slack_signing_secret=SECRET,
        notifier_public_url="https://n.example/",
    )  # fmt: skip
    app = create_app(chosen)
    async with serve(app, token) as client:
        served = Served(app, client, connection)
        deeds = Deeds("notifier", client, connection)
        await served.publish(*(transition("ana", "lead_agent") for _ in range(4)))
        alerts = await served.alerts(4)
        ids = [{"id": a["id"]} for a in alerts]
        until = {"until": (datetime.now(UTC) + timedelta(days=1)).isoformat()}
        await deeds.do("POST", "/v1/alerts/{id}/snooze", ids[0], json=until)
        await deeds.do("POST", "/v1/alerts/{id}/ack", ids[0])
        links = Links(SEEN, KEY, "https://n.example/", 86_400)
        seen = links.token(uuid.UUID(alerts[1]["id"]), "ana", datetime.now(UTC))
        await deeds.do("POST", "/seen/{token}", {"token": seen})
        body = pressed("baton_seen", alerts[2]["id"])
        await deeds.do("POST", "/slack/actions", content=body, headers=signed(body, time.time()))
        mute = {"person": "ana", "lead_id": alerts[3]["lead_id"]}
        await deeds.do("POST", "/v1/mutes", json=mute)
        await deeds.do("DELETE", "/v1/mutes/{person}/{lead_id}", mute)
        await connection.execute(
            "UPDATE notifier.deliveries SET status = 'dead', channel = 'console' WHERE alert_id = $1",
            uuid.UUID(alerts[3]["id"]),
        )
        await deeds.do("POST", "/v1/alerts/{id}/retry", ids[3])
        await deeds.do("POST", "/v1/channels/test", json={"person": "lea"})
        message = transition("ana", "lead_agent")
        letter = await connection.fetchval(
            """INSERT INTO notifier.dead_letters (message_id, topic, key, headers, value, reason, created_at)
               VALUES ('m', $1, $2, $3, $4, 'unreadable', now()) RETURNING id""",
            message.topic, message.key, '{"ce_id": "m", "ce_type": "baton.stage.transitioned.v1"}',
            message.value,
        )  # fmt: skip
        await deeds.do("POST", "/v1/dead-letters/{id}/retry", {"id": str(letter)})
        assert deeds.missing() == set()
    ways = await connection.fetch("SELECT DISTINCT via FROM audit.entries ORDER BY via")
    assert [row["via"] for row in ways] == ["command", "key", "link", "slack"]
    await nothing_planted(connection, token, seen, urllib.parse.quote(seen))
    await connection.close()
    assert (await verify_database(database_url)).broken is None


async def test_commands_are_audited_as_who_runs_them(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "olga")
    id, token = await keys.create(database_url, "crm", ["ingest"], ["hubspot"])
    assert await keys.revoke(database_url, id)
    assert not await keys.revoke(database_url, id)
    cipher = read_cipher(a_key(), None)
    await set_secret(database_url, cipher, "hubspot", PLANTED, keep=False)
    assert await remove_secrets(database_url, "hubspot") == 1
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("SELECT actor, via, action FROM audit.entries ORDER BY seq")
    assert [row["action"] for row in rows] == ["added", "revoked", "secret set", "secrets removed"]
    assert {row["actor"].partition("@")[0] for row in rows} == {"olga"}
    await nothing_planted(connection, PLANTED, token)
    await connection.close()
