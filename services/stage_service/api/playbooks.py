"""``/v1/playbooks``: read, check, compare, publish, schedule and roll back playbooks.

A version's text never changes, so its number is its strong ETag: ``"3.yaml"`` of the text itself, ``"3"`` of
the JSON while it is active and ``"3.old"`` from then on. Whoever publishes names with If-Match the version
that they looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from services.contracts.access import Principal
from services.contracts.answers import OnceRoute, attempt_of
from services.contracts.audit import Actor
from services.contracts.problems import ConflictError
from services.stage_service.api import publishing
from services.stage_service.api.access import allow, house
from services.stage_service.api.playbook_answers import (
    diff_shown,
    scheduled_shown,
    stages_shown,
    version_shown,
    waiting_shown,
    whole_shown,
)
from services.stage_service.api.playbook_bodies import (
    EITHER_FORM,
    YAML,
    YAML_BODY,
    Rollback,
    text_in,
    wants_yaml,
)
from services.stage_service.api.publishing import Done, Wish
from services.stage_service.api.reads import moment_in_utc
from services.stage_service.errors import InvalidRequestError, PlaybookUnchangedError
from services.stage_service.versions import Scheduled, Version

MESSAGE_CHARACTERS_MAX = 2000


class _Made(msgspec.Struct):
    name: str
    version: int


class PublishingRoute(OnceRoute):
    """A route that says which version its POST published, the first time and each time it is asked again."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give the route's way from a request to its response."""
        once = super().get_route_handler()
        if self.operation_id not in ("create_playbook", "roll_playbook_back"):
            return once

        async def told(request: Request) -> Response:
            response = await once(request)
            # 202 is what is scheduled: no version yet.
            if response.status_code in (200, 201):
                made = msgspec.json.decode(response.body, type=_Made)
                response.headers.update(_headers_of(made))
            return response

        return told


router = APIRouter(tags=["playbooks"], route_class=PublishingRoute)
Admin = Annotated[Principal, Depends(allow("admin"))]
Reader = Annotated[Principal, Depends(allow("read"))]
Name = Annotated[str, Path(max_length=64, examples=["sales"])]
Number = Annotated[int, Path(ge=1, le=2**31 - 1, examples=[1])]
IfMatch = Annotated[
    str | None, Header(description="the ETag that the active version must have; `*`: any")
]
IfNoneMatch = Annotated[str | None, Header(description="an ETag that is known already")]
Message = Annotated[
    str, Query(max_length=MESSAGE_CHARACTERS_MAX, description="why, for the list of versions")
]
ActivateAt = Annotated[datetime | None, Query(description="when it begins to hold; left out: now")]
WithImpact = Annotated[
    bool, Query(description="also count what it means for the leads of now; takes longer")
]
_encode = msgspec.json.Encoder().encode


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(body), status, headers, "application/json")


@router.get("/v1/playbooks", operation_id="list_playbooks")
async def list_playbooks(request: Request, _: Reader) -> Response:
    """List the active playbooks with their stages."""
    items = [
        {
            "name": p.name, "title": p.title, "version": p.version, "digest": p.digest,
            "path": p.path, "stages": stages_shown(p),
        }
        for p in house(request).playbooks.values()
    ]  # fmt: skip
    return _json({"items": items, "next_cursor": None})


@router.post("/v1/playbooks", operation_id="create_playbook", openapi_extra=YAML_BODY)
async def create_playbook(
    request: Request, who: Admin, message: Message = "", activate_at: ActivateAt = None
) -> Response:
    """Publish the first version of a new playbook."""
    it = house(request)
    playbook = await publishing.read_playbook(await text_in(request))
    active = await publishing.active_of(it, playbook.name)
    if active is not None:
        if attempt_of(request) is not None and active.digest == playbook.digest:
            # The attempt before published it and could not say so.
            version, _playbook = await publishing.version_of(it, active.name, active.version)
            return _published(await publishing.told_of(it, version))
        raise ConflictError(
            f"the playbook {playbook.name!r} is published already, as version {active.version}",
            field="name", value=playbook.name,
            remedy=f"PUT /v1/playbooks/{playbook.name} publishes the next version.",
        )  # fmt: skip
    at = moment_in_utc(activate_at, "activate_at")
    return _published(
        await publishing.publish(
            it, playbook, Wish(who.name, message, (0,), at, key_id=who.id, id=_id_for(request))
        )
    )


