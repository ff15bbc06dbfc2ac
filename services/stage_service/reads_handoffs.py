"""Questions about handoffs and clocks: lists, one, what of a lead's timeline they are. Reads only.

A handoff is *overdue* when its clock said so, or when it still waits and its deadline has passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from services.contracts.events import SOURCE
from services.contracts.handoffs import CLOCK_FIRED
from services.contracts.team import Team
from services.stage_service.clocks import EVENT_TYPES, GONE_STEP, plan_of, step_named
from services.stage_service.offers import CLOCK_EVENTS
from services.stage_service.playbook import Playbook
from services.stage_service.tables import clocks, handoffs, leads

PAGE_MAX = 200
OF_LEAD_MAX = 500
ACTIONS = {EVENT_TYPES["remind"]: "reminded", EVENT_TYPES["due"]: "fired",
           EVENT_TYPES["escalate"]: "escalated"}  # fmt: skip


class Place(NamedTuple):
    """Where a page of handoffs ends: the last item's moment and id."""

    offered_at: datetime
    id: str


class Wish(NamedTuple):
    """Which handoffs are asked for; None: any. `since` and `until` bound when it was offered."""

    state: str | None = None
    overdue: bool | None = None
    role: str | None = None
    person: str | None = None
    lead_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def _overdue(now: datetime) -> ColumnElement[bool]:
    passed = and_(handoffs.c.state == "offered", func.coalesce(handoffs.c.due_at <= now, False))
    return or_(handoffs.c.overdue_at.is_not(None), passed)


_WITH_LEAD = select(
    handoffs, leads.c.name.label("lead_name"), leads.c.company.label("lead_company"),
    leads.c.email.label("lead_email"),
).join(leads, leads.c.id == handoffs.c.lead_id)  # fmt: skip


async def list_handoffs(
    engine: AsyncEngine, wish: Wish, now: datetime, *, after: Place | None = None, limit: int = 50
) -> tuple[list[dict[str, Any]], Place | None]:
    """List handoffs, newest first; those that wait (`state` ``offered``) longest waiting first.

    Gives (rows, where the next page begins or None).
    """
    place = tuple_(handoffs.c.offered_at, handoffs.c.id)
    longest_first = wish.state == "offered"
    query = _WITH_LEAD.where(*_wanted(wish, now)).limit(limit + 1)
    if longest_first:
        query = query.order_by(handoffs.c.offered_at, handoffs.c.id)
    else:
        query = query.order_by(handoffs.c.offered_at.desc(), handoffs.c.id.desc())
    if after is not None:
        query = query.where(place > after if longest_first else place < after)
    async with engine.connect() as connection:
        rows = [dict(r) for r in (await connection.execute(query)).mappings()]
    page = rows[:limit]
    more = Place(page[-1]["offered_at"], page[-1]["id"]) if len(rows) > limit else None
    return page, more


def _wanted(wish: Wish, now: datetime) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    for column, value in (
        (handoffs.c.state, wish.state), (handoffs.c.role, wish.role),
        (handoffs.c.person_id, wish.person), (handoffs.c.lead_id, wish.lead_id),
    ):  # fmt: skip
        if value is not None:
            found.append(column == value)
    if wish.since is not None:
        found.append(handoffs.c.offered_at >= wish.since)
    if wish.until is not None:
        found.append(handoffs.c.offered_at < wish.until)
    if wish.overdue is not None:
        found.append(_overdue(now) if wish.overdue else ~_overdue(now))
    return found


async def get_handoff(engine: AsyncEngine, id: str) -> dict[str, Any] | None:
    """Give one handoff with its lead, or None."""
    async with engine.connect() as connection:
        found = await connection.execute(_WITH_LEAD.where(handoffs.c.id == id))
        row = found.mappings().first()
    return dict(row) if row is not None else None


async def open_handoff_of(engine: AsyncEngine, lead_id: str, journey_id: str) -> str | None:
    """Give the id of the handoff of a lead's journey that waits for its answer."""
    query = select(handoffs.c.id).where(
        handoffs.c.lead_id == lead_id, handoffs.c.journey_id == journey_id,
        handoffs.c.state == "offered",
    )  # fmt: skip
    async with engine.connect() as connection:
        return await connection.scalar(query)


