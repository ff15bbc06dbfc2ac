"""Verifies what Baton posts to a webhook: Standard Webhooks 1.0, signatures ``v1`` and ``v1a``."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from standardwebhooks import Webhook

from baton.client.errors import WebhookError
from baton.client.records import Object, WebhookEvent

TOLERANCE = timedelta(minutes=5)
"""How old a delivery may be, and how far ahead: what the standard's own libraries allow."""
_PUBLIC = "whpk_"
_PRIVATE = "whsk_"


def verify_webhook(
    body: bytes, headers: Mapping[str, str], secrets: str | Iterable[str], *, now: datetime | None = None
) -> WebhookEvent:  # fmt: skip
    """Give the event of a delivery that Baton signed with one of `secrets`.

    `body` is the request's as it came, before anything parsed it; names of `headers` in any case. `secrets`
    are ``whsec_...`` (v1) and public keys ``whpk_...`` (v1a, which needs the package cryptography); two while
    one replaces the other. Raises WebhookError, and nothing else, whatever was sent; ValueError when
    `secrets` are none, which is a mistake of the receiver.
    """
    known = [secrets] if isinstance(secrets, str) else list(secrets)
    verifiers = [_verifier(secret) for secret in known]
    if not verifiers:
        raise ValueError("no secret was given")
    try:
        sent = {name.lower(): value for name, value in headers.items()}
        id, timestamp = sent["webhook-id"], sent["webhook-timestamp"]
        signatures = sent["webhook-signature"].split()
        sent_at = _moment(timestamp, now or datetime.now(UTC))
        if not any(v.accepts(id, sent_at, body, signatures) for v in verifiers):
            raise WebhookError("no signature is right: it is not from Baton, or was changed")
        event: Any = json.loads(body)
    except WebhookError:
        raise
    except KeyError as missing:
        raise WebhookError(f"the header {missing} is missing") from None
    except Exception:  # whatever a forger thought of
        raise WebhookError("the delivery cannot be read") from None
    if not isinstance(event, dict):
        raise WebhookError("the body is no event")
    return _event(cast("Object", event), id, sent_at)


def _event(event: Object, id: str, sent_at: datetime) -> WebhookEvent:
    time, subject, data = event.get("time"), event.get("subject"), event.get("data")
    try:
        moment = datetime.fromisoformat(time) if isinstance(time, str) else None
    except ValueError:
        moment = None
    return WebhookEvent(
        id, str(event.get("type", "")), moment, subject if isinstance(subject, str) else None,
        cast("Object", data) if isinstance(data, dict) else {}, sent_at,
    )  # fmt: skip


def _moment(timestamp: str, now: datetime) -> datetime:
    if not (timestamp.isascii() and timestamp.isdigit()):
        raise WebhookError("webhook-timestamp is no number of seconds")
    sent_at = datetime.fromtimestamp(int(timestamp[:12]), UTC)
    if abs(now - sent_at) > TOLERANCE:
        raise WebhookError("the delivery is more than five minutes old, or from the future")
    return sent_at


class _Symmetric:
    """Verifies ``v1``: HMAC-SHA256 under a shared secret."""

    def __init__(self, secret: str) -> None:
        try:
            self._webhook = Webhook(secret)
        except Exception:  # the library raises several, none of them documented
            raise ValueError("a secret is whsec_ and base64") from None

    def accepts(self, id: str, sent_at: datetime, body: bytes, signatures: list[str]) -> bool:
        """Tell whether one of `signatures` is right."""
        expected = self._webhook.sign(id, sent_at, body.decode()).encode()
        return any(hmac.compare_digest(expected, s.encode()) for s in signatures)


class _Asymmetric:
    """Verifies ``v1a``: Ed25519 under Baton's public key."""

    def __init__(self, secret: str) -> None:
        try:  # only whoever uses these keys needs the package
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        except ImportError:
            raise ValueError("v1a signatures need the package cryptography") from None
        try:
            raw = base64.b64decode(secret.removeprefix(_PUBLIC), validate=True)
            self._key = Ed25519PublicKey.from_public_bytes(raw)
        except ValueError:
            raise ValueError("a public key is whpk_ and 32 bytes in base64") from None

    def accepts(self, id: str, sent_at: datetime, body: bytes, signatures: list[str]) -> bool:
        """Tell whether one of `signatures` is right."""
        content = f"{id}.{int(sent_at.timestamp())}.".encode() + body
        return any(self._is_right(s, content) for s in signatures)

    def _is_right(self, signature: str, content: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature

        version, _, text = signature.partition(",")
        if version != "v1a":
            return False
        try:
            self._key.verify(base64.b64decode(text, validate=True), content)
        except (InvalidSignature, ValueError):
            return False
        return True


def _verifier(secret: str) -> _Symmetric | _Asymmetric:
    if secret.startswith(_PRIVATE):
        raise ValueError("whsk_ is the key that signs: give the public one, whpk_")
    return _Asymmetric(secret) if secret.startswith(_PUBLIC) else _Symmetric(secret)
