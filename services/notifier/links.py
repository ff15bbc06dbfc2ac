"""Signed links: whoever holds one may say "I have seen it", until it expires, once.

The link names the alert and for whom it was made; nobody without the key can make or change one. Opening it
changes nothing, since mail scanners open links: the page's button acts.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import itsdangerous
import msgspec

SALT = "baton.alert.seen.v1"
KEY_CHARACTERS_MIN = 32


class Grant(msgspec.Struct, frozen=True):
    """What a link allows: to acknowledge an alert as `person`, until `until`."""

    alert_id: UUID
    person: str
    until: datetime
    id: str
    """Tells links apart without holding one."""


class Links:
    """Makes and reads links below `base_url`; raises ValueError for a key that can be guessed."""

    def __init__(self, key: str, base_url: str, valid_s: float) -> None:
        if len(key) < KEY_CHARACTERS_MIN:
            raise ValueError(
                f"BATON_LINK_KEY is shorter than {KEY_CHARACTERS_MIN} characters:"
                " make one with: openssl rand -hex 32"
            )
        self._base_url = base_url.rstrip("/")
        self._valid = timedelta(seconds=valid_s)
        self._signer = itsdangerous.URLSafeSerializer(
            key, SALT,
            signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
        )  # fmt: skip

    def make(self, alert_id: UUID, person: str, now: datetime) -> str:
        """Make the link for `person` to acknowledge the alert."""
        until = int((now + self._valid).timestamp())
        token = self._signer.dumps([alert_id.hex, person, until])
        return f"{self._base_url}/seen/{token}"

    def read(self, token: str, now: datetime) -> Grant | None:
        """Read a link's token; None when it is not ours or has expired."""
        try:
            alert_id, person, until = cast("list[Any]", self._signer.loads(token))
            grant = Grant(
                UUID(alert_id), str(person), datetime.fromtimestamp(until, UTC),
                # Of what it says: its text can be written in more ways than one.
                hashlib.sha256(self._signer.dumps([alert_id, person, until]).encode()).hexdigest(),
            )  # fmt: skip
        except (itsdangerous.BadData, ValueError, TypeError, AttributeError, UnicodeError):
            return None
        return grant if now < grant.until else None
