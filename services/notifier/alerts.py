"""What is said to whom: from a published transition to its alerts. Pure: no I/O but the templates.

Everything a lead could have written is made harmless first: one line, no control characters, no
mark-up of chat services; then the templates, which run sandboxed, arrange it as plain text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from types import MappingProxyType
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from services.contracts.events import (
    CORRECTED,
    OWNER_CHANGED,
    TRANSITIONED,
    AlertWish,
    Message,
    PersonRef,
    Touch,
)
from services.contracts.team import Person, Team
from services.notifier.errors import UnreadableError
from services.notifier.plans import QUIET_CHANNELS, first_due, may_disturb
from services.notifier.redaction import kind as channel_kind
from services.notifier.redaction import label as channel_label
from services.notifier.templates import SHIPPED, Templates

SUBJECT_CHARACTERS_MAX = 160
LINE_CHARACTERS_MAX = 500
NAME_CHARACTERS_MAX = 120
TOUCHES_SHOWN_MAX = 8
STEPS_SHOWN_MAX = 20
WISHES_MAX = 50
FALLBACK_ROLE = "sales_leadership"
"""Who hears of it when nobody was eligible for a role."""

NO_WAITS: Mapping[str, int] = MappingProxyType({})
ROLE_TITLES = {"ae": "account executive", "csm": "customer success manager"}

_CALL = re.compile(r"(?<![\w.+-])@(?=\w)")
_ROLE = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Points(msgspec.Struct, frozen=True):
    """The score as an alert shows it."""

    fit: int = 0
    intent: int = 0
    total: int = 0


class Guide(msgspec.Struct, frozen=True):
    """What the playbook says about the stage entered."""

    key: str = ""
    title: str = ""
    focus: str = ""
    goal: str = ""
    guidance: list[str] = []
    next_steps: list[str] = []


class Lead(msgspec.Struct, frozen=True):
    """The lead as the event tells it."""

    id: UUID
    email: str | None = None
    name: str | None = None
    company: str | None = None
    touches: list[Touch] = []


class Holder(msgspec.Struct, frozen=True):
    """The role that now holds the journey."""

    role: str


class Journey(msgspec.Struct, frozen=True):
    """The way on which the lead is: its alerts are one thread."""

    id: str


class Transition(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """A published transition, as far as alerts need it; unknown fields are ignored."""

    transition_id: UUID
    lead: Lead
    from_: str
    to: str
    recorded_at: datetime
    alerts: list[AlertWish]
    handoff: bool = False
    responsible: Holder | None = None
    explanation: str = ""
    score: Points = Points()
    stage: Guide = Guide()
    journey: Journey | None = None
    new_owner: str | None = None
    """Of a change of owner: who takes over. Others who hear of it do not."""


class OwnerChange(msgspec.Struct, frozen=True):
    """A published change of owner, as far as alerts need it."""

    change_id: UUID
    lead: Lead
    role: str
    recorded_at: datetime
    alerts: list[AlertWish]
    journey: Journey | None = None
    owner: PersonRef | None = None
    why: str = ""
    reason: str = ""
    actor: str = ""
    score: Points = Points()
    stage: Guide = Guide()


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

    @property
    def channels(self) -> tuple[str, ...]:
        """Give the labels of its channels."""
        return tuple(d.channel for d in self.deliveries)


_decode = msgspec.json.Decoder(Transition).decode
_decode_change = msgspec.json.Decoder(OwnerChange).decode


def read_transition(message: Message) -> Transition | None:
    """Read the transition in `message`; None for a type of ours that tells no alert.

    Raises UnreadableError for anything that is not a published event as we know it.
    """
    type = message.headers.get("ce_type")
    if type is None or not type.startswith("baton."):
        raise UnreadableError("the header ce_type is missing or not of Baton", field="ce_type")
    if type not in (TRANSITIONED, CORRECTED, OWNER_CHANGED):
        return None
    try:
        if type == OWNER_CHANGED:
            transition = _as_transition(_decode_change(message.value))
        else:
            transition = _decode(message.value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError(str(error) or type_name(error)) from error
    if len(transition.alerts) > WISHES_MAX:
        raise UnreadableError(f"more than {WISHES_MAX} alerts", field="alerts")
    for wish in transition.alerts:
        if not _ROLE.fullmatch(wish.role):
            raise UnreadableError("not a role key", field="alerts.role", value=wish.role)
        if wish.person is not None and not one_line(wish.person.id):
            raise UnreadableError("a person without id", field="alerts.person.id")
    if transition.recorded_at.tzinfo is None:
        raise UnreadableError("a time without offset", field="recorded_at")
    return transition


def _as_transition(change: OwnerChange) -> Transition:
    """Give a change of owner as a transition that stays where it is: it is told like one."""
    said = f"{change.actor} gave it to another person: {change.reason}. {change.why}"
    return Transition(
        transition_id=change.change_id,
        lead=change.lead,
        from_=change.stage.key,
        to=change.stage.key,
        recorded_at=change.recorded_at,
        alerts=change.alerts,
        handoff=change.owner is not None,
        responsible=Holder(change.role),
        explanation=said,
        score=change.score,
        stage=change.stage,
        journey=change.journey,
        new_owner=change.owner.id if change.owner else None,
    )


def type_name(error: BaseException) -> str:
    """Give the name of an error's type, for a reason without its text."""
    return type(error).__name__


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
    `escalate_after` is how many seconds those of a role (``*``: any other) wait for an acknowledgement.

    A person who has left the roster is reached by the inbox only. Where nobody was eligible for the
    role, the alert goes to the first of sales leadership, and to the API's inbox if there is none.
    """
    told: set[str] = set()
    for wish in transition.alerts:
        person_id = one_line(wish.person.id) if wish.person is not None else None
        recipient = person_id if person_id is not None else f"role:{wish.role}"
        if recipient in told:
            continue
        told.add(recipient)
        addressee = addressee_of(person_id, team)
        after_s = escalate_after.get(wish.role, escalate_after.get("*"))
        id = make_id()
        said = values(transition, wish, addressee, id, public_url)
        subject, body = write_alert(wish.role, said, templates)
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
                msgspec.structs.replace(due, body=body_for(wish.role, due.channel, said, templates))
                for due in first_deliveries(addressee, "transition", wish.role, wish.urgent, now)
            ),
            journey_id=transition.journey.id if transition.journey is not None else None,
            urgent=wish.urgent,
            escalate_after_s=after_s,
            waits_from=seen_from(addressee, "transition", wish.role, wish.urgent, now)
            if after_s
            else None,
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
    transition: Transition, wish: AlertWish, addressee: Person | None, id: UUID, public_url: str
) -> dict[str, Any]:
    """Give what the templates may say of an alert, made harmless."""
    zone = _zone(addressee.time_zone if addressee is not None else "UTC")
    event = cast("dict[str, Any]", _harmless(msgspec.to_builtins(transition, builtin_types=())))
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
        "link": f"{public_url.rstrip('/')}/leads/{transition.lead.id}",
    }


def write_alert(role: str, said: dict[str, Any], templates: Templates = SHIPPED) -> tuple[str, str]:
    """Write subject (one line) and body (plain text) of one alert."""
    names = (f"subject.{role}.txt.j2", "subject.txt.j2")
    subject = one_line(templates.render(names, said), None)
    if len(subject) > SUBJECT_CHARACTERS_MAX:
        subject = subject[: SUBJECT_CHARACTERS_MAX - 3].rstrip() + "..."
    body = templates.render((f"alert.{role}.txt.j2", "alert.txt.j2"), said)
    return subject, body.strip() + "\n"


def body_for(
    role: str, channel: str, said: dict[str, Any], templates: Templates = SHIPPED
) -> str | None:
    """Write the text for a kind of channel that has a template of its own; None when it has none."""
    kind = channel_kind(channel)
    names = [
        name
        for name in (f"alert.{role}.{kind}.txt.j2", f"alert.{kind}.txt.j2")
        if templates.has(name)
    ]
    if not names:
        return None
    return templates.render((*names, f"alert.{role}.txt.j2", "alert.txt.j2"), said).strip() + "\n"


def one_line(text: str, characters_max: int | None = LINE_CHARACTERS_MAX) -> str:
    """Give `text` as one harmless line.

    Control, format (bidirectional too), surrogate and line-breaking characters become spaces. ``<``, and
    ``@`` before a word, become look-alikes and ``](`` gets a space: chat services read ``<!here>`` and
    ``@everyone`` as calls to people, and ``[text](address)`` as a link.
    """
    if not text.isascii() or not text.isprintable():
        text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    text = _CALL.sub("＠", text.replace("<", "‹").replace("](", "] ("))
    text = " ".join(text.split())
    if characters_max is not None and len(text) > characters_max:
        return text[: characters_max - 3].rstrip() + "..."
    return text


def words(key: str) -> str:
    """Give a stage or role key as words: ``lead_agent`` is "lead agent"."""
    return one_line(key.replace("_", " "))


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _short(name: str | None) -> str | None:
    return one_line(name, NAME_CHARACTERS_MAX) if name else None


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
        return {key: _harmless(item) for key, item in items.items()}
    if isinstance(value, list):
        return [_harmless(item) for item in cast("list[Any]", value)]
    return value


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return UTC
