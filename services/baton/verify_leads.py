"""What `baton verify` checks of leads: everything stored of one is what its events fold to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec

from services.baton.verify_handoffs import check_clocks, check_handoffs, rows_of_leads
from services.baton.verify_identities import check_identities, identities_of_leads
from services.contracts.events import LeadEvent
from services.contracts.verification import Verification
from services.stage_service import funnel, store
from services.stage_service.funnel import Journey, Lead, Move, Refolded
from services.stage_service.journal import journey_id
from services.stage_service.lead_facts import company_name, display_name
from services.stage_service.shelf import Shelf
from services.stage_service.store import Connection, Facts, Past, Record

Found = Callable[[str], None]
_JOURNEYS = """
SELECT lead_id::text, id::text, stage, furthest_stage, sequence, started_at, entered_at, owners, held, deal,
  playbook_version,
  (SELECT count(*) FROM stage.transitions t WHERE t.journey_id = j.id) AS records,
  (SELECT coalesce(max(sequence), 0) FROM stage.transitions t WHERE t.journey_id = j.id) AS newest
FROM stage.journeys j WHERE lead_id = ANY($1::uuid[])
"""


class Stored(msgspec.Struct):
    """All that is stored of some leads, by lead id; a state that cannot be read is left out."""

    records: dict[str, Record]
    columns: dict[str, Any]
    events: dict[str, list[tuple[LeadEvent, int]]]
    beyond: dict[str, list[tuple[LeadEvent, int]]]
    history: dict[str, dict[str, list[Past]]]
    owned: dict[str, Any]
    handoffs: dict[str, dict[str, Any]]
    running: dict[str, set[str]]
    journeys: dict[str, dict[str, Any]]


async def stored_of(connection: Connection, ids: Sequence[str]) -> Stored:
    """Read all that is stored of the leads `ids`."""
    rows = await connection.fetch(
        """SELECT id::text, state, email, attributes, name, company, external_ids, first_seen_at,
             last_seen_at FROM stage.leads
           WHERE id = ANY($1::uuid[]) AND merged_into IS NULL""",
        ids,
    )
    journeys: dict[str, dict[str, Any]] = {}
    for row in await connection.fetch(_JOURNEYS, ids):
        journeys.setdefault(row["lead_id"], {})[row["id"]] = row
    records: dict[str, Record] = {}
    for row in rows:
        try:
            records[row["id"]] = store.unpack_record(row["id"], row["state"])
        except (msgspec.DecodeError, UnicodeDecodeError, OverflowError):
            continue
    handoffs, running = await rows_of_leads(connection, ids)
    return Stored(
        records,
        {row["id"]: row for row in rows},
        await store.events_of_leads(connection, ids),
        await store.events_of_leads(connection, ids, beyond_horizon=True),
        await store.history(connection, ids),
        await identities_of_leads(connection, ids),
        handoffs, running, journeys,
    )  # fmt: skip


def refolded(events: Sequence[tuple[LeadEvent, int]], shelf: Shelf) -> Refolded:
    """Fold all events of a lead again, each under the playbooks of its epoch."""
    return funnel.refold(events, shelf.at)


async def check_leads(connection: Connection, shelf: Shelf, ids: Sequence[str]) -> Verification:
    """Check the leads `ids`, and give what was looked at and found."""
    report = Verification()
    stored = await stored_of(connection, ids)
    for lead_id in ids:
        if lead_id in stored.columns:  # nobody merged it meanwhile
            check_lead(stored, lead_id, refolded(stored.events[lead_id], shelf), report)
    return report


def check_lead(stored: Stored, lead_id: str, whole: Refolded, report: Verification) -> None:
    """Compare what is stored of one lead with the `whole` that its events fold to.

    The same lead has the same findings in the same order, wherever its rows lie.
    """
    found = partial(report.add_finding, lead_id=lead_id)
    events = stored.events[lead_id]
    report.leads += 1
    report.events += len(events)
    told = sorted((e for e, _ in (*events, *stored.beyond[lead_id])), key=lambda e: e.place)
    check_identities(lead_id, stored.owned[lead_id], told, found)
    record, lead = stored.records.get(lead_id), whole.lead
    if lead is None:
        found(f"lead {lead_id} has no events")
        return
    if record is None or record.lead is None:
        found(f"lead {lead_id}: its state cannot be read")
        record = Record(lead_id, None, {})
    else:
        _compare_states(lead_id, record.lead, lead, found)
    check_handoffs(lead_id, stored.handoffs[lead_id], whole.handed, found)
    check_clocks(lead_id, stored.running[lead_id], record.facts, found)
    report.handoffs += len(stored.handoffs[lead_id])
    _compare_columns(lead_id, stored.columns[lead_id], lead, found)
    mine = stored.journeys.get(lead_id, {})
    if len(mine) != len(lead.journeys):
        found(f"lead {lead_id}: {len(mine)} journeys stored, {len(lead.journeys)} folded")
    for name, journey in lead.journeys.items():
        id = journey_id(lead_id, name)
        row = mine.get(id)
        if row is None:
            found(f"lead {lead_id}: journey {name} is not stored")
            continue
        report.transitions += row["records"]
        _compare_journey(id, row, journey, record.facts.get(name), found)
        past = stored.history.get(lead_id, {}).get(id, [])
        _compare_history(id, past, [m for m in whole.moves if m.journey == name], found)


def _compare_states(lead_id: str, stored: Lead, folded: Lead, found: Found) -> None:
    if _plain(stored) == _plain(folded):
        return
    names = Lead.__struct_fields__
    differing = [n for n in names if _plain(getattr(stored, n)) != _plain(getattr(folded, n))]
    found(f"lead {lead_id}: stored and folded state differ in {', '.join(differing)}")


def _compare_columns(lead_id: str, row: Mapping[str, Any], lead: Lead, found: Found) -> None:
    if (row["email"], msgspec.json.decode(row["attributes"])) != (
        lead.email, _plain_json(lead.attributes),
    ):  # fmt: skip
        found(f"lead {lead_id}: e-mail or attributes are not what the events fold to")
    if (row["name"], row["company"], msgspec.json.decode(row["external_ids"])) != (
        display_name(lead.attributes), company_name(lead.attributes), lead.external_ids,
    ):  # fmt: skip
        found(f"lead {lead_id}: name, company or external ids are not what the events fold to")
    if (row["first_seen_at"], row["last_seen_at"]) != (lead.first_seen_at, lead.last[0]):
        found(f"lead {lead_id}: when it was seen is not what the events fold to")


def _compare_journey(
    id: str, row: Mapping[str, Any], journey: Journey, facts: Facts | None, found: Found
) -> None:
    if (row["stage"], row["furthest_stage"]) != (journey.stage, journey.furthest):
        found(f"journey {id}: in {row['stage']}, the fold says {journey.stage}")
    if (row["started_at"], row["entered_at"]) != (journey.started_at, journey.entered_at):
        found(f"journey {id}: its times are not what the events fold to")
    held = [
        {"to": h.to, "rule": h.rule, "since": h.since, "missing": h.missing} for h in journey.held
    ]
    if msgspec.json.decode(row["held"]) != _plain_json(held):
        found(f"journey {id}: the moves that gates hold are not what the events fold to")
    if msgspec.json.decode(row["deal"]) != _plain_json(journey.deal):
        found(f"journey {id}: its deal is not what the events fold to")
    sequence = facts.sequence if facts is not None else 0
    if not row["records"] == row["newest"] == row["sequence"] == sequence:
        found(
            f"journey {id}: {row['records']} records, numbered to {row['newest']}, "
            f"counted to {row['sequence']}, by its lead to {sequence}"
        )
    if facts is not None:
        owners = {role: owner["id"] for role, owner in msgspec.json.decode(row["owners"]).items()}
        if owners != {role: owner.id for role, owner in facts.owners.items()}:
            found(f"journey {id}: its owners are not those that its lead knows")


def _plain(value: Any) -> Any:
    """Give `value` as it comes back from being packed, so that tuples equal lists."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))


def _plain_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _compare_history(id: str, past: list[Past], moves: list[Move], found: Found) -> None:
    held = [p for p in past if p.kind != "retraction"]
    if [_told(p) for p in held] != [_told(m) for m in moves]:
        found(f"journey {id}: recorded history is not what the events fold to")
    # Retractions too stand in the chain: they start and end in the stage that holds.
    for before, after in pairwise(past):
        if before.to_stage != after.from_stage:
            found(
                f"journey {id}: record {after.sequence} does not start where {before.sequence} ended"
            )


def _told(record: Past | Move) -> tuple[Any, ...]:
    """Give all that a record tells about a move, but for the person chosen."""
    version = record.version if isinstance(record, Move) else record.playbook_version
    return (*record.identity, record.visit_entered_at, record.role, version, record.skipped)
