"""(e) Single events again, with 1,000,000 leads stored already."""

from __future__ import annotations

import random
import secrets
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg

from bench.ground import Ground, count, settle
from bench.load import WRK_MISSING, Caller, Load, has_wrk, wrk
from bench.measure import Figure, Options, Result, alternate
from bench.traffic import encoded, story
from services.contracts.cloudevents import BATCHED
from services.stage_service.journal import journey_id

KEY = "e"
TITLE = "Single events with many leads stored"
LEADS = 1_000_000
METHOD = (
    "The load of (a), in turn on two databases of one server with a stage service each: one that began "
    "empty (the baseline) and one with {leads:,} leads. The stored leads are copies of {templates} that "
    "went through the service itself (leads, identities, journeys, events, transitions, fold states), "
    "each with ids and an address of its own; then VACUUM ANALYZE and CHECKPOINT. A second figure, "
    "without target, writes about stored leads chosen at random instead of new ones."
)
TEMPLATES = 500
TEMPLATE_FROM = 9_000_000
WARM_S = 3
_TABLES = ("events", "leads", "identities", "journeys", "transitions")


def _template_events() -> Iterator[dict[str, Any]]:
    """Give the events of the template leads; a lead has two to eight."""
    chance = random.Random(5)
    now = datetime.now(UTC)
    for number in range(TEMPLATE_FROM, TEMPLATE_FROM + TEMPLATES):
        kept = chance.randrange(2, 9)
        for index, (type_, at, data) in enumerate(story(chance, number, now)):
            if index == kept:
                break
            yield {
                "specversion": "1.0", "id": f"fill-{number:07d}-{index:02d}", "source": "/fill",
                "type": type_, "time": at.isoformat(), "data": {**data, "anonymous_id": None},
            }  # fmt: skip


def _ids(leads: int) -> Iterator[tuple[int, int, uuid.UUID, uuid.UUID]]:
    """Give (number, template, lead id, journey id): UUIDv7 of the last weeks, and what follows."""
    chance = random.Random(3)
    newest_ms = int(time.time() * 1000) - 60_000
    for number in range(leads):
        moment = newest_ms - (leads - number) * 2000
        noise = chance.getrandbits(74)
        lead = uuid.UUID(
            int=moment << 80 | 7 << 76 | (noise >> 62) << 64 | 2 << 62 | noise & (1 << 62) - 1
        )
        yield (
            number, number % TEMPLATES, lead, uuid.UUID(journey_id(str(lead), "sales/main"))
        )  # fmt: skip


# Addresses and event ids have one length, so that a packed state stays valid when they are overlaid.
_COPY = """
CREATE TEMP TABLE template ON COMMIT DROP AS
SELECT substr(email, 6, 7)::int - {first} AS t, l.*,
  position(convert_to(email, 'UTF8') IN state) AS email_at,
  position(convert_to('fill-' || substr(email, 6, 7) || '-', 'UTF8') IN state) AS event_at
FROM stage.leads l;
ANALYZE template;
CREATE TEMP TABLE template_event ON COMMIT DROP AS
SELECT t.t, e.*, right(e.id, 2)::int AS k FROM stage.events e JOIN template t ON t.id = e.lead_id;
ANALYZE template_event;
INSERT INTO stage.leads
  (id, email, name, company, external_ids, attributes, fit, intent, state, first_seen_at, last_seen_at)
SELECT i.lead, 'lead-' || lpad(i.n::text, 7, '0') || '@fill.example', t.name, t.company, t.external_ids,
  t.attributes, t.fit, t.intent,
  overlay(overlay(t.state PLACING convert_to('lead-' || lpad(i.n::text, 7, '0'), 'UTF8')
    FROM t.email_at) PLACING convert_to('fill-' || lpad(i.n::text, 7, '0'), 'UTF8') FROM t.event_at),
  t.first_seen_at, t.last_seen_at
FROM bench_ids i JOIN template t ON t.t = i.t;
INSERT INTO stage.identities (kind, value, lead_id)
SELECT 'email', 'lead-' || lpad(i.n::text, 7, '0') || '@fill.example', i.lead FROM bench_ids i;
INSERT INTO stage.journeys (id, lead_id, playbook, key, stage, furthest_stage, started_at, entered_at,
  sequence, owners, held, deal, playbook_version)
SELECT i.journey, i.lead, j.playbook, j.key, j.stage, j.furthest_stage, j.started_at, j.entered_at,
  j.sequence, j.owners, j.held, j.deal, j.playbook_version
FROM bench_ids i JOIN template t ON t.t = i.t JOIN stage.journeys j ON j.lead_id = t.id;
INSERT INTO stage.transitions (journey_id, sequence, id, lead_id, kind, playbook, playbook_version,
  from_stage, to_stage, visit_entered_at, occurred_at, recorded_at, event_source, event_id, event_type,
  rule, actor, role, owner_id, handoff, skipped, explanation, why, replaces)
SELECT i.journey, r.sequence, uuidv7(), i.lead, r.kind, r.playbook, r.playbook_version, r.from_stage,
  r.to_stage, r.visit_entered_at, r.occurred_at, r.recorded_at, r.event_source,
  overlay(r.event_id PLACING lpad(i.n::text, 7, '0') FROM 6), r.event_type, r.rule, r.actor, r.role,
  r.owner_id, r.handoff, r.skipped, r.explanation, r.why, r.replaces
FROM bench_ids i JOIN template t ON t.t = i.t JOIN stage.transitions r ON r.lead_id = t.id;
"""
# One event of every lead after the other: a lead's events lie apart, as if they had come over time.
_COPY_EVENTS = """
INSERT INTO stage.events (source, id, type, time, recorded_at, lead_id, deal, subject, data, envelope,
  epoch)
SELECT e.source, overlay(e.id PLACING lpad(i.n::text, 7, '0') FROM 6), e.type, e.time, e.recorded_at,
  i.lead, e.deal, e.subject,
  e.data || jsonb_build_object('email', 'lead-' || lpad(i.n::text, 7, '0') || '@fill.example'),
  e.envelope, e.epoch
FROM bench_ids i JOIN template_event e ON e.t = i.t WHERE e.k = $1
"""
_CONSTRAINTS = """
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname,
              pg_get_constraintdef(oid))
FROM pg_constraint WHERE conrelid = $1::regclass AND contype IN ('p', 'u')
"""
_INDEXES = """
SELECT format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
FROM pg_index i WHERE indrelid = $1::regclass
AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)
"""


