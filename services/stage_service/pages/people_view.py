"""The page of people: who holds how much of each role, who is away, and whose turn is next."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from services.contracts.access import Principal
from services.contracts.team import Person, Team
from services.stage_service.api.access import allow, house
from services.stage_service.pages.rendering import PageRoute, page
from services.stage_service.workload import Workload, state_of, workload

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Reader = Annotated[Principal, Depends(allow("read"))]


@router.get("/people")
async def people(request: Request, who: Reader) -> Response:
    """Show the roster by role, with what each person holds."""
    it = house(request)
    async with it.pool.acquire() as connection:
        load = await workload(connection)
    titles = {r.key: r.title for p in it.playbooks.values() for r in p.roles.values()}
    now = datetime.now(UTC)
    roles = [
        {
            "title": titles.get(role, role),
            "people": [_row(p, role, it.team, load, now) for p in members],
        }
        for role, members in it.team.by_role.items()
    ]
    gone = {id: n for id, n in load.held.items() if id not in it.team.by_id}
    return page(
        request, "people.html", who=who, roles=roles, gone=gone,
        json_url="/v1/people" if "admin" in who.scopes else None,
    )  # fmt: skip


def _row(person: Person, role: str, team: Team, load: Workload, now: datetime) -> dict[str, Any]:
    state = state_of(person, team, load, now)
    stand_in = team.by_id.get(state["stand_in"] or "")
    total = sum(p.weight for p in team.by_role[role]) or 1
    return {
        "person": person, "open": state["open_journeys"], "given": state["given"].get(role, 0),
        "is_next": role in state["next_for"], "is_open": state["is_open"],
        "away_until": state["away_until"], "stand_in": stand_in,
        "share": round(100 * person.weight / total),
    }  # fmt: skip
