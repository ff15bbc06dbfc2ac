"""What `baton verify` says of handoffs and clocks: as the fold has them, each clock in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.stage_service.journal import handoff_id, journey_id
from services.stage_service.offers import Handed, Offer
from services.stage_service.store import Connection, Facts


async def rows_of_leads(
    connection: Connection, ids: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, set[str]]]:
    """Give the recorded handoffs of leads by id, and the ids of their running clocks."""
    handoffs: dict[str, dict[str, Any]] = {id: {} for id in ids}
    for row in await connection.fetch(
        """SELECT id::text, lead_id::text, state, overdue_at, answered_at, round, holds FROM stage.handoffs
           WHERE lead_id = ANY($1::uuid[]) ORDER BY id""",
        ids,
    ):
        handoffs[row["lead_id"]][row["id"]] = row
    running: dict[str, set[str]] = {id: set() for id in ids}
    for row in await connection.fetch(
        """SELECT id::text, lead_id::text FROM stage.clocks
           WHERE lead_id = ANY($1::uuid[]) AND state = 'running'""",
        ids,
    ):
        running[row["lead_id"]].add(row["id"])
    return handoffs, running


def check_handoffs(
    lead_id: str,
    recorded: Mapping[str, Any],
    handed: Sequence[Handed],
    found: Callable[[str], None],
) -> None:
    """Compare the recorded handoffs of a lead with those that its events fold to."""
    folded: dict[str, Offer] = {}
    for change in handed:
        folded[handoff_id(journey_id(lead_id, change.journey), change.offer)] = change.offer
    for id, offer in folded.items():
        row = recorded.get(id)
        if row is None:
            found(f"handoff {id} of lead {lead_id} is not recorded")
        elif (row["state"], row["overdue_at"], row["answered_at"]) != (
            offer.state, offer.overdue_at, offer.answered_at,
        ):  # fmt: skip
            found(f"handoff {id} is recorded as {row['state']}, the fold says {offer.state}")
        elif not row["holds"]:
            found(f"handoff {id} of lead {lead_id} is not counted, and the fold knows it")
    for id, row in recorded.items():
        if id not in folded and row["state"] == "offered":
            found(f"handoff {id} waits, though the events of lead {lead_id} do not offer it")
        elif id not in folded and row["holds"]:
            found(f"handoff {id} is counted, though the events of lead {lead_id} do not offer it")


def check_clocks(
    lead_id: str, running: set[str], facts: Mapping[str, Facts], found: Callable[[str], None]
) -> None:
    """Compare the clocks that run for a lead with those that its journeys know."""
    known = {clock.id for each in facts.values() for clock in each.clocks.values()}
    for id in sorted(known ^ running):
        where = "runs, unknown to its journey" if id in running else "is known, and does not run"
        found(f"clock {id} of lead {lead_id} {where}")
