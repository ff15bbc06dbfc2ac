"""Questions about leads: lists, one lead, its timeline, the board. Reads only, in SQLAlchemy Core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    RowMapping,
    Select,
    String,
    and_,
    cast,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from services.contracts.events import CLAIMED_TIME
from services.stage_service.playbook import Playbook
from services.stage_service.stage_names import VERSION_MAX, as_now, stored_as, stored_names
from services.stage_service.tables import events, identities, journeys, leads, transitions

PAGE_MAX = 200
TIMELINE_MAX = 2000


async def list_leads(
    engine: AsyncEngine,
    *,
    emails: Sequence[str] = (),
    stage: str | None = None,
    owner: str | None = None,
    q: str | None = None,
    playbook: str | None = None,
    account: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
    playbooks: Mapping[str, Playbook],
) -> tuple[list[dict[str, Any]], str | None]:
    """List leads, newest first, with their journeys. Gives (items, the next page's cursor).

    `emails` are ways to write one address; `stage` a stage key; `owner` a person's id; `q` part of a
    name, a company or an e-mail; `account` a company's domain. `cursor` is a lead id: those made before
    it follow. `playbooks` are the active ones: stages are looked for and told as those call them.
    """
    query = (
        select(leads)
        .where(leads.c.merged_into.is_(None))
        .order_by(leads.c.id.desc())
        .limit(limit + 1)
    )
    if cursor is not None:
        query = query.where(leads.c.id < cursor)
    if account is not None:
        query = query.where(leads.c.account == account)
    if emails:
        query = query.where(
            leads.c.id.in_(
                select(identities.c.lead_id).where(
                    identities.c.kind == "email", identities.c.value.in_(emails)
                )
            )
        )
    if stage is not None or owner is not None or playbook is not None:
        query = query.where(_has_journey(stage, owner, playbook, playbooks))
    if q:
        like = "%" + q.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        query = query.where(
            or_(leads.c.name.ilike(like), leads.c.company.ilike(like), leads.c.email.ilike(like))
        )
    async with engine.connect() as connection:
        rows = (await connection.execute(query)).mappings().all()
        page = rows[:limit]
        mine = await journeys_of(connection, [r["id"] for r in page], playbooks)
    items = [lead_shown(row, mine.get(row["id"], [])) for row in page]
    return items, (page[-1]["id"] if len(rows) > limit else None)


def _has_journey(
    stage: str | None, owner: str | None, playbook: str | None, playbooks: Mapping[str, Playbook]
) -> Any:
    wanted: list[Any] = [journeys.c.lead_id == leads.c.id]
    if stage is not None:
        wanted.append(stands_in(stage, playbook, playbooks))
    if playbook is not None:
        wanted.append(journeys.c.playbook == playbook)
    if owner is not None:
        wanted.append(
            func.jsonb_path_exists(
                journeys.c.owners,
                text("'$.*.id ? (@ == $owner)'"),
                func.jsonb_build_object("owner", cast(literal(owner), String)),
            )
        )
    return exists(select(journeys.c.id).where(and_(*wanted)))


def stands_in(stage: str, playbook: str | None, playbooks: Mapping[str, Playbook]) -> Any:
    """Give the condition that a journey stands in `stage` now, as stored keys, which an index finds."""
    found: list[Any] = []
    for each in playbooks.values():
        if playbook is not None and each.name != playbook:
            continue
        names = stored_as(each, stage)
        version = journeys.c.playbook_version
        meant = [
            journeys.c.stage == n.stage if n.is_whole
            else and_(journeys.c.stage == n.stage, version >= n.since, version < n.before)
            for n in names
        ]  # fmt: skip
        keys = journeys.c.stage.in_([n.stage for n in names])
        found.append(and_(journeys.c.playbook == each.name, keys, or_(false(), *meant)))
    return or_(false(), *found)


async def journeys_of(
    connection: Any, ids: Sequence[str], playbooks: Mapping[str, Playbook] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Give the journeys of the leads `ids` by lead, as they are shown.

    With the active `playbooks` their stages are called as they are now; without, as they are stored.
    """
    if not ids:
        return {}
    query = (
        select(journeys).where(journeys.c.lead_id.in_(ids))
        .order_by(journeys.c.lead_id, journeys.c.started_at, journeys.c.id)
    )  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {}
    for row in (await connection.execute(query)).mappings():
        journey = {
            "id": row["id"], "playbook": row["playbook"], "key": row["key"],
            "stage": row["stage"], "furthest_stage": row["furthest_stage"],
            "started_at": row["started_at"], "entered_at": row["entered_at"],
            "owners": row["owners"], "held": row["held"], "sequence": row["sequence"],
            "deal": row["deal"], "playbook_version": row["playbook_version"],
        }  # fmt: skip
        now = as_now(playbooks.get(row["playbook"]), journey) if playbooks else journey
        found.setdefault(row["lead_id"], []).append(now)
    return found


def lead_shown(row: RowMapping, mine: list[dict[str, Any]]) -> dict[str, Any]:
    """Give a lead's row with its journeys as it is shown."""
    return {
        "id": row["id"], "email": row["email"], "name": row["name"], "company": row["company"],
        "external_ids": row["external_ids"], "attributes": row["attributes"],
        "score": {"fit": row["fit"], "intent": row["intent"], "total": row["fit"] + row["intent"]},
        "account": row["account"],
        "first_seen_at": row["first_seen_at"], "last_seen_at": row["last_seen_at"],
        "journeys": mine,
    }  # fmt: skip


async def get_lead(
    engine: AsyncEngine, id: str, playbooks: Mapping[str, Playbook]
) -> dict[str, Any] | None:
    """Give one lead with its journeys, their stages as the active `playbooks` call them; or None."""
    async with engine.connect() as connection:
        row = (await connection.execute(select(leads).where(leads.c.id == id))).mappings().first()
        if row is None:
            return None
        mine = await journeys_of(connection, [id], playbooks)
    return lead_shown(row, mine.get(id, []))


async def timeline(engine: AsyncEngine, lead_id: str) -> list[dict[str, Any]]:
    """Give a lead's newest 2,000 events and records, oldest first.

    A transition stands after the event that caused it. What was replaced is still told, with
    ``replaced_by``.
    """
    happened: Select[Any] = (
        select(events).where(events.c.lead_id == lead_id)
        .order_by(events.c.time.desc()).limit(TIMELINE_MAX)
    )  # fmt: skip
    recorded: Select[Any] = (
        select(transitions, journeys.c.key)
        .join(journeys, journeys.c.id == transitions.c.journey_id)
        .where(journeys.c.lead_id == lead_id)
        .order_by(transitions.c.occurred_at.desc())
        .limit(TIMELINE_MAX)
    )
    async with engine.connect() as connection:
        told = (await connection.execute(happened)).mappings().all()
        moved = (await connection.execute(recorded)).mappings().all()
    return in_order(
        [event_item(dict(row)) for row in told] + [record_item(dict(row)) for row in moved]
    )


def in_order(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort events and records, oldest first, each record after the event that caused it.

    Of one moment the order is always the same: by number, cause, and journey.
    """
    items.sort(key=_order)
    return items


def _order(item: Mapping[str, Any]) -> tuple[Any, ...]:
    if item["kind"] == "event":
        return (item["occurred_at"], False, 0, item["source"], item["id"])
    cause, journey = item["cause"], item["journey"]
    return (
        item["occurred_at"], True, item["sequence"], cause["event_source"], cause["event_id"],
        journey["playbook"], journey["key"],
    )  # fmt: skip


def event_item(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give an event's row as a timeline item."""
    late = row["recorded_at"] - row["time"]
    return {
        "kind": "event", "occurred_at": row["time"], "recorded_at": row["recorded_at"],
        "type": row["type"], "source": row["source"], "id": row["id"], "deal": row["deal"],
        "data": row["data"], "arrived_after_s": max(0.0, late.total_seconds()),
        "beyond_horizon": row["beyond_horizon"],
        "claimed_time": (row["envelope"] or {}).get(CLAIMED_TIME),
    }  # fmt: skip


def record_item(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give a transition's row, with its journey's key, as a timeline item."""
    return {
        "kind": "transition" if row["kind"] == "transition" else "correction",
        "occurred_at": row["occurred_at"], "recorded_at": row["recorded_at"],
        "transition_id": row["id"], "sequence": row["sequence"],
        "journey": {"id": row["journey_id"], "playbook": row["playbook"], "key": row["key"]},
        "from": row["from_stage"], "to": row["to_stage"],
        "explanation": row["explanation"], "why": row["why"],
        "cause": {
            "event_source": row["event_source"], "event_id": row["event_id"],
            "event_type": row["event_type"], "rule": row["rule"], "actor": row["actor"],
        },
        "responsible": {"role": row["role"], "owner_id": row["owner_id"], "why": _chosen(row)},
        "handoff": row["handoff"], "skipped": row["skipped"],
        "playbook_version": row["playbook_version"],
        "seconds_in_stage": (row["occurred_at"] - row["visit_entered_at"]).total_seconds(),
        "replaces": row["replaces"], "replaced_by": row["replaced_by"],
    }  # fmt: skip


def _chosen(row: Mapping[str, Any]) -> str | None:
    """Give why routing chose the owner, where this record's transition chose them."""
    decisions: dict[str, Any] = row["why"].get("routing", {})
    return decisions[row["role"]]["why"] if row["role"] in decisions else None


async def state_of(engine: AsyncEngine, lead_id: str) -> bytes | None:
    """Give the packed fold state of a lead, as the lane wrote it, or None."""
    async with engine.connect() as connection:
        return await connection.scalar(select(leads.c.state).where(leads.c.id == lead_id))


async def time_of_event(engine: AsyncEngine, source: str, id: str) -> datetime | None:
    """Give the time of the stored event (`source`, `id`), or None when it is not stored."""
    query = select(events.c.time).where(events.c.source == source, events.c.id == id)
    async with engine.connect() as connection:
        return await connection.scalar(query)


async def is_recorded(engine: AsyncEngine, source: str, id: str) -> bool:
    """Tell whether the event (`source`, `id`) is stored."""
    query = select(events.c.id).where(events.c.source == source, events.c.id == id)
    async with engine.connect() as connection:
        return await connection.scalar(query) is not None


async def transitions_of_event(engine: AsyncEngine, source: str, id: str) -> Sequence[RowMapping]:
    """Give the transitions that the event made when it was recorded, with their journey's key."""
    query = (
        select(transitions, journeys.c.key)
        .join(journeys, journeys.c.id == transitions.c.journey_id)
        .join(
            events,
            and_(events.c.lead_id == transitions.c.lead_id,
                 events.c.source == transitions.c.event_source,
                 events.c.id == transitions.c.event_id),
        )
        .where(events.c.source == source, events.c.id == id, transitions.c.kind == "transition")
        .order_by(transitions.c.journey_id, transitions.c.sequence)
    )  # fmt: skip
    async with engine.connect() as connection:
        return (await connection.execute(query)).mappings().all()


# `split` are the keys that do not mean one stage whichever version stored them; there are few journeys in
# them, but for the time that a rename takes. All others are counted by the index alone.
_BOARD = text("""
WITH part AS (
  SELECT * FROM unnest(CAST(:split AS text[]), CAST(:since AS int[]), CAST(:before AS int[]),
    CAST(:now_in AS text[])) AS s(stage, since, before, now)),
counted AS (
  SELECT stage, 0 AS since, CAST(:version_max AS int) AS before, stage AS now, count(*) AS journeys
  FROM stage.journeys WHERE playbook = :playbook AND stage <> ALL(CAST(:split AS text[])) GROUP BY stage
  UNION ALL
  SELECT s.stage, s.since, s.before, s.now, count(*)
  FROM part s JOIN stage.journeys j ON j.playbook = :playbook AND j.stage = s.stage
    AND j.playbook_version >= s.since AND j.playbook_version < s.before
  GROUP BY s.stage, s.since, s.before, s.now)
SELECT now AS stage, journeys, latest FROM counted c
JOIN LATERAL (
  SELECT coalesce(jsonb_agg(to_jsonb(x) ORDER BY x.entered_at DESC), '[]') AS latest FROM (
    SELECT j.lead_id, j.key, j.entered_at, j.owners, j.held, j.stage, j.furthest_stage, j.playbook_version,
           l.name, l.company, l.email, l.fit + l.intent AS score, h.offered_at,
           h.overdue_at IS NOT NULL OR coalesce(h.due_at <= :now, false) AS overdue
    FROM stage.journeys j JOIN stage.leads l ON l.id = j.lead_id
      LEFT JOIN LATERAL (
        SELECT offered_at, due_at, overdue_at FROM stage.handoffs
        WHERE lead_id = j.lead_id AND journey_id = j.id AND state = 'offered' LIMIT 1) h ON true
    WHERE j.playbook = :playbook AND j.stage = c.stage
      AND j.playbook_version >= c.since AND j.playbook_version < c.before
    ORDER BY j.entered_at DESC LIMIT :cards) x) y ON true
""")


async def board(
    engine: AsyncEngine, playbook: Playbook, cards: int, now: datetime
) -> dict[str, dict[str, Any]]:
    """Give each stage's number of journeys and its `cards` newest ones, by stage key of `playbook`.

    A card has the handoff that waits: ``offered_at`` (None: none does), and whether it is overdue `now`.
    Who is stored under the name that a stage had before stands in the stage.
    """
    split = [name for name in stored_names(playbook) if not name.is_whole]
    parameters = {
        "playbook": playbook.name, "cards": cards, "now": now, "version_max": VERSION_MAX,
        "split": [n.stage for n in split], "since": [n.since for n in split],
        "before": [n.before for n in split], "now_in": [n.now for n in split],
    }  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    async with engine.connect() as connection:
        for r in await connection.execute(_BOARD, parameters):
            stage = found.setdefault(r.stage, {"count": 0, "latest": []})
            stage["count"] += r.journeys
            stage["latest"] += [_card(playbook, card) for card in r.latest]
    for stage in found.values():
        stage["latest"].sort(key=itemgetter("entered_at"), reverse=True)
        del stage["latest"][cards:]
    return found


def _card(playbook: Playbook, row: Mapping[str, Any]) -> dict[str, Any]:
    card = as_now(playbook, row)
    for name in ("entered_at", "offered_at"):
        if card[name] is not None:
            card[name] = datetime.fromisoformat(card[name])
    return card


async def last_position(engine: AsyncEngine) -> int:
    """Give the newest position of the published log; 0 when nothing was published."""
    async with engine.connect() as connection:
        return await connection.scalar(text("SELECT coalesce(max(position), 0) FROM bus.log")) or 0
