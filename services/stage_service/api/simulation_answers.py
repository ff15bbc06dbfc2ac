"""What the routes of simulations answer."""

from __future__ import annotations

from typing import Literal

import msgspec

from services.contracts.leads import Id, Moment
from services.contracts.simulations import Simulated


class SimulationProgress(msgspec.Struct):
    """How far it is; `leads_total` is null until they are counted."""

    leads_done: int
    leads_total: int | None


class SimulationListed(msgspec.Struct):
    """A simulation; `reason` says why it failed, `asked_by` whose key began it."""

    id: Id
    playbook: str
    digest: str
    state: Literal["running", "done", "failed", "cancelled"]
    reason: str | None
    since: Moment | None
    workers: int
    asked_by: str
    started_at: Moment
    ended_at: Moment | None
    progress: SimulationProgress


class SimulationShown(SimulationListed):
    """A simulation with its result, null until it is done."""

    result: Simulated | None
