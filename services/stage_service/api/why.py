"""Why, over HTTP: what would move each journey of a lead and why not, and of each transition why it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from services.stage_service import funnel
from services.stage_service.api.access import House, allow, house
from services.stage_service.api.past import AtQuery, moment_asked, then_of, told_as_of
from services.stage_service.api.reads import living_lead, merged_elsewhere, required_lead_id
from services.stage_service.errors import NotFoundError
from services.stage_service.funnel import Lead
from services.stage_service.journal import journey_id
from services.stage_service.next_moves import explained
from services.stage_service.playbook import Playbook
from services.stage_service.reads import state_of
from services.stage_service.shelf import Shelf
from services.stage_service.store import unpack_state
from services.stage_service.why import clauses_then

router = APIRouter(dependencies=[Depends(allow("read"))])
_encode = msgspec.json.Encoder().encode


@router.get("/v1/leads/{id}/why", tags=["leads"], operation_id="get_why")
async def get_why(request: Request, id: str, at: AtQuery = None) -> Response:
    """Give why each journey of a lead is where it is: what would move it, and its rules clause by clause."""
    it = house(request)
    moment = moment_asked(it, at)
    if moment is not None:
        then = await then_of(it, required_lead_id(id), moment)
        if isinstance(then, str):
            return merged_elsewhere("/v1/leads/{}/why", then, moment)
        whole = why_shown(then.playbooks, then.lead, then.id, moment)
        return _json({**whole, "as_of": told_as_of(it, moment)})
    lead_id = await living_lead(it, id)
    if lead_id != required_lead_id(id):
        return merged_elsewhere("/v1/leads/{}/why", lead_id)
    return _json(await why_now(it, lead_id))


def _json(body: Any) -> Response:
    return Response(_encode(body), media_type="application/json")


async def why_now(it: House, lead_id: str) -> dict[str, Any]:
    """Give why each journey of a lead is where it is now. Raises NotFoundError."""
    state = await state_of(it.engine, lead_id)
    lead = unpack_state(state) if state is not None else None
    if lead is None:
        raise NotFoundError(f"there is no lead {lead_id!r}", field="id", value=lead_id)
    return why_shown(it.playbooks, lead, lead_id, it.now())


def why_shown(
    playbooks: Mapping[str, Playbook], lead: Lead, lead_id: str, at: datetime
) -> dict[str, Any]:
    """Give why each journey of `lead` is where it is at the moment `at`, for which scores are decayed."""
    shown: list[dict[str, Any]] = []
    for name, journey in lead.journeys.items():
        playbook = playbooks.get(journey.playbook)
        stage = playbook.stages.get(playbook.named(journey.stage)) if playbook else None
        found = explained(playbooks, lead, name, at)
        score = funnel.score_of(lead, playbook, at) if playbook else None
        shown.append({
            "journey": {"id": journey_id(lead_id, name), "playbook": journey.playbook,
                        "key": journey.key},
            "stage": journey.stage, "stage_title": stage.title if stage else journey.stage,
            "entered_at": journey.entered_at,
            "playbook_version": playbook.version if playbook else journey.version,
            "score": score and {"fit": score.fit, "intent": score.intent, "total": score.total},
            "held": [{"to": h.to, "rule": h.rule, "since": h.since, "missing": h.missing}
                     for h in journey.held],
            "would_move": found.would_move, "rules": found.rules,
        })  # fmt: skip
    return {"lead_id": lead_id, "at": at, "journeys": shown}


def with_clauses(items: Sequence[dict[str, Any]], shelf: Shelf) -> None:
    """Add to the transitions among `items` what their rule waited for and each clause as it was judged.

    By the version that they happened under: ``why.on``, ``why.when`` and ``why.clauses``.
    """
    for item in items:
        if item["kind"] not in ("transition", "correction") or item["cause"]["rule"] is None:
            continue
        journey, version = item["journey"]["playbook"], item["playbook_version"]
        if not shelf.knows(journey, version):
            continue
        playbook = shelf.version(journey, version)
        rule = next((r for r in playbook.rules if r.key == item["cause"]["rule"]), None)
        values = item["why"].get("values")
        if rule is None:
            continue
        item["why"] = item["why"] | {
            "on": sorted(rule.on) if rule.on is not None else None,
            "when": rule.when.text if rule.when is not None else None,
            # A move that a gate had held was judged when it was held.
            "clauses": [] if values is None
            else msgspec.to_builtins(clauses_then(playbook, rule, values)),
        }  # fmt: skip
