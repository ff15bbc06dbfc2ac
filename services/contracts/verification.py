"""What `baton verify` found, as `--json` writes it (``schemas/baton.verification.schema.json``)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

FINDINGS_MAX = 200
"""How many are listed; all are counted."""
LEADS_MAX = 100_000
"""How many leads with something wrong are remembered, for a repair; the next one finds the others."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong, and with which lead; null: with none, or with several."""

    finding: str
    lead_id: str | None = None


class Mended(msgspec.Struct, frozen=True):
    """What a repair did to one lead: what was wrong, its journeys before and after, and what is left.

    `before` and `after` give stage and number of records by journey.
    """

    lead_id: str
    findings: list[str]
    before: dict[str, tuple[str, int]]
    after: dict[str, tuple[str, int]]
    published: int
    """Messages that it wrote: corrections, and what was never told."""
    left: list[str] = []
    """What is still wrong: it cannot be proven how it was."""
    why_not: str | None = None
    """Why nothing was done to it."""


class Repair(msgspec.Struct):
    """What `--repair` did, or would do with `dry_run`."""

    dry_run: bool
    leads: list[Mended] = []
    others: list[str] = []
    """What was done that belongs to no lead."""


class Verification(msgspec.Struct):
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
    found: int = 0
    listed: list[Finding] = []
    """The first of them, in the order of their leads."""
    damaged: list[str] = []
    """The leads with something wrong."""
    repair: Repair | None = None

    @property
    def clean(self) -> bool:
        """Tell whether nothing is wrong."""
        return not self.found

    @property
    def findings(self) -> list[str]:
        """Give what is wrong, as it is listed."""
        return [each.finding for each in self.listed]

    def add_finding(self, finding: str, lead_id: str | None = None) -> None:
        """Note something wrong."""
        self.found += 1
        if (
            lead_id is not None
            and len(self.damaged) < LEADS_MAX
            and lead_id not in self.damaged[-1:]
        ):
            self.damaged.append(lead_id)
        if len(self.listed) < FINDINGS_MAX:
            self.listed.append(Finding(finding, lead_id))

    def add(self, part: Verification) -> None:
        """Take in what another process looked at; `part` is of the leads that come next."""
        for name in (
            "leads", "events", "transitions", "published", "pending", "alerts", "alerts_waiting", "merges",
            "handoffs", "found",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.listed += part.listed[: FINDINGS_MAX - len(self.listed)]
        self.damaged += part.damaged[: LEADS_MAX - len(self.damaged)]

    def lines(self) -> Iterable[str]:
        """Give the report as lines of text."""
        yield (
            f"{self.events} events of {self.leads} leads folded again; {self.transitions} records, "
            f"{self.published} published, {self.pending} waiting for the relay; "
            f"{self.alerts} alerts, {self.alerts_waiting} waiting for the notifier; "
            f"{self.merges} merges, {self.handoffs} handoffs"
        )
        yield from (f"WRONG: {each.finding}" for each in self.listed)
        if self.found > len(self.listed):
            yield f"... and {self.found - len(self.listed)} more"
        yield "clean" if self.clean else f"{self.found} findings"
