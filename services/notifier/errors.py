"""The named failures of the notifier; the docstring of each is its title over HTTP."""

from __future__ import annotations

from services.contracts.problems import BatonError


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


class UnavailableError(BatonError):
    """A part that Baton needs does not answer; send it again later."""

    code = "unavailable"


class UnreadableError(BatonError):
    """A message from the bus cannot be read."""

    code = "unreadable-message"
