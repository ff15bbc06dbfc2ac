"""`baton verify --repair`: put right what verify found, lead by lead, from what the events prove.

Each lead is locked, looked at again, mended and audited in one transaction, so it runs beside live traffic;
stopped half-way, what is done is done, and the next run goes on. A dry run does the same and rolls back.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import asyncpg
import msgspec

from services.baton.verify_leads import check_leads
from services.contracts.audit import Actor, Note, record
from services.contracts.roster import Roster
from services.contracts.team import team_of
from services.contracts.verification import Mended, Repair, Verification
from services.stage_service import store
from services.stage_service.batch import RacedError
from services.stage_service.identities import Policy
from services.stage_service.lane import new_id
from services.stage_service.mending import Mending, locked_record
from services.stage_service.shelf import Shelf
from services.stage_service.store import Connection

TRIES_MAX = 3
_MERGED = "it was merged into another lead: its records are not published any more"
_PROVES_NOTHING = "no event of it is stored: nothing proves how it was"

_UNTOLD = """
SELECT t.lead_id::text, array_agg(t.id::text ORDER BY t.journey_id, t.sequence) AS ids
FROM stage.transitions t
WHERE NOT EXISTS (SELECT FROM bus.outbox o WHERE o.message_id = t.id::text)
GROUP BY t.lead_id ORDER BY t.lead_id
"""
_JOURNEYS = """
SELECT playbook, key, stage, (SELECT count(*) FROM stage.transitions t WHERE t.journey_id = j.id) AS records
FROM stage.journeys j WHERE lead_id = $1::uuid ORDER BY playbook, key
"""
# What was written and is neither published nor waiting was lost on the way: the relay takes it up again.
_QUEUE = """
INSERT INTO bus.pending (outbox_id)
SELECT o.id FROM bus.outbox o
WHERE NOT EXISTS (SELECT FROM bus.log l WHERE l.outbox_id = o.id)
  AND NOT EXISTS (SELECT FROM bus.pending p WHERE p.outbox_id = o.id)
ON CONFLICT DO NOTHING RETURNING outbox_id
"""
# An identity of a lead that does not exist keeps its owner from being found. The mending gives it back.
_DROP_ORPHANS = """
DELETE FROM stage.identities i WHERE NOT EXISTS (SELECT FROM stage.leads l WHERE l.id = i.lead_id)
RETURNING kind
"""


_DEFAULT = Policy()


class _DryRunError(Exception):
    """Rolls a transaction back that was only tried."""


async def repair(
    database_url: str,
    report: Verification,
    by: Actor,
    *,
    dry_run: bool,
    policy: Policy = _DEFAULT,
    progress: Callable[[int, int], None] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Repair:
    """Repair what `report` found; gives what was done, or with `dry_run` what would be.

    `by` stands in the audit. `policy` says what names a person here. Raises what the database raises.
    """
    done = Repair(dry_run)
    connection = await asyncpg.connect(database_url)
    try:
        shelf, roster = Shelf(), Roster(team_of(()))
        await shelf.load(connection)
        await roster.look(connection)
        done.others = await _others(connection, by, dry_run=dry_run)
        untold = {r["lead_id"]: r["ids"] for r in await connection.fetch(_UNTOLD)}
        ids = sorted({*report.damaged, *untold})
        for number, lead_id in enumerate(ids, 1):
            mending = Mending(connection, shelf, roster, policy, now(), new_id)
            mended = await _again(connection, shelf, mending, lead_id, untold.get(lead_id, []), by,
                                  dry_run=dry_run)  # fmt: skip
            if mended is not None:
                done.leads.append(mended)
            if progress is not None:
                progress(number, len(ids))
    finally:
        await connection.close()
    return done


async def _others(connection: Connection, by: Actor, *, dry_run: bool) -> list[str]:
    said: list[str] = []
    try:
        async with connection.transaction():
            for statement, told in (
                (_QUEUE, "{n} messages wait for the relay again, which had lost them"),
                (_DROP_ORPHANS, "{n} identities of no lead are free again"),
            ):
                count = len(await connection.fetch(statement))
                if count:
                    said.append(told.format(n=count))
            if said:
                await record(
                    connection, by, Note("repaired", "database", "bus", None, {"repaired": said})
                )
            if dry_run:
                raise _DryRunError
    except _DryRunError:
        pass
    return said


async def _again(
    connection: Connection, shelf: Shelf, mending: Mending, lead_id: str, untold: list[str],
    by: Actor, *, dry_run: bool,
) -> Mended | None:  # fmt: skip
    """Mend a lead; once more when live traffic was in the way."""
    mended: Mended | None = None
    for last in (False,) * (TRIES_MAX - 1) + (True,):
        try:
            async with connection.transaction():
                mended = await _mend(connection, shelf, mending, lead_id, untold, by)
                if dry_run:
                    raise _DryRunError
            return mended
        except _DryRunError:
            return mended
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, RacedError) as error:
            if last:
                return await _left(connection, shelf, lead_id, error)
        except (asyncpg.PostgresError, msgspec.MsgspecError, LookupError, ValueError) as error:
            return await _left(connection, shelf, lead_id, error)
    raise AssertionError


async def _left(connection: Connection, shelf: Shelf, lead_id: str, error: Exception) -> Mended:
    """Say of a lead that was rolled back, and is as it was, why nothing was done."""
    async with connection.transaction():
        await connection.execute(
            "SELECT FROM stage.leads WHERE id = $1::uuid FOR NO KEY UPDATE", lead_id
        )
        await shelf.load(connection)
        before = await check_leads(connection, shelf, [lead_id])
        stages = await _journeys(connection, lead_id)
    told = f"{type(error).__name__}: {error}"
    return Mended(lead_id, before.findings, stages, stages, 0, before.findings, told)


async def _mend(
    connection: Connection, shelf: Shelf, mending: Mending, lead_id: str, untold: list[str], by: Actor
) -> Mended | None:  # fmt: skip
    held = await locked_record(connection, lead_id)
    if held is None:  # merged: the survivor is looked at
        lost = [f"record {id} of lead {lead_id} has no message" for id in untold]
        return Mended(lead_id, lost, {}, {}, 0, lost, _MERGED) if lost else None
    await shelf.load(
        connection
    )  # what was published since; locked, the lead hears of nothing newer
    found = (await check_leads(connection, shelf, [lead_id])).findings
    if not found and not untold:
        return None  # live traffic has put it right
    found += [f"record {id} of lead {lead_id} has no message" for id in untold]
    before = await _journeys(connection, lead_id)
    events = (await store.events_of_leads(connection, [lead_id]))[lead_id]
    if not events:
        return Mended(lead_id, found, before, before, 0, found, _PROVES_NOTHING)
    published = await mending.mend(held, events, untold)
    after = await _journeys(connection, lead_id)
    left = (await check_leads(connection, shelf, [lead_id])).findings
    note = Note(
        "repaired", "lead", lead_id, {"changed": found, "lead": before},
        {"left": left, "lead": after}, lead_id,
    )  # fmt: skip
    await record(connection, by, note)
    return Mended(lead_id, found, before, after, published, left)


async def _journeys(connection: Connection, lead_id: str) -> dict[str, tuple[str, int]]:
    return {
        f"{row['playbook']}/{row['key']}": (row["stage"], row["records"])
        for row in await connection.fetch(_JOURNEYS, lead_id)
    }
