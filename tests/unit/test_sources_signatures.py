"""Verification: what vendors' own libraries sign is authentic, and nothing else ever is."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe
from hypothesis import example, given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from services.contracts.yaml_source import SourceError
from services.stage_service.sources.signatures import Request, refusal
from services.stage_service.sources.source import Source
from services.stage_service.sources.source_file import parse_source

BODY = b'{"id": "evt_1", "text": "gr\xc3\xbc\xc3\x9fe"}'
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
AT = datetime(2026, 1, 1, 10, 0, tzinfo=UTC)
SECONDS = str(int(AT.timestamp()))

SCHEMES = {
    "hubspot": """- hmac:
      header: X-HubSpot-Signature-v3
      encoding: base64
      content: "{method}{hubspot_uri}{body}{timestamp}"
      timestamp: {header: X-HubSpot-Request-Timestamp, unit: ms}""",
    "stripe": "- stripe: {header: Stripe-Signature}",
    "standard": """- hmac:
      header: webhook-signature
      prefix: "v1,"
      separator: space
      encoding: base64
      key: whsec
      id_header: webhook-id
      content: "{id}.{timestamp}.{body}"
      timestamp: {header: webhook-timestamp}""",
    "slack": """- hmac:
      header: X-Slack-Signature
      prefix: "v0="
      content: "v0:{timestamp}:{body}"
      timestamp: {header: X-Slack-Request-Timestamp}""",
    "docusign": "- hmac: {header: X-DocuSign-Signature, numbered: true, encoding: base64}",
    "typeform": '- hmac: {header: Typeform-Signature, prefix: "sha256=", encoding: base64}',
    "intercom": '- hmac: {header: X-Hub-Signature, prefix: "sha1=", algorithm: sha1}',
    "segment": '- hmac: {header: X-Signature, algorithm: sha1, content: "{first_item}"}',
    "basic": "- basic",
    "bearer": "- bearer",
    "header": "- token: {header: X-Token}",
    "query": "- token: {query: token}",
    "path": "- token: path",
    "form": "- token: {form: token}",
}


def source(scheme: str) -> Source:
    """A source that verifies by `scheme`."""
    return parse_source(
        f"name: x\ntitle: X\nevidence: real samples\nread: json\nverify:\n  {SCHEMES[scheme]}\n"
        "events:\n  - {type: a.b, id: '{item.id}'}\n", "x.yaml",
    )  # fmt: skip


def request(headers: dict[str, str | bytes], body: bytes = BODY, **fields: Any) -> Request:
    """A POST with `headers`."""
    raw = [
        (n.lower().encode(), v if isinstance(v, bytes) else v.encode("latin-1"))
        for n, v in headers.items()
    ]
    known: dict[str, Any] = {
        "uri": b"https://www.example.com/webhook_uri", "path": b"/webhook_uri", "query": b"",
    }  # fmt: skip
    return Request("POST", headers=raw, body=body, **(known | fields))


def mac(content: bytes, algorithm: str = "sha256", secret: str = SECRET) -> bytes:
    """An HMAC."""
    return hmac.digest(secret.encode(), content, algorithm)


def authentic(scheme: str, *, alone: bool = False) -> Request:
    """A request that is authentic by `scheme`, signed by the vendor's own library where there is one.

    Unless it is to stand `alone`, other signatures stand beside the right one.
    """
    b64 = base64.b64encode
    if scheme == "hubspot":
        content = b"POSThttps://www.example.com/webhook_uri" + BODY + SECONDS.encode() + b"000"
        return request({
            "X-HubSpot-Signature-v3": b64(mac(content)),
            "X-HubSpot-Request-Timestamp": SECONDS + "000",
        })  # fmt: skip
    if scheme == "stripe":
        signature = stripe.WebhookSignature._compute_signature(  # type: ignore[attr-defined]
            f"{SECONDS}.{BODY.decode()}", SECRET
        )
        others = ("", "") if alone else (f"v1={'0' * 64},", ",v0=x")
        return request({"Stripe-Signature": f"t={SECONDS},{others[0]}v1={signature}{others[1]}"})
    if scheme == "standard":
        signature = Webhook(SECRET).sign("msg_1", AT, BODY.decode())
        return request({
            "webhook-id": "msg_1", "webhook-timestamp": SECONDS,
            "webhook-signature": signature if alone else f"v1a,AAAA v1,b3RoZXI= {signature}",
        })  # fmt: skip
    if scheme == "slack":
        digest = mac(f"v0:{SECONDS}:".encode() + BODY).hex()
        return request({"X-Slack-Signature": f"v0={digest}", "X-Slack-Request-Timestamp": SECONDS})
    if scheme == "docusign":
        first = BODY if alone else b"signed by another account"
        return request({
            "X-DocuSign-Signature-1": b64(mac(first)), "X-DocuSign-Signature-2": b64(mac(BODY))
        } if not alone else {"X-DocuSign-Signature-1": b64(mac(BODY))})  # fmt: skip
    if scheme == "typeform":
        return request({"Typeform-Signature": b"sha256=" + b64(mac(BODY))})
    if scheme == "intercom":
        return request({"X-Hub-Signature": f"sha1={mac(BODY, 'sha1').hex()}"})
    if scheme == "segment":
        body = b'[{"messageId":"1"},{"messageId":"2"}]'
        return request({"X-Signature": mac(b'{"messageId":"1"}', "sha1").hex()}, body)
    if scheme == "basic":
        return request({"Authorization": b"Basic " + b64(SECRET.encode())})
    if scheme == "bearer":
        return request({"Authorization": f"Bearer {SECRET}"})
    if scheme == "header":
        return request({"X-Token": SECRET})
    if scheme == "query":
        return request({}, query=f"a=b&token={SECRET}".encode())
    if scheme == "path":
        return request({}, path_token=SECRET.encode())
    return request({}, f"token={SECRET}&a=b".encode())


def judge(
    scheme: str, it: Request, secrets: tuple[str, ...] = ("old", SECRET), at: datetime = AT
) -> Any:
    """Why `it` is refused, None when it is authentic."""
    return refusal(source(scheme).verify, it, secrets, at)


every_scheme = pytest.mark.parametrize("scheme", sorted(SCHEMES))
UNSIGNED = ("basic", "bearer", "header", "query", "path", "form")
TIMED = ("hubspot", "stripe", "standard", "slack")
SIGNED = tuple(
    s for s in SCHEMES if s not in ("basic", "bearer", "header", "query", "path", "form")
)


@every_scheme
def test_what_the_vendor_signs_is_authentic(scheme: str) -> None:
    assert judge(scheme, authentic(scheme)) is None


def test_hubspots_published_vector() -> None:
    """The example of HubSpot's documentation of the v3 signature."""
    headers: dict[str, str | bytes] = {
        "X-HubSpot-Signature-v3": "K36dawei4A+QBNolUOqo7s91KQDWQ5MXZ/QufNYuk/Y=",
        "X-HubSpot-Request-Timestamp": "1693657560000",
    }
    it = request(headers, b"{'example_field':'example_value'}")
    at = datetime.fromtimestamp(1693657560, UTC)
    secret = ("yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy",)
    assert judge("hubspot", it, secret, at) is None


