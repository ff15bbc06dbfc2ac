"""The timeline over HTTP: what happened to a lead, why it did, and why not more; now or of the past."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import httpx
import msgspec
from fastapi import APIRouter, Depends, Request, Response

from services.stage_service import reads, reads_handoffs, reads_people
from services.stage_service.api import past
from services.stage_service.api.access import House, allow, house, token_of
from services.stage_service.api.reads import living_lead, merged_elsewhere, required_lead_id
from services.stage_service.api.why import why_now, why_shown, with_clauses

NOTIFIER_WITHIN_S = 1.5
ALERTS_OF_LEADS_MAX = 10
"""The notifier is asked once for each lead that was merged into one."""

router = APIRouter(dependencies=[Depends(allow("read"))])
_encode = msgspec.json.Encoder().encode


@router.get("/v1/leads/{id}/timeline", tags=["leads"], operation_id="get_timeline")
async def get_timeline(request: Request, id: str, at: past.AtQuery = None) -> Response:
    """Give all that happened to a lead, oldest first: events, transitions with why, handoffs, alerts.

    ``why`` says of each journey what would move it, and of each rule why it does not.
    """
    it = house(request)
    moment = past.moment_asked(it, at)
    if moment is not None:
        return await _past_timeline(request, it, id, moment)
    lead_id = await living_lead(it, id)
    if lead_id != required_lead_id(id):
        return merged_elsewhere("/v1/leads/{}/timeline", lead_id)
    why = await why_now(it, lead_id)
    items = await timeline_of(it, lead_id)
    merges = await reads_people.merges_into(it.engine, lead_id)
    alerts = await _alerts(request, it, lead_id, merges)
    return _answer(items + reads_people.merge_items(merges), alerts, {"why": why})


async def _past_timeline(request: Request, it: House, id: str, at: datetime) -> Response:
    then = await past.then_of(it, required_lead_id(id), at)
    if isinstance(then, str):
        return merged_elsewhere("/v1/leads/{}/timeline", then, at)
    items = await past.past_items(it, then)
    with_clauses(items, it.lane.shelf)
    alerts = await _alerts(request, it, then.id, then.merges)
    made = None if alerts is None else [
        a for a in alerts if datetime.fromisoformat(a["created_at"]) <= at
    ]  # fmt: skip
    more = {
        "why": why_shown(then.playbooks, then.lead, then.id, at),
        "as_of": past.told_as_of(it, at),
    }
    return _answer(items + reads_people.merge_items(then.merges), made, more)


async def _alerts(
    request: Request, it: House, lead_id: str, merges: list[dict[str, Any]]
) -> list[dict[str, Any]] | None:
    sides = [lead_id, *(m["lead_id"] for m in reads_people.merged_from(merges, lead_id))]
    return await alerts_of(it, token_of(request), *sides[:ALERTS_OF_LEADS_MAX])


def _answer(
    items: list[dict[str, Any]], alerts: list[dict[str, Any]] | None, more: dict[str, Any]
) -> Response:
    items += [
        # An alert has a kind of its own, which must not pass for the item's.
        {**a, "kind": "alert", "alert_kind": a.get("kind"),
         "occurred_at": datetime.fromisoformat(a["created_at"]),
         "recorded_at": datetime.fromisoformat(a["created_at"])}
        for a in alerts or ()
    ]  # fmt: skip
    items.sort(key=lambda i: i["occurred_at"])
    body = {"items": items, "next_cursor": None, "alerts_known": alerts is not None, **more}
    return Response(_encode(body), media_type="application/json")


async def timeline_of(it: House, lead_id: str) -> list[dict[str, Any]]:
    """Give a lead's events, records, clocks and handoffs as timeline items, oldest first."""
    items = await reads.timeline(it.engine, lead_id)
    items = await reads_handoffs.told_by_clocks(it.engine, items, it.playbooks)
    rows = await reads_handoffs.handoffs_of_lead(it.engine, lead_id)
    items += reads_handoffs.handoff_items(rows, items, it.playbooks, it.team, it.now())
    items.sort(key=lambda i: i["occurred_at"])
    with_clauses(items, it.lane.shelf)
    return items


async def alerts_of(house: House, token: str | None, *lead_ids: str) -> list[dict[str, Any]] | None:
    """Ask the notifier for the alerts of a lead and of those merged into it; None: no answer in time."""

    async def ask(lead_id: str) -> list[dict[str, Any]] | None:
        try:
            answer = await house.notifier.get(
                "/v1/alerts", params={"lead_id": lead_id, "limit": "200"},
                headers={"authorization": f"Bearer {token}"}, timeout=NOTIFIER_WITHIN_S,
            )  # fmt: skip
            return answer.json()["items"] if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError, KeyError):
            return None

    found = await asyncio.gather(*(ask(lead_id) for lead_id in lead_ids))
    known = [alerts for alerts in found if alerts is not None]
    return [a for alerts in known for a in alerts] if len(known) == len(found) else None
