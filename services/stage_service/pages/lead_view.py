"""What the page of one lead shows: the score taken apart, the way so far, and the story with its whys."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from services.contracts.events import MERGED_BY_HAND, SOURCE, UNMERGED_BY_HAND
from services.stage_service import funnel
from services.stage_service.playbook import Playbook, Stage
from services.stage_service.scoring import Scoring, signal_points

A_BATCH = timedelta(seconds=10)
"""A message is made within so long after the moment that its batch is recorded at."""


@dataclass(frozen=True)
class ScoreLine:
    """One reason for points; `points` 0: it does not count now."""

    because: str
    points: float
    note: str = ""


@dataclass(frozen=True)
class ScoreExplained:
    """A lead's score at a moment, line by line."""

    fit: int
    intent: int
    total: int
    fit_lines: list[ScoreLine]
    intent_lines: list[ScoreLine]


def score_explained(playbook: Playbook, lead: funnel.Lead, at: datetime) -> ScoreExplained:
    """Take the lead's score under `playbook` apart, as it is at the moment `at`."""
    scoring = lead.scoring.get(playbook.name) or Scoring(0, [], {})
    score = funnel.score_of(lead, playbook, at)
    counted = set(scoring.fit_keys)
    fit = [ScoreLine(r.because, r.points if r.key in counted else 0) for r in playbook.fit]
    now = signal_points(playbook, scoring, at.timestamp())
    intent = [
        ScoreLine(s.because, round(now.get(s.key, 0.0), 1), f"halves every {s.half_life_days:g} d")
        for s in playbook.signals_by_key.values()
    ]
    return ScoreExplained(
        score.fit, score.intent, score.total,
        sorted(fit, key=lambda line: -line.points), sorted(intent, key=lambda line: -line.points),
    )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One stage of the path as a journey went it: ``done``, ``skipped``, ``current``, ``left`` or ``ahead``.

    ``left``: it was there, and went back.
    """

    stage: Stage
    state: str
    entered_at: datetime | None
    wanted: dict[str, Any] | None
    """The move a gate holds, when it leads here."""


def steps(
    playbook: Playbook, journey: dict[str, Any], items: Iterable[dict[str, Any]]
) -> list[Step]:
    """Lay a journey along the path of `playbook`; what is stored may have names of earlier versions."""
    entered: dict[str, datetime] = {playbook.first_stage: journey["started_at"]}
    for item in items:
        holds = item["kind"] in ("transition", "correction") and not item["replaced_by"]
        if holds and item["journey"]["id"] == journey["id"] and item["from"] != item["to"]:
            entered[playbook.named(item["to"])] = item["occurred_at"]
    far, stands = (playbook.named(journey[k]) for k in ("furthest_stage", "stage"))
    furthest = (playbook.stages[far].path_index if far in playbook.stages else None) or 0
    held = {playbook.named(h["to"]): h for h in journey["held"]}
    found: list[Step] = []
    here = playbook.stages[stands].path_index
    for i, key in enumerate(playbook.path):
        if key == stands:
            state = "current"
        elif here is not None and i > here:
            state = "left" if key in entered else "ahead"
        elif i > furthest:
            state = "ahead"
        else:
            state = "done" if key in entered else "skipped"
        at = entered.get(key) if state in ("current", "done", "left") else None
        found.append(Step(playbook.stages[key], state, at, held.get(key)))
    return found


@dataclass
class Chapter:
    """One event of a lead's story, with the records it caused and the alerts these led to."""

    at: datetime
    event: dict[str, Any] | None = None
    records: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    merges: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The merges that the event led to."""
    handoffs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What became of handoffs by the event."""
    told: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The alerts of the clock that the event is."""
    late_s: float | None = None
    """How long after its time it arrived, when events of a later time were there before it."""


def story(items: Sequence[dict[str, Any]], alerts: Sequence[dict[str, Any]]) -> list[Chapter]:
    """Tell the timeline newest first, each record under the event that caused it."""
    of_transition: dict[str, list[dict[str, Any]]] = {}
    for alert in alerts:
        of_transition.setdefault(alert["transition_id"], []).append(alert)
    chapters: list[Chapter] = []
    by_event: dict[tuple[str, str], Chapter] = {}
    overtaken = _overtaken(items)
    for item in items:
        if item["kind"] in ("event", "clock"):
            if item["source"] == SOURCE and item["type"] in (MERGED_BY_HAND, UNMERGED_BY_HAND):
                continue  # the merge tells it
            if item["kind"] == "clock" and not item["counts"]:
                continue  # it was about what was over already
            place = item["source"], item["id"]
            late = item["arrived_after_s"] if place in overtaken else None
            chapter = Chapter(item["occurred_at"], item, late_s=late)
            by_event[place] = chapter
            chapters.append(chapter)
            continue
        if item["kind"] == "merge":
            # Who was told of the merged lead was told of its own records, which are not here.
            told = [
                a for a in alerts if a["lead_id"] == item["merged"] and item["action"] == "merged"
            ]
            chapters.append(Chapter(item["occurred_at"], merges=[item | {"alerts": told}]))
            continue
        cause = item["cause"] or {"event_source": "", "event_id": f"{item['occurred_at']}"}
        chapter = by_event.get((cause["event_source"], cause["event_id"]))
        if chapter is None:
            chapter = Chapter(item["occurred_at"])
            by_event[cause["event_source"], cause["event_id"]] = chapter
            chapters.append(chapter)
        if item["kind"] == "handoff":
            chapter.handoffs.append(item)
            continue
        told = of_transition.get(item["transition_id"], [])
        chapter.records.insert(0, item | {"alerts": told})
    _tell_clocks(chapters, alerts)
    return chapters[::-1]


def _tell_clocks(chapters: Sequence[Chapter], alerts: Sequence[dict[str, Any]]) -> None:
    """Put each alert of a clock to the step that it tells of.

    Its message was made as the step was recorded, which the message's id says; and a handoff's clock is one.
    """
    clocks = [(c, c.event) for c in chapters if c.event is not None and c.event["kind"] == "clock"]
    for alert in alerts:
        made = _made_at(alert["transition_id"]) if alert["kind"] in ("clock", "handoff") else None
        if made is None:
            continue
        fitting = [(e["recorded_at"], c) for c, e in clocks if _tells(alert, e, made)]
        if fitting:
            max(fitting, key=lambda each: each[0])[1].told.append(alert)


def _tells(alert: dict[str, Any], event: dict[str, Any], made: datetime) -> bool:
    """Tell whether an alert, its message `made` then, can be of a clock's step."""
    of_handoff = event["clock_kind"] == "handoff"
    # That the deadline has passed, a handoff says itself.
    kind = "handoff" if of_handoff and event["action"] == "fired" else "clock"
    return (
        timedelta() <= made - event["recorded_at"] < A_BATCH
        and alert["kind"] == kind
        and of_handoff == (alert["handoff_id"] is not None)
    )


def _made_at(id: str) -> datetime | None:
    """Give when an id was made, if it says so (UUIDv7), at the end of its millisecond."""
    number = uuid.UUID(id)
    if number.version != 7:
        return None
    return datetime.fromtimestamp(((number.int >> 80) + 1) / 1000, UTC)


def _overtaken(items: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    """Give the events that were recorded after an event of a later time: they came in late."""
    found: set[tuple[str, str]] = set()
    first_recorded: datetime | None = None
    for item in reversed([i for i in items if i["kind"] == "event"]):
        if first_recorded is not None and item["recorded_at"] > first_recorded:
            found.add((item["source"], item["id"]))
        else:
            first_recorded = item["recorded_at"]
    return found
