"""Records what deliveries came to, for all subscriptions of the process, on the session with their locks.

Results are collected while the last ones are being written, so however many there are, each costs a share of
one transaction: rows, the next of each lead made due, cursors, and what became of the subscription itself,
with the message that tells of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import structlog
import uuid_utils

from services.contracts import postgres_log
from services.contracts.events import (
    SUBSCRIPTION_STOPPED,
    SUBSCRIPTIONS_TOPIC,
    Message,
    message_headers,
)
from services.contracts.published import SubscriptionStopped
from services.stage_service.subscriptions import metrics, store_session
from services.stage_service.subscriptions.sender import Sender
from services.stage_service.subscriptions.store_session import Record

PENDING_MAX = 5000
CURSOR_EVERY_S = 2.0
"""How often a cursor is saved that moved over nothing but what is for others."""
FAILING_EVERY_S = 1.0
_OPEN = ("waiting", "due")

_log = structlog.get_logger("baton.subscriptions")


class Recorder:
    """Collects results (it is the senders' `Book`) and writes them; `news` is called when there are some."""

    def __init__(self, now: Callable[[], datetime], news: Callable[[], None]) -> None:
        self._now = now
        self._news = news
        self.pending: dict[str, Record] = {}
        """What is to be written, by the delivery's id."""
        self._failing_at = 0.0

    @property
    def is_full(self) -> bool:
        """Whether so much is to be recorded that nothing more should be begun."""
        return len(self.pending) >= PENDING_MAX

    def note(self, record: Record) -> None:
        """Take a result; a later one of the same delivery joins the one that is not written yet."""
        earlier = self.pending.get(record.delivery.id)
        if earlier is not None:
            record.attempts = earlier.attempts + record.attempts
            record.exists = earlier.exists
        self.pending[record.delivery.id] = record
        self._news()

    def forget(self) -> None:
        """Drop what is not written: the session is lost, and whoever takes over begins before it."""
        self.pending.clear()

    async def flush(
        self,
        connection: asyncpg.Connection[Any],
        senders: Mapping[str, Sender],
        *,
        all: bool = False,
    ) -> None:
        """Write what there is to write. With `all`, cursors too that could wait."""
        began = time.monotonic()
        records, self.pending = list(self.pending.values()), {}
        batch = _Batch(records, senders, began, all=all or None, failing=self._failing_due(began))
        if not batch:
            return
        try:
            await self._write(connection, batch)
        except asyncpg.DataError as error:
            # Something an endpoint said cannot be stored: what became of the deliveries can.
            _log.error("deliveries.refused", reason=type(error).__name__)
            for record in records:
                record.attempts = [{"number": a["number"], "at": a["at"]} for a in record.attempts]
            await self._write(connection, batch)
        batch.keep(began, self._open_leads())
        metrics.FLUSH_SECONDS.observe(time.monotonic() - began)

    def _failing_due(self, moment: float) -> bool:
        due = moment - self._failing_at > FAILING_EVERY_S
        if due:
            self._failing_at = moment
        return due

    def _open_leads(self) -> set[tuple[str, str]]:
        return {
            (r.subscription_id, r.delivery.lead) for r in self.pending.values() if r.state in _OPEN
        }

    async def _write(self, connection: asyncpg.Connection[Any], batch: _Batch) -> None:
        now = self._now()
        async with connection.transaction():
            runs = await store_session.lock_cursors(connection, batch.ids)
            records = [
                r for r in batch.records
                if r.exists or r.state not in _OPEN or runs.get(r.subscription_id) == r.delivery.run
            ]  # fmt: skip
            await store_session.write(connection, records)
            batch.promoted = (
                await store_session.promote(connection, batch.leads, now) if batch.leads else []
            )
            if batch.recovered:
                await store_session.make_due(connection, [s.id for s in batch.recovered], now)
            if batch.cursors:
                await store_session.move_cursors(
                    connection, [(s.id, s.run, position) for s, position in batch.cursors]
                )
            if batch.failing:
                await store_session.note_failing(
                    connection, [(s.id, _moment(since)) for s, since in batch.failing]
                )
            for sender, (state, reason) in batch.stopped:
                await _stop(connection, sender, state, reason, now)


class _Batch:
    """What one transaction writes, taken from the senders at one moment."""

    def __init__(
        self, records: Sequence[Record], senders: Mapping[str, Sender], moment: float, *,
        all: bool | None, failing: bool,
    ) -> None:  # fmt: skip
        self.records = records
        self.promoted: list[tuple[str, str, bool, bool]] = []
        self._senders = senders
        told = {r.subscription_id for r in records}
        self.cursors = [
            (s, s.window.cursor) for s in senders.values()
            if s.window.cursor > s.saved_cursor
            and (all or s.id in told or moment - s.saved_at > CURSOR_EVERY_S)
        ]  # fmt: skip
        self.failing = [
            (s, s.pace.failing_since) for s in senders.values()
            if (failing or all or s.stopped) and s.pace.failing_since != s.saved_failing
        ]  # fmt: skip
        self.recovered = [s for s in senders.values() if s.recovered]
        for sender in self.recovered:
            sender.recovered = (
                False  # taken: it may go down and recover again while this is written
            )
        self.stopped = [
            (s, s.stopped) for s in senders.values() if s.stopped is not None and not s.is_told
        ]
        self.leads = list({
            (r.subscription_id, r.delivery.lead) for r in records if self._turns_over(r)
        })  # fmt: skip
        touched = [*self.cursors, *self.failing, *self.stopped]
        self.ids = sorted(told | {s.id for s, _ in touched} | {s.id for s in self.recovered})

    def __bool__(self) -> bool:
        return bool(self.ids)

    def _turns_over(self, record: Record) -> bool:
        """Tell whether after this record another delivery of the lead may have become the first open one."""
        if record.delivery.position is None:
            return False
        if record.state in _OPEN:
            return record.state == "waiting"
        sender = self._senders.get(record.subscription_id)
        return sender is None or record.delivery.lead in sender.window.blocked

    def keep(self, moment: float, open_leads: set[tuple[str, str]]) -> None:
        """Tell the senders what was written; `open_leads` are those of results that came meanwhile."""
        for sender, position in self.cursors:
            sender.saved_cursor = max(sender.saved_cursor, position)
            sender.saved_at = moment
        for sender, since in self.failing:
            sender.saved_failing = since
        for sender in self.recovered:
            sender.due_at = datetime.min.replace(tzinfo=UTC)
        for sender, _ in self.stopped:
            sender.is_told = True
        for id, lead, is_open, promoted in self.promoted:
            sender = self._senders.get(id)
            if sender is not None and promoted:
                sender.due_at = datetime.min.replace(tzinfo=UTC)
            if sender is not None and not is_open and (id, lead) not in open_leads:
                sender.window.unblock(lead)


async def _stop(
    connection: asyncpg.Connection[Any], sender: Sender, state: str, reason: str, now: datetime
) -> None:
    """Stop a subscription and tell of it, unless somebody changed it meanwhile."""
    version = sender.course.subscription.version
    row = await store_session.stop(connection, sender.id, version, state, reason, now)
    if row is None:
        return
    metrics.STOPPED.labels(state).inc()
    _log.warning("subscription.stopped", subscription=sender.id, state=state, reason=reason)
    stop_id = str(uuid_utils.uuid7())
    told = SubscriptionStopped(
        stop_id, sender.id, row["name"], state, reason, row["contact"], row["failing_since"], now, now
    )  # fmt: skip
    headers = message_headers(stop_id, SUBSCRIPTION_STOPPED, now, subject=sender.id)
    message = Message(SUBSCRIPTIONS_TOPIC, sender.id, headers, msgspec.json.encode(told))
    await postgres_log.write(connection, [message])


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
