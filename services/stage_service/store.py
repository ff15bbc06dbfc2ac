"""Every statement of the stage service that writes or locks; none of them commits.

The order of locks is the same in every transaction, so two batches never wait for each other in a
circle: leads (by id), then rotations (by role), then identities (sorted), then events (sorted). A merge
moves the identities and events of its locked leads before the rotations.

A lead's outbox rows get their ids while its row is locked, or, for a new lead, in the statement that
claims its identities: so for one lead the order of outbox ids is the order of commits, which the relay
relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from services.contracts.events import LeadEvent, Message, identities_of
from services.contracts.postgres_log import OUTBOX_CTES, OUTBOX_PLACE, Fresh, message_rows
from services.contracts.problems import Defect
from services.stage_service.accounts import account_of
from services.stage_service.clocks import Ticking
from services.stage_service.funnel import Journey, Lead
from services.stage_service.lead_facts import company_name, display_name
from services.stage_service.rotation import Turns

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"

_text = msgspec.json.Encoder()
_pack = msgspec.msgpack.Encoder().encode


def as_json(value: Any) -> str:
    """Encode `value` as JSON text for a jsonb parameter."""
    return _text.encode(value).decode()


class Owner(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The person who holds a journey for a role: a fact, chosen once, kept by every re-fold."""

    id: str
    name: str
    why: str = ""


class Facts(msgspec.Struct, array_like=True, gc=False):
    """What is recorded about a journey and is no function of its events."""

    sequence: int
    owners: dict[str, Owner]
    clocks: dict[str, Ticking] = {}
    """The clocks that run, by key."""
    aside: dict[str, Owner] = {}
    """Owners for roles that the history, corrected, does not ask for: theirs again when it does."""


class Record(msgspec.Struct, array_like=True):
    """A lead's row as the lane works on it: the fold's state, and the facts of each journey."""

    id: str
    lead: Lead | None
    facts: dict[str, Facts]
    is_new: bool = False


class _Saved(msgspec.Struct, array_like=True, gc=False):
    """What is packed into ``leads.state``."""

    lead: Lead | None
    facts: dict[str, Facts]


_unpack = msgspec.msgpack.Decoder(_Saved).decode


class Past(msgspec.Struct, frozen=True):
    """One recorded transition that still holds."""

    id: str
    sequence: int
    kind: str
    from_stage: str
    to_stage: str
    occurred_at: datetime
    event_source: str
    event_id: str
    rule: str | None
    role: str
    owner_id: str | None
    visit_entered_at: datetime
    playbook_version: int
    skipped: list[str]

    @property
    def identity(self) -> tuple[str, str, datetime, str, str, str | None]:
        """Give what makes two moves the same piece of history (as `Move.identity`)."""
        return (
            self.from_stage, self.to_stage, self.occurred_at, self.event_source, self.event_id,
            self.rule,
        )  # fmt: skip


# One round trip: which events are here already, whose the identities are, the newest committed version of
# these leads, locked, and which playbooks hold now, perhaps published by another process. A lock that had
# to be waited for gives the row as it is then: everything the fold needs is in this one row, since rows of
# other tables come from the older snapshot. What was overlooked so is noticed when it is written; and a lead
# that was merged or regrouped by a transaction this snapshot does not see says so itself.
# The leads are found by an array: joined, a plan made while there were few of them reads all leads, always.
_LOOK_UP = """
WITH owned AS MATERIALIZED (
  SELECT i.kind, i.value, i.lead_id
  FROM unnest($3::text[], $4::text[]) AS k(kind, value) JOIN stage.identities i USING (kind, value)),
meant AS MATERIALIZED (SELECT lead_id AS id FROM owned UNION SELECT unnest($5::uuid[])),
locked AS MATERIALIZED (
  SELECT l.id, l.state, l.merged_into IS NOT NULL OR (l.regrouped_by IS NOT NULL
    AND NOT pg_visible_in_snapshot(l.regrouped_by, pg_current_snapshot())) AS is_stale
  FROM stage.leads l WHERE l.id = ANY(ARRAY(SELECT id FROM meant)) ORDER BY l.id FOR NO KEY UPDATE)
SELECT 'event' AS what, e.source AS a, e.id AS b, e.lead_id::text AS lead_id, NULL::bytea AS state
FROM unnest($1::text[], $2::text[]) AS k(source, id) JOIN stage.events e USING (source, id)
UNION ALL
SELECT 'identity', kind, value, lead_id::text, NULL FROM owned
UNION ALL
SELECT 'lead', CASE WHEN is_stale THEN 'stale' END, NULL, id::text, state FROM locked
UNION ALL
SELECT 'epoch', max(epoch)::text, NULL, NULL, NULL FROM stage.playbook_versions
"""


