"""``/v1/subscriptions``: make, look at, change, pause, resume and remove subscriptions, and their secrets.

What became of each event is in `deliveries`. A signing secret is told when it is made, and by
``.../secrets?reveal=true``; headers and credentials are never told again.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from services.contracts.access import Principal
from services.contracts.answers import OnceRoute, SecretResponse, attempt_of
from services.contracts.audit import Actor
from services.stage_service.api.access import House, allow, house
from services.stage_service.api.moments import moment_in_utc
from services.stage_service.api.people import version_of
from services.stage_service.api.subscription_answers import Detailed, many, one
from services.stage_service.api.subscription_bodies import (
    NewSubscription,
    Pausing,
    SubscriptionChange,
)
from services.stage_service.encryption import EncryptionError
from services.stage_service.errors import (
    ConflictError,
    InvalidRequestError,
    refusal,
)
from services.stage_service.lane import new_id
from services.stage_service.store import Connection
from services.stage_service.subscriptions import changes, reads, secrets
from services.stage_service.subscriptions.changes import Draft
from services.stage_service.subscriptions.reads import Shown
from services.stage_service.subscriptions.secrets import (
    Kind,
    SecretShown,
)
from services.stage_service.subscriptions.subscription import (
    State,
)

router = APIRouter(tags=["subscriptions"], route_class=OnceRoute)
Admin = Annotated[Principal, Depends(allow("admin"))]
IfMatch = Annotated[str | None, Header(description="the ETag that the subscription must have")]
_encode = msgspec.json.Encoder().encode


def answer(body: Any, status: int = 200, etag: int | None = None) -> Response:
    """Answer `body` as JSON."""
    headers = {} if etag is None else {"etag": f'"{etag}"'}
    return Response(_encode(body), status, headers, "application/json")


def canonical(id: str) -> str:
    """Give the id of a subscription in its canonical form. Raises NotFoundError for what cannot be one."""
    try:
        return str(uuid.UUID(id))
    except ValueError:
        raise changes.not_found(id) from None


def actor(who: Principal) -> Actor:
    """Give who does something, for the audit."""
    return Actor(who.name, who.id)


async def detailed(connection: Connection, it: House, id: str) -> Detailed:
    """Give one subscription. Raises NotFoundError."""
    found = await reads.list_subscriptions(connection, it.terms.cipher, id=id, limit=1)
    if not found:
        raise changes.not_found(id)
    signing = await secrets.shown(connection, id, it.now())
    fields = {name: getattr(found[0], name) for name in reads.Shown.__struct_fields__}
    return Detailed(**fields, secrets=signing)


def _with_secret(found: Detailed, made: SecretShown | None) -> Detailed:
    told = [made if made is not None and s.id == made.id else s for s in found.secrets]
    return msgspec.structs.replace(found, secrets=told)


@router.get("/v1/subscriptions", operation_id="list_subscriptions", responses=many(Shown))
async def list_subscriptions(
    request: Request,
    _: Admin,
    state: State | None = None,
    cursor: uuid.UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=reads.PAGE_MAX)] = 50,
) -> Response:
    """List subscriptions with their health, newest first."""
    it = house(request)
    found = await reads.list_subscriptions(
        it.pool, it.terms.cipher, before=str(cursor) if cursor else None, state=state,
        limit=limit + 1,
    )  # fmt: skip
    items, more = reads.page_of(found, limit)
    return answer({"items": items, "next_cursor": more})


@router.post(
    "/v1/subscriptions",
    operation_id="create_subscription",
    status_code=201,
    responses=one(Detailed, 201),
)
async def create_subscription(request: Request, who: Admin, wish: NewSubscription) -> Response:
    """Make a subscription. Its signing secret is in the answer, this once."""
    draft = Draft(
        wish.name, wish.url, wish.connector, tuple(wish.types), wish.filter, wish.payload,
        wish.ordered, wish.headers, wish.credentials, wish.config, wish.contact, wish.timeout_s,
        wish.concurrency, wish.rate_per_s,
    )  # fmt: skip
    attempt = attempt_of(request)
    found = await create(
        request, draft, wish.start, actor(who), kind=wish.signature, secret=wish.secret,
        id=str(attempt.effect_id) if attempt else None,
    )  # fmt: skip
    kept = msgspec.structs.replace(
        found, secrets=[msgspec.structs.replace(s, secret=None) for s in found.secrets]
    )
    return SecretResponse(
        _encode(found), _encode(kept), 201, etag=f'"{found.version}"',
        location=f"/v1/subscriptions/{found.id}",
    )  # fmt: skip


async def create(
    request: Request,
    draft: Draft,
    start: str | int | datetime,
    by: Actor,
    *,
    kind: Kind = "v1",
    secret: str | None = None,
    id: str | None = None,
) -> Detailed:
    """Make a subscription and give it, its signing secret revealed.

    With an `id` that is there already it is given as it is. Raises InvalidRequestError, and
    ConflictError where no secret can be sealed.
    """
    it = house(request)
    require_good(request, draft)
    id = id or new_id()
    now = it.now()
    async with it.pool.acquire() as connection, connection.transaction():
        position = await position_of(connection, start)
        try:
            is_new = await changes.create(connection, it.terms, id, draft, position, by, now)
            if is_new and draft.connector is None:
                await secrets.add_secret(connection, it.terms.cipher, id, kind, now, secret)
            signing = await secrets.shown(connection, id, now, it.terms.cipher)
        except EncryptionError as error:
            raise unsealed(error) from None
        found = await detailed(connection, it, id)
    return _with_secret(found, signing[0] if signing else None)


def require_good(request: Request, draft: Draft) -> None:
    """Raise InvalidRequestError for what is wrong with `draft`."""
    it = house(request)
    defect = changes.check(draft, it.terms, it.playbooks, it.team)
    if defect is not None:
        raise refusal(defect)


async def position_of(connection: Connection, start: str | int | datetime) -> int:
    """Give the position after which a subscription begins. Raises InvalidRequestError past the end."""
    if start == "beginning":
        return 0
    last = await reads.last_position(connection)
    if isinstance(start, datetime):
        return await reads.position_before(connection, moment_in_utc(start, "from") or start)
    if isinstance(start, int):
        if start > last:
            raise InvalidRequestError(
                f"the log ends at {last}", field="from", value=start, remedy="Send 'now', or less."
            )
        return start
    return last


def unsealed(error: EncryptionError) -> ConflictError:
    """Give what is said when secrets cannot be sealed or opened."""
    return ConflictError(
        f"secrets cannot be kept here: {error}",
        remedy="Start the stage service with BATON_ENCRYPTION_KEY_FILE, the same everywhere.",
    )


@router.get("/v1/subscriptions/{id}", operation_id="get_subscription", responses=one(Detailed))
async def get_subscription(request: Request, _: Admin, id: str) -> Response:
    """Give one subscription with its health; ``ETag`` is the version."""
    it = house(request)
    async with it.pool.acquire() as connection:
        found = await detailed(connection, it, canonical(id))
    return answer(found, etag=found.version)


@router.patch("/v1/subscriptions/{id}", operation_id="change_subscription", responses=one(Detailed))
async def change_subscription(
    request: Request, who: Admin, id: str, wish: SubscriptionChange, if_match: IfMatch = None
) -> Response:
    """Change a subscription; it goes on from its place."""
    it = house(request)
    id = canonical(id)
    async with it.pool.acquire() as connection, connection.transaction():
        try:
            before = await changes.locked(connection, it.terms, id, version_of(if_match))
            after = changed(before, wish)
            require_good(request, after)
            await changes.change(connection, it.terms, id, before, after, actor(who), it.now())
        except EncryptionError as error:
            raise unsealed(error) from None
        found = await detailed(connection, it, id)
    return answer(found, etag=found.version)


def changed(before: Draft, wish: SubscriptionChange) -> Draft:
    """Give `before` with what `wish` says laid over it."""
    defaults = Draft("")
    values: dict[str, Any] = {}
    for name in wish.model_fields_set:
        value = getattr(wish, name)
        if name in ("headers", "credentials", "config") and value is not None:
            both: dict[str, Any] = {**getattr(before, name), **value}
            value = {key: each for key, each in both.items() if each is not None}
        values[name] = getattr(defaults, name) if value is None else value
    if values.get("name") == "":
        raise InvalidRequestError("a subscription has a name", field="name", remedy="Leave it out.")
    if "types" in values:
        values["types"] = tuple(values["types"])
    return msgspec.structs.replace(before, **values)


@router.delete("/v1/subscriptions/{id}", operation_id="delete_subscription", status_code=204)
async def delete_subscription(
    request: Request, who: Admin, id: str, if_match: IfMatch = None
) -> Response:
    """Remove a subscription and its secrets; what is under way may still arrive."""
    it = house(request)
    async with it.pool.acquire() as connection, connection.transaction():
        await changes.remove(connection, canonical(id), actor(who), it.now(), version_of(if_match))
    return Response(status_code=204)


@router.post(
    "/v1/subscriptions/{id}/pause", operation_id="pause_subscription", responses=one(Detailed)
)
async def pause_subscription(
    request: Request, who: Admin, id: str, wish: Pausing | None = None
) -> Response:
    """Stop delivering; the place is kept, and nothing is lost."""
    reason = wish.reason if wish is not None else None
    found = await set_state(house(request), canonical(id), "paused", actor(who), reason)
    return answer(found, etag=found.version)


@router.post(
    "/v1/subscriptions/{id}/resume", operation_id="resume_subscription", responses=one(Detailed)
)
async def resume_subscription(request: Request, who: Admin, id: str) -> Response:
    """Deliver again from the place where it stopped, also one that Baton stopped (``failing``, ``gone``)."""
    found = await set_state(house(request), canonical(id), "active", actor(who))
    return answer(found, etag=found.version)


async def set_state(
    it: House, id: str, state: State, by: Actor, reason: str | None = None
) -> Detailed:
    """Pause or resume, and give the subscription. Raises NotFoundError."""
    async with it.pool.acquire() as connection, connection.transaction():
        await changes.set_state(connection, id, state, by, it.now(), reason)
        return await detailed(connection, it, id)
