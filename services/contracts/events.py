"""The events on both sides of Baton: lead events in, published events out, their types and topics.

`lead_event` reads what a CloudEvent says about a lead; the ``data`` members named here are public.
`Message` is a published event ready for the bus, as a CloudEvent in Kafka binary mode; what it says is one
of the Structs in `published` or `handoffs`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, cast

import msgspec

from services.contracts.cloudevents import CloudEvent
from services.contracts.problems import Defect, shown

TRANSITIONED = "baton.stage.transitioned.v1"
CORRECTED = "baton.transition.corrected.v1"
OWNER_CHANGED = "baton.owner.changed.v1"
TRANSITIONS_TOPIC = "baton.transitions"
HANDOFFS_TOPIC = "baton.handoffs"
LEADS_TOPIC = "baton.leads"
DEAD_LETTERS_TOPIC = "baton.dead-letters"
SUBSCRIPTIONS_TOPIC = "baton.subscriptions"
"""What becomes of subscriptions themselves; for the notifier, and not to be subscribed to."""
SOURCE = "baton"
"""The ``source`` of events that Baton itself records or publishes."""
MOVED_BY_HAND = "baton.lead.moved"
"""The lead event that records a move by hand; only Baton's own API makes it."""
MERGED_BY_HAND = "baton.lead.merged"
"""The lead event that records a merge by hand."""
UNMERGED_BY_HAND = "baton.lead.unmerged"
"""The lead event that records that a merge was undone."""
LEAD_MERGED = "baton.lead.merged.v1"
LEAD_UNMERGED = "baton.lead.unmerged.v1"
LEAD_SNAPSHOT = "baton.lead.snapshot.v1"
SUBSCRIPTION_STOPPED = "baton.subscription.stopped.v1"

ASSIGNED_BY_HAND = "baton.lead.assigned"
"""The lead event that gives a journey to somebody else; only Baton's own API makes it."""
PLAYBOOK_PUBLISHED = "baton.playbook.published"
"""The lead event by which a lead hears of a playbook version that concerns where its journeys stand."""

EMAIL_CHARACTERS_MAX = 254
IDENTITY_CHARACTERS_MAX = 256
EXTERNAL_IDS_MAX = 16
PHONE_CHARACTERS_MAX = 64
DEAL_CHARACTERS_MAX = 128
TIME_MIN = datetime(1970, 1, 1, tzinfo=UTC)
TIME_AHEAD_MAX = timedelta(days=366)
CLOCK_SKEW_MAX = timedelta(minutes=5)
"""A time further ahead than this is held to the arrival: one wrong clock must not freeze a lead."""
CLAIMED_TIME = "claimed_time"
"""Where the envelope keeps the time that was not believed."""
_INTEGRAL_FROM = 1e16
MAIN = "main"
"""The journey key of an event that names no deal."""

ENVELOPE_MEMBERS = frozenset(("email", "external_ids", "anonymous_id", "deal"))

_EMAIL = re.compile(r"[^\s@<>()\[\],;:\\\"]+@[^\s@<>()\[\],;:\\\"]+\.?[^\s@<>()\[\],;:\\\".]+")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

DEAL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
"""What the key of a journey (a deal) looks like."""


class LeadEvent(msgspec.Struct, frozen=True, gc=False):
    """One fact about a lead, told by a source.

    `place` orders events: (`time` or the moment it was recorded, `source`, `id`). `identities` are
    (kind, value) as they were sent, strongest first; empty: nobody can be found, the event is kept
    alone. What of them names a person is for the identity policy to say, later.
    """

    id: str
    source: str
    type: str
    time: datetime
    recorded_at: datetime
    subject: str | None
    identities: tuple[tuple[str, str], ...]
    deal: str
    data: dict[str, Any]
    envelope: dict[str, Any]
    traceparent: str | None = None

    @property
    def place(self) -> tuple[datetime, str, str]:
        """Give the event's place in the order of its lead's events."""
        return (self.time, self.source, self.id)


