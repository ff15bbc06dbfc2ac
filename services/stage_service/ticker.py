"""Fires clocks: what is due becomes a lead event, once, whoever finds it and whenever a process dies.

A due row is claimed for some seconds and its event submitted to the lane, which writes the row's next step in
the transaction of the event. Two who claim the same make the same event id: the second is a repeat (I2). What
came due while nobody ran fires at the start, marked late.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

import asyncpg
import structlog

from services.contracts.database import DATABASE_AWAY
from services.contracts.events import SOURCE, LeadEvent, rfc3339
from services.contracts.handoffs import CLOCK_REMINDED
from services.stage_service import clocks, metrics, store_handoffs
from services.stage_service.errors import OverloadedError, UnavailableError
from services.stage_service.funnel import active_at, journey_name
from services.stage_service.identities import LEAD_IDENTITY
from services.stage_service.lane import Lane
from services.stage_service.playbook import ClockPlan
from services.stage_service.store import unpack_record
from services.stage_service.store_handoffs import DueClock

POLL_S = 0.25
BACKOFF_MAX_S = 5.0
AT_ONCE_MAX = 500
STOP_WITHIN_S = 5.0

_AWAY = (*DATABASE_AWAY, UnavailableError, OverloadedError)
_log = structlog.get_logger("baton.ticker")


class Ticker:
    """Fires what is due until stopped; `now` gives the present moment."""

    def __init__(self, pool: asyncpg.Pool[Any], lane: Lane, now: Callable[[], datetime]) -> None:
        self._pool = pool
        self._lane = lane
        self._now = now
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the loop."""
        self._loop = asyncio.create_task(self._run(), name="ticker")

    async def stop(self) -> None:
        """End the loop after the round it is in. The lane must still run."""
        self._stopping.set()
        if self._loop is not None:
            await asyncio.wait({self._loop}, timeout=STOP_WITHIN_S)
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def run_due(self) -> int:
        """Fire what is due now, at most `AT_ONCE_MAX`; gives how many clocks were found due.

        Raises what the database and the lane raise; what is due stays due.
        """
        now = self._now()
        async with self._pool.acquire() as connection:
            due = await store_handoffs.claim_due(connection, now, AT_ONCE_MAX)
        if not due:
            return 0
        if any(self._plan(clock) is None for clock in due):
            await self._lane.look_at_playbooks()  # wound under a version that we have not seen yet
        events: list[LeadEvent] = []
        moved: list[tuple[str, datetime, datetime, datetime]] = []
        for clock in due:
            made = self._event(clock, now)
            if isinstance(made, LeadEvent):
                events.append(made)
            else:
                moved.append(made)
        ids = [c.id for c in due]
        try:
            if moved:
                async with self._pool.acquire() as connection:
                    await store_handoffs.put_off(connection, moved)
            await self._lane.submit(events)
        except _AWAY:
            with contextlib.suppress(*DATABASE_AWAY):  # else the claim runs out by itself
                async with self._pool.acquire() as connection:
                    await store_handoffs.release(connection, ids, now, void=False)
            raise
        async with self._pool.acquire() as connection:
            # What neither was moved nor met its journey stands for nothing any more.
            put_off = {m[0] for m in moved}
            rest = [id for id in ids if id not in put_off]
            await store_handoffs.release(connection, rest, now, void=True)
        metrics.CLOCKS_FIRED.inc(len(events))
        for event in events:
            metrics.CLOCK_LATENESS.observe(max((now - event.time).total_seconds(), 0))
        return len(due)

    def _event(
        self, clock: DueClock, now: datetime
    ) -> LeadEvent | tuple[str, datetime, datetime, datetime]:
        """Give the lead event of a due clock; or, when its lead was active, to when it moves."""
        plan = self._plan(clock)
        if plan is None:  # no clock of the playbook any more: the lane ends it
            return _lead_event(clock, CLOCK_REMINDED, clocks.GONE_STEP, clock.due_at, now)
        if clock.state is not None and clock.step == 0:
            since = _active(clock)
            if since is not None and since > clock.since:
                return self._moved(clock, plan, since)
        step, due_at = clocks.step_now(
            plan, clock.step, clock.due_at, clock.deadline, now, missed=clock.missed_at is not None
        )
        steps = clocks.steps_of(plan)
        if step >= len(steps):  # the ladder is shorter by now
            return _lead_event(clock, CLOCK_REMINDED, clocks.GONE_STEP, clock.due_at, now)
        kind, name = steps[step].kind, steps[step].name
        return _lead_event(clock, clocks.EVENT_TYPES[kind], name, due_at, now)

    def _plan(self, clock: DueClock) -> ClockPlan | None:
        playbook = self._lane.playbooks.get(clock.playbook)
        return clocks.plan_of(playbook, clock.key) if playbook is not None else None

    def _moved(
        self, clock: DueClock, plan: ClockPlan, since: datetime
    ) -> tuple[str, datetime, datetime, datetime]:
        person = self._lane.team.by_id.get(clock.person_id or "")
        step, begin = clocks.steps_of(plan)[clock.step], max(since, clock.begin)
        return (
            clock.id, since, clocks.reached(plan, begin, plan.within_s, person),
            clocks.reached(plan, begin, step.offset_s, person),
        )  # fmt: skip

    async def _run(self) -> None:
        backoff_s = POLL_S
        failing = ""
        while not self._stopping.is_set():
            more = False
            try:
                more = await self.run_due() == AT_ONCE_MAX
                failing, backoff_s = "", POLL_S
            except Exception as error:  # the database is away, or full: what is due stays due
                if failing != type(error).__name__:
                    failing = type(error).__name__
                    _log.warning("ticker.failed", reason=failing)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
            if not more:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), backoff_s)


def _lead_event(
    clock: DueClock, type: str, step: str, due_at: datetime, now: datetime
) -> LeadEvent:
    """Make the lead event of a clock's step; its time is when it was due."""
    data = {
        "clock": clock.key, "kind": clock.kind, "playbook": clock.playbook, "stage": clock.stage,
        "role": clock.role, "since": rfc3339(clock.since), "deadline": rfc3339(clock.deadline),
        "step": step, "round": clock.round, "fired_at": rfc3339(now),
        "late": now - due_at > clocks.LATE_AFTER,
    }  # fmt: skip
    return LeadEvent(
        id=clocks.event_id(clock.id, clock.since, step), source=SOURCE, type=type, time=due_at,
        recorded_at=now, subject=None, identities=((LEAD_IDENTITY, clock.lead_id),),
        deal=clock.deal, data=data, envelope={},
    )  # fmt: skip


def _active(clock: DueClock) -> datetime | None:
    """Give when the lead of a clock was last active in its journey, as its state says."""
    assert clock.state is not None  # noqa: S101
    lead = unpack_record(clock.lead_id, clock.state).lead
    journey = lead.journeys.get(journey_name(clock.playbook, clock.deal)) if lead else None
    return active_at(lead, journey) if lead is not None and journey is not None else None
