"""``POST /v1/leads/{id}/merge`` and ``/unmerge``: two leads made one by hand, and apart again.

Each is a stored lead event like a move by hand. A merged lead's id still answers: reads redirect to the
survivor, writes act on it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request
from pydantic import Field

from services.contracts.access import Principal
from services.contracts.answers import OnceRoute, attempt_of
from services.contracts.bodies import RequestBody
from services.contracts.events import (
    MAIN,
    MERGED_BY_HAND,
    SOURCE,
    UNMERGED_BY_HAND,
    LeadEvent,
)
from services.stage_service import reads_people
from services.stage_service.api.access import House, allow, house
from services.stage_service.api.moves import recorded_briefs
from services.stage_service.api.reads import living_lead
from services.stage_service.batch import Outcome
from services.stage_service.errors import ConflictError, InvalidRequestError, NotFoundError
from services.stage_service.identities import LEAD_IDENTITY
from services.stage_service.lane import new_id
from services.stage_service.lead_facts import REASON_CHARACTERS_MAX
from services.stage_service.reads import is_recorded, state_of
from services.stage_service.store import unpack_state

router = APIRouter(route_class=OnceRoute)

_REASON: Any = Field(
    min_length=1, max_length=REASON_CHARACTERS_MAX, pattern=r"^[^\x00]*$",
    description="shown in the timeline", examples=["the same person with a new employer"],
)  # fmt: skip


class MergeByHand(RequestBody):
    """Who else it is, and why."""

    lead: str = Field(max_length=64, description="id of the other lead; the older of both survives")
    reason: str = _REASON


class UnmergeByHand(RequestBody):
    """Which merge to undo, and why."""

    lead: str | None = Field(None, max_length=64, description="id of the merged lead")
    merge_id: str | None = Field(None, max_length=64, description="id of the merge, instead")
    reason: str = _REASON


@router.post("/v1/leads/{id}/merge", tags=["leads"], operation_id="merge_leads")
async def merge(
    request: Request, id: str, wish: MergeByHand, who: Annotated[Principal, Depends(allow("move"))]
) -> Any:
    """Say that two leads are one person: the older survives, the other's events become its own."""
    attempt = attempt_of(request)
    outcome = await merge_by_hand(
        house(request), who, id, wish.lead, wish.reason,
        event_id=str(attempt.effect_id) if attempt else None,
    )  # fmt: skip
    return msgspec.to_builtins(outcome)


@router.post("/v1/leads/{id}/unmerge", tags=["leads"], operation_id="unmerge_leads")
async def unmerge(
    request: Request,
    id: str,
    wish: UnmergeByHand,
    who: Annotated[Principal, Depends(allow("move"))],
) -> Any:
    """Undo a merge: both leads get back what was theirs, and no event merges them again by itself."""
    attempt = attempt_of(request)
    outcome = await unmerge_by_hand(
        house(request), who, id, wish.reason, lead=wish.lead, merge_id=wish.merge_id,
        event_id=str(attempt.effect_id) if attempt else None,
    )  # fmt: skip
    return msgspec.to_builtins(outcome)


async def merge_by_hand(
    it: House,
    who: Principal,
    lead_id: str,
    other_id: str,
    reason: str,
    event_id: str | None = None,
) -> Outcome:
    """Merge two leads as `who` says, and give what happened to the survivor.

    With an `event_id` that is recorded already nothing more happens: the answer is that of the first
    time. Raises NotFoundError for an unknown lead, ConflictError when both are one already,
    InvalidRequestError without a reason.
    """
    if event_id is not None and await is_recorded(it.engine, SOURCE, event_id):
        return await _as_recorded(it, lead_id, event_id)
    lead, other = await living_lead(it, lead_id), await living_lead(it, other_id)
    if lead == other:
        raise ConflictError(
            "both are the same lead already", field="lead", value=other_id, remedy="Nothing to do."
        )
    return await _record(it, who, MERGED_BY_HAND, (lead, other), {"lead": other}, reason, event_id)


async def unmerge_by_hand(
    it: House,
    who: Principal,
    lead_id: str,
    reason: str,
    *,
    lead: str | None = None,
    merge_id: str | None = None,
    event_id: str | None = None,
) -> Outcome:
    """Undo the merge `merge_id`, or that of the merged `lead`, and give what happened to the survivor.

    `event_id` as of `merge_by_hand`. Raises NotFoundError when there is no such merge in
    the lead, InvalidRequestError when it is not said which.
    """
    root = await living_lead(it, lead_id)
    if event_id is not None and await is_recorded(it.engine, SOURCE, event_id):
        return await _as_recorded(it, root, event_id)
    if (lead is None) == (merge_id is None):
        raise InvalidRequestError(
            "say which merge: 'lead' or 'merge_id'", field="lead",
            remedy="Give the id of the merged lead; GET /v1/leads/{id} lists them as merged_from.",
        )  # fmt: skip
    for merge in await reads_people.merges_into(it.engine, root):
        if merge["undone_at"] is None and str(lead or merge_id).lower() in (
            merge["lead_id"] if lead is not None else merge["merge_id"],
        ):
            data = {"lead": merge["lead_id"], "merge_id": merge["merge_id"]}
            return await _record(it, who, UNMERGED_BY_HAND, (root,), data, reason, event_id)
    raise NotFoundError(
        f"no such merge in lead {root!r}", field="lead" if lead is not None else "merge_id",
        value=lead or merge_id, remedy="GET /v1/leads/{id} lists the merges as merged_from.",
    )  # fmt: skip


async def _record(
    it: House,
    who: Principal,
    type: str,
    leads: tuple[str, ...],
    data: dict[str, Any],
    reason: str,
    event_id: str | None,
) -> Outcome:
    if not reason.strip():
        raise InvalidRequestError("it needs a reason", field="reason", remedy="Say why.")
    now = datetime.now(UTC)
    time = now
    for id in leads:  # after everything known of them, also when a tool's clock runs ahead of ours
        state = await state_of(it.engine, id)
        lead = unpack_state(state) if state is not None else None
        if lead is not None:
            time = max(time, lead.last[0] + timedelta(microseconds=1))
    event = LeadEvent(
        id=event_id or new_id(), source=SOURCE, type=type, time=time, recorded_at=now, subject=None,
        identities=tuple((LEAD_IDENTITY, id) for id in leads), deal=MAIN,
        data={**data, "reason": reason.strip(), "actor": who.name, "key_id": who.id}, envelope={},
    )  # fmt: skip
    outcome = await it.lane.submit_alone(event)
    if outcome.status == "duplicate":  # recorded by another attempt at the same request, meanwhile
        return await _as_recorded(it, leads[0], event.id)
    return outcome


async def _as_recorded(it: House, lead_id: str, event_id: str) -> Outcome:
    """Give the outcome of a recorded merge or parting again."""
    briefs = await recorded_briefs(it, event_id)
    return Outcome(event_id, SOURCE, "applied", await living_lead(it, lead_id), briefs)
