"""What is said to whom: from a published transition to its alerts. Pure: no I/O but the templates.

Everything a lead could have written is made harmless first: one line, no control characters, no
mark-up of chat services; then the templates, which run sandboxed, arrange it as plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from types import MappingProxyType
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from services.contracts.published import AlertWish
from services.contracts.team import Person, Team
from services.notifier.harmless import harmless, one_line, words
from services.notifier.messages import Kind, Transition
from services.notifier.plans import QUIET_CHANNELS, first_due, may_disturb
from services.notifier.redaction import kind as channel_kind
from services.notifier.redaction import label as channel_label
from services.notifier.templates import SHIPPED, Templates
from services.notifier.waiting import answer_values, wait_values

SUBJECT_CHARACTERS_MAX = 160
NAME_CHARACTERS_MAX = 120
TOUCHES_SHOWN_MAX = 8
STEPS_SHOWN_MAX = 20
FALLBACK_ROLE = "sales_leadership"
"""Who hears of it when nobody was eligible for a role."""

NO_WAITS: Mapping[str, int] = MappingProxyType({})
_WORDS: dict[Kind, str] = {"transition": "alert", "handoff": "handoff", "clock": "clock"}
"""What the names of an alert's templates begin with."""
ROLE_TITLES = {"ae": "account executive", "csm": "customer success manager"}


class Due(msgspec.Struct, frozen=True):
    """A first delivery: by which channel (a label, never a URL), when, and why not at once."""

    channel: str
    at: datetime
    why: str | None = None
    gather: bool = False
    body: str | None = None
    """Its text where the kind of channel has a template of its own."""


class Alert(msgspec.Struct, frozen=True):
    """One alert to one person, ready to be recorded."""

    id: UUID
    transition_id: UUID
    recipient: str
    lead_id: UUID
    role: str
    person_id: str | None
    person_name: str | None
    addressee_id: str | None
    subject: str
    body: str
    stage: str
    company: str | None
    deliveries: tuple[Due, ...]
    journey_id: str | None = None
    urgent: bool = False
    escalate_after_s: int | None = None
    """How long it waits for an acknowledgement; None: for ever."""
    waits_from: datetime | None = None
    """When that time begins."""
    kind: Kind = "transition"
    handoff_id: UUID | None = None
    """The handoff whose answer settles it."""
    can_answer: bool = False
    """Whether whom it is for can answer that handoff."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Give the labels of its channels."""
        return tuple(d.channel for d in self.deliveries)


def alerts_of(
    transition: Transition,
    team: Team,
    public_url: str,
    make_id: Callable[[], UUID],
    now: datetime,
    templates: Templates = SHIPPED,
    escalate_after: Mapping[str, int] = NO_WAITS,
) -> Iterator[Alert]:
    """Make the alerts that `transition` asks for: at most one a person; `now` decides when they go out.
    `escalate_after` is how many seconds those of a role (``*``: any other) wait for an acknowledgement;
    handoffs and clocks have the playbook's own ladder.

    A person who has left the roster is reached by the inbox only. Where nobody was eligible for the
    role, the alert goes to the first of sales leadership, and to the API's inbox if there is none.
    """
    told: set[str] = set()
    waits = escalate_after if transition.kind == "transition" else NO_WAITS
    for wish in transition.alerts:
        person_id = one_line(wish.person.id) if wish.person is not None else None
        recipient = person_id if person_id is not None else f"role:{wish.role}"
        if recipient in told:
            continue
        told.add(recipient)
        addressee = addressee_of(person_id, team)
        after_s = waits.get(wish.role, waits.get("*"))
        id = make_id()
        said = values(transition, wish, addressee, id, public_url, now)
        subject, body = write_alert(wish.role, said, templates, transition.kind)
        yield Alert(
            id=id,
            transition_id=transition.transition_id,
            recipient=recipient,
            lead_id=transition.lead.id,
            role=wish.role,
            person_id=person_id,
            person_name=one_line(wish.person.name) if wish.person is not None else None,
            addressee_id=person_id or (addressee.id if addressee is not None else None),
            subject=subject,
            body=body,
            stage=one_line(transition.to),
            company=one_line(transition.lead.company or "", NAME_CHARACTERS_MAX) or None,
            deliveries=tuple(
                msgspec.structs.replace(
                    due, body=body_for(wish.role, due.channel, said, templates, transition.kind)
                )
                for due in first_deliveries(addressee, transition.kind, wish.role, wish.urgent, now)
            ),
            journey_id=transition.journey.id if transition.journey is not None else None,
            urgent=wish.urgent,
            escalate_after_s=after_s,
            waits_from=seen_from(addressee, transition.kind, wish.role, wish.urgent, now)
            if after_s
            else None,
            kind=transition.kind,
            handoff_id=transition.handoff_of(wish),
            can_answer=transition.offer_to(wish) is not None,
        )


