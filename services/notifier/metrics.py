"""What Prometheus scrapes from the notifier; labels never hold a lead or a person."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ALERTS = Counter("baton_alerts_total", "Alerts recorded, by role", ["role"])
DELIVERIES = Counter(
    "baton_deliveries_total", "Attempts to deliver, by kind of channel and result",
    ["channel", "result"],
)  # fmt: skip
DELIVERY_SECONDS = Histogram(
    "baton_delivery_seconds", "Seconds one attempt took, by kind of channel", ["channel"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20),
)  # fmt: skip
CONSUMER_LAG_SECONDS = Gauge(
    "baton_notifier_lag_seconds", "Age of the newest transition read; 0 when there is none to read"
)
DEAD_LETTERS = Counter(
    "baton_dead_letters_total", "What ended undelivered: messages and deliveries", ["kind"]
)
CONSUMER_FAILURES = Counter(
    "baton_notifier_failures_total", "Rounds that failed and were repeated", ["part", "reason"]
)


def failed(part: str, error: Exception) -> None:
    """Count a round of `part` that failed."""
    CONSUMER_FAILURES.labels(part, type(error).__name__).inc()
