"""What the routes of the stage service answer, for the OpenAPI document. Nothing is built from these.

Answers are written as JSON straight from the reads; tests hold them and these shapes together. More members
may come; a reader ignores what it does not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from services.contracts.events import JourneyRef, PersonRef, Score
from services.contracts.leads import HeldMove, Id, LeadNow, Moment, WholeLead
from services.contracts.simulations import Simulated
from services.stage_service.next_moves import NextMove
from services.stage_service.why import RuleWhy

Stage = Annotated[str, msgspec.Meta(description="key of a stage", examples=["mql"])]
Role = Annotated[str, msgspec.Meta(examples=["ae"])]
Person = Annotated[str, msgspec.Meta(description="id in the roster", examples=["jonas"])]


class Status(msgspec.Struct):
    """How the process is."""

    status: Annotated[str, msgspec.Meta(examples=["ok"])]
    reason: str | UnsetType = UNSET


class ItemError(msgspec.Struct):
    """Why an event of a batch was rejected."""

    code: str
    field: str
    reason: str
    remedy: str
    value: str | None


class Moved(msgspec.Struct, rename={"from_": "from"}):
    """A record that an event led to."""

    transition_id: Id
    kind: Literal["transition", "correction", "retraction"]
    sequence: int
    journey_id: Id
    playbook: str
    key: str
    from_: Stage
    to: Stage
    rule: str | None
    explanation: str
    replaces: list[Id]


class Held(msgspec.Struct):
    """A move that a gate holds, and what is missing for it."""

    journey_id: Id
    to: Stage
    rule: str
    missing: list[str]


class EventResult(msgspec.Struct):
    """What happened to one event; `error` is that of a rejected one."""

    id: str | None
    source: str | None
    status: Literal["applied", "duplicate", "rejected"]
    lead_id: str | None
    transitions: list[Moved]
    held: list[Held] | UnsetType = UNSET
    late: bool | UnsetType = UNSET
    beyond_horizon: bool | UnsetType = UNSET
    claimed_time: str | UnsetType = UNSET
    warning: str | UnsetType | None = UNSET
    error: ItemError | UnsetType | None = UNSET


class EventResults(msgspec.Struct):
    """What happened to each event, in the order in which they were sent."""

    results: list[EventResult]


class SourceReceipt(msgspec.Struct):
    """What became of a vendor's delivery."""

    success: Literal[True]
    applied: int
    duplicate: int
    quarantined: int
    ignored: int


class Success(msgspec.Struct):
    """It is committed."""

    success: Literal[True]


class AsOf(msgspec.Struct):
    """The past moment that an answer is about; `settled`: nothing that had arrived by then is on its way."""

    at: Moment
    settled: bool


class LeadThen(WholeLead, frozen=True, kw_only=True):
    """A lead as it is, or with `as_of` as Baton knew it at a past moment."""

    as_of: AsOf | UnsetType = UNSET


class JourneyExplained(msgspec.Struct):
    """Why a journey is where it is: what would move it, and each rule of its stage clause by clause."""

    journey: JourneyRef
    stage: Stage
    stage_title: str
    entered_at: Moment
    playbook_version: int
    score: Score | None
    held: list[HeldMove]
    would_move: list[NextMove]
    rules: list[RuleWhy]


class LeadExplained(msgspec.Struct):
    """Why each journey of a lead is where it is at the moment `at`, for which scores are decayed."""

    lead_id: str
    at: Moment
    journeys: list[JourneyExplained]
    as_of: AsOf | UnsetType = UNSET


class TimelineItem(msgspec.Struct):
    """One thing that happened to a lead. `kind` says which other members it has; see docs/api.md."""

    kind: Literal["event", "transition", "correction", "alert", "handoff", "clock", "merge"]
    occurred_at: Moment
    recorded_at: Moment
    type: str | UnsetType = UNSET
    source: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    transition_id: str | UnsetType = UNSET
    explanation: str | UnsetType = UNSET
    beyond_horizon: bool | UnsetType = UNSET
    claimed_time: str | UnsetType | None = UNSET
    handoff_id: str | UnsetType | None = UNSET
    action: str | UnsetType = UNSET


