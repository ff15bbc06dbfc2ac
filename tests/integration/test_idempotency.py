"""``Idempotency-Key``: one effect and one answer, however often, at once, or across a crash (I2, I12)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from services.contracts.access import create_key
from services.contracts.idempotency import CLAIM_S, Answer, Attempt, Once, fingerprint_of
from services.contracts.problems import KeyInUseError, KeyReusedError
from tests.integration.stage import Stage, running_stage

FINGERPRINT = fingerprint_of("POST", "/x", "k", b"{}")


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 1, tzinfo=UTC)

    def now(self) -> datetime:
        """Give the moment."""
        return self.moment

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.moment += timedelta(seconds=seconds)


class Desk:
    """`Once` on a test database, and a deed that counts how often it is done."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self.pool = pool
        self.clock = Clock()
        self.once = Once(pool, self.clock.now, uuid.uuid4, keep_s=3600)
        self.attempts: list[Attempt] = []
        self.answer = Answer(200, "application/json", b"{}")
        self.gate = asyncio.Event()
        self.gate.set()

    async def act(self, attempt: Attempt) -> Answer:
        """Do it."""
        self.attempts.append(attempt)
        await self.gate.wait()
        return self.answer

    async def ask(self, fingerprint: bytes = FINGERPRINT, who: str = "k") -> Answer:
        """Ask with the key 'a'."""
        return await self.once.answer(who, "a", fingerprint, self.act)


@pytest.fixture
async def desk(database_url: str) -> AsyncIterator[Desk]:
    """A desk on a database of its own."""
    async with asyncpg.create_pool(database_url, min_size=1, max_size=10) as pool:
        yield Desk(pool)


async def test_the_first_answer_is_given_again(desk: Desk) -> None:
    """The same, and marked as a repeat; another person's key of the same name is another key."""
    first = await desk.ask()
    desk.answer = Answer(201, "text/plain", b"other")
    again = await desk.ask()
    assert (again.status, again.content_type, again.body) == (200, "application/json", b"{}")
    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert (await desk.ask(who="other")).status == 201
    assert len(desk.attempts) == 2


async def test_another_request_with_the_key_is_refused(desk: Desk) -> None:
    """While the first is under way, and after."""
    desk.gate.clear()
    task = asyncio.create_task(desk.ask())
    while not desk.attempts:
        await asyncio.sleep(0)
    other = fingerprint_of("POST", "/x", "k", b"{ }")
    with pytest.raises(KeyReusedError):
        await desk.ask(other)
    with pytest.raises(KeyInUseError):
        await desk.ask()
    desk.gate.set()
    await task
    with pytest.raises(KeyReusedError):
        await desk.ask(other)
    assert len(desk.attempts) == 1


async def test_a_claim_of_a_dead_process_runs_out(desk: Desk) -> None:
    """The repeat carries the request out under the same effect id; the late answer does not count."""
    desk.gate.clear()
    dead = asyncio.create_task(desk.ask())
    while not desk.attempts:
        await asyncio.sleep(0)
    desk.clock.pass_(CLAIM_S - 1)
    with pytest.raises(KeyInUseError):
        await desk.ask()
    desk.clock.pass_(1)
    desk.gate.set()
    await asyncio.gather(dead, desk.ask())
    assert len({a.effect_id for a in desk.attempts}) == 1
    assert (await desk.ask()).is_repeat


async def test_who_lost_the_claim_cannot_commit(desk: Desk) -> None:
    """`mark_done` is the fence of an effect that carries no id."""
    desk.gate.clear()
    slow = asyncio.create_task(desk.ask())
    while len(desk.attempts) < 1:
        await asyncio.sleep(0)
    desk.clock.pass_(CLAIM_S)
    other = asyncio.create_task(desk.ask())
    while len(desk.attempts) < 2:
        await asyncio.sleep(0)
    async with desk.pool.acquire() as connection:
        with pytest.raises(KeyInUseError):
            await desk.attempts[0].mark_done(connection)
        await desk.attempts[1].mark_done(connection)
    desk.gate.set()
    await asyncio.gather(slow, other)


async def test_an_effect_that_was_marked_is_known_after_a_crash(desk: Desk) -> None:
    """The repeat hears `done`."""

    async def crash(attempt: Attempt) -> Answer:
        async with desk.pool.acquire() as connection:
            await attempt.mark_done(connection)
        raise ConnectionError("and the process is gone")

    with pytest.raises(ConnectionError):
        await desk.once.answer("k", "a", FINGERPRINT, crash)
    await desk.ask()
    assert desk.attempts[0].done


@pytest.mark.parametrize("status", [500, 503])
async def test_a_failure_is_tried_again_under_the_same_id(desk: Desk, status: int) -> None:
    """Nobody knows what it did."""
    desk.answer = Answer(status, "application/json", b"{}")
    assert (await desk.ask()).status == status
    desk.answer = Answer(200, "application/json", b"{}")
    assert (await desk.ask()).status == 200
    assert desk.attempts[0].effect_id == desk.attempts[1].effect_id


@pytest.mark.parametrize("status", [401, 403, 429])
async def test_what_was_refused_at_the_door_leaves_the_key_free(desk: Desk, status: int) -> None:
    """Also for another request."""
    desk.answer = Answer(status, "application/json", b"{}")
    await desk.ask()
    await desk.ask(fingerprint_of("POST", "/y", "k", b""))
    assert len(desk.attempts) == 2


