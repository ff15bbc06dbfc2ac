"""The marketing tools over HTTP as they post: signatures, tokens, questions before, answers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from services.baton.embedded import EmbeddedPostgres
from tests.conftest import ROOT
from tests.integration.stage import Stage, fresh_database, running_stage

SECRET = "a-secret-of-22-characters-or-more"
FIXTURES = ROOT / "tests" / "fixtures" / "sources"
SOURCES = (
    "customerio", "marketo", "mailchimp", "activecampaign", "mautic", "salesforce", "salesforce-cdc",
    "sendgrid", "unbounce", "vero",
)  # fmt: skip


@pytest.fixture(scope="module")
def module_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
async def stage(module_database: str) -> AsyncIterator[Stage]:
    secrets = {name: [SECRET] for name in SOURCES}
    async with running_stage(module_database, source_secrets=secrets) as it:
        yield it


async def send(
    stage: Stage,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    **options: Any,
) -> httpx.Response:
    """Send a request as a vendor does: without any API key."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(stage.app, raise_app_exceptions=False), base_url=stage.url
    ) as client:
        method = options.pop("method", "POST")
        return await client.request(
            method, path, content=body, headers=headers, **options
        )  # fmt: skip


def customerio(body: bytes, *, secret: str = SECRET, at: int | None = None) -> dict[str, str]:
    """Customer.io's headers: the bare hex of ``v0:{timestamp}:{body}``."""
    stamp = str(int(time.time()) if at is None else at)
    signed = hmac.new(secret.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256)
    return {"X-CIO-Timestamp": stamp, "X-CIO-Signature": signed.hexdigest()}


def mautic(body: bytes, *, secret: str = SECRET) -> dict[str, str]:
    """Mautic's header: base64 of the body's HMAC."""
    digest = hmac.new(secret.encode(), body, hashlib.sha256).digest()
    return {"Webhook-Signature": base64.b64encode(digest).decode()}


async def test_customer_io_signs_time_and_body(stage: Stage) -> None:
    body = (FIXTURES / "customerio" / "email-clicked.json").read_bytes()
    answer = await send(stage, "/webhooks/customerio", body, customerio(body))
    assert answer.json()["applied"] == 1, answer.text
    again = await send(stage, "/webhooks/customerio", body, customerio(body))
    assert again.json()["duplicate"] == 1
    now = int(time.time())
    refused = [
        customerio(body + b" "),
        customerio(body, secret="another"),
        customerio(body, at=now - 301),
        customerio(body, at=now + 302),
        {"X-CIO-Timestamp": str(now)},
        {},
    ]
    for headers in refused:
        assert (await send(stage, "/webhooks/customerio", body, headers)).status_code == 401


async def test_mautic_signs_the_body(stage: Stage) -> None:
    body = (FIXTURES / "mautic" / "forms.json").read_bytes()
    answer = await send(stage, "/webhooks/mautic", body, mautic(body))
    assert answer.json()["applied"] == 2, answer.text
    for headers in (mautic(body, secret="another"), mautic(body + b"\n"), {}):
        assert (await send(stage, "/webhooks/mautic", body, headers)).status_code == 401


async def test_mailchimp_asks_before_it_saves_the_address(stage: Stage) -> None:
    for method in ("GET", "HEAD"):
        found = await send(stage, f"/webhooks/mailchimp/{SECRET}", method=method)
        assert found.status_code == 200
        assert (await send(stage, "/webhooks/mailchimp/wrong", method=method)).status_code == 401
    assert (await send(stage, "/webhooks/mailchimp", method="GET")).status_code == 401


