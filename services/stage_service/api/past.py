"""The past over HTTP: what ``?at=`` asks for, and where the present's answers are told of then.

A moment is settled when all that had arrived by then is committed; until then the same question may be
answered with a little more. The answer's ``as_of`` says which it is.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeAlias

from fastapi import Query
from pydantic import BeforeValidator

from services.stage_service import as_of, funnel_numbers, past_entered, past_funnel, reads_handoffs
from services.stage_service.api.access import House
from services.stage_service.api.moments import moment_in_utc, no_number
from services.stage_service.as_of import SETTLED_AFTER, Then
from services.stage_service.errors import InvalidRequestError, NotFoundError
from services.stage_service.funnel_numbers import Basis
from services.stage_service.past_entered import Begun
from services.stage_service.playbook import Playbook

AtQuery = Annotated[
    datetime | None, BeforeValidator(no_number),
    Query(alias="at", description="as Baton knew it at this past moment"),
]  # fmt: skip


def moment_asked(it: House, at: datetime | None) -> datetime | None:
    """Give the past moment `at` in UTC. Raises InvalidRequestError for one that is still to come."""
    moment = moment_in_utc(at, "at")
    if moment is not None and moment > it.now():
        raise InvalidRequestError(
            "lies in the future: Baton tells what it knew, not what will be", field="at",
            value=moment.isoformat(), remedy="Give a past moment, or leave `at` out for now.",
        )  # fmt: skip
    return moment


def told_as_of(it: House, at: datetime) -> dict[str, Any]:
    """Give the member ``as_of`` of an answer about the moment `at`."""
    return {"at": at, "settled": at <= it.now() - SETTLED_AFTER}


async def then_of(it: House, lead_id: str, at: datetime) -> Then | str:
    """Give the lead as it was at the moment `at`, or the id of the lead that it was part of then.

    Raises NotFoundError for one that was not known yet.
    """
    async with (
        it.pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        root = await as_of.root_at(connection, lead_id, at)
        if root != lead_id:
            return root
        then = await as_of.lead_at(connection, it.lane.shelf, lead_id, at, it.lane.policy)
        if then is not None:
            return then
        began = await as_of.began_at(connection, lead_id)
    if began is None or began <= at:
        raise NotFoundError(
            f"there was no lead {lead_id!r} at {at.isoformat()}", field="id", value=lead_id,
            remedy="Ask for it as it is now, without `at`.",
        )  # fmt: skip
    raise NotFoundError(
        f"Baton knew nothing of the lead {lead_id!r} at {at.isoformat()}", field="at",
        value=at.isoformat(), remedy=f"Its first event arrived at {began.isoformat()}.",
    )  # fmt: skip


async def past_items(it: House, then: Then) -> list[dict[str, Any]]:
    """Give the events, records, clocks and handoffs of then as timeline items, oldest first."""
    items = await reads_handoffs.told_by_clocks(it.engine, as_of.items_at(then), then.playbooks)
    rung = as_of.rung_by_then(then)
    for item in items:
        if item["kind"] == "clock":
            item["counts"] = (item["source"], item["id"]) in rung
    lead = as_of.shown_at(then)
    named = {f"lead_{n}": lead[n] for n in ("name", "company", "email")}
    rows = [row | named for row in then.handoffs]
    items += reads_handoffs.handoff_items(rows, items, then.playbooks, it.team, then.at)
    items.sort(key=lambda i: i["occurred_at"])
    return items


async def playbooks_at(it: House, at: datetime) -> dict[str, Playbook]:
    """Give the playbooks that were active at the moment `at`; of one that came later, the present one."""
    async with it.pool.acquire() as connection:
        epoch = await as_of.epoch_at(connection, at)
        if epoch > it.lane.shelf.epoch:
            await it.lane.shelf.load(connection)
    return it.playbooks | it.lane.shelf.at(epoch)


Counted: TypeAlias = "tuple[dict[str, Playbook], list[Begun] | None]"
"""All playbooks of a past moment, and which journeys of one there were (`past_entered.begun_at`)."""


async def counted_then(it: House, playbook: Playbook, at: datetime) -> Counted:
    """Find what numbers of `playbook`, its version of then, are counted over; it may take folding many leads.

    Raises InvalidRequestError where they are too many.
    """
    playbooks = await playbooks_at(it, at)
    async with (
        it.pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        return playbooks, await past_entered.begun_at(connection, it.lane.shelf, playbook, at)


async def _basis(
    it: House, playbook: Playbook, at: datetime, by: str | None, counted: Counted | None
) -> Basis:
    playbooks, entered = counted or await counted_then(it, playbook, at)
    return await past_funnel.basis_at(it.engine, playbook, at, by, playbooks, entered)


async def funnel_then(
    it: House,
    playbook: Playbook,
    at: datetime,
    *,
    since: datetime | None,
    until: datetime | None,
    by: str | None,
    counted: Counted | None = None,
) -> dict[str, Any]:
    """Give the funnel as it was at the moment `at`; `playbook` is the version of then."""
    basis = await _basis(it, playbook, at, by, counted)
    numbers = await funnel_numbers.funnel(
        it.engine, playbook, since=since, until=until, by=by, basis=basis
    )
    definition = numbers["definition"] | {"current": "were in the stage at that moment"}
    return numbers | {"definition": definition, "as_of": told_as_of(it, at)}


async def durations_then(
    it: House,
    playbook: Playbook,
    first: str,
    second: str,
    at: datetime,
    *,
    since: datetime | None,
    until: datetime | None,
    counted: Counted | None = None,
) -> dict[str, Any]:
    """Give the times between two stages as they were known at the moment `at`."""
    basis = await _basis(it, playbook, at, None, counted)
    numbers = await funnel_numbers.durations(
        it.engine, playbook, first, second, since=since, until=until, basis=basis
    )
    return numbers | {"as_of": told_as_of(it, at)}
