"""Channels by a name that can be shown: a channel's URL holds secrets and stays out of sight."""

from __future__ import annotations

import hashlib
import re
import urllib.parse

BUILT_IN = ("inbox", "console", "email")
HASH_CHARACTERS = 8
REASON_CHARACTERS_MAX = 300
HIDDEN = "***"

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://\S+")
_ADDRESS = re.compile(r"[^\s@<>(),;:\"']+@[^\s@<>(),;:\"']+")
_PART_CHARACTERS_MIN = 4


def label(channel: str) -> str:
    """Give the name of a roster's channel: itself when built in, else ``scheme:hash``.

    The hash is of the text in the roster, before the environment is filled in: it stays the same
    when a secret there is replaced.
    """
    if channel in BUILT_IN:
        return channel
    digest = hashlib.sha256(channel.encode()).hexdigest()[:HASH_CHARACTERS]
    return f"{channel.partition('://')[0].lower()}:{digest}"


def kind(label: str) -> str:
    """Give the kind of channel `label` names (a metric's label): built in, or the scheme."""
    return label.partition(":")[0]


def scrub(text: str, *secrets: str) -> str:
    """Give `text` as a short line fit for logs and for people without the secrets.

    URLs, e-mail addresses and every part of the URLs in `secrets` are hidden.
    """
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
        for part in sorted(_parts(secret), key=len, reverse=True):
            text = text.replace(part, HIDDEN)
    text = _URL.sub(HIDDEN, text)
    text = _ADDRESS.sub(HIDDEN, text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:REASON_CHARACTERS_MAX]


def _parts(url: str) -> set[str]:
    _, _, rest = url.partition("://")
    found = re.split(r"[/?&=@:#,]", rest)
    found += [urllib.parse.unquote(part) for part in found]
    return {part for part in found if len(part) >= _PART_CHARACTERS_MIN}
