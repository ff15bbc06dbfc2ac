"""A lead as Baton knew it at a past moment: what had arrived by then, folded as it was folded then.

Exact, where the log is whole: membership by the merges that held then, events by their arrival, each under
its own epoch. Owners are no function of the log: they are read from the records and handoffs of then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import msgspec

from services.contracts.events import ASSIGNED_BY_HAND, SOURCE, LeadEvent
from services.stage_service import funnel, store
from services.stage_service.accounts import account_of
from services.stage_service.funnel import Lead, Refolded
from services.stage_service.identities import Policy, keys_of
from services.stage_service.journal import handoff_id, journey_id
from services.stage_service.lead_facts import company_name, display_name
from services.stage_service.offers import Offer, is_assignment
from services.stage_service.playbook import Playbook
from services.stage_service.reads import TIMELINE_MAX, event_item, in_order, record_item
from services.stage_service.renaming import listeners
from services.stage_service.shelf import Shelf
from services.stage_service.store import Connection

SETTLED_AFTER = timedelta(seconds=60)
"""What arrived by a moment is committed, or never will be, so long after it."""

# A merge holds from the batch that made it until the batch that undid it.
_HELD = "m.recorded_at <= $2 AND (m.undone_at IS NULL OR m.undone_at > $2)"
_ROOT = f"""
WITH RECURSIVE way(id, step) AS (
  SELECT $1::uuid, 0
  UNION ALL SELECT m.survivor, w.step + 1 FROM way w JOIN stage.merges m ON m.merged = w.id AND {_HELD})
SELECT id::text FROM way ORDER BY step DESC LIMIT 1
"""  # noqa: S608
_TREE = f"""
WITH RECURSIVE tree(id) AS (
  SELECT $1::uuid
  UNION SELECT m.merged FROM tree t JOIN stage.merges m ON m.survivor = t.id AND {_HELD})
SELECT id::text FROM tree
"""  # noqa: S608
_MERGES = """
SELECT m.id::text AS merge_id, m.survivor::text, m.merged::text AS lead_id, m.event_source,
  m.event_id, m.event_type, m.occurred_at, m.recorded_at, m.identities, m.reason, m.actor,
  CASE WHEN m.undone_at <= $2 THEN m.undone_at END AS undone_at,
  CASE WHEN m.undone_at <= $2 THEN m.undone_by END AS undone_by,
  CASE WHEN m.undone_at <= $2 THEN m.undone_reason END AS undone_reason
FROM stage.merges m
WHERE (m.survivor = ANY($1::uuid[]) OR m.merged = ANY($1::uuid[])) AND m.recorded_at <= $2
ORDER BY m.recorded_at, m.id
"""
_RECORDS = """
SELECT t.*, t.id::text AS id, t.journey_id::text AS journey_id,
  r.id::text AS replaced_then
FROM stage.transitions t
  LEFT JOIN stage.transitions r ON r.journey_id = t.journey_id AND r.id = t.replaced_by
    AND r.recorded_at <= $2
WHERE t.journey_id = ANY($1::uuid[]) AND t.recorded_at <= $2
ORDER BY t.journey_id, t.sequence
"""
_HANDOFFS = """
SELECT h.*, h.id::text AS id, h.journey_id::text AS journey_id, h.lead_id::text AS lead_id,
  h.transition_id::text AS transition_id
FROM stage.handoffs h WHERE h.journey_id = ANY($1::uuid[]) ORDER BY h.offered_at, h.round
"""
_IDENTITIES = """
SELECT kind, value, recorded_at, coalesce(own_lead_id, lead_id)::text AS own
FROM stage.identities WHERE coalesce(own_lead_id, lead_id) = ANY($1::uuid[])
  AND lead_id = ANY(ARRAY(
    WITH RECURSIVE holder(id) AS (
      SELECT unnest($1::uuid[])
      UNION SELECT l.merged_into FROM holder h JOIN stage.leads l ON l.id = h.id
      WHERE l.merged_into IS NOT NULL)
    SELECT id FROM holder))
