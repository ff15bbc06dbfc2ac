"""Signatures of Standard Webhooks 1.0: the headers of a delivery, and keys. Pure, but for making keys.

Signed is ``{id}.{timestamp}.{body}``. ``v1`` is HMAC-SHA256 under the bytes that ``whsec_`` holds in base64;
``v1a`` is Ed25519 under the key of ``whsk_`` (32 bytes of seed and 32 of public key, in base64), which
whoever has the ``whpk_`` key can verify. While a secret is replaced, both the new and the old one sign.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets as random_source
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.stage_service.subscriptions.subscription import Secret

SECRET_PREFIX = "whsec_"  # noqa: S105  the standard's prefixes
PRIVATE_PREFIX = "whsk_"
PUBLIC_PREFIX = "whpk_"
SECRET_BYTES = 32
SECRET_BYTES_MIN = 24
SECRET_BYTES_MAX = 64
"""What Standard Webhooks allows for a symmetric secret."""
ED25519_BYTES = 32
SIGNATURES_MAX = 10

Sign = Callable[[bytes], str]


class SigningKeyError(ValueError):
    """A secret is not one of Standard Webhooks. The message does not hold it."""


def new_secret() -> str:
    """Make a symmetric secret, ``whsec_...``, of 32 random bytes."""
    return SECRET_PREFIX + base64.b64encode(random_source.token_bytes(SECRET_BYTES)).decode()


def new_key_pair() -> tuple[str, str]:
    """Make a key pair for Ed25519: (``whsk_...``, ``whpk_...``)."""
    seed = random_source.token_bytes(ED25519_BYTES)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return (
        PRIVATE_PREFIX + base64.b64encode(seed + raw).decode(),
        PUBLIC_PREFIX + base64.b64encode(raw).decode(),
    )


def public_key_of(secret: str) -> str:
    """Give the ``whpk_...`` of a ``whsk_...``. Raises SigningKeyError."""
    public = _private_key(secret).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return PUBLIC_PREFIX + base64.b64encode(public).decode()


def kind_of(secret: str) -> Literal["v1", "v1a"]:
    """Tell which signatures `secret` makes, and that it is a good one. Raises SigningKeyError."""
    signer_of(secret)
    return "v1a" if secret.startswith(PRIVATE_PREFIX) else "v1"


def signer_of(secret: str) -> Sign:
    """Give what signs content with `secret` and writes ``v1,...`` or ``v1a,...``. Raises SigningKeyError."""
    if secret.startswith(PRIVATE_PREFIX):
        private = _private_key(secret)
        return lambda content: "v1a," + base64.b64encode(private.sign(content)).decode()
    key = _decoded(secret.removeprefix(SECRET_PREFIX))
    if not SECRET_BYTES_MIN <= len(key) <= SECRET_BYTES_MAX:
        raise SigningKeyError(
            f"a signing secret is {SECRET_PREFIX} and 24 to 64 bytes in base64, not {len(key)} bytes"
        )
    return lambda content: (
        "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
    )


class Signer:
    """Signs with several secrets at once: the present one, and those replaced that have not expired."""

    def __init__(self, secrets: Sequence[Secret]) -> None:
        # The newest first: a receiver that looks at one signature only sees the present one.
        present = sorted(secrets, key=lambda s: s.expires_at is not None)
        self._signers = [(signer_of(s.secret), s.expires_at) for s in present[:SIGNATURES_MAX]]

    def headers(self, id: str, body: bytes, now: datetime) -> dict[str, str]:
        """Give the three headers of an attempt made `now` to deliver `body` of the event `id`."""
        timestamp = str(int(now.timestamp()))
        content = f"{id}.{timestamp}.".encode() + body
        signatures = [
            sign(content) for sign, expires_at in self._signers
            if expires_at is None or now < expires_at
        ]  # fmt: skip
        headers = {"webhook-id": id, "webhook-timestamp": timestamp}
        if signatures:
            headers["webhook-signature"] = " ".join(signatures)
        return headers


def verify_ed25519(public_key: str, id: str, timestamp: str, body: bytes, signature: str) -> bool:
    """Tell whether one ``v1a,...`` signature is right, under a ``whpk_...`` key. Raises SigningKeyError."""
    key = _decoded(public_key.removeprefix(PUBLIC_PREFIX))
    if len(key) != ED25519_BYTES:
        raise SigningKeyError(f"a public key is {PUBLIC_PREFIX} and 32 bytes in base64")
    version, _, text = signature.partition(",")
    try:
        signed = base64.b64decode(text, validate=True)
        content = f"{id}.{timestamp}.".encode() + body
        Ed25519PublicKey.from_public_bytes(key).verify(signed, content)
    except (InvalidSignature, ValueError):
        return False
    return version == "v1a"


def _private_key(secret: str) -> Ed25519PrivateKey:
    key = _decoded(secret.removeprefix(PRIVATE_PREFIX))
    if len(key) not in (ED25519_BYTES, 2 * ED25519_BYTES):
        raise SigningKeyError(
            f"a signing key is {PRIVATE_PREFIX} and 64 bytes (seed and public key) in base64"
        )
    private = Ed25519PrivateKey.from_private_bytes(key[:ED25519_BYTES])
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    if key[ED25519_BYTES:] not in (b"", public):
        raise SigningKeyError("the two halves of the signing key do not belong together")
    return private


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise SigningKeyError("a signing secret is not in base64") from None
