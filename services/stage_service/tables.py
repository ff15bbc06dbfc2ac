"""SQLAlchemy Core tables of the schema ``stage``, and of the bus's log, for the read side.

The DDL, with its checks and reasons, is in ``migrations/``; a test holds the two together. The lane
writes by the statements in ``store.py``.
"""

from __future__ import annotations

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

metadata = MetaData()
"""The tables of schema ``stage``."""
bus_metadata = MetaData()
"""The bus's tables that the feed reads."""


def _moment(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


playbook_versions = Table(
    "playbook_versions",
    metadata,
    Column("epoch", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("source", Text, nullable=False),
    _moment("activated_at"),
    Column("author", Text),
    Column("message", Text),
    Column("diff", JSONB),
    Column("migrate", JSONB, nullable=False),
    Column("restores", Integer),
    _moment("published_at"),
    schema="stage",
)

scheduled_publications = Table(
    "scheduled_publications",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("diff", JSONB),
    Column("migrate", JSONB, nullable=False),
    Column("restores", Integer),
    Column("base_version", Integer),
    _moment("activate_at"),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("version", Integer),
    _moment("created_at"),
    _moment("ended_at", nullable=True),
    Column("ended_by", Text),
    Column("active_version", Integer),
    schema="stage",
)

playbook_sweeps = Table(
    "playbook_sweeps",
    metadata,
    Column("epoch", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("after", UUID(as_uuid=False)),
    _moment("due_at"),
    Column("pass", Integer, nullable=False),
    Column("moved", BigInteger, nullable=False),
    _moment("begun_at"),
    _moment("done_at", nullable=True),
    schema="stage",
)

events = Table(
    "events",
    metadata,
    Column("source", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    _moment("time"),
    _moment("recorded_at"),
    Column("lead_id", UUID(as_uuid=False)),
    Column("deal", Text, nullable=False),
    Column("subject", Text),
    Column("data", JSONB, nullable=False),
    Column("envelope", JSONB),
    Column("epoch", Integer, nullable=False),
    Column("own_lead_id", UUID(as_uuid=False)),
    Column("beyond_horizon", Boolean, nullable=False, server_default=text("false")),
    schema="stage",
)

leads = Table(
    "leads",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("email", Text),
    Column("name", Text),
    Column("company", Text),
    Column("external_ids", JSONB, nullable=False),
    Column("attributes", JSONB, nullable=False),
    Column("fit", Integer, nullable=False),
    Column("intent", Integer, nullable=False),
    Column("state", LargeBinary, nullable=False),
    _moment("first_seen_at"),
    _moment("last_seen_at"),
    _moment("created_at"),
    _moment("updated_at"),
    Column("merged_into", UUID(as_uuid=False)),
    Column("regrouped_by", BigInteger),
    Column("account", Text),
    schema="stage",
)

identities = Table(
    "identities",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("lead_id", UUID(as_uuid=False), nullable=False),
    _moment("recorded_at"),
    Column("own_lead_id", UUID(as_uuid=False)),
    schema="stage",
)

merges = Table(
    "merges",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("survivor", UUID(as_uuid=False), nullable=False),
    Column("merged", UUID(as_uuid=False), nullable=False),
    Column("event_source", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    _moment("occurred_at"),
    _moment("recorded_at"),
    Column("identities", ARRAY(Text), nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text),
    Column("owners", JSONB, nullable=False),
    _moment("undone_at", nullable=True),
    Column("undone_by", Text),
    Column("undone_reason", Text),
    Column("undone_event_id", Text),
    schema="stage",
)

barriers = Table(
    "barriers",
    metadata,
    Column("one", UUID(as_uuid=False), primary_key=True),
    Column("other", UUID(as_uuid=False), primary_key=True),
    Column("merge_id", UUID(as_uuid=False), nullable=False),
    Column("inherited_by", UUID(as_uuid=False)),
    _moment("recorded_at"),
    schema="stage",
)

journeys = Table(
    "journeys",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("lead_id", UUID(as_uuid=False), nullable=False),
    Column("playbook", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("furthest_stage", Text, nullable=False),
    _moment("started_at"),
    _moment("entered_at"),
    Column("sequence", Integer, nullable=False),
    Column("owners", JSONB, nullable=False),
    Column("held", JSONB, nullable=False),
    Column("deal", JSONB, nullable=False),
    Column("playbook_version", Integer, nullable=False),
    _moment("updated_at"),
    Column("holder", Text),
    schema="stage",
)

transitions = Table(
    "transitions",
    metadata,
    Column("journey_id", UUID(as_uuid=False), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("id", UUID(as_uuid=False), nullable=False),
    Column("lead_id", UUID(as_uuid=False), nullable=False),
    Column("kind", Text, nullable=False),
    Column("playbook", Text, nullable=False),
    Column("playbook_version", Integer, nullable=False),
    Column("from_stage", Text, nullable=False),
    Column("to_stage", Text, nullable=False),
    _moment("visit_entered_at"),
    _moment("occurred_at"),
    _moment("recorded_at"),
    Column("event_source", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("rule", Text),
    Column("actor", Text),
    Column("role", Text, nullable=False),
    Column("owner_id", Text),
    Column("handoff", Boolean, nullable=False),
    Column("skipped", ARRAY(Text), nullable=False),
    Column("explanation", Text, nullable=False),
    Column("why", JSONB, nullable=False),
    Column("replaces", ARRAY(UUID(as_uuid=False)), nullable=False),
    Column("replaced_by", UUID(as_uuid=False)),
    schema="stage",
)

handoffs = Table(
    "handoffs",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("journey_id", UUID(as_uuid=False), nullable=False),
    Column("lead_id", UUID(as_uuid=False), nullable=False),
    Column("playbook", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("from_role", Text, nullable=False),
    Column("round", Integer, nullable=False),
    Column("person_id", Text),
    Column("person_name", Text),
    Column("giver_id", Text),
    Column("transition_id", UUID(as_uuid=False)),
    _moment("offered_at"),
    _moment("recorded_at"),
    _moment("asked_at", nullable=True),
    _moment("due_at", nullable=True),
    Column("state", Text, nullable=False),
    _moment("overdue_at", nullable=True),
    _moment("answered_at", nullable=True),
    Column("answered_by", Text),
    Column("implied", Boolean, nullable=False),
    Column("reason", Text),
    _moment("updated_at"),
    Column("holds", Boolean, nullable=False, server_default=text("true")),
    schema="stage",
)

clocks = Table(
    "clocks",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("journey_id", UUID(as_uuid=False), nullable=False),
    Column("lead_id", UUID(as_uuid=False), nullable=False),
    Column("playbook", Text, nullable=False),
    Column("deal", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("person_id", Text),
    Column("handoff_id", UUID(as_uuid=False)),
    _moment("since"),
    _moment("begin"),
    _moment("deadline"),
    Column("step", Integer, nullable=False),
    _moment("due_at", nullable=True),
    Column("state", Text, nullable=False),
    _moment("missed_at", nullable=True),
    _moment("ended_at", nullable=True),
    _moment("claimed_until", nullable=True),
    _moment("created_at"),
    _moment("updated_at"),
    schema="stage",
)

rotations = Table(
    "rotations",
    metadata,
    Column("role", Text, primary_key=True),
    Column("counts", JSONB, nullable=False),
    Column("fairness", JSONB, nullable=False),
    schema="stage",
)

account_owners = Table(
    "account_owners",
    metadata,
    Column("account", Text, primary_key=True),
    Column("role", Text, primary_key=True),
    Column("person_id", Text, nullable=False),
    _moment("since"),
    schema="stage",
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, primary_key=True),
    _moment("at"),
    Column("actor", Text, nullable=False),
    Column("key_id", Text),
    Column("action", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("before", JSONB),
    Column("after", JSONB),
    schema="stage",
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("source", Text, nullable=False),
    _moment("received_at"),
    _moment("last_received_at"),
    Column("times", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("body_hash", LargeBinary, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("headers", JSONB, nullable=False),
    Column("query", JSONB, nullable=False),
    Column("reasons", JSONB, nullable=False),
    Column("status", Text, nullable=False),
    _moment("closed_at", nullable=True),
    Column("closed_by", Text),
    schema="stage",
)

source_secrets = Table(
    "source_secrets",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("source", Text, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
    _moment("created_at"),
    schema="stage",
)

outbox = Table(
    "outbox",
    bus_metadata,
    Column("id", BigInteger, primary_key=True),
    Column("message_id", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("headers", JSONB, nullable=False),
    Column("value", LargeBinary, nullable=False),
    _moment("recorded_at"),
    schema="bus",
)

log = Table(
    "log",
    bus_metadata,
    Column("position", BigInteger, primary_key=True),
    Column("outbox_id", BigInteger, nullable=False),
    Column("topic", Text, nullable=False),
    Column("number", BigInteger),
    _moment("published_at"),
    schema="bus",
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("name", Text, nullable=False),
    Column("connector", Text),
    Column("url", Text),
    Column("types", ARRAY(Text), nullable=False),
    Column("filter", Text),
    Column("payload", Text, nullable=False),
    Column("ordered", Boolean, nullable=False),
    Column("headers", LargeBinary),
    Column("credentials", LargeBinary),
    Column("config", JSONB, nullable=False),
    Column("contact", Text),
    Column("timeout_s", REAL, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("rate_per_s", REAL),
    Column("state", Text, nullable=False),
    Column("state_reason", Text),
    _moment("state_at"),
    _moment("failing_since", nullable=True),
    Column("version", Integer, nullable=False),
    _moment("created_at"),
    Column("created_by", Text, nullable=False),
    _moment("updated_at"),
    _moment("deleted_at", nullable=True),
    schema="stage",
)

subscription_secrets = Table(
    "subscription_secrets",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("subscription_id", UUID(as_uuid=False), nullable=False),
    Column("kind", Text, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("public_key", Text),
    _moment("created_at"),
    _moment("expires_at", nullable=True),
    schema="stage",
)

subscription_cursors = Table(
    "subscription_cursors",
    metadata,
    Column("subscription_id", UUID(as_uuid=False), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("run", Integer, nullable=False),
    _moment("moved_at"),
    schema="stage",
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("subscription_id", UUID(as_uuid=False), nullable=False),
    Column("run", Integer, nullable=False),
    Column("position", BigInteger),
    Column("event_id", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("lead_id", Text, nullable=False),
    Column("body", JSONB),
    Column("state", Text, nullable=False),
    Column("attempts", JSONB, nullable=False),
    Column("tries", Integer, nullable=False),
    _moment("next_at", nullable=True),
    _moment("created_at"),
    _moment("done_at", nullable=True),
    schema="stage",
)

simulations = Table(
    "simulations",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("playbook", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("source", Text, nullable=False),
    _moment("since", nullable=True),
    Column("workers", Integer, nullable=False),
    Column("asked_by", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("leads_done", Integer, nullable=False),
    Column("leads_total", Integer),
    _moment("started_at"),
    _moment("beat_at"),
    _moment("ended_at", nullable=True),
    Column("result", LargeBinary),
    schema="stage",
)