ORDER BY recorded_at, kind, value
"""
_BEGAN = """
SELECT min(e.recorded_at) FROM stage.events e
WHERE e.lead_id = $1 OR e.own_lead_id = $1
"""


class Then(msgspec.Struct):
    """What Baton knew of a lead at the moment `at`: its events, what they fold to, and the records of them.

    `records` are rows of ``stage.transitions``, `handoffs` of ``stage.handoffs``, `merges` as the timeline
    tells them; `playbooks` those that were active for the lead's newest batch.
    """

    id: str
    at: datetime
    lead: Lead
    folded: Refolded
    events: list[LeadEvent]
    beyond: list[LeadEvent]
    """What had arrived beyond the horizon: told, and not folded."""
    playbooks: dict[str, Playbook]
    merges: list[dict[str, Any]]
    records: list[dict[str, Any]]
    handoffs: list[dict[str, Any]]
    identities: list[dict[str, Any]]
    version: Callable[[str, int], Playbook]
    """Gives a version of a playbook by name and number."""

    def journey_ids(self) -> dict[str, str]:
        """Give the ids of the lead's journeys of then, with their names."""
        return {journey_id(self.id, name): name for name in self.lead.journeys}


async def root_at(connection: Connection, lead_id: str, at: datetime) -> str:
    """Give the lead that `lead_id` was part of at the moment `at`: itself, unless it was merged."""
    return await connection.fetchval(_ROOT, lead_id, at)


async def began_at(connection: Connection, lead_id: str) -> datetime | None:
    """Give when the first event of a lead arrived; None: there is none."""
    return await connection.fetchval(_BEGAN, lead_id)


async def epoch_at(connection: Connection, at: datetime) -> int:
    """Give the playbook epoch that held at the moment `at`; 0: none yet."""
    return await connection.fetchval(
        "SELECT coalesce(max(epoch), 0) FROM stage.playbook_versions WHERE activated_at <= $1", at
    )


async def lead_at(
    connection: Connection, shelf: Shelf, lead_id: str, at: datetime, policy: Policy
) -> Then | None:
    """Give the lead `lead_id`, which stood for itself at the moment `at`; None: it was not known yet.

    Reads several tables: run it in one snapshot.
    """
    members = [row["id"] for row in await connection.fetch(_TREE, lead_id, at)]
    told = await store.events_by_then(connection, members, at)
    if any(epoch > shelf.epoch for _, epoch in told):
        await shelf.load(connection)
    beyond = await store.events_by_then(connection, members, at, beyond_horizon=True)
    folded = _folded(shelf, told)
    if folded.lead is None:
        return None
    ids = [journey_id(lead_id, name) for name in folded.lead.journeys]
    merges = [dict(row) for row in await connection.fetch(_MERGES, members, at)]
    records = [_record(row) for row in await connection.fetch(_RECORDS, ids, at)]
    handoffs = [dict(row) for row in await connection.fetch(_HANDOFFS, ids)]
    identities = await connection.fetch(_IDENTITIES, members)
    newest = max(told, key=lambda each: (each[0].recorded_at, each[1]))
    then = Then(
        lead_id, at, folded.lead, folded, [event for event, _ in told], [event for event, _ in beyond],
        shelf.at(newest[1]), merges, _with_visits(records, folded, lead_id), [],
        _named(identities, [*told, *beyond], lead_id, policy), shelf.version,
    )  # fmt: skip
    then.handoffs = _handoffs(handoffs, then)
    return then


def _folded(shelf: Shelf, told: Iterable[tuple[LeadEvent, int]]) -> Refolded:
    """Fold events as they were folded then: each under the playbooks of its epoch."""
    return funnel.refold(told, shelf.at)


def _record(row: Any) -> dict[str, Any]:
    found = dict(row)
    found["why"] = msgspec.json.decode(found["why"])
    found["replaces"] = [str(id) for id in found["replaces"]]
    found["replaced_by"] = found["replaced_then"]
    return found


