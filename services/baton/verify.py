"""`baton verify`: fold every stored event again and compare with what is stored (I1-I5, I7).

Reads in one snapshot, lead by lead, so it can run beside live traffic. It writes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import asyncpg
import msgspec

from services.baton.verify_handoffs import check_clocks, check_handoffs, rows_of_leads
from services.baton.verify_identities import check_identities, identities_of_leads
from services.baton.verify_merges import check_merges
from services.contracts.events import HANDOFFS_TOPIC, MOVED_BY_HAND, TRANSITIONS_TOPIC
from services.stage_service import funnel, store
from services.stage_service.funnel import Lead, Move
from services.stage_service.journal import journey_id
from services.stage_service.shelf import Shelf
from services.stage_service.store import Connection, Past

LEADS_A_TIME = 500
FINDINGS_MAX = 200


@dataclass
class Report:
    """What was looked at, and what is wrong."""

    leads: int = 0
    events: int = 0
    transitions: int = 0
    published: int = 0
    pending: int = 0
    alerts: int = 0
    alerts_waiting: int = 0
    merges: int = 0
    handoffs: int = 0
    findings: list[str] = field(default_factory=list[str])

    def found(self, finding: str) -> None:
        """Note something wrong."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)

    def lines(self) -> Iterable[str]:
        """Give the report as lines of text."""
        yield (
            f"{self.events} events of {self.leads} leads folded again; {self.transitions} records, "
            f"{self.published} published, {self.pending} waiting for the relay; "
            f"{self.alerts} alerts, {self.alerts_waiting} waiting for the notifier; "
            f"{self.merges} merges, {self.handoffs} handoffs"
        )
        yield from (f"WRONG: {finding}" for finding in self.findings)
        yield "clean" if not self.findings else f"{len(self.findings)} findings"


