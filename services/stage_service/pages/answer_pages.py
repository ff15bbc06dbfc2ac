"""``/answer/{token}``: a handoff is accepted or rejected by the signed link that its alert brought.

Nobody logs in here: the link's signature says for whom it was made. Opening it changes nothing, since mail
scanners open links; the buttons do, once a link. With ``Accept: application/json`` a program gets JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from services.contracts.links import Grant
from services.contracts.problems import BatonError
from services.contracts.team import Team
from services.stage_service.api.access import STATUS, House, house, problem_response
from services.stage_service.api.handoffs import Answerer, answer_handoff, answer_told, known_handoff
from services.stage_service.clocks import LEADERSHIP
from services.stage_service.errors import (
    ConflictError,
    GoneError,
    InvalidRequestError,
    NotFoundError,
)
from services.stage_service.pages.rendering import form_of, page
from services.stage_service.playbook import Playbook
from services.stage_service.reads_handoffs import handoff_item

TOKEN_CHARACTERS_MAX = 1000
ACTOR_CHARACTERS_MAX = 128
HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
}

_TITLES: dict[type[BatonError], str] = {
    GoneError: "Not valid any more",
    ConflictError: "Not open any more",
    NotFoundError: "There is no such page",
}


class AnswerRoute(APIRoute):
    """A route whose errors are a plain page, or a problem for who asks for JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give the handler that answers errors so, with the headers of a secret address."""
        handler = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                response = await handler(request)
            except BatonError as error:
                response = _refused(request, error)
            response.headers.update(HEADERS)
            return response

        return answered


router = APIRouter(route_class=AnswerRoute, include_in_schema=False)


@router.get("/answer/{token}")
async def show(request: Request, token: str) -> Response:
    """Show the handoff and the buttons; changes nothing."""
    it = house(request)
    grant = _grant(it, token)
    row = await known_handoff(it, str(grant.about))
    if row["state"] == "offered":
        _require_theirs(it, row, grant.person)
    return _shown(request, row, grant)


@router.post("/answer/{token}")
async def answer(request: Request, token: str) -> Response:
    """Answer as the person the link was made for: ``answer`` accept or reject, ``reason``, ``actor``."""
    it = house(request)
    grant = _grant(it, token)
    form = await form_of(request)
    said = form.get("answer", "")
    if said not in ("accept", "reject"):
        raise InvalidRequestError(
            f"{said!r} is no answer", field="answer", value=said, remedy="Send accept or reject."
        )
    row = await known_handoff(it, str(grant.about))
    if row["state"] != "offered":
        raise ConflictError(answer_told(row), remedy="Nothing to do.")
    _require_theirs(it, row, grant.person)
    known = it.team.by_id.get(grant.person)
    actor = form.get("actor", "").strip()[:ACTOR_CHARACTERS_MAX]
    by = Answerer(
        actor or (known.name if known else grant.person),
        # Whoever says it for somebody else: it is that person who does not get it again.
        None if row["person_id"] else grant.person, f"link:{grant.person}",
    )  # fmt: skip
    reason = form.get("other", "").strip() or form.get("reason", "").strip()
    try:
        await answer_handoff(it, row["id"], said, by, reason, event_id=f"answer:{grant.id}")
    except InvalidRequestError as error:
        if _wants_json(request):
            raise
        return _shown(request, row, grant, 422, error)
    return _shown(request, await known_handoff(it, row["id"]), grant, done=said)


def _grant(it: House, token: str) -> Grant:
    if it.answer_links is None:
        raise NotFoundError("there is no such page", remedy="Set BATON_LINK_KEY.")
    grant = None
    if len(token) <= TOKEN_CHARACTERS_MAX:
        grant = it.answer_links.read(token, it.now())
    if grant is None:
        raise GoneError(
            "the link is wrong or has expired", remedy="Open the lead in Baton to answer."
        )
    return grant


def _require_theirs(it: House, row: Mapping[str, Any], person: str) -> None:
    """Raise ConflictError when a handoff is not, or no more, for `person` to answer."""
    if may_answer(it.team, it.playbooks.get(row["playbook"]), row, person):
        return
    raise ConflictError(
        f"it is offered to {row['person_name'] or 'somebody else'} now",
        remedy="Nothing to do.",
    )


def may_answer(team: Team, playbook: Playbook | None, row: Mapping[str, Any], person: str) -> bool:
    """Tell whether `person` may answer a handoff: its owner, or whom its ladder tells of it.

    That is their stand-in, the role's lead, sales leadership, and who else stands in the playbook. What is
    nobody's is everybody's who has the role.
    """
    owner, role = row["person_id"], row["role"]
    if person == owner:
        return True
    known = team.by_id.get(person)
    if known is None:
        return False
    absent = team.by_id.get(owner or "")
    if absent is not None and any(a.stand_in == person for a in absent.away):
        return True
    if role in known.leads or LEADERSHIP in known.roles:
        return True
    if owner is None and role in known.roles:
        return True
    plan = playbook.handoffs.get(role) if playbook is not None else None
    rungs = plan.clock.escalate if plan is not None else ()
    return any(rung.to == person or rung.to in known.roles for rung in rungs)


def _shown(
    request: Request,
    row: Mapping[str, Any],
    grant: Grant,
    status: int = 200,
    error: BatonError | None = None,
    done: str | None = None,
) -> Response:
    it = house(request)
    item = handoff_item(row, it.playbooks, it.team, it.now())
    if _wants_json(request):
        body = msgspec.json.encode(item)
        return Response(body, status, media_type="application/json")
    playbook = it.playbooks.get(row["playbook"])
    reader = it.team.by_id.get(grant.person)
    zone = ZoneInfo(reader.time_zone) if reader is not None else UTC
    return page(
        request, "answer.html", status, item=item, error=error, done=done, reader=grant.person,
        stage=playbook and playbook.stages.get(playbook.named(row["stage"])),
        due=row["due_at"] and f"{row['due_at'].astimezone(zone):%A, %d %B %Y, %H:%M (%Z)}",
        told=answer_told(row), title=None,
    )  # fmt: skip


def _wants_json(request: Request) -> bool:
    accepts = request.headers.get("accept", "")
    return "json" in accepts and "text/html" not in accepts


def _refused(request: Request, error: BatonError) -> Response:
    if _wants_json(request):
        return problem_response(error)
    title = _TITLES.get(type(error), "Not done")
    return page(
        request, "answer.html", STATUS.get(type(error), 500), title=title, error=error, item=None
    )