def _with_visits(
    records: list[dict[str, Any]], folded: Refolded, lead_id: str
) -> list[dict[str, Any]]:
    """Give the records with the beginnings of visits as they were known then.

    A later correction moves them without a record of its own.
    """
    begun = {(journey_id(lead_id, m.journey), m.identity): m.visit_entered_at for m in folded.moves}
    for record in records:
        move = (
            record["from_stage"], record["to_stage"], record["occurred_at"],
            record["event_source"], record["event_id"], record["rule"],
        )  # fmt: skip
        if record["replaced_by"] is None and (record["journey_id"], move) in begun:
            record["visit_entered_at"] = begun[record["journey_id"], move]
    return records


def _handoffs(rows: Iterable[dict[str, Any]], then: Then) -> list[dict[str, Any]]:
    """Give the handoffs that the events of then had made, as far as these had answered them."""
    offers: dict[str, Offer] = {}
    for change in then.folded.handed:
        offers[handoff_id(journey_id(then.id, change.journey), change.offer)] = change.offer
    found: list[dict[str, Any]] = []
    for row in rows:
        offer = offers.get(row["id"])
        if offer is not None:
            known = ("state", "overdue_at", "answered_at", "answered_by", "implied", "reason")
            found.append(row | {name: getattr(offer, name) for name in known})
    return found


def _named(
    rows: Iterable[Any], told: Iterable[tuple[LeadEvent, int]], lead_id: str, policy: Policy
) -> list[dict[str, Any]]:
    """Give the identities that an event had named by then."""
    named = {
        key for event, _ in told for key in keys_of(event.identities, event.data, policy)[0]
    }  # fmt: skip
    return [
        {"kind": r["kind"], "value": r["value"], "recorded_at": r["recorded_at"],
         "merged_from": r["own"] if r["own"] != lead_id else None}
        for r in rows
        if (r["kind"], r["value"]) in named
    ]  # fmt: skip