@pytest.mark.parametrize(
    ("source", "sample"),
    [
        ("mailchimp", "subscribe.form"), ("activecampaign", "click.form"), ("unbounce", "demo.form"),
        ("vero", "clicked.json"), ("sendgrid", "events.json"), ("marketo", "fills-out-form.json"),
        ("salesforce", "leads.xml"),
    ],
)  # fmt: skip
async def test_a_token_in_the_address(stage: Stage, source: str, sample: str) -> None:
    body = (FIXTURES / source / sample).read_bytes().rstrip(b"\n")
    for wrong in ("", "/wrong", f"/{SECRET}x"):
        assert (await send(stage, f"/webhooks/{source}{wrong}", body)).status_code == 401
    answer = await send(stage, f"/webhooks/{source}/{SECRET}", body)
    assert answer.status_code == 200, answer.text
    applied = await stage.connection.fetchval(
        "SELECT count(*) FROM stage.events WHERE source = $1", f"/sources/{source}"
    )
    assert applied > 0
    assert (await send(stage, f"/webhooks/{source}/{SECRET}", body)).status_code == 200
    again = await stage.connection.fetchval(
        "SELECT count(*) FROM stage.events WHERE source = $1", f"/sources/{source}"
    )
    assert again == applied


@pytest.mark.parametrize(
    "body", [b"", b"<a/>", (FIXTURES / "salesforce" / "opportunities.xml").read_bytes()]
)
async def test_salesforce_gets_its_acknowledgement(stage: Stage, body: bytes) -> None:
    """Also when it is kept in quarantine: without it the same would come for 24 hours."""
    answer = await send(stage, f"/webhooks/salesforce/{SECRET}", body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/xml; charset=utf-8"
    root = ElementTree.fromstring(answer.content)
    ack = root.find(
        "{http://schemas.xmlsoap.org/soap/envelope/}Body/"
        "{http://soap.sforce.com/2005/09/outbound}notificationsResponse/"
        "{http://soap.sforce.com/2005/09/outbound}Ack"
    )
    assert ack is not None
    assert ack.text == "true"


async def test_change_events_show_a_bearer(stage: Stage) -> None:
    body = (FIXTURES / "salesforce-cdc" / "opportunity.json").read_bytes()
    headers = {"Authorization": f"Bearer {SECRET}"}
    answer = await send(stage, "/webhooks/salesforce-cdc", body, headers)
    assert answer.json()["applied"] == 4, answer.text
    assert (await send(stage, "/webhooks/salesforce-cdc", body)).status_code == 401


WAY = (
    ("customerio", "email-clicked.json"), ("mailchimp", "subscribe.form"), ("mautic", "forms.json"),
    ("marketo", "mql.json"), ("activecampaign", "deal-add.form"),
    ("activecampaign", "deal-proposal.form"), ("activecampaign", "deal-won.form"),
)  # fmt: skip


@pytest.mark.parametrize("order", [WAY, WAY[::-1]], ids=["in order", "last first"])
async def test_what_five_tools_tell_is_one_lead_on_its_way_to_won(
    database_url: str, order: tuple[tuple[str, str], ...]
) -> None:
    secrets = {name: [SECRET] for name in SOURCES}
    async with running_stage(database_url, source_secrets=secrets) as stage:
        for name, case in order:
            body = (FIXTURES / name / case).read_bytes().rstrip(b"\n")
            headers = {"customerio": customerio, "mautic": mautic}.get(name, lambda _: {})(body)
            answer = await send(stage, f"/webhooks/{name}/{SECRET}", body, headers)
            assert answer.json()["quarantined"] == 0, answer.text
        [lead] = (await stage.client.get("/v1/leads")).json()["items"]
        assert lead["email"] == "ada@example.com"
        assert {"customerio", "mailchimp", "mautic", "marketo", "activecampaign"} <= set(
            lead["external_ids"]
        )
        timeline = (await stage.client.get(f"/v1/leads/{lead['id']}/timeline")).json()["items"]
        moves = [
            (each["journey"]["key"], each["to"])
            for each in timeline
            if "to" in each and not each["replaced_by"]
        ]
        # The deal's own journey begins with what is known of its lead: a score of 60 and more.
        assert moves == [("main", "mql"), ("5", "mql"), ("5", "proposal"), ("5", "closed_won")]
