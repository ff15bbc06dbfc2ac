"""The board: every stage of a playbook with its newest journeys, and the last moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from services.contracts import postgres_log
from services.contracts.access import Principal
from services.contracts.events import CORRECTED, TRANSITIONED, TRANSITIONS_TOPIC
from services.stage_service import reads, reads_board
from services.stage_service.api.access import House, allow, house
from services.stage_service.api.reads import playbook_named
from services.stage_service.funnel import Lead, score_of
from services.stage_service.pages.rendering import PageRoute, page
from services.stage_service.playbook import BAND_TITLES, Playbook
from services.stage_service.store import unpack_state

CARDS_MAX = 12
NEWS_MAX = 8
NEWS_READ_BACK = 60

Card = dict[str, Any]
Reader = Annotated[Principal, Depends(allow("read"))]
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/")
async def board(request: Request, who: Reader, playbook: str | None = None) -> Response:
    """Show every stage with its newest journeys, live."""
    return page(
        request, "board.html", who=who, json_url="/v1/leads",
        **await _board(house(request), playbook),
    )  # fmt: skip


@router.get("/fragments/board")
async def board_fragment(request: Request, who: Reader, playbook: str | None = None) -> Response:
    """Give the moving part of the board."""
    return page(request, "_board.html", who=who, **await _board(house(request), playbook))


async def _board(it: House, name: str | None) -> dict[str, Any]:
    await it.lane.look_at_playbooks()
    chosen = playbook_named(it, name or None)
    now = await reads.board(it.engine, chosen, CARDS_MAX, it.now())
    cards: list[Card] = [card for stage in now.values() for card in stage["latest"]]
    await _owned_before(it, chosen, cards)
    await _scored(it, chosen, cards)
    nobody: dict[str, Any] = {"count": 0, "latest": []}
    bands: list[dict[str, Any]] = []
    for key in chosen.path:
        stage = chosen.stages[key]
        if not bands or bands[-1]["key"] != stage.band:
            bands.append({"key": stage.band, "title": BAND_TITLES[stage.band], "stages": []})
        bands[-1]["stages"].append((stage, now.get(key, nobody)))
    exits = [(s, now.get(s.key, nobody)) for s in chosen.stages.values() if s.path_index is None]
    return {
        "playbook": chosen, "playbooks": it.playbooks, "bands": bands, "exits": exits,
        "before": _before(it, chosen), "news": await _last_moves(it, chosen, cards),
        "total": sum(s["count"] for s in now.values()), "public_url": it.public_url,
    }  # fmt: skip


def _before(it: House, chosen: Playbook) -> Playbook | None:
    """Give the playbook whose journeys begin those of `chosen`, if there is one."""
    return it.playbooks.get(chosen.enters.playbook) if chosen.enters is not None else None


async def _owned_before(it: House, chosen: Playbook, cards: Sequence[Card]) -> None:
    """Tell of each card who holds its deal in the playbook before, until its own journey has owners."""
    before = _before(it, chosen)
    for card in cards:
        card["before"] = {}
    orphans = [card for card in cards if not card["owners"]]
    if before is None or not orphans:
        return
    owners = await reads_board.owners_in(it.engine, before.name, [c["lead_id"] for c in orphans])
    for card in orphans:
        card["before"] = owners.get((card["lead_id"], card["key"]), {})


async def _scored(it: House, chosen: Playbook, cards: Sequence[Card]) -> None:
    """Give the cards their score under `chosen`; a lead's own row has it under the first playbook."""
    if chosen.name == next(iter(it.playbooks)) or not cards:
        return
    states = await reads_board.states_of(it.engine, [card["lead_id"] for card in cards])
    for card in cards:
        lead = _lead_in(states.get(card["lead_id"]))
        card["score"] = score_of(lead, chosen, lead.last[0]).total if lead is not None else "–"


def _lead_in(state: bytes | None) -> Lead | None:
    """Give the lead in a packed `state`; None where it cannot be read, which `baton verify` tells of."""
    try:
        return unpack_state(state) if state is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError):
        return None


async def _last_moves(it: House, chosen: Playbook, cards: Sequence[Card]) -> list[dict[str, Any]]:
    """Give the last moves of the playbook, newest first.

    They are in the published log, as it was recorded. Where another playbook fills that, the rest is what the
    cards' journeys did last.
    """
    last = await postgres_log.last_number(it.pool, TRANSITIONS_TOPIC)
    messages = await postgres_log.read_topic(
        it.pool, max(0, last - NEWS_READ_BACK), TRANSITIONS_TOPIC, NEWS_READ_BACK
    )
    found: dict[str, dict[str, Any]] = {}
    for message in reversed(messages):
        if message.type in (TRANSITIONED, CORRECTED):
            move = msgspec.json.decode(message.value) | {"corrects": message.type == CORRECTED}
            if move["journey"]["playbook"] == chosen.name:
                found.setdefault(move["transition_id"], move)
    if len(found) < NEWS_MAX and cards:
        leads = list({card["lead_id"] for card in cards})
        for row in await reads_board.last_moves_of(it.engine, chosen.name, leads, NEWS_MAX):
            about = {"id": str(row.lead_id), **{n: row[n] for n in ("name", "company", "email")}}
            found.setdefault(str(row.transition_id), {
                "recorded_at": row.recorded_at, "explanation": row.explanation, "lead": about,
                "corrects": row.kind == "correction",
            })  # fmt: skip
    return list(found.values())[:NEWS_MAX]