def lead_event(event: CloudEvent, recorded_at: datetime) -> LeadEvent | Defect:
    """Read what `event` says about a lead.

    ``data.email`` is trimmed and lower-cased, ``data.external_ids`` is an object of system to id (or to
    a list of ids), ``data.phone`` an identity and an attribute, ``data.anonymous_id`` a string,
    ``data.deal`` the journey's key. Anything else in ``data`` is an attribute. Data that is not an
    object is kept but says nothing about a lead.
    """
    time = event.time or recorded_at
    if time < TIME_MIN or time > recorded_at + TIME_AHEAD_MAX:
        return Defect(
            "time-out-of-range", "time",
            "the event's time lies before 1970 or more than 366 days ahead",
            "Send the moment it happened, as RFC 3339 with its offset.", time.isoformat(),
        )  # fmt: skip
    data = cast("dict[str, Any]", event.data) if isinstance(event.data, dict) else {}
    if any(type(v) is float and abs(v) >= _INTEGRAL_FROM for v in data.values()):
        # As they come back from jsonb, so that a later re-fold sees what was folded now.
        data = {
            k: int(v) if type(v) is float and abs(v) >= _INTEGRAL_FROM else v
            for k, v in data.items()
        }
    identities: tuple[tuple[str, str], ...] = ()
    deal = MAIN
    if data:
        read = identities_of(data)
        if isinstance(read, Defect):
            return read
        identities = read
        if "deal" in data and data["deal"] is not None:
            key = data["deal"]
            if isinstance(key, int) and not isinstance(key, bool):
                key = str(key)
            if not isinstance(key, str) or not DEAL_KEY.fullmatch(key[: DEAL_CHARACTERS_MAX + 1]):
                return Defect(
                    "invalid-deal", "data.deal",
                    "not a deal key: letters, digits and _ . : - , not starting with a sign",
                    "Send the deal's id in your CRM as a string.", shown(key),
                )  # fmt: skip
            if len(key) > DEAL_CHARACTERS_MAX:
                return _too_long("data.deal", DEAL_CHARACTERS_MAX, key)
            deal = key
    envelope = _envelope(event)
    if time > recorded_at + CLOCK_SKEW_MAX:
        envelope[CLAIMED_TIME] = rfc3339(time)
        time = recorded_at
    trace = event.extensions.get("traceparent")
    return LeadEvent(
        event.id, event.source, event.type, time, recorded_at, event.subject, identities, deal,
        data, envelope, traceparent(trace) if isinstance(trace, str) else None,
    )  # fmt: skip


def _envelope(event: CloudEvent) -> dict[str, Any]:
    """Give what the event carries besides what a lead event keeps in columns of its own."""
    envelope: dict[str, Any] = {}
    if event.extensions:
        envelope["extensions"] = event.extensions
    if event.datacontenttype is not None and event.datacontenttype != "application/json":
        envelope["datacontenttype"] = event.datacontenttype
    if event.dataschema is not None:
        envelope["dataschema"] = event.dataschema
    if event.data_base64 is not None:
        envelope["data_base64"] = event.data_base64
    elif not isinstance(event.data, dict) and event.data is not None:
        envelope["data"] = event.data
    return envelope


def traceparent(text: str) -> str | None:
    """Give `text` when it is a W3C trace context header (Level 1, 3.2), else None."""
    return text if _TRACEPARENT.fullmatch(text) else None


def _too_long(field: str, most: int, value: object) -> Defect:
    return Defect("too-long", field, f"longer than {most} characters", "Shorten it.", shown(value))


def identities_of(data: dict[str, Any]) -> tuple[tuple[str, str], ...] | Defect:
    """Read the identities in `data`: (kind, value), strongest first.

    Kinds are ``email`` (trimmed, lower-cased), ``external:{system}``, ``phone`` (as written) and
    ``anonymous``.
    """
    found: list[tuple[str, str]] = []
    email = data.get("email")
    if email is not None and email != "":
        normal = normal_email(email)
        if isinstance(normal, Defect):
            return normal
        found.append(("email", normal))
    externals = data.get("external_ids")
    if externals is not None:
        defect = _externals(externals, found)
        if defect is not None:
            return defect
    phone = data.get("phone")
    if (
        phone is not None
    ):  # never refused: a phone that cannot be read is an attribute like any other
        if isinstance(phone, int) and not isinstance(phone, bool):
            phone = str(phone)
        if isinstance(phone, str) and phone.strip() and len(phone) <= PHONE_CHARACTERS_MAX:
            found.append(("phone", phone.strip()))
    anonymous = _identity(data.get("anonymous_id"), "data.anonymous_id")
    if isinstance(anonymous, Defect):
        return anonymous
    if anonymous:
        found.append(("anonymous", anonymous))
    return tuple(found)


