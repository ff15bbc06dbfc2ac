"""Is a delivery authentic? Checked on its raw bytes, before anything is parsed.

Every comparison takes the same time whatever is compared, all secrets of a source are tried (rotation),
and nothing a sender can write raises: what is not right is refused. A signed delivery that is sent again
within its window is authentic again; it has no second effect because its events have the same ids.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Literal
from urllib.parse import parse_qs

import msgspec

TOLERANCE_S = 300
SIGNATURES_MAX = 16
FIELDS_MAX = 2000

Algorithm = Literal["sha1", "sha256", "sha512"]
KeyFormat = Literal["text", "whsec", "base64", "hex"]
_DIGITS = re.compile(rb"[0-9]{1,17}")
_UNITS = {"s": 1, "ms": 1000}
# What HubSpot decodes in the URI before it signs; anything else stays percent-encoded.
_HUBSPOT_DECODES = {
    b"%3A": b":", b"%2F": b"/", b"%3F": b"?", b"%40": b"@", b"%21": b"!", b"%24": b"$", b"%27": b"'",
    b"%28": b"(", b"%29": b")", b"%2A": b"*", b"%2C": b",", b"%3B": b";",
}  # fmt: skip
_ENCODED = re.compile(b"|".join(_HUBSPOT_DECODES), re.IGNORECASE)


class Request(msgspec.Struct, frozen=True, gc=False):
    """One HTTP request as it came: header names in lower case, the body decompressed."""

    method: str
    uri: bytes
    """The full public URL with its query."""
    path: bytes
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    path_token: bytes = b""
    address: str | None = None
    """Who connected."""

    def values(self, name: bytes) -> list[bytes]:
        """Give the values of the header `name` in their order."""
        return [value for known, value in self.headers if known == name]

    def only(self, name: bytes) -> bytes | None:
        """Give the value of the header `name`; None when it is missing or came more than once."""
        found = self.values(name)
        return found[0] if len(found) == 1 else None


class Window(msgspec.Struct, frozen=True):
    """Where the time of signing is told, and how far from now it may lie, either way."""

    header: bytes
    unit: Literal["s", "ms"] = "s"
    tolerance_s: float = TOLERANCE_S


class Hmac(msgspec.Struct, frozen=True):
    """An HMAC over parts of the request, in one or several headers."""

    header: bytes
    algorithm: Algorithm = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: bytes = b""
    content: tuple[str | bytes, ...] = ("body",)
    """Names of parts (`CONTENT`) as text, and what stands between them as bytes."""
    window: Window | None = None
    id_header: bytes = b""
    separator: bytes = b""
    """Between several signatures in one header."""
    numbered: bool = False
    """The header's name is followed by ``-1``, ``-2``, ..."""
    key: KeyFormat = "text"


class Stripe(msgspec.Struct, frozen=True):
    """``t=<seconds>,v1=<hex>`` over ``t.body``, as Stripe and Calendly write it."""

    header: bytes
    scheme: bytes = b"v1"
    tolerance_s: float = TOLERANCE_S


class Basic(msgspec.Struct, frozen=True):
    """HTTP basic authentication; the secret is ``user:password``."""


class Bearer(msgspec.Struct, frozen=True):
    """``Authorization: Bearer <secret>``."""


class Token(msgspec.Struct, frozen=True):
    """A fixed token at one place of the request."""

    place: Literal["header", "query", "path", "form"]
    name: bytes = b""


class Key(msgspec.Struct, frozen=True):
    """A Baton API key with the scope ``ingest``, as a bearer or the user name of basic authentication."""


Method = Hmac | Stripe | Basic | Bearer | Token | Key
CONTENT = ("method", "uri", "hubspot_uri", "path", "query", "timestamp", "id", "body", "first_item")
"""The parts of a request that a signed content may name."""


def decode_secret(secret: str, format: KeyFormat) -> bytes:
    """Give the bytes that sign; raises ValueError when `secret` is not in its `format`."""
    if format == "text":
        return secret.encode()
    if format == "hex":
        return bytes.fromhex(secret)
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


def refusal(
    methods: Iterable[Method], request: Request, secrets: Sequence[str], now: datetime
) -> str | None:
    """Say why `request` is not authentic by any of `methods`; None when it is by one.

    The reasons are few and say nothing of the secrets: ``no-secret``, ``missing``, ``expired``,
    ``mismatch``. `Key` is not judged here: it is asked of the database.
    """
    reason = "missing"
    for method in methods:
        if isinstance(method, Key):
            continue
        if not secrets:
            reason = "no-secret"
            continue
        found = _CHECKS[type(method)](method, request, secrets, now)
        if found is None:
            return None
        reason = found if reason == "missing" else reason
    return reason


def _hmac(method: Hmac, request: Request, secrets: Sequence[str], now: datetime) -> str | None:
    given = _signatures(method, request)
    if not given:
        return "missing"
    timestamp = b""
    if method.window is not None:
        read = request.only(method.window.header)
        if read is None or not _DIGITS.fullmatch(read):
            return "missing"
        if _is_outside(int(read) / _UNITS[method.window.unit], method.window.tolerance_s, now):
            return "expired"
        timestamp = read
    content = _content(method, request, timestamp)
    if content is None:
        return "missing"
    return _compare(given, content, secrets, method.key, method.algorithm, method.encoding)


def _signatures(method: Hmac, request: Request) -> list[bytes]:
    if method.numbered:
        names = [method.header + b"-%d" % n for n in range(1, SIGNATURES_MAX + 1)]
        values = [v for v in map(request.only, names) if v is not None]
    else:
        value = request.only(method.header)  # one that came twice is nobody's
        values = [] if value is None else [value]
        if method.separator:
            values = [p for v in values for p in v.split(method.separator)][:SIGNATURES_MAX]
    found = [value.strip() for value in values]
    if method.prefix:
        found = [v[len(method.prefix) :] for v in found if v.startswith(method.prefix)]
    return [value for value in found if value]


