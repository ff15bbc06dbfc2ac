"""The dispatcher: sends what is due, lane by lane, records how each message ended, plans the next attempt.

Any number of processes may run one. A message is claimed for the time an attempt may take and a margin;
when a process dies between sending and recording, the claim runs out and it is attempted again: a person
may get a message twice, never not at all, and the alert's record stays one. Each channel has so many places,
and a lane one: a slow channel holds up neither another channel nor, beyond its own places, another person.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import structlog

from services.contracts.database import DATABASE_AWAY
from services.contracts.links import Links
from services.contracts.team import Person
from services.notifier import breakers, claims, metrics
from services.notifier.channels import Channels
from services.notifier.claims import Ending, Parcel, Status
from services.notifier.letters import RETRY_AFTER_S_MAX, Answer, Letter, Outcome
from services.notifier.redaction import kind
from services.notifier.roster import Roster
from services.notifier.subscriptions import page_of

POLL_S = 0.25
SENDS_AT_ONCE_MAX = 128
CHANNEL_SENDS_MAX = 8
KIND_SENDS_MAX = 64
"""A kind's channels often are one service: when it hangs, half of the places are left for the others."""
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
    keep_s: float = 3 * 86_400
    """How long a delivery waits for a channel that rests, since its alert was recorded."""


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
        make_id: Callable[[], UUID],
        public_url: str,
        seen_link: Callable[[Parcel, datetime], str | None] = lambda parcel, now: None,
        answer_links: Links | None = None,
    ) -> None:
        self._pool = pool
        self._channels = channels
        self._roster = roster
        self._patience = patience
        self._now = now
        self._random = random
        self._make_id = make_id
        self._public_url = public_url.rstrip("/")
        self._seen_link = seen_link
        self._answer_links = answer_links
        self._busy: Counter[str] = Counter()
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._attempts: set[asyncio.Task[None]] = set()

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
        """Send what is due now, one message a lane, and wait for the end of it; gives how many there were."""
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
        parcels, _ = await claims.claim(
            self._pool, now, until, self._room(free), self._person, self._make_id, self._public_url
        )
        for parcel in parcels:
            task = asyncio.create_task(self._attempt(parcel))
            self._attempts.add(task)
            self._busy[parcel.channel] += 1
            task.add_done_callback(partial(self._done, parcel.channel))
        return len(parcels)

    def _room(self, free: int) -> claims.Lane:
        places = {c: max(CHANNEL_SENDS_MAX - n, 0) for c, n in self._busy.items()}
        kinds: Counter[str] = Counter()
        for channel, n in self._busy.items():
            kinds[kind(channel)] += n
        left = {k: max(KIND_SENDS_MAX - n, 0) for k, n in kinds.items()}
        return claims.Lane(free, places, CHANNEL_SENDS_MAX, left, KIND_SENDS_MAX)

    def _done(self, channel: str, task: asyncio.Task[None]) -> None:
        self._attempts.discard(task)
        self._busy[channel] -= 1
        if not self._busy[channel]:
            del self._busy[channel]
        # The lane may have a next message.
        self._news.set()

    def _person(self, id: str | None) -> Person | None:
        return self._roster.team().by_id.get(id or "")

    def _letter(self, parcel: Parcel) -> Letter:
        page = "alerts" if parcel.is_digest else page_of(parcel.journey_id, parcel.lead_id)
        return Letter(
            str(parcel.id), parcel.subject, parcel.body, f"{self._public_url}/{page}",
            None if parcel.is_digest else self._seen_link(parcel, self._now()),
            str(parcel.lead_id), tuple(str(id) for id in parcel.alert_ids), parcel.earlier,
            parcel.thread, parcel.is_digest, parcel.is_repeat, self._answer(parcel),
        )  # fmt: skip

    def _answer(self, parcel: Parcel) -> Answer | None:
        """Make the link by which the addressee answers; it is kept nowhere, and outlives the deadline."""
        links, offer = self._answer_links, parcel.offer
        if links is None or offer is None or parcel.addressee_id is None:
            return None
        now = self._now()
        at = max(now, offer.due_at) if offer.due_at is not None else now
        token = links.token(offer.handoff_id, parcel.addressee_id, at)
        return Answer(links.url(token), token, offer.reasons)

    async def _attempt(self, parcel: Parcel) -> None:
        began = time.monotonic()
        if parcel.settled is not None:
            ending = Ending(parcel.settled, parcel.why, 0, self._now())
        else:
            person = self._person(parcel.addressee_id)
            outcome = await self._channels.send(parcel.channel, person, self._letter(parcel))
            now = self._now()
            resting = await self._heed(parcel, outcome, now)
            latency_ms = round((time.monotonic() - began) * 1000)
            ending = self._judge(parcel, outcome, now, latency_ms, resting=resting)
        if not await self._record(parcel, ending):
            return
        metrics.DELIVERIES.labels(kind(parcel.channel), ending.status).inc(len(parcel.alert_ids))
        metrics.DELIVERY_SECONDS.labels(kind(parcel.channel)).observe(time.monotonic() - began)
        if ending.status == "dead":
            metrics.DEAD_LETTERS.labels("delivery").inc(len(parcel.alert_ids))
            _log.warning(
                "delivery.dead", alert_id=str(parcel.alert_ids[0]), channel=parcel.channel,
                attempt=parcel.attempt, reason=ending.reason,
            )  # fmt: skip

    async def _heed(self, parcel: Parcel, outcome: Outcome, now: datetime) -> bool:
        """Note what the outcome says about the channel; gives whether the channel rests now."""
        lease = parcel.claimed_until
        try:
            if outcome.retry_after_s is not None:
                await breakers.rest(
                    self._pool, parcel.channel, outcome.retry_after_s, outcome.reason, now, lease
                )
                return True
            if outcome.down:
                in_a_row = await breakers.failed(
                    self._pool, parcel.channel, outcome.reason, now, lease
                )
                return in_a_row >= breakers.FAILURES_MAX
            if parcel.channel_failed and outcome.result == "skipped":
                await breakers.untried(self._pool, parcel.channel, lease)
            elif parcel.channel_failed:  # it answered, though perhaps not what one likes to hear
                await breakers.works(self._pool, parcel.channel, now, lease)
        except (*DATABASE_AWAY, asyncpg.PostgresError) as error:
            _log.warning("channel.unrecorded", reason=type(error).__name__)
        return False

    def _judge(
        self, parcel: Parcel, outcome: Outcome, now: datetime, latency_ms: int, *, resting: bool
    ) -> Ending:
        status: Status = outcome.result
        if status != "failed":
            return Ending(status, outcome.reason, latency_ms, now, ref=outcome.ref)
        # While the channel rests the tries are not used up: it is not the message's fault.
        old = (now - parcel.created_at).total_seconds() > self._patience.keep_s
        spent = parcel.attempt >= parcel.last_attempt and not (resting and not old)
        if outcome.permanent or spent:
            return Ending("dead", outcome.reason, latency_ms, now, ambiguous=outcome.ambiguous)
        try_number = max(self._patience.tries - (parcel.last_attempt - parcel.attempt), 1)
        wait_s = delay_s(try_number, self._patience, self._random)
        if resting:  # the channel says when: the message is ready as soon as it is
            wait_s = min(outcome.retry_after_s or 0.0, RETRY_AFTER_S_MAX)
        return Ending(
            "failed", outcome.reason, latency_ms, now, now + timedelta(seconds=wait_s),
            not resting, outcome.ambiguous,
        )  # fmt: skip

    async def _record(self, parcel: Parcel, ending: Ending) -> bool:
        """Record the end of an attempt, again and again until the claim runs out."""
        backoff_s = POLL_S
        while True:
            try:
                return await claims.finish(self._pool, parcel, ending)
            except (*DATABASE_AWAY, asyncpg.PostgresError) as error:
                if self._now() >= parcel.claimed_until:
                    _log.warning("delivery.unrecorded", reason=type(error).__name__)
                    return False
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
                await asyncio.sleep(backoff_s)