async def fill(url: str, service: str, key: str, leads: int) -> None:
    """Store `leads` leads in the database at `url`, whose stage service is at `service`."""
    caller = await Caller.open(service, key, BATCHED)
    events = list(_template_events())
    for start in range(0, len(events), 500):
        await caller.post(encoded(events[start : start + 500]))
    caller.close()
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET maintenance_work_mem = '512MB'; SET work_mem = '64MB'")
        async with connection.transaction():
            await connection.execute(
                "CREATE TEMP TABLE bench_ids (n int, t int, lead uuid, journey uuid) ON COMMIT DROP"
            )
            await connection.copy_records_to_table("bench_ids", records=_ids(leads))
            await connection.execute("ANALYZE bench_ids")
            # Indexes made after the rows take a fraction of the time.
            again: list[str] = []
            for table in _TABLES:
                for query in (_CONSTRAINTS, _INDEXES):
                    for drop, create in await connection.fetch(query, f"stage.{table}"):
                        await connection.execute(drop)
                        again.append(create)
            await connection.execute(_COPY.format(first=TEMPLATE_FROM))
            steps = await connection.fetchval("SELECT max(k) FROM template_event")
            for k in range(steps + 1):
                await connection.execute(_COPY_EVENTS, k)
            for create in again:
                await connection.execute(create)
    finally:
        await connection.close()


async def check(url: str) -> None:
    """See that a few of the stored leads are what the fold of their stored events gives."""
    from bench.folding import playbooks
    from services.stage_service import funnel, store

    active = playbooks()
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT id::text, state, email FROM stage.leads WHERE email < 'lead-9' "
            "ORDER BY md5(email) LIMIT 200"
        )
        stored = await store.events_of_leads(connection, [r["id"] for r in rows])
        for row in rows:
            lead = funnel.refold(stored[row["id"]], lambda _: active).lead
            if (
                lead != store.unpack_state(row["state"])
                or lead is None
                or lead.email != row["email"]
            ):
                raise RuntimeError(f"the stored lead {row['email']} is not the fold of its events")
    finally:
        await connection.close()


async def run(options: Options) -> Result:
    """Measure it."""
    leads = options.leads or (100_000 if options.quick else LEADS)
    result = Result(KEY, TITLE, METHOD.format(leads=leads, templates=TEMPLATES))
    if not has_wrk():
        result.skipped = WRK_MISSING
        return result
    seconds = options.seconds(8, 3)
    loads: list[Load] = []
    async with Ground() as ground:
        empty, empty_key = await ground.database("empty")
        full, full_key = await ground.database("full")
        empty_url = await ground.service("stage", empty)
        full_url = await ground.service("stage", full)
        began = time.perf_counter()
        await fill(full, full_url, full_key, leads)
        await settle(full)
        await check(full)
        events = await count(full, "SELECT count(*) FROM stage.events")
        size = await count(full, "SELECT pg_database_size(current_database())")
        filled = (
            f"{leads:,} leads with {events:,} events stored in {time.perf_counter() - began:.0f} s; "
            f"{size / 2**30:.1f} GiB."
        )
        options.say(f"  {filled}")

        async def measure(url: str, key: str, number: int, stored: int = 0) -> float:
            load = await wrk(
                url, key, f"r{number}-{secrets.token_hex(3)}", stored=stored,
                seconds=seconds if number else WARM_S, connections=options.connections,
            )  # fmt: skip
            loads.append(load)
            return load.rate

        new = await alternate(
            options.times(),
            lambda n: measure(empty_url, empty_key, n),
            lambda n: measure(full_url, full_key, n),
            options.say,
        )
        known = await alternate(
            options.times(3),
            lambda n: measure(empty_url, empty_key, n),
            lambda n: measure(full_url, full_key, n, leads),
            options.say,
        )
        result.notes += [filled, *ground.complaints("stage")]
    result.figures = [
        Figure("new leads", "requests/s", "a database that began empty", new, target=0.9),
        Figure("stored leads", "requests/s", "a database that began empty", known),
    ]
    return result
