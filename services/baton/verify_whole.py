"""What `baton verify` checks of the database as a whole: rows that point nowhere, the bus, the alerts."""

from __future__ import annotations

from services.contracts.events import HANDOFFS_TOPIC, MOVED_BY_HAND, TRANSITIONS_TOPIC
from services.contracts.verification import Verification
from services.stage_service.store import Connection


async def check_orphans(connection: Connection, report: Verification) -> None:
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
            report.add_finding(f"{count} rows of stage.{table} belong to no lead")
    count = await connection.fetchval(
        """SELECT count(*) FROM stage.transitions t WHERE NOT EXISTS
             (SELECT FROM stage.journeys j WHERE j.id = t.journey_id)
             AND t.replaced_by IS NULL AND t.kind <> 'retraction' AND NOT EXISTS
             (SELECT FROM stage.leads l WHERE l.id = t.lead_id AND l.merged_into IS NOT NULL)"""
    )
    if count:
        report.add_finding(f"{count} transitions belong to no journey")
    count = await connection.fetchval(
        """SELECT count(*) FROM stage.transitions t WHERE event_type <> $1 AND NOT EXISTS
           (SELECT FROM stage.events e WHERE e.source = t.event_source AND e.id = t.event_id)""",
        MOVED_BY_HAND,
    )
    if count:
        report.add_finding(f"{count} transitions name an event that is not stored")


async def check_bus(connection: Connection, report: Verification) -> None:
    """Compare what was written with what was published and what waits."""
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
        report.add_finding(
            f"the published log has {row['logged']} messages and ends at {row['newest']}"
        )
    for topic in await connection.fetch(
        """SELECT topic, count(*) AS logged, count(DISTINCT number) AS told FROM bus.log
           GROUP BY topic ORDER BY topic"""
    ):
        if topic["told"] != topic["logged"]:
            report.add_finding(
                f"{topic['logged']} messages of {topic['topic']} have {topic['told']} numbers"
            )
    if row["logged"] + row["pending"] != row["written"]:
        report.add_finding(
            f"{row['written']} messages written, {row['logged']} published, {row['pending']} waiting"
        )
    if row["unheard"]:
        report.add_finding(f"{row['unheard']} transitions have no message in the outbox")


async def check_alerts(connection: Connection, report: Verification) -> None:
    """Look for alerts about nothing, and count those still to come."""
    if await connection.fetchval("SELECT to_regclass('notifier.alerts')") is None:
        return
    report.alerts = await connection.fetchval("SELECT count(*) FROM notifier.alerts")
    strange = await connection.fetchval(
        """SELECT count(*) FROM notifier.alerts a WHERE NOT EXISTS
           (SELECT FROM stage.transitions t WHERE t.id = a.transition_id)
           AND NOT EXISTS (SELECT FROM bus.outbox o WHERE o.message_id = a.transition_id::text)"""
    )
    if strange:
        report.add_finding(f"{strange} alerts are about nothing that was published")
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
