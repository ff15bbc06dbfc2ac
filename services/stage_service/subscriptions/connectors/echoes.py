"""Tells what connectors wrote, when a CRM's webhook says it back, from news.

An event is an echo when the vendor's own mark says that Baton made the change, or when each field that it
tells of has just the value that a connector wrote to that record at that time. Each write is echoed once a
source: somebody who sets the same value again is news. An echo is recorded, and applied to no lead.

A webhook may be faster than the answer to the write. While a record is being made its id is not known: then
the delivery waits for the answer, and if none comes the record is told by its unique field.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import structlog

from services.contracts.cloudevents import mapped_event
from services.contracts.events import LeadEvent, lead_event
from services.contracts.problems import Defect
from services.stage_service.sources.claims import CREATED, Claim
from services.stage_service.sources.mapping import Mapped
from services.stage_service.sources.source import Source
from services.stage_service.subscriptions.connectors import memory
from services.stage_service.subscriptions.connectors.book import ConnectorBook

SKEW = timedelta(seconds=120)
"""How far the CRM's clock, and the time it gives a change, may be from ours."""
OPEN = timedelta(seconds=120)
"""How long after its beginning a write without an answer may still happen."""
ANSWERED_WITHIN = timedelta(seconds=30)
"""A write that has no answer after so long gets none any more: nobody waits for it."""
ANSWER_WITHIN_S = 2.0
"""How long a delivery waits for the answers to writes."""
LOOK_EVERY_S = 0.05
LINKED = "crm.linked"
"""The lead event that says which record of a CRM a lead is."""
LINKS_AT_ONCE = 100
PRUNE_EVERY = timedelta(hours=1)
_log = structlog.get_logger("baton.connectors")

Submit = Callable[[Sequence[LeadEvent]], Awaitable[Any]]

_ACTIVE = """
SELECT connector, config -> 'mark' AS mark FROM stage.subscriptions
WHERE connector IS NOT NULL AND (deleted_at IS NULL OR deleted_at > now() - interval '1 day')
"""
# Locked in one order: of two deliveries that say the same the second sees what the first made of it.
_WRITES = """
SELECT id, field, connector, lead_id, record, record_id, value_hash, is_key, begun_at, ended_at, echoed_by
FROM stage.connector_writes
WHERE connector = ANY($1) AND ((record, record_id) IN (SELECT * FROM unnest($2::text[], $3::text[]))
  OR (record_id IS NULL AND begun_at > $4))
ORDER BY id, field FOR UPDATE
"""
_UNANSWERED = """
SELECT count(*) FROM stage.connector_writes
WHERE connector = ANY($1) AND record_id IS NULL AND ended_at IS NULL AND begun_at > $2
"""
_KNOWN = """
SELECT record, id FROM unnest($1::text[], $2::text[], $3::text[]) AS c(kind, record, id)
WHERE EXISTS (SELECT FROM stage.identities i WHERE i.kind = c.kind AND i.value = c.id)
  OR EXISTS (SELECT FROM stage.connector_writes w
             WHERE w.connector = ANY($4) AND w.record = c.record AND w.record_id = c.id)
"""
_UNTOLD = """
WITH RECURSIVE untold AS (
  SELECT system, record_id, lead_id, connector, linked_at FROM stage.connector_links
  WHERE told_at IS NULL ORDER BY linked_at LIMIT $1),
roots AS (
  SELECT u.lead_id, l.id, l.merged_into, 0 AS depth FROM untold u
  JOIN stage.leads l ON l.id = u.lead_id::uuid
  UNION ALL
  SELECT r.lead_id, l.id, l.merged_into, r.depth + 1 FROM roots r
  JOIN stage.leads l ON l.id = r.merged_into WHERE r.depth < 20)
SELECT u.system, u.record_id, u.lead_id, u.connector, u.linked_at, i.kind, i.value
FROM untold u
LEFT JOIN roots r ON r.lead_id = u.lead_id AND r.merged_into IS NULL
LEFT JOIN stage.identities i ON i.lead_id = r.id
ORDER BY u.linked_at, u.record_id, i.recorded_at, i.value
"""


