"""I12 for Idempotency-Key: kill -9 while moves are carried out, send them again, and each moved once."""

from __future__ import annotations

import asyncio
import random
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.baton.verify import verify_database
from services.contracts import access
from tests.system.running import BATCHED, lead_event, stage_process

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

ROUNDS = 10
LEADS = 40
AT_ONCE = 3

_MOVED = "SELECT count(*) FROM stage.events WHERE type = 'baton.lead.moved'"


async def leads(client: httpx.AsyncClient) -> list[str]:
    """The ids of new leads."""
    events = [
        lead_event(str(uuid.uuid4()), "page.viewed", f"{uuid.uuid4()}@kill.example")
        for _ in range(LEADS)
    ]
    answer = await client.post("/v1/events", json=events, headers={"content-type": BATCHED})
    assert answer.status_code == 200, answer.text
    return [result["lead_id"] for result in answer.json()["results"]]


async def move(client: httpx.AsyncClient, lead: str) -> dict[str, Any] | int | None:
    """Move it: the answer's body; the status when it is not 200; None when there was no answer."""
    try:
        answer = await client.post(
            f"/v1/leads/{lead}/transitions", json={"to": "nurture", "reason": "later"},
            headers={"idempotency-key": f'"{lead}"'},
        )  # fmt: skip
    except httpx.TransportError:
        return None
    return answer.json() if answer.status_code == 200 else answer.status_code


async def test_i12_a_killed_process_moves_nobody_twice(database_url: str, tmp_path: Path) -> None:
    """Every lead moved once, and who heard an answer hears the same again."""
    connection = await asyncpg.connect(database_url)
    _, key = await access.create_key(connection, "kill", access.SCOPES)
    headers = {"authorization": f"Bearer {key}"}
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    unanswered = 0
    for number in range(ROUNDS):
        process, url = stage_process(database_url, tmp_path / "log")
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            ids = await leads(client)
            asked = [asyncio.create_task(move(client, id)) for id in ids * AT_ONCE]
            if number % 2:
                await asyncio.wait(asked, timeout=chance.uniform(0.02, 0.4))
            else:  # the moment that matters: moves are committed, their answers not yet stored
                while await connection.fetchval(_MOVED) == number * LEADS:
                    pass
            process.kill()
            heard = await asyncio.gather(*asked)
        process.wait()
        first: dict[str, Any] = {}
        for id, answer in zip(ids * AT_ONCE, heard, strict=True):
            assert answer is None or answer == 409 or first.setdefault(id, answer) == answer
        unanswered += await connection.fetchval(
            """SELECT count(*) FROM access.idempotency_keys k
               JOIN stage.events e ON e.source = 'baton' AND e.id = k.effect_id::text
               WHERE k.status IS NULL"""
        )
        # A minute passes: the claims of the dead process run out.
        await connection.execute(
            "UPDATE access.idempotency_keys SET claimed_until = now() WHERE claimed_until > now()"
        )
        process, url = stage_process(database_url, tmp_path / "log")
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            again = [await move(client, id) for id in ids]
        process.kill()
        process.wait()
        for id, answer in zip(ids, again, strict=True):
            assert isinstance(answer, dict), answer
            assert answer["transitions"][0]["to"] == "nurture"
            assert first.get(id, answer) == answer, f"seed {seed}"
    moved = await connection.fetch(
        "SELECT count(*) AS n FROM stage.transitions WHERE event_type = 'baton.lead.moved' "
        "GROUP BY lead_id"
    )
    await connection.close()
    assert [r["n"] for r in moved] == [1] * (ROUNDS * LEADS), f"seed {seed}"
    assert unanswered > 0, f"seed {seed}: no kill came between a move and its stored answer"
    assert (await verify_database(database_url)).findings == []
