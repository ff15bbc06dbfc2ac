"""What the routes of the notifier are wired to, and how its failures are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import asyncpg
import httpx
from fastapi import FastAPI, Request

from services.contracts import answers, problems
from services.contracts.access import Gatekeeper
from services.contracts.answers import allow
from services.contracts.idempotency import Once
from services.contracts.links import Links
from services.contracts.problems import BatonError
from services.notifier.channels import Channels
from services.notifier.consumer import Consumer
from services.notifier.deliveries import Dispatcher
from services.notifier.errors import UnreadableError
from services.notifier.roster import Roster
from services.notifier.templates import Templates

__all__ = ["STATUS", "House", "allow", "answer_problems", "house"]

STATUS: dict[type[BatonError], int] = problems.STATUS | {UnreadableError: 409}
"""The one table from error to HTTP status; a test holds it complete."""


@dataclass
class House:
    """What the routes need, wired once in ``app``."""

    pool: asyncpg.Pool[Any]
    gatekeeper: Gatekeeper
    consumer: Consumer
    dispatcher: Dispatcher
    tries: int
    now: Callable[[], datetime]
    once: Once
    roster: Roster
    channels: Channels
    templates: Templates
    client: httpx.AsyncClient
    stage_url: str
    """Where the stage service is reached: answers to handoffs are passed on to it."""
    slack_reply_url: str
    """Where Slack takes replies; nothing else is asked for one."""
    links: Links | None = None
    slack_secret: str | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process begins to stop: readiness fails first."""


def house(request: Request) -> House:
    """Give the wired parts of the app that serves `request`."""
    return cast("House", request.app.state.house)


def answer_problems(app: FastAPI) -> None:
    """Make every error of `app`, the framework's own too, an RFC 9457 problem."""
    answers.answer_problems(app, STATUS)
