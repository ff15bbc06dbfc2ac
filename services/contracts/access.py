"""API keys and browser sessions: who may do what, on both HTTP APIs.

A key is ``bat_<id>_<secret>``: 32 random bytes, shown once; the database holds a SHA-256 of the
secret (a plain hash is right for 256 random bits: OWASP ASVS 5.0, 6.5.2). A browser gets a session
from a one-time link; its cookie holds a key of kind ``session``. Keys are cached for 5 s, which is
how long a revoked one may live on. A key may be bound to sources: it then ingests for these and does
nothing else. It may have rate limits of its own (`rates`).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from services.contracts import audit
from services.contracts.audit import Actor, Note
from services.contracts.postgres_log import Executor
from services.contracts.problems import NotAllowedError, NotAuthenticatedError
from services.contracts.rates import RateLimits, quota_of

Scope = Literal["ingest", "read", "move", "admin"]
SCOPES: tuple[Scope, ...] = ("ingest", "read", "move", "admin")
CACHE_S = 5.0
CACHE_KEYS_MAX = 10_000
TOKEN_CHARACTERS_MAX = 128
"""A key has 60; what is longer is none, and is not remembered as one that was wrong."""
SESSION_COOKIE = "baton_session"
SESSION_DAYS = 30
LOGIN_MINUTES = 30
SOURCES_MAX = 64
SOURCE_CHARACTERS_MAX = 1024

_PREFIX = "bat"


class Principal(msgspec.Struct, frozen=True):
    """Who asks: the key's id and name, its scopes, and what it is bound to."""

    id: str
    name: str
    scopes: frozenset[str]
    sources: frozenset[str] | None = None
    """The CloudEvents sources it may ingest for; None: all."""
    rate: str | None = None
    event_rate: str | None = None

    def may(self, scope: Scope) -> bool:
        """Tell whether its scopes hold `scope`; ``admin`` holds all."""
        return scope in self.scopes or "admin" in self.scopes

    def may_ingest_for(self, source: str) -> bool:
        """Tell whether it may send events of `source`: a CloudEvents source, or the name of a source file.

        A key bound to ``hubspot`` may for ``hubspot`` and ``/sources/hubspot``, one bound to a name with
        a slash for exactly that.
        """
        return self.may("ingest") and (self.sources is None or source in self.sources)


def bound_sources(names: Iterable[str]) -> frozenset[str]:
    """Give the CloudEvents sources that a key bound to `names` may send."""
    return frozenset(s for n in names for s in ((n,) if "/" in n else (n, f"/sources/{n}")))


def required(who: Principal, scope: Scope) -> None:
    """Raise NotAllowedError when `who` lacks `scope`."""
    if not who.may(scope):
        raise NotAllowedError(
            f"the key {who.name!r} has no scope {scope!r}",
            remedy=f"Use a key with the scope {scope!r}.",
        )


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _parse(token: str) -> tuple[str, str] | None:
    if len(token) > TOKEN_CHARACTERS_MAX:
        return None
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
    sources: Iterable[str] = (),
    rate: str | None = None,
    event_rate: str | None = None,
    by: Actor | None = None,
) -> tuple[str, str]:
    """Create a key and give (id, token). The token cannot be shown again. Without `by`: who runs the command.

    With `sources` the key only ingests for these (`Principal.may_ingest_for`). `rate` of requests and
    `event_rate` take the place of the settings' limits. Raises ValueError for an unknown scope, for
    sources beside another scope than ``ingest``, and for what is no rate.
    """
    wanted = sorted(set(scopes))
    unknown = [s for s in wanted if s not in SCOPES]
    if unknown or not wanted:
        raise ValueError(f"unknown scope {unknown}: choose from {', '.join(SCOPES)}")
    bound = _checked_sources(sources, wanted)
    for text in (rate, event_rate):
        if text is not None:
            quota_of(text)
    id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    made = {
        "name": name, "kind": kind, "scopes": wanted, "sources": bound, "rate": rate,
        "event_rate": event_rate,
    }  # fmt: skip
    await audit.done(
        connection,
        """INSERT INTO access.keys (id, name, kind, hash, scopes, expires_at, sources, rate, event_rate)
           VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6), $7, $8, $9) RETURNING id""",
        (id, name, kind, _hash(secret), wanted, lifetime_s, bound, rate, event_rate),
        by or audit.on_the_command_line(),
        Note("added", "key" if kind == "key" else "session", id, None, made),
    )
    return id, f"{_PREFIX}_{id}_{secret}"


