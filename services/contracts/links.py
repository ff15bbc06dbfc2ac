"""Signed links: whoever holds one may do one thing as one person, until it expires.

A link names what it is about and for whom it was made; nobody without the key can make or change one.
Opening it changes nothing, since mail scanners open links: the page's buttons act. Who reads a link uses its
`Grant.id` to take it once.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast
from uuid import UUID

import itsdangerous
import msgspec

KEY_CHARACTERS_MIN = 32


class Purpose(NamedTuple):
    """What links are for: the path they are used at, and what keeps them from being good for another."""

    path: str
    salt: str


ANSWER = Purpose("answer", "baton.handoff.answer.v1")
"""Answers a handoff, at the stage service."""
SEEN = Purpose("seen", "baton.alert.seen.v1")
"""Acknowledges an alert, at the notifier."""


class Grant(msgspec.Struct, frozen=True):
    """What a link allows: its deed on the handoff or alert `about` as `person`, until `until`."""

    about: UUID
    person: str
    until: datetime
    id: str
    """Tells links apart without holding one."""


class Links:
    """Makes and reads the links of one purpose below `base_url`, good for `valid_s` seconds.

    Whoever makes and whoever reads them share the key; raises ValueError for a key that can be guessed.
    """

    def __init__(self, purpose: Purpose, key: str, base_url: str, valid_s: float) -> None:
        if len(key) < KEY_CHARACTERS_MIN:
            raise ValueError(
                f"BATON_LINK_KEY is shorter than {KEY_CHARACTERS_MIN} characters:"
                " make one with: openssl rand -hex 32"
            )
        self._base_url = f"{base_url.rstrip('/')}/{purpose.path}"
        self._valid = timedelta(seconds=valid_s)
        self._signer = itsdangerous.URLSafeSerializer(
            key, purpose.salt,
            signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
        )  # fmt: skip

    def token(self, about: UUID, person: str, now: datetime) -> str:
        """Make the token by which `person` may do it."""
        until = int((now + self._valid).timestamp())
        return str(self._signer.dumps([about.hex, person, until]))

    def url(self, token: str) -> str:
        """Give the address at which a token is used."""
        return f"{self._base_url}/{token}"

    def read(self, token: str, now: datetime) -> Grant | None:
        """Read a token; None when it is not ours or has expired."""
        try:
            about, person, until = cast("list[Any]", self._signer.loads(token))
            grant = Grant(
                UUID(about), str(person), datetime.fromtimestamp(until, UTC),
                # Of what it says: its text can be written in more ways than one.
                hashlib.sha256(self._signer.dumps([about, person, until]).encode()).hexdigest(),
            )  # fmt: skip
        except (itsdangerous.BadData, ValueError, TypeError, AttributeError, UnicodeError):
            return None
        return grant if now < grant.until else None
