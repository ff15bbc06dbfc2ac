"""The named failures of the stage service; the docstring of each is its title over HTTP."""

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


class GateUnmetError(ConflictError):
    """The stage's gate is not met."""

    code = "gate-unmet"


class TooLargeError(BatonError):
    """The request is over a limit."""

    code = "too-large"


class OverloadedError(BatonError):
    """Baton cannot take more at this moment; send it again later."""

    code = "overloaded"


class UnavailableError(BatonError):
    """A part that Baton needs does not answer; send it again later."""

    code = "unavailable"
