"""Questions about who is who: identities, merges, refused links, accounts. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import RowMapping, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.stage_service.identities import Key, Policy, is_anchor, keys_of, spoken
from services.stage_service.playbook import Playbook
from services.stage_service.resolution import Standing, decide
from services.stage_service.store import sent_identities
from services.stage_service.tables import identities, journeys, leads

REFUSALS_SHOWN_MAX = 20

_ROOT = text("""
WITH RECURSIVE way(id, merged_into) AS (
  SELECT id, merged_into FROM stage.leads WHERE id = CAST(:id AS uuid)
  UNION SELECT l.id, l.merged_into FROM stage.leads l JOIN way w ON l.id = w.merged_into)
SELECT id::text FROM way WHERE merged_into IS NULL
""")

_MERGES = text("""
WITH RECURSIVE tree(id) AS (
  SELECT CAST(:id AS uuid) UNION SELECT l.id FROM stage.leads l JOIN tree t ON l.merged_into = t.id)
SELECT m.id::text AS merge_id, m.survivor::text, m.merged::text AS lead_id, m.event_source,
  m.event_id, m.event_type, m.occurred_at, m.recorded_at, m.identities, m.reason, m.actor,
  m.undone_at, m.undone_by, m.undone_reason
FROM stage.merges m
WHERE m.survivor IN (SELECT id FROM tree) OR m.merged IN (SELECT id FROM tree)
ORDER BY m.recorded_at, m.id
""")

_ACCOUNTS = text("""
SELECT account, count(*) AS leads, max(last_seen_at) AS last_seen_at,
  (array_agg(company ORDER BY last_seen_at DESC) FILTER (WHERE company IS NOT NULL))[1] AS company
FROM stage.leads WHERE account IS NOT NULL AND merged_into IS NULL
  AND (CAST(:after AS text) IS NULL OR account > :after)
  AND (CAST(:account AS text) IS NULL OR account = :account)
GROUP BY account ORDER BY account LIMIT :limit
""")


async def root_of(engine: AsyncEngine, lead_id: str) -> str | None:
    """Give the lead that `lead_id` is part of now (itself when it was not merged), or None."""
    async with engine.connect() as connection:
        return await connection.scalar(_ROOT, {"id": lead_id})


async def merges_into(engine: AsyncEngine, lead_id: str) -> list[dict[str, Any]]:
    """Give all merges that the lead, or what is part of it, had a side in; undone ones too."""
    async with engine.connect() as connection:
        return await merges_of(connection, lead_id)


async def merges_of(connection: AsyncConnection, lead_id: str) -> list[dict[str, Any]]:
    """As `merges_into`, on a connection."""
    rows = (await connection.execute(_MERGES, {"id": lead_id})).mappings().all()
    return [dict(row) for row in rows]


def merged_from(merges: Iterable[Mapping[str, Any]], lead_id: str) -> list[dict[str, Any]]:
    """Give those of `merges` that hold, as a lead shows them."""
    return [
        {
            "merge_id": m["merge_id"], "lead_id": m["lead_id"], "survivor": m["survivor"],
            "merged_at": m["recorded_at"], "reason": m["reason"], "identities": m["identities"],
            "actor": m["actor"],
        }
        for m in merges
        if m["undone_at"] is None and m["lead_id"] != lead_id
    ]  # fmt: skip


def merge_items(merges: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give the timeline items (kind ``merge``): one when merged, one more when undone."""
    items: list[dict[str, Any]] = []
    for m in merges:
        item = {
            "kind": "merge", "action": "merged", "occurred_at": m["occurred_at"],
            "recorded_at": m["recorded_at"], "merge_id": m["merge_id"], "survivor": m["survivor"],
            "merged": m["lead_id"], "reason": m["reason"], "identities": m["identities"],
            "actor": m["actor"], "undone_at": m["undone_at"],
            "cause": {"event_source": m["event_source"], "event_id": m["event_id"],
                      "event_type": m["event_type"], "rule": None, "actor": m["actor"]},
        }  # fmt: skip
        items.append(item)
        if m["undone_at"] is not None:
            items.append(item | {
                "action": "unmerged", "occurred_at": m["undone_at"], "recorded_at": m["undone_at"],
                "reason": m["undone_reason"], "actor": m["undone_by"],
            })  # fmt: skip
    return items


async def identities_of_lead(engine: AsyncEngine, lead_id: str) -> list[dict[str, Any]]:
    """Give the lead's identities: kind, value, since when, and the lead that brought it by a merge."""
    async with engine.connect() as connection:
        return (await identities_of_leads(connection, [lead_id])).get(lead_id, [])


