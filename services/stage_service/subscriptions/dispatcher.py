"""Delivers for a fair share of all subscriptions, beside whatever other processes deliver too.

One task holds one session: it takes subscriptions nobody holds (an advisory lock each) and gives up what is
over its share, follows changes by hand, records results, and loads rows that are due. When the session is
lost, so are the locks: everything is dropped, and another process, or this one with a new session, begins
from what is recorded. Deliveries under way then are made again; none is missed, and each lead keeps order.
What one process cannot deliver for (it lacks the key of its secrets, say) it leaves to the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import structlog

from services.stage_service.subscriptions import metrics, shares, store_session
from services.stage_service.subscriptions.courses import CourseError, Courses
from services.stage_service.subscriptions.filters import Words
from services.stage_service.subscriptions.pace import Pace
from services.stage_service.subscriptions.recorder import Recorder
from services.stage_service.subscriptions.sender import Sender
from services.stage_service.subscriptions.shares import Look, Seen
from services.stage_service.subscriptions.tail import (
    PrunedError,
    Tail,
    first_position,
    refuse_pruned,
)
from services.stage_service.subscriptions.window import OPEN_LEADS_MAX, Window

LOOK_S = 0.5
"""How often changes by hand, other processes and due rows are looked for, if nobody tells."""
GATHER_S = 0.02
"""Results wait at most so long to be recorded together."""
GATHER_RECORDS = 200
TICK_S = 0.1
STOP_WITHIN_S = 3.0
GIVE_UP_WITHIN_S = 2.0
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 2.0
OPEN_AGAIN_S = 10.0
REFUSED_AT_ONCE = 10
"""So many a look are taken of what somebody cannot deliver for: processes that all can share them."""
PRUNE_EVERY_S = 60.0
PRUNE_AGAIN_S = 1.0
KEEP = timedelta(days=30)

_log = structlog.get_logger("baton.subscriptions")


class Dispatcher:
    """Runs until stopped. `now` tells the time that schedules go by."""

    def __init__(
        self, database_url: str, courses: Courses, tail: Tail, now: Callable[[], datetime],
        random: Callable[[], float] = random.random, keep: timedelta = KEEP,
    ) -> None:  # fmt: skip
        self._database_url = database_url
        self._courses = courses
        self._tail = tail
        self._now = now
        self._random = random
        self._keep = keep
        self._senders: dict[str, Sender] = {}
        self._held: set[str] = set()
        self._retiring: dict[str, asyncio.Task[None]] = {}
        self._unlock: set[str] = set()
        """Retiring ones whose lock is let go after."""
        self._unopened: dict[str, tuple[int, Words | None, float]] = {}
        """What could not be opened, and is refused: its version, `CourseError.words`, and when."""
        self._news = asyncio.Event()
        self._told = False
        self._stopping = asyncio.Event()
        self._recorder = Recorder(now, self._news.set)
        self._task: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._looked_at = -math.inf
        self._pruned_at = time.monotonic()
        self.is_member = False
        """Whether it has a session, and so a share of the subscriptions."""

    @property
    def held(self) -> frozenset[str]:
        """The ids of the subscriptions delivered for here."""
        return frozenset(self._senders)

    def start(self) -> None:
        """Start."""
        self._task = asyncio.create_task(self._run(), name="subscriptions")
        self._ticker = asyncio.create_task(self._tick(), name="subscriptions-tick")

    def grown(self) -> None:
        """Say that the log has grown."""
        for sender in list(self._senders.values()):
            sender.pump()

    async def stop(self) -> None:
        """Let what is under way end, a few seconds at most, record it, and let the subscriptions go."""
        self._stopping.set()
        self._news.set()
        tasks = [t for t in (self._task, self._ticker) if t is not None]
        if self._task is not None:
            await asyncio.wait([self._task], timeout=2 * STOP_WITHIN_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tick(self) -> None:
        """Begin what waited for time to pass."""
        measured = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            self.grown()
            if time.monotonic() - measured > 1.0:
                measured = time.monotonic()
                metrics.HELD.set(len(self._senders))
                for sender in self._senders.values():
                    if not sender.closing:
                        sender.measure()

    async def _run(self) -> None:
        backoff_s = BACKOFF_MIN_S
        failing = False
        while not self._stopping.is_set():
            connection: asyncpg.Connection[Any] | None = None
            began = time.monotonic()
            try:
                connection = await shares.open_session(self._database_url, self._hear)
                self.is_member = True
                await self._deliver(connection)
            except Exception as error:  # the session is lost, or the database away: begin anew
                if time.monotonic() - began > BACKOFF_MAX_S:
                    failing, backoff_s = False, BACKOFF_MIN_S
                if not failing:
                    failing = True
                    _log.warning("subscriptions.session_lost", reason=repr(error)[:200])
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
            finally:
                self.is_member = False
                await self._drop_all()
                if connection is not None:
                    with contextlib.suppress(Exception):
                        await connection.close(timeout=2)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._stopping.wait()

    def _hear(self, *_: object) -> None:
        self._told = True
        self._news.set()

    async def _deliver(self, connection: asyncpg.Connection[Any]) -> None:
        """Do everything that needs the session, until told to stop."""
        self._looked_at = -math.inf
        while not self._stopping.is_set():
            self._news.clear()
            if self._told or time.monotonic() - self._looked_at >= LOOK_S:
                self._told = False
                await self._look(connection)
                self._looked_at = time.monotonic()
            await self._recorder.flush(connection, self._senders)
            await self._end_retired(connection)
            await self._load_due(connection)
            await self._rest()
        await asyncio.gather(*(s.wait_idle(STOP_WITHIN_S) for s in self._senders.values()))
        await self._recorder.flush(connection, self._senders, all=True)

    async def _rest(self) -> None:
        """Wait for news, gathering a little; not longer than until the next look."""
        left_s = LOOK_S - (time.monotonic() - self._looked_at)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(left_s, 0.001)):
                await self._news.wait()
        if len(self._recorder.pending) < GATHER_RECORDS and not self._stopping.is_set():
            await asyncio.sleep(GATHER_S)

    async def _look(self, connection: asyncpg.Connection[Any]) -> None:
        """Follow what changed by hand, and keep to a fair share."""
        look = await shares.look(connection)
        active = {seen.id: seen for seen in look.active}
        for id, sender in list(self._senders.items()):
            if id not in self._retiring:
                await self._follow(connection, sender, active.get(id))
        await self._claim(connection, look, active)
        for id in list(self._held):
            if id not in self._senders and id not in self._retiring:
                await self._open(connection, id, active.get(id))
        if time.monotonic() - self._pruned_at > PRUNE_EVERY_S:
            self._pruned_at = time.monotonic()
            await self._prune(connection)

    async def _claim(
        self, connection: asyncpg.Connection[Any], look: Look, active: Mapping[str, Seen]
    ) -> None:
        """Give up what is over a fair share, and take what nobody holds.

        What somebody cannot deliver for is in nobody's share: whoever can takes it beside.
        """
        await self._refuse_no_more(connection, active)
        refused = {id for id in active if shares.lock_key(id) in look.refused}
        share = math.ceil((len(active) - len(refused)) / max(1, look.members))
        staying = [
            id for id in self._held
            if id in active and id not in refused and id not in self._unlock
        ]  # fmt: skip
        for id in staying[share:]:
            self._retire(id, GIVE_UP_WITHIN_S, unlock=True)
        # Two that share a lock by chance are both ours, or both somebody else's.
        locked = look.locked - {shares.lock_key(id) for id in self._held}
        free = [
            id for id, seen in active.items()
            if id not in self._held and shares.lock_key(id) not in locked
            and not self._was_tried(seen)
        ]  # fmt: skip
        wanted = [id for id in free if id not in refused][: max(0, share - len(staying))]
        tried_at = {id: at for id, (_, _, at) in self._unopened.items()}
        beside = sorted(refused.intersection(free), key=lambda each: tried_at.get(each, -math.inf))
        wanted += beside[:REFUSED_AT_ONCE]
        if wanted:
            self._held.update(await shares.claim(connection, wanted))

    def _was_tried(self, seen: Seen) -> bool:
        """Tell whether it could not be opened a moment ago, and is as it was then."""
        version, words, tried_at = self._unopened.get(seen.id, (-1, None, -math.inf))
        is_as_then = version == seen.version and words in (None, self._courses.words)
        return is_as_then and time.monotonic() - tried_at < OPEN_AGAIN_S

    async def _refuse_no_more(
        self, connection: asyncpg.Connection[Any], active: Mapping[str, Seen]
    ) -> None:
        """Take back what was refused and is no more, or not the same any more, or may suit the playbooks."""
        for id, (version, words, _) in list(self._unopened.items()):
            is_reworded = words is not None and words != self._courses.words
            if is_reworded or id not in active or active[id].version != version:
                del self._unopened[id]
                await shares.refuse_no_more(connection, id)

    async def _follow(
        self, connection: asyncpg.Connection[Any], sender: Sender, seen: Seen | None
    ) -> None:
        """Bring `sender` to what was seen of its subscription."""
        if seen is None:  # paused, stopped or deleted
            self._retire(
                sender.id, sender.course.subscription.timeout_s + GIVE_UP_WITHIN_S, unlock=True
            )
        elif seen.run != sender.run or sender.is_broken:
            # What is under way belongs to the run before: the new one sends it again.
            self._retire(sender.id, 0.0, unlock=False)
        else:
            course = sender.course
            is_reworded = course.words is not None and course.words != self._courses.words
            if is_reworded or seen.version != course.subscription.version:
                await self._change(connection, sender, seen.version)
            if seen.due_at is not None:
                sender.due_at = min(sender.due_at or seen.due_at, seen.due_at)
            if sender.log_held:
                await self._learn_leads(connection, sender)

    async def _change(
        self, connection: asyncpg.Connection[Any], sender: Sender, version: int
    ) -> None:
        try:
            course = await self._courses.open(connection, sender.id, self._now())
        except CourseError as error:
            await self._refuse(connection, sender.id, version, error)
            self._retire(sender.id, GIVE_UP_WITHIN_S, unlock=True)
            return
        if course is None or course.subscription.state != "active":
            return  # since the look; the next one sees it
        if course.subscription.ordered != sender.window.ordered:
            self._retire(sender.id, GIVE_UP_WITHIN_S, unlock=False)
        place = await store_session.place(connection, sender.id)
        if sender.saved_failing is not None and place and place.failing_since is None:
            sender.pace.begin_anew()  # it was stopped or paused, and resumed, between two looks
            sender.saved_failing = None
        sender.reconfigure(course)

    async def _open(self, connection: asyncpg.Connection[Any], id: str, seen: Seen | None) -> None:
        """Begin to deliver for one whose lock is held."""
        if seen is None:
            await self._let_go(connection, id)
            return
        try:
            # Read anew: whoever held it before may have moved it since the look.
            place = await store_session.place(connection, id)
            if place is not None:
                refuse_pruned(place.position, await first_position(connection))
            course = await self._courses.open(connection, id, self._now())
        except (CourseError, PrunedError) as error:
            await self._refuse(connection, id, seen.version, error)
            await self._let_go(connection, id)
            return
        if self._unopened.pop(id, None) is not None:
            await shares.refuse_no_more(connection, id)
        if course is None or place is None or course.subscription.state != "active":
            await self._let_go(connection, id)
            return
        now = self._now()
        recorded = await store_session.recorded_after(connection, id, place.run, place.position)
        ordered = course.subscription.ordered
        leads: list[str] = []
        if ordered:
            leads = await store_session.open_leads(connection, id, now)
        else:
            await store_session.end_waiting(connection, id, now)
        since = place.failing_since
        pace = Pace(
            course.subscription.concurrency, course.subscription.rate_per_s,
            None if since is None else since.timestamp(), now.timestamp(), self._random,
        )  # fmt: skip
        window = Window(place.position, ordered=ordered, recorded=recorded, leads=leads)
        sender = Sender(
            course, place.run, window, pace, self._tail, self._recorder, self._now, self._random
        )
        sender.log_held = len(leads) > OPEN_LEADS_MAX
        sender.due_at = datetime.min.replace(tzinfo=UTC)
        self._senders[id] = sender
        sender.pump()

    async def _learn_leads(self, connection: asyncpg.Connection[Any], sender: Sender) -> None:
        """Read the log on once few enough leads have something open."""
        leads = await store_session.open_leads(connection, sender.id, self._now())
        sender.window.blocked.update(leads)
        sender.log_held = len(leads) > OPEN_LEADS_MAX

    async def _refuse(
        self, connection: asyncpg.Connection[Any], id: str, version: int, error: Exception
    ) -> None:
        """Note that it cannot be delivered for here, at this version of it."""
        if self._unopened.get(id, (None,))[0] != version:
            _log.error("subscription.cannot_deliver", subscription=id, reason=str(error))
        if id not in self._unopened:
            await shares.refuse(connection, id)
        words = error.words if isinstance(error, CourseError) else None
        self._unopened[id] = (version, words, time.monotonic())

    def _retire(self, id: str, within_s: float, *, unlock: bool) -> None:
        """Stop delivering for `id`, letting what is under way end; then, with `unlock`, let it go."""
        if unlock:
            self._unlock.add(id)
        sender = self._senders.get(id)
        if id not in self._retiring:
            waiting = sender.wait_idle(within_s) if sender is not None else asyncio.sleep(0)
            task = asyncio.create_task(waiting, name="retire")
            task.add_done_callback(lambda _: self._news.set())
            self._retiring[id] = task

    async def _end_retired(self, connection: asyncpg.Connection[Any]) -> None:
        ended = [id for id, task in self._retiring.items() if task.done()]
        if not ended:
            return
        await self._recorder.flush(connection, self._senders, all=True)
        for id in ended:
            del self._retiring[id]
            self._senders.pop(id, None)
            if id in self._unlock:
                await self._let_go(connection, id)
        self._looked_at = -math.inf

    async def _let_go(self, connection: asyncpg.Connection[Any], id: str) -> None:
        self._unlock.discard(id)
        self._held.discard(id)
        await shares.release(connection, id)

    async def _load_due(self, connection: asyncpg.Connection[Any]) -> None:
        """Bring rows that are due to the senders that take more."""
        now = self._now()
        wanted: dict[str, int] = {}
        asked: list[tuple[str, int, bool, bool]] = []
        for id, sender in self._senders.items():
            window = sender.window
            count = window.wants_rows
            if sender.closing or sender.stopped is not None or not count:
                continue
            early = (
                sender.pace.down
                and not window.can_send
                and sender.pace.free(now.timestamp(), len(window.sending)) > 0
            )
            if early or (sender.due_at is not None and sender.due_at <= now):
                wanted[id] = 1 if early else count
                asked.append((id, wanted[id], window.ordered, early))
        if not asked:
            return
        here = [d for id in wanted for d in self._senders[id].window.rows]
        found = await store_session.due(connection, asked, [*here, *self._recorder.pending], now)
        for id, delivery, is_due in found:
            wanted[id] -= is_due
            self._senders[id].window.take_row(delivery)
        for id, left in wanted.items():
            if left > 0:
                self._senders[id].due_at = None  # until the next look
            self._senders[id].pump()

    async def _prune(self, connection: asyncpg.Connection[Any]) -> None:
        """Delete what was done long ago, a little at a time."""
        moment = int((self._now() - self._keep).timestamp() * 1000)
        before = str(uuid.UUID(int=moment << 80))
        ids = {*self._senders, *await store_session.at_rest(connection)}
        deleted = [await store_session.prune(connection, id, before) for id in ids]
        if any(count >= store_session.PRUNE_ROWS_MAX for count in deleted):
            self._pruned_at -= PRUNE_EVERY_S - PRUNE_AGAIN_S

    async def _drop_all(self) -> None:
        """Drop everything that belonged to the session."""
        senders, self._senders = self._senders, {}
        retiring, self._retiring = self._retiring, {}
        self._held.clear()
        self._unlock.clear()
        self._unopened.clear()
        for task in retiring.values():
            task.cancel()
        await asyncio.gather(
            *retiring.values(), *(s.cut_off() for s in senders.values()), return_exceptions=True
        )
        self._recorder.forget()
