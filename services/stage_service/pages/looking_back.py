"""A past moment as a page's form asks for it: one that cannot be told of is refused beside the present."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.contracts.problems import BatonError
from services.stage_service.api.access import STATUS, House
from services.stage_service.api.past import moment_asked
from services.stage_service.errors import InvalidRequestError, NotFoundError
from services.stage_service.pages.wording import absolute


@dataclass(frozen=True)
class LookBack:
    """What a page was asked for: `moment` (None: the present), or why that is `refused`, with the `text`."""

    text: str
    moment: datetime | None = None
    refused: BatonError | None = None
    began: datetime | None = None
    """When Baton first heard of the lead, where it did not know it yet at that moment."""

    @property
    def status(self) -> int:
        """The HTTP status of the page."""
        return STATUS[type(self.refused)] if self.refused is not None else 200


def looked_back(it: House, text: str) -> LookBack:
    """Read the moment that a form's ``at`` names."""
    text = text.strip()[:64]
    try:
        return LookBack(text, moment_asked(it, _written(text)))
    except InvalidRequestError as error:
        return LookBack(text, None, error)


def _written(text: str) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequestError(
            f"“{text}” is no moment", field="at", value=text,
            remedy="Give it as 2026-01-31T09:30, in UTC.",
        ) from None  # fmt: skip


def not_known_yet(asked: LookBack, began: datetime) -> LookBack:
    """Say that the lead was not known at the moment that was asked for."""
    at = absolute(asked.moment or began)
    error = NotFoundError(
        f"Baton did not know this lead yet on {at}", field="at", value=asked.text,
        remedy=f"It first heard of it on {absolute(began)}.",
    )  # fmt: skip
    return LookBack(asked.text, None, error, began)


def day_after(day: datetime) -> datetime:
    """Give when a day ends that begins at `day`; the last there is ends a moment early."""
    try:
        return day + timedelta(days=1)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def day_written(text: str | None, name: str) -> datetime | None:
    """Give the day that a form's field `name` names, as its beginning in UTC. Raises InvalidRequestError."""
    if not text or not text.strip():
        return None
    try:
        return datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidRequestError(
            f"“{text.strip()[:64]}” is no day",
            field=name,
            value=text,
            remedy="Give it as 2026-01-31.",
        ) from None