class Echoes:
    """Recognises echoes for the intake. `refresh` it often; `sift` each delivery's events."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        book: ConnectorBook,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pool = pool
        self._book = book
        self._now = now
        self._by_source: dict[str, tuple[list[str], list[str]]] = {}
        """Source to the names and the marks of the connectors in use that write to its tool."""
        self._pruned_at = datetime.min.replace(tzinfo=UTC)

    async def refresh(self, submit: Submit) -> None:
        """Learn which connectors are in use, tell what they linked, and prune now and then."""
        self._book.refresh()
        await self._learn()
        if self._by_source:
            await self.tell_links(submit)
        if self._now() - self._pruned_at > PRUNE_EVERY:
            self._pruned_at = self._now()
            await memory.prune(self._pool, self._now())

    async def look_again(self, source: str) -> None:
        """Learn which connectors write to the tool of `source`, if any can: one may be new, or its mark."""
        if any(source in c.sources for c in self._book.connectors.values()):
            await self._learn()

    async def _learn(self) -> None:
        found: dict[str, tuple[list[str], list[str]]] = {}
        for row in await self._pool.fetch(_ACTIVE):
            connector = self._book.connectors.get(row["connector"])
            for source in connector.sources if connector is not None else ():
                names, marks = found.setdefault(source, ([], []))
                names.append(row["connector"])
                marks += _marks(row["mark"])
        self._by_source = found

    def marks(self, source: str) -> Sequence[str] | None:
        """Give the marks of the connectors that write to the tool of `source`; None: none does."""
        known = self._by_source.get(source)
        return known[1] if known is not None else None

    async def sift(self, source: Source, mapped: Mapped, submit: Submit) -> int:
        """Take the echoes out of `mapped` and record them; gives how many.

        What was linked is told first, so that the rest finds its leads.
        """
        known = self._by_source.get(source.name)
        if known is None or not mapped.events:
            return 0
        echoes = await self._recognise(source, mapped, known[0]) if mapped.claims else {}
        await self.tell_links(submit)
        if echoes:
            mapped.events = [event for event in mapped.events if event.id not in echoes]
        return len(echoes)

    async def _recognise(
        self, source: Source, mapped: Mapped, connectors: Sequence[str]
    ) -> set[str]:
        strangers = await self._strangers(mapped.claims, connectors)
        if strangers:
            await self._answers(connectors)
        events = {event.id: event for event in mapped.events if event.id in mapped.claims}
        async with self._pool.acquire() as connection, connection.transaction():
            places = {c.record for c in mapped.claims.values() if c.record}
            pairs = [place.partition(":")[::2] for place in places]
            writes = await connection.fetch(
                _WRITES, connectors, [p[0] for p in pairs], [p[1] for p in pairs],
                self._now() - memory.KEEP,
            )  # fmt: skip
            recorded = await connection.fetch(
                "SELECT event_id FROM stage.echoes WHERE source = $1 AND event_id = ANY($2)",
                source.event_source, list(events),
            )  # fmt: skip
            comparing = _Comparing([dict(row) for row in writes], source.name)
            echoes = {row["event_id"] for row in recorded}
            fresh = comparing.echoes(
                {id: (mapped.claims[id], e) for id, e in events.items() if id not in echoes},
                strangers,
            )  # fmt: skip
            await self._record(connection, source, mapped.claims, fresh, comparing)
        return echoes | fresh

    async def _answers(self, connectors: Sequence[str]) -> None:
        """Wait a moment for the answers to records that are being made: they say whose webhook this is."""
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while time.monotonic() < deadline:
            since = self._now() - ANSWERED_WITHIN
            if not await self._pool.fetchval(_UNANSWERED, connectors, since):
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def _strangers(self, claims: Mapping[str, Claim], connectors: Sequence[str]) -> set[str]:
        """Give the records, of those claimed, that no lead and no write is known by: being made, perhaps."""
        places = {c.record for c in claims.values() if c.record}
        systems = {
            record.name: f"external:{record.system}"
            for name in connectors
            if (connector := self._book.connectors.get(name)) is not None
            for record in connector.records
        }
        keys = {place: place.partition(":")[::2] for place in places}
        rows = await self._pool.fetch(
            _KNOWN, [systems.get(record, "") for record, _ in keys.values()],
            [record for record, _ in keys.values()], [id for _, id in keys.values()], connectors,
        )  # fmt: skip
        return places - {f"{row['record']}:{row['id']}" for row in rows}

    async def _record(
        self,
        connection: Any,
        source: Source,
        claims: Mapping[str, Claim],
        fresh: set[str],
        comparing: _Comparing,
    ) -> None:
        if comparing.matched:
            await connection.execute(
                """UPDATE stage.connector_writes w SET echoed_by = array_append(echoed_by, $1)
                   FROM unnest($2::uuid[], $3::text[]) AS m(id, field)
                   WHERE w.id = m.id AND w.field = m.field""",
                source.name, [m[0] for m in comparing.matched], [m[1] for m in comparing.matched],
            )  # fmt: skip
        for row in comparing.bound.values():
            await self._bind(connection, row)
        records = [(claims[id].record or "").partition(":") for id in fresh]
        await connection.execute(
            """INSERT INTO stage.echoes (source, event_id, record, record_id)
               SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[]) ON CONFLICT DO NOTHING""",
            source.event_source, list(fresh), [r[0] for r in records], [r[2] for r in records],
        )  # fmt: skip

    async def _bind(self, connection: Any, row: Mapping[str, Any]) -> None:
        """Remember which record a write without an answer made, and whose it is."""
        await connection.execute(
            "UPDATE stage.connector_writes SET record_id = $2 WHERE id = $1",
            row["id"], row["record_id"],
        )  # fmt: skip
        connector = self._book.connectors.get(row["connector"])
        for record in connector.records if connector is not None else ():
            if record.name == row["record"] and record.link:
                linking = memory.Memory(connection, "", row["connector"])
                await linking.link(record, row["record_id"], row["lead_id"], self._now())

    async def tell_links(self, submit: Submit) -> None:
        """Tell, as lead events, which records connectors found or made for which leads."""
        rows = await self._pool.fetch(_UNTOLD, LINKS_AT_ONCE)
        if not rows:
            return
        links: dict[tuple[str, str, str], list[Any]] = {}
        for row in rows:
            links.setdefault((row["system"], row["record_id"], row["lead_id"]), []).append(row)
        events = [event for found in links.values() if (event := self._linked(found)) is not None]
        if events:
            await submit(events)
        await self._pool.execute(
            """UPDATE stage.connector_links SET told_at = $4
               WHERE (system, record_id, lead_id)
                 IN (SELECT * FROM unnest($1::text[], $2::text[], $3::text[]))""",
            *(list(column) for column in zip(*links, strict=True)), self._now(),
        )  # fmt: skip

    def _linked(self, rows: Sequence[Any]) -> LeadEvent | None:
        """Make the lead event of one link; None when nothing names its lead any more."""
        first = rows[0]
        data = _named({(row["kind"], row["value"]) for row in rows if row["kind"]})
        if data is None:
            return None
        ids = data.setdefault("external_ids", {})
        ids[first["system"]] = [first["record_id"]]
        made = mapped_event(
            f"{first['system']}-{first['record_id']}-{first['lead_id']}",
            f"/connectors/{first['connector']}", LINKED, first["linked_at"], data,
        )  # fmt: skip
        event = lead_event(made, self._now()) if not isinstance(made, Defect) else made
        if isinstance(event, Defect):
            _log.error("connector.not_linked", connector=first["connector"], code=event.code)
            return None
        return event


class _Comparing:
    """The writes that a delivery may be the echo of; `matched` and `bound` are what came of it."""

    def __init__(self, writes: Sequence[dict[str, Any]], source: str) -> None:
        self._writes = [w for w in writes if source not in w["echoed_by"]]
        self._whole: dict[Any, list[dict[str, Any]]] = {}
        """All that each write wrote, by its id."""
        for write in writes:
            self._whole.setdefault(write["id"], []).append(write)
        self.matched: list[tuple[Any, str]] = []
        self.bound: dict[Any, dict[str, Any]] = {}
        """Writes without an answer, by id, of which the record's id turned out."""

    def echoes(
        self, claims: Mapping[str, tuple[Claim, LeadEvent]], strangers: set[str]
    ) -> set[str]:
        """Give the ids of the events that are echoes."""
        for claim, event in claims.values():
            self._bind(claim, event, strangers)
        found: set[str] = set()
        for id, (claim, event) in claims.items():
            rows = self._said(claim, event, strangers)
            if claim.ours or rows:
                found.add(id)
            for row in rows or ():
                self._writes.remove(row)
                self.matched.append((row["id"], row["field"]))
        return found

    def _bind(self, claim: Claim, event: LeadEvent, strangers: set[str]) -> None:
        """Find out which unknown record is the claimed one: by a value that no two records share."""
        if claim.record is None or claim.record not in strangers:
            return
        record, _, record_id = claim.record.partition(":")
        for row in self._writes:
            if (
                row["record_id"] is None
                and row["is_key"]
                and row["record"] == record
                and claim.fields.get(row["field"]) == row["value_hash"]
                and _at_that_time(row, event.time)
            ):
                self.bound[row["id"]] = row
                for other in self._writes:
                    if other["id"] == row["id"]:
                        other["record_id"] = record_id

    def _said(
        self, claim: Claim, event: LeadEvent, strangers: set[str]
    ) -> list[dict[str, Any]] | None:
        """Give the writes that say all that `claim` does; None when it says more."""
        if claim.record is None or not claim.fields:
            return None
        record, _, record_id = claim.record.partition(":")
        found: list[dict[str, Any]] = []
        for field, value in claim.fields.items():
            rows = [
                w for w in self._writes
                if w["record"] == record
                and (w["record_id"] == record_id
                     or (claim.record in strangers and self._is_of_no_other(w, claim)))
                and w["field"] == field
                and w["value_hash"] == value
                and _at_that_time(w, event.time)
            ]  # fmt: skip
            # Of writes that say the same the nearest: the other's echo may be still to come.
            row = min(rows, key=lambda w: _apart(w, event.time), default=None)
            if row is None:
                # A new record tells of all that it has; what was written is enough.
                if CREATED in claim.fields and field != CREATED:
                    continue
                return None
            found.append(row)
        return found if found else None

    def _is_of_no_other(self, write: Mapping[str, Any], claim: Claim) -> bool:
        """Tell whether a write without an answer made the claimed record, which nobody knows.

        Where records have a key, `_bind` has found that out by it: a record that says less may be anybody's,
        made at the same time. Without a key it has to say all that was written.
        """
        whole = self._whole[write["id"]]
        return (
            write["record_id"] is None
            and not any(w["is_key"] for w in whole)
            and all(claim.fields.get(w["field"]) == w["value_hash"] for w in whole)
        )


