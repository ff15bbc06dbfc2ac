"""``POST /v1/leads/{id}/transitions``: move a journey by hand. It is a stored lead event like any other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request
from pydantic import Field

from services.contracts.access import Principal
from services.contracts.answers import OnceRoute, attempt_of
from services.contracts.bodies import RequestBody, Truth
from services.contracts.events import (
    DEAL_CHARACTERS_MAX,
    DEAL_KEY,
    MAIN,
    MOVED_BY_HAND,
    SOURCE,
    LeadEvent,
)
from services.contracts.yaml_source import nearest
from services.stage_service import funnel
from services.stage_service.api.access import House, allow, house
from services.stage_service.api.reads import living_lead, playbook_named
from services.stage_service.batch import Brief, Outcome
from services.stage_service.errors import (
    ConflictError,
    GateUnmetError,
    InvalidRequestError,
    NotFoundError,
)
from services.stage_service.identities import LEAD_IDENTITY
from services.stage_service.lane import new_id
from services.stage_service.lead_facts import REASON_CHARACTERS_MAX
from services.stage_service.playbook import Playbook
from services.stage_service.reads import is_recorded, state_of, transitions_of_event
from services.stage_service.renaming import MIGRATE
from services.stage_service.store import unpack_state

router = APIRouter(route_class=OnceRoute)


class MoveByHand(RequestBody):
    """Where to, and why."""

    to: str = Field(
        min_length=1, max_length=64, description="key of the stage", examples=["nurture"]
    )
    reason: str = Field(
        min_length=1, max_length=REASON_CHARACTERS_MAX, pattern=r"^[^\x00]*$",
        description="shown in the timeline and in the explanation", examples=["no budget this year"],
    )  # fmt: skip
    playbook: str | None = Field(None, description="needed only when there are several")
    key: str = Field(
        MAIN,
        max_length=DEAL_CHARACTERS_MAX,
        pattern=f"^{DEAL_KEY.pattern}$",
        description="key of the journey (the deal)",
    )
    force: Truth = Field(default=False, description="move although the stage's gate is not met")


@router.post("/v1/leads/{id}/transitions", tags=["leads"], operation_id="move_lead")
async def move(
    request: Request, id: str, wish: MoveByHand, who: Annotated[Principal, Depends(allow("move"))]
) -> Any:
    """Move a journey to another stage by hand, backwards too."""
    attempt = attempt_of(request)
    outcome = await move_by_hand(
        house(request), who, id, wish.to, wish.reason, wish.playbook, wish.key, force=wish.force,
        event_id=str(attempt.effect_id) if attempt else None,
    )  # fmt: skip
    return msgspec.to_builtins(outcome)


async def move_by_hand(
    house: House,
    who: Principal,
    lead_id: str,
    to: str,
    reason: str,
    playbook: str | None = None,
    key: str = MAIN,
    *,
    force: bool = False,
    event_id: str | None = None,
) -> Outcome:
    """Record that `who` moves a lead's journey to stage `to`, and give what happened.

    With an `event_id` that is recorded already nothing more happens: the answer is that of the first time.
    Raises NotFoundError for an unknown lead, InvalidRequestError for an unknown stage, ConflictError when
    the journey is in that stage already or has not begun, GateUnmetError when the gate is not met and
    the move is not forced.
    """
    chosen = playbook_named(house, playbook)
    if to not in chosen.stages:
        raise InvalidRequestError(
            f"the playbook {chosen.name!r} has no stage {to!r}", field="to", value=to,
            remedy=nearest(to, chosen.stages) or f"Stages: {', '.join(chosen.stages)}.",
        )  # fmt: skip
    if not reason.strip():
        raise InvalidRequestError(
            "a move by hand needs a reason", field="reason", remedy="Say why."
        )
    lead_id = await living_lead(house, lead_id)
    state = await state_of(house.engine, lead_id)
    lead = unpack_state(state) if state is not None else None
    if lead is None:
        raise NotFoundError(f"there is no lead {lead_id!r}", field="id", value=lead_id)
    if event_id is not None and await is_recorded(house.engine, SOURCE, event_id):
        return await _as_recorded(house, lead_id, lead, event_id, chosen, key, to)
    now = datetime.now(UTC)
    event = LeadEvent(
        id=event_id or new_id(), source=SOURCE, type=MOVED_BY_HAND,
        # After everything known of the lead, also when a tool's clock runs ahead of ours.
        time=max(now, lead.last[0] + timedelta(microseconds=1)),
        recorded_at=now, subject=None, identities=((LEAD_IDENTITY, lead_id),), deal=key,
        data={"to": to, "reason": reason.strip(), "playbook": chosen.name, "actor": who.name,
              "key_id": who.id, "force": force},
        envelope={},
    )  # fmt: skip
    _refuse_what_would_not_move(chosen, lead, event, to)
    outcome = (await house.lane.submit([event]))[0]
    if outcome.status == "duplicate":  # recorded by another attempt at the same request, meanwhile
        return await _as_recorded(house, lead_id, lead, event.id, chosen, key, to)
    if outcome.held:
        raise _held(outcome.held[0].missing)
    return outcome


def _not_entered(playbook: Playbook, key: str) -> ConflictError:
    enters = playbook.enters
    assert enters is not None, "any other begins with the move"  # noqa: S101
    return ConflictError(
        f"the lead has no journey {key!r} in {playbook.name!r}: one begins when its journey in "
        f"{enters.playbook!r} comes to the stage {enters.stage!r}",
        field="playbook", value=playbook.name,
        remedy=f"Move its journey in {enters.playbook!r} there first.",
    )  # fmt: skip


def _held(missing: list[str]) -> GateUnmetError:
    return GateUnmetError(
        "the stage's gate was not met when the move was recorded; it waits",
        extra={"missing": missing},
    )


async def _as_recorded(
    house: House,
    lead_id: str,
    lead: funnel.Lead,
    event_id: str,
    playbook: Playbook,
    key: str,
    to: str,
) -> Outcome:
    """Give the outcome of a recorded move again, as it was first told."""
    briefs = await recorded_briefs(house, event_id)
    if not briefs:
        journey = lead.journeys.get(funnel.journey_name(playbook.name, key))
        raise _held(next((h.missing for h in journey.held if h.to == to), []) if journey else [])
    return Outcome(event_id, SOURCE, "applied", lead_id, briefs)


async def recorded_briefs(house: House, event_id: str) -> list[Brief]:
    """Give the records that one of Baton's own events led to, as its sender was told of them."""
    return [
        Brief(
            r["id"], r["kind"], r["sequence"], r["journey_id"], r["playbook"], r["key"],
            r["from_stage"], r["to_stage"], r["rule"], r["explanation"],
        )
        for r in await transitions_of_event(house.engine, SOURCE, event_id)
    ]  # fmt: skip


def _refuse_what_would_not_move(
    playbook: Playbook, lead: funnel.Lead, event: LeadEvent, to: str
) -> None:
    """Try the move on the pure fold first: a refused move leaves no event behind."""
    folded = funnel.fold({playbook.name: playbook}, lead, event)
    if any(move.rule != MIGRATE for move in folded.moves):
        return
    journey = folded.lead.journeys.get(funnel.journey_name(playbook.name, event.deal))
    title = playbook.stages[to].title
    if journey is None:
        raise _not_entered(playbook, event.deal)
    if journey.stage == to:
        raise ConflictError(
            f"the journey is in {title} already", field="to", value=to, remedy="Nothing to do."
        )
    missing = next((h.missing for h in journey.held if h.to == to), [])
    raise GateUnmetError(
        f"{title} asks for {', '.join(missing)}", field="to", value=to,
        remedy="Send the missing facts as an event, or move with 'force': true.",
        extra={"missing": missing},
    )  # fmt: skip