async def verify_database(database_url: str) -> Report:
    """Check the database and give the report; raises what the database raises."""
    report = Report()
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=2)
    try:
        shelf = Shelf()
        async with (
            pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await shelf.load(connection)
            await _orphans(connection, report)
            await _bus(connection, report)
            await _alerts(connection, report)
            report.merges = await check_merges(connection, report.found)
            async for ids in _lead_ids(connection):
                await _leads(connection, shelf, ids, report)
    finally:
        await pool.close()
    return report


async def _lead_ids(connection: Connection) -> AsyncIterator[list[str]]:
    last = "00000000-0000-0000-0000-000000000000"
    while True:
        rows = await connection.fetch(
            """SELECT id::text FROM stage.leads WHERE id > $1::uuid AND merged_into IS NULL
               ORDER BY id LIMIT $2""",
            last, LEADS_A_TIME,
        )  # fmt: skip
        if not rows:
            return
        ids = [r["id"] for r in rows]
        yield ids
        last = ids[-1]


async def _leads(connection: Connection, shelf: Shelf, ids: list[str], report: Report) -> None:
    rows = await connection.fetch(
        """SELECT id::text, state, email, attributes FROM stage.leads
           WHERE id = ANY($1::uuid[])""",
        ids,
    )
    columns = {r["id"]: (r["email"], msgspec.json.decode(r["attributes"])) for r in rows}
    states = {r["id"]: store.unpack_record(r["id"], r["state"]) for r in rows}
    stored = await store.events_of_leads(connection, ids)
    beyond = await store.events_of_leads(connection, ids, beyond_horizon=True)
    history = await store.history(connection, ids)
    owned = await identities_of_leads(connection, ids)
    handoffs, running = await rows_of_leads(connection, ids)
    journeys: dict[str, dict[str, Any]] = {}
    for r in await connection.fetch(
        """SELECT lead_id::text, id::text, stage, furthest_stage, sequence, started_at, entered_at,
             (SELECT count(*) FROM stage.transitions t WHERE t.journey_id = j.id) AS records,
             (SELECT coalesce(max(sequence), 0) FROM stage.transitions t WHERE t.journey_id = j.id)
               AS newest
           FROM stage.journeys j WHERE lead_id = ANY($1::uuid[])""",
        ids,
    ):
        journeys.setdefault(r["lead_id"], {})[r["id"]] = r
    for lead_id in ids:
        report.leads += 1
        report.events += len(stored[lead_id])
        told = (e for e, _ in (*stored[lead_id], *beyond[lead_id]))
        check_identities(lead_id, owned[lead_id], told, report.found)
        record = states[lead_id]
        whole = funnel.refold(stored[lead_id], shelf.at)
        lead, moves = whole.lead, whole.moves
        if lead is None or record.lead is None:
            report.found(f"lead {lead_id} has no events")
            continue
        _compare_states(lead_id, record.lead, lead, report)
        check_handoffs(lead_id, handoffs[lead_id], whole.handed, report.found)
        check_clocks(lead_id, running[lead_id], record.facts, report.found)
        report.handoffs += len(handoffs[lead_id])
        if columns[lead_id] != (lead.email, _plain_json(lead.attributes)):
            report.found(f"lead {lead_id}: e-mail or attributes are not what the events fold to")
        mine = journeys.get(lead_id, {})
        if len(mine) != len(lead.journeys):
            report.found(
                f"lead {lead_id}: {len(mine)} journeys stored, {len(lead.journeys)} folded"
            )
        for name, journey in lead.journeys.items():
            id = journey_id(lead_id, name)
            row = mine.get(id)
            if row is None:
                report.found(f"lead {lead_id}: journey {name} is not stored")
                continue
            report.transitions += row["records"]
            if (row["stage"], row["furthest_stage"]) != (journey.stage, journey.furthest):
                report.found(f"journey {id}: in {row['stage']}, the fold says {journey.stage}")
            if (row["started_at"], row["entered_at"]) != (journey.started_at, journey.entered_at):
                report.found(f"journey {id}: its times are not what the events fold to")
            if not row["records"] == row["newest"] == row["sequence"]:
                report.found(
                    f"journey {id}: {row['records']} records, numbered to {row['newest']}, "
                    f"counted to {row['sequence']}"
                )
            past = history.get(lead_id, {}).get(id, [])
            _compare_history(id, past, [m for m in moves if m.journey == name], report)


def _compare_states(lead_id: str, stored: Lead, folded: Lead, report: Report) -> None:
    if _plain(stored) == _plain(folded):
        return
    names = Lead.__struct_fields__
    differing = [n for n in names if _plain(getattr(stored, n)) != _plain(getattr(folded, n))]
    report.found(f"lead {lead_id}: stored and folded state differ in {', '.join(differing)}")


def _plain(value: Any) -> Any:
    """Give `value` as it comes back from being packed, so that tuples equal lists."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))


def _plain_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _compare_history(id: str, past: list[Past], moves: list[Move], report: Report) -> None:
    held = [p for p in past if p.kind != "retraction"]
    if [_told(p) for p in held] != [_told(m) for m in moves]:
        report.found(f"journey {id}: recorded history is not what the events fold to")
    # Retractions too stand in the chain: they start and end in the stage that holds.
    for before, after in pairwise(past):
        if before.to_stage != after.from_stage:
            report.found(
                f"journey {id}: record {after.sequence} does not start where {before.sequence} ended"
            )


def _told(record: Past | Move) -> tuple[Any, ...]:
    """Give all that a record tells about a move, but for the person chosen."""
    version = record.version if isinstance(record, Move) else record.playbook_version
    return (*record.identity, record.visit_entered_at, record.role, version, record.skipped)


async def _orphans(connection: Connection, report: Report) -> None:
    """Look for rows that point nowhere: there are no foreign keys on the lane's tables."""
    for table, column in (
        ("events", "lead_id"),
        ("identities", "lead_id"),
        ("journeys", "lead_id"),
    ):
        count = await connection.fetchval(
            f"SELECT count(*) FROM stage.{table} x WHERE {column} IS NOT NULL AND NOT EXISTS "  # noqa: S608
            f"(SELECT FROM stage.leads l WHERE l.id = x.{column})"
        )
        if count:
            report.found(f"{count} rows of stage.{table} belong to no lead")
    count = await connection.fetchval(
        """SELECT count(*) FROM stage.transitions t WHERE NOT EXISTS
             (SELECT FROM stage.journeys j WHERE j.id = t.journey_id)
             AND t.replaced_by IS NULL AND t.kind <> 'retraction' AND NOT EXISTS
             (SELECT FROM stage.leads l WHERE l.id = t.lead_id AND l.merged_into IS NOT NULL)"""
    )
    if count:
        report.found(f"{count} transitions belong to no journey")
    count = await connection.fetchval(
        """SELECT count(*) FROM stage.transitions t WHERE event_type <> $1 AND NOT EXISTS
           (SELECT FROM stage.events e WHERE e.source = t.event_source AND e.id = t.event_id)""",
        MOVED_BY_HAND,
    )
    if count:
        report.found(f"{count} transitions name an event that is not stored")


async def _bus(connection: Connection, report: Report) -> None:
    row = await connection.fetchrow(
        """SELECT (SELECT count(*) FROM bus.log) AS logged,
                  (SELECT coalesce(max(position), 0) FROM bus.log) AS newest,
                  (SELECT count(*) FROM bus.pending) AS pending,
                  (SELECT count(*) FROM bus.outbox) AS written,
                  (SELECT count(*) FROM stage.transitions t WHERE NOT EXISTS
                    (SELECT FROM bus.outbox o WHERE o.message_id = t.id::text)) AS unheard"""
    )
    assert row is not None  # noqa: S101
    report.published, report.pending = row["logged"], row["pending"]
    if row["logged"] != row["newest"]:
        report.found(f"the published log has {row['logged']} messages and ends at {row['newest']}")
    for topic in await connection.fetch(
        """SELECT topic, count(*) AS logged, count(DISTINCT number) AS told FROM bus.log
           GROUP BY topic"""
    ):
        if topic["told"] != topic["logged"]:
            report.found(
                f"{topic['logged']} messages of {topic['topic']} have {topic['told']} numbers"
            )
    if row["logged"] + row["pending"] != row["written"]:
        report.found(
            f"{row['written']} messages written, {row['logged']} published, {row['pending']} waiting"
        )
    if row["unheard"]:
        report.found(f"{row['unheard']} transitions have no message in the outbox")


async def _alerts(connection: Connection, report: Report) -> None:
    if await connection.fetchval("SELECT to_regclass('notifier.alerts')") is None:
        return
    report.alerts = await connection.fetchval("SELECT count(*) FROM notifier.alerts")
    strange = await connection.fetchval(
        """SELECT count(*) FROM notifier.alerts a WHERE NOT EXISTS
           (SELECT FROM stage.transitions t WHERE t.id = a.transition_id)
           AND NOT EXISTS (SELECT FROM bus.outbox o WHERE o.message_id = a.transition_id::text)"""
    )
    if strange:
        report.found(f"{strange} alerts are about nothing that was published")
    # What was published and wished for; the notifier may be a moment behind, so it is no finding.
    report.alerts_waiting = await connection.fetchval(
        """SELECT count(*) FROM bus.log l JOIN bus.outbox o ON o.id = l.outbox_id
             CROSS JOIN LATERAL jsonb_array_elements(
               convert_from(o.value, 'UTF8')::jsonb -> 'alerts') AS wish
           WHERE o.topic = ANY($1::text[]) AND NOT EXISTS
             (SELECT FROM notifier.alerts a WHERE a.transition_id = o.message_id::uuid
              AND a.recipient = coalesce(wish -> 'person' ->> 'id', 'role:' || (wish ->> 'role')))""",
        [TRANSITIONS_TOPIC, HANDOFFS_TOPIC],
    )
