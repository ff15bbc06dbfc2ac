"""Moments in a query: RFC 3339 or a date, read as UTC where they name no offset."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import BeforeValidator

from services.stage_service.errors import InvalidRequestError


def no_number(value: Any) -> Any:
    """Let pydantic read a moment, unless it is a number: raises ValueError."""
    # The framework would take 20260101 for a moment in August 1970.
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d", value):
        raise ValueError("give a moment as 2026-01-31T09:30:00Z")
    return value


SinceQuery = Annotated[datetime | None, BeforeValidator(no_number), Query(alias="from")]
UntilQuery = Annotated[datetime | None, BeforeValidator(no_number), Query(alias="to")]
"""From, to: moments of RFC 3339, or dates."""


def moment_in_utc(value: datetime | None, field: str) -> datetime | None:
    """Give `value` in UTC, which is what is meant when it names no offset."""
    if value is None or value.tzinfo is None:
        return value and value.replace(tzinfo=UTC)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidRequestError(
            "lies outside the years 1 to 9999", field=field, value=value.isoformat(),
            remedy="Give a nearer moment, or leave it out.",
        ) from None  # fmt: skip
