"""The shipped sources from the vendor's signature to the lead: each delivery is signed as its vendor signs.

Accepted and applied once, however often it comes; refused with one bit changed, with another secret, and,
where the time of signing is told, when that is long ago.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import stripe

from services.baton.embedded import EmbeddedPostgres
from services.baton.sources import read_sample
from services.stage_service.sources.book import load_source
from services.stage_service.sources.signatures import Request, refusal
from tests.conftest import ROOT
from tests.integration.stage import Stage, fresh_database, running_stage

FIXTURES = ROOT / "tests" / "fixtures" / "sources"
SECRET = "whsec_a-secret-of-the-vendor"
HEX_SECRET = "0123456789abcdef" * 4
SECRETS = {
    "close": HEX_SECRET, "pipedrive": f"baton:{SECRET}",
    **dict.fromkeys(
        ("calendly", "docusign", "facebook-leads", "intercom", "outreach", "salesloft", "stripe",
         "typeform"), SECRET,
    ),
}  # fmt: skip
Headers = dict[str, str]


def mac(body: bytes, secret: str, algorithm: str = "sha256") -> bytes:
    """An HMAC."""
    return hmac.digest(secret.encode(), body, algorithm)


def by_stripe(body: bytes, secret: str, at: int) -> Headers:
    """A signature of Stripe's own library."""
    v1 = stripe.WebhookSignature._compute_signature(  # type: ignore[attr-defined]
        f"{at}.{body.decode()}", secret
    )
    return {"Stripe-Signature": f"t={at},v1={v1},v0={'0' * 64}"}


def by_calendly(body: bytes, secret: str, at: int) -> Headers:
    """``t=,v1=`` over ``t.body``."""
    return {"Calendly-Webhook-Signature": f"t={at},v1={mac(b'%d.' % at + body, secret).hex()}"}


def by_close(body: bytes, secret: str, at: int) -> Headers:
    """The key is hex; the time stands before the body without a sign between."""
    digest = hmac.new(bytes.fromhex(secret), str(at).encode() + body, hashlib.sha256)
    return {"close-sig-hash": digest.hexdigest(), "close-sig-timestamp": str(at)}


def by_docusign(body: bytes, secret: str, _: int) -> Headers:
    """One header a key: the second one is ours."""
    return {
        "X-DocuSign-Signature-1": base64.b64encode(mac(body, "an older key")).decode(),
        "X-DocuSign-Signature-2": base64.b64encode(mac(body, secret)).decode(),
    }


SIGNERS: dict[str, Callable[[bytes, str, int], Headers]] = {
    "calendly": by_calendly,
    "close": by_close,
    "docusign": by_docusign,
    "facebook-leads": lambda b, s, _: {"X-Hub-Signature-256": f"sha256={mac(b, s).hex()}"},
    "intercom": lambda b, s, _: {"X-Hub-Signature": f"sha1={mac(b, s, 'sha1').hex()}"},
    "outreach": lambda b, s, _: {"Outreach-Webhook-Signature": mac(b, s).hex()},
    "pipedrive": lambda _, s, __: {
        "Authorization": f"Basic {base64.b64encode(s.encode()).decode()}"
    },
    "salesloft": lambda b, s, _: {"x-salesloft-signature": mac(b, s, "sha1").hex()},
    "stripe": by_stripe,
    "typeform": lambda b, s, _: {
        "Typeform-Signature": f"sha256={base64.b64encode(mac(b, s)).decode()}"
    },
}
CASES = {
    "calendly": "booked.json", "close": "opportunity-won.json", "docusign": "sent.json",
    "facebook-leads": "two-pages.json", "intercom": "contact-created.json",
    "outreach": "mailing-clicked.json", "pipedrive": "v2-deal-won.json",
    "salesloft": "email-clicked.http", "stripe": "checkout-paid.json",
    "typeform": "demo-request.json",
}  # fmt: skip
TIMED = ("calendly", "close", "stripe")
# Where the vendor counts its attempts, and what else is of the delivery and not of the event.
COUNTERS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "docusign": ("sent.json", lambda d: d.update(retryCount=7)),
    "intercom": ("contact-created.json", lambda d: d.update(
        delivery_attempts=7, delivered_at=9, first_sent_at=8, delivery_status="retry")),
    "outreach": ("mailing-clicked.json", lambda d: d["meta"].update(deliveredAt="2026-02-01T00:00:00")),
    "pipedrive": ("v2-deal-won.json", lambda d: d["meta"].update(attempt=7)),
    "stripe": ("first-invoice-paid.json", lambda d: d.update(pending_webhooks=7)),
    "typeform": ("demo-request.json", lambda d: d.update(event_id="01ANOTHERWEBHOOK")),
}  # fmt: skip