def shown_at(then: Then, names: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Give a lead of then as ``GET /v1/leads/{id}`` shows one; `names` of people by id."""
    lead = then.lead
    first = next(iter(then.playbooks.values()), None)
    score = funnel.score_of(lead, first, lead.last[0]) if first else None
    return {
        "id": then.id, "email": lead.email, "name": display_name(lead.attributes),
        "company": company_name(lead.attributes), "external_ids": lead.external_ids,
        "attributes": lead.attributes,
        "score": {"fit": score.fit, "intent": score.intent, "total": score.total} if score
        else {"fit": 0, "intent": 0, "total": 0},
        "account": account_of(lead.email, lead.attributes), "first_seen_at": lead.first_seen_at,
        "last_seen_at": lead.last[0], "journeys": _journeys(then, names), "identities": then.identities,
        "merged_from": [
            {"merge_id": m["merge_id"], "lead_id": m["lead_id"], "survivor": m["survivor"],
             "merged_at": m["recorded_at"], "reason": m["reason"], "identities": m["identities"],
             "actor": m["actor"]}
            for m in then.merges if m["undone_at"] is None and m["lead_id"] != then.id
        ],
    }  # fmt: skip


def _journeys(then: Then, names: Mapping[str, str]) -> list[dict[str, Any]]:
    owners, sequences = owners_at(then, names), dict[str, int]()
    for record in then.records:
        sequences[record["journey_id"]] = record["sequence"]
    found = [
        {"id": id, "playbook": j.playbook, "key": j.key, "stage": j.stage,
         "furthest_stage": j.furthest, "started_at": j.started_at, "entered_at": j.entered_at,
         "owners": owners.get(id, {}),
         "held": [{"to": h.to, "rule": h.rule, "since": h.since, "missing": h.missing}
                  for h in j.held],
         "sequence": sequences.get(id, 0), "deal": j.deal, "playbook_version": j.version}
        for id, name in then.journey_ids().items() for j in (then.lead.journeys[name],)
    ]  # fmt: skip
    return sorted(found, key=lambda j: (j["started_at"], j["id"]))


class _Owned(msgspec.Struct, frozen=True, order=True):
    """That a journey had an owner for a role from a moment on; of one moment the later kind counts."""

    since: datetime
    kind: int
    journey: str
    role: str
    person: str
    name: str | None = None
    why: str = ""


def owners_at(then: Then, names: Mapping[str, str]) -> dict[str, dict[str, dict[str, str]]]:
    """Give who held each journey, by journey id and role, as the records and handoffs of then tell.

    Who came with a merge or stayed after its undoing, and was named by no record since, is not told.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    asked = _asked(then)
    for owned in sorted(_owned(then), key=lambda each: (each.since, each.kind)):
        if (owned.journey, owned.role) not in asked:
            continue  # set aside when history was corrected: it does not ask for the role any more
        mine = found.setdefault(owned.journey, {})
        before = mine.get(owned.role)
        why = owned.why
        if before is not None and before["id"] == owned.person:
            why = before["why"]
        name = owned.name or names.get(owned.person) or owned.person
        mine[owned.role] = {"id": owned.person, "name": name, "why": why}
    return found


def _owned(then: Then) -> Iterator[_Owned]:
    for r in then.records:
        since, journey = r["recorded_at"], r["journey_id"]
        for role, chosen in r["why"].get("routing", {}).items():
            if chosen["person"] is not None:
                yield _Owned(
                    since, 0, journey, role, chosen["person"], chosen["name"], chosen["why"]
                )
        if r["owner_id"] is not None:
            yield _Owned(since, 1, journey, r["role"], r["owner_id"])
    for h in then.handoffs:
        if h["person_id"] is not None:
            yield _Owned(
                h["recorded_at"], 2, h["journey_id"], h["role"], h["person_id"], h["person_name"]
            )
    for event in then.events:
        data = event.data
        if event.type == ASSIGNED_BY_HAND and event.source == SOURCE and data.get("person"):
            name = funnel.journey_name(str(data["playbook"]), event.deal)
            yield _Owned(event.recorded_at, 3, journey_id(then.id, name), str(data["role"]),
                         str(data["person"]), None, "given by hand")  # fmt: skip


def _asked(then: Then) -> set[tuple[str, str]]:
    """Give the (journey id, role) that the history of then asks an owner for (`Corrections.set_aside`)."""
    asked: set[tuple[str, str]] = set()
    for move in then.folded.moves:
        stage = then.version(move.playbook, move.version).stages[move.to_stage]
        id = journey_id(then.id, move.journey)
        asked.update((id, role) for role in (move.role, *listeners(stage, move)))
    for event in filter(is_assignment, then.events):
        name = funnel.journey_name(str(event.data["playbook"]), event.deal)
        asked.add((journey_id(then.id, name), str(event.data["role"])))
    return asked


def rung_by_then(then: Then) -> set[tuple[str, str]]:
    """Give the clocks' events that met what they are about."""
    return {(ring.event.source, ring.event.id) for ring in then.folded.rings}


_EVENT_COLUMNS = ("time", "recorded_at", "type", "source", "id", "deal", "data", "envelope")


def items_at(then: Then) -> list[dict[str, Any]]:
    """Give the newest 2,000 events and records of then as timeline items, oldest first."""
    events = [*((e, False) for e in then.events), *((e, True) for e in then.beyond)]
    told = [
        {**{n: getattr(e, n) for n in _EVENT_COLUMNS}, "beyond_horizon": beyond}
        for e, beyond in sorted(events, key=lambda each: each[0].place)[-TIMELINE_MAX:]
    ]  # fmt: skip
    keys = {id: then.lead.journeys[name].key for id, name in then.journey_ids().items()}
    moved = sorted(then.records, key=lambda r: r["occurred_at"])[-TIMELINE_MAX:]
    records = [record_item(row | {"key": keys[row["journey_id"]]}) for row in moved]
    return in_order([event_item(row) for row in told] + records)
