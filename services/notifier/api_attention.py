"""The notifier's routes for what people may set aside, and for trying channels and templates."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import uuid_utils.compat
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response
from pydantic import AwareDatetime, Field

from services.contracts.access import Principal
from services.contracts.answers import OnceRoute
from services.contracts.audit import Actor, Note, record
from services.contracts.bodies import RequestBody
from services.contracts.events import rfc3339
from services.contracts.team import Person
from services.notifier import attention, breakers, reads
from services.notifier.access import House, allow, house
from services.notifier.errors import ConflictError, InvalidRequestError, NotFoundError
from services.notifier.letters import Letter
from services.notifier.redaction import label

SNOOZE_MAX = timedelta(days=30)
MUTES_MAX = 1000

Reader = Annotated[Principal, Depends(allow("read"))]
Mover = Annotated[Principal, Depends(allow("move"))]
PersonId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]

router = APIRouter(route_class=OnceRoute)


class Snooze(RequestBody):
    """Until when an alert shall not come again."""

    until: AwareDatetime


class Mute(RequestBody):
    """Whom a lead shall not be told of, and until when (left out: for ever)."""

    person: PersonId
    lead_id: UUID
    until: AwareDatetime | None = None


class TrialWish(RequestBody):
    """To whom a message is sent to try channels; `channel` left out: all but the inbox."""

    person: PersonId
    channel: str | None = Field(None, max_length=128)


def actor(principal: Principal) -> Actor:
    """Give who does something, for the audit."""
    return Actor(principal.name, principal.id)


def _future(parts: House, field: str, moment: datetime, most: timedelta | None = None) -> datetime:
    now = parts.now()
    if moment <= now or (most is not None and moment > now + most):
        within = f"within {most.days} days" if most is not None else "in the future"
        raise InvalidRequestError(
            f"{field} is not {within}", field=field, value=moment.isoformat(),
            remedy=f"Give a time {within}, with its offset.",
        )  # fmt: skip
    return moment


def _person(parts: House, id: str) -> Person:
    person = parts.roster.team().by_id.get(id)
    if person is None:
        raise NotFoundError(
            "nobody of that id is in the roster", field="person", value=id,
            remedy="See the people of the roster file (BATON_TEAM_FILE).",
        )  # fmt: skip
    return person


@router.post("/v1/alerts/{id}/snooze")
async def snooze(request: Request, principal: Mover, id: UUID, wish: Snooze) -> dict[str, Any]:
    """Let the alert come (again) at `until`; its escalation waits too. 409 when it is acknowledged."""
    parts = house(request)
    until = _future(parts, "until", wish.until, SNOOZE_MAX)
    if await reads.get_alert(parts.pool, id) is None:
        raise NotFoundError(
            "there is no such alert", field="id", value=str(id), remedy="List them at /v1/alerts."
        )
    now = parts.now()
    if not await attention.snooze(parts.pool, id, until, actor(principal), now, parts.tries):
        raise ConflictError(
            "the alert is acknowledged: it does not come again", field="status",
            value="acknowledged", remedy="Nothing is to be done.",
        )  # fmt: skip
    alert = await reads.get_alert(parts.pool, id)
    assert alert is not None  # noqa: S101  alerts are not deleted
    return alert


@router.get("/v1/mutes")
async def list_mutes(
    request: Request,
    _: Reader,
    person: Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")] = None,
) -> dict[str, Any]:
    """List whom which leads are not told to."""
    parts = house(request)
    items = await attention.list_mutes(parts.pool, person, parts.now(), MUTES_MAX)
    return {"items": items, "next_cursor": None}


@router.post("/v1/mutes", status_code=201)
async def mute(request: Request, principal: Mover, wish: Mute) -> dict[str, Any]:
    """Tell the person nothing of the lead: its alerts are recorded, and suppressed with the reason."""
    parts = house(request)
    _person(parts, wish.person)
    until = _future(parts, "until", wish.until) if wish.until is not None else None
    now = parts.now()
    await attention.mute(parts.pool, wish.person, wish.lead_id, until, actor(principal), now)
    return {
        "person": wish.person, "lead_id": str(wish.lead_id),
        "until": rfc3339(until) if until is not None else None,
        "created_at": rfc3339(now), "created_by": principal.name,
    }  # fmt: skip


@router.delete("/v1/mutes/{person}/{lead_id}", status_code=204)
async def unmute(
    request: Request,
    principal: Mover,
    person: Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")],
    lead_id: UUID,
) -> Response:
    """End a mute; what was suppressed meanwhile is not sent."""
    if not await attention.unmute(house(request).pool, person, lead_id, actor(principal)):
        raise NotFoundError(
            "there is no such mute", field="lead_id", value=str(lead_id),
            remedy="List them at /v1/mutes.",
        )  # fmt: skip
    return Response(status_code=204)


@router.get("/v1/digests/{id}")
async def get_digest(request: Request, _: Reader, id: UUID) -> dict[str, Any]:
    """Give a message that told several alerts: its text, why, and its alerts."""
    digest = await reads.get_digest(house(request).pool, id)
    if digest is None:
        raise NotFoundError(
            "there is no such digest", field="id", value=str(id),
            remedy="An alert's deliveries name theirs.",
        )  # fmt: skip
    return digest


@router.get("/v1/channels")
async def list_channels(request: Request, _: Reader) -> dict[str, Any]:
    """List the channels that fail or rest now, and the templates that are broken."""
    parts = house(request)
    items = [
        {
            "channel": r["label"], "failures": r["failures"], "reason": r["reason"],
            "rests_until": rfc3339(r["rests_until"]) if r["rests_until"] is not None else None,
            "changed_at": rfc3339(r["changed_at"]),
        }
        for r in await breakers.states(parts.pool)
    ]  # fmt: skip
    problems = [
        {"file": p.file, "line": p.line, "message": p.message, "remedy": p.remedy}
        for p in parts.templates.problems
    ]
    return {"items": items, "next_cursor": None, "broken_templates": problems}


@router.post("/v1/channels/test")
async def try_channels(request: Request, principal: Mover, wish: TrialWish) -> dict[str, Any]:
    """Send a message now by the person's channels, whatever the hour; gives how each went."""
    parts = house(request)
    person = _person(parts, wish.person)
    chosen = [c for c in dict.fromkeys(label(c) for c in person.all_channels) if c != "inbox"]
    if wish.channel is not None:
        chosen = [c for c in chosen if wish.channel in (c, c.partition(":")[0])]
    if not chosen:
        raise NotFoundError(
            "the person has no such channel", field="channel", value=wish.channel,
            remedy="Leave it out to try all; the inbox needs no trial.",
        )  # fmt: skip
    # Before anything goes out: what is sent cannot be taken back.
    sent = Note("tested", "channel", person.id, None, {"channels": chosen})
    await record(parts.pool, actor(principal), sent)
    results: list[dict[str, Any]] = []
    id = str(uuid_utils.compat.uuid7())
    text = f"A test of your channels, {person.name}. If you read this, it works.\n"
    for channel in chosen:
        began = time.monotonic()
        outcome = await parts.channels.send(channel, person, Letter(id, "Baton: a test", text))
        results.append(
            {
                "channel": channel, "result": outcome.result, "reason": outcome.reason,
                "ambiguous": outcome.ambiguous,
                "latency_ms": round((time.monotonic() - began) * 1000),
            }
        )  # fmt: skip
    return {"items": results, "next_cursor": None}