async def identities_of_leads(
    connection: AsyncConnection, ids: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """As `identities_of_lead`, of several by lead, on a connection."""
    query = (
        select(identities).where(identities.c.lead_id.in_(ids))
        .order_by(identities.c.recorded_at, identities.c.kind, identities.c.value)
    )  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {}
    for r in (await connection.execute(query)).mappings():
        found.setdefault(r["lead_id"], []).append({
            "kind": r["kind"], "value": r["value"], "recorded_at": r["recorded_at"],
            "merged_from": r["own_lead_id"] if r["own_lead_id"] != r["lead_id"] else None,
        })  # fmt: skip
    return found


async def names_of(engine: AsyncEngine, ids: Sequence[str]) -> dict[str, str]:
    """Give what each lead is called: its company, its name or its address; an erased one is not there."""
    query = select(leads.c.id, leads.c.company, leads.c.name, leads.c.email).where(
        leads.c.id.in_(ids)
    )
    async with engine.connect() as connection:
        rows = await connection.execute(query)
        called = {str(r.id): r.company or r.name or r.email for r in rows}
    return {id: name for id, name in called.items() if name}


async def refused_links(
    engine: AsyncEngine, lead_id: str, told: Sequence[Mapping[str, Any]], policy: Policy
) -> list[dict[str, Any]]:
    """Give what events of the lead (timeline items) name that belongs to another lead, and why apart.

    Judged by the policy and the owners of now; the newest first.
    """
    named: dict[Key, Mapping[str, Any]] = {}
    keys_by_event: list[tuple[Mapping[str, Any], Sequence[Key]]] = []
    for item in told:
        if item["kind"] == "event" and isinstance(item["data"], dict):
            keys, _ = keys_of(sent_identities(item["data"]), item["data"], policy)
            if len(keys) > 1:
                keys_by_event.append((item, keys))
                named.update(dict.fromkeys(keys, item))
    if not named:
        return []
    owned = await _owners(engine, list(named))
    others = {lead for lead in owned.values() if lead != lead_id}
    if not others:
        return []
    standing, barred = await _standing(engine, [lead_id, *others])
    found: dict[str, dict[str, Any]] = {}
    for item, keys in reversed(keys_by_event):
        mine = {key: owned[key] for key in keys if key in owned}
        if set(mine.values()) <= {lead_id}:
            continue
        decision = decide(keys, mine, standing, lambda a, b: frozenset((a, b)) in barred, policy)
        for refusal in decision.refused:
            other = refusal.lead if refusal.lead != lead_id else decision.lead
            if other is None or other == lead_id:
                continue
            found.setdefault(other, {
                "lead_id": other, "identity": spoken(refusal.kind), "reason": refusal.reason,
                "event_type": item["type"], "event_source": item["source"], "at": item["occurred_at"],
            })  # fmt: skip
    return list(found.values())[:REFUSALS_SHOWN_MAX]


async def _owners(engine: AsyncEngine, keys: Sequence[Key]) -> dict[Key, str]:
    query = text("""
        SELECT i.kind, i.value, i.lead_id::text FROM stage.identities i
        JOIN unnest(CAST(:kinds AS text[]), CAST(:values AS text[])) AS k(kind, value)
          USING (kind, value)""")
    async with engine.connect() as connection:
        rows = await connection.execute(
            query, {"kinds": [k[0] for k in keys], "values": [k[1] for k in keys]}
        )
        return {(kind, value): lead for kind, value, lead in rows}


async def _standing(
    engine: AsyncEngine, ids: Sequence[str]
) -> tuple[dict[str, Standing], set[frozenset[str]]]:
    query = (
        select(identities.c.lead_id, identities.c.kind, func.count())
        .where(identities.c.lead_id.in_(ids))
        .group_by(identities.c.lead_id, identities.c.kind)
    )
    pairs = text("""
        SELECT one::text, other::text FROM stage.barriers
        WHERE one = ANY(CAST(:ids AS uuid[])) AND other = ANY(CAST(:ids AS uuid[]))""")
    found = {id: Standing(False, 0) for id in ids}
    async with engine.connect() as connection:
        for lead, kind, count in await connection.execute(query):
            before = found[lead]
            found[lead] = Standing(
                before.is_known or is_anchor((kind, "")), before.identities + count
            )
        barred = {frozenset(row) for row in await connection.execute(pairs, {"ids": list(ids)})}
    return found, barred


async def list_accounts(
    engine: AsyncEngine,
    playbooks: Mapping[str, Playbook],
    *,
    after: str | None = None,
    account: str | None = None,
    limit: int = 50,
) -> tuple[list[dict[str, Any]], str | None]:
    """List accounts by domain, with how many leads are in which stage. Gives (items, next cursor).

    `after`: those behind this domain; `account`: this one only. Stages are told as the active `playbooks`
    call them.
    """
    async with engine.connect() as connection:
        rows = (
            (await connection.execute(
                _ACCOUNTS, {"after": after, "account": account, "limit": limit + 1}
            )).mappings().all()
        )  # fmt: skip
        page = rows[:limit]
        stored = journeys.c.playbook, journeys.c.stage, journeys.c.playbook_version
        query = (
            select(leads.c.account, *stored, func.count())
            .join(leads, leads.c.id == journeys.c.lead_id)
            .where(leads.c.account.in_([r["account"] for r in page]))
            .group_by(leads.c.account, *stored)
            .order_by(*stored)
        )
        stages: dict[str, dict[str, dict[str, int]]] = {}
        for name, playbook, stage, version, count in await connection.execute(query):
            known = playbooks.get(playbook)
            now = known.current(stage, version) if known is not None else stage
            counts = stages.setdefault(name, {}).setdefault(playbook, {})
            counts[now] = counts.get(now, 0) + count
    items = [_account(row, stages.get(row["account"], {})) for row in page]
    return items, (page[-1]["account"] if len(rows) > limit else None)


def _account(row: RowMapping, stages: dict[str, dict[str, int]]) -> dict[str, Any]:
    return {
        "domain": row["account"], "company": row["company"], "leads": row["leads"],
        "last_seen_at": row["last_seen_at"], "stages": stages,
    }  # fmt: skip
