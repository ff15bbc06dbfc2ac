"""The simulation past one machine: the same pure fold over exported rows, in whatever engine has them.

`baton events export` writes what `Exported` describes; any engine that can bring the rows of a lead together
(Spark's ``applyInPandas``, Dask, DuckDB) gives them to `tally_of` and adds up what comes back. Pure: no
database, no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import msgspec

from services.contracts.events import LeadEvent
from services.contracts.team import Person
from services.stage_service.funnel import journey_name
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_succession import following
from services.stage_service.simulation import Past, Simulation, Step, Tally
from services.stage_service.simulations.history import event_of

FORMAT = 2
"""2: versions say where the journeys of stages that are gone go on."""
EVENT_COLUMNS = (
    "lead_id", "source", "id", "type", "time", "recorded_at", "deal", "data", "epoch",
)  # fmt: skip
JOURNEY_COLUMNS = (
    "lead_id", "playbook", "key", "stage", "furthest_stage", "moves", "handoffs",
)  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Offered = tuple[str, datetime, datetime | None]


class PublishedText(msgspec.Struct, frozen=True):
    """A version of a playbook, as it was published.

    `migrate` is where the journeys of stages that are gone since the version before go on; who publishes may
    say so beside the text.
    """

    name: str
    version: int
    source: str
    migrate: dict[str, str]


class Exported(msgspec.Struct, frozen=True):
    """``baton.json`` of an export, written last: what the rows cannot say by themselves.

    `active` has, by epoch, the version of each playbook that events recorded then are folded under.
    """

    format: int
    exported_at: datetime
    leads: int
    events: int
    journeys: int
    playbooks: list[PublishedText]
    active: dict[int, dict[str, int]]


class Job(msgspec.Struct, frozen=True):
    """What every process of an engine needs to know; it is JSON, so it goes wherever they are.

    `hours` as `pool.hours_of` gives them; `until` is when the story ends, `since` when counting begins.
    """

    candidate: str
    file: str
    hours: dict[str, Person]
    until: datetime
    since: datetime | None
    exported: Exported


def candidate_of(job: Job) -> Playbook:
    """Give the candidate as the version after the newest of its name. Raises SourceError."""
    candidate = parse_playbook(job.candidate, job.file)
    newest = job.exported.active[max(job.exported.active)].get(candidate.name, 0)
    return replace(candidate, version=newest + 1)


def simulation_of(job: Job) -> Simulation:
    """Make the fold of `job`."""
    texts: dict[tuple[str, int], Playbook] = {}
    for p in sorted(job.exported.playbooks, key=lambda p: p.version):
        parsed = parse_playbook(p.source, f"{p.name} version {p.version}")
        before = texts.get((p.name, p.version - 1))
        texts[p.name, p.version] = following(parsed, before, p.version, p.migrate)
    active = {
        epoch: {name: texts[name, version] for name, version in versions.items()}
        for epoch, versions in job.exported.active.items()
    }
    return Simulation(candidate_of(job), active, job.hours, job.until, job.since)


@cache
def told_to(job: bytes) -> tuple[Simulation, datetime | None]:
    """Give the fold of a `Job` as JSON, and its `since`: made once in each process of an engine."""
    told = msgspec.json.decode(job, type=Job)
    return simulation_of(told), told.since


def history_of(moves: Sequence[Step], handoffs: Sequence[_Offered]) -> tuple[bytes, bytes]:
    """Give a journey's recorded moves and handoffs as the export has them."""
    return msgspec.json.encode(moves), msgspec.json.encode(handoffs)


_steps = msgspec.json.Decoder(list[Step]).decode
_offers = msgspec.json.Decoder(list[_Offered]).decode


def moment(microseconds: int) -> datetime:
    """Give the moment that lies so many microseconds after 1970."""
    return _EPOCH + timedelta(microseconds=int(microseconds))


def tally_of(
    simulation: Simulation,
    since: datetime | None,
    events: Iterable[Mapping[str, Any]],
    journeys: Iterable[Mapping[str, Any]],
) -> Tally:
    """Give the numbers of some leads: all their rows, in any order, times in microseconds after 1970.

    `Tally.add` of those of all leads is the simulation's, however they were put together.
    """
    told: dict[str, list[tuple[LeadEvent, int]]] = {}
    for row in events:
        event = event_of(
            row["source"], row["id"], row["type"], moment(row["time"]), moment(row["recorded_at"]),
            row["deal"], row["data"],
        )  # fmt: skip
        told.setdefault(row["lead_id"], []).append((event, int(row["epoch"])))
    past: dict[str, dict[str, Past]] = {}
    for row in journeys:
        name = journey_name(row["playbook"], row["key"])
        past.setdefault(row["lead_id"], {})[name] = Past(
            row["playbook"], row["key"], row["stage"], row["furthest_stage"],
            _steps(row["moves"]), _offers(row["handoffs"]),
        )  # fmt: skip
    # By id: of the differences the first ones are kept.
    chosen = {
        id: told.get(id, [])
        for id in sorted(told.keys() | past.keys())
        if since is None or any(event.time >= since for event, _ in told.get(id, []))
    }
    return simulation.run(chosen, past)