def _id_for(request: Request) -> str | None:
    """Give the id of what is scheduled by this request, the same for each attempt at it."""
    attempt = attempt_of(request)
    return str(attempt.effect_id) if attempt is not None else None


@router.get("/v1/playbooks/scheduled", operation_id="list_scheduled_playbooks")
async def list_scheduled(
    request: Request, _: Reader, name: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """List publications that are to happen, the next first, then what became of earlier ones."""
    it = house(request)
    found = await it.lane.shelf.scheduled(it.pool, name)
    return _json({"items": [scheduled_shown(s) for s in found], "next_cursor": None})


@router.delete("/v1/playbooks/scheduled/{id}", operation_id="cancel_scheduled_playbook")
async def cancel_scheduled(
    request: Request, who: Admin, id: Annotated[str, Path(max_length=64)]
) -> Response:
    """Call a publication off before it happens."""
    it = house(request)
    found = await it.lane.shelf.cancel(
        it.pool,
        publishing.scheduled_id(id),
        author=who.name,
        now=it.now(),
        by=Actor(who.name, who.id),
    )
    return _json(scheduled_shown(found))


@router.post(
    "/v1/playbooks/validate", operation_id="validate_playbook", openapi_extra=YAML_BODY
)  # fmt: skip
async def validate_playbook(request: Request, _: Reader) -> Response:
    """Say whether a text could be published, with every mistake and warning; publishes nothing."""
    return _json(await publishing.checked(house(request), await text_in(request)))


@router.post("/v1/playbooks/diff", operation_id="diff_playbook", openapi_extra=YAML_BODY)
async def diff_playbook(request: Request, _: Reader, impact: WithImpact = False) -> Response:
    """Say what publishing a text would change; publishes nothing."""
    it = house(request)
    playbook = await publishing.read_playbook(await text_in(request))
    counted = await publishing.impact_on(it, playbook) if impact else None
    active = it.playbooks.get(playbook.name)
    warnings = await publishing.foreseen(it, playbook)
    diff = await publishing.compared(it, playbook)
    return _json(diff_shown(diff, counted, playbook, active, warnings=warnings))


@router.get("/v1/playbooks/{name}", operation_id="get_playbook", responses=EITHER_FORM)
async def get_playbook(
    request: Request, _: Reader, name: Name, if_none_match: IfNoneMatch = None
) -> Response:
    """Give the active version of a playbook; as its text when `Accept` asks for `application/yaml`."""
    active = await publishing.known(house(request), name)
    return await _one(request, name, active.version, if_none_match)


async def _one(request: Request, name: str, number: int, if_none_match: str | None) -> Response:
    it = house(request)
    row, playbook = await publishing.version_of(it, name, number)
    as_yaml = wants_yaml(request)
    is_active = it.playbooks[name].version == number
    # The JSON says whether the version is active, so it is another one afterwards.
    tag = f"{number}.yaml" if as_yaml else str(number) if is_active else f"{number}.old"
    headers = {"etag": f'"{tag}"', "vary": "Accept"}
    if if_none_match is not None and publishing.names_tag(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    if as_yaml:
        return Response(row.source, 200, headers, YAML)
    return _json(whole_shown(row, playbook, active=is_active), headers=headers)


@router.put("/v1/playbooks/{name}", operation_id="publish_playbook", openapi_extra=YAML_BODY)
async def publish_playbook(
    request: Request,
    who: Admin,
    name: Name,
    message: Message = "",
    activate_at: ActivateAt = None,
    if_match: IfMatch = None,
) -> Response:
    """Publish the next version of a playbook, now or at a time."""
    it = house(request)
    expected = publishing.expected_in(if_match)
    await publishing.known(it, name)
    playbook = await publishing.read_playbook(await text_in(request), name)
    at = moment_in_utc(activate_at, "activate_at")
    return _published(
        await publishing.publish(it, playbook, Wish(who.name, message, expected, at, key_id=who.id))
    )


def _published(done: Done) -> Response:
    """Answer what was published; the ETag is that of the text, which is kept as it was sent."""
    made, warnings = done.made, {"warnings": waiting_shown(done.warnings)}
    if isinstance(made, Scheduled):
        return _json(scheduled_shown(made) | warnings, 202)
    status = 201 if made.version == 1 else 200
    return _json(version_shown(made, active=True) | warnings, status, _headers_of(made))


def _headers_of(made: Version | _Made) -> dict[str, str]:
    where = f"/v1/playbooks/{made.name}/versions/{made.version}"
    return {"etag": f'"{made.version}.yaml"', "location": where}


@router.post("/v1/playbooks/{name}/rollback", operation_id="roll_playbook_back")
async def roll_back(
    request: Request, who: Admin, name: Name, wish: Rollback, if_match: IfMatch = None
) -> Response:
    """Publish the text of an older version again, as a new version."""
    it = house(request)
    at = moment_in_utc(wish.activate_at, "activate_at")
    expected, id = publishing.expected_in(if_match), _id_for(request)
    asked = Wish(who.name, wish.message, expected, at, wish.migrate, who.id, id)
    try:
        return _published(await publishing.roll_back(it, name, wish.version, asked))
    except (PlaybookUnchangedError, publishing.PlaybookChangedError):
        # The attempt before may have published it, and could not say so.
        done = await _restored(request, name, wish.version)
        if attempt_of(request) is None or done is None:
            raise
        return _published(await publishing.told_of(it, done))


async def _restored(request: Request, name: str, number: int) -> Version | None:
    it = house(request)
    active = await publishing.known(it, name)
    row, _playbook = await publishing.version_of(it, name, active.version)
    return row if row.restores == number else None


@router.get("/v1/playbooks/{name}/versions", operation_id="list_playbook_versions")
async def list_versions(request: Request, _: Reader, name: Name) -> Response:
    """List the versions of a playbook, the newest first: who published each, when, why, what changed.

    With what waits to be published, and what was refused since the newest.
    """
    it = house(request)
    active = await publishing.known(it, name)
    found = await it.lane.shelf.versions(it.pool, name)
    items = [version_shown(v, active=v.version == active.version) for v in found]
    planned = [scheduled_shown(s) for s in await it.lane.shelf.still_open(it.pool, name)]
    return _json({"items": items, "next_cursor": None, "scheduled": planned})


@router.get(
    "/v1/playbooks/{name}/versions/{version}", operation_id="get_playbook_version",
    responses=EITHER_FORM,
)  # fmt: skip
async def get_version(
    request: Request, _: Reader, name: Name, version: Number, if_none_match: IfNoneMatch = None
) -> Response:
    """Give one version of a playbook; as its text when `Accept` asks for `application/yaml`."""
    return await _one(request, name, version, if_none_match)


@router.get(
    "/v1/playbooks/{name}/versions/{version}/diff", operation_id="diff_playbook_versions"
)  # fmt: skip
async def diff_versions(
    request: Request,
    _: Reader,
    name: Name,
    version: Number,
    to: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="left out: the active version")
    ] = None,
    impact: WithImpact = False,
) -> Response:
    """Say what changed from one version of a playbook to another.

    From the active one to an older one: what rolling back to it would do.
    """
    it = house(request)
    active = await publishing.known(it, name)
    if impact and version != active.version:
        raise InvalidRequestError(
            f"what it means now is counted from the active version, {active.version}, not from {version}",
            field="impact", value=impact, remedy=f"Ask for it at versions/{active.version}/diff.",
        )  # fmt: skip
    if version == active.version and to is not None:
        return _json(await publishing.way_back(it, name, to, impact=impact))
    _row, before = await publishing.version_of(it, name, version)
    _row, after = await publishing.version_of(it, name, to or active.version)
    return _json(diff_shown(await publishing.differing(before, after), None, after, before))
