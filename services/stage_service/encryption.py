"""Secrets at rest: AES-256-GCM under a key that is not in the database.

Every ciphertext names the key that made it, and is bound to its place (table, row): copied to another
place it cannot be opened. Several keys may be known; the first seals, all open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_KEY_ID_BYTES = 4
_NONCE_BYTES = 12


class EncryptionError(ValueError):
    """The keys cannot be used, or do not open a ciphertext."""


class Cipher:
    """Seals and opens."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {hashlib.sha256(key).digest()[:_KEY_ID_BYTES]: AESGCM(key) for key in keys}

    def seal(self, secret: str, place: str) -> bytes:
        """Encrypt `secret` for `place`; raises EncryptionError without a key."""
        if not self._keys:
            raise EncryptionError(
                "no encryption key: set BATON_ENCRYPTION_KEY (32 bytes in base64), "
                "or BATON_ENCRYPTION_KEY_FILE"
            )
        id, key = next(iter(self._keys.items()))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return id + nonce + key.encrypt(nonce, secret.encode(), place.encode())

    def open(self, sealed: bytes, place: str) -> str:
        """Decrypt what `seal` made for `place`; raises EncryptionError when that is not possible."""
        id, rest = sealed[:_KEY_ID_BYTES], sealed[_KEY_ID_BYTES:]
        key = self._keys.get(id)
        if key is None:
            raise EncryptionError(f"sealed with the key {id.hex()}, which is not known here")
        try:
            return key.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], place.encode()).decode()
        except (InvalidTag, ValueError):
            raise EncryptionError("not what was sealed for this place") from None


def read_cipher(keys: str | None, file: Path | None) -> Cipher:
    """Make the cipher of the settings: keys in base64, comma-separated, or a file with one a line.

    Raises EncryptionError for a key that is not 32 bytes, OSError for a file that cannot be read.
    """
    texts = keys.split(",") if keys else file.read_text().split() if file else []
    found: list[bytes] = []
    for text in texts:
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise EncryptionError(
                "an encryption key must be 32 bytes in base64: make one with "
                "'openssl rand -base64 32'"
            )
        found.append(key)
    return Cipher(found)