def _checked_sources(sources: Iterable[str], scopes: list[str]) -> list[str] | None:
    bound = sorted(set(sources))
    if bound and scopes != ["ingest"]:
        raise ValueError(
            f"a key bound to a source has the scope ingest and no other, not {', '.join(scopes)}"
        )
    if len(bound) > SOURCES_MAX:
        raise ValueError(f"{len(bound)} sources: a key is bound to at most {SOURCES_MAX}")
    for name in bound:
        plain = name.strip() == name and name.isprintable()
        if not name or not plain or len(name) > SOURCE_CHARACTERS_MAX:
            raise ValueError(
                f"{name[:80]!r} is no source: write what events carry as 'source', or the name of a "
                "file in sources/"
            )
    return bound or None


async def list_keys(connection: Executor) -> list[dict[str, Any]]:
    """List the keys (not sessions), newest first, without their secrets."""
    rows = await connection.fetch(
        """SELECT id, name, scopes, sources, rate, event_rate, created_at, expires_at, revoked_at
           FROM access.keys WHERE kind = 'key' ORDER BY created_at DESC"""
    )
    return [dict(r) for r in rows]


async def revoke_key(
    connection: Executor, id: str, by: Actor | None = None, kind: Literal["key", "session"] = "key"
) -> bool:
    """Revoke the key or session `id`; False when there is none or it was revoked before.

    Without `by`: who runs the command.
    """
    rows = await audit.done(
        connection,
        "UPDATE access.keys SET revoked_at = now() "
        "WHERE id = $1 AND revoked_at IS NULL RETURNING id",
        (id,), by or audit.on_the_command_line(),
        Note("revoked", kind, id, {"active": True}, {"active": False}),
    )  # fmt: skip
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
        lifetime_s=SESSION_DAYS * 86_400, by=Actor(rows[0]["name"], parsed[0]),
    )  # fmt: skip
    return session


class Gatekeeper:
    """Authenticates tokens against ``access.keys``, with a cache of 5 s, and counts (`rates`)."""

    def __init__(self, pool: Executor, rates: RateLimits | None = None) -> None:
        self._pool = pool
        self._known: dict[str, tuple[float, Principal | None]] = {}
        self.rates = rates or RateLimits()

    def cached(self, token: str) -> Principal | None:
        """Give the principal of `token` when it was checked in the last 5 s, without waiting."""
        entry = self._known.get(token)
        return entry[1] if entry and entry[0] > time.monotonic() else None

    async def known(self, token: str | None, address: str | None) -> Principal:
        """Give who `token` belongs to, and count a wrong one against the client's `address`.

        Raises NotAuthenticatedError, or RateLimitedError when the address sent too many wrong keys: then
        only keys that were right before are looked at.
        """
        if token:
            entry = self._known.get(token)
            if entry is not None and entry[1] is not None:
                if entry[0] > time.monotonic():
                    return entry[1]
            else:
                self.rates.may_try(address)
        principal = await self.authenticate(token)
        if principal is not None:
            return principal
        if token:
            self.rates.failed(address)
        raise NotAuthenticatedError(
            "no valid API key was sent",
            remedy="Send 'Authorization: Bearer <key>'; make a key with 'baton keys create'.",
        )

    async def authenticate(self, token: str | None) -> Principal | None:
        """Give who `token` belongs to; None when it is missing, unknown, expired or revoked."""
        if not token:
            return None
        entry = self._known.get(token)
        if entry and entry[0] > time.monotonic():
            return entry[1]
        parsed = _parse(token)
        if parsed is None:  # nothing that could be a key; not worth remembering, however long it is
            return None
        principal: Principal | None = None
        rows = await self._pool.fetch(
            """SELECT id, name, hash, scopes, sources, rate, event_rate FROM access.keys
               WHERE id = $1 AND kind <> 'login' AND revoked_at IS NULL
               AND (expires_at IS NULL OR expires_at > now())""",
            parsed[0],
        )
        expected = rows[0]["hash"] if rows else b"\0" * 32
        if hmac.compare_digest(_hash(parsed[1]), expected) and rows:
            principal = _principal(rows[0])
        if len(self._known) >= CACHE_KEYS_MAX:
            self._known.clear()
        self._known[token] = (time.monotonic() + CACHE_S, principal)
        return principal


def _principal(row: Any) -> Principal:
    sources = row["sources"]
    return Principal(
        row["id"], row["name"], frozenset(row["scopes"]),
        bound_sources(sources) if sources is not None else None, row["rate"], row["event_rate"],
    )  # fmt: skip


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
