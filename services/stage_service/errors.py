"""The named failures of the stage service, those it shares with the notifier first.

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
    "ConflictError", "GateUnmetError", "GoneError", "InvalidRequestError", "NotAllowedError",
    "NotAuthenticatedError", "NotFoundError", "OverloadedError", "TooLargeError", "UnavailableError",
]  # fmt: skip


class GateUnmetError(ConflictError):
    """The stage's gate is not met."""

    code = "gate-unmet"


class GoneError(BatonError):
    """The link is not valid any more."""

    code = "gone"


class TooLargeError(BatonError):
    """The request is over a limit."""

    code = "too-large"


class OverloadedError(BatonError):
    """Baton cannot take more at this moment; send it again later."""

    code = "overloaded"
