"""Signatures to the letter of Standard Webhooks 1.0, checked by the libraries of others."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks
import svix
from hypothesis import given
from hypothesis import strategies as st

from services.stage_service.subscriptions.signing import (
    Signer,
    SigningKeyError,
    kind_of,
    new_key_pair,
    new_secret,
    public_key_of,
    signer_of,
    verify_ed25519,
)
from services.stage_service.subscriptions.subscription import Secret

# Test vector of the standard's own libraries.
VECTOR_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
VECTOR_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
VECTOR_BODY = b'{"test": 2432232314}'
# The key pair that the standard's text shows.
SHOWN_PRIVATE = (
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
)
SHOWN_PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="


def now() -> datetime:
    """The present second."""
    return datetime.now(UTC).replace(microsecond=0)


def test_the_official_vector() -> None:
    signer = Signer([Secret("v1", VECTOR_SECRET, None)])
    headers = signer.headers(VECTOR_ID, VECTOR_BODY, datetime.fromtimestamp(1614265330, UTC))
    assert headers == {
        "webhook-id": VECTOR_ID,
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_the_public_key_that_the_standard_shows() -> None:
    assert public_key_of(SHOWN_PRIVATE) == SHOWN_PUBLIC
    assert kind_of(SHOWN_PRIVATE) == "v1a"


@given(st.binary(max_size=2000), st.uuids())
def test_ed25519_is_verified_by_the_public_key_alone(body: bytes, id: object) -> None:
    private, public = new_key_pair()
    headers = Signer([Secret("v1a", private, None)]).headers(str(id), body, now())
    timestamp, signature = headers["webhook-timestamp"], headers["webhook-signature"]
    assert verify_ed25519(public, str(id), timestamp, body, signature)
    assert not verify_ed25519(public, str(id), timestamp, body + b" ", signature)
    assert not verify_ed25519(public, str(id), str(int(timestamp) + 1), body, signature)
    assert not verify_ed25519(new_key_pair()[1], str(id), timestamp, body, signature)


def test_both_libraries_verify_through_a_rotation() -> None:
    """Before, while both sign, and after; the receiver changes over at any moment in between."""
    old, new = new_secret(), new_secret()
    private, public = new_key_pair()
    body = json.dumps({"type": "t", "data": {"name": "Zoë"}}).encode()
    start = now()
    phases = [
        ([Secret("v1", old, None)], [old]),
        ([Secret("v1", new, None), Secret("v1", old, start + timedelta(days=1))], [old, new]),
        ([Secret("v1", old, start - timedelta(seconds=1)), Secret("v1", new, None)], [new]),
        ([Secret("v1a", private, None), Secret("v1", new, start + timedelta(days=1))], [new]),
    ]
    for secrets, good in phases:
        headers = Signer(secrets).headers("msg_1", body, start)
        for secret in (old, new):
            for library in (standardwebhooks.Webhook(secret), svix.Webhook(secret)):
                if secret in good:
                    library.verify(body, headers)
                else:
                    with pytest.raises(Exception, match="No matching signature"):
                        library.verify(body, headers)
    asymmetric = [s for s in headers["webhook-signature"].split() if s.startswith("v1a,")]
    assert verify_ed25519(public, "msg_1", headers["webhook-timestamp"], body, asymmetric[0])


def test_new_secrets_are_of_32_bytes_and_differ() -> None:
    secrets = {new_secret() for _ in range(50)}
    assert len(secrets) == 50
    for secret in secrets:
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
        assert kind_of(secret) == "v1"
    private, public = new_key_pair()
    assert public_key_of(private) == public


@pytest.mark.parametrize(
    "secret",
    [
        "", "whsec_", "whsec_!!!", "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(), "whsk_",
        "whsk_" + base64.b64encode(b"x" * 33).decode(),
        "whsk_" + base64.b64encode(b"x" * 64).decode(), "whsec_ä",
    ],
)  # fmt: skip
def test_a_bad_secret_is_refused_without_being_told(secret: str) -> None:
    with pytest.raises(SigningKeyError) as caught:
        signer_of(secret)
    rest = secret.partition("_")[2]
    assert not rest or rest not in str(caught.value)


def test_without_a_secret_nothing_is_signed() -> None:
    headers = Signer([]).headers("id", b"{}", now())
    assert set(headers) == {"webhook-id", "webhook-timestamp"}
