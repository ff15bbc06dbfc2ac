"""Leads as they are now, on the compacted topic ``baton.leads``: the newest message of a key holds.

While the row of ``stage.snapshot_feed`` is there, every batch notes which leads it changed (one narrow row,
in its own transaction, so nothing is forgotten). One process, under an advisory lock, reads the present
state of what was noted about once a second, publishes it, and deletes the notes after that: a crash repeats,
and never skips. An older state never follows a newer one: `contracts.kafka_snapshots` fences off an earlier
leader before the first read. Leads from before are published once, in id order; so are all again when the
topic is new or was made anew, or `fill_again` says so. While nothing can be published, notes are put
together: they are as many as there are leads, and not as there are changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, Protocol

import asyncpg
import msgspec
import structlog
import uuid_utils
from sqlalchemy.ext.asyncio import AsyncEngine

from services.contracts.events import LEAD_SNAPSHOT, LEADS_TOPIC, Snapshot, message_headers
from services.stage_service import metrics
from services.stage_service.whole_leads import Leads, whole_leads, without_the_longest

EVERY_S = 1.0
"""A lead has at most one message in this time, however often it changes."""
NOTES_MAX = 2000
LEADS_A_TIME = 250
LOOK_S = 30.0
"""How often it is looked whether the topic was made anew."""
NOTES_KEPT_MAX = 50_000
"""More notes than that, and those of the same leads are put together."""
LEADS_A_NOTE = 50
STANDBY_POLL_S = 0.5
BACKOFF_MAX_S = 5.0
STOP_WITHIN_S = 5.0
VALUE_BYTES_MAX = 900 * 1024
"""What a broker with Kafka's defaults takes; a lead over it is published without its longest attributes."""
ATTRIBUTES_BYTES_MAX = 256 * 1024

_LOCK = 0x6261746F_0003
_FIRST = "00000000-0000-0000-0000-000000000000"
_encode = msgspec.json.Encoder().encode
_log = structlog.get_logger("baton.snapshots")


class Writer(Protocol):
    """The writing end of a compacted topic."""

    async def write(self, snapshots: Sequence[Snapshot]) -> None:
        """Make `snapshots` durable; raises when that is not certain."""
        ...

    async def is_new_topic(self) -> bool:
        """Tell whether nothing was ever written to the topic, or it was made anew since this was asked."""
        ...


class Snapshots:
    """Publishes snapshots until stopped. `open_writer` fences off whoever wrote before."""

    def __init__(
        self,
        database_url: str,
        engine: AsyncEngine,
        open_writer: Callable[[], AbstractAsyncContextManager[Writer]],
        now: Callable[[], datetime],
        look_s: float = LOOK_S,
    ) -> None:
        self._database_url = database_url
        self._engine = engine
        self._open_writer = open_writer
        self._now = now
        self._look_s = look_s
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the loop."""
        self._loop = asyncio.create_task(self._run(), name="snapshots")

    async def stop(self) -> None:
        """End the loop after the round it is in; what is not published stays noted."""
        self._stopping.set()
        if self._loop is not None:
            await asyncio.wait({self._loop}, timeout=STOP_WITHIN_S)
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def _run(self) -> None:
        backoff_s, failing = STANDBY_POLL_S, ""
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                async with self._leading() as connection:
                    if connection is not None:
                        await self._publish(connection)
            except Exception as error:  # database or broker away, or fenced off: lead anew
                if failing != type(error).__name__:
                    failing = type(error).__name__
                    _log.warning("snapshots.failed", reason=repr(error)[:200])
            if time.monotonic() - began > BACKOFF_MAX_S:  # it worked for a while
                backoff_s, failing = STANDBY_POLL_S, ""
            await self._pause(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    @asynccontextmanager
    async def _leading(self) -> AsyncGenerator[asyncpg.Connection[Any] | None]:
        """Wait for the lead; give its session, on which the notes are deleted, or None when stopping."""
        connection = await asyncpg.connect(self._database_url, timeout=5, command_timeout=30)
        try:
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                if await self._pause(STANDBY_POLL_S):
                    yield None
                    return
            yield connection
        finally:
            with contextlib.suppress(Exception):
                await connection.close(timeout=2)

    async def _publish(self, connection: asyncpg.Connection[Any]) -> None:
        await put_together(connection)  # the last leader may have failed for days
        async with self._open_writer() as writer:
            filling = await _begin(connection, is_new=await writer.is_new_topic())
            looked_at = time.monotonic()
            while not self._stopping.is_set():
                began = time.monotonic()
                if began - looked_at > self._look_s:
                    looked_at = began
                    if await writer.is_new_topic():
                        filling = await _begin(connection, is_new=True)
                while await self._publish_noted(connection, writer):
                    pass
                filling = await self._fill(connection, writer, filling, began + EVERY_S)
                await self._pause(began + EVERY_S - time.monotonic())

    async def _publish_noted(self, connection: asyncpg.Connection[Any], writer: Writer) -> bool:
        """Publish the leads that were noted; True when more may be noted."""
        rows = await connection.fetch(
            "SELECT id, lead_ids::text[] AS leads FROM stage.lead_changes ORDER BY id LIMIT $1",
            NOTES_MAX,
        )
        changed = list(dict.fromkeys(id for row in rows for id in row["leads"]))
        for start in range(0, len(changed), LEADS_A_TIME):
            await self._write(writer, changed[start : start + LEADS_A_TIME])
        if rows:
            # By id: a batch that commits later may have a smaller one.
            await connection.execute(
                "DELETE FROM stage.lead_changes WHERE id = ANY($1)", [row["id"] for row in rows]
            )
        return len(rows) == NOTES_MAX

    async def _fill(
        self, connection: asyncpg.Connection[Any], writer: Writer, filling: int, until: float
    ) -> int:
        """Publish leads that may never have been noted, until the next round is due.

        `filling` is the first transaction of which all notes are certain; gives it for the next time.
        """
        while True:
            feed = await connection.fetchrow(
                """SELECT filled_to::text, filled_at,
                     pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8 AS is_certain
                   FROM stage.snapshot_feed""",
                str(filling),
            )
            if feed is None:  # a process without Kafka started meanwhile: batches note nothing
                return await _begin(connection, is_new=True)
            if feed["filled_at"] is not None or not feed["is_certain"]:
                return filling
            ids = await connection.fetch(
                "SELECT id::text FROM stage.leads WHERE id > $1 ORDER BY id LIMIT $2",
                feed["filled_to"] or _FIRST,
                LEADS_A_TIME,
            )
            if ids:
                await self._write(writer, [row["id"] for row in ids])
            # Not when somebody asked meanwhile that it begins again.
            await connection.execute(
                """UPDATE stage.snapshot_feed SET filled_to = coalesce($2::uuid, filled_to),
                     filled_at = CASE WHEN $2::uuid IS NULL THEN now() END
                   WHERE filled_to IS NOT DISTINCT FROM $1::uuid""",
                feed["filled_to"],
                ids[-1]["id"] if ids else None,
            )
            if time.monotonic() > until or self._stopping.is_set():
                return filling

    async def _write(self, writer: Writer, ids: Sequence[str]) -> None:
        found = await whole_leads(self._engine, ids)
        told = [s for id in ids if (s := snapshot_of(id, found, self._now())) is not None]
        await writer.write(told)
        for each in told:
            metrics.SNAPSHOTS.labels("tombstone" if each.value is None else "lead").inc()

    async def _pause(self, seconds: float) -> bool:
        """Wait, at most until stopped; tell whether that came."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), max(seconds, 0))
        return self._stopping.is_set()


