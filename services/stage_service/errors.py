"""The named failures of the stage service, those it shares with the notifier first.

The docstring of each is its title over HTTP.
"""

from __future__ import annotations

from services.contracts.problems import (
    BatonError,
    ChangedMeanwhileError,
    ConflictError,
    Defect,
    InvalidRequestError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    UnavailableError,
)

__all__ = [
    "BusyError",
    "ConflictError",
    "CursorAheadError",
    "GateUnmetError",
    "GoneError",
    "InvalidRequestError",
    "NotAllowedError",
    "NotAuthenticatedError",
    "NotFoundError",
    "NotYamlError",
    "OverloadedError",
    "PlaybookChangedError",
    "PlaybookUnchangedError",
    "PreconditionRequiredError",
    "TooLargeError",
    "TooManyStreamsError",
    "UnavailableError",
    "refusal",
]  # fmt: skip


def refusal(defect: Defect) -> InvalidRequestError:
    """Give the error by which a whole request is refused for `defect`; it keeps the defect's code."""
    error = InvalidRequestError(
        defect.reason, field=defect.field, value=defect.value, remedy=defect.remedy
    )
    error.code = defect.code
    return error


class GateUnmetError(ConflictError):
    """The stage's gate is not met."""

    code = "gate-unmet"


class PreconditionRequiredError(BatonError):
    """The request must say which version it changes."""

    code = "precondition-required"


class NotYamlError(BatonError):
    """The body is not of a type that is taken here."""

    code = "unsupported-media-type"


class GoneError(BatonError):
    """The link is not valid any more."""

    code = "gone"


class TooLargeError(BatonError):
    """The request is over a limit."""

    code = "too-large"


class OverloadedError(BatonError):
    """Baton cannot take more at this moment; send it again later."""

    code = "overloaded"


class BusyError(BatonError):
    """The same is being worked out for others at this moment; send it again later."""

    code = "busy"


class CursorAheadError(ConflictError):
    """The position lies ahead of the end of the feed."""

    code = "cursor-ahead"


class TooManyStreamsError(BatonError):
    """The key holds as many streams as it may; close one, or try again later."""

    code = "too-many-streams"


class PlaybookChangedError(ChangedMeanwhileError):
    """Another version of the playbook is active than was expected; look at it first."""

    code = "playbook-changed"


class PlaybookUnchangedError(ConflictError):
    """The active version of the playbook has this very text."""

    code = "playbook-unchanged"