def test_hubspot_decodes_the_uri_before_it_signs() -> None:
    uri = b"https://www.example.com/a%3Fb?to=a%40b.c&n=%20x%2F"
    signed = (
        b"POST" + b"https://www.example.com/a?b?to=a@b.c&n=%20x/" + BODY + SECONDS.encode() + b"000"
    )
    it = request({
        "X-HubSpot-Signature-v3": base64.b64encode(mac(signed)),
        "X-HubSpot-Request-Timestamp": SECONDS + "000",
    }, uri=uri)  # fmt: skip
    assert judge("hubspot", it) is None


@every_scheme
def test_another_secret_is_refused(scheme: str) -> None:
    assert judge(scheme, authentic(scheme), ("another", "whsec_AAAA")) == "mismatch"
    assert judge(scheme, authentic(scheme), ()) == "no-secret"
    assert judge(scheme, authentic(scheme), ("",)) is not None


@pytest.mark.parametrize(
    ("key", "empty"), [("text", ""), ("whsec", "whsec_"), ("base64", ""), ("hex", " ")]
)
def test_a_secret_that_says_nothing_signs_nothing(key: str, empty: str) -> None:
    """Anybody can sign with an empty key: it counts as none, in each way that secrets are written."""
    it = parse_source(
        "name: x\ntitle: X\nevidence: real samples\nread: json\n"
        f"verify:\n  - hmac: {{header: X-A, key: {key}}}\n  - stripe: {{header: X-B}}\n"
        "events:\n  - {type: a.b, id: '{item.id}'}\n", "x.yaml",
    )  # fmt: skip
    of_stripe = mac(SECONDS.encode() + b"." + BODY, secret="").hex()
    forged = request({"X-A": mac(BODY, secret="").hex(), "X-B": f"t={SECONDS},v1={of_stripe}"})
    assert refusal(it.verify, forged, (empty,), AT) == "mismatch"
    assert refusal(it.verify, forged, (empty, SECRET), AT) == "mismatch"


@pytest.mark.parametrize("scheme", SIGNED)
def test_a_flipped_bit_of_the_body_is_refused(scheme: str) -> None:
    it = authentic(scheme)
    signed = it.body if scheme != "segment" else it.body[1:18]
    for at in range(len(signed)):
        changed = bytearray(it.body)
        changed[at + (scheme == "segment")] ^= 1
        other = Request(it.method, it.uri, it.path, it.query, it.headers, bytes(changed))
        assert judge(scheme, other) is not None, at


