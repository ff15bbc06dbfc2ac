"""Subscriptions from end to end: `baton subscriptions`, a stage service that delivers, a real receiver.

What is received is verified by the two libraries that receivers use, `standardwebhooks` and `svix`, through
replacements of the secret; and by their npm siblings where `make clients` has fetched them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import standardwebhooks
import svix.webhooks
from aiohttp import web

from services.stage_service.subscriptions.signing import verify_ed25519
from tests.conftest import ROOT, missing
from tests.integration.receiver import Receiver, Request, receiving
from tests.integration.stage import Stage, serving_stage
from tests.integration.test_leads_command import baton
from tests.system.running import free_port, until

NODE = ROOT / "tests" / "system" / "clients" / "verify_webhooks.mjs"
LIBRARIES = (standardwebhooks.Webhook, svix.webhooks.Webhook)


def delivering() -> dict[str, Any]:
    """Settings of a stage service that delivers to this machine."""
    key = base64.b64encode(os.urandom(32)).decode()
    return {"encryption_key": key, "subscriptions_allow": "127.0.0.0/8"}


def demo(id: str, email: str = "ada@example.com") -> dict[str, Any]:
    """A lead event that moves a journey."""
    return {"specversion": "1.0", "id": id, "source": "/website", "type": "demo.requested",
            "data": {"email": email, "name": "Ada", "company": "Example", "employees": 250}}  # fmt: skip


def added(said: str) -> tuple[str, str, str | None]:
    """The id, the secret and the public key that `add` or `rotate` printed."""
    found = dict(re.findall(r"^(id|secret|public) +(\S+)$", said, re.MULTILINE))
    return found.get("id", ""), found["secret"], found.get("public")


def signatures(request: Request) -> list[str]:
    """The kinds of a request's signatures."""
    return [s.partition(",")[0] for s in request.headers["webhook-signature"].split(" ")]


async def a_test(stage: Stage, receiver: Receiver, id: str) -> Request:
    """What is received of a test event."""
    before = len(receiver.taken)
    code, said = await baton(stage, "subscriptions", "test", id)
    assert (code, said[:10]) == (0, "delivered:"), said
    assert len(receiver.taken) == before + 1
    return receiver.taken[-1]


async def test_the_first_event_reaches_a_subscriber(database_url: str) -> None:
    """From nothing to a verified event, as docs/webhooks.md tells it; then trouble, and its end."""
    async with serving_stage(database_url, **delivering()) as stage, receiving() as receiver:
        code, said = await baton(
            stage, "subscriptions", "add", "CRM", f"{receiver.url}/hook", "--type", "baton.stage.*",
            "--filter", "to == 'mql'", "--header", "authorization: Bearer s3cret",
            "--contact", "ae",
        )  # fmt: skip
        assert code == 0, said
        id, secret, _ = added(said)
        [result] = await stage.send(demo("e-1"))
        await receiver.until(lambda: receiver.taken, "the first event")
        request = receiver.taken[0]
        for library in LIBRARIES:
            library(secret).verify(request.body, request.headers)
        assert request.headers["authorization"] == "Bearer s3cret"
        assert request.headers["content-type"] == "application/cloudevents+json"
        event = request.event
        assert event["id"] == request.id == result["transitions"][0]["transition_id"]
        assert event["data"]["lead"]["email"] == "ada@example.com"
        assert (event["data"]["from"], event["data"]["to"]) == ("lead", "mql")

        receiver.react = lambda _: web.Response(status=503, text="busy")
        code, said = await baton(stage, "subscriptions", "test", "CRM")
        assert code == 1
        assert "answered 503" in said
        code, said = await baton(stage, "subscriptions", "deliveries", "CRM", "--state", "due")
        assert "answered 503" in said
        delivery = said.split()[0]
        receiver.react = lambda _: web.Response(text="thanks")
        seen = len(receiver.taken)
        code, said = await baton(stage, "subscriptions", "resend", id, "--delivery", delivery)
        assert code == 0, said
        await receiver.until(lambda: len(receiver.taken) > seen, "the resent one")
        kept = (await stage.client.get(f"/v1/subscriptions/{id}/deliveries/{delivery}")).json()
        assert kept["attempts"][0]["status"] == 503

        code, said = await baton(stage, "subscriptions", "pause", "CRM", "--reason", "CRM moves")
        assert "CRM is paused" in said
        await stage.send(demo("e-2", "ben@example.com"))
        code, said = await baton(stage, "subscriptions", "test", "CRM")
        assert code == 1
        assert "Resume it first" in said
        seen = len(receiver.taken)
        assert "CRM is active" in (await baton(stage, "subscriptions", "resume", "CRM"))[1]
        await receiver.until(lambda: len(receiver.taken) > seen, "what came while it was paused")
        assert receiver.taken[-1].event["data"]["lead"]["email"] == "ben@example.com"

        seen = len(receiver.taken)
        code, said = await baton(stage, "subscriptions", "replay", id, "--from", "beginning")
        assert code == 0, said
        await receiver.until(lambda: len(receiver.taken) >= seen + 2, "both again")
        assert receiver.taken[seen].id == request.id
        code, said = await baton(stage, "subscriptions", "list")
        assert (code, id in said, "active" in said) == (0, True, True)
        assert json.loads((await baton(stage, "subscriptions", "show", "CRM"))[1])["id"] == id
        assert (await baton(stage, "subscriptions", "remove", "CRM"))[0] == 0
        code, said = await baton(stage, "subscriptions", "show", "CRM")
        assert (code, "there is no subscription" in said) == (1, True)


