"""What can go wrong, as exceptions; `BatonClientError` is all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class BatonClientError(Exception):
    """Something went wrong between this program and Baton."""


class UnreachableError(BatonClientError):
    """Baton did not answer, or said that it cannot at present, until we gave up trying."""


class AnswerError(BatonClientError):
    """Baton's answer, or a proxy's in its place, is not what it has to be."""


class RefusedError(BatonClientError):
    """Baton refused the request, and would refuse it again: see `code`, `field` and `remedy`.

    `status` is the HTTP status, `problem` the whole RFC 9457 body.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = dict(problem)
        self.code = str(problem.get("code", ""))
        self.field: str | None = problem.get("field")
        self.remedy: str | None = problem.get("remedy")
        detail = str(problem.get("detail") or problem.get("title") or "refused")
        super().__init__(" ".join(p for p in (f"{status} {self.code}: {detail}", self.remedy) if p))


class CursorAheadError(RefusedError):
    """The position lies ahead of the end of the feed: of another feed, or Baton was restored.

    `last_position` is where the feed ends.
    """

    @property
    def last_position(self) -> int:
        """Give the position at which the feed ends."""
        return int(self.problem.get("last_position", 0))


class WebhookError(BatonClientError):
    """The delivery is not from Baton, was changed on its way, or is too old: answer 401."""
