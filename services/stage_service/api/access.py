"""What the routes of the stage service are wired to, and how its failures are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import asyncpg
import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.contracts import answers, problems
from services.contracts.access import Gatekeeper
from services.contracts.answers import allow, token_of
from services.contracts.idempotency import Once
from services.contracts.links import Links
from services.contracts.problems import RETRY_AFTER_S, BatonError
from services.contracts.team import Team
from services.stage_service.api.following import Following
from services.stage_service.api.turns import Turns
from services.stage_service.encryption import Cipher
from services.stage_service.errors import (
    BusyError,
    CursorAheadError,
    GateUnmetError,
    GoneError,
    NotYamlError,
    OverloadedError,
    PlaybookChangedError,
    PlaybookUnchangedError,
    PreconditionRequiredError,
    TooLargeError,
    TooManyStreamsError,
)
from services.stage_service.lane import Lane
from services.stage_service.playbook import Playbook
from services.stage_service.pulse import Pulse
from services.stage_service.simulations.runs import Simulations
from services.stage_service.subscriptions.addresses import Allowed
from services.stage_service.subscriptions.changes import Terms

__all__ = [
    "RETRY_AFTER_S", "STATUS", "House", "allow", "answer_problems", "house", "problem_response", "token_of",
]  # fmt: skip

STATUS: dict[type[BatonError], int] = problems.STATUS | {
    CursorAheadError: 409,
    GateUnmetError: 409,
    PlaybookUnchangedError: 409,
    GoneError: 410,
    PlaybookChangedError: 412,
    TooLargeError: 413,
    NotYamlError: 415,
    PreconditionRequiredError: 428,
    BusyError: 429,
    TooManyStreamsError: 429,
    OverloadedError: 503,
}
"""The one table from error to HTTP status; a test holds it complete."""


@dataclass
class House:
    """What the routes need, wired once in ``app``."""

    pool: asyncpg.Pool[Any]
    engine: AsyncEngine
    gatekeeper: Gatekeeper
    lane: Lane
    pulse: Pulse
    notifier: httpx.AsyncClient
    public_url: str
    once: Once
    following: Following
    simulations: Simulations
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    roster_is_file: bool = False
    """Whether people are changed in the roster's file only."""
    terms: Terms = field(default_factory=lambda: Terms(Cipher(()), Allowed(), https_only=True))
    """What the operator set for subscriptions."""
    judging: Turns = field(
        default_factory=lambda: Turns("all leads are being judged under another playbook", 0)
    )
    """Taken to judge all leads under another playbook: that may last minutes, so nobody waits for it."""
    checking: Turns = field(default_factory=lambda: Turns("five playbooks are being checked", 4))
    """Taken to look for what is doubtful in a playbook: about a second, so a few may wait."""
    answer_links: Links | None = None
    """Reads the links by which handoffs are answered; None: there are none."""

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the process begins to stop: readiness fails, streams end."""
        return self.following.stopping

    @property
    def playbooks(self) -> dict[str, Playbook]:
        """The active playbooks by name."""
        return self.lane.playbooks

    @property
    def team(self) -> Team:
        """The roster."""
        return self.lane.team


def house(request: Request) -> House:
    """Give the wired parts of the app that serves `request`."""
    return cast("House", request.app.state.house)


def problem_response(error: BatonError) -> JSONResponse:
    """Answer `error` as problem+json with the status of its type."""
    return answers.problem_response(error, STATUS)


def answer_problems(app: FastAPI) -> None:
    """Make every error of `app`, the framework's own too, an RFC 9457 problem."""
    answers.answer_problems(app, STATUS, (OperationalError, InterfaceError))
