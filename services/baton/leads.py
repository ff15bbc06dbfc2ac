"""Commands about leads: merge two by hand, and undo it; have all published to Kafka again."""

from __future__ import annotations

import asyncpg
import httpx

from services.baton.command import told
from services.contracts.audit import Note, on_the_command_line, record
from services.stage_service.snapshots import fill_again


async def regroup(url: str, key: str, deed: str, lead: str, other: str, reason: str) -> str:
    """Ask the stage service to ``merge`` or ``unmerge`` (`deed`) `other`, and say what it answered.

    Raises ValueError with its reason and remedy when it refused, httpx.HTTPError when it does not answer.
    """
    async with httpx.AsyncClient(
        base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=10
    ) as client:
        answer = await client.post(
            f"/v1/leads/{lead}/{deed}", json={"lead": other, "reason": reason}
        )
    body = answer.json()
    if answer.status_code != 200:
        raise ValueError(told(body) or answer.text)
    records = len(body["transitions"])
    done = f"{other} is part of" if deed == "merge" else f"{other} is by itself again, apart from"
    if deed == "merge" and body["lead_id"] == other:
        done, other = f"{lead} is part of", lead
    return f"{done} {body['lead_id']}; {records} records of history changed"


async def snapshot_again(database_url: str) -> int | None:
    """Have every lead published to ``baton.leads`` once more; gives how many, None: nobody publishes."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            if not await fill_again(connection):
                return None
            asked = Note("published again", "snapshots", "baton.leads")
            await record(connection, on_the_command_line(), asked)
        return await connection.fetchval("SELECT count(*) FROM stage.leads")
    finally:
        await connection.close()