class AccountNow(msgspec.Struct):
    """A company: how many leads, in which stages (by playbook and stage)."""

    domain: Annotated[str, msgspec.Meta(examples=["example.com"])]
    company: str | None
    leads: int
    last_seen_at: Moment
    stages: dict[str, dict[str, int]]


class WholeAccount(AccountNow):
    """A company with a page of its leads."""

    items: list[LeadNow]
    next_cursor: str | None


class FunnelStage(msgspec.Struct):
    """A stage of the path; `rate` is converted / reached, times are until the next is entered."""

    stage: Stage
    title: str
    reached: int
    skipped: int
    current: int
    converted: int | None
    rate: float | None
    median_seconds: float | None
    p90_seconds: float | None


class FunnelExit(msgspec.Struct):
    """A stage beside the path, and how many are in it."""

    stage: Stage
    title: str
    current: int


class FunnelGroup(msgspec.Struct):
    """The funnel of the journeys with one value of the attribute."""

    value: str | None
    stages: list[FunnelStage]


class Funnel(msgspec.Struct):
    """The funnel; `definition` says what is counted how."""

    playbook: str
    definition: Any
    stages: list[FunnelStage]
    exits: list[FunnelExit]
    groups: list[FunnelGroup] | UnsetType = UNSET
    as_of: AsOf | UnsetType = UNSET


class Durations(msgspec.Struct):
    """Times from reaching one stage to reaching another."""

    playbook: str
    from_stage: Stage
    to_stage: Stage
    count: int
    median_seconds: float | None
    p90_seconds: float | None
    as_of: AsOf | UnsetType = UNSET


class Gate(msgspec.Struct):
    """What a stage demands on entry."""

    require: list[str]
    reason: bool | str | None


class PlaybookStage(msgspec.Struct):
    """A stage as the playbook has it."""

    key: Stage
    title: str
    band: str
    kind: str
    focus: str
    goal: str
    responsible: list[str]
    alerts: list[str]
    guidance: list[str]
    next_steps: list[str]
    gate: Gate


class PlaybookShown(msgspec.Struct):
    """An active playbook."""

    name: str
    title: str
    version: int
    digest: str
    path: list[Stage]
    stages: list[PlaybookStage]


PLAYBOOK_TEXT = "name: sales\ntitle: Sales\n"
"""How a playbook begins."""


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


class Assigned(msgspec.Struct):
    """To whom a journey went."""

    event_id: str
    lead_id: str | None
    playbook: str
    key: str
    role: Role
    owner: PersonRef | None
    previous_owner: PersonRef | None
    why: str | None


class Left(msgspec.Struct):
    """What became of the journeys of somebody who left."""

    id: Person
    given_on: int
    still_held: int
    to: Person | None


class RoutingDecision(msgspec.Struct):
    """The last decision of a journey and role: `decision` names the person, why, and why not each other."""

    playbook: str
    key: str
    role: Role
    decision: dict[str, Any]
    transition_id: Id
    recorded_at: Moment


class HandoffLead(msgspec.Struct):
    """The lead of a handoff."""

    id: Id
    name: str | None
    company: str | None
    email: str | None


class NamedPerson(msgspec.Struct):
    """A person, of the roster or of before."""

    id: Person
    name: str | None


class Handoff(msgspec.Struct):
    """A lead handed to another role, and what became of it."""

    id: Id
    state: Literal["offered", "accepted", "rejected", "withdrawn"]
    lead: HandoffLead
    journey: JourneyRef
    stage: Stage
    stage_title: str
    role: Role
    role_title: str
    from_role: str
    from_role_title: str
    round: int
    person: NamedPerson | None
    giver: NamedPerson | None
    transition_id: str | None
    offered_at: Moment
    recorded_at: Moment
    asked_at: Moment | None
    due_at: Moment | None
    overdue: bool
    overdue_at: Moment | None
    answered_at: Moment | None
    answered_by: str | None
    implied: bool
    reason: str | None
    updated_at: Moment
    age_seconds: float
    reasons: list[str]


