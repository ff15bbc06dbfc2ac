"""Errors as both HTTP APIs answer them: RFC 9457 ``application/problem+json``.

A ``BatonError`` knows the field, the value and the remedy but no HTTP; one table maps error types to a
status: `STATUS` for what both services can say, each service adds its own. ``problem`` makes the body,
also for the framework's own errors, ``answer_headers`` what stands beside it. No web framework here: the
pure core raises these too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

PROBLEM_CONTENT_TYPE = "application/problem+json"
DOCS = "https://github.com/baton/baton/blob/main/docs/errors.md#"
"""Where a problem's ``type`` leads: one heading a code."""

VALUE_CHARACTERS_MAX = 120


class BatonError(Exception):
    """The request could not be carried out; see `field`, `reason` and `remedy`."""

    code = "error"

    def __init__(
        self,
        reason: str,
        *,
        field: str | None = None,
        value: object = None,
        remedy: str | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
        self.value = value
        self.remedy = remedy
        self.extra = extra or {}


class NotAuthenticatedError(BatonError):
    """A valid API key is needed."""

    code = "not-authenticated"


class NotAllowedError(BatonError):
    """The API key lacks the scope for this."""

    code = "not-allowed"


class NotFoundError(BatonError):
    """There is no such thing."""

    code = "not-found"


class InvalidRequestError(BatonError):
    """The request cannot be understood."""

    code = "invalid-request"


class ConflictError(BatonError):
    """The request does not fit the present state."""

    code = "conflict"


class ChangedMeanwhileError(BatonError):
    """It is not as the request expects it; read it again."""

    code = "changed-meanwhile"


class UnavailableError(BatonError):
    """A part that Baton needs does not answer; send it again later."""

    code = "unavailable"


class RateLimitedError(BatonError):
    """Too many requests; send it again later."""

    code = "rate-limited"

    def __init__(
        self, reason: str, *, limit: str, quota: int, window_s: int, wait_s: float
    ) -> None:
        self.limit = limit
        self.quota = quota
        self.window_s = window_s
        self.wait_s = max(math.ceil(wait_s), 1)
        super().__init__(reason, remedy=f"Send it again in {self.wait_s} s.")


class KeyMalformedError(BatonError):
    """The Idempotency-Key cannot be read."""

    code = "idempotency-key-malformed"


class KeyInUseError(BatonError):
    """The first request with this Idempotency-Key is still being worked on."""

    code = "idempotency-key-in-use"


class KeyReusedError(BatonError):
    """The Idempotency-Key was sent with another request before."""

    code = "idempotency-key-reused"


STATUS: dict[type[BatonError], int] = {
    KeyMalformedError: 400,
    NotAuthenticatedError: 401,
    NotAllowedError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    KeyInUseError: 409,
    ChangedMeanwhileError: 412,
    InvalidRequestError: 422,
    KeyReusedError: 422,
    RateLimitedError: 429,
    UnavailableError: 503,
}
"""What both services can say, to HTTP status; each service adds its own types."""

RETRY_AFTER_S = 2


class Defect(msgspec.Struct, frozen=True):
    """What is wrong with one item of a request: a value, not an exception, so others are kept."""

    code: str
    field: str
    reason: str
    remedy: str
    value: str | None = None

    def body(self) -> dict[str, Any]:
        """Give the defect as the ``error`` of a result."""
        return {
            "code": self.code,
            "field": self.field,
            "reason": self.reason,
            "remedy": self.remedy,
            "value": self.value,
        }


def shown(value: object) -> str | None:
    """Give `value` as a short text fit for an error: cut, without control characters."""
    if value is None:
        return None
    text = value if isinstance(value, str) else repr(value)
    if len(text) > VALUE_CHARACTERS_MAX:
        text = f"{text[:VALUE_CHARACTERS_MAX]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    field: str | None = None,
    value: object = None,
    remedy: str | None = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Make the body of an RFC 9457 problem.

    `field`, `value` and `remedy` are extension members; `code` is stable and ends the ``type`` URI.
    """
    body: dict[str, Any] = {
        "type": DOCS + code,
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if field is not None:
        body["field"] = field
    if value is not None:
        body["value"] = shown(value)
    if remedy is not None:
        body["remedy"] = remedy
    body.update(extra or {})
    return body


def problem_of(error: BatonError, status: int) -> dict[str, Any]:
    """Make the problem that `error` is; its type's docstring is the title."""
    return problem(
        status, error.code, (type(error).__doc__ or "").rstrip("."), error.reason,
        field=error.field, value=error.value, remedy=error.remedy, extra=error.extra,
    )  # fmt: skip


def answer_headers(error: BatonError | None, status: int) -> Mapping[str, str]:
    """Give the headers of an answer of `status` that tells `error`; their names are lower-case.

    ``Retry-After`` is whole seconds. ``RateLimit`` and ``RateLimit-Policy`` are those of
    draft-ietf-httpapi-ratelimit-headers-10: quota ``q`` in window ``w``, ``r`` left, again in ``t``.
    """
    if isinstance(error, RateLimitedError):
        return {
            "retry-after": str(error.wait_s),
            "ratelimit-policy": f'"{error.limit}";q={error.quota};w={error.window_s}',
            "ratelimit": f'"{error.limit}";r=0;t={error.wait_s}',
        }
    if status in (429, 503) or isinstance(error, KeyInUseError):
        return {"retry-after": str(RETRY_AFTER_S)}
    if status == 401:
        return {"www-authenticate": 'Bearer realm="baton"'}
    return {}