class Found(msgspec.Struct):
    """What the database knew before a batch; the leads in `records` are locked.

    `stale` are those of them that are part of another, or whose identities moved since `owned` was read.
    """

    recorded: dict[tuple[str, str], str | None]
    owned: dict[tuple[str, str], str]
    records: dict[str, Record]
    epoch: int
    stale: set[str] = msgspec.field(default_factory=set[str])


async def look_up(
    connection: Connection,
    keys: Sequence[tuple[str, str]],
    identities: Sequence[tuple[str, str]],
    lead_ids: Sequence[str],
) -> Found:
    """Find which event `keys` (source, id) are recorded already, and the leads of `identities`.

    Locks these leads and those of `lead_ids`, in id order.
    """
    rows = await connection.fetch(
        _LOOK_UP,
        [k[0] for k in keys], [k[1] for k in keys],
        [i[0] for i in identities], [i[1] for i in identities], lead_ids,
    )  # fmt: skip
    found = Found({}, {}, {}, 0)
    for what, a, b, lead_id, state in rows:
        if what == "lead":
            found.records[lead_id] = unpack_record(lead_id, state)
            if a is not None:
                found.stale.add(lead_id)
        elif what == "identity":
            found.owned[a, b] = lead_id
        elif what == "event":
            found.recorded[a, b] = lead_id
        else:
            found.epoch = int(a or 0)
    return found


async def events_of_leads(
    connection: Connection, ids: Sequence[str], *, beyond_horizon: bool = False
) -> dict[str, list[tuple[LeadEvent, int]]]:
    """Give all recorded events of the leads that count, with the epoch of each, unordered.

    With `beyond_horizon` those that do not count instead: they came too late.
    """
    rows = await connection.fetch(
        """SELECT lead_id::text AS lead_id, source, id, type, time, recorded_at, subject, deal, data,
           epoch FROM stage.events WHERE lead_id = ANY($1::uuid[]) AND beyond_horizon = $2""",
        ids, beyond_horizon,
    )  # fmt: skip
    events: dict[str, list[tuple[LeadEvent, int]]] = {id: [] for id in ids}
    for r in rows:
        events[r["lead_id"]].append((_stored_event(r), r["epoch"]))
    return events


async def events_by_then(
    connection: Connection, members: Sequence[str], at: datetime, *, beyond_horizon: bool = False
) -> list[tuple[LeadEvent, int]]:
    """Give the events that the leads `members` brought themselves and that had arrived by `at`.

    With the epoch of each, unordered; wherever merges have put them since. With `beyond_horizon` those
    that do not count instead.
    """
    rows = await connection.fetch(
        """WITH RECURSIVE holder(id) AS (
             SELECT unnest($1::uuid[])
             UNION SELECT l.merged_into FROM holder h JOIN stage.leads l ON l.id = h.id
             WHERE l.merged_into IS NOT NULL)
           SELECT source, id, type, time, recorded_at, subject, deal, data, envelope, epoch
           FROM stage.events
           WHERE lead_id = ANY(ARRAY(SELECT id FROM holder))
             AND coalesce(own_lead_id, lead_id) = ANY($1::uuid[]) AND recorded_at <= $2
             AND beyond_horizon = $3""",
        members, at, beyond_horizon,
    )  # fmt: skip
    found: list[tuple[LeadEvent, int]] = []
    for row in rows:
        envelope = msgspec.json.decode(row["envelope"] or "{}")
        found.append((msgspec.structs.replace(_stored_event(row), envelope=envelope), row["epoch"]))
    return found


async def own_events_by_then(
    connection: Connection, members: Sequence[str], at: datetime
) -> list[tuple[str, LeadEvent, int]]:
    """Give the events of `events_by_then` that count, each with whose own it is; without envelopes."""
    rows = await connection.fetch(
        """WITH RECURSIVE holder(id) AS (
             SELECT unnest($1::uuid[])
             UNION SELECT l.merged_into FROM holder h JOIN stage.leads l ON l.id = h.id
             WHERE l.merged_into IS NOT NULL)
           SELECT coalesce(own_lead_id, lead_id)::text AS own, source, id, type, time, recorded_at,
             subject, deal, data, epoch
           FROM stage.events
           WHERE lead_id = ANY(ARRAY(SELECT id FROM holder))
             AND coalesce(own_lead_id, lead_id) = ANY($1::uuid[]) AND recorded_at <= $2
             AND NOT beyond_horizon""",
        members, at,
    )  # fmt: skip
    return [(row["own"], _stored_event(row), row["epoch"]) for row in rows]