def _externals(externals: Any, found: list[tuple[str, str]]) -> Defect | None:
    """Read ``data.external_ids`` into `found`; a system may have one id or a list, newest first."""
    if not isinstance(externals, dict):
        return Defect(
            "wrong-type", "data.external_ids", "must be an object of system to id",
            'Write it as {"hubspot": "123"}.', shown(externals),
        )  # fmt: skip
    items = cast("dict[str, Any]", externals)
    ids = sum(len(cast("list[Any]", v)) if isinstance(v, list) else 1 for v in items.values())
    if ids > EXTERNAL_IDS_MAX:
        return Defect(
            "too-many", "data.external_ids", f"more than {EXTERNAL_IDS_MAX} ids", "Send fewer."
        )
    for system in sorted(items):
        if len(system) > IDENTITY_CHARACTERS_MAX:
            return _too_long("data.external_ids", IDENTITY_CHARACTERS_MAX, system)
        if not system.strip() or not system.isprintable():
            return Defect(
                "control-character", "data.external_ids",
                "a system's name is blank, or contains a control character", "Clean the name.",
                shown(system),
            )  # fmt: skip
        several = items[system]
        values = cast("list[Any]", several) if isinstance(several, list) else [several]
        for each in values:
            value = _identity(each, f"data.external_ids.{shown(system)}")
            if isinstance(value, Defect):
                return value
            if value and (identity := (f"external:{system}", value)) not in found:
                found.append(identity)
    return None


def _identity(value: Any, field: str) -> str | Defect | None:
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return Defect(
            "wrong-type", field, "an id is a string or an integer", "Send a string.", shown(value)
        )
    if len(value) > IDENTITY_CHARACTERS_MAX:
        return _too_long(field, IDENTITY_CHARACTERS_MAX, value)
    if not value.isprintable() or value.isspace():
        return Defect(
            "control-character", field, "blank, or contains a control character", "Clean the id.",
            shown(value),
        )  # fmt: skip
    return value.strip()


def normal_email(email: Any) -> str | Defect:
    """Normalise an e-mail address: trimmed and lower-cased; a Defect when it cannot be one.

    The address is an identity, not a promise of delivery: RFC 5321's length (254) and a plausible
    ``local@domain`` are all that is asked.
    """
    if not isinstance(email, str):
        return Defect(
            "wrong-type", "data.email", "must be a string", "Send one address.", shown(email)
        )
    if len(email) > EMAIL_CHARACTERS_MAX:
        return _too_long("data.email", EMAIL_CHARACTERS_MAX, email)
    normal = email.strip().lower()
    if not normal.isprintable() or not _EMAIL.fullmatch(normal):
        return Defect(
            "invalid-email", "data.email", "not an e-mail address",
            "Send one address as name@example.com, or leave it out.", shown(email),
        )  # fmt: skip
    return normal


class Message(msgspec.Struct, frozen=True, gc=False):
    """One published event ready for the bus: a CloudEvent in Kafka binary mode.

    `key` is the lead's id: all messages of a lead keep their order. `position` is its place in the
    published log, None until the relay has given it one.
    """

    topic: str
    key: str
    headers: dict[str, str]
    value: bytes
    position: int | None = None

    @property
    def id(self) -> str:
        """Give the event's id (``ce_id``): consumers drop repeats by it."""
        return self.headers["ce_id"]

    @property
    def type(self) -> str:
        """Give the event's type (``ce_type``)."""
        return self.headers["ce_type"]


class Snapshot(msgspec.Struct, frozen=True):
    """A message on a compacted topic: the present state of `key`, as a CloudEvent in Kafka binary mode.

    `value` None is a tombstone: there is no such thing any more.
    """

    key: str
    headers: dict[str, str]
    value: bytes | None


def rfc3339(moment: datetime) -> str:
    """Write `moment` (aware) as RFC 3339 in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


_written = lru_cache(maxsize=64)(rfc3339)
"""The messages of a batch have one time."""


def message_headers(
    id: str, type: str, time: datetime, traceparent: str | None = None, subject: str | None = None
) -> dict[str, str]:
    """Make the headers of a published event (CloudEvents Kafka binding v1.0.2, binary mode)."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": id,
        "ce_source": SOURCE,
        "ce_type": type,
        "ce_time": _written(time),
        "content-type": "application/json",
    }
    if subject is not None:
        headers["ce_subject"] = subject
    if traceparent is not None:
        headers["ce_traceparent"] = traceparent
        headers["traceparent"] = traceparent
    return headers
