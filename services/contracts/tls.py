"""The certificate authorities that outgoing HTTPS trusts: read once a process, which takes 16 ms."""

from __future__ import annotations

import os
import ssl
from functools import cache

import httpx


def authorities(*, trust_env: bool = True) -> ssl.SSLContext:
    """Give httpx's authorities, or those that ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` name if `trust_env`."""
    if not trust_env:
        return _read(False)
    return _read(True, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@cache
def _read(trust_env: bool, *_named: str | None) -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=trust_env)
