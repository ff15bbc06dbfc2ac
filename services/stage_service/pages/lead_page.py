"""The page of one lead: as it is now, or as Baton knew it at a past moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from fastapi import Request, Response

from services.contracts.access import Principal
from services.contracts.problems import BatonError
from services.stage_service import reads, reads_handoffs, reads_people
from services.stage_service.api.access import House, house, token_of
from services.stage_service.api.past import past_items
from services.stage_service.api.reads import playbook_named
from services.stage_service.api.timeline import alerts_of, timeline_of
from services.stage_service.api.why import with_clauses
from services.stage_service.as_of import Then, shown_at
from services.stage_service.errors import InvalidRequestError, NotFoundError
from services.stage_service.funnel import Lead, journey_name
from services.stage_service.next_moves import JourneyWhy, explained
from services.stage_service.pages import handoff_pages
from services.stage_service.pages.lead_view import score_explained, steps, story
from services.stage_service.pages.rendering import page
from services.stage_service.playbook import Playbook
from services.stage_service.store import unpack_state

CHAPTERS_SHOWN = 100
OTHERS_MAX = 8


def written_moment(text: str) -> datetime | None:
    """Give the moment that a page's ``at`` names; None when it is empty. Raises InvalidRequestError."""
    if not text.strip():
        return None
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise InvalidRequestError(
            "that is no moment", field="at", value=text, remedy="Give it as 2026-01-31T09:30."
        ) from None


async def lead_page(
    request: Request,
    who: Principal,
    id: str,
    form: dict[str, str] | None = None,
    error: BatonError | None = None,
) -> Response:
    """Show the lead `id` as it is now; with `form` and `error`: what was asked for, and was not done."""
    it = house(request)
    found = await reads.get_lead(it.engine, id, it.playbooks)
    if found is None:
        raise NotFoundError(f"There is no lead {id}.", remedy="Look for it in the list of leads.")
    items = await timeline_of(it, id)
    merges = await reads_people.merges_into(it.engine, id)
    parts = reads_people.merged_from(merges, id)
    refused = await reads_people.refused_links(it.engine, id, items, it.lane.policy)
    alerts = await alerts_of(it, token_of(request), id, *(p["lead_id"] for p in parts[:9]))
    others = await reads.list_leads(
        it.engine, account=found["account"], limit=OTHERS_MAX + 1, playbooks=it.playbooks
    ) if found["account"] else ([], None)  # fmt: skip
    state = await reads.state_of(it.engine, id)
    folded = unpack_state(state) if state is not None else None
    now = it.now()
    return page(
        request, "lead.html", 200 if error is None else 409, who=who, form=form or {}, error=error,
        **_told(request, it, found, folded, items, merges, alerts, it.playbooks, now),
        may_move=bool(who.scopes & {"move", "admin"}), json_url=f"/v1/leads/{id}/timeline",
        identities=await reads_people.identities_of_lead(it.engine, id), parts=parts, refused=refused,
        waiting=await handoff_pages.waiting_of(it, id, now), as_of=None,
        ticking=await reads_handoffs.running_clocks(it.engine, id, it.playbooks),
        others=[o for o in others[0] if o["id"] != id][:OTHERS_MAX],
    )  # fmt: skip


async def past_lead_page(request: Request, who: Principal, then: Then) -> Response:
    """Show a lead as it was known then; nothing can be done on this page."""
    it = house(request)
    found = shown_at(then, {id: person.name for id, person in it.team.by_id.items()})
    items = await past_items(it, then)
    with_clauses(items, it.lane.shelf)
    sides = [then.id, *(m["lead_id"] for m in found["merged_from"][:9])]
    alerts = await alerts_of(it, token_of(request), *sides)
    made = alerts and [a for a in alerts if datetime.fromisoformat(a["created_at"]) <= then.at]
    return page(
        request, "lead.html", who=who, form={}, error=None,
        **_told(request, it, found, then.lead, items, then.merges, made, then.playbooks, then.at),
        may_move=False, json_url=f"/v1/leads/{then.id}/timeline?at={then.at:%Y-%m-%dT%H:%M:%SZ}",
        identities=then.identities, parts=found["merged_from"], refused=[], waiting={}, ticking=[],
        others=[], as_of=then.at,
    )  # fmt: skip


def _told(
    request: Request,
    it: House,
    found: dict[str, Any],
    folded: Lead | None,
    items: list[dict[str, Any]],
    merges: Sequence[Mapping[str, Any]],
    alerts: list[dict[str, Any]] | None,
    playbooks: Mapping[str, Playbook],
    at: datetime,
) -> dict[str, Any]:
    """Give what the page tells of a lead at the moment `at`, whichever it is."""
    items = sorted(items + reads_people.merge_items(merges), key=lambda i: i["occurred_at"])
    chapters = story(items, alerts or ())
    shown = len(chapters) if "all" in request.query_params else CHAPTERS_SHOWN
    ways: list[dict[str, Any]] = []
    for journey in found["journeys"]:
        playbook = playbooks.get(journey["playbook"])
        stage = playbook.stages.get(playbook.named(journey["stage"])) if playbook else None
        if playbook is not None and stage is not None:
            name = journey_name(playbook.name, journey["key"])
            why = JourneyWhy([], [])
            if folded is not None and name in folded.journeys:
                why = explained(playbooks, folded, name, at)
            ways.append({"journey": journey, "playbook": playbook, "why": why,
                         "stage": stage,
                         "steps": steps(playbook, journey, items)})  # fmt: skip
    scored: Playbook = ways[0]["playbook"] if ways else playbook_named(it, None)
    return {
        "lead": found, "ways": ways, "alerts": alerts, "chapters": chapters[:shown],
        "score": score_explained(scored, folded, at) if folded else None, "people": it.team.by_id,
        "hidden": max(0, len(chapters) - shown), "playbook": scored, "playbooks": playbooks,
    }  # fmt: skip
