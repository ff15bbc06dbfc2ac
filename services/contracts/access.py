"""API keys and browser sessions: who may do what, on both HTTP APIs.

A key is ``bat_<id>_<secret>``: 32 random bytes, shown once; the database holds a SHA-256 of the
secret (a plain hash is right for 256 random bits: OWASP ASVS 5.0, 6.5.2). A browser gets a session
from a one-time link; its cookie holds a key of kind ``session``. Keys are cached for 5 s, which is
how long a revoked one may live on.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from services.contracts.postgres_log import Executor

Scope = Literal["ingest", "read", "move", "admin"]
SCOPES: tuple[Scope, ...] = ("ingest", "read", "move", "admin")
CACHE_S = 5.0
CACHE_KEYS_MAX = 10_000
SESSION_COOKIE = "baton_session"
SESSION_DAYS = 30
LOGIN_MINUTES = 30

_PREFIX = "bat"


class Principal(msgspec.Struct, frozen=True):
    """Who asks: the key's id and name, and its scopes."""

    id: str
    name: str
    scopes: frozenset[str]


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _parse(token: str) -> tuple[str, str] | None:
    prefix, _, rest = token.partition("_")
    id, _, secret = rest.partition("_")
    # Printable: a cookie's escapes can say NUL, which PostgreSQL would not even compare.
    is_plain = token.isascii() and token.isprintable()
    return (id, secret) if prefix == _PREFIX and id and secret and is_plain else None


async def create_key(
    connection: Executor,
    name: str,
    scopes: Iterable[str],
    *,
    kind: Literal["key", "session", "login"] = "key",
    lifetime_s: float | None = None,
) -> tuple[str, str]:
    """Create a key and give (id, token). The token cannot be shown again.

    Raises ValueError for an unknown scope.
    """
    wanted = sorted(set(scopes))
    unknown = [s for s in wanted if s not in SCOPES]
    if unknown or not wanted:
        raise ValueError(f"unknown scope {unknown}: choose from {', '.join(SCOPES)}")
    id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    await connection.execute(
        """INSERT INTO access.keys (id, name, kind, hash, scopes, expires_at)
           VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6))""",
        id, name, kind, _hash(secret), wanted, lifetime_s,
    )  # fmt: skip
    return id, f"{_PREFIX}_{id}_{secret}"


async def list_keys(connection: Executor) -> list[dict[str, Any]]:
    """List the keys (not sessions), newest first, without their secrets."""
    rows = await connection.fetch(
        """SELECT id, name, scopes, created_at, expires_at, revoked_at FROM access.keys
           WHERE kind = 'key' ORDER BY created_at DESC"""
    )
    return [dict(r) for r in rows]


async def revoke_key(connection: Executor, id: str) -> bool:
    """Revoke the key `id`; False when there is no such key or it was revoked before."""
    rows = await connection.fetch(
        "UPDATE access.keys SET revoked_at = now() "
        "WHERE id = $1 AND revoked_at IS NULL RETURNING id",
        id,
    )
    return bool(rows)


async def redeem_login(connection: Executor, token: str) -> str | None:
    """Turn a one-time login token into a session token; None when it is used, wrong or too old."""
    parsed = _parse(token)
    if parsed is None:
        return None
    # One statement decides, so that two clicks on the link cannot both win.
    rows = await connection.fetch(
        """UPDATE access.keys SET revoked_at = now() WHERE id = $1 AND hash = $2 AND kind = 'login'
           AND revoked_at IS NULL AND expires_at > now() RETURNING name, scopes""",
        parsed[0], _hash(parsed[1]),
    )  # fmt: skip
    if not rows:
        return None
    _, session = await create_key(
        connection, rows[0]["name"], rows[0]["scopes"], kind="session",
        lifetime_s=SESSION_DAYS * 86_400,
    )  # fmt: skip
    return session


class Gatekeeper:
    """Authenticates tokens against ``access.keys``, with a cache of 5 s."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._known: dict[str, tuple[float, Principal | None]] = {}

    def cached(self, token: str) -> Principal | None:
        """Give the principal of `token` when it was checked in the last 5 s, without waiting."""
        entry = self._known.get(token)
        return entry[1] if entry and entry[0] > time.monotonic() else None

    async def authenticate(self, token: str | None) -> Principal | None:
        """Give who `token` belongs to; None when it is missing, unknown, expired or revoked."""
        if not token:
            return None
        entry = self._known.get(token)
        if entry and entry[0] > time.monotonic():
            return entry[1]
        parsed = _parse(token)
        principal: Principal | None = None
        if parsed is not None:
            rows = await self._pool.fetch(
                """SELECT id, name, hash, scopes FROM access.keys
                   WHERE id = $1 AND kind <> 'login' AND revoked_at IS NULL
                   AND (expires_at IS NULL OR expires_at > now())""",
                parsed[0],
            )
            expected = rows[0]["hash"] if rows else b"\0" * 32
            if hmac.compare_digest(_hash(parsed[1]), expected) and rows:
                principal = Principal(rows[0]["id"], rows[0]["name"], frozenset(rows[0]["scopes"]))
        if len(self._known) >= CACHE_KEYS_MAX:
            self._known.clear()
        self._known[token] = (time.monotonic() + CACHE_S, principal)
        return principal


def bearer(authorization: str | None, cookies: dict[str, str]) -> str | None:
    """Give the token of a request: ``Authorization: Bearer``, else the browser's session cookie."""
    if authorization:
        scheme, _, token = authorization.partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None
    return cookies.get(SESSION_COOKIE)


def request_token(method: str, headers: Mapping[str, str], cookies: dict[str, str]) -> str | None:
    """Give the token of a request; `headers` have lower-case names.

    A browser sends its cookie whoever made it ask: for what changes something, the cookie counts only
    when our own pages asked (Fetch Metadata's ``Sec-Fetch-Site``, or ``Origin``).
    """
    authorization = headers.get("authorization")
    if authorization is None and method not in ("GET", "HEAD"):
        origin = headers.get("origin")
        if headers.get("sec-fetch-site") not in (None, "same-origin", "none"):
            return None
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            return None
    return bearer(authorization, cookies)
