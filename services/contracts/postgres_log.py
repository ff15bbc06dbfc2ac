"""The bus on PostgreSQL, and the published log that every deployment keeps.

A producer writes to ``bus.outbox`` inside its own transaction (`write`). One sequencer (`stamp`, called
by the relay under its leader lock) gives each committed message its ``position`` in ``bus.log``, and its
``number`` among those of its topic: both gapless, in commit order per lead. Readers may keep the last one
as a cursor, which would lose rows on the outbox's own ids, since those become visible out of order.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import asyncpg
import msgspec

from services.contracts.bus import Received
from services.contracts.database import STEADY_PLANS
from services.contracts.events import Message

STAMP_ROWS_MAX = 2000
PENDING_ROWS_MAX = 500
CHANNEL = "baton_log"
"""Notified by the sequencer after each stamp, never by the ingest transaction."""

_GROUP_LOCK_CLASS = 0x6261  # 'ba': keeps our advisory locks apart from others in the database
_STANDBY_POLL_S = 0.5
_CLOSE_WITHIN_S = 2.0


class Fresh(NamedTuple):
    """Messages that were just committed, in order, with their outbox ids, and what lay before them.

    `after` is the last position that the log had when the statement which wrote them began, and `is_next`
    tells that nothing waited for a position then.
    """

    outbox_ids: Sequence[int]
    messages: Sequence[Message]
    after: int
    is_next: bool


OUTBOX_CTES = """written AS (
  INSERT INTO bus.outbox (message_id, topic, key, headers, value)
  SELECT * FROM unnest({rows}::bus.message_row[])
  RETURNING id, key),
queued AS (INSERT INTO bus.pending (outbox_id) SELECT id FROM written)"""
"""The outbox's part of a statement that writes more; `rows` is the parameter with `message_rows`."""

OUTBOX_PLACE = """(SELECT array_agg(id ORDER BY id) FROM written),
  NOT EXISTS (SELECT FROM bus.pending), (SELECT coalesce(max(position), 0) FROM bus.log)"""
"""Columns of a statement with `OUTBOX_CTES`: the outbox ids, and `is_next` and `after` of `Fresh`."""

_WRITE = f"WITH {OUTBOX_CTES.format(rows='$1')} SELECT"

# One statement on the leader's connection: if that session died, so did the stamp.
# Rows are taken in id order; for one lead that is commit order, because the lead's row was locked
# before its outbox row got its id.
# It is written so that it has one plan, row by row through the indexes: one that PostgreSQL chose while the
# tables were empty would compare each row with every other, and keep doing so. `last` is computed once: it
# would have to step over the rows that this statement writes.
_STAMP = f"""
WITH taken AS (DELETE FROM bus.pending WHERE outbox_id = ANY({{which}}) RETURNING outbox_id),
told AS (SELECT outbox_id, (SELECT topic FROM bus.outbox WHERE id = outbox_id) AS topic FROM taken),
numbered AS (
  SELECT outbox_id, topic, row_number() OVER (ORDER BY outbox_id) AS n,
    row_number() OVER (PARTITION BY topic ORDER BY outbox_id) AS nth
  FROM told),
last AS MATERIALIZED (
  SELECT topic, (SELECT coalesce(max(number), 0) FROM bus.log l WHERE l.topic = t.topic) AS number
  FROM (SELECT DISTINCT topic FROM numbered) AS t),
logged AS (
  INSERT INTO bus.log (position, outbox_id, topic, number)
  SELECT (SELECT coalesce(max(position), 0) FROM bus.log) + n, outbox_id, topic, last.number + nth
  FROM numbered JOIN last USING (topic)
  RETURNING position)
SELECT count(*) AS stamped, max(position) AS last, pg_notify('{CHANNEL}', '')
FROM logged HAVING count(*) > 0
"""  # noqa: S608
_STAMP_NEXT = _STAMP.format(
    which="ARRAY(SELECT outbox_id FROM bus.pending ORDER BY outbox_id LIMIT $1)"
)
_STAMP_THESE = _STAMP.format(which="$1::bigint[]")

_PENDING = """
SELECT p.outbox_id, NULL::bigint AS position, o.topic, o.key, o.headers, o.value
FROM (SELECT outbox_id FROM bus.pending ORDER BY outbox_id LIMIT $1) AS p
  CROSS JOIN LATERAL (SELECT * FROM bus.outbox WHERE id = p.outbox_id OFFSET 0) AS o
ORDER BY p.outbox_id
"""

