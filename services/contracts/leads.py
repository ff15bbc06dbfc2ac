"""A lead as others see it: in ``GET /v1/leads/{id}`` and, the same, on the topic ``baton.leads``.

The Structs describe; the JSON is written by the reads of the stage service, and tests hold the two
together.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec

from services.contracts.published import Score

Id = Annotated[
    str, msgspec.Meta(description="a UUID", examples=["01a20b83-54a5-72df-8ba5-f958346b324f"])
]
Moment = Annotated[datetime, msgspec.Meta(tz=True, examples=["2026-11-24T07:04:05Z"])]


class JourneyOwner(msgspec.Struct, frozen=True):
    """Who holds a journey for a role, and why routing chose them."""

    id: Annotated[str, msgspec.Meta(examples=["jonas"])]
    name: Annotated[str, msgspec.Meta(examples=["Jonas Weber"])]
    why: str


class HeldMove(msgspec.Struct, frozen=True):
    """A move that a gate holds: where to, by which rule, since when, and what is missing."""

    to: str
    rule: str
    since: Moment
    missing: list[str]


class JourneyNow(msgspec.Struct, frozen=True):
    """One way of a lead through a playbook, as it stands.

    `owners` are by role; `deal` are the attributes of this deal; `sequence` is the newest record's number.
    """

    id: Id
    playbook: Annotated[str, msgspec.Meta(examples=["sales"])]
    key: Annotated[str, msgspec.Meta(examples=["main"])]
    stage: Annotated[str, msgspec.Meta(examples=["mql"])]
    furthest_stage: str
    started_at: Moment
    entered_at: Moment
    owners: dict[str, JourneyOwner]
    held: list[HeldMove]
    sequence: int
    deal: dict[str, Any]
    playbook_version: int


class LeadNow(msgspec.Struct, frozen=True):
    """A lead with its journeys, as a list shows it."""

    id: Id
    email: Annotated[str | None, msgspec.Meta(examples=["ada@example.com"])]
    name: Annotated[str | None, msgspec.Meta(examples=["Ada Ortiz"])]
    company: Annotated[str | None, msgspec.Meta(examples=["Example"])]
    external_ids: dict[str, Any]
    attributes: dict[str, Any]
    score: Score
    account: Annotated[str | None, msgspec.Meta(examples=["example.com"])]
    first_seen_at: Moment
    last_seen_at: Moment
    journeys: list[JourneyNow]


class Identity(msgspec.Struct, frozen=True):
    """One name by which the lead is found; `merged_from`: the lead that brought it by a merge."""

    kind: Annotated[str, msgspec.Meta(examples=["email", "external:hubspot"])]
    value: Annotated[str, msgspec.Meta(examples=["ada@example.com"])]
    recorded_at: Moment
    merged_from: str | None


class MergedFrom(msgspec.Struct, frozen=True):
    """A merge that holds: `lead_id` became part of `survivor`."""

    merge_id: Id
    lead_id: Id
    survivor: Id
    merged_at: Moment
    reason: str
    identities: list[str]
    actor: str | None


class WholeLead(LeadNow, frozen=True):
    """``baton.lead.snapshot.v1``: a lead as it is now, with its identities and what was merged into it."""

    identities: list[Identity]
    merged_from: list[MergedFrom]
