"""``/v1/handoffs``: what waits for an answer, the answers, and the numbers.

An answer by hand is a stored lead event like a move by hand: the fold decides whether it met the offer, so
what is told here is what the row says after it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Body, Depends, Query, Request, Response
from pydantic import Field

from services.contracts.access import Principal
from services.contracts.answers import OnceRoute, attempt_of
from services.contracts.bodies import RequestBody
from services.contracts.events import SOURCE, LeadEvent, rfc3339
from services.contracts.handoffs import HANDOFF_ACCEPTED, HANDOFF_REJECTED
from services.contracts.yaml_source import nearest
from services.stage_service import handoff_numbers, reads, reads_handoffs
from services.stage_service.api.access import House, allow, house
from services.stage_service.api.moments import SinceQuery, UntilQuery, moment_in_utc
from services.stage_service.api.reads import playbook_named, required_lead_id
from services.stage_service.errors import ConflictError, InvalidRequestError, NotFoundError
from services.stage_service.identities import LEAD_IDENTITY
from services.stage_service.lane import new_id
from services.stage_service.lead_facts import REASON_CHARACTERS_MAX
from services.stage_service.reads_handoffs import Place, Wish
from services.stage_service.store import unpack_state

STATES = {"accept": "accepted", "reject": "rejected"}
TYPES = {"accept": HANDOFF_ACCEPTED, "reject": HANDOFF_REJECTED}
_PLAIN = r"^[^\x00]*$"

Reader = Annotated[Principal, Depends(allow("read"))]
Mover = Annotated[Principal, Depends(allow("move"))]
Key = Annotated[str | None, Query(max_length=128, pattern=_PLAIN)]

router = APIRouter(route_class=OnceRoute)


class Accepting(RequestBody):
    """Who accepts, when it is not the handoff's person."""

    person: str | None = Field(
        None, max_length=64, description="id of who answers; without it, whom it was offered to"
    )
    actor: str | None = Field(
        None, min_length=1, max_length=128, pattern=_PLAIN,
        description="on whose behalf; without it, the key's name",
    )  # fmt: skip


class Rejecting(Accepting):
    """Why it is rejected, and who does."""

    reason: str = Field(
        min_length=1, max_length=REASON_CHARACTERS_MAX, pattern=r"^[^\x00]*\S[^\x00]*$"
    )


@dataclass(frozen=True)
class Answerer:
    """Who answers: `actor` is written down; `person` said it (None: the handoff's); `key_id` the way in."""

    actor: str
    person: str | None = None
    key_id: str | None = None


@router.get("/v1/handoffs", tags=["handoffs"], operation_id="list_handoffs")
async def list_handoffs(
    request: Request,
    _: Reader,
    state: Literal["offered", "accepted", "rejected", "withdrawn"] | None = None,
    overdue: bool | None = None,
    role: Key = None,
    person: Key = None,
    lead_id: str | None = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=reads_handoffs.PAGE_MAX)] = 50,
) -> Response:
    """List handoffs, newest first; with `state=offered` the longest waiting first. From, to: when offered."""
    it = house(request)
    wish = Wish(
        state, overdue, role, person, required_lead_id(lead_id) if lead_id is not None else None,
        moment_in_utc(since, "from"), moment_in_utc(until, "to"),
    )  # fmt: skip
    now = it.now()
    after = place_of(cursor) if cursor is not None else None
    rows, more = await reads_handoffs.list_handoffs(it.engine, wish, now, after=after, limit=limit)
    items = [reads_handoffs.handoff_item(r, it.playbooks, it.team, now) for r in rows]
    return _json({"items": items, "next_cursor": cursor_of(more)})


@router.get("/v1/handoffs/numbers", tags=["handoffs"], operation_id="get_handoff_numbers")
async def get_handoff_numbers(
    request: Request,
    _: Reader,
    playbook: str | None = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
    by: handoff_numbers.By = "role",
) -> Response:
    """Give deadlines met and missed, times to accept, speed to lead, rejections, load; see `definition`."""
    it = house(request)
    return _json(await handoff_numbers.handoff_numbers(
        it.engine, playbook_named(it, playbook), it.team, it.now(), by=by,
        since=moment_in_utc(since, "from"), until=moment_in_utc(until, "to"),
    ))  # fmt: skip


@router.get("/v1/handoffs/{id}", tags=["handoffs"], operation_id="get_handoff")
async def get_handoff(request: Request, id: str, _: Reader) -> Response:
    """Give one handoff."""
    it = house(request)
    row = await known_handoff(it, id)
    return _json(reads_handoffs.handoff_item(row, it.playbooks, it.team, it.now()))


@router.post("/v1/handoffs/{id}/accept", tags=["handoffs"], operation_id="accept_handoff")
async def accept(
    request: Request, id: str, who: Mover, wish: Annotated[Accepting | None, Body()] = None
) -> Response:
    """Accept a handoff that waits."""
    return await _answer(request, id, "accept", who, wish or Accepting(person=None, actor=None))


@router.post("/v1/handoffs/{id}/reject", tags=["handoffs"], operation_id="reject_handoff")
async def reject(request: Request, id: str, who: Mover, wish: Rejecting) -> Response:
    """Reject a handoff that waits. It goes where the playbook says, or is offered to somebody else."""
    return await _answer(request, id, "reject", who, wish, wish.reason)