def snapshot_of(id: str, found: Leads, now: datetime) -> Snapshot | None:
    """Make the message about the lead `id` of what was `found`; a tombstone when it is no lead any more.

    None for one that no broker takes, which is told in the log.
    """
    headers = message_headers(str(uuid_utils.uuid7()), LEAD_SNAPSHOT, now, subject=id)
    lead = found.shown.get(id)
    if lead is None:
        # A CloudEvent without data: the binding's tombstone (Kafka binding 1.0.2, 3.2.2).
        del headers["content-type"]
        if id in found.merged_into:
            headers["ce_mergedinto"] = found.merged_into[id]
        return Snapshot(id, headers, None)
    value = _encode(lead)
    if len(value) > VALUE_BYTES_MAX:
        kept = without_the_longest(lead["attributes"], ATTRIBUTES_BYTES_MAX)
        value = _encode({**lead, "attributes": kept})
    if len(value) > VALUE_BYTES_MAX:
        _log.error("snapshots.too_large", lead=id, size=len(value))
        return None
    return Snapshot(id, headers, value)


async def _begin(connection: asyncpg.Connection[Any], *, is_new: bool) -> int:
    """Make batches note what they change; give the first transaction that surely does."""
    await connection.execute(
        "INSERT INTO stage.snapshot_feed (is_one) VALUES (true) ON CONFLICT DO NOTHING"
    )
    if is_new:
        await fill_again(connection)
    # A batch that runs now may not have seen the row: leads are filled in once it has ended.
    return await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")


async def put_together(connection: asyncpg.Connection[Any]) -> bool:
    """Put notes of the same leads together when there are many; tell whether that was so.

    For who leads: nobody else takes notes away. Batches that run meanwhile are not held up.
    """
    async with connection.transaction():
        count = await connection.fetchval(
            "SELECT count(*) FROM (SELECT FROM stage.lead_changes LIMIT $1) AS n",
            NOTES_KEPT_MAX + 1,
        )
        if count <= NOTES_KEPT_MAX:
            return False
        await connection.execute(
            """WITH taken AS (
                 DELETE FROM stage.lead_changes WHERE id IN (
                   SELECT id FROM stage.lead_changes ORDER BY id LIMIT $1) RETURNING lead_ids),
               leads AS (SELECT DISTINCT lead FROM taken, unnest(lead_ids) AS lead),
               numbered AS (SELECT lead, row_number() OVER (ORDER BY lead) / $2 AS n FROM leads)
               INSERT INTO stage.lead_changes (lead_ids) SELECT array_agg(lead) FROM numbered GROUP BY n""",
            NOTES_KEPT_MAX, LEADS_A_NOTE,
        )  # fmt: skip
        return True


async def fill_again(connection: asyncpg.Connection[Any]) -> bool:
    """Have every lead published once more; False when nobody publishes snapshots here."""
    done = await connection.execute(
        "UPDATE stage.snapshot_feed SET begun_at = now(), filled_to = NULL, filled_at = NULL"
    )
    return done != "UPDATE 0"


async def forget(pool: asyncpg.Pool[Any]) -> None:
    """Have batches note nothing: for a deployment without Kafka, where nobody would take the notes away."""
    if await pool.execute("DELETE FROM stage.snapshot_feed") != "DELETE 0":
        await pool.execute("DELETE FROM stage.lead_changes")


def kafka_snapshots(
    database_url: str,
    bootstrap_servers: str,
    engine: AsyncEngine,
    now: Callable[[], datetime],
    look_s: float = LOOK_S,
) -> Snapshots:
    """Give the snapshots of a deployment whose bus is the Kafka of `bootstrap_servers`."""
    from services.contracts.kafka_snapshots import snapshot_writer

    return Snapshots(
        database_url, engine, lambda: snapshot_writer(bootstrap_servers, LEADS_TOPIC), now, look_s
    )
