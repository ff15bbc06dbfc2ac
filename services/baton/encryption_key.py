"""The keys of `baton up`: made once, in the data directory, for its owner only."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path

KEY_BYTES = 32


def key_file(data: Path) -> Path:
    """Give the file of the key in the directory `data`."""
    return data / "encryption-key"


def ensure_key_file(data: Path) -> Path:
    """Write a new key unless there is one already; gives its file. Losing it loses the sealed secrets."""
    path = key_file(data)
    _ensure(path, base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode())
    return path


def ensure_link_key(data: Path) -> str:
    """Give the key that signs links in alerts, made when there is none; losing it ends those sent."""
    path = data / "link-key"
    _ensure(path, secrets.token_hex(KEY_BYTES))
    return path.read_text().strip()


def _ensure(path: Path, text: str) -> None:
    if not path.exists():
        handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text + "\n")
