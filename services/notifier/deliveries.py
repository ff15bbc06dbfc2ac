"""The dispatcher: attempts due deliveries, records how each ended, and plans the next attempt.

Any number of processes may run one. A delivery is claimed for the time an attempt may take and a
margin; when a process dies between sending and recording, the claim runs out and the delivery is
attempted again: a person may get a message twice, never not at all, and the alert's record stays one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal

import asyncpg
import msgspec
import structlog

from services.notifier import metrics, store
from services.notifier.channels import Channels, Letter, Outcome
from services.notifier.redaction import kind
from services.notifier.roster import Roster

POLL_S = 0.25
SENDS_AT_ONCE_MAX = 16
CLAIM_MARGIN_S = 10.0
STOP_WITHIN_S = 5.0
BACKOFF_MAX_S = 2.0
GROWTH = 4.0
"""Each wait between attempts is this much longer than the one before, on average."""

_log = structlog.get_logger("baton.notifier")


class Patience(msgspec.Struct, frozen=True):
    """How long a delivery is tried."""

    tries: int
    window_s: float
    timeout_s: float


def delay_s(try_number: int, patience: Patience, random: Callable[[], float]) -> float:
    """Give the seconds to wait after try `try_number` (1..) failed: exponential, with full jitter.

    The waits sum up to ``patience.window_s`` on average. `random` gives a number in [0, 1).
    """
    waits = max(patience.tries - 1, 1)
    share = GROWTH ** (min(try_number, waits) - 1) / sum(GROWTH**n for n in range(waits))
    # Full jitter draws from [0, ceiling): its mean is half the ceiling.
    return random() * 2 * patience.window_s * share


class Dispatcher:
    """Attempts deliveries until stopped; `wake` it when there are new ones."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        channels: Channels,
        roster: Roster,
        patience: Patience,
        now: Callable[[], datetime],
        random: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._channels = channels
        self._roster = roster
        self._patience = patience
        self._now = now
        self._random = random
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._attempts: set[asyncio.Task[None]] = set()
        self._more = False

    def start(self) -> None:
        """Start the loop."""
        self._loop = asyncio.create_task(self._run(), name="dispatcher")

    def wake(self) -> None:
        """Say that there may be due deliveries."""
        self._news.set()

    async def stop(self, within_s: float = STOP_WITHIN_S) -> None:
        """Claim no more, and finish what is held, at most `within_s` long."""
        self._stopping.set()
        self._news.set()
        waiting = {*self._attempts, *([self._loop] if self._loop is not None else [])}
        if waiting:
            deadline = time.monotonic() + within_s
            await asyncio.wait(waiting, timeout=within_s)
            if self._attempts:
                # A claim that was answered while we began to stop.
                await asyncio.wait(self._attempts, timeout=max(deadline - time.monotonic(), 0))
        left = [t for t in (*self._attempts, *([self._loop] if self._loop else [])) if not t.done()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def run_due(self) -> int:
        """Attempt what is due now, once, and wait for the end of it; gives how many were attempted."""
        claimed = await self._claim()
        if self._attempts:
            await asyncio.wait(set(self._attempts))
        return claimed

    async def _run(self) -> None:
        backoff_s = POLL_S
        failing = False
        while not self._stopping.is_set():
            self._news.clear()
            try:
                await self._claim()
                if failing:
                    _log.info("dispatcher.recovered")
                failing, backoff_s = False, POLL_S
            except Exception as error:  # the database is away: what is due stays due
                metrics.CONSUMER_FAILURES.labels("dispatcher", type(error).__name__).inc()
                if not failing:
                    _log.warning("dispatcher.failed", reason=type(error).__name__)
                failing, backoff_s = True, min(backoff_s * 2, BACKOFF_MAX_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), backoff_s)

    async def _claim(self) -> int:
        free = SENDS_AT_ONCE_MAX - len(self._attempts)
        if free <= 0:
            return 0
        now = self._now()
        until = now + timedelta(seconds=self._patience.timeout_s + CLAIM_MARGIN_S)
        claims = await store.claim(self._pool, now, until, free)
        self._more = len(claims) == free
        for claim in claims:
            task = asyncio.create_task(self._attempt(claim))
            self._attempts.add(task)
            task.add_done_callback(self._done)
        return len(claims)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._attempts.discard(task)
        if self._more:
            self._news.set()

    async def _attempt(self, claim: store.Claim) -> None:
        person = self._roster.team().by_id.get(claim.addressee_id or "")
        letter = Letter(str(claim.alert_id), claim.subject, claim.body)
        began = time.monotonic()
        if claim.is_acknowledged:  # since an attempt of a process that died
            outcome = Outcome("skipped", store.ACKNOWLEDGED)
        else:
            outcome = await self._channels.send(claim.channel, person, letter)
        seconds = time.monotonic() - began
        now = self._now()
        status, next_due_at = self._judge(claim, outcome, now)
        if not await self._record(claim, status, outcome.reason, seconds, now, next_due_at):
            return
        metrics.DELIVERIES.labels(kind(claim.channel), status).inc()
        metrics.DELIVERY_SECONDS.labels(kind(claim.channel)).observe(seconds)
        if status == "dead":
            metrics.DEAD_LETTERS.labels("delivery").inc()
            _log.warning(
                "delivery.dead", alert_id=str(claim.alert_id), channel=claim.channel,
                attempt=claim.attempt, reason=outcome.reason,
            )  # fmt: skip

    def _judge(
        self, claim: store.Claim, outcome: Outcome, now: datetime
    ) -> tuple[Literal["delivered", "skipped", "failed", "dead"], datetime | None]:
        if outcome.result != "failed":
            return outcome.result, None
        if outcome.permanent or claim.attempt >= claim.last_attempt:
            return "dead", None
        try_number = max(self._patience.tries - (claim.last_attempt - claim.attempt), 1)
        wait = timedelta(seconds=delay_s(try_number, self._patience, self._random))
        return "failed", now + wait

    async def _record(
        self,
        claim: store.Claim,
        status: str,
        reason: str | None,
        seconds: float,
        now: datetime,
        next_due_at: datetime | None,
    ) -> bool:
        """Record the end of an attempt, again and again until the claim runs out."""
        backoff_s = POLL_S
        while True:
            try:
                return await store.finish(
                    self._pool, claim, status, reason, round(seconds * 1000), now, next_due_at
                )
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if self._now() >= claim.claimed_until:
                    _log.warning("delivery.unrecorded", reason=type(error).__name__)
                    return False
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
                await asyncio.sleep(backoff_s)