async def test_what_is_refused_is_told_with_its_remedy(database_url: str) -> None:
    async with serving_stage(database_url, **delivering()) as stage:
        for wrong, told in (
            (["x", "https://10.0.0.1/"], "BATON_SUBSCRIPTIONS_ALLOW"),
            (["x", "https://crm.example.com/", "--filter", "scor.total > 1"], "score.total"),
            (["x", "https://crm.example.com/", "--header", "nocolon"], "Name: value"),
            (["x", "https://crm.example.com/", "--from", "99"], "the log ends at 0"),
        ):  # fmt: skip
            code, said = await baton(stage, "subscriptions", "add", *wrong)
            assert code != 0
            assert told in said


async def test_libraries_verify_both_kinds_through_replacements(
    database_url: str, tmp_path: Path
) -> None:
    """HMAC, then Ed25519, then HMAC again: at no moment is a delivery refused by who has the old secret."""
    async with serving_stage(database_url, **delivering()) as stage, receiving() as receiver:
        made = await baton(stage, "subscriptions", "add", "CRM", f"{receiver.url}/hook")
        id, first, _ = added(made[1])
        got = [(await a_test(stage, receiver, id), {"v1": [first]})]
        _, private, public = added((await baton(
            stage, "subscriptions", "rotate", id, "--signature", "v1a"))[1])  # fmt: skip
        assert private.startswith("whsk_")
        assert public is not None
        got.append((await a_test(stage, receiver, id), {"v1": [first], "v1a": [public]}))
        _, third, _ = added((await baton(
            stage, "subscriptions", "rotate", id, "--signature", "v1"))[1])  # fmt: skip
        got.append((await a_test(stage, receiver, id), {"v1": [third, first], "v1a": [public]}))
        _, last, _ = added((await baton(stage, "subscriptions", "rotate", id, "--keep", "0"))[1])
        got.append((await a_test(stage, receiver, id), {"v1": [last, first], "v1a": [public]}))
        kinds = [signatures(request) for request, _ in got]
        assert kinds == [["v1"], ["v1a", "v1"], ["v1", "v1a", "v1"], ["v1", "v1a", "v1"]]
        for request, good in got:
            check(request, good)
        refused_with(third, got[-1][0])  # it was stolen: it signs nothing more
        refused_with(first, got[0][0], got[0][0].body.replace(b"test", b"tost"))
    node(tmp_path, got)


