"""The playbook as data: stages, roles, rules, gates and scores, checked before anybody runs it. Pure.

`parse_playbook` reads a file to a `Playbook` or refuses it with every mistake at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from services.contracts.cloudevents import parse_time
from services.stage_service.conditions import Condition, TypeName

BANDS = ("tofu", "mofu", "bofu", "post-sale", "exit")
BAND_TITLES = {
    "tofu": "Top of Funnel (ToFu)",
    "mofu": "Middle of Funnel (MoFu)",
    "bofu": "Bottom of Funnel (BoFu)",
    "post-sale": "Post-Sale",
    "exit": "Exit",
}
KINDS = ("open", "won", "lost", "exit")
STRATEGIES = ("weighted", "round_robin", "least_loaded")


@dataclass(frozen=True)
class Role:
    """A role of the sales organisation and what it does."""

    key: str
    title: str
    does: str


@dataclass(frozen=True)
class Gate:
    """What must be known when a stage is entered: attributes (``lead.budget``), and a reason."""

    require: tuple[str, ...] = ()
    reason: bool = False


@dataclass(frozen=True)
class Stage:
    """A position in the playbook. `path_index` is its place on the way to won; None: an exit."""

    key: str
    title: str
    band: str
    kind: str
    focus: str
    goal: str
    responsible: tuple[str, ...]
    guidance: tuple[str, ...]
    next_steps: tuple[str, ...]
    gate: Gate
    alerts: tuple[str, ...]
    path_index: int | None
    urgent: bool = False
    """Its alerts go out at any hour, at once."""


@dataclass(frozen=True)
class Rule:
    """Moves a journey to the stage `to`; `on` None: judged at every event."""

    key: str
    to: str
    from_stages: frozenset[str]
    on: frozenset[str] | None
    when: Condition | None
    because: str
    back: bool = False


@dataclass(frozen=True)
class RoutingRule:
    """Who may get a journey when `when` is true; what is None or empty does not restrict.

    `territory` and `skill` are a text, or an attribute (``lead.region``) whose value people must have.
    """

    key: str
    when: Condition | None = None
    people: tuple[str, ...] = ()
    team: str | None = None
    territory: str | None = None
    skill: str | None = None
    of_account: bool = False
    """Only the owner of the lead's account."""
    strategy: str = "weighted"
    capacity: int | None = None
    """Open journeys a person may hold, to get another."""
    in_hours: bool = False
    """Only people who are in their working hours."""