async def handoffs_of_lead(engine: AsyncEngine, lead_id: str) -> list[dict[str, Any]]:
    """Give the newest 500 handoffs of a lead, the oldest of them first."""
    query = (
        _WITH_LEAD.where(handoffs.c.lead_id == lead_id)
        .order_by(handoffs.c.offered_at.desc(), handoffs.c.round.desc())
        .limit(OF_LEAD_MAX)
    )
    async with engine.connect() as connection:
        return [dict(r) for r in (await connection.execute(query)).mappings()][::-1]


async def running_clocks(
    engine: AsyncEngine, lead_id: str, playbooks: Mapping[str, Playbook]
) -> list[dict[str, Any]]:
    """Give the clocks of a lead that run, with their titles; the next deadline first."""
    query = (
        select(clocks)
        .where(clocks.c.lead_id == lead_id, clocks.c.state == "running")
        .order_by(clocks.c.deadline)
    )
    async with engine.connect() as connection:
        rows = (await connection.execute(query)).mappings().all()
    return [
        {
            "id": r["id"], "journey_id": r["journey_id"], "key": r["key"], "kind": r["kind"],
            "title": clock_title(playbooks.get(r["playbook"]), r["key"]), "stage": r["stage"],
            "role": r["role"], "person_id": r["person_id"], "since": r["since"],
            "deadline": r["deadline"], "missed_at": r["missed_at"], "handoff_id": r["handoff_id"],
        }
        for r in rows
    ]  # fmt: skip


async def count_overdue(engine: AsyncEngine, now: datetime) -> int:
    """Count the handoffs that wait although their deadline has passed."""
    query = (
        select(func.count())
        .select_from(handoffs)
        .where(handoffs.c.state == "offered", _overdue(now))
    )
    async with engine.connect() as connection:
        return await connection.scalar(query) or 0


def clock_title(playbook: Playbook | None, key: str) -> str:
    """Give what people call the clock `key`; the key where the playbook has it no more."""
    plan = plan_of(playbook, key) if playbook is not None else None
    return plan.title if plan is not None else key


def handoff_item(
    row: Mapping[str, Any], playbooks: Mapping[str, Playbook], team: Team, now: datetime
) -> dict[str, Any]:
    """Give a handoff as the API and the pages show it, as it is at `now`."""
    playbook = playbooks.get(row["playbook"])
    stage = playbook.stages.get(playbook.named(row["stage"])) if playbook else None
    roles = playbook.roles if playbook else {}
    plan = playbook.handoffs.get(row["role"]) if playbook else None
    giver = team.by_id.get(row["giver_id"] or "")
    waits = row["state"] == "offered"
    return {
        "id": row["id"], "state": row["state"],
        "lead": {"id": row["lead_id"], "name": row["lead_name"], "company": row["lead_company"],
                 "email": row["lead_email"]},
        "journey": {"id": row["journey_id"], "playbook": row["playbook"], "key": row["key"]},
        "stage": row["stage"], "stage_title": stage.title if stage else row["stage"],
        "role": row["role"], "role_title": _title(roles, row["role"]),
        "from_role": row["from_role"], "from_role_title": _title(roles, row["from_role"]),
        "round": row["round"], "person": _person(row["person_id"], row["person_name"]),
        "giver": _person(row["giver_id"], giver.name if giver else row["giver_id"]),
        "transition_id": row["transition_id"], "offered_at": row["offered_at"],
        "recorded_at": row["recorded_at"], "asked_at": row["asked_at"], "due_at": row["due_at"],
        "overdue": _is_overdue(row, now), "overdue_at": row["overdue_at"],
        "answered_at": row["answered_at"], "answered_by": row["answered_by"],
        "implied": row["implied"], "reason": row["reason"], "updated_at": row["updated_at"],
        "age_seconds": max(
            0.0, ((now if waits else row["answered_at"] or now) - row["offered_at"]).total_seconds()
        ),
        "reasons": list(plan.reasons) if plan else [],
    }  # fmt: skip


def _is_overdue(row: Mapping[str, Any], now: datetime) -> bool:
    passed = row["state"] == "offered" and row["due_at"] is not None and row["due_at"] <= now
    return row["overdue_at"] is not None or passed


def _title(roles: Mapping[str, Any], key: str) -> str:
    return roles[key].title if key in roles else key


