"""What is asked of Baton and what its answers mean, without any I/O: both clients share it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from baton.client.errors import AnswerError, CursorAheadError, RefusedError
from baton.client.records import Event, Lead, Object, Result, objects

BATCH_EVENTS_MAX = 500
BATCH_BYTES_MAX = 900_000
"""Baton takes 1,000 events and 1 MiB a request."""
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 20.0
RETRY_AFTER_MAX_S = 120.0
BATCHED = "application/cloudevents-batch+json"


@dataclass(frozen=True)
class Call:
    """One request; `wait_s` is how long the answer may be held back on purpose."""

    method: str
    path: str
    params: tuple[tuple[str, str], ...] = ()
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    wait_s: float = 0.0


class Trying:
    """How often and when to ask again: full jitter, doubling to 20 s, `Retry-After` first.

    `give_up_s` bounds the time spent waiting; None: there is no end.
    """

    def __init__(self, give_up_s: float | None) -> None:
        self._left_s = give_up_s
        self._backoff_s = BACKOFF_FIRST_S
        self.why = "no answer"

    def pause_s(self, why: str, retry_after: str | None = None) -> float | None:
        """Give the seconds to wait before the next try; None: give up."""
        self.why = why
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)
        pause = random.uniform(self._backoff_s / 4, self._backoff_s)
        if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
            pause = max(pause, min(float(retry_after[:6]), RETRY_AFTER_MAX_S))
        if self._left_s is not None:
            if pause > self._left_s:
                return None
            self._left_s -= pause
        return pause


def is_temporary(status: int) -> bool:
    """Tell whether the same request may be answered otherwise later."""
    return status in (408, 425, 429) or status >= 500


def read_answer(status: int, body: bytes) -> Object:
    """Give the object that was answered. Raises RefusedError for 4xx, AnswerError for what is no answer."""
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if 400 <= status < 500:
        problem = cast("Object", answer) if isinstance(answer, dict) else {}
        if problem.get("code") == "cursor-ahead":
            raise CursorAheadError(status, problem)
        raise RefusedError(status, problem or {"detail": "no reason was given"})
    if status != 200 or not isinstance(answer, dict):
        raise AnswerError(f"answered {status} with something that is no JSON object")
    return cast("Object", answer)


def batches(events: Iterable[Event | Mapping[str, Any]]) -> Iterator[Call]:
    """Give the requests that send `events` in order. Raises ValueError for a CloudEvent without an id.

    Without an id a repeat could not be told from another event.
    """
    batch: list[bytes] = []
    size = 0
    for event in events:
        if not isinstance(event, Event) and not event.get("id"):
            raise ValueError(
                "a CloudEvent without 'id': give it one, the same each time it is sent"
            )
        told = event.cloud_event() if isinstance(event, Event) else dict(event)
        text = json.dumps(told, ensure_ascii=False, allow_nan=False).encode()
        if batch and (len(batch) == BATCH_EVENTS_MAX or size + len(text) > BATCH_BYTES_MAX):
            yield _batch(batch)
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        yield _batch(batch)


def _batch(events: list[bytes]) -> Call:
    return Call(
        "POST", "/v1/events", content=b"[" + b",".join(events) + b"]", headers={"content-type": BATCHED}
    )  # fmt: skip


def read_results(status: int, body: bytes) -> list[Result]:
    """Give what became of a batch; one in which every event was rejected is answered 422."""
    try:
        answer = read_answer(status, body)
    except RefusedError as refused:
        if "results" not in refused.problem:
            raise
        answer = refused.problem
    return [Result.of(r) for r in objects(answer.get("results"))]


def read_lead(status: int, body: bytes) -> Lead:
    """Give the lead that was answered."""
    try:
        return Lead.of(read_answer(status, body))
    except ValueError as error:
        raise AnswerError(str(error)) from None


def read_first_lead(status: int, body: bytes) -> Lead | None:
    """Give the first lead of a list."""
    for item in objects(read_answer(status, body).get("items")):
        return Lead.of(item)
    return None
