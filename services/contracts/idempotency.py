"""``Idempotency-Key``: the same request sent again has one effect and gets the first answer again.

By draft-ietf-httpapi-idempotency-key-header-07, for requests that are no CloudEvents (those have their own
id). The key is claimed in the database before anything happens, and the answer is stored after:

    absent -> claimed -> answered            a repeat gets the stored answer
                      -> released            nothing happened, or nobody knows: the next repeat claims it

A process that dies between the effect and the stored answer leaves a claim that runs out after `CLAIM_S`.
The repeat then claims it with the same `effect_id`. What a request makes is named by it (the id of a
stored lead event), so the repeat finds it made. An effect that has no place for an id calls
`Attempt.mark_done` in its own transaction, and the repeat finds ``done``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.contracts.postgres_log import Executor
from services.contracts.problems import KeyInUseError, KeyMalformedError, KeyReusedError

KEY_CHARACTERS_MAX = 255
CLAIM_S = 60.0
"""Longer than any request may take: the lane answers within 2.5 s, a statement ends within 30 s."""
SWEEP_EVERY_S = 60.0
SWEEP_ROWS_MAX = 1000

# A string of RFC 8941, its parameters without a meaning here; or, as many clients send it, unquoted.
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"(?: *;[ -~]*)?')
KEY_PATTERN = r'("([ !#-\[\]-~]|\\["\\])+"|[A-Za-z0-9_.:~+/=@-]+)'
"""What a key looks like, for the OpenAPI document: quoted, or plain."""
_PLAIN = re.compile(r"[A-Za-z0-9_.:~+/=@-]+")

_CLAIM = """
INSERT INTO access.idempotency_keys AS k
  (who, key, fingerprint, effect_id, claimed_until, created_at)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (who, key) DO UPDATE SET
  fingerprint = excluded.fingerprint, claimed_until = excluded.claimed_until,
  effect_id = CASE WHEN k.created_at > $7 THEN k.effect_id ELSE excluded.effect_id END,
  done = k.done AND k.created_at > $7,
  created_at = CASE WHEN k.created_at > $7 THEN k.created_at ELSE excluded.created_at END,
  status = NULL, content_type = NULL, body = NULL
WHERE coalesce(k.claimed_until, '-infinity') <= $6
  AND (k.created_at <= $7 OR (k.status IS NULL AND k.fingerprint = excluded.fingerprint))
RETURNING effect_id, done
"""

_FOUND = """
SELECT fingerprint, status, content_type, body FROM access.idempotency_keys
WHERE who = $1 AND key = $2
"""

# The end of the claim is the fence: whoever claimed the key after us has another one.
_MINE = "WHERE who = $1 AND key = $2 AND claimed_until = $3"
_ANSWERED = f"""
UPDATE access.idempotency_keys SET status = $4, content_type = $5, body = $6, claimed_until = NULL
{_MINE}
"""  # noqa: S608
_RELEASED = f"UPDATE access.idempotency_keys SET claimed_until = '-infinity' {_MINE}"  # noqa: S608
_FORGOTTEN = f"DELETE FROM access.idempotency_keys {_MINE} AND NOT done"  # noqa: S608
_DONE = f"UPDATE access.idempotency_keys SET done = true {_MINE} RETURNING 1"  # noqa: S608

_SWEEP = f"""
DELETE FROM access.idempotency_keys WHERE (who, key) IN (
  SELECT who, key FROM access.idempotency_keys
  WHERE created_at <= $1 AND coalesce(claimed_until, '-infinity') <= $2
  ORDER BY created_at LIMIT {SWEEP_ROWS_MAX} FOR UPDATE SKIP LOCKED)
"""  # noqa: S608


class Answer(msgspec.Struct, frozen=True):
    """An answer as it is stored and sent again."""

    status: int
    content_type: str
    body: bytes
    is_repeat: bool = False
    kept: bytes | None = None
    """What is stored in the body's place, where that tells a secret: a repeat gets this."""

    @property
    def is_final(self) -> bool:
        """Tell whether the request was carried out or refused for good, so that a repeat hears the same."""
        return self.status < 500 and self.status not in (401, 403, 429)


class Attempt(msgspec.Struct, frozen=True):
    """A claim on an Idempotency-Key: whoever holds it may carry the request out."""

    who: str
    key: str
    claimed_until: datetime
    effect_id: UUID
    """The same for each attempt at the same request."""
    done: bool
    """An earlier attempt had its effect (`mark_done`) and could not store its answer."""

    async def mark_done(self, connection: Executor) -> None:
        """Record in the transaction of the effect that it happened.

        Raises KeyInUseError when somebody else has the claim by now: the transaction must not commit.
        """
        if not await connection.fetch(_DONE, self.who, self.key, self.claimed_until):
            raise KeyInUseError("another process is carrying this request out")