@dataclass(frozen=True)
class RoleRouting:
    """How the journeys of one role are given: the first rule that finds somebody, else the fallback."""

    rules: tuple[RoutingRule, ...]
    fallback: str | None = None
    """Id of the person who is responsible for what no rule gives to anybody."""
    tell_before: bool = False
    """Whether the owner before is told when somebody else is assigned by hand."""


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: who hears of a missed deadline `after_s` seconds of the clock's time later.

    `to` is ``stand_in``, ``role_lead``, a role, or the id of a person.
    """

    after_s: float
    to: str


@dataclass(frozen=True, eq=False)  # known by identity: its steps are looked up at every move
class ClockPlan:
    """A deadline: `within_s` seconds from `since`; in working hours of the owner unless `wall`.

    `since` is ``offered`` (a handoff), ``entered`` (the stage) or ``activity`` (the lead's last event).
    """

    key: str
    title: str
    stages: frozenset[str]
    since: str
    within_s: float
    wall: bool = False
    remind_s: tuple[float, ...] = ()
    """How long before the deadline its owner is reminded, the earliest first."""
    escalate: tuple[Rung, ...] = ()


@dataclass(frozen=True)
class HandoffPlan:
    """How a role answers what is handed to it: until when, what counts as an answer, why it may say no."""

    role: str
    clock: ClockPlan
    accepted_by: frozenset[str] = frozenset()
    """Event types that show that it was taken up."""
    reasons: tuple[str, ...] = ()
    """Suggested reasons of a rejection."""


@dataclass(frozen=True)
class FitRule:
    """Points for who the lead is."""

    key: str
    when: Condition
    points: int
    because: str


@dataclass(frozen=True)
class Signal:
    """Points for what the lead did: they halve every `half_life_days`; never more than `cap`."""

    key: str
    on: frozenset[str]
    points: float
    half_life_days: float
    cap: float
    because: str


@dataclass(frozen=True)
class Entry:
    """From where a playbook's journeys begin: a lead's journey that stands in `stage` of `playbook`."""

    playbook: str
    stage: str


@dataclass(frozen=True)
class Playbook:
    """One version of a playbook. Equal digests mean equal rules."""

    name: str
    title: str
    version: int
    digest: str
    source: str
    stages: dict[str, Stage]
    path: tuple[str, ...]
    roles: dict[str, Role]
    rules: tuple[Rule, ...]
    fit: tuple[FitRule, ...]
    fit_attributes: frozenset[str]
    """The lead attributes that the fit rules ask for."""
    signals: dict[str, tuple[Signal, ...]]
    """The signals of each event type."""
    signals_by_key: dict[str, Signal]
    attributes: dict[str, dict[str, TypeName]]
    """Declared attributes by room: ``lead``, ``event``, ``deal``."""
    philosophy: tuple[str, ...]
    competencies: tuple[str, ...]
    labels: dict[str, str]
    """How an event type reads to people."""
    routing: dict[str, RoleRouting] = field(default_factory=dict[str, RoleRouting])
    """By role; a role that is not here is routed by territory and weight."""
    handoffs: dict[str, HandoffPlan] = field(default_factory=dict[str, HandoffPlan])
    """By role; what is handed to a role that is not here needs no answer."""
    clocks: tuple[ClockPlan, ...] = ()
    asks_for_contact: frozenset[str] = frozenset()
    """Event types by which a lead asks to be spoken to."""
    by_type: dict[str, dict[str, tuple[Rule, ...]]] = field(
        default_factory=dict[str, dict[str, tuple[Rule, ...]]]
    )
    of_any_type: dict[str, tuple[Rule, ...]] = field(default_factory=dict[str, tuple[Rule, ...]])
    migrate: dict[str, str] = field(default_factory=dict[str, str])
    """Where the journeys of stages that are gone go on, as the file says."""
    enters: Entry | None = None
    """None: a journey begins with a lead's first event."""
    file: str = field(default="", compare=False)
    renames: tuple[tuple[int, dict[str, str]], ...] = ()
    """The versions since which stages are gone, each with where their journeys went on."""
    former: dict[str, Stage] = field(default_factory=dict[str, Stage])
    """The stages of earlier versions that are gone, each as it was last."""

    @property
    def first_stage(self) -> str:
        """Give the stage every journey starts in."""
        return self.path[0]

    @property
    def won_stage(self) -> str:
        """Give the last stage of the path."""
        return self.path[-1]

    def current(self, stage: str, since: int = 0) -> str:
        """Give where a journey stands now that stood in `stage` under the version `since`."""
        for version, moved in self.renames:
            if version > since:
                stage = moved.get(stage, stage)
        return stage

    def named(self, stage: str) -> str:
        """Give the stage that is meant by the key `stage`, perhaps its name in an earlier version."""
        if stage in self.stages:
            return stage
        now = self.current(stage)
        return self.migrate.get(now, now)

    def stage_of(self, stage: str, since: int) -> Stage:
        """Give the stage of a journey that stood in `stage` under the version `since`, as it is now.

        As it was last, where it is gone and nobody said where its journeys go on (an older Baton took that).
        """
        now = self.current(stage, since)
        return self.stages.get(now) or self.former[now]

    def candidates(self, event_type: str, stage: str) -> tuple[Rule, ...]:
        """Give the rules that an event of `event_type` may fire in `stage`, in the file's order."""
        return self.by_type.get(event_type, self.of_any_type).get(stage, ())

    def coerced(self, room: str, attribute: str, raw: Any) -> Any:
        """Give `raw` as the declared type of an attribute, or None when it cannot be read so.

        Marketing tools send numbers as text: "250" is read as 250 where an int is declared.
        """
        if raw is None:
            return None
        return coerce(raw, self.attributes[room].get(attribute))


def coerce(raw: Any, kind: TypeName | None) -> int | float | str | bool | datetime | None:
    """Give `raw` as a value of `kind`; None when it cannot be read so."""
    match kind:
        case "string":
            if isinstance(raw, str):
                return raw
            return str(raw) if isinstance(raw, int | float) and not isinstance(raw, bool) else None
        case "bool":
            if isinstance(raw, str):
                return {"true": True, "false": False}.get(raw.strip().lower())
            return raw if isinstance(raw, bool) else None
        case "timestamp":
            return parse_time(raw) if isinstance(raw, str) else None
        case "int" | "double":
            return _number(raw, kind)
        case None:
            return None


def _number(raw: Any, kind: TypeName) -> int | float | None:
    if isinstance(raw, bool):
        return None
    if isinstance(raw, str):
        try:
            raw = float(raw) if len(raw) <= 40 else None
        except ValueError:
            return None
    if not isinstance(raw, int | float) or raw != raw or abs(raw) > 2**62:
        return None
    if kind == "double":
        return float(raw)
    return int(raw) if raw == int(raw) else None


def candidate_tables(
    rules: tuple[Rule, ...], stages: Mapping[str, Stage]
) -> tuple[dict[str, dict[str, tuple[Rule, ...]]], dict[str, tuple[Rule, ...]]]:
    """Sort `rules` by event type and stage, and those of any type by stage, keeping their order."""

    def by_stage(fitting: list[Rule]) -> dict[str, tuple[Rule, ...]]:
        return {
            stage: found
            for stage in stages
            if (found := tuple(r for r in fitting if stage in r.from_stages))
        }

    types = {t for rule in rules for t in rule.on or ()}
    by_type = {t: by_stage([r for r in rules if r.on is None or t in r.on]) for t in types}
    return by_type, by_stage([r for r in rules if r.on is None])


@lru_cache(maxsize=64)
def parse_playbook(text: str, file: str) -> Playbook:
    """Read and check a playbook (YAML, ``schemas/playbook.schema.json``); its version is 0.

    Raises SourceError with every problem: file, line, column, message and remedy. The digest is of the
    text, so a comment changed is another digest but not another rule. The same text again gives the same
    playbook, of which nothing can change: a start reads it from its file and from the database.
    """
    from services.stage_service.playbook_file import PlaybookFile

    return PlaybookFile(text, file).read()


def digest_of(text: str) -> str:
    """Give the digest that names a playbook's text (SHA-256, hex)."""
    return hashlib.sha256(text.encode()).hexdigest()