class Met(msgspec.Struct):
    """Deadlines met and missed."""

    met: int
    missed: int


class Times(msgspec.Struct):
    """How long it took."""

    count: int
    median_seconds: float | None
    p90_seconds: float | None


class TimesToAccept(msgspec.Struct):
    """By a word, and by a deed."""

    explicit: Times
    implied: Times


class ReasonCount(msgspec.Struct):
    """How often a reason was given."""

    reason: str | None
    count: int


class ClockCount(msgspec.Struct):
    """What became of the clocks of one kind."""

    key: str
    title: str
    kind: str
    met: int
    missed: int
    running: int


class HandoffCounts(msgspec.Struct):
    """What became of the handoffs counted."""

    offered: int
    accepted: int
    rejected: int
    withdrawn: int
    waiting: int
    overdue: int
    deadlines: Met
    time_to_accept: TimesToAccept
    speed_to_lead: Times
    reasons: list[ReasonCount]
    clocks: list[ClockCount]


class HandoffGroup(HandoffCounts):
    """The handoffs of one role, person or stage."""

    value: str | None
    title: str


class Load(msgspec.Struct):
    """What somebody holds now."""

    id: Person
    name: str
    roles: list[str]
    open_journeys: int
    capacity: int | None
    waiting: int
    overdue: int


class HandoffNumbers(msgspec.Struct):
    """Handoffs in numbers; `definition` says what is counted how."""

    playbook: str
    definition: Any
    by: str
    total: HandoffCounts
    groups: list[HandoffGroup]
    load: list[Load]


class PersonShown(msgspec.Struct):
    """A person as in the roster (team.schema.json)."""

    id: Person
    name: str
    roles: list[str]


class PersonLoad(msgspec.Struct):
    """What a person holds and got, and whether they are there."""

    open_journeys: int
    given: dict[str, int]
    next_for: list[str]
    is_open: bool
    away_until: Any
    stand_in: str | None


class PersonListed(PersonShown):
    """A person with the version (``ETag``) and what they hold."""

    version: int
    load: PersonLoad


class ImportDone(msgspec.Struct):
    """What an import did, or would do: ids."""

    dry_run: bool
    added: list[str]
    changed: list[str]
    unchanged: list[str]


class AuditEntry(msgspec.Struct):
    """One deed: who, by what way in, what, to which object, before and after."""

    id: int
    at: Moment
    actor: str
    via: Literal["key", "session", "link", "slack", "command", "system"]
    key_id: str | None
    on_behalf_of: str | None
    action: str
    kind: str
    subject: str
    lead_id: Id | None
    before: Any
    after: Any
    digest: str


class Quarantined(msgspec.Struct):
    """A delivery that could not be mapped."""

    id: Id
    source: str
    received_at: Moment
    last_received_at: Moment
    times: int
    content_type: str
    bytes: int
    reasons: list[dict[str, Any]]
    status: Literal["open", "replayed", "discarded"]
    closed_at: Moment | None
    closed_by: str | None


class WholeQuarantined(Quarantined):
    """A delivery whole: `body` is text, `body_base64` what is none."""

    headers: dict[str, str]
    query: Any
    body: str | UnsetType = UNSET
    body_base64: str | UnsetType = UNSET


class Mapped(msgspec.Struct):
    """What a delivery is by its source's file as it is now."""

    events: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]
    ignored: int


class ReplayedDelivery(msgspec.Struct):
    """A replayed delivery."""

    id: Id
    source: str
    dry_run: bool
    status: str
    mapped: Mapped
    results: list[EventResult]


class ReplayCounts(msgspec.Struct):
    """How much was replayed."""

    deliveries: int
    events: int
    still_quarantined: int


class ReplayedAll(msgspec.Struct):
    """The replayed deliveries of a source."""

    dry_run: bool
    counts: ReplayCounts
    items: list[ReplayedDelivery]


class Discarded(msgspec.Struct):
    """The delivery is closed."""

    id: Id
    status: Literal["discarded"]


class MergedInto(msgspec.Struct):
    """The lead is part of another; ``location`` leads there."""

    merged_into: Id
