"""What connectors wrote, in PostgreSQL: before each write, so that its echo is known even if it is faster.

One row a field: until the answer came (`ended_at`) it may have happened or not; one that was refused is
removed, one without an answer stays. The caller gives the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import uuid_utils

from services.contracts.postgres_log import Executor
from services.stage_service.subscriptions.connectors.connector import Record
from services.stage_service.subscriptions.connectors.delivery import Writing

KEEP = timedelta(days=30)
"""How long writes and echoes are kept: longer than any vendor tries a webhook again."""
PRUNE_ROWS_MAX = 10_000

_PRELUDE = """
SELECT 'place' AS what, '' AS kind, position::text AS value FROM stage.connector_places
WHERE subscription_id = $1 AND lead_id = $2::text
UNION ALL
(SELECT 'identity', 'external:' || system, record_id FROM stage.connector_links
 WHERE lead_id = $2::text ORDER BY linked_at DESC, record_id)
UNION ALL
(SELECT 'identity', kind, value FROM stage.identities WHERE lead_id = $2::text::uuid
 ORDER BY recorded_at DESC, value)
UNION ALL
SELECT 'owner', '', document ->> 'email' FROM roster.people
WHERE id = $3 AND left_at IS NULL AND document ->> 'email' IS NOT NULL
"""


class Prelude:
    """What is known before a delivery: the lead's identities (newest first), place, and owner's address."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.place = next((int(r["value"]) for r in rows if r["what"] == "place"), 0)
        self.owner_email = next((str(r["value"]) for r in rows if r["what"] == "owner"), None)
        self.identities = [(r["kind"], r["value"]) for r in rows if r["what"] == "identity"]

    @property
    def external_ids(self) -> dict[str, str]:
        """Give the newest id of each system."""
        found: dict[str, str] = {}
        for kind, value in self.identities:
            if kind.startswith("external:"):
                found.setdefault(kind.removeprefix("external:"), value)
        return found