async def _answer(
    request: Request,
    id: str,
    said: str,
    who: Principal,
    wish: Accepting,
    reason: str | None = None,
) -> Response:
    it = house(request)
    if wish.person is not None and wish.person not in it.team.by_id:
        raise InvalidRequestError(
            f"there is no person {wish.person!r} in the roster", field="person", value=wish.person,
            remedy=nearest(wish.person, it.team.by_id) or "See GET /v1/people.",
        )  # fmt: skip
    attempt = attempt_of(request)
    by = Answerer(wish.actor or who.name, wish.person, who.id)
    item = await answer_handoff(
        it, id, said, by, reason, event_id=str(attempt.effect_id) if attempt else None
    )
    return _json(item)


async def known_handoff(it: House, id: str) -> Mapping[str, Any]:
    """Give the row of the handoff `id`. Raises NotFoundError."""
    try:
        row = await reads_handoffs.get_handoff(it.engine, str(uuid.UUID(id)))
    except ValueError:
        row = None
    if row is None:
        raise NotFoundError(
            f"there is no handoff {id!r}", field="id", value=id, remedy="See GET /v1/handoffs."
        )
    return row


async def answer_handoff(
    it: House,
    id: str,
    said: str,
    by: Answerer,
    reason: str | None = None,
    *,
    event_id: str | None = None,
) -> dict[str, Any]:
    """Record the answer `said` (``accept``, ``reject``) to a handoff, and give it as it is after that.

    With an `event_id` that is recorded already nothing more happens: the answer is that of the first time.
    Raises NotFoundError; InvalidRequestError for a rejection without a reason; ConflictError when it was
    answered or withdrawn, before or meanwhile.
    """
    row = await known_handoff(it, id)
    reason = (reason or "").strip() or None
    if said == "reject" and reason is None:
        raise InvalidRequestError(
            "a rejection needs a reason", field="reason", remedy="Say why: it goes on to the next."
        )
    event_id = event_id or new_id()
    at = await reads.time_of_event(it.engine, SOURCE, event_id)
    if at is None:
        if row["state"] != "offered":
            raise await _not_open(it, row)
        event = await _event(it, row, said, by, reason, event_id)
        await it.lane.submit([event])
        row = await known_handoff(it, id)
        at = await reads.time_of_event(it.engine, SOURCE, event_id)
    if row["state"] != STATES[said] or row["answered_at"] != at:
        raise await _not_open(it, row)  # somebody else was faster
    return reads_handoffs.handoff_item(row, it.playbooks, it.team, it.now())


async def _event(
    it: House, row: Mapping[str, Any], said: str, by: Answerer, reason: str | None, event_id: str
) -> LeadEvent:
    state = await reads.state_of(it.engine, row["lead_id"])
    lead = unpack_state(state) if state is not None else None
    if lead is None:
        raise await _not_open(it, row)
    now = it.now()
    data = {
        "playbook": row["playbook"], "role": row["role"], "offered_at": rfc3339(row["offered_at"]),
        "round": row["round"], "person": by.person or row["person_id"], "reason": reason,
        "actor": by.actor, "key_id": by.key_id,
    }  # fmt: skip
    return LeadEvent(
        id=event_id, source=SOURCE, type=TYPES[said],
        # After everything known of the lead, also when a tool's clock runs ahead of ours.
        time=max(now, lead.last[0] + timedelta(microseconds=1)), recorded_at=now, subject=None,
        identities=((LEAD_IDENTITY, row["lead_id"]),), deal=row["key"],
        data={name: value for name, value in data.items() if value is not None}, envelope={},
    )  # fmt: skip


async def _not_open(it: House, row: Mapping[str, Any]) -> ConflictError:
    """Say why a handoff can be answered no more; where it waits now, if it does."""
    extra = {"state": row["state"], "answered_by": row["answered_by"]}
    again = await reads_handoffs.open_handoff_of(it.engine, row["lead_id"], row["journey_id"])
    remedy = "Nothing to do."
    if again is not None and again != row["id"]:
        extra["handoff_id"] = again
        remedy = "It was offered again: see handoff_id."
    return ConflictError(answer_told(row), field="id", value=row["id"], remedy=remedy, extra=extra)


def answer_told(row: Mapping[str, Any]) -> str:
    """Say in a sentence what became of a handoff (a row, or its item)."""
    at = f" on {row['answered_at']:%Y-%m-%d at %H:%M} UTC" if row["answered_at"] else ""
    who, why = row["answered_by"], f": {row['reason']}" if row["reason"] else ""
    match row["state"]:
        case "accepted" if row["implied"]:
            return f"it counts as accepted, by what was done{at}"
        case "accepted":
            return f"{who or 'somebody'} accepted it{at}"
        case "rejected":
            return f"{who or 'somebody'} rejected it{at}{why}"
        case "withdrawn":
            return f"it was withdrawn{at}{why}"
        case _:
            return "it still waits, but this answer did not reach it"


def cursor_of(place: Place | None) -> str | None:
    """Give a place in the list as the cursor that `place_of` reads."""
    return f"{rfc3339(place.offered_at)}~{place.id}" if place is not None else None


def place_of(cursor: str) -> Place:
    """Read a cursor. Raises InvalidRequestError."""
    at, _, id = cursor.partition("~")
    try:
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None:
            raise ValueError(cursor)
        return Place(moment.astimezone(UTC), str(uuid.UUID(id)))
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            "not a cursor of this list", field="cursor", value=cursor,
            remedy="Take next_cursor as it was given.",
        ) from None  # fmt: skip


def _json(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
