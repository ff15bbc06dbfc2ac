"""The secrets of subscriptions: what signs deliveries, and headers and credentials, sealed at rest.

A ciphertext is bound to its row and column (`encryption`): copied elsewhere it cannot be opened. A
subscription has one present signing secret; one that was replaced signs beside it until it expires, so that
the receiver may change over when he likes. Functions take asyncpg's connection and never commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
import uuid_utils

from services.contracts.postgres_log import Executor
from services.contracts.problems import ConflictError, InvalidRequestError
from services.stage_service.encryption import Cipher
from services.stage_service.subscriptions.signing import (
    PRIVATE_PREFIX,
    SECRET_PREFIX,
    SIGNATURES_MAX,
    SigningKeyError,
    kind_of,
    new_key_pair,
    new_secret,
    public_key_of,
)
from services.stage_service.subscriptions.subscription import Secret

KEEP_S_DEFAULT = 86_400.0
"""A replaced secret signs on for a day."""
KEEP_S_MAX = 30 * 86_400.0

Kind = Literal["v1", "v1a"]
Column = Literal["headers", "credentials"]

_LIVE = "(expires_at IS NULL OR expires_at > $2)"
_decode = msgspec.json.Decoder(dict[str, str]).decode


class SecretShown(msgspec.Struct, frozen=True):
    """A signing secret as people see it; `secret` is there only where it is revealed."""

    id: str
    kind: Kind
    public_key: str | None
    created_at: datetime
    expires_at: datetime | None
    secret: str | None = None


def _place(subscription_id: str, id: str) -> str:
    return f"stage.subscription_secrets|{subscription_id}|{id}"


def seal_values(
    cipher: Cipher, subscription_id: str, column: Column, values: Mapping[str, str]
) -> bytes | None:
    """Seal `values` for their column; None when there are none. Raises EncryptionError without a key."""
    if not values:
        return None
    text = msgspec.json.encode(dict(values)).decode()
    return cipher.seal(text, f"stage.subscriptions|{subscription_id}|{column}")


def open_values(
    cipher: Cipher, subscription_id: str, column: Column, sealed: bytes | None
) -> dict[str, str]:
    """Open what `seal_values` made. Raises EncryptionError when that is not possible."""
    if sealed is None:
        return {}
    return _decode(cipher.open(sealed, f"stage.subscriptions|{subscription_id}|{column}"))


async def add_secret(
    connection: Executor,
    cipher: Cipher,
    subscription_id: str,
    kind: Kind,
    now: datetime,
    given: str | None = None,
) -> SecretShown:
    """Make a signing secret (or take the one `given`), seal and store it; the only time it is told.

    Raises InvalidRequestError when the given one is none of Standard Webhooks, or of another kind.
    """
    secret, public_key = _made(kind) if given is None else _taken(kind, given)
    id = str(uuid_utils.uuid7())
    await connection.execute(
        """INSERT INTO stage.subscription_secrets
             (id, subscription_id, kind, ciphertext, public_key, created_at)
           VALUES ($1::uuid, $2::uuid, $3, $4, $5, $6)""",
        id, subscription_id, kind, cipher.seal(secret, _place(subscription_id, id)), public_key, now,
    )  # fmt: skip
    return SecretShown(id, kind, public_key, now, None, secret)


def _made(kind: Kind) -> tuple[str, str | None]:
    return new_key_pair() if kind == "v1a" else (new_secret(), None)


def _taken(kind: Kind, given: str) -> tuple[str, str | None]:
    prefix = PRIVATE_PREFIX if kind == "v1a" else SECRET_PREFIX
    try:
        if not given.startswith(prefix) or kind_of(given) != kind:
            raise SigningKeyError(f"a secret for {kind} begins with {prefix}")
        return given, public_key_of(given) if kind == "v1a" else None
    except SigningKeyError as error:
        raise InvalidRequestError(
            str(error), field="secret", remedy="Leave it out, and Baton makes one."
        ) from None


async def rotate(
    connection: Executor,
    cipher: Cipher,
    subscription_id: str,
    now: datetime,
    *,
    kind: Kind | None = None,
    given: str | None = None,
    keep_s: float = KEEP_S_DEFAULT,
) -> SecretShown:
    """Replace the present secret; it signs on for `keep_s` seconds. Gives the new one, this once.

    Without a `kind` it stays what it was. In a transaction that holds the subscription's row. Raises
    ConflictError when too many sign already, InvalidRequestError for a bad `given`.
    """
    live = await shown(connection, subscription_id, now)
    if len(live) >= SIGNATURES_MAX:
        raise ConflictError(
            f"{len(live)} secrets sign already", field="keep_s",
            remedy="Wait until old ones expire, or end them with DELETE .../secrets/{id}.",
        )  # fmt: skip
    kinds: list[Kind] = [s.kind for s in live if s.expires_at is None]
    await connection.execute(
        """UPDATE stage.subscription_secrets SET expires_at = $2
           WHERE subscription_id = $1::uuid AND expires_at IS NULL""",
        subscription_id, now + timedelta(seconds=keep_s),
    )  # fmt: skip
    await connection.execute(
        """DELETE FROM stage.subscription_secrets
           WHERE subscription_id = $1::uuid AND expires_at <= $2""",
        subscription_id, now,
    )  # fmt: skip
    return await add_secret(
        connection, cipher, subscription_id, kind or (*kinds, "v1")[0], now, given
    )


async def end(connection: Executor, subscription_id: str, id: str) -> bool:
    """End a replaced secret before its time; False when it is not there, or is the present one."""
    rows = await connection.fetch(
        """DELETE FROM stage.subscription_secrets
           WHERE subscription_id = $1::uuid AND id = $2::uuid AND expires_at IS NOT NULL
           RETURNING id""",
        subscription_id, id,
    )  # fmt: skip
    return bool(rows)


async def shown(
    connection: Executor, subscription_id: str, now: datetime, cipher: Cipher | None = None
) -> list[SecretShown]:
    """Give the secrets that sign, the newest first; with a `cipher` they are revealed.

    Raises EncryptionError when one cannot be opened.
    """
    rows = await connection.fetch(
        f"""SELECT id::text, kind, public_key, created_at, expires_at, ciphertext
            FROM stage.subscription_secrets
            WHERE subscription_id = $1::uuid AND {_LIVE} ORDER BY id DESC""",  # noqa: S608
        subscription_id, now,
    )  # fmt: skip
    return [
        SecretShown(
            r["id"], r["kind"], r["public_key"], r["created_at"], r["expires_at"],
            cipher.open(r["ciphertext"], _place(subscription_id, r["id"])) if cipher else None,
        )
        for r in rows
    ]  # fmt: skip


async def signing_secrets(
    connection: Executor, cipher: Cipher, subscription_ids: Sequence[str], now: datetime
) -> dict[str, list[Secret]]:
    """Give what signs for each of the subscriptions, opened, the newest first.

    Raises EncryptionError when one cannot be opened: nothing may go out unsigned for that.
    """
    rows: list[Any] = await connection.fetch(
        f"""SELECT subscription_id::text AS subscription, id::text, kind, ciphertext, expires_at
            FROM stage.subscription_secrets
            WHERE subscription_id = ANY($1::uuid[]) AND {_LIVE} ORDER BY id DESC""",  # noqa: S608
        list(subscription_ids), now,
    )  # fmt: skip
    found: dict[str, list[Secret]] = {id: [] for id in subscription_ids}
    for row in rows:
        of = row["subscription"]
        secret = cipher.open(row["ciphertext"], _place(of, row["id"]))
        found[of].append(Secret(row["kind"], secret, row["expires_at"]))
    return found