def _at_that_time(write: Mapping[str, Any], time: datetime) -> bool:
    ended = write["ended_at"] or write["begun_at"] + OPEN
    return write["begun_at"] - SKEW <= time <= ended + SKEW


def _apart(write: Mapping[str, Any], time: datetime) -> timedelta:
    """Give how far `time` is from when the write happened; from its beginning, where nobody knows."""
    begun, ended = write["begun_at"], write["ended_at"] or write["begun_at"]
    return max(begun - time, time - ended, timedelta())


def _marks(value: Any) -> list[str]:
    """Read a subscription's mark, one or a list; of Salesforce's ids of 18 characters also the first 15."""
    if value is None:
        return []
    told = msgspec.json.decode(value) if isinstance(value, str) else value
    marks = [str(each) for each in (told if isinstance(told, list) else [told]) if each is not None]
    return marks + [mark[:15] for mark in marks if len(mark) == 18]


def _named(identities: set[tuple[str, str]]) -> dict[str, Any] | None:
    """Give the data that names a lead by its strongest identity."""
    for kind, value in sorted(identities, key=lambda i: (i[0] != "email", i)):
        if kind == "email":
            return {"email": value}
        if kind.startswith("external:"):
            return {"external_ids": {kind.removeprefix("external:"): [value]}}
    for kind, value in sorted(identities):
        if kind == "anonymous":
            return {"anonymous_id": value}
    return None
