"""What Prometheus scrapes about subscriptions; labels hold ids, never an address, a lead or a person."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

DELIVERIES = Counter(
    "baton_subscription_deliveries_total",
    "Attempts to deliver to subscriptions by outcome: delivered, retried, failed (given up)",
    ["subscription", "outcome"],
)
ATTEMPT_SECONDS = Histogram(
    "baton_subscription_attempt_seconds", "Seconds an attempt to deliver took",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30),
)  # fmt: skip
LAG_POSITIONS = Gauge(
    "baton_subscription_lag_positions", "Messages of the log behind its end", ["subscription"]
)
LAG_SECONDS = Gauge(
    "baton_subscription_lag_seconds",
    "Age of the oldest message that waits to be delivered for the first time",
    ["subscription"],
)
DOWN = Gauge("baton_subscription_down", "1 while the endpoint takes nothing", ["subscription"])
HELD = Gauge("baton_subscriptions_held", "Subscriptions that this process delivers for")
STOPPED = Counter(
    "baton_subscriptions_stopped_total",
    "Subscriptions stopped by Baton: gone or failing",
    ["state"],
)
FLUSH_SECONDS = Histogram(
    "baton_subscription_record_seconds", "Seconds to record a batch of results",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)  # fmt: skip