def _stored_event(r: Any) -> LeadEvent:
    data = msgspec.json.decode(r["data"])
    return LeadEvent(
        r["id"], r["source"], r["type"], r["time"], r["recorded_at"], r["subject"],
        sent_identities(data), r["deal"], data, {},
    )  # fmt: skip


def sent_identities(data: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Give the identities in the `data` of a stored event; none where they cannot be read any more."""
    identities = identities_of(data)
    return () if isinstance(identities, Defect) else identities


async def history(
    connection: Connection, lead_ids: Sequence[str]
) -> dict[str, dict[str, list[Past]]]:
    """Give the transitions that still hold, by lead id and journey id, in sequence order."""
    rows = await connection.fetch(
        """SELECT t.lead_id::text, t.journey_id::text, t.id::text, t.sequence, t.kind, t.from_stage,
           t.to_stage, t.occurred_at, t.event_source, t.event_id, t.rule, t.role, t.owner_id,
           t.visit_entered_at, t.playbook_version, t.skipped
           FROM stage.transitions t JOIN stage.journeys j ON j.id = t.journey_id
           WHERE j.lead_id = ANY($1::uuid[]) AND t.replaced_by IS NULL
           ORDER BY t.journey_id, t.sequence""",
        lead_ids,
    )
    found: dict[str, dict[str, list[Past]]] = {}
    for lead_id, journey_id, *rest in rows:
        found.setdefault(lead_id, {}).setdefault(journey_id, []).append(Past(*rest))
    return found


Told: TypeAlias = "tuple[str, tuple[str, str, datetime, str, str, str | None]]"
"""What somebody was alerted of: the journey's id, and what makes two moves the same."""


async def told_before(connection: Connection, lead_ids: Sequence[str]) -> dict[Told, set[str]]:
    """Give whom records of the leads that hold no more alerted, by what they told of."""
    rows = await connection.fetch(
        """SELECT t.journey_id::text, t.from_stage, t.to_stage, t.occurred_at, t.event_source,
             t.event_id, t.rule, t.why -> 'told' AS told
           FROM stage.transitions t JOIN stage.journeys j ON j.id = t.journey_id
           WHERE j.lead_id = ANY($1::uuid[]) AND t.replaced_by IS NOT NULL AND t.why ? 'told'""",
        lead_ids,
    )
    found: dict[Told, set[str]] = {}
    for journey, *identity, told in rows:
        who = found.setdefault((journey, tuple(identity)), set())  # pyright: ignore[reportArgumentType]
        who.update(msgspec.json.decode(told))
    return found


class TransitionRow(msgspec.Struct, frozen=True, gc=False):
    """One row of ``stage.transitions``, in the order of the type ``stage.transition_row``."""

    journey_id: str
    sequence: int
    id: str
    lead_id: str
    kind: str
    playbook: str
    playbook_version: int
    from_stage: str
    to_stage: str
    visit_entered_at: datetime
    occurred_at: datetime
    recorded_at: datetime
    event_source: str
    event_id: str
    event_type: str
    rule: str | None
    actor: str | None
    role: str
    owner_id: str | None
    handoff: bool
    skipped: list[str]
    explanation: str
    why: str
    replaces: list[str]


# One round trip for everything that a batch writes. Identities and events are sorted: another batch that
# inserts the same waits for this one's commit, and two that wait for each other in a circle would be a
# deadlock.
_WRITE = f"""
WITH claimed AS (
  INSERT INTO stage.identities (kind, value, lead_id)
  SELECT kind, value, lead_id FROM unnest($1::text[], $2::text[], $3::uuid[]) AS k(kind, value, lead_id)
  ON CONFLICT (kind, value) DO NOTHING RETURNING 1),
inserted AS (
  INSERT INTO stage.events
    (source, id, type, time, recorded_at, lead_id, deal, subject, data, envelope, epoch)
  SELECT * FROM unnest($4::stage.event_row[])
  ON CONFLICT (source, id) DO NOTHING RETURNING 1),
led AS (
  INSERT INTO stage.leads AS l
    (id, email, name, company, external_ids, attributes, fit, intent, state, first_seen_at, last_seen_at,
     account)
  SELECT * FROM unnest($5::stage.lead_row[], $11::text[])
  ON CONFLICT (id) DO UPDATE SET email = excluded.email, name = excluded.name,
    company = excluded.company, external_ids = excluded.external_ids,
    attributes = excluded.attributes, fit = excluded.fit, intent = excluded.intent,
    state = excluded.state, first_seen_at = excluded.first_seen_at,
    last_seen_at = excluded.last_seen_at, account = excluded.account, updated_at = now()
  RETURNING l.id),
travelled AS (
  INSERT INTO stage.journeys AS j
    (id, lead_id, playbook, key, stage, furthest_stage, started_at, entered_at, sequence, owners, held,
     deal, playbook_version, holder)
  SELECT * FROM unnest($6::stage.journey_row[], $12::text[])
  ON CONFLICT (id) DO UPDATE SET stage = excluded.stage, furthest_stage = excluded.furthest_stage,
    started_at = excluded.started_at, entered_at = excluded.entered_at,
    sequence = excluded.sequence, owners = excluded.owners, held = excluded.held,
    deal = excluded.deal, playbook_version = excluded.playbook_version, holder = excluded.holder,
    updated_at = now()),
moved AS (
  INSERT INTO stage.transitions
    (journey_id, sequence, id, lead_id, kind, playbook, playbook_version, from_stage, to_stage,
     visit_entered_at, occurred_at, recorded_at, event_source, event_id, event_type, rule, actor, role,
     owner_id, handoff, skipped, explanation, why, replaces)
  SELECT * FROM unnest($7::stage.transition_row[])),
turned AS (
  UPDATE stage.rotations r SET counts = k.counts, fairness = k.fairness
  FROM unnest($8::text[], $9::jsonb[], $13::jsonb[]) AS k(role, counts, fairness)
  WHERE r.role = k.role),
{OUTBOX_CTES.format(rows="$10")},
noted AS (
  INSERT INTO stage.lead_changes (lead_ids)
  SELECT array_agg(id) FROM (SELECT id FROM led UNION SELECT key::uuid FROM written) AS changed
  WHERE EXISTS (SELECT FROM stage.snapshot_feed) HAVING count(*) > 0)
"""  # noqa: S608
_COUNT = f"""SELECT (SELECT count(*) FROM claimed), (SELECT count(*) FROM inserted),
  (SELECT max(epoch) FROM stage.playbook_versions), {OUTBOX_PLACE}
"""  # noqa: S608


class Written(msgspec.Struct):
    """What a batch writes.

    Identities {(kind, value): lead id}; new events with their leads and the epoch of all; the leads'
    states with their scores (fit, intent by lead id); the journeys (record, journey name, journey id,
    id of who holds it) that changed; the new transitions, whose ``(journey, sequence)`` is unique, so
    that a number cannot repeat; the rotations by role; the messages to publish, in order.
    """

    claims: dict[tuple[str, str], str]
    events: list[tuple[LeadEvent, str | None]]
    epoch: int
    records: list[Record]
    scores: dict[str, tuple[int, int]]
    journeys: list[tuple[Record, str, str, str | None]]
    transitions: list[TransitionRow]
    turns: dict[str, Turns]
    messages: list[Message]


class Beside(NamedTuple):
    """What else the statement writes: its CTEs, with the placeholders from `$14` on, and their values."""

    ctes: str
    values: tuple[Any, ...]


async def write(connection: Connection, w: Written, beside: Beside | None) -> Fresh | None:
    """Write `w`, and what is `beside` it, in one statement; gives where its messages lie in the outbox.

    None when another transaction recorded one of the events or identities meanwhile, or published a
    playbook: who waited for a lead's lock must not fold its next event under an older one than the event
    before (docs/decisions/0025). The caller rolls back.
    """
    names = sorted(w.claims)
    leads = [(r, r.lead) for r in w.records if r.lead is not None]
    done = await connection.fetchrow(
        f"{_WRITE}, {beside.ctes} {_COUNT}" if beside else _WRITE + _COUNT,
        [k[0] for k in names],
        [k[1] for k in names],
        [w.claims[k] for k in names],
        [_event_row(e, lead_id, w.epoch) for e, lead_id in sorted(w.events, key=_event_key)],
        [_lead_row(r, lead, w.scores[r.id]) for r, lead in leads],
        [
            _journey_row(id, r.id, r.lead.journeys[name], r.facts[name])
            for r, name, id, _ in w.journeys
            if r.lead is not None
        ],
        [msgspec.structs.astuple(row) for row in w.transitions],
        list(w.turns),
        [as_json(t.given) for t in w.turns.values()],
        message_rows(w.messages),
        [account_of(lead.email, lead.attributes) for _, lead in leads],
        [holder for r, _, _, holder in w.journeys if r.lead is not None],
        [as_json(t.fairness) for t in w.turns.values()],
        *(beside.values if beside else ()),
    )
    counted = done is not None and (done[0], done[1], done[2] or 0)
    if done is None or counted != (len(w.claims), len(w.events), w.epoch):
        return None
    _, _, _, outbox_ids, is_next, after = done
    return Fresh(outbox_ids or (), w.messages, after, is_next)


def _event_key(pair: tuple[LeadEvent, str | None]) -> tuple[str, str]:
    return pair[0].source, pair[0].id


def _event_row(e: LeadEvent, lead_id: str | None, epoch: int) -> tuple[Any, ...]:
    return (
        e.source, e.id, e.type, e.time, e.recorded_at, lead_id, e.deal, e.subject, as_json(e.data),
        as_json(e.envelope) if e.envelope else None, epoch,
    )  # fmt: skip


def _lead_row(record: Record, lead: Lead, score: tuple[int, int]) -> tuple[Any, ...]:
    return (
        record.id, lead.email, display_name(lead.attributes), company_name(lead.attributes),
        as_json(lead.external_ids) if lead.external_ids else "{}", as_json(lead.attributes), *score,
        pack_state(lead, record.facts), lead.first_seen_at, lead.last[0],
    )  # fmt: skip


def _journey_row(id: str, lead_id: str, journey: Journey, facts: Facts) -> tuple[Any, ...]:
    held = [
        {"to": h.to, "rule": h.rule, "since": h.since, "missing": h.missing} for h in journey.held
    ]
    owners = {role: {"id": o.id, "name": o.name, "why": o.why} for role, o in facts.owners.items()}
    return (
        id, lead_id, journey.playbook, journey.key, journey.stage, journey.furthest,
        journey.started_at, journey.entered_at, facts.sequence, as_json(owners),
        as_json(held) if held else "[]", as_json(journey.deal) if journey.deal else "{}", journey.version,
    )  # fmt: skip


async def restore_journeys(
    connection: Connection, record: Record, name_id: Callable[[str, str], str]
) -> None:
    """Write the journeys of `record` again, as they ended when it was merged."""
    lead = record.lead
    if lead is None:
        return
    await connection.execute(
        """INSERT INTO stage.journeys
             (id, lead_id, playbook, key, stage, furthest_stage, started_at, entered_at, sequence,
              owners, held, deal, playbook_version)
           SELECT * FROM unnest($1::stage.journey_row[])""",
        [
            _journey_row(name_id(record.id, name), record.id, journey, record.facts[name])
            for name, journey in lead.journeys.items()
        ],
    )


async def end_journeys(connection: Connection, ids: Sequence[str]) -> None:
    """Remove the present state of journeys that are no more; their records stay."""
    await connection.execute("DELETE FROM stage.journeys WHERE id = ANY($1::uuid[])", ids)


async def mark_beyond(connection: Connection, keys: Sequence[tuple[str, str]]) -> None:
    """Mark the events `keys` (source, id), written in this transaction, as beyond the horizon."""
    await connection.execute(
        """UPDATE stage.events e SET beyond_horizon = true
           FROM unnest($1::text[], $2::text[]) AS k(source, id)
           WHERE e.source = k.source AND e.id = k.id""",
        [source for source, _ in keys], [id for _, id in keys],
    )  # fmt: skip


async def shift_visits(connection: Connection, shifted: dict[str, tuple[str, datetime]]) -> None:
    """Correct when the visits began that records end: {record id: (its journey id, the time)}."""
    await connection.execute(
        """UPDATE stage.transitions t SET visit_entered_at = k.at
           FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS k(journey, id, at)
           WHERE t.journey_id = k.journey AND t.id = k.id""",
        [journey for journey, _ in shifted.values()],
        list(shifted),
        [at for _, at in shifted.values()],
    )


async def replace_transitions(connection: Connection, replaced: dict[str, tuple[str, str]]) -> None:
    """Mark transitions as replaced: {old id: (its journey id, the new record's id)}."""
    await connection.execute(
        """UPDATE stage.transitions t SET replaced_by = k.new
           FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS k(journey, old, new)
           WHERE t.journey_id = k.journey AND t.id = k.old""",
        [journey for journey, _ in replaced.values()],
        list(replaced),
        [new for _, new in replaced.values()],
    )


def unpack_state(state: bytes) -> Lead | None:
    """Give the fold's state as it is packed in ``leads.state``."""
    return _unpack(state).lead


def unpack_record(id: str, state: bytes) -> Record:
    """Give the record that is packed in the ``state`` of the lead `id`."""
    saved = _unpack(state)
    return Record(id, saved.lead, saved.facts)


def pack_state(lead: Lead, facts: dict[str, Facts]) -> bytes:
    """Pack a fold's state and the journeys' facts as ``leads.state`` holds them."""
    return _pack(_Saved(lead, facts))
