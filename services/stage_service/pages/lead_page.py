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
from services.stage_service.errors import NotFoundError
from services.stage_service.funnel import Lead, journey_name
from services.stage_service.next_moves import JourneyWhy, explained
from services.stage_service.pages import handoff_pages
from services.stage_service.pages.lead_view import ScoreExplained, score_explained, steps, story
from services.stage_service.pages.looking_back import LookBack
from services.stage_service.pages.rendering import page
from services.stage_service.playbook import Playbook
from services.stage_service.store import unpack_state

CHAPTERS_SHOWN = 100
OTHERS_MAX = 8


async def lead_page(
    request: Request,
    who: Principal,
    id: str,
    form: dict[str, str] | None = None,
    error: BatonError | None = None,
    back: LookBack | None = None,
) -> Response:
    """Show the lead `id` as it is now.

    With `form` and `error`: what was asked for, and was not done; with `back`: why it is not the past.
    """
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
        request, "lead.html", _status(error, back), who=who, form=form or {}, error=error,
        back=back or LookBack(""),
        **_told(request, it, found, folded, items, merges, alerts, it.playbooks, now),
        may_move=bool(who.scopes & {"move", "admin"}), json_url=f"/v1/leads/{id}/timeline",
        identities=await reads_people.identities_of_lead(it.engine, id), parts=parts, refused=refused,
        waiting=await handoff_pages.waiting_of(it, id, now), as_of=None,
        ticking=await reads_handoffs.running_clocks(it.engine, id, it.playbooks),
        others=[o for o in others[0] if o["id"] != id][:OTHERS_MAX],
    )  # fmt: skip


def _status(error: BatonError | None, back: LookBack | None) -> int:
    if error is not None:
        return 409
    return back.status if back is not None else 200


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
        request, "lead.html", who=who, form={}, error=None, back=LookBack("", then.at),
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
    places = {name: place for place, name in enumerate(playbooks)}
    journeys = sorted(found["journeys"], key=lambda j: places.get(j["playbook"], len(places)))
    for journey in journeys:
        playbook = playbooks.get(journey["playbook"])
        stage = playbook.stages.get(playbook.named(journey["stage"])) if playbook else None
        if playbook is not None and stage is not None:
            name = journey_name(playbook.name, journey["key"])
            why = JourneyWhy([], [])
            if folded is not None and name in folded.journeys:
                why = explained(playbooks, folded, name, at)
            ways.append({"journey": journey, "playbook": playbook, "why": why,
                         "stage": stage, "before": _before(playbook, playbooks, journey, journeys),
                         "steps": steps(playbook, journey, items)})  # fmt: skip
    scored: Playbook = ways[0]["playbook"] if ways else playbook_named(it, None)
    return {
        "lead": found, "ways": ways, "alerts": alerts, "chapters": chapters[:shown],
        "scores": _scores(ways, scored, folded, at), "people": it.team.by_id,
        "roles": _said(playbooks, "roles"), "labels": _said(playbooks, "labels"),
        "hidden": max(0, len(chapters) - shown), "playbook": scored, "playbooks": playbooks,
    }  # fmt: skip


def _scores(
    ways: Sequence[Mapping[str, Any]], scored: Playbook, folded: Lead | None, at: datetime
) -> list[tuple[Playbook, ScoreExplained]]:
    """Give the score under each playbook that the lead has a journey through."""
    if folded is None:
        return []
    through = {way["playbook"].name: way["playbook"] for way in ways} or {scored.name: scored}
    return [(p, score_explained(p, folded, at)) for p in through.values()]


def _said(playbooks: Mapping[str, Playbook], what: str) -> dict[str, str]:
    """Give the titles of all roles, or the labels of all event types; the first playbook's count."""
    found: dict[str, str] = {}
    for playbook in reversed(list(playbooks.values())):
        if what == "roles":
            found |= {role.key: role.title for role in playbook.roles.values()}
        else:
            found |= playbook.labels
    return found


def _before(
    playbook: Playbook,
    playbooks: Mapping[str, Playbook],
    journey: Mapping[str, Any],
    journeys: Sequence[Mapping[str, Any]],
) -> tuple[Playbook, Mapping[str, Any]] | None:
    """Give who holds the deal in the playbook before, until this journey has owners of its own."""
    before = playbooks.get(playbook.enters.playbook) if playbook.enters is not None else None
    if before is None or journey["owners"]:
        return None
    return next(
        ((before, j["owners"]) for j in journeys
         if j["playbook"] == before.name and j["key"] == journey["key"]), None,
    )  # fmt: skip