class Memory:
    """The memory of one subscription's connector."""

    def __init__(self, executor: Executor, subscription_id: str, connector: str) -> None:
        self._executor = executor
        self._id = subscription_id
        self._connector = connector

    async def prelude(self, lead_id: str, owner_id: str | None) -> Prelude:
        """Read what is known of a lead, and of the person of the roster who owns it."""
        return Prelude(await self._executor.fetch(_PRELUDE, self._id, lead_id, owner_id))

    async def unanswered(self, record: str, lead_id: str, since: datetime) -> datetime | None:
        """Give when a record was last to be made for the lead, after `since`, without an answer."""
        rows = await self._executor.fetch(
            """SELECT max(begun_at) AS begun_at FROM stage.connector_writes
               WHERE subscription_id = $1 AND record = $2 AND lead_id = $3 AND record_id IS NULL
                 AND connector = $4 AND begun_at > $5""",
            self._id, record, lead_id, self._connector, since,
        )  # fmt: skip
        return rows[0]["begun_at"]

    async def begin(self, writing: Writing, lead_id: str, key: str | None, now: datetime) -> str:
        """Remember a write that is about to be sent; gives its id."""
        id = str(uuid_utils.uuid7())
        await self._executor.execute(
            """INSERT INTO stage.connector_writes (id, field, subscription_id, connector, record,
                 record_id, lead_id, value_hash, creates, is_key, begun_at)
               SELECT $1, field, $2, $3, $4, $5, $6, value_hash, $7, field = $8, $9
               FROM unnest($10::text[], $11::text[]) AS f(field, value_hash)""",
            id, self._id, self._connector, writing.record, writing.id, lead_id, writing.creates,
            key or "", now, list(writing.fields), list(writing.fields.values()),
        )  # fmt: skip
        return id

    async def end(self, write: str, record_id: str | None, now: datetime) -> None:
        """Remember that a write happened, and to which record."""
        await self._executor.execute(
            "UPDATE stage.connector_writes SET ended_at = $2, record_id = coalesce(record_id, $3) "
            "WHERE id = $1",
            write, now, record_id,
        )  # fmt: skip

    async def forget(self, write: str) -> None:
        """Forget a write that was refused."""
        await self._executor.execute("DELETE FROM stage.connector_writes WHERE id = $1", write)

    async def recall(self, record: str, record_id: str, lead_id: str) -> dict[str, str] | None:
        """Give what was last told of each field of a record; None: nothing ever was.

        A write that had no answer was to this record, then: it is the lead's. When it happened nobody
        knows better for that: its echo is awaited around its beginning, and not until now.
        """
        rows = await self._executor.fetch(
            """WITH found AS (
                 UPDATE stage.connector_writes SET record_id = $3
                 WHERE subscription_id = $1 AND record = $2 AND lead_id = $4 AND record_id IS NULL)
               SELECT field, value_hash FROM stage.connector_values
               WHERE subscription_id = $1 AND record = $2 AND record_id = $3""",
            self._id, record, record_id, lead_id,
        )  # fmt: skip
        return {row["field"]: row["value_hash"] for row in rows} if rows else None

    async def link(self, record: Record, record_id: str, lead_id: str, now: datetime) -> None:
        """Remember that a record of the CRM is the lead; `echoes` tells it as a lead event."""
        await self._executor.execute(
            """INSERT INTO stage.connector_links (system, record_id, lead_id, connector, linked_at)
               VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING""",
            record.system, record_id, lead_id, self._connector, now,
        )  # fmt: skip

    async def finish(
        self,
        known: Sequence[tuple[str, str, dict[str, str]]],
        lead_id: str,
        position: int | None,
        now: datetime,
    ) -> None:
        """Remember what a whole delivery told, and the lead's place."""
        flat = [(record, id, f, v) for record, id, fields in known for f, v in fields.items()]
        await self._executor.execute(
            """WITH place AS (
                 INSERT INTO stage.connector_places (subscription_id, lead_id, position)
                 SELECT $1, $2, $3 WHERE $3::bigint IS NOT NULL
                 ON CONFLICT (subscription_id, lead_id)
                 DO UPDATE SET position = greatest(connector_places.position, excluded.position))
               INSERT INTO stage.connector_values
                 (subscription_id, record, record_id, field, value_hash, told_at)
               SELECT $1, *, $4 FROM unnest($5::text[], $6::text[], $7::text[], $8::text[])
               ON CONFLICT (subscription_id, record, record_id, field)
               DO UPDATE SET value_hash = excluded.value_hash, told_at = excluded.told_at
               WHERE connector_values.value_hash <> excluded.value_hash""",
            self._id, lead_id, position, now, *(list(c) for c in zip(*flat, strict=True)),
            *([[]] * 4 if not flat else []),
        )  # fmt: skip


async def prune(executor: Executor, now: datetime) -> None:
    """Delete what is too old to be of use, and what belongs to subscriptions that are no more."""
    for statement in (
        "DELETE FROM stage.connector_writes WHERE ctid = ANY(ARRAY("
        "SELECT ctid FROM stage.connector_writes WHERE begun_at < $1 LIMIT $2))",
        "DELETE FROM stage.echoes WHERE ctid = ANY(ARRAY("
        "SELECT ctid FROM stage.echoes WHERE recorded_at < $1 LIMIT $2))",
        "DELETE FROM stage.connector_links WHERE ctid = ANY(ARRAY("
        "SELECT ctid FROM stage.connector_links WHERE told_at < $1 LIMIT $2))",
    ):
        await executor.execute(statement, now - KEEP, PRUNE_ROWS_MAX)
    for table in ("connector_values", "connector_places"):
        await executor.execute(
            f"""DELETE FROM stage.{table} WHERE ctid = ANY(ARRAY(
                  SELECT t.ctid FROM stage.{table} t
                  JOIN stage.subscriptions s ON s.id = t.subscription_id
                  WHERE s.deleted_at < $1 LIMIT $2))""",  # noqa: S608  a table of the list above
            now - KEEP, PRUNE_ROWS_MAX,
        )  # fmt: skip