_READ = """
SELECT l.position, o.topic, o.key, o.headers, o.value
FROM (SELECT position, outbox_id FROM bus.log
      WHERE position > $1 AND topic = ANY($2) ORDER BY position LIMIT $3) AS l
  CROSS JOIN LATERAL (SELECT * FROM bus.outbox WHERE id = l.outbox_id OFFSET 0) AS o
ORDER BY l.position
"""

# The sizes are added up before the values are fetched: a page of large messages is a short one.
_READ_TOPIC = """
SELECT position, topic, key, headers, value FROM (
  SELECT l.number AS position, o.topic, o.key, o.headers, o.value,
    sum(octet_length(o.value)) OVER (ORDER BY l.number) - octet_length(o.value) AS before
  FROM (SELECT number, outbox_id FROM bus.log
        WHERE topic = $1 AND number > $2 ORDER BY number LIMIT $3) AS l
    CROSS JOIN LATERAL (SELECT * FROM bus.outbox WHERE id = l.outbox_id OFFSET 0) AS o) AS next
WHERE before < $4 ORDER BY position
"""
_LAST_NUMBER = "SELECT coalesce(max(number), 0) AS number FROM bus.log WHERE topic = $1"
# Halving: the log is in the order of `published_at`, and has no index on it. The number asked for may be
# missing in a log that is older than numbers; then the next one that is there tells.
_NUMBER_BEFORE = """
WITH RECURSIVE halved (low, high) AS (
  SELECT 0::bigint, (SELECT coalesce(max(number), 0) FROM bus.log WHERE topic = $1)
  UNION ALL
  SELECT CASE WHEN middle.is_before THEN middle.number ELSE low END,
    CASE WHEN middle.is_before THEN high ELSE middle.asked - 1 END
  FROM halved, LATERAL (
    SELECT (low + high + 1) / 2 AS asked, l.number, l.published_at < $2 AS is_before
    FROM bus.log l WHERE l.topic = $1 AND l.number >= (low + high + 1) / 2
    ORDER BY l.number LIMIT 1) AS middle
  WHERE low < high)
SELECT low AS number FROM halved ORDER BY high - low LIMIT 1
"""

_decode_headers = msgspec.json.Decoder(dict[str, str]).decode
_encode = msgspec.json.encode


class Executor(Protocol):
    """What the functions here need of an asyncpg connection or pool."""

    async def execute(self, query: str, *args: Any) -> str:
        """Run a statement."""
        ...

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """Run a query."""
        ...


def message_rows(messages: Sequence[Message]) -> list[tuple[str, str, str, str, bytes]]:
    """Give `messages` as rows of the type ``bus.message_row``, in order."""
    return [(m.id, m.topic, m.key, _encode(m.headers).decode(), m.value) for m in messages]


async def write(connection: Executor, messages: Sequence[Message]) -> None:
    """Put `messages` into the outbox, in order, within the caller's transaction."""
    await connection.execute(_WRITE, message_rows(messages))


async def stamp(connection: asyncpg.Connection[Any]) -> tuple[int, int]:
    """Give pending messages their positions; for the one sequencer only.

    Gives (how many, the last position given); at most 2,000 a call. Listeners are told.
    """
    row = await connection.fetchrow(_STAMP_NEXT, STAMP_ROWS_MAX)
    return (row["stamped"], row["last"]) if row else (0, 0)


async def pending(connection: asyncpg.Connection[Any]) -> tuple[list[int], list[Message]]:
    """Give the next messages without a position, at most 500, and their outbox ids, in order.

    For the one sequencer, which gives them their positions by `stamp_these`.
    """
    rows = await connection.fetch(_PENDING, PENDING_ROWS_MAX)
    return [r["outbox_id"] for r in rows], _messages(rows)


async def stamp_these(connection: asyncpg.Connection[Any], outbox_ids: Sequence[int]) -> int:
    """Give the messages of `outbox_ids` their positions, as `stamp`; gives the last.

    On the session that asked for them by `pending`: nobody else was the sequencer in between.
    """
    row = await connection.fetchrow(_STAMP_THESE, outbox_ids)
    if row is None or row["stamped"] != len(outbox_ids):
        raise LookupError("messages that were pending are not any more")
    return row["last"]


async def read(
    connection: Executor, after: int, topics: Sequence[str], messages_max: int
) -> list[Message]:
    """Give the published messages after position `after`, in order."""
    return _messages(await connection.fetch(_READ, after, list(topics), messages_max))


def _messages(rows: Sequence[Any]) -> list[Message]:
    return [
        Message(r["topic"], r["key"], _decode_headers(r["headers"]), r["value"], r["position"])
        for r in rows
    ]


