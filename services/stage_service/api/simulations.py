"""``/v1/playbooks/simulate`` and ``/v1/playbooks/simulations``: a candidate playbook on real history."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from services.contracts.access import Principal
from services.contracts.answers import OnceRoute, attempt_of
from services.contracts.simulations import Simulated
from services.contracts.yaml_source import SourceError
from services.stage_service.api.access import House, allow, house
from services.stage_service.api.playbook_bodies import text_in
from services.stage_service.errors import ConflictError, InvalidRequestError
from services.stage_service.simulations import records
from services.stage_service.simulations.pool import since_of
from services.stage_service.simulations.process import PROBLEMS_MAX
from services.stage_service.simulations.records import Run
from services.stage_service.simulations.report import write_csv

RUNS = "/v1/playbooks/simulations"


class SimulationRoute(OnceRoute):
    """A route that says where the simulation it began is, the first time and each time it is asked again."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give the route's way from a request to its response."""
        once = super().get_route_handler()

        async def located(request: Request) -> Response:
            response = await once(request)
            if response.status_code == 202:
                response.headers["location"] = (
                    f"{RUNS}/{msgspec.json.decode(response.body, type=_Named).id}"
                )
            return response

        return located


class _Named(msgspec.Struct):
    id: str


router = APIRouter(tags=["playbooks"], route_class=SimulationRoute)
Reader = Annotated[Principal, Depends(allow("read"))]
# It costs minutes of work on the machine and the database that serve everybody.
Admin = Annotated[Principal, Depends(allow("admin"))]
_encode = msgspec.json.Encoder().encode


def _json(body: Any, status: int = 200) -> Response:
    return Response(_encode(body), status, media_type="application/json")


def refused(error: SourceError) -> InvalidRequestError:
    """Give the error for a text that is no playbook: the first problem, and all of them in `problems`."""
    first = error.problems[0]
    listed = [
        {"line": p.line, "column": p.column, "message": p.message, "remedy": p.remedy}
        for p in error.problems[:PROBLEMS_MAX]
    ]
    return InvalidRequestError(
        f"line {first.line}, column {first.column}: {first.message}", field="body",
        remedy=first.remedy, extra={"problems": listed},
    )  # fmt: skip


async def begin_simulation(
    it: House, who: Principal, text: str, since: str, workers: int | None, id: str | None = None
) -> Run:
    """Start a simulation of the playbook `text`; one that has the id `id` already is given as it is.

    Raises InvalidRequestError, ConflictError when one is running, OverloadedError, UnavailableError.
    """
    most = it.simulations.workers_max
    if workers is not None and workers > most:
        raise InvalidRequestError(
            f"at most {most} processes are allowed here", field="workers", value=workers,
            remedy=f"Ask for {most} or fewer; BATON_SIMULATION_WORKERS says how many are allowed.",
        )  # fmt: skip
    if "\x00" in text:
        raise InvalidRequestError(
            "the text contains a NUL character", field="body", remedy="Send a playbook."
        )
    try:
        begin = since_of(since, it.now())
    except ValueError as error:
        raise InvalidRequestError(
            f"since: {error}", field="since", value=since, remedy="Write 90d, or 2026-09-01."
        ) from None
    begin = begin and datetime.astimezone(begin, UTC)
    try:
        return await it.simulations.start(text, begin, workers or most, who.name, id)
    except SourceError as error:
        raise refused(error) from None


def run_id(text: str) -> str:
    """Read the id of a simulation; raises NotFoundError for what is none."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise records.unknown(text) from None


@router.post(
    "/v1/playbooks/simulate", operation_id="simulate_playbook",
    responses={202: {"description": "Begun", "headers": {"Location": {
        "description": "where the simulation is", "schema": {"type": "string"}}}}},
    openapi_extra={"requestBody": {"required": True, "content": {"application/yaml": {
        "schema": {"description": "the candidate playbook"}}}}},
)  # fmt: skip
async def simulate_playbook(
    request: Request,
    who: Admin,
    since: Annotated[
        str,
        Query(max_length=40, description="only leads that did something since: 90d, or 2026-09-01"),
    ] = "",
    workers: Annotated[
        int | None, Query(ge=1, le=1024, description="processes; by default all that are allowed")
    ] = None,
) -> Response:
    """Begin to fold real history under the playbook in the body; `Location` says where the result will be."""
    text = await text_in(request)
    attempt = attempt_of(request)
    run = await begin_simulation(
        house(request), who, text, since, workers, str(attempt.effect_id) if attempt else None
    )
    return _json(_shown(run), 202)


def _shown(run: Run, result: bytes | None = None) -> dict[str, Any]:
    return msgspec.to_builtins(run) | {"result": result and msgspec.Raw(result)}


@router.get(RUNS, operation_id="list_simulations")
async def list_simulations(request: Request, _: Reader) -> Response:
    """List the simulations that are kept, newest first, without their results."""
    items = await records.newest(house(request).pool)
    return _json({"items": items, "next_cursor": None})


@router.get(RUNS + "/{id}", operation_id="get_simulation")
async def get_simulation(request: Request, _: Reader, id: str) -> Response:
    """Give a simulation: how far it is, and its result once it is done."""
    pool = house(request).pool
    run = await records.find(pool, run_id(id))
    return _json(_shown(run, await records.result(pool, run.id)))


async def document_of(it: House, id: str) -> bytes:
    """Give the document of a simulation that is done; raises NotFoundError, ConflictError."""
    run = await records.find(it.pool, run_id(id))
    found = await records.result(it.pool, run.id)
    if found is None:
        raise ConflictError(
            f"the simulation has no result: it is {run.state}", field="id", value=run.id,
            remedy="Wait until it is done." if run.state == "running" else "Start another.",
        )  # fmt: skip
    return found


@router.get(
    RUNS + "/{id}/result", operation_id="get_simulation_result",
    responses={200: {"content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/Simulated"}},
        "text/csv": {"schema": {"type": "string"}}}}},
)  # fmt: skip
async def get_simulation_result(
    request: Request, _: Reader, id: str,
    format: Annotated[
        Literal["json", "csv"], Query(description="csv: the journeys that differ, one a line")
    ] = "json",
) -> Response:  # fmt: skip
    """Give the result by itself, as a file: the document that `baton playbook simulate --json` writes."""
    document = await document_of(house(request), id)
    headers = {"content-disposition": f'attachment; filename="simulation.{format}"'}
    if format == "json":
        return Response(document, 200, headers, "application/json")
    text = io.StringIO(newline="")
    write_csv(msgspec.json.decode(document, type=Simulated).differences, text)
    return Response(text.getvalue(), 200, headers, "text/csv")


@router.delete(RUNS + "/{id}", operation_id="cancel_simulation")
async def cancel_simulation(request: Request, _: Admin, id: str) -> Response:
    """End a simulation and its processes; again is no mistake, one that is over is refused."""
    it = house(request)
    run = await records.find(it.pool, run_id(id))
    if run.state == "running" and await it.simulations.cancel(run.id):
        return Response(status_code=204)
    run = await records.find(it.pool, run.id)
    if run.state != "cancelled":
        raise ConflictError(f"the simulation is {run.state} already", remedy="Nothing is to do.")
    return Response(status_code=204)
