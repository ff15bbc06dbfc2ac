"""What goes through a channel, and what comes back from it. Pure."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

RETRY_AFTER_S_MIN = 1.0
RETRY_AFTER_S_MAX = 3600.0
RETRY_AFTER_S_UNSAID = 30.0


class Outcome(msgspec.Struct, frozen=True):
    """How one attempt ended. `permanent`: another attempt would end the same."""

    result: Literal["delivered", "failed", "skipped"]
    reason: str | None = None
    permanent: bool = False
    down: bool = False
    """The channel itself does not work: the message has no part in it."""
    ambiguous: bool = False
    """It was handed over and no answer came: it may have arrived."""
    retry_after_s: float | None = None
    """The channel asked not to be used for so long."""
    ref: str | None = None
    """What the service calls the message."""


class Answer(msgspec.Struct, frozen=True):
    """How the reader may answer a handoff. The address and its token are secrets."""

    url: str
    token: str
    reasons: tuple[str, ...] = ()


class Letter(msgspec.Struct, frozen=True):
    """What is sent: an alert's text, under the alert's id (or several alerts', under the digest's)."""

    alert_id: str
    subject: str
    body: str
    link: str | None = None
    """The page to open."""
    seen_link: str | None = None
    """The signed link by which the alert is acknowledged."""
    lead_id: str | None = None
    alert_ids: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    """Ids of the messages of the same journey before it, oldest first."""
    thread: str | None = None
    """What the service calls the first of them."""
    is_digest: bool = False
    is_repeat: bool = False
    """An attempt before this one may have arrived."""
    answer: Answer | None = None
    """The handoff that waits for the reader's answer."""


def text_of(letter: Letter) -> str:
    """Give the whole text of a letter that is text alone: with the links by which it is answered."""
    answer = f"\nAccept or reject: {letter.answer.url}\n" if letter.answer else ""
    seen = f"\nGot it: {letter.seen_link}\n" if letter.seen_link else ""
    return letter.body + answer + seen


def retry_after_s(value: str | None, default: float | None = None) -> float | None:
    """Read a ``Retry-After`` in seconds, within bounds; `default` when it is missing or a date."""
    try:
        seconds = float(value) if value is not None else None
    except ValueError:
        seconds = None
    if seconds is None or math.isnan(seconds):
        return default
    return min(max(seconds, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)
