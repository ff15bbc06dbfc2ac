"""``/v1/subscriptions/{id}/deliveries``: what became of each event, and what people do about it.

Resend, skip, replay and test only note what is wished: whoever delivers takes it from there at once.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response

from services.contracts.answers import OnceRoute, attempt_of
from services.contracts.audit import Actor, Note, record
from services.contracts.problems import ConflictError
from services.stage_service.api.access import House, house
from services.stage_service.api.moments import SinceQuery, UntilQuery, moment_in_utc
from services.stage_service.api.subscription_answers import (
    DeliveryWithEvent,
    Replayed,
    Resent,
    many,
    one,
)
from services.stage_service.api.subscription_bodies import FailedRange, Replay
from services.stage_service.api.subscriptions import (
    Admin,
    actor,
    answer,
    canonical,
    detailed,
    position_of,
)
from services.stage_service.errors import NotFoundError
from services.stage_service.lane import new_id
from services.stage_service.store import Connection
from services.stage_service.subscriptions import changes, reads, store_deliveries
from services.stage_service.subscriptions.payload import body_of
from services.stage_service.subscriptions.reads import DeliveryShown, Wanted

router = APIRouter(tags=["subscriptions"], route_class=OnceRoute)

DeliveryState = Literal["waiting", "due", "delivered", "failed", "skipped"]
WAIT_S_MAX = 30.0
LOOK_EVERY_S = 0.1
_OPEN = ("waiting", "due")
_PLAIN = r"^[^\x00]*$"


@router.get(
    "/v1/subscriptions/{id}/deliveries",
    operation_id="list_deliveries",
    responses=many(DeliveryShown),
)
async def list_deliveries(
    request: Request,
    _: Admin,
    id: str,
    state: DeliveryState | None = None,
    lead_id: Annotated[str | None, Query(max_length=64, pattern=_PLAIN)] = None,
    event_type: Annotated[str | None, Query(alias="type", max_length=128, pattern=_PLAIN)] = None,
    since: SinceQuery = None,
    until: UntilQuery = None,
    cursor: uuid.UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=reads.PAGE_MAX)] = 50,
) -> Response:
    """List deliveries with their attempts, newest first. From, to: when they were first made."""
    it = house(request)
    wanted = Wanted(
        state, lead_id, event_type, moment_in_utc(since, "from"), moment_in_utc(until, "to")
    )
    async with it.pool.acquire() as connection:
        await detailed(connection, it, canonical(id))
        found = await reads.list_deliveries(
            connection, canonical(id), wanted, before=str(cursor) if cursor else None,
            limit=limit + 1,
        )  # fmt: skip
    items, more = reads.page_of(found, limit)
    return answer({"items": items, "next_cursor": more})


@router.get(
    "/v1/subscriptions/{id}/deliveries/{delivery_id}",
    operation_id="get_delivery",
    responses=one(DeliveryWithEvent),
)
async def get_delivery(request: Request, _: Admin, id: str, delivery_id: str) -> Response:
    """Give one delivery with its attempts, and the body that it delivers."""
    it = house(request)
    return answer(await delivery_of(it, canonical(id), delivery_id))


async def delivery_of(it: House, id: str, delivery_id: str) -> DeliveryWithEvent:
    """Give one delivery with its body. Raises NotFoundError."""
    async with it.pool.acquire() as connection:
        subscription = await detailed(connection, it, id)
        found = await reads.get_delivery(connection, id, canonical_delivery(delivery_id))
    if found is None:
        raise no_delivery(delivery_id)
    delivery, message = found
    body = msgspec.json.decode(body_of(message, subscription.payload)) if message else None
    fields = {name: getattr(delivery, name) for name in DeliveryShown.__struct_fields__}
    return DeliveryWithEvent(**fields, body=body)


def canonical_delivery(id: str) -> str:
    """Give the id of a delivery in its canonical form. Raises NotFoundError."""
    try:
        return str(uuid.UUID(id))
    except ValueError:
        raise no_delivery(id) from None


def no_delivery(id: str) -> NotFoundError:
    """Give the error for a delivery that is not there."""
    return NotFoundError(
        "there is no such delivery", field="delivery_id", value=id,
        remedy="See GET /v1/subscriptions/{id}/deliveries; what went through is kept for a while only.",
    )  # fmt: skip


@router.post(
    "/v1/subscriptions/{id}/deliveries/{delivery_id}/resend",
    operation_id="resend_delivery",
    responses=one(DeliveryWithEvent),
)
async def resend_delivery(request: Request, who: Admin, id: str, delivery_id: str) -> Response:
    """Deliver once more, whatever became of it; the `webhook-id` stays the same."""
    it = house(request)
    return answer(await resend(request, it, canonical(id), delivery_id, actor(who)))


async def resend(
    request: Request, it: House, id: str, delivery_id: str, by: Actor
) -> DeliveryWithEvent:
    """Make one delivery due. Raises NotFoundError, and ConflictError when it waits its turn."""
    before = await delivery_of(it, id, delivery_id)

    async def act(connection: Connection) -> None:
        if not await store_deliveries.resend(connection, id, before.id, it.now()):
            raise ConflictError(
                "it waits for an earlier delivery of its lead", field="delivery_id", value=before.id,
                remedy="Resend, or skip, the earlier one.",
            )  # fmt: skip
        await record(
            connection, by, Note("resent", changes.KIND, id, None, {"delivery": before.id})
        )

    await _once(request, it, act)
    return await delivery_of(it, id, before.id)


@router.post(
    "/v1/subscriptions/{id}/deliveries/{delivery_id}/skip",
    operation_id="skip_delivery",
    responses=one(DeliveryWithEvent),
)
async def skip_delivery(request: Request, who: Admin, id: str, delivery_id: str) -> Response:
    """Give a delivery up, so that the next one of its lead goes out."""
    it = house(request)
    return answer(await skip(request, it, canonical(id), delivery_id, actor(who)))


async def skip(
    request: Request, it: House, id: str, delivery_id: str, by: Actor
) -> DeliveryWithEvent:
    """Give a delivery up. Raises NotFoundError, and ConflictError when it is done already."""
    before = await delivery_of(it, id, delivery_id)

    async def act(connection: Connection) -> None:
        if not await store_deliveries.skip(connection, id, before.id, it.now()):
            raise ConflictError(
                f"it is {before.state} already", field="delivery_id", value=before.id,
                remedy="Nothing to do.",
            )  # fmt: skip
        await record(
            connection, by, Note("skipped", changes.KIND, id, None, {"delivery": before.id})
        )

    await _once(request, it, act)
    return await delivery_of(it, id, before.id)


@router.post(
    "/v1/subscriptions/{id}/resend", operation_id="resend_failed_deliveries", responses=one(Resent)
)
async def resend_failed(request: Request, who: Admin, id: str, wish: FailedRange) -> Response:
    """Deliver once more what was given up in a range of time."""
    it = house(request)
    since = moment_in_utc(wish.since, "since") or wish.since
    until = moment_in_utc(wish.until, "until")
    count = await resend_range(request, it, canonical(id), since, until, actor(who))
    return answer(Resent(count))


async def resend_range(
    request: Request, it: House, id: str, since: datetime, until: datetime | None, by: Actor
) -> int:
    """Make due what was given up from `since` to before `until`; gives how many. Raises NotFoundError."""
    count = 0

    async def act(connection: Connection) -> None:
        nonlocal count
        await detailed(connection, it, id)
        end = until or it.now()
        count = await store_deliveries.resend_failed(connection, id, since, end, it.now())
        told = {"since": since, "until": end, "count": count}
        await record(connection, by, Note("resent failed", changes.KIND, id, None, told))

    await _once(request, it, act)
    return count


@router.post(
    "/v1/subscriptions/{id}/replay", operation_id="replay_subscription", responses=one(Replayed)
)
async def replay_subscription(request: Request, who: Admin, id: str, wish: Replay) -> Response:
    """Set the subscription back: everything after the position is delivered, again or for the first time."""
    it = house(request)
    return answer(await replay(request, it, canonical(id), wish.start, actor(who)))


async def replay(
    request: Request, it: House, id: str, start: str | int | datetime, by: Actor
) -> Replayed:
    """Set a subscription back. Raises NotFoundError, and InvalidRequestError past the end of the log."""

    async def act(connection: Connection) -> None:
        position = await position_of(connection, start)
        if await store_deliveries.replay(connection, id, position, it.now()) is None:
            raise changes.not_found(id)
        told = {"from": start if isinstance(start, str) else position}
        await record(connection, by, Note("replayed", changes.KIND, id, None, told))

    async with it.pool.acquire() as connection:
        await detailed(connection, it, id)
    await _once(request, it, act)
    async with it.pool.acquire() as connection:
        health = (await detailed(connection, it, id)).health
    return Replayed(health.run, health.position)


@router.post(
    "/v1/subscriptions/{id}/test",
    operation_id="test_subscription",
    responses=one(DeliveryWithEvent),
)
async def send_test_event(
    request: Request,
    who: Admin,
    id: str,
    wait: Annotated[
        float, Query(ge=0, le=WAIT_S_MAX, description="seconds to wait for the first attempt")
    ] = 0,
) -> Response:
    """Deliver a test event, to this subscription only; its type is `baton.test.v1`."""
    it = house(request)
    delivery_id = await send_test(request, it, canonical(id), actor(who))
    deadline = asyncio.get_running_loop().time() + wait
    while True:
        found = await delivery_of(it, canonical(id), delivery_id)
        left = deadline - asyncio.get_running_loop().time()
        if found.attempts or left <= 0 or it.stopping.is_set():
            return answer(found)
        await asyncio.sleep(min(LOOK_EVERY_S, left))


async def send_test(request: Request, it: House, id: str, by: Actor) -> str:
    """Note that a test event is to be delivered; gives its delivery's id.

    A repeat under the same Idempotency-Key gives the id of the first, which may have been pruned since.
    Raises NotFoundError, and ConflictError while nothing is delivered to the subscription.
    """
    attempt = attempt_of(request)
    async with it.pool.acquire() as connection:
        subscription = await detailed(connection, it, id)
    delivery_id = str(attempt.effect_id) if attempt is not None else new_id()
    if attempt is not None and attempt.done:
        return delivery_id
    if subscription.state != "active":
        raise ConflictError(
            f"the subscription is {subscription.state}", field="id", value=id,
            remedy="Resume it first.",
        )  # fmt: skip

    async def act(connection: Connection) -> None:
        message = changes.test_message(id, new_id(), it.now())
        await store_deliveries.add_test(connection, id, delivery_id, message, it.now())
        await record(
            connection, by, Note("tested", changes.KIND, id, None, {"delivery": delivery_id})
        )

    await _once(request, it, act)
    return delivery_id


async def _once(request: Request, it: House, act: Callable[[Connection], Awaitable[None]]) -> None:
    """Do `act` in one transaction, and not again for a repeat under the same Idempotency-Key."""
    attempt = attempt_of(request)
    if attempt is not None and attempt.done:
        return
    async with it.pool.acquire() as connection, connection.transaction():
        await act(connection)
        if attempt is not None:
            await attempt.mark_done(connection)
