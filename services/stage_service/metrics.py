"""What Prometheus scrapes from the stage service; labels never hold a lead or a person."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

from services.stage_service.batch import Outcome
from services.stage_service.store import TransitionRow

EVENTS = Counter("baton_events_received_total", "Lead events by result", ["result"])
DELIVERIES = Counter(
    "baton_source_deliveries_total",
    "Deliveries of sources: accepted, quarantined, handshake, or why they were refused",
    ["source", "result"],
)
ECHOES = Counter(
    "baton_echoes_total",
    "Deliveries' events that said just what a connector had written",
    ["source"],
)
TRANSITIONS = Counter(
    "baton_transitions_total", "Recorded transitions", ["kind", "from_stage", "to_stage"]
)
BATCH_EVENTS = Histogram(
    "baton_batch_events", "Events a batch", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500)
)
BATCH_SECONDS = Histogram(
    "baton_batch_seconds", "Seconds from the start of a batch's transaction to its commit",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)  # fmt: skip
BATCHES_FAILED = Counter("baton_batches_failed_total", "Batches rolled back", ["reason"])
BATCHES_RETRIED = Counter("baton_batches_retried_total", "Batches applied again", ["reason"])
RULES_UNEVALUATED = Counter(
    "baton_rules_unevaluated_total", "Rules counted false for want of a value", ["rule"]
)
LEADS_MERGED = Counter("baton_leads_merged_total", "Leads that became part of another")
LINKS_REFUSED = Counter(
    "baton_links_refused_total", "Events that name two leads which were not merged"
)
IDENTITIES_UNCLAIMED = Counter(
    "baton_identities_unclaimed_total", "Identities not taken: their lead has the most allowed"
)
BEYOND_HORIZON = Counter(
    "baton_events_beyond_horizon_total",
    "Events that came too late to rewrite history: kept, not counted",
)
SWEEP_FAILED = Counter(
    "baton_sweep_failed_total", "Leads that could not hear of a playbook version, each pass"
)
OUTBOX_PENDING = Gauge("baton_outbox_pending", "Messages recorded and not yet published")
PUBLISHED_POSITION = Gauge("baton_published_position", "Newest position of the published log")
KAFKA_POSITION = Gauge("baton_kafka_position", "Newest position that Kafka acknowledged")
RELAY_LEADER = Gauge(
    "baton_relay_leader", "1 while this process leads the loop: sequencer or publisher", ["loop"]
)
FEED_STREAMS = Gauge(
    "baton_feed_streams", "Streams, exports and waiting polls of the feeds that are open"
)
SNAPSHOTS = Counter(
    "baton_lead_snapshots_total", "Messages on baton.leads: lead, or tombstone", ["kind"]
)
CLOCKS_FIRED = Counter("baton_clocks_fired_total", "Clock steps that became lead events")
CLOCK_LATENESS = Histogram(
    "baton_clock_lateness_seconds",
    "From when a step was due to when it was fired",
    buckets=(0.1, 0.25, 0.5, 1, 2, 5, 30, 300, 3600, 86_400),
)
HTTP_SECONDS = Histogram(
    "http_server_request_duration_seconds", "Seconds a request, by route and status",
    ["http_request_method", "http_route", "http_response_status_code"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)  # fmt: skip


def observe_batch(
    outcomes: Sequence[Outcome],
    rows: Sequence[TransitionRow],
    unevaluated: Sequence[tuple[str, str]],
    seconds: float,
) -> None:
    """Count a committed batch."""
    BATCH_EVENTS.observe(len(outcomes))
    BATCH_SECONDS.observe(seconds)
    applied = sum(1 for o in outcomes if o.status == "applied")
    EVENTS.labels("applied").inc(applied)
    EVENTS.labels("duplicate").inc(len(outcomes) - applied)
    BEYOND_HORIZON.inc(sum(1 for o in outcomes if o.beyond_horizon is True))
    moves: dict[tuple[str, str, str], int] = {}
    for row in rows:
        key = (row.kind, row.from_stage, row.to_stage)
        moves[key] = moves.get(key, 0) + 1
    for key, count in moves.items():
        TRANSITIONS.labels(*key).inc(count)
    for rule, _ in unevaluated:
        RULES_UNEVALUATED.labels(rule).inc()


def observe_regrouping(merged: int, refused: int, unclaimed: int) -> None:
    """Count what a committed batch did to who is who."""
    LEADS_MERGED.inc(merged)
    LINKS_REFUSED.inc(refused)
    IDENTITIES_UNCLAIMED.inc(unclaimed)
