"""Leads as ``GET /v1/leads/{id}`` shows them, one or many, in one snapshot of the database. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.stage_service.playbook import Playbook
from services.stage_service.reads import journeys_of, lead_shown
from services.stage_service.reads_people import identities_of_leads, merged_from, merges_of
from services.stage_service.tables import leads

_encode = msgspec.json.Encoder().encode


class Leads(NamedTuple):
    """Leads at one moment: those that stand for themselves, as they are shown, and whose part others are."""

    shown: dict[str, dict[str, Any]]
    merged_into: dict[str, str]


async def whole_lead(
    engine: AsyncEngine, id: str, playbooks: Mapping[str, Playbook]
) -> dict[str, Any] | None:
    """Give the lead `id` as it is now, or None when there is none, or it is part of another."""
    return (await whole_leads(engine, [id], playbooks)).shown.get(id)


async def whole_leads(
    engine: AsyncEngine, ids: Sequence[str], playbooks: Mapping[str, Playbook] | None = None
) -> Leads:
    """Give what there is of the leads `ids`, from one snapshot of the database.

    With the active `playbooks` their stages are called as they are now; without, as they are stored.
    """
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        async with connection.begin():
            return await _read(connection, ids, playbooks)


async def _read(
    connection: AsyncConnection, ids: Sequence[str], playbooks: Mapping[str, Playbook] | None
) -> Leads:
    rows = (await connection.execute(select(leads).where(leads.c.id.in_(ids)))).mappings().all()
    living = [row for row in rows if row["merged_into"] is None]
    mine = await journeys_of(connection, [row["id"] for row in living], playbooks)
    names = await identities_of_leads(connection, [row["id"] for row in living])
    parents = await connection.execute(
        select(leads.c.merged_into).where(leads.c.merged_into.in_(ids)).distinct()
    )
    merges = {id: merged_from(await merges_of(connection, id), id) for (id,) in parents.all()}
    shown = {
        row["id"]: {
            **lead_shown(row, mine.get(row["id"], [])),
            "identities": names.get(row["id"], []),
            "merged_from": merges.get(row["id"], []),
        }
        for row in living
    }
    return Leads(shown, {r["id"]: r["merged_into"] for r in rows if r["merged_into"] is not None})


def without_the_longest(attributes: Mapping[str, Any], bytes_max: int) -> dict[str, Any]:
    """Give `attributes` without the longest ones, so that the rest is at most `bytes_max` of JSON."""
    kept: dict[str, Any] = {}
    size = 2
    for name, value in sorted(attributes.items(), key=lambda item: len(_encode(item[1]))):
        size += len(_encode(name)) + len(_encode(value)) + 2
        if size > bytes_max:
            break
        kept[name] = value
    return kept
