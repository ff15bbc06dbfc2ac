"""Secrets of subscriptions on a real database: sealed, replaced, revealed."""

from __future__ import annotations

import secrets as random_source
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest
import pytest_asyncio

from services.contracts.problems import ConflictError, InvalidRequestError
from services.stage_service.encryption import Cipher, EncryptionError
from services.stage_service.subscriptions import secrets
from services.stage_service.subscriptions.signing import Signer, kind_of, public_key_of

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

Connection: TypeAlias = "asyncpg.Connection[Any]"


@pytest_asyncio.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    it = await asyncpg.connect(database_url)
    yield it
    await it.close()


@pytest.fixture
def cipher() -> Cipher:
    """A cipher with a key of its own."""
    return Cipher([random_source.token_bytes(32)])


def new_id() -> str:
    return str(uuid.uuid4())


async def test_a_secret_is_sealed_and_opens_for_its_own_row_only(
    connection: Connection, cipher: Cipher
) -> None:
    """Neither the secret nor its bytes stand in the table, and a row copied to another place is useless."""
    one, other = new_id(), new_id()
    made = await secrets.add_secret(connection, cipher, one, "v1", NOW)
    assert made.secret is not None
    assert kind_of(made.secret) == "v1"
    stored = await connection.fetchval("SELECT ciphertext FROM stage.subscription_secrets")
    assert made.secret.encode() not in stored
    found = await secrets.signing_secrets(connection, cipher, [one, other], NOW)
    assert [s.secret for s in found[one]] == [made.secret]
    assert found[other] == []
    await connection.execute(
        "UPDATE stage.subscription_secrets SET subscription_id = $1::uuid", other
    )
    with pytest.raises(EncryptionError):
        await secrets.signing_secrets(connection, cipher, [other], NOW)
    with pytest.raises(EncryptionError):
        await secrets.shown(connection, other, NOW, cipher)


async def test_a_replaced_secret_signs_on_until_it_expires(
    connection: Connection, cipher: Cipher
) -> None:
    id = new_id()
    first = await secrets.add_secret(connection, cipher, id, "v1", NOW)
    second = await secrets.rotate(connection, cipher, id, NOW + HOUR, kind="v1a")
    assert second.public_key == public_key_of(second.secret or "")
    for moment, many in ((NOW + 2 * HOUR, 2), (NOW + 24 * HOUR, 2), (NOW + 25 * HOUR, 1)):
        signing = (await secrets.signing_secrets(connection, cipher, [id], moment))[id]
        assert len(signing) == many
        headers = Signer(signing).headers("e", b"{}", moment)
        kinds = [s.partition(",")[0] for s in headers["webhook-signature"].split(" ")]
        assert kinds == ["v1a", "v1"][:many]
    listed = await secrets.shown(connection, id, NOW + 2 * HOUR)
    assert [(s.kind, s.secret) for s in listed] == [("v1a", None), ("v1", None)]
    revealed = await secrets.shown(connection, id, NOW + 2 * HOUR, cipher)
    assert [s.secret for s in revealed] == [second.secret, first.secret]
    third = await secrets.rotate(connection, cipher, id, NOW + 2 * HOUR)
    assert third.kind == "v1a"


async def test_a_stolen_secret_ends_at_once(connection: Connection, cipher: Cipher) -> None:
    id = new_id()
    await secrets.add_secret(connection, cipher, id, "v1", NOW)
    new = await secrets.rotate(connection, cipher, id, NOW, keep_s=0)
    found = await secrets.signing_secrets(connection, cipher, [id], NOW)
    assert [s.secret for s in found[id]] == [new.secret]
    assert await connection.fetchval("SELECT count(*) FROM stage.subscription_secrets") == 1


async def test_no_more_than_ten_sign(connection: Connection, cipher: Cipher) -> None:
    """The eleventh is refused, not an old one ended under a receiver who still uses it."""
    id = new_id()
    await secrets.add_secret(connection, cipher, id, "v1", NOW)
    for _ in range(9):
        await secrets.rotate(connection, cipher, id, NOW)
    with pytest.raises(ConflictError):
        await secrets.rotate(connection, cipher, id, NOW)
    live = await secrets.shown(connection, id, NOW)
    assert len(live) == 10
    assert not await secrets.end(connection, id, live[0].id)  # the present one
    assert await secrets.end(connection, id, live[-1].id)
    await secrets.rotate(connection, cipher, id, NOW)


@pytest.mark.parametrize(
    ("kind", "given"),
    [("v1", "whsec_c2hvcnQ="), ("v1", "secret"), ("v1", "whsec_###"), ("v1a", "whsec_" + "A" * 44),
     ("v1", "whsk_" + "A" * 44), ("v1a", "whsk_AAAA")],
)  # fmt: skip
async def test_a_bad_secret_is_refused_without_being_told_again(
    connection: Connection, cipher: Cipher, kind: secrets.Kind, given: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await secrets.add_secret(connection, cipher, new_id(), kind, NOW, given)
    assert given.partition("_")[2] not in str(refused.value) or not given.partition("_")[2]
    assert refused.value.value is None


async def test_a_secret_of_the_receivers_own_is_taken(
    connection: Connection, cipher: Cipher
) -> None:
    id = new_id()
    given = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    await secrets.add_secret(connection, cipher, id, "v1", NOW, given)
    assert (await secrets.signing_secrets(connection, cipher, [id], NOW))[id][0].secret == given


def test_headers_are_sealed_for_their_subscription_and_column(cipher: Cipher) -> None:
    id = new_id()
    sealed = secrets.seal_values(cipher, id, "headers", {"authorization": "Bearer x"})
    assert sealed is not None
    assert b"Bearer" not in sealed
    assert secrets.open_values(cipher, id, "headers", sealed) == {"authorization": "Bearer x"}
    for elsewhere in ((new_id(), "headers"), (id, "credentials")):
        with pytest.raises(EncryptionError):
            secrets.open_values(cipher, *elsewhere, sealed)  # type: ignore[arg-type]
    assert secrets.seal_values(cipher, id, "headers", {}) is None
    assert secrets.open_values(cipher, id, "headers", None) == {}