async def read_topic(
    connection: Executor, after: int, topic: str, messages_max: int, bytes_max: int = 2**31
) -> list[Message]:
    """Give the published messages of one topic after its `after`th, in order.

    Their ``position`` is their number in the topic: 1, 2, 3 and so on, without gaps. The first is given
    whatever its size, more only while those before them have less than `bytes_max` bytes together.
    """
    rows = await connection.fetch(_READ_TOPIC, topic, after, messages_max, bytes_max)
    return _messages(rows)


async def last_number(connection: Executor, topic: str) -> int:
    """Give how many messages of `topic` were published."""
    rows = await connection.fetch(_LAST_NUMBER, topic)
    return rows[0]["number"]


async def number_before(connection: Executor, topic: str, moment: datetime) -> int:
    """Give the number of the last message of `topic` published before `moment` (aware); 0 for none."""
    rows = await connection.fetch(_NUMBER_BEFORE, topic, moment)
    return rows[0]["number"]


async def cursor(connection: Executor, group: str) -> int:
    """Give the position up to which `group` is done; 0 for a new group."""
    rows = await connection.fetch("SELECT position FROM bus.cursors WHERE name = $1", group)
    return rows[0]["position"] if rows else 0


async def advance(connection: Executor, group: str, position: int) -> None:
    """Record that `group` is done up to `position`; never moves backwards."""
    await connection.execute(
        """INSERT INTO bus.cursors (name, position) VALUES ($1, $2)
           ON CONFLICT (name) DO UPDATE SET position = excluded.position, moved_at = now()
           WHERE bus.cursors.position < excluded.position""",
        group,
        position,
    )


class PostgresLog:
    """`Bus` on PostgreSQL: publishing writes to the outbox, subscribing reads the log."""

    def __init__(self, pool: asyncpg.Pool[Any], database_url: str) -> None:
        self._pool = pool
        self._database_url = database_url

    @classmethod
    async def open(cls, database_url: str) -> PostgresLog:
        """Connect to the database at `database_url`; raises when it cannot be reached."""
        pool = await asyncpg.create_pool(database_url, min_size=0, max_size=4)
        return cls(pool, database_url)

    async def publish(self, messages: Sequence[Message]) -> None:
        """Commit `messages` to the outbox; the sequencer makes them visible."""
        async with self._pool.acquire() as connection, connection.transaction():
            await write(connection, messages)

    async def subscribe(self, group: str, topics: Sequence[str]) -> PostgresSubscription:
        """Join `group`; one member reads at a time, the others stand by."""
        return PostgresSubscription(self._database_url, group, topics)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()


class PostgresSubscription:
    """A group's reading end on the log; holds the group's advisory lock while it reads."""

    def __init__(self, database_url: str, group: str, topics: Sequence[str]) -> None:
        self._database_url = database_url
        self._group = group
        self._topics = list(topics)
        self._connection: asyncpg.Connection[Any] | None = None
        self._reading = False
        self._position = 0
        self._news = asyncio.Event()

    async def _connect(self) -> asyncpg.Connection[Any]:
        if self._connection is None or self._connection.is_closed():
            self._reading = False
            # A deadline for every statement: a connection that died unseen must not hold us for ever.
            self._connection = await asyncpg.connect(
                self._database_url, timeout=5, command_timeout=30, server_settings=STEADY_PLANS
            )
            await self._connection.add_listener(CHANNEL, self._hear)
        return self._connection

    def _hear(self, *_: object) -> None:
        self._news.set()

    async def fetch(self, messages_max: int, wait_s: float) -> list[Received]:
        """Give the next messages; on standby, wait and give none."""
        connection = await self._connect()
        if not self._reading:
            self._reading = await connection.fetchval(
                "SELECT pg_try_advisory_lock($1, $2)",
                _GROUP_LOCK_CLASS,
                zlib.crc32(self._group.encode()) - 2**31,
            )
            if not self._reading:
                await asyncio.sleep(min(wait_s, _STANDBY_POLL_S))
                return []
            self._position = await cursor(connection, self._group)
        self._news.clear()
        messages = await read(connection, self._position, self._topics, messages_max)
        if not messages:
            try:
                await asyncio.wait_for(self._news.wait(), wait_s)
            except TimeoutError:
                return []
            messages = await read(connection, self._position, self._topics, messages_max)
        if messages:
            self._position = messages[-1].position or 0
        return [Received(m, (m.topic, 0, m.position or 0)) for m in messages]

    async def commit(self, received: Sequence[Received]) -> None:
        """Record the group's place; on the connection that holds the lock, so never as a ghost."""
        if received and self._connection is not None:
            await advance(self._connection, self._group, max(r.token[2] for r in received))

    async def close(self) -> None:
        """Let the lock go with the connection, within 2 s whatever the server does."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=_CLOSE_WITHIN_S)
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()
