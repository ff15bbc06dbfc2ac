"""Tells leads of a playbook version that concerns where they stand: their stage is gone, or they may enter.

Each hears by a lead event of ours, through the lane: whatever moves a journey is a stored event, and no quiet
lead has to wait for news. One process does it at a time, in the order of lead ids, some hundred at once.
An event's id is that of version, pass and lead: what a killed process told already is a repeat. A batch that
began before the publication may bring one more; so another pass comes later, until one finds nobody.
Who cannot hear (their state cannot be read, say) holds nobody up: it is counted and logged, and each pass
tries again, the passes ever further apart.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import structlog

from services.contracts.events import MAIN, PLAYBOOK_PUBLISHED, SOURCE, LeadEvent
from services.contracts.rounds import Round
from services.stage_service import metrics, versions
from services.stage_service.errors import OverloadedError, UnavailableError
from services.stage_service.identities import LEAD_IDENTITY
from services.stage_service.lane import Lane
from services.stage_service.playbook import Playbook
from services.stage_service.store import Connection
from services.stage_service.versions import Sweep

EVERY_S = 0.5
LEADS_A_TIME = 1000
EVENTS_A_BATCH = 100
"""Few enough that what senders wait for is not held up behind them."""
AGAIN_S = 60.0
"""Longer than any transaction lasts that began before the publication (its commands end after 30 s)."""
AGAIN_DOUBLINGS = 6
"""How often the time to the next pass doubles: to about an hour."""

_log = structlog.get_logger("baton.sweeper")

_GONE = """
SELECT j.lead_id::text AS lead_id, NULL AS key, min(l.last_seen_at) AS last
FROM stage.journeys j JOIN stage.leads l ON l.id = j.lead_id
WHERE j.playbook = $1 AND ($2::uuid IS NULL OR j.lead_id > $2) AND EXISTS (
  SELECT FROM unnest($3::text[], $4::int[]) AS k(stage, version)
  WHERE k.stage = j.stage AND j.playbook_version < k.version)
GROUP BY j.lead_id ORDER BY j.lead_id LIMIT $5
"""

_ENTERING = """
SELECT j.lead_id::text AS lead_id, j.key, l.last_seen_at AS last
FROM stage.journeys j JOIN stage.leads l ON l.id = j.lead_id
WHERE j.playbook = $1 AND j.stage = $2 AND ($3::uuid IS NULL OR j.lead_id > $3) AND NOT EXISTS (
  SELECT FROM stage.journeys o WHERE (o.lead_id, o.playbook, o.key) = (j.lead_id, $4, j.key))
ORDER BY j.lead_id FETCH FIRST $5 ROWS WITH TIES
"""


class Sweeper:
    """Its `round` tells leads what they have to hear; `now` gives the present moment."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        lane: Lane,
        now: Callable[[], datetime],
        *,
        again_s: float = AGAIN_S,
        leads_a_time: int = LEADS_A_TIME,
        events_a_batch: int = EVENTS_A_BATCH,
    ) -> None:
        self._pool = pool
        self._lane = lane
        self._now = now
        self._again_s = again_s
        self._leads_a_time, self._events_a_batch = leads_a_time, events_a_batch
        self.round = Round("sweeper", self.run_some, EVERY_S)

    async def run_some(self) -> bool:
        """Tell the next leads; gives whether there is more to do at once.

        Raises what the database raises, and OverloadedError or UnavailableError; who has not heard yet will.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            sweep = await versions.claim_sweep(connection)
            if sweep is None:
                return False
            await self._lane.look_at_playbooks()
            events = await self._events(connection, sweep)
            if not events:
                # Nobody more: the first pass and each that found somebody is followed by another.
                is_last = sweep.number > 1 and sweep.after is None
                again_in_s = self._again_s * 2.0 ** min(sweep.number - 1, AGAIN_DOUBLINGS)
                await versions.end_pass(connection, sweep, None if is_last else again_in_s)
                _log.info(
                    "playbook.swept", playbook=sweep.name, version=sweep.version,
                    number=sweep.number, done=is_last,
                )  # fmt: skip
                return True
            heard = 0
            for start in range(0, len(events), self._events_a_batch):
                heard += await self._tell(sweep, events[start : start + self._events_a_batch])
            await versions.note_swept(connection, sweep, events[-1].identities[0][1], heard)
        return True

    async def _tell(self, sweep: Sweep, events: list[LeadEvent]) -> int:
        """Submit `events`, one by one where one of them cannot be applied; give how many could."""
        try:
            return len(await self._lane.submit(events))
        except (OverloadedError, UnavailableError):
            raise
        except Exception as error:  # of one lead; the lane has logged it with the event's id
            if len(events) > 1:
                return sum([await self._tell(sweep, [event]) for event in events])
            metrics.SWEEP_FAILED.inc()
            _log.warning(
                "playbook.sweep_failed", playbook=sweep.name, version=sweep.version,
                lead_id=events[0].identities[0][1], reason=type(error).__name__,
            )  # fmt: skip
            return 0

    async def _events(self, connection: Connection, sweep: Sweep) -> list[LeadEvent]:
        """Give the events of the next leads that have to hear, in the order of their ids."""
        playbook = self._lane.playbooks[sweep.name]
        gone = [(stage, v) for v, moved in playbook.renames for stage in moved]
        rows = await connection.fetch(
            _GONE,
            sweep.name,
            sweep.after,
            [s for s, _ in gone],
            [v for _, v in gone],
            self._leads_a_time,
        )
        rows += await self._entering(connection, sweep, playbook)
        rows.sort(key=lambda r: r["lead_id"])
        if (
            len(rows) > self._leads_a_time
        ):  # two lists: what lies past the end of the shorter comes next time
            last = rows[self._leads_a_time - 1]["lead_id"]
            rows = [r for r in rows if r["lead_id"] <= last]
        now = self._now()
        return [_event(sweep, r["lead_id"], r["key"], r["last"], now) for r in rows]

    async def _entering(
        self, connection: Connection, sweep: Sweep, playbook: Playbook
    ) -> list[Any]:
        enters = playbook.enters
        other = self._lane.playbooks.get(enters.playbook) if enters is not None else None
        if enters is None or other is None:
            return []
        return await connection.fetch(
            _ENTERING,
            enters.playbook,
            other.named(enters.stage),
            sweep.after,
            sweep.name,
            self._leads_a_time,
        )


def _event(sweep: Sweep, lead_id: str, key: str | None, last: datetime, now: datetime) -> LeadEvent:
    """Make the event by which a lead hears; after everything known of it, whatever clocks a tool has."""
    id = f"{sweep.name}:{sweep.version}:{sweep.number}:{lead_id}"
    return LeadEvent(
        id=id if key is None else f"{id}:{key}", source=SOURCE, type=PLAYBOOK_PUBLISHED,
        time=max(now, last + timedelta(microseconds=1)), recorded_at=now, subject=None,
        identities=((LEAD_IDENTITY, lead_id),), deal=key or MAIN,
        data={"playbook": sweep.name, "version": sweep.version}, envelope={},
    )  # fmt: skip