@every_scheme
def test_a_flipped_bit_of_the_credentials_is_refused(scheme: str) -> None:
    """Any bit of any header, and of a token in the address."""
    it = authentic(scheme, alone=True)
    for number, (name, value) in enumerate(it.headers):
        for at in range(len(value) * 8):
            changed = bytearray(value)
            changed[at // 8] ^= 1 << at % 8
            if name == b"authorization" and changed.lower() == value.lower() and at // 8 < 6:
                continue  # RFC 9110, 11.1: the scheme's case does not matter
            headers = [*it.headers[:number], (name, bytes(changed)), *it.headers[number + 1 :]]
            other = Request(it.method, it.uri, it.path, it.query, headers, it.body, it.path_token)
            assert judge(scheme, other) is not None, (name, at, bytes(changed))
    if it.path_token:
        other = Request(it.method, it.uri, it.path, b"", [], it.body, it.path_token[:-1] + b"!")
        assert judge(scheme, other) == "mismatch"


@pytest.mark.parametrize("scheme", TIMED)
@pytest.mark.parametrize(("seconds", "why"), [(299, None), (301, "expired"), (10**9, "expired")])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_window_is_closed_on_both_sides(
    scheme: str, seconds: int, why: str | None, sign: int
) -> None:
    now = datetime.fromtimestamp(AT.timestamp() + sign * seconds, UTC)
    assert judge(scheme, authentic(scheme), at=now) == why


@pytest.mark.parametrize("scheme", ["hubspot", "stripe", "slack", "typeform", "bearer", "header"])
def test_a_header_that_comes_twice_is_nobodys(scheme: str) -> None:
    it = authentic(scheme)
    name, value = it.headers[0]
    for other in (value, b"x"):
        twice = Request(it.method, it.uri, it.path, it.query, [*it.headers, (name, other)], it.body)
        assert judge(scheme, twice) == "missing"


GARBAGE = st.binary(max_size=200) | st.sampled_from([
    b"v1", b"v1,", b"v1,###A", b"v1,a,b", b"t=,v1=", b"t=1,t=1,v1=aa", b"sha256=", b"=" * 50,
    "t=\u0661".encode(), b"1e9", b"-1", b" 17672616", b"9" * 400, b"\xff\xfe", b"Basic",
    b"Basic ====", b"Bearer", b"v1," * 100, b"\x00",
])  # fmt: skip


@given(st.sampled_from(sorted(SCHEMES)), st.data(), st.binary(max_size=200))
@example("standard", None, b"\xff\xfe")
def test_garbage_is_refused_and_never_raises(scheme: str, data: Any, body: bytes) -> None:
    it = authentic(scheme)
    headers = [(n, data.draw(GARBAGE) if data else b"v1,###A") for n, _ in it.headers]
    query = data.draw(GARBAGE) if data else b""
    other = Request("POST", it.uri, it.path, query, headers, body, query)
    assert judge(scheme, other) in ("missing", "mismatch", "expired")
    assert judge(scheme, Request("POST", it.uri, it.path, query, it.headers[:1], body)) in (
        "missing", "mismatch", "expired", None if scheme in UNSIGNED else "missing",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verify", "message"),
    [
        ("- hmac: {header: X-A, content: '{timestamp}{body}'}", "no header to read it from"),
        ("- hmac: {header: X-A, content: '{id}'}", "belong together"),
        ("- hmac: {header: X-A, content: '{uri}'}", "has no {body}"),
        ("- hmac: {header: X-A, content: '{bdy}'}", "unknown part"),
        ("- hmac: {header: X-A, timestamp: {header: X-T}}", "not part of the signed content"),
        ("- hmac: {algorithm: md5, header: X-A}", "unknown algorithm 'md5'"),
        ("- hmac: {}", "has no 'header'"),
        ("- none", "unknown verification 'none'"),
        ("[]", "'verify' is empty"),
        ("- token: {cookie: a}", "unknown key 'cookie'"),
    ],
)
def test_a_verification_that_proves_nothing_is_refused(verify: str, message: str) -> None:
    text = (
        "name: x\ntitle: X\nevidence: real samples\nread: json\nverify:\n"
        f"  {verify}\nevents:\n  - {{type: a.b, id: '{{item.id}}'}}\n"
    )
    with pytest.raises(SourceError) as caught:
        parse_source(text, "x.yaml")
    assert any(p.line in (5, 6) and message in p.message for p in caught.value.problems), str(
        caught.value
    )


def test_the_hash_functions_are_the_named_ones() -> None:
    """Against hashlib, so that `mac` above and the code cannot be wrong alike."""
    key = SECRET.encode()
    inner = hashlib.sha256(bytes(k ^ 0x36 for k in key.ljust(64, b"\0")) + BODY).digest()
    outer = hashlib.sha256(bytes(k ^ 0x5C for k in key.ljust(64, b"\0")) + inner).digest()
    it = request({"Typeform-Signature": b"sha256=" + base64.b64encode(outer)})
    assert judge("typeform", it) is None