every_vendor = pytest.mark.parametrize("name", sorted(SIGNERS))


@pytest.fixture(scope="module")
def module_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
async def stage(module_database: str) -> AsyncIterator[Stage]:
    secrets = {name: [secret] for name, secret in SECRETS.items()}
    async with running_stage(module_database, source_secrets=secrets) as it:
        yield it


async def deliver(stage: Stage, name: str, body: bytes, headers: Headers) -> httpx.Response:
    """Post as the vendor does: without any key of ours."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(stage.app, raise_app_exceptions=False), base_url=stage.url
    ) as client:
        return await client.post(
            f"/webhooks/{name}", content=body,
            headers={"content-type": "application/json"} | headers,
        )  # fmt: skip


def delivery_of(name: str) -> tuple[bytes, Headers]:
    """Body and unsigned headers of the vendor's sample."""
    sample = read_sample(FIXTURES / name / CASES[name], {})
    return sample.body, {n: v for n, v in sample.headers.items() if n.startswith("x-")}


@every_vendor
async def test_what_the_vendor_signs_is_applied_once(stage: Stage, name: str) -> None:
    body, headers = delivery_of(name)
    signed = headers | SIGNERS[name](body, SECRETS[name], int(time.time()))
    first = await deliver(stage, name, body, signed)
    assert first.status_code == 200, first.text
    counts = first.json()
    assert counts["applied"] + counts["duplicate"] >= 1
    assert counts["quarantined"] == 0
    again = (await deliver(stage, name, body, signed)).json()
    assert again["applied"] == 0
    assert again["duplicate"] == counts["applied"] + counts["duplicate"]


@every_vendor
async def test_what_the_vendor_did_not_sign_is_refused(stage: Stage, name: str) -> None:
    body, headers = delivery_of(name)
    now = int(time.time())
    before = await stage.count()
    other = "f" * 64 if name == "close" else "another:secret"
    refused = [await deliver(stage, name, body, headers | SIGNERS[name](body, other, now))]
    refused.append(await deliver(stage, name, body, headers))
    if name != "pipedrive":  # which signs nothing
        changed = body.replace(b"2026", b"2027", 1).replace(b"1", b"3", 1)
        signed = headers | SIGNERS[name](body, SECRETS[name], now)
        refused.append(await deliver(stage, name, changed, signed))
    if name in TIMED:
        signed = headers | SIGNERS[name](body, SECRETS[name], now - 301)
        refused.append(await deliver(stage, name, body, signed))
    assert [answer.status_code for answer in refused] == [401] * len(refused)
    assert await stage.count() == before


async def test_metas_first_question(stage: Stage) -> None:
    """The challenge is echoed to who knows the verify token, and to nobody else."""
    asked = {"hub.mode": "subscribe", "hub.challenge": "1158201444"}
    url = "/webhooks/facebook-leads"
    right = await stage.client.get(url, params=asked | {"hub.verify_token": SECRET})
    assert (right.status_code, right.text) == (200, "1158201444")
    wrong = await stage.client.get(url, params=asked | {"hub.verify_token": "guessed"})
    assert wrong.status_code == 401