async def test_answers_are_kept_as_long_as_told_then_deleted(desk: Desk) -> None:
    """After that the key is a new one, with a new effect id."""
    await desk.ask()
    desk.clock.pass_(3599)
    assert (await desk.ask()).is_repeat
    desk.clock.pass_(1)
    assert not (await desk.ask()).is_repeat
    assert desk.attempts[0].effect_id != desk.attempts[1].effect_id
    desk.clock.pass_(3600)
    await desk.once.answer("k", "b", FINGERPRINT, desk.act)
    assert await desk.pool.fetch("SELECT key FROM access.idempotency_keys") == [("b",)]


async def test_many_at_once_have_one_effect(desk: Desk) -> None:
    """Twenty at once: one answer carried out, the others hear it or 409."""
    for key in range(20):
        done: list[Attempt] = []

        async def act(attempt: Attempt, done: list[Attempt] = done) -> Answer:
            done.append(attempt)
            return Answer(200, "text/plain", attempt.effect_id.bytes)

        answers = await asyncio.gather(
            *(desk.once.answer("k", str(key), FINGERPRINT, act) for _ in range(20)),
            return_exceptions=True,
        )
        assert len(done) == 1
        assert {a.body for a in answers if isinstance(a, Answer)} == {done[0].effect_id.bytes}
        assert all(isinstance(a, Answer | KeyInUseError) for a in answers)


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    """A stage service."""
    async with running_stage(database_url) as it:
        yield it


async def new_lead(stage: Stage) -> str:
    """A lead in the first stage."""
    [result] = await stage.send({
        "specversion": "1.0", "id": str(uuid.uuid4()), "source": "/x", "type": "page.viewed",
        "data": {"email": f"{uuid.uuid4()}@example.com"},
    })  # fmt: skip
    return result["lead_id"]


async def move(stage: Stage, lead: str, key: str | None, **wish: Any) -> httpx.Response:
    """Move the lead by hand."""
    headers = {"idempotency-key": key} if key is not None else {}
    body = {"to": "nurture", "reason": "no budget"} | wish
    return await stage.client.post(f"/v1/leads/{lead}/transitions", json=body, headers=headers)


async def moves(stage: Stage) -> int:
    """How many moves by hand are stored."""
    return await stage.connection.fetchval(
        "SELECT count(*) FROM stage.events WHERE type = 'baton.lead.moved'"
    )


async def test_a_move_sent_again_moves_once(stage: Stage) -> None:
    """And is answered the same; without the key the second is a conflict."""
    lead = await new_lead(stage)
    first = await move(stage, lead, '"one"')
    assert first.status_code == 200, first.text
    assert "idempotency-replayed" not in first.headers
    again = await move(stage, lead, '"one"')
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["idempotency-replayed"] == "true"
    assert (await move(stage, lead, None)).status_code == 409
    assert await moves(stage) == 1


async def test_a_move_whose_answer_was_lost_is_answered_the_same(stage: Stage) -> None:
    """The process died between the commit and the stored answer: no second move, the same words (I12)."""
    lead = await new_lead(stage)
    first = await move(stage, lead, '"one"')
    lost = await stage.connection.execute(
        "UPDATE access.idempotency_keys SET status = NULL, body = NULL, claimed_until = now()"
    )
    assert lost == "UPDATE 1"
    again = await move(stage, lead, '"one"')
    assert again.status_code == 200, again.text
    assert "idempotency-replayed" not in again.headers
    assert again.json() == first.json()
    assert await moves(stage) == 1


async def test_a_refusal_is_an_answer_too(stage: Stage) -> None:
    """The same key tells the same refusal; nothing moves."""
    lead = await new_lead(stage)
    refused = await move(stage, lead, '"no"', to="lead")
    assert refused.status_code == 409, refused.text
    again = await move(stage, lead, '"no"', to="lead")
    assert (again.status_code, again.content) == (409, refused.content)
    assert again.headers["content-type"] == "application/problem+json"
    assert await moves(stage) == 0


async def test_the_problems_of_a_key(stage: Stage) -> None:
    """400 malformed, 422 reused, and 422 for a request that cannot be read leaves the key free."""
    lead = await new_lead(stage)
    answer = await move(stage, lead, '"open')
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency-key-malformed")
    answer = await move(stage, lead, '"a"', nonsense=1)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert (await move(stage, lead, '"a"')).status_code == 200
    answer = await move(stage, lead, '"a"', reason="another")
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency-key-reused")
    answer = await move(stage, str(uuid.uuid4()), '"a"')
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency-key-reused")


async def test_at_once_over_http(stage: Stage) -> None:
    """Ten at once: one move; the others hear the same or 409 with Retry-After."""
    lead = await new_lead(stage)
    answers = await asyncio.gather(*(move(stage, lead, '"one"') for _ in range(10)))
    good = [a for a in answers if a.status_code == 200]
    assert good
    assert {a.content for a in good} == {good[0].content}
    for answer in answers:
        if answer.status_code != 200:
            assert (answer.status_code, answer.json()["code"]) == (409, "idempotency-key-in-use")
            assert int(answer.headers["retry-after"]) > 0
    assert await moves(stage) == 1


async def test_a_key_opens_no_door(stage: Stage) -> None:
    """Without a valid API key there is no repeat, nor for another's, nor without the scope."""
    lead = await new_lead(stage)
    assert (await move(stage, lead, '"one"')).status_code == 200
    for authorization in ("", "Bearer bat_0_0"):
        stage.client.headers["authorization"] = authorization
        assert (await move(stage, lead, '"one"')).status_code == 401
    _, other = await create_key(stage.connection, "other", ["read"])
    stage.client.headers["authorization"] = f"Bearer {other}"
    assert (await move(stage, lead, '"one"')).status_code == 403
    assert await moves(stage) == 1