def _person(id: str | None, name: str | None) -> dict[str, str | None] | None:
    return {"id": id, "name": name or id} if id is not None else None


async def told_by_clocks(
    engine: AsyncEngine, items: Sequence[dict[str, Any]], playbooks: Mapping[str, Playbook]
) -> list[dict[str, Any]]:
    """Give timeline `items` with the events of Baton's own clocks as items of kind ``clock``.

    One whose ``counts`` is false came when what it was about was over already; it did nothing.
    """
    mine = {
        i["id"]: i["id"].partition(":")[0]
        for i in items
        if i["kind"] == "event" and i["source"] == SOURCE and i["type"] in CLOCK_EVENTS
    }
    if not mine:
        return list(items)
    query = select(clocks.c.id, clocks.c.since, clocks.c.step).where(
        clocks.c.id.in_(set(mine.values()))
    )
    async with engine.connect() as connection:
        stood = {r.id: (r.since, r.step) for r in await connection.execute(query)}
    return [
        _clock_item(i, playbooks.get(str(i["data"]["playbook"])), stood.get(mine[i["id"]]))
        if i["kind"] == "event" and i["id"] in mine and i["source"] == SOURCE
        else i
        for i in items
    ]


def _clock_item(
    item: dict[str, Any], playbook: Playbook | None, stood: tuple[datetime, int] | None
) -> dict[str, Any]:
    data: dict[str, Any] = item["data"]
    key, step = str(data["clock"]), str(data["step"])
    plan = plan_of(playbook, key) if playbook is not None else None
    index = step_named(plan, step) if plan is not None else None
    since = datetime.fromisoformat(data["since"])
    return item | {
        "kind": "clock", "action": ACTIONS[item["type"]], "clock": key,
        "title": clock_title(playbook, key), "clock_kind": data["kind"], "stage": data["stage"],
        "role": data["role"], "since": data["since"], "deadline": data["deadline"],
        "late": bool(data.get("late")), "to": step.split("-", 2)[2] if "-" in step else "owner",
        # A clock goes on to its next step, or to a later start, by the step that counts.
        "counts": stood is not None and step != GONE_STEP
        and (stood[0] > since or stood[1] > (index or 0)),
    }  # fmt: skip


def handoff_items(
    rows: Sequence[Mapping[str, Any]],
    told: Sequence[Mapping[str, Any]],
    playbooks: Mapping[str, Playbook],
    team: Team,
    now: datetime,
) -> list[dict[str, Any]]:
    """Give the timeline items (kind ``handoff``) of a lead's handoffs: what happened to each, and when.

    `told` are the lead's other items; the event that did it is found among them by its time.
    """
    at_once: dict[datetime, list[Mapping[str, Any]]] = {}
    for item in told:
        if item["kind"] in ("event", "clock"):
            at_once.setdefault(item["occurred_at"], []).append(item)
    found: list[dict[str, Any]] = []
    for row in rows:
        whole = handoff_item(row, playbooks, team, now)
        happened = [("offered", row["offered_at"]), ("overdue", row["overdue_at"])]
        if row["state"] != "offered":
            happened.append((row["state"], row["answered_at"]))
        for action, at in happened:
            if at is None:
                continue
            event = _doer(at_once.get(at, ()), action)
            found.append({
                "kind": "handoff", "action": action, "occurred_at": at,
                "recorded_at": event["recorded_at"] if event else max(at, row["recorded_at"]),
                "handoff_id": whole["id"], "cause": _cause(event),
                **{k: whole[k] for k in (
                    "journey", "stage", "stage_title", "role", "role_title", "from_role",
                    "from_role_title", "round", "person", "giver", "due_at", "overdue_at", "state")},
                **({k: whole[k] for k in ("answered_by", "implied", "reason", "age_seconds")}
                   if action == row["state"] and action != "offered" else {}),
            })  # fmt: skip
    return found


def _doer(at_once: Sequence[Mapping[str, Any]], action: str) -> Mapping[str, Any] | None:
    """Give which of the events of one moment did it: a deadline is passed by a clock, all else is not."""
    if action == "overdue":
        return next((e for e in at_once if e["type"] == CLOCK_FIRED), None)
    return next((e for e in reversed(at_once) if e["kind"] == "event"), None)


def _cause(event: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if event is None:
        return None
    return {"event_source": event["source"], "event_id": event["id"], "event_type": event["type"]}