def _content(method: Hmac, request: Request, timestamp: bytes) -> bytes | None:
    parts: list[bytes] = []
    for part in method.content:
        if isinstance(part, bytes):
            parts.append(part)
        elif part == "body":
            parts.append(request.body)
        elif part == "timestamp":
            parts.append(timestamp)
        else:
            value = _other_part(part, method, request)
            if value is None:
                return None
            parts.append(value)
    return b"".join(parts)


def _other_part(part: str, method: Hmac, request: Request) -> bytes | None:
    if part == "method":
        return request.method.encode()
    if part == "uri":
        return request.uri
    if part == "hubspot_uri":
        return _ENCODED.sub(lambda m: _HUBSPOT_DECODES[m[0].upper()], request.uri)
    if part == "path":
        return request.path
    if part == "query":
        return request.query
    if part == "id":
        return request.only(method.id_header)
    return _first_item(request.body)


_raw_items = msgspec.json.Decoder(list[msgspec.Raw])


def _first_item(body: bytes) -> bytes | None:
    """Give the first element of a JSON array as it is written: all that Segment signs of a batch."""
    try:
        items = _raw_items.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return body
    return bytes(items[0]) if items else None


def _is_outside(seconds: float, tolerance_s: float, now: datetime) -> bool:
    return abs(now.timestamp() - seconds) > tolerance_s


def _compare(
    given: Sequence[bytes],
    content: bytes,
    secrets: Sequence[str],
    key: KeyFormat,
    algorithm: Algorithm,
    encoding: str,
) -> str | None:
    """Compare the written forms: base64 has several for one digest, and only one is the sender's."""
    is_equal = False
    for secret in secrets:
        try:
            signing = decode_secret(secret, key)
        except (ValueError, binascii.Error):
            continue
        if not signing:  # anybody can sign with an empty key
            continue
        digest = hmac.digest(signing, content, algorithm)
        expected = digest.hex().encode() if encoding == "hex" else base64.b64encode(digest)
        for signature in given:
            is_equal |= hmac.compare_digest(signature, expected)
    return None if is_equal else "mismatch"


def _stripe(method: Stripe, request: Request, secrets: Sequence[str], now: datetime) -> str | None:
    value = request.only(method.header)
    if value is None:
        return "missing"
    pairs = [piece.strip().partition(b"=") for piece in value.split(b",")][:SIGNATURES_MAX]
    times = [text for name, _, text in pairs if name == b"t"]
    given = [text for name, _, text in pairs if name == method.scheme]
    if len(times) != 1 or not _DIGITS.fullmatch(times[0]) or not given:
        return "missing"
    if _is_outside(int(times[0]), method.tolerance_s, now):
        return "expired"
    content = times[0] + b"." + request.body
    return _compare(given, content, secrets, "text", "sha256", "hex")


def _basic(_: Basic, request: Request, secrets: Sequence[str], __: datetime) -> str | None:
    return _equal(basic_credentials(request.only(b"authorization")), secrets)


def _bearer(_: Bearer, request: Request, secrets: Sequence[str], __: datetime) -> str | None:
    return _equal(bearer_token(request.only(b"authorization")), secrets)


def _token(method: Token, request: Request, secrets: Sequence[str], _: datetime) -> str | None:
    given: bytes | None
    if method.place == "header":
        given = request.only(method.name)
    elif method.place == "path":
        given = request.path_token or None
    else:
        given = _field(request.query if method.place == "query" else request.body, method.name)
    return _equal(given, secrets)


def _field(pairs: bytes, name: bytes) -> bytes | None:
    try:
        fields = parse_qs(pairs, keep_blank_values=True, max_num_fields=FIELDS_MAX)
    except ValueError:
        return None
    found = fields.get(name, [])
    return found[0] if len(found) == 1 else None


def _equal(given: bytes | None, secrets: Sequence[str]) -> str | None:
    if not given:
        return "missing"
    is_equal = False
    for secret in secrets:
        is_equal |= bool(secret) and hmac.compare_digest(given, secret.encode())
    return None if is_equal else "mismatch"


def basic_credentials(authorization: bytes | None) -> bytes | None:
    """Give ``user:password`` of an Authorization header, None when it is not basic."""
    scheme, _, encoded = (authorization or b"").partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None


def bearer_token(authorization: bytes | None) -> bytes | None:
    """Give the token of an Authorization header, None when it is no bearer's."""
    scheme, _, token = (authorization or b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


def credentials_of(methods: Iterable[Method]) -> frozenset[str]:
    """Give the names of the headers and fields that carry what authenticates by `methods`."""
    names = {b"authorization"}
    for method in methods:
        if isinstance(method, Hmac | Stripe):
            names.add(method.header)
        elif isinstance(method, Token):
            names.add(method.name)
    return frozenset(name.decode() for name in names)


def api_key(request: Request) -> str | None:
    """Give the Baton API key that `request` shows: the bearer, or the user name of basic."""
    authorization = request.only(b"authorization")
    credentials = basic_credentials(authorization)
    if credentials is None:
        credentials = bearer_token(authorization) or b""
    key = credentials.partition(b":")[0]
    return key.decode("latin-1") or None


_CHECKS: dict[type, Callable[..., str | None]] = {
    Hmac: _hmac,
    Stripe: _stripe,
    Basic: _basic,
    Bearer: _bearer,
    Token: _token,
}
