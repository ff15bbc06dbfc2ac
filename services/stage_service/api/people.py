"""``/v1/people``: the roster over HTTP, with versions and CSV import; the audit notes who changed what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, cast

import msgspec
from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response

from services.contracts.access import Principal
from services.contracts.answers import OnceRoute
from services.contracts.audit import Actor
from services.contracts.team import read_person, team_of
from services.contracts.yaml_source import SourceError
from services.stage_service import people
from services.stage_service.api.access import House, allow, house
from services.stage_service.errors import ConflictError, InvalidRequestError, TooLargeError
from services.stage_service.people_csv import NO_COLUMNS, read_csv
from services.stage_service.workload import state_of, workload

PROBLEMS_MAX = 100
CSV_BYTES_MAX = 4 * 1024 * 1024

router = APIRouter(route_class=OnceRoute)
Admin = Annotated[Principal, Depends(allow("admin"))]
_encode = msgspec.json.Encoder().encode


def _json(body: Any, status: int = 200, etag: int | None = None) -> Response:
    headers = {} if etag is None else {"etag": f'"{etag}"'}
    return Response(_encode(body), status, headers, "application/json")


@router.get("/v1/people", tags=["people"], operation_id="list_people")
async def list_people(
    request: Request, _: Admin, role: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """List the roster, with what each person holds, whether they are there, and whose turn is next."""
    async with house(request).pool.acquire() as connection:
        found = await people.entries(connection)
        load = await workload(connection)
    persons = {e.id: read_person(e.document) for e in found}
    team = team_of(tuple(persons.values()))
    now = datetime.now(UTC)
    items = [
        {**e.document, "version": e.version, "load": state_of(persons[e.id], team, load, now)}
        for e in found
        if role is None or role in persons[e.id].roles
    ]
    return _json({"items": items, "next_cursor": None})


@router.get("/v1/people/{id}", tags=["people"], operation_id="get_person")
async def get_person(request: Request, id: str, _: Admin) -> Response:
    """Give one person as in the roster; ``ETag`` is the version."""
    async with house(request).pool.acquire() as connection:
        found = await people.entry(connection, id)
    return _json(found.document, etag=found.version)


@router.put(
    "/v1/people/{id}", tags=["people"], operation_id="put_person",
    responses={201: {"description": "The person is new"}},
)  # fmt: skip
async def put_person(
    request: Request,
    id: str,
    who: Admin,
    document: Annotated[
        dict[str, Any], Body(description="as in team.schema.json; `id` may be left out")
    ],
    if_match: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Add a person or replace what is known of them."""
    it = _writable(request)
    if document.setdefault("id", id) != id:
        raise InvalidRequestError(
            "the id in the body is not the one in the address", field="id",
            value=document["id"], remedy="Leave it out of the body.",
        )  # fmt: skip
    try:
        written, is_new = await people.put(
            it.pool,
            document,
            _actor(who),
            version=version_of(if_match),
            is_new=if_none_match == "*",
        )
    except SourceError as error:
        raise _invalid(error) from None
    await it.lane.look_at_roster()
    return _json(written.document, 201 if is_new else 200, written.version)


@router.delete("/v1/people/{id}", tags=["people"], operation_id="delete_person", status_code=204)
async def delete_person(
    request: Request, id: str, who: Admin, if_match: Annotated[str | None, Header()] = None
) -> Response:
    """Take somebody off the roster who holds nothing; who holds journeys leaves (``.../leave``)."""
    it = _writable(request)
    async with it.pool.acquire() as connection, connection.transaction():
        await people.remove(connection, id, _actor(who), version=version_of(if_match))
        # A batch under way may have chosen them: it holds the rotation until its commit.
        await connection.execute("LOCK TABLE stage.rotations IN EXCLUSIVE MODE")
        held = await connection.fetchval(
            "SELECT count(*) FROM stage.journeys WHERE holder = $1", id
        )
        if held:
            raise ConflictError(
                f"{id!r} holds {held} open journeys", field="id", value=id,
                remedy=f"POST /v1/people/{id}/leave gives them to others.",
            )  # fmt: skip
    await it.lane.look_at_roster()
    return Response(status_code=204)


@router.post(
    "/v1/people/import", tags=["people"], operation_id="import_people",
    openapi_extra={"requestBody": {"required": True, "content": {"text/csv": {
        "schema": {"type": "string"}}}}},
)  # fmt: skip
async def import_people(
    request: Request, who: Admin, dry_run: Annotated[bool, Query()] = False
) -> Response:
    """Add and change people from CSV, all or none; the answer names them. People not named stay."""
    it = _writable(request)
    body = await request.body()
    if len(body) > CSV_BYTES_MAX:
        raise TooLargeError("the file is over 4 MiB", field="body", remedy="Send it in parts.")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError(
            "the file is not UTF-8", field="body", remedy="Save it as UTF-8."
        ) from None
    try:
        done = await people.import_people(
            it.pool, read_csv(text), _actor(who), keep=NO_COLUMNS, dry_run=dry_run
        )
    except SourceError as error:
        raise _invalid(error) from None
    await it.lane.look_at_roster()
    return _json({"dry_run": dry_run, **cast("dict[str, Any]", msgspec.to_builtins(done))})


def _writable(request: Request) -> House:
    it = house(request)
    if it.roster_is_file:
        raise ConflictError(
            "the roster is read from its file (BATON_ROSTER=file)",
            remedy="Change the file, or set BATON_ROSTER=database.",
        )
    return it


def _actor(who: Principal) -> Actor:
    return Actor(who.name, who.id)


def version_of(if_match: str | None) -> int | None:
    """Give the version that an ``If-Match`` header asks for; None: any, -1: none that there is."""
    if if_match is None or if_match == "*":
        return None
    text = if_match.removeprefix("W/").strip('"')
    # What is no version of ours cannot be the present one.
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1


def _invalid(error: SourceError) -> InvalidRequestError:
    first = error.problems[0]
    listed = [
        {"line": p.line, "message": p.message, "remedy": p.remedy}
        for p in error.problems[:PROBLEMS_MAX]
    ]
    return InvalidRequestError(
        first.message, field="body", remedy=first.remedy, extra={"problems": listed}
    )