async def test_the_documentation_verifies_what_is_sent(database_url: str, tmp_path: Path) -> None:
    """The receiver of docs/webhooks.md takes a test event, and its lines for a shell give the signature."""
    async with serving_stage(database_url, **delivering()) as stage, receiving() as receiver:
        made = await baton(stage, "subscriptions", "add", "CRM", f"{receiver.url}/hook")
        id, secret, _ = added(made[1])
        request = await a_test(stage, receiver, id)
        port = free_port()
        text = documented("python").replace("9000", str(port))
        with subprocess.Popen(
            [sys.executable, "-u", "-c", text, secret],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as example:
            try:
                own = f"http://127.0.0.1:{port}/"
                made = await baton(stage, "subscriptions", "add", "Example", own)
                secret_of_example = added(made[1])[1]
                assert secret_of_example != secret
                until(lambda: not _refused(port), "the example listens")
                code, said = await baton(stage, "subscriptions", "test", "Example")
                assert (code, "answered 401" in said) == (1, True), (
                    said
                )  # it has the other's secret
                await stage.client.post(
                    f"/v1/subscriptions/{added(made[1])[0]}/secrets/rotate", json={"secret": secret}
                )
                code, said = await baton(stage, "subscriptions", "test", "Example")
                assert (code, "204" in said) == (0, True), said
            finally:
                example.kill()
    if shutil.which("openssl") is None:
        missing("openssl")
    (tmp_path / "body.json").write_bytes(request.body)
    facts = {"ID": request.id, "TIMESTAMP": request.headers["webhook-timestamp"], "SECRET": secret}
    shell = ["bash", "-eo", "pipefail", "-c", documented("sh")]
    done = subprocess.run(
        shell, cwd=tmp_path, env=os.environ | facts, capture_output=True, text=True, timeout=30
    )
    assert f"v1,{done.stdout.strip()}" == request.headers["webhook-signature"], done.stderr


def documented(language: str) -> str:
    """The first example of docs/webhooks.md in a language."""
    text = (ROOT / "docs" / "webhooks.md").read_text("utf-8")
    found = re.search(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return textwrap.dedent(found[1])


def _refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def check(request: Request, good: dict[str, list[str]]) -> None:
    """Each library takes the request with each good secret; Ed25519 is checked by the standard's words."""
    for secret in good["v1"]:
        for library in LIBRARIES:
            library(secret).verify(request.body, request.headers)
    for public in good.get("v1a", ()):
        headers = request.headers
        assert any(
            verify_ed25519(public, request.id, headers["webhook-timestamp"], request.body, each)
            for each in headers["webhook-signature"].split(" ")
        )


def refused_with(secret: str, request: Request, body: bytes | None = None) -> None:
    """Each library refuses the request."""
    errors = (standardwebhooks.WebhookVerificationError, svix.webhooks.WebhookVerificationError)
    for library in LIBRARIES:
        try:
            library(secret).verify(body or request.body, request.headers)
        except errors:
            continue
        raise AssertionError(f"{library} took it")


def node(tmp_path: Path, got: list[tuple[Request, dict[str, list[str]]]]) -> None:
    """The npm packages say the same; those verify v1 only, so v1a is by Node's own crypto.

    In November 2026 none of standardwebhooks 1.1.0 (PyPI) and 1.1.1 (npm), svix 2.9.1 (PyPI) and 2.5.0 (npm)
    has ``v1a``, ``ed25519`` or ``whpk_`` in any file; both svix leave it to standardwebhooks (decision 0030).
    """
    modules = ROOT / ".cache" / "clients" / "node_modules"
    if shutil.which("node") is None or not (modules / "standardwebhooks").is_dir():
        missing("npm's standardwebhooks and svix: make clients")
    script = modules.parent / NODE.name
    shutil.copy(NODE, script)
    cases = [
        {"headers": r.headers, "body": r.body.decode(), "good": good, "bad": "whsec_" + "A" * 32}
        for r, good in got
    ]
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(cases))
    done = subprocess.run(["node", script, file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["v1"] == 2 * sum(len(good["v1"]) for _, good in got)
    assert told["v1a"] == sum(len(good.get("v1a", ())) for _, good in got)
    assert told["refused"] == 2 * len(got)