def key_of(headers: Sequence[str]) -> str | None:
    """Give the key in the values of the ``Idempotency-Key`` headers, None when there is no header.

    A structured-field string (RFC 8941, section 3.3.3); an unquoted one is read too. Raises
    KeyMalformedError.
    """
    if not headers:
        return None
    text = headers[0].strip()
    quoted = _QUOTED.fullmatch(text)
    key = re.sub(r'\\(["\\])', r"\1", quoted[1]) if quoted else text
    well_formed = quoted is not None or _PLAIN.fullmatch(text) is not None
    if len(headers) > 1 or not well_formed or not 0 < len(key) <= KEY_CHARACTERS_MAX:
        raise KeyMalformedError(
            "the Idempotency-Key is no string", field="idempotency-key", value=", ".join(headers),
            remedy='Send one, quoted, of at most 255 printable ASCII characters: "8e03978e-40d5-43dd".',
        )  # fmt: skip
    return key


def fingerprint_of(method: str, target: str, who: str, body: bytes) -> bytes:
    """Give what two requests must share to be the same one: 32 bytes."""
    digest = hashlib.sha256()
    for part in (method.encode(), target.encode(), who.encode(), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


class Once:
    """Carries out requests with an Idempotency-Key once, and keeps their answers for `keep_s`."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
        keep_s: float,
    ) -> None:
        self._pool = pool
        self._now = now
        self._new_id = new_id
        self._keep = timedelta(seconds=keep_s)
        self._sweep_at: datetime | None = None

    async def answer(
        self,
        who: str,
        key: str,
        fingerprint: bytes,
        act: Callable[[Attempt], Awaitable[Answer]],
        harmless: tuple[type[Exception], ...] = (),
    ) -> Answer:
        """Give the first answer to the request of `who` with this `key`; `act` carries it out.

        A final answer (`Answer.is_final`) is stored. After another one, or when `act` raises, the next
        repeat tries again; after one of `harmless`, raised before anything happened, the key is free.
        Raises KeyReusedError for another request with the same key, KeyInUseError while the first is being
        carried out.
        """
        attempt = await self._claim(who, key, fingerprint)
        if isinstance(attempt, Answer):
            return attempt
        try:
            answer = await act(attempt)
        except harmless:
            await self._end(_FORGOTTEN, attempt)
            raise
        except Exception:
            await self._end(_RELEASED, attempt)
            raise
        if answer.is_final:
            kept = answer.body if answer.kept is None else answer.kept
            await self._end(_ANSWERED, attempt, answer.status, answer.content_type, kept)
            await self._sweep()
        else:
            # Refused at the door, it did nothing; of a failure nobody knows, so its effect's id is kept.
            await self._end(_FORGOTTEN if answer.status < 500 else _RELEASED, attempt)
        return answer

    async def _claim(self, who: str, key: str, fingerprint: bytes) -> Attempt | Answer:
        now = self._now()
        until = now + timedelta(seconds=CLAIM_S)
        row = await self._pool.fetchrow(
            _CLAIM, who, key, fingerprint, self._new_id(), until, now, now - self._keep
        )
        if row is not None:
            return Attempt(who, key, until, row["effect_id"], row["done"])
        found = await self._pool.fetchrow(_FOUND, who, key)
        if found is not None and found["fingerprint"] != fingerprint:
            raise KeyReusedError(
                "this Idempotency-Key was sent with another method, path or body",
                field="idempotency-key", value=key, remedy="Make a new key for each new request.",
            )  # fmt: skip
        if found is None or found["status"] is None:
            raise KeyInUseError(
                "the first request with this Idempotency-Key has no answer yet",
                field="idempotency-key", value=key, remedy="Send the same again after Retry-After.",
            )  # fmt: skip
        return Answer(found["status"], found["content_type"], found["body"], is_repeat=True)

    async def _end(self, statement: str, attempt: Attempt, *values: Any) -> None:
        await self._pool.execute(
            statement, attempt.who, attempt.key, attempt.claimed_until, *values
        )

    async def _sweep(self) -> None:
        """Delete what is kept no longer, now and then."""
        now = self._now()
        if self._sweep_at is None or now >= self._sweep_at:
            self._sweep_at = now + timedelta(seconds=SWEEP_EVERY_S)
            await self._pool.execute(_SWEEP, now - self._keep, now)
