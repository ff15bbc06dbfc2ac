"""The lane: collects what arrived in the last moments and applies it as one transaction.

Whoever submits waits until the commit of all its events. Batches form by themselves: while one is
being committed, the next collects. When many events wait, other workers take batches beside the first,
of other leads, so that one computes while the others wait for PostgreSQL and a lead's events keep their
order of arrival. A full lane refuses instead of growing. A batch that fails is halved until the event that
does it is alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import structlog
import uuid_utils

from services.contracts.database import DATABASE_AWAY
from services.contracts.events import LeadEvent
from services.contracts.postgres_log import Fresh
from services.contracts.roster import Roster
from services.contracts.team import Team
from services.stage_service import metrics
from services.stage_service.batch import Batch, Outcome, RacedError
from services.stage_service.errors import OverloadedError, UnavailableError
from services.stage_service.identities import LEAD_IDENTITY, Policy
from services.stage_service.playbook import Playbook
from services.stage_service.shelf import Shelf

BATCH_EVENTS_MAX = 500
WAITING_EVENTS_MAX = 10_000
WORKERS = 2
SECOND_FROM_EVENTS = 20
"""How many events must wait before another batch runs beside the first: small batches cost round trips,
large ones let PostgreSQL work while we compute the next."""
TRIES_MAX = 4
TRY_AGAIN_S = 0.05
LOOK_AGAIN_S = 0.1
ANSWER_WITHIN_S = 2.5
"""Vendors give up after 3 s: by then they have heard that it is committed, or 503."""

_log = structlog.get_logger("baton.lane")

_TRANSIENT = (
    RacedError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
)


def new_id() -> str:
    """Give a UUIDv7: unique, and sorted by time."""
    return str(uuid_utils.uuid7())


_NOBODY = (("", ""),)


def _names_by_id(event: LeadEvent) -> bool:
    return bool(event.identities) and event.identities[0][0] == LEAD_IDENTITY


class _Request:
    """The events of one caller that are not yet committed."""

    __slots__ = ("deadline", "done", "outcomes", "waiting")

    def __init__(self, events: int) -> None:
        loop = asyncio.get_running_loop()
        self.outcomes: list[Outcome | None] = [None] * events
        self.waiting = events
        self.done: asyncio.Future[None] = loop.create_future()
        self.deadline = loop.time() + ANSWER_WITHIN_S

    def settle(self, index: int, outcome: Outcome) -> None:
        self.outcomes[index] = outcome
        self.waiting -= 1
        if not self.waiting and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class _Waiting:
    """One event in the queue."""

    __slots__ = ("event", "index", "request")

    def __init__(self, event: LeadEvent, request: _Request, index: int) -> None:
        self.event = event
        self.request = request
        self.index = index


class Lane:
    """Group commit of lead events. `start` it, `submit` to it, `stop` it."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        shelf: Shelf,
        roster: Roster,
        *,
        committed: Callable[[Fresh], None] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        policy: Policy | None = None,
        late_within: timedelta | None = None,
    ) -> None:
        self._pool = pool
        self._shelf = shelf
        self._roster = roster
        self._committed = committed
        self._now = now
        self._policy = policy or Policy()
        self._late_within = late_within
        self._queue: deque[_Waiting] = deque()
        self._news = asyncio.Event()
        self._busy: list[set[tuple[str, str]]] = [set() for _ in range(WORKERS)]
        self._waiting = 0
        self._open: deque[_Request] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def shelf(self) -> Shelf:
        """The playbook versions on record."""
        return self._shelf

    @property
    def playbooks(self) -> dict[str, Playbook]:
        """The active playbooks by name."""
        return self._shelf.playbooks

    async def look_at_playbooks(self) -> None:
        """Take over the playbooks that are active now; otherwise that takes until the next batch."""
        await self._shelf.load(self._pool)

    async def look_at_roster(self) -> None:
        """Take the roster over now if it changed; otherwise that takes up to a second."""
        await self._roster.look(self._pool)

    @property
    def team(self) -> Team:
        """The roster that owners are chosen from."""
        return self._roster.team

    @property
    def policy(self) -> Policy:
        """What names a person here."""
        return self._policy

    def start(self) -> None:
        """Start the workers."""
        self._tasks = [
            asyncio.create_task(self._run(worker), name=f"lane-{worker}")
            for worker in range(WORKERS)
        ]
        self._watching = asyncio.create_task(self._watch(), name="lane-watch")

    async def stop(self) -> None:
        """Commit what was submitted, then stop."""
        self._stopping = True
        self._news.set()
        await asyncio.gather(*self._tasks)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def submit(self, events: Sequence[LeadEvent]) -> list[Outcome]:
        """Apply `events` and give what happened to each, after the commit.

        Raises OverloadedError when the lane is full, UnavailableError when the commit did not
        come in time: it may still come, and sending the same events again changes nothing.
        """
        if not events:
            return []
        if self._stopping or self._waiting + len(events) > WAITING_EVENTS_MAX:
            raise OverloadedError(
                f"{self._waiting} events are waiting already", remedy="Send it again in 2 seconds."
            )
        request = _Request(len(events))
        self._waiting += len(events)
        for index, event in enumerate(events):
            self._queue.append(_Waiting(event, request, index))
        self._news.set()
        self._open.append(request)
        await request.done
        return [o for o in request.outcomes if o is not None]

    async def submit_alone(self, event: LeadEvent) -> Outcome:
        """Apply `event` in a transaction of its own, beside the queue: what regroups leads by hand.

        Raises UnavailableError when the database does not answer, or others were faster every time.
        """
        try:
            [outcome] = await self._apply_again([event])
        except DATABASE_AWAY as error:
            raise UnavailableError(
                "the database does not answer", remedy="Send it again."
            ) from error
        return outcome

    async def _watch(self) -> None:
        """Answer who waited too long; one look at the oldest costs less than a timer a request."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            while self._open and (
                self._open[0].done.done() or self._open[0].deadline <= loop.time()
            ):
                self._open.popleft().fail(
                    UnavailableError(
                        f"the database did not commit within {ANSWER_WITHIN_S} s",
                        remedy="Send the same events again: an event has one effect however often "
                        "it comes.",
                    )
                )

    async def _run(self, worker: int) -> None:
        while True:
            batch = self._take(worker)
            if batch:
                await self._settle(batch)
                self._waiting -= len(batch)
                self._busy[worker] = set()
                self._news.set()
                continue
            if self._stopping and not self._queue:
                self._news.set()  # the other workers too
                return
            self._news.clear()
            await self._news.wait()

    def _take(self, worker: int) -> list[_Waiting]:
        """Take the next batch, but nothing that names who another worker has in hand.

        So one worker computes while another waits for PostgreSQL, and a lead's events keep their order.
        """
        others = [busy for number, busy in enumerate(self._busy) if number != worker and busy]
        if others and len(self._queue) < SECOND_FROM_EVENTS and not self._stopping:
            return []
        batch: list[_Waiting] = []
        kept: list[_Waiting] = []
        mine = self._busy[worker]
        while self._queue and len(batch) < BATCH_EVENTS_MAX:
            waiting = self._queue.popleft()
            named = waiting.event.identities or _NOBODY
            if waiting.request.done.done():
                self._waiting -= 1  # answered 503 already: it will come again
            elif not all(busy.isdisjoint(named) for busy in others):
                kept.append(waiting)
            else:
                batch.append(waiting)
                mine.update(named)
        self._queue.extendleft(reversed(kept))
        return batch

    async def _settle(self, batch: list[_Waiting]) -> None:
        """Apply `batch` and tell everybody; nothing escapes, or the worker would stop for good."""
        batch = [w for w in batch if not w.request.done.done()]
        if not batch:
            return
        try:
            outcomes = await self._apply_again([w.event for w in batch])
        except DATABASE_AWAY as error:
            metrics.BATCHES_FAILED.labels("database").inc()
            _log.warning(
                "lane.database_unavailable", reason=type(error).__name__, events=len(batch)
            )
            failure = UnavailableError(
                "the database does not answer", remedy="Send the same events again."
            )
            for waiting in batch:
                waiting.request.fail(failure)
        except UnavailableError as error:  # too many writers: halves would only write more often
            by_id = [w for w in batch if _names_by_id(w.event)]
            if 0 < len(by_id) < len(batch):  # a lead that was merged meanwhile holds nobody else up
                await self._settle([w for w in batch if w not in by_id])
                await self._settle(by_id)
                return
            for waiting in batch:
                waiting.request.fail(error)
        except Exception as error:  # a bug, or an event that does what we did not foresee
            metrics.BATCHES_FAILED.labels("error").inc()
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._settle(batch[:middle])
                await self._settle(batch[middle:])
                return
            event = batch[0].event
            _log.error("lane.event_failed", id=event.id, source=event.source, exc_info=error)
            batch[0].request.fail(error)
        else:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                waiting.request.settle(waiting.index, outcome)

    async def _apply_again(self, events: list[LeadEvent]) -> list[Outcome]:
        """Apply `events`; once more when another process was faster on the same lead or event."""
        for last in (False,) * (TRIES_MAX - 1) + (True,):
            try:
                return await self._apply(events)
            except _TRANSIENT as error:
                metrics.BATCHES_RETRIED.labels(type(error).__name__).inc()
                if last:
                    raise UnavailableError(
                        "too many writers at once on these leads", remedy="Send it again."
                    ) from error
                await asyncio.sleep(TRY_AGAIN_S)
        raise AssertionError

    async def _apply(self, events: list[LeadEvent]) -> list[Outcome]:
        """The transaction: gather, decide, record; what is answered happened, or none of it did."""
        began = time.perf_counter()
        async with self._pool.acquire() as connection:
            batch = Batch(
                connection, self._shelf, self._roster, self._now(), new_id, self._policy,
                self._late_within,
            )  # fmt: skip
            async with connection.transaction():
                outcomes = await batch.apply(events)
        if batch.published is not None and batch.published.messages:
            # Before anybody is answered: it is on its way the sooner.
            self._committed(batch.published)
        metrics.observe_batch(outcomes, batch.moved, batch.unevaluated, time.perf_counter() - began)
        who = batch.regrouping
        metrics.observe_regrouping(who.merged, who.refused, who.unclaimed)
        return outcomes