def first_deliveries(
    addressee: Person | None, kind: str, role: str, urgent: bool, now: datetime
) -> tuple[Due, ...]:
    """Give by which channels an alert goes out first, and when; the inbox when there is no other."""
    channels: tuple[str, ...] = ()
    if addressee is not None:
        channels = addressee.alerts.channels_for(kind, role) or addressee.channels
    labels = dict.fromkeys(channel_label(c) for c in channels or ("inbox",))
    return tuple(Due(c, *first_due(addressee, c, urgent, now)) for c in labels)


def seen_from(person: Person | None, kind: str, role: str, urgent: bool, now: datetime) -> datetime:
    """Give from when an alert waits for an acknowledgement: when `person` could see it, were they not away.

    Nights and weekends are waited for; an absence is not, since somebody else is there then.
    """
    if person is None or urgent:
        return now
    there = replace(person, away=())
    due = first_deliveries(there, kind, role, urgent, now)
    disturbing = [d.at for d in due if d.channel not in QUIET_CHANNELS]
    return min(disturbing) if disturbing else may_disturb(there, now)


def addressee_of(person_id: str | None, team: Team) -> Person | None:
    """Give whose channels carry an alert to `person_id` (None: nobody was eligible)."""
    if person_id is not None:
        return team.by_id.get(person_id)
    leaders = team.by_role.get(FALLBACK_ROLE, ())
    return leaders[0] if leaders else None


def values(
    transition: Transition,
    wish: AlertWish,
    addressee: Person | None,
    id: UUID,
    public_url: str,
    now: datetime,
) -> dict[str, Any]:
    """Give what the templates may say of an alert, made harmless; `now`: how late it is depends on it."""
    offer = transition.offer_to(wish)
    zone = _zone(addressee.time_zone if addressee is not None else "UTC")
    event = cast("dict[str, Any]", harmless(msgspec.to_builtins(transition, builtin_types=())))
    lead = event["lead"]
    newest = sorted(((_aware(t.time), t.label) for t in transition.lead.touches), reverse=True)
    touches = [
        {"label": one_line(label), "time": f"{time.astimezone(zone):%Y-%m-%d %H:%M %Z}"}
        for time, label in newest[:TOUCHES_SHOWN_MAX]
    ]
    stage = event["stage"]
    return {
        "id": str(id),
        "lead": lead,
        "who": _short(lead["name"]) or lead["email"] or "A lead without a name",
        "company": _short(lead["company"]),
        "from_stage": words(transition.from_),
        "stage_title": stage["title"] or words(transition.to),
        "stage": stage,
        "guidance": stage["guidance"][:STEPS_SHOWN_MAX],
        "next_steps": stage["next_steps"][:STEPS_SHOWN_MAX],
        "explanation": event["explanation"],
        "score": event["score"],
        "touches": touches,
        "role": ROLE_TITLES.get(wish.role) or words(wish.role),
        "person": one_line(wish.person.name) if wish.person is not None else None,
        "takes_over": transition.handoff
        and transition.responsible is not None
        and transition.responsible.role == wish.role
        and transition.new_owner in (None, wish.person.id if wish.person else None),
        "wait": wait_values(transition.wait, wish, zone, now) if transition.wait else None,
        "answer": answer_values(offer, zone) if offer is not None else None,
        "link": f"{public_url.rstrip('/')}/leads/{transition.lead.id}",
    }


def write_alert(
    role: str, said: dict[str, Any], templates: Templates = SHIPPED, kind: Kind = "transition"
) -> tuple[str, str]:
    """Write subject (one line) and body (plain text) of one alert."""
    head = "subject" if kind == "transition" else f"subject.{kind}"
    names = (f"{head}.{role}.txt.j2", f"{head}.txt.j2")
    subject = one_line(templates.render(names, said), None)
    if len(subject) > SUBJECT_CHARACTERS_MAX:
        subject = subject[: SUBJECT_CHARACTERS_MAX - 3].rstrip() + "..."
    body = templates.render(_bodies(role, kind), said)
    return subject, body.strip() + "\n"


def body_for(
    role: str,
    channel: str,
    said: dict[str, Any],
    templates: Templates = SHIPPED,
    kind: Kind = "transition",
) -> str | None:
    """Write the text for a kind of channel that has a template of its own; None when it has none."""
    word, by = _WORDS[kind], channel_kind(channel)
    names = [
        name
        for name in (f"{word}.{role}.{by}.txt.j2", f"{word}.{by}.txt.j2")
        if templates.has(name)
    ]
    if not names:
        return None
    return templates.render((*names, *_bodies(role, kind)), said).strip() + "\n"


def _bodies(role: str, kind: Kind) -> tuple[str, str]:
    return f"{_WORDS[kind]}.{role}.txt.j2", f"{_WORDS[kind]}.txt.j2"


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _short(name: str | None) -> str | None:
    return one_line(name, NAME_CHARACTERS_MAX) if name else None


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return UTC
