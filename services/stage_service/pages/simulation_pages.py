"""The pages of simulations: choose a playbook's text, watch the folding, see both sides beside each other."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from services.contracts.access import Principal
from services.contracts.problems import BatonError
from services.contracts.simulations import Days, Simulated, SimulatedSide
from services.stage_service import reads_people
from services.stage_service.api.access import STATUS, allow, house
from services.stage_service.api.reads import playbook_named
from services.stage_service.api.simulations import RUNS, begin_simulation, run_id
from services.stage_service.errors import NotFoundError
from services.stage_service.pages.rendering import PageRoute, form_of, page
from services.stage_service.simulations import records

TEXT_BYTES_MAX = 1024 * 1024
DIFFERENCES_SHOWN = 20
DAYS_MAX = 3660

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Reader = Annotated[Principal, Depends(allow("read"))]
Admin = Annotated[Principal, Depends(allow("admin"))]


@router.get("/simulation")
async def simulation(request: Request, who: Admin, playbook: str = "", like: str = "") -> Response:
    """Choose what to simulate: the active text stands there, or that of the simulation `like`."""
    it = house(request)
    text, since = playbook_named(it, playbook or None).source, ""
    if like:
        run = await records.find(it.pool, run_id(like))
        text = await records.source(it.pool, run.id) or text
        since = f"{run.since:%Y-%m-%d}" if run.since else ""
    return await _form(request, who, playbook, text, since)


async def _form(
    request: Request, who: Principal, playbook: str, text: str, since: str,
    error: BatonError | None = None,
) -> Response:  # fmt: skip
    it = house(request)
    return page(
        request, "simulation.html", 200 if error is None else STATUS[type(error)], who=who,
        playbook=playbook_named(it, playbook or None), playbooks=it.playbooks, text=text, since=since,
        error=error, runs=await records.newest(it.pool), json_url=RUNS,
    )  # fmt: skip


@router.post("/simulation")
async def begin(request: Request, who: Admin) -> Response:
    """Begin one, and go where its progress is."""
    form = await form_of(request, TEXT_BYTES_MAX)
    text, since = form.get("text", ""), form.get("since", "").strip()
    try:
        run = await begin_simulation(house(request), who, text, since, None)
    except BatonError as error:
        return await _form(request, who, "", text, since, error)
    return RedirectResponse(f"/simulation/{run.id}", 303)


@router.get("/simulation/{id}")
async def one_simulation(request: Request, who: Reader, id: str) -> Response:
    """Show how far it is, or what came of it."""
    it = house(request)
    run = await records.find(it.pool, run_id(id))
    document = await records.result(it.pool, run.id)
    known = it.playbooks.get(run.playbook)
    facts: dict[str, Any] = {"title": known.title if known else run.playbook.capitalize()}
    if document is not None:
        facts |= _facts(msgspec.json.decode(document, type=Simulated))
        leads = [d.lead_id for d in facts["differences"]]
        facts["names"] = await reads_people.names_of(it.engine, leads)
        facts["roles"] = {r.key: r.title for r in known.roles.values()} if known else {}
        facts["labels"] = known.labels if known else {}
    return page(
        request, "simulation_run.html", who=who, run=run, has_result=document is not None,
        may_change="admin" in who.scopes, json_url=f"{RUNS}/{run.id}", **facts,
    )  # fmt: skip


@router.get("/simulation/{id}/progress")
async def progress(request: Request, _: Reader, id: str) -> Response:
    """Give the moving part; once it is over the whole page is asked for again."""
    run = await records.find(house(request).pool, run_id(id))
    answer = page(request, "_simulation_progress.html", run=run)
    if run.state != "running":
        answer.headers["hx-refresh"] = "true"
    return answer


@router.post("/simulation/{id}/{deed}")
async def cancel(request: Request, _: Admin, id: str, deed: str) -> Response:
    """End it (``cancel``)."""
    it = house(request)
    run = await records.find(it.pool, run_id(id))
    if deed != "cancel":
        raise NotFoundError("There is no such page.")
    await it.simulations.cancel(run.id)
    return RedirectResponse(f"/simulation/{run.id}", 303)


def _facts(told: Simulated) -> dict[str, Any]:
    sides = (told.today, told.candidate)

    def differs(role: str, *numbers: str) -> bool:
        each = ([getattr(side, name).get(role, {}) for name in numbers] for side in sides)
        return next(each) != next(each)

    return {
        "told": told,
        "titles": {s.stage: s.title for s in told.stages},
        "stages": [(s, *(side.stages[s.stage] for side in sides)) for s in told.stages],
        "alerts": [
            {"role": role, "totals": [sum(side.alerts.get(role, {}).values()) for side in sides],
             "differs": differs(role, "alerts"),
             "busiest": [max(side.alerts.get(role, {}).values(), default=0) for side in sides],
             "days": _by_day(*(side.alerts.get(role, {}) for side in sides))}
            for role in _roles(*(side.alerts for side in sides))
        ],
        "deadlines": [
            {"role": role, "counts": [_load(side, role) for side in sides],
             "differs": differs(role, "due", "overdue"),
             "days": _by_day(told.today.due.get(role, {}), told.candidate.due.get(role, {}),
                             told.today.overdue.get(role, {}), told.candidate.overdue.get(role, {}))}
            for role in _roles(*(side.due for side in sides), *(_ones(side) for side in sides))
        ],
        "differences": told.differences[:DIFFERENCES_SHOWN],
    }  # fmt: skip


def _ones(side: SimulatedSide) -> Days:
    """Give the roles that were offered something, in the form of days."""
    return {role: {} for role in side.handoffs}


def _load(side: SimulatedSide, role: str) -> dict[str, int]:
    return {
        "handoffs": side.handoffs.get(role, 0), "due": sum(side.due.get(role, {}).values()),
        "missed": side.missed.get(role, 0), "waiting": side.waiting.get(role, 0),
    }  # fmt: skip


def _roles(*told: Days) -> list[str]:
    return sorted({role for days in told for role in days})


def _by_day(*told: dict[str, int]) -> list[tuple[str, list[int]]]:
    """Give the counts of each day between the first and the last one, in columns as `told`."""
    days = sorted({date.fromisoformat(day) for counts in told for day in counts})
    if not days:
        return []
    span = min((days[-1] - days[0]).days + 1, DAYS_MAX)
    found: list[tuple[str, list[int]]] = []
    for number in range(span):
        # From the end: were it longer than anybody reads, the newest days are kept.
        day = (days[-1] - timedelta(days=span - 1 - number)).isoformat()
        found.append((day, [counts.get(day, 0) for counts in told]))
    return found
