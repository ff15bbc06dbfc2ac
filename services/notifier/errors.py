"""The named failures of the notifier, those it shares with the stage service first.

The docstring of each is its title over HTTP.
"""

from __future__ import annotations

from services.contracts.problems import (
    BatonError,
    ConflictError,
    InvalidRequestError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    UnavailableError,
)

__all__ = [
    "ConflictError", "InvalidRequestError", "NotAllowedError", "NotAuthenticatedError",
    "NotFoundError", "UnavailableError", "UnreadableError",
]  # fmt: skip


class UnreadableError(BatonError):
    """A message from the bus cannot be read."""

    code = "unreadable-message"