@pytest.mark.parametrize("name", sorted(COUNTERS))
async def test_another_attempt_is_the_same_event(stage: Stage, name: str) -> None:
    case, count_up = COUNTERS[name]
    payload = json.loads((FIXTURES / name / case).read_bytes())
    now = int(time.time())
    for attempt in (1, 2):
        body = json.dumps(payload).encode()
        answer = await deliver(stage, name, body, SIGNERS[name](body, SECRETS[name], now))
        assert answer.status_code == 200, answer.text
        if attempt == 2:
            assert (answer.json()["applied"], answer.json()["duplicate"]) == (0, 1)
        count_up(payload)


async def test_the_colleagues_of_one_company_stay_two_leads(stage: Stage) -> None:
    """What Close calls a lead is a company: its id must not make its people one."""
    ids: list[Any] = []
    now = int(time.time())
    for case, email in (
        ("lead-created", "ada@example.com"),
        ("contact-created", "bob@example.com"),
    ):
        body = (FIXTURES / "close" / f"{case}.json").read_bytes()
        answer = await deliver(stage, "close", body, by_close(body, HEX_SECRET, now))
        assert answer.status_code == 200, answer.text
        ids.append(await stage.connection.fetchval(
            "SELECT lead_id FROM stage.identities WHERE kind = 'email' AND value = $1", email
        ))  # fmt: skip
    assert None not in ids
    assert ids[0] != ids[1]


@pytest.mark.real_data
def test_a_captured_request_of_stripes_library(shared_data: Path) -> None:
    """Bytes as they came over the wire, with the secret of that run."""
    capture = (shared_data / "captures" / "stripe-signature.http").read_bytes()
    head, _, rest = capture.partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines()[2:])
    body = rest[: int(fields["Content-Length"])]
    at = int(fields["Stripe-Signature"].partition(",")[0].removeprefix("t="))
    it = Request(
        "POST", b"http://127.0.0.1/webhooks/stripe", b"/webhooks/stripe", b"",
        [(n.lower().encode(), v.encode()) for n, v in fields.items()], body,
    )  # fmt: skip
    verify = load_source(ROOT / "sources" / "stripe.yaml").verify

    def judged(seconds: int, secret: str = "whsec_test") -> str | None:
        return refusal(verify, it, [secret], datetime.fromtimestamp(at + seconds, UTC))

    assert judged(299) is None
    assert judged(-299) is None
    assert judged(301) == "expired"
    assert judged(-301) == "expired"
    assert judged(0, "test") == "mismatch"


WAY = (
    ("typeform", "demo-request", "mql"), ("calendly", "booked", "sql"), ("stripe", "customer", None),
    ("stripe", "quote-sent", "proposal"), ("docusign", "contract-without-a-deal", "closing"),
    ("stripe", "first-invoice-paid", "closed_won"), ("stripe", "first-invoice-paid-its-twin", None),
    ("stripe", "renewal-paid", None),
)  # fmt: skip


@pytest.mark.parametrize("order", [WAY, WAY[::-1]], ids=["in order", "last first"])
async def test_a_form_a_calendar_a_contract_and_a_payment_are_one_lead(
    database_url: str, order: tuple[tuple[str, str, str | None], ...]
) -> None:
    """From first touch to won by what four tools tell, in whatever order it arrives."""
    secrets = {name: [secret] for name, secret in SECRETS.items()}
    async with running_stage(database_url, source_secrets=secrets) as stage:
        for name, case, _ in order:
            body = (FIXTURES / name / f"{case}.json").read_bytes()
            headers = SIGNERS[name](body, SECRETS[name], int(time.time()))
            answer = await deliver(stage, name, body, headers)
            assert answer.json()["quarantined"] == 0, answer.text
        [lead] = (await stage.client.get("/v1/leads")).json()["items"]
        assert (lead["name"], lead["company"]) == ("Ada Example", "Example Ltd")
        assert lead["external_ids"].keys() == {"typeform", "calendly", "stripe", "docusign"}
        timeline = (await stage.client.get(f"/v1/leads/{lead['id']}/timeline")).json()["items"]
        stages = [each["to"] for each in timeline if "to" in each and not each["replaced_by"]]
        assert stages == [stage_key for _, _, stage_key in WAY if stage_key]
