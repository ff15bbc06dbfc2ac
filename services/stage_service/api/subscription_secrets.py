"""``/v1/subscriptions/{id}/secrets``: what signs a subscription's deliveries: look, replace, end."""

from __future__ import annotations

import uuid
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from services.contracts.answers import OnceRoute, SecretResponse, attempt_of
from services.contracts.audit import Actor, Note, record
from services.stage_service.api.access import house
from services.stage_service.api.subscription_answers import many, one
from services.stage_service.api.subscription_bodies import Rotation
from services.stage_service.api.subscriptions import (
    Admin,
    actor,
    answer,
    canonical,
    detailed,
    unsealed,
)
from services.stage_service.encryption import EncryptionError
from services.stage_service.errors import ConflictError, NotFoundError
from services.stage_service.subscriptions import changes, secrets
from services.stage_service.subscriptions.secrets import KEEP_S_DEFAULT, SecretShown

router = APIRouter(tags=["subscriptions"], route_class=OnceRoute)
_encode = msgspec.json.Encoder().encode


@router.get(
    "/v1/subscriptions/{id}/secrets",
    operation_id="list_subscription_secrets",
    responses=many(SecretShown),
)
async def list_subscription_secrets(
    request: Request,
    who: Admin,
    id: str,
    reveal: Annotated[bool, Query(description="tell the secrets; the audit notes it")] = False,
) -> Response:
    """List what signs the deliveries, newest first."""
    it = house(request)
    id = canonical(id)
    async with it.pool.acquire() as connection, connection.transaction():
        await detailed(connection, it, id)
        try:
            items = await secrets.shown(
                connection, id, it.now(), it.terms.cipher if reveal else None
            )
        except EncryptionError as error:
            raise unsealed(error) from None
        if reveal:
            await record(connection, actor(who), Note("revealed", changes.KIND, id))
    response = answer({"items": items, "next_cursor": None})
    response.headers["cache-control"] = "no-store"
    return response


@router.post(
    "/v1/subscriptions/{id}/secrets/rotate",
    operation_id="rotate_subscription_secret",
    responses=one(SecretShown),
)
async def rotate_subscription_secret(
    request: Request, who: Admin, id: str, wish: Rotation | None = None
) -> Response:
    """Replace the signing secret; the old one signs beside it for a day. The new one is told this once."""
    asked = wish or Rotation(signature=None, secret=None, keep_s=KEEP_S_DEFAULT)
    made = await rotate(request, canonical(id), actor(who), asked)
    return SecretResponse(_encode(made), _encode(msgspec.structs.replace(made, secret=None)))


async def rotate(request: Request, id: str, by: Actor, wish: Rotation) -> SecretShown:
    """Replace the signing secret and give the new one, revealed. Raises NotFoundError, ConflictError."""
    it = house(request)
    attempt = attempt_of(request)
    now = it.now()
    async with it.pool.acquire() as connection, connection.transaction():
        try:
            before = await changes.locked(connection, it.terms, id)
            if before.connector is not None:
                raise ConflictError("a connector signs nothing", remedy="Change its credentials.")
            if attempt is not None and attempt.done:
                return (await secrets.shown(connection, id, now, it.terms.cipher))[0]
            made = await secrets.rotate(
                connection, it.terms.cipher, id, now, kind=wish.signature, given=wish.secret,
                keep_s=wish.keep_s,
            )  # fmt: skip
        except EncryptionError as error:
            raise unsealed(error) from None
        await changes.touch(connection, id, "rotated", by, now)
        if attempt is not None:
            await attempt.mark_done(connection)
    return made


@router.delete(
    "/v1/subscriptions/{id}/secrets/{secret_id}", operation_id="end_subscription_secret",
    status_code=204,
)  # fmt: skip
async def end_subscription_secret(
    request: Request, who: Admin, id: str, secret_id: str
) -> Response:
    """End a replaced secret before its time."""
    it = house(request)
    id = canonical(id)
    async with it.pool.acquire() as connection, connection.transaction():
        try:
            await changes.locked(connection, it.terms, id)
        except EncryptionError as error:
            raise unsealed(error) from None
        try:
            ended = await secrets.end(connection, id, str(uuid.UUID(secret_id)))
        except ValueError:
            ended = False
        if not ended:
            raise NotFoundError(
                "there is no replaced secret of this id", field="secret_id", value=secret_id,
                remedy="The present one is replaced by POST .../secrets/rotate.",
            )  # fmt: skip
        await changes.touch(connection, id, "secret ended", actor(who), it.now())
    return Response(status_code=204)
