"""The Kafka topics of Baton: one declaration for who creates, checks, describes and reads them.

`contracts.kafka` creates what is missing as it stands here, ``baton kafka topics`` compares a cluster
with it, and the AsyncAPI document and docs/kafka.md are written from it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from services.contracts.events import (
    CORRECTED,
    DEAD_LETTERS_TOPIC,
    HANDOFFS_TOPIC,
    LEAD_MERGED,
    LEAD_SNAPSHOT,
    LEAD_UNMERGED,
    LEADS_TOPIC,
    OWNER_CHANGED,
    SUBSCRIPTION_STOPPED,
    SUBSCRIPTIONS_TOPIC,
    TRANSITIONED,
    TRANSITIONS_TOPIC,
)
from services.contracts.handoffs import (
    ACCEPTED,
    CLOCK_RANG,
    OFFERED,
    OVERDUE,
    REJECTED,
    WITHDRAWN,
)

PARTITIONS = 6
"""Of a topic that Baton creates. More do no harm; fewer is no option of Kafka's."""
DAY_MS = 24 * 3600 * 1000


class Topic(msgspec.Struct, frozen=True):
    """A topic: what is on it, by which key, and the settings that its promises need."""

    name: str
    title: str
    about: str
    key: str
    kept: str
    types: tuple[str, ...]
    configs: Mapping[str, str]
    partitions: int = PARTITIONS


TOPICS = (
    Topic(
        TRANSITIONS_TOPIC,
        "Stage transitions",
        "Every record of every journey, corrections too, and merges of leads.",
        "the lead's id",
        "30 days",
        (TRANSITIONED, CORRECTED, LEAD_MERGED, LEAD_UNMERGED),
        {"cleanup.policy": "delete", "retention.ms": str(30 * DAY_MS)},
    ),
    Topic(
        HANDOFFS_TOPIC,
        "Handoffs, owners and clocks",
        "What becomes of handoffs, changes of owners within a stage, and clocks that rang.",
        "the lead's id",
        "30 days",
        (OFFERED, ACCEPTED, REJECTED, OVERDUE, WITHDRAWN, OWNER_CHANGED, CLOCK_RANG),
        {"cleanup.policy": "delete", "retention.ms": str(30 * DAY_MS)},
    ),
    Topic(
        LEADS_TOPIC,
        "Leads as they are now",
        "Compacted: the newest message of a key is the lead's present state; none (a null value) when "
        "the lead was merged into another or erased.",
        "the lead's id",
        "the newest state of each lead, for ever; tombstones 7 days",
        (LEAD_SNAPSHOT,),
        {
            "cleanup.policy": "compact",
            # A reader that was away for a week still learns what is gone.
            "delete.retention.ms": str(7 * DAY_MS),
            # What was erased or changed is gone from the disks a day later, busy topic or not.
            "max.compaction.lag.ms": str(DAY_MS),
        },
    ),
    Topic(
        SUBSCRIPTIONS_TOPIC,
        "Subscriptions",
        "What becomes of subscriptions: one that Baton stopped, after days of failures or at a 410.",
        "the subscription's id",
        "30 days",
        (SUBSCRIPTION_STOPPED,),
        {"cleanup.policy": "delete", "retention.ms": str(30 * DAY_MS)},
    ),
    Topic(
        DEAD_LETTERS_TOPIC,
        "Unreadable messages",
        "What the notifier could not read, as it came, with the reason in a header.",
        "as the message had it",
        "for ever",
        (),
        {"cleanup.policy": "delete", "retention.ms": "-1"},
    ),
)
"""All topics, in the order in which they are documented."""
BY_NAME = {topic.name: topic for topic in TOPICS}


class Found(msgspec.Struct, frozen=True):
    """A topic as a cluster has it; `partitions` 0: it is not there."""

    name: str
    partitions: int
    replication: int
    configs: Mapping[str, str]


class Difference(msgspec.Struct, frozen=True):
    """A setting of a topic that is not as its promises need it (`there` None: no such topic)."""

    topic: str
    setting: str
    wanted: str
    there: str | None

    def told(self) -> str:
        """Say what differs, and what to do."""
        if self.there is None:
            return f"{self.topic} does not exist; Baton creates it at its start"
        return (
            f"{self.topic}: {self.setting} is {self.there!r}, not {self.wanted!r}; remedy: "
            f"kafka-configs.sh --alter --entity-type topics --entity-name {self.topic} "
            f"--add-config {self.setting}={self.wanted}"
        )


def differences(found: Mapping[str, Found]) -> list[Difference]:
    """Compare `found` (by name) with the declaration. Other numbers of partitions are no difference."""
    told: list[Difference] = []
    for topic in TOPICS:
        there = found.get(topic.name)
        if there is None or not there.partitions:
            told.append(Difference(topic.name, "", "", None))
            continue
        told += [
            Difference(topic.name, setting, wanted, there.configs.get(setting, ""))
            for setting, wanted in topic.configs.items()
            if there.configs.get(setting, "") != wanted
        ]
    return told
