"""(d) The pure fold: events a second on one core, nothing else around it."""

from __future__ import annotations

import gc
import json
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from bench.measure import Figure, Options, Result, alternate
from bench.traffic import story
from services.baton.places import PLAYBOOKS
from services.contracts.cloudevents import CloudEvent
from services.contracts.events import LeadEvent, lead_event
from services.contracts.problems import Defect
from services.stage_service.funnel import Lead, fold
from services.stage_service.playbook import Playbook, parse_playbook

KEY = "d"
TITLE = "The fold alone"
METHOD = (
    "`funnel.fold` with `playbooks/sales.yaml` in one process on a stream of {events:,} events of "
    "{leads:,} leads, mixed as they would arrive: page views, clicks, downloads, updates that bring "
    "attributes, and the events that move leads. Events are read beforehand; each round folds the whole "
    "stream from nothing, timed in CPU seconds of the process. The target is absolute, per core. "
    "Baseline, so that machines can be compared: `json.loads` of the standard library on the same events "
    "as structured CloudEvents."
)


def stream(leads: int) -> list[LeadEvent]:
    """Make the events of `leads` leads in the order of time."""
    chance = random.Random(11)
    now = datetime.now(UTC)
    events: list[LeadEvent] = []
    for number in range(leads):
        for index, (type_, at, data) in enumerate(story(chance, number, now)):
            read = lead_event(
                CloudEvent(
                    f"{number}-{index}", "/bench", type_, at, None, data, None, None, {}, None
                ),
                now + timedelta(days=1),
            )
            if isinstance(read, Defect):
                raise TypeError(read.reason)
            events.append(read)
    events.sort(key=lambda e: e.place)
    return events


def playbooks() -> dict[str, Playbook]:
    """Read the sales playbook as the service does."""
    path = PLAYBOOKS / "sales.yaml"
    playbook = replace(parse_playbook(path.read_text(encoding="utf-8"), str(path)), version=1)
    return {playbook.name: playbook}


async def run(options: Options) -> Result:
    """Measure it."""
    leads = 1500 if options.quick else 5000
    events = stream(leads)
    active = playbooks()
    texts = [
        json.dumps({
            "specversion": "1.0", "id": e.id, "source": e.source, "type": e.type,
            "time": e.time.isoformat(), "data": e.data,
        })
        for e in events
    ]  # fmt: skip
    moves = unevaluated = 0

    async def folded(number: int) -> float:
        nonlocal moves, unevaluated
        moves = unevaluated = 0
        states: dict[str, Lead] = {}
        gc.collect()
        began = time.process_time()
        for event in events:
            key = event.identities[0][1]
            done = fold(active, states.get(key), event)
            states[key] = done.lead
            moves += len(done.moves)
            unevaluated += len(done.unevaluated)
        return len(events) / (time.process_time() - began)

    async def loaded(number: int) -> float:
        gc.collect()
        began = time.process_time()
        for text in texts:
            json.loads(text)
        return len(events) / (time.process_time() - began)

    rounds = await alternate(options.times(), loaded, folded, options.say)
    figure = Figure(
        "throughput", "events/s", "json.loads of the same events", rounds, target=30_000,
        absolute=True,
    )  # fmt: skip
    note = (
        f"{len(events) / leads:.1f} events a lead; {moves:,} moves ({moves / len(events):.0%} of the "
        f"events); {unevaluated:,} rules could not be evaluated."
    )
    return Result(KEY, TITLE, METHOD.format(events=len(events), leads=leads), [figure], [note])
