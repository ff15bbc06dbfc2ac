"""Commands about leads: why one is where it is; merge two, and undo it; have all published to Kafka again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import asyncpg
import httpx

from services.baton.command import told
from services.contracts.audit import Note, on_the_command_line, record


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
    from services.stage_service.snapshots import fill_again

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


MARKS = {"true": "yes", "false": "NO", "unknown": "?", "depends": "event"}
"""How a verdict is printed: also where there is no colour."""


async def why(url: str, key: str, lead: str, at: str | None) -> list[str]:
    """Ask why a lead, by id or e-mail address, is where it is, and give the answer as lines to read.

    `at`: as it was at a past moment. Raises ValueError with reason and remedy when it was refused,
    httpx.HTTPError when the service does not answer.
    """
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=10) as client:
        if "@" in lead:
            found = await _answered(client, "/v1/leads", {"email": lead})
            if not found["items"]:
                raise ValueError(
                    "no lead has this e-mail address. Give the lead's id, or another one."
                )
            lead = found["items"][0]["id"]
        asked = {"at": at} if at is not None else {}
        return list(_lines(await _answered(client, f"/v1/leads/{lead}/why", asked)))


async def _answered(client: httpx.AsyncClient, path: str, query: dict[str, str]) -> Any:
    answer = await client.get(path, params=query, follow_redirects=True)
    if answer.status_code != 200:
        raise ValueError(told(answer.json()) or answer.text)
    return answer.json()


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"lead {found['lead_id']} at {found['at']}"
    for journey in found["journeys"]:
        ref, score = journey["journey"], journey["score"] or {}
        yield ""
        yield (
            f"{ref['playbook']}/{ref['key']}: {journey['stage_title']} ({journey['stage']}) since "
            f"{journey['entered_at']}, score {score.get('total', 0)} (fit {score.get('fit', 0)}, "
            f"intent {score.get('intent', 0)}), playbook version {journey['playbook_version']}"
        )
        yield "  What would move it:"
        for move in journey["would_move"]:
            yield f"    {'->' if move['example'] else '--'} {move['says']}"
        if not journey["would_move"]:
            yield "    no rule; a person can, by hand"
        yield "  Each rule of the stage, in the order they are judged:"
        for rule in journey["rules"]:
            yield from _rule_lines(rule)


def _rule_lines(rule: dict[str, Any]) -> Iterator[str]:
    on = ", ".join(each["type"] for each in rule["on"]) if rule["on"] else "every event"
    yield f"    {MARKS[rule['verdict']]:>5}  {rule['rule']} -> {rule['to']}  on {on}"
    for clause in rule["clauses"]:
        values = ", ".join(
            f"{v['name']} = {'unknown' if v['value'] is None else v['value']}"
            for v in clause["values"]
        )
        turns = f"; turns at {clause['changes_at']}" if clause["changes_at"] else ""
        yield f"           {MARKS[clause['verdict']]:>5}  {clause['text']}  [{values}{turns}]"
    gate = rule["gate"]
    demanded = [*gate["missing"], *(["reason (of the event)"] if gate["reason"] else [])]
    if demanded:
        yield f"               ?  gate of {rule['to']}: {', '.join(demanded)} missing"
