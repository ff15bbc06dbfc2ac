"""``POST /v1/leads/{id}/assign`` and ``/v1/people/{id}/leave``: give journeys to somebody else by hand.

Both are stored lead events like a move by hand; the owner is decided in the lane, where the rotation is
locked, and is a fact beside the fold (docs/decisions/0020).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from services.contracts.access import Principal
from services.contracts.answers import OnceRoute, attempt_of
from services.contracts.audit import Actor
from services.contracts.bodies import RequestBody
from services.contracts.events import (
    ASSIGNED_BY_HAND,
    DEAL_CHARACTERS_MAX,
    DEAL_KEY,
    MAIN,
    SOURCE,
    LeadEvent,
)
from services.contracts.yaml_source import nearest
from services.stage_service import funnel, people
from services.stage_service.api.access import House, allow, house
from services.stage_service.api.reads import playbook_named, required_lead_id
from services.stage_service.batch import HELD_KINDS, LEAD_IDENTITY
from services.stage_service.errors import ConflictError, InvalidRequestError, NotFoundError
from services.stage_service.lane import new_id
from services.stage_service.lead_facts import REASON_CHARACTERS_MAX
from services.stage_service.playbook import Playbook
from services.stage_service.reads import state_of
from services.stage_service.store import Record, unpack_record

AT_ONCE = 100
ROUNDS_MAX = 5

router = APIRouter(route_class=OnceRoute)


class Assignment(RequestBody):
    """Whom to give a journey to, and why."""

    role: str = Field(min_length=1, max_length=64, examples=["ae"])
    person: str | None = Field(
        None, max_length=64, description="id of the new owner; without it routing chooses another"
    )
    reason: str = Field(
        min_length=1, max_length=REASON_CHARACTERS_MAX, pattern=r"^[^\x00]*\S[^\x00]*$"
    )
    playbook: str | None = Field(None, description="needed only when there are several")
    key: str = Field(MAIN, max_length=DEAL_CHARACTERS_MAX, pattern=f"^{DEAL_KEY.pattern}$")
    actor: str | None = Field(
        None, min_length=1, max_length=128, pattern=r"^[^\x00]*$",
        description="on whose behalf; without it, the key's name",
    )  # fmt: skip


class Leaving(RequestBody):
    """To whom the journeys go."""

    to: str | None = Field(None, max_length=64, description="id; without it, by routing")
    reason: str = Field("they leave", min_length=1, max_length=200, pattern=r"^[^\x00]*$")


@router.post("/v1/leads/{id}/assign", tags=["leads"], operation_id="assign_lead")
async def assign(
    request: Request, id: str, wish: Assignment, who: Annotated[Principal, Depends(allow("move"))]
) -> Any:
    """Give a journey to another person for a role. The new owner is alerted."""
    it = house(request)
    lead_id = required_lead_id(id)
    playbook = playbook_named(it, wish.playbook)
    if wish.role not in playbook.roles:
        raise InvalidRequestError(
            f"the playbook {playbook.name!r} has no role {wish.role!r}", field="role",
            value=wish.role,
            remedy=nearest(wish.role, playbook.roles) or f"Roles: {', '.join(playbook.roles)}.",
        )  # fmt: skip
    await _require_person(it, wish.person, "person")
    record = await _record(it, lead_id)
    name = funnel.journey_name(playbook.name, wish.key)
    if record is None or record.lead is None or name not in record.lead.journeys:
        raise NotFoundError(
            f"there is no journey {name!r} of a lead {id!r}", field="id", value=id,
            remedy="See GET /v1/leads/{id} for its journeys.",
        )  # fmt: skip
    attempt = attempt_of(request)
    event_id = str(attempt.effect_id) if attempt else new_id()
    before = record.facts[name].owners.get(wish.role) if name in record.facts else None
    if before is not None and before.id == wish.person and attempt is None:
        raise ConflictError(
            f"{before.name} owns it already", field="person", value=wish.person,
            remedy="Nothing to do.",
        )  # fmt: skip
    data = {
        "role": wish.role, "person": wish.person, "reason": wish.reason.strip(),
        "playbook": playbook.name, "actor": wish.actor or who.name, "key_id": who.id,
        "without": [before.id] if before else [],
    }  # fmt: skip
    outcome = (
        await it.lane.submit([_event(event_id, lead_id, record.lead, wish.key, data, it.now())])
    )[0]
    after = await _record(it, outcome.lead_id or lead_id)
    owner = after.facts[name].owners.get(wish.role) if after and name in after.facts else None
    return {
        "event_id": event_id, "lead_id": outcome.lead_id, "playbook": playbook.name,
        "key": wish.key, "role": wish.role, "owner": msgspec.to_builtins(owner and {
            "id": owner.id, "name": owner.name}),
        "previous_owner": before and {"id": before.id, "name": before.name},
        "why": owner.why if owner else None,
    }  # fmt: skip


@router.post("/v1/people/{id}/leave", tags=["people"], operation_id="leave_person")
async def leave(
    request: Request, id: str, wish: Leaving, who: Annotated[Principal, Depends(allow("admin"))]
) -> Any:
    """Take somebody off the roster and give their open journeys to others. Again goes on where it stood."""
    it = house(request)
    if wish.to == id:
        raise InvalidRequestError(
            "nobody can take over from themselves", field="to", value=id, remedy="Name another."
        )
    await _require_person(it, wish.to, "to")
    await _take_off(it, id, Actor(who.name, who.id))
    given: Counter[str] = Counter()
    for _ in range(ROUNDS_MAX):
        held = await _held_by(it, id)
        for start in range(0, len(held), AT_ONCE):
            events = [
                _handed_on(row, id, wish, who, it.now()) for row in held[start : start + AT_ONCE]
            ]
            await it.lane.submit([e for e in events if e is not None])
        if not held:
            break
        given["journeys"] += len({(r["id"], r["role"]) for r in held})
    left = await _held_by(it, id)
    return {"id": id, "given_on": given["journeys"], "still_held": len(left), "to": wish.to}


@router.get("/v1/leads/{id}/routing", tags=["leads"], operation_id="get_routing")
async def get_routing(
    request: Request, id: str, _: Annotated[Principal, Depends(allow("read"))]
) -> Response:
    """Give the last routing decision of each journey and role: the person, why, and why not each other."""
    rows = await house(request).pool.fetch(
        """SELECT DISTINCT ON (t.playbook, j.key, d.key) t.playbook, j.key, d.key AS role,
             d.value AS decision, t.id::text AS transition_id, t.recorded_at
           FROM stage.transitions t JOIN stage.journeys j ON j.id = t.journey_id
             CROSS JOIN LATERAL jsonb_each(t.why -> 'routing') AS d
           WHERE j.lead_id = $1 ORDER BY t.playbook, j.key, d.key, t.sequence DESC""",
        required_lead_id(id),
    )
    items = [dict(r) | {"decision": msgspec.json.decode(r["decision"])} for r in rows]
    return Response(
        msgspec.json.encode({"items": items, "next_cursor": None}), media_type="application/json"
    )


async def _require_person(it: House, id: str | None, field: str) -> None:
    """Raise InvalidRequestError unless `id`, if there is one, is in the roster as stored now."""
    if id is None:
        return
    async with it.pool.acquire() as connection:
        known = {e.id for e in await people.entries(connection)}
    if id not in known:
        raise InvalidRequestError(
            f"there is no person {id!r} in the roster", field=field, value=id,
            remedy=nearest(id, known) or "See GET /v1/people.",
        )  # fmt: skip


async def _record(it: House, lead_id: str) -> Record | None:
    state = await state_of(it.engine, lead_id)
    return unpack_record(lead_id, state) if state is not None else None


def _event(
    event_id: str,
    lead_id: str,
    lead: funnel.Lead,
    key: str,
    data: dict[str, Any],
    now: datetime,
) -> LeadEvent:
    return LeadEvent(
        id=event_id, source=SOURCE, type=ASSIGNED_BY_HAND,
        # After everything known of the lead, also when a tool's clock runs ahead of ours.
        time=max(now, lead.last[0] + timedelta(microseconds=1)), recorded_at=now, subject=None,
        identities=((LEAD_IDENTITY, lead_id),), deal=key, data=data, envelope={},
    )  # fmt: skip


async def _take_off(it: House, id: str, by: Actor) -> None:
    """Take the person off the roster, unless they are off already; then wait for who may not know it.

    A batch under way may still have chosen them: it holds the rotation until its commit.
    """
    async with it.pool.acquire() as connection:
        async with connection.transaction():
            here = await connection.fetchrow("SELECT left_at FROM roster.people WHERE id = $1", id)
            if here is None or (here["left_at"] is None and it.roster_is_file):
                raise NotFoundError(
                    f"there is no person {id!r} who could leave", field="id", value=id,
                    remedy="With BATON_ROSTER=file take them out of the file first.",
                )  # fmt: skip
            if here["left_at"] is None:
                await people.remove(connection, id, by)
        async with connection.transaction():
            await connection.execute("LOCK TABLE stage.rotations IN EXCLUSIVE MODE")
    await it.lane.look_at_roster()


async def _held_by(it: House, id: str) -> Sequence[Mapping[str, Any]]:
    """Give the journeys, with role and the lead's state, that the person still owns in held stages."""
    stages = [(p.name, s.key) for p in it.playbooks.values() for s in _held_stages(p)]
    return await it.pool.fetch(
        """SELECT j.id::text, j.lead_id::text, j.playbook, j.key, o.key AS role, l.state
           FROM stage.journeys j JOIN stage.leads l ON l.id = j.lead_id
             CROSS JOIN LATERAL jsonb_each(j.owners) AS o
           WHERE o.value ->> 'id' = $1
             AND EXISTS (SELECT FROM unnest($2::text[], $3::text[]) AS k(playbook, stage)
               WHERE k.playbook = j.playbook AND k.stage = j.stage)
           ORDER BY j.entered_at, j.id, o.key""",
        id, [name for name, _ in stages], [stage for _, stage in stages],
    )  # fmt: skip


def _held_stages(playbook: Playbook) -> list[Any]:
    return [stage for stage in playbook.stages.values() if stage.kind in HELD_KINDS]


def _handed_on(
    row: Mapping[str, Any], id: str, wish: Leaving, who: Principal, now: datetime
) -> LeadEvent | None:
    lead = unpack_record(row["lead_id"], row["state"]).lead
    if lead is None:
        return None
    data = {
        "role": row["role"], "person": wish.to, "reason": wish.reason, "playbook": row["playbook"],
        "actor": who.name, "key_id": who.id, "without": [id],
    }  # fmt: skip
    return _event(new_id(), row["lead_id"], lead, row["key"], data, now)
