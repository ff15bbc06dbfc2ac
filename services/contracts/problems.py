"""Errors as both HTTP APIs answer them: RFC 9457 ``application/problem+json``.

A ``BatonError`` knows the field, the value and the remedy but no HTTP; each service maps its error
types to a status in one table. ``problem`` makes the body, also for the framework's own errors.
"""

from __future__ import annotations

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
