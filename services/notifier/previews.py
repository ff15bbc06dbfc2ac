"""What an alert would look like: made-up events, and each channel's way to show a text. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from services.contracts.events import OWNER_CHANGED, TRANSITIONED, TRANSITIONS_TOPIC, Message
from services.contracts.handoffs import CLOCK_RANG, OFFERED, OVERDUE
from services.contracts.published import AlertWish, PersonRef
from services.contracts.team import Person, Team
from services.notifier.alerts import addressee_of, body_for, values, write_alert
from services.notifier.errors import UnreadableError
from services.notifier.hooks import hook_of, slack_message, teams_card, webhook_payload
from services.notifier.letters import Answer, Letter, text_of
from services.notifier.messages import Transition, read_transition
from services.notifier.redaction import label
from services.notifier.templates import SHIPPED, Templates

SAMPLE: dict[str, Any] = {
    "transition_id": "018f0000-0000-7000-8000-000000000001",
    "lead": {
        "id": "018f0000-0000-7000-8000-0000000000aa", "email": "ada@acme.example",
        "name": "Ada Lovelace", "company": "Acme",
        "touches": [
            {"type": "form", "time": "2026-03-02T09:58:00Z", "label": "Asked for a demo"},
            {"type": "page", "time": "2026-03-01T08:30:00Z", "label": "Viewed pricing"},
        ],
    },
    "journey": {"id": "018f0000-0000-7000-8000-0000000000bb"},
    "from": "mql", "to": "sql", "recorded_at": "2026-03-02T10:00:00Z", "handoff": True,
    "responsible": {"role": "ae"}, "explanation": "It asked for a demo and has a score of 72.",
    "score": {"fit": 40, "intent": 32, "total": 72},
    "stage": {
        "title": "Discovery & Solutioning", "focus": "A first conversation", "goal": "A plan both agree on",
        "guidance": ["Call within an hour."], "next_steps": ["Open the lead", "Call Ada"],
    },
    "alerts": [],
    "offer": {
        "handoff_id": "018f0000-0000-7000-8000-0000000000cc", "role": "ae",
        "due_at": "2026-03-02T14:00:00Z", "reasons": ["No budget", "Does not fit what we sell"],
    },
}  # fmt: skip
"""A made-up transition, as it is published."""

_PLACE = {k: SAMPLE[k] for k in ("lead", "journey", "recorded_at", "score", "offer")} | {
    "stage": "sql", "stage_title": SAMPLE["stage"]["title"], "role": "ae",
    "owner": {"id": "elena", "name": "Elena Petrova"}, "alerts": [],
}  # fmt: skip
SAMPLES: dict[str, dict[str, Any]] = {
    "transition": SAMPLE,
    "handoff": _PLACE | {
        "handoff_id": SAMPLE["offer"]["handoff_id"], "offered_at": "2026-03-02T10:00:00Z",
        "due_at": "2026-03-02T14:00:00Z", "overdue_at": "2026-03-02T14:00:00Z",
        "explanation": "It was offered to Elena Petrova, and nobody answered within 4 h.",
    },
    "clock": _PLACE | {
        "clock_id": "018f0000-0000-7000-8000-0000000000dd", "title": "Handoff to Account Executive",
        "handoff_id": SAMPLE["offer"]["handoff_id"],
        "step": "escalate", "since": "2026-03-01T10:00:00Z", "deadline": "2026-03-02T14:00:00Z",
        "explanation": "Elena Petrova has not answered: 2 h after the deadline those who lead hear of it.",
    },
}  # fmt: skip
"""Made-up events, as they are published, by kind of alert."""
SAMPLE_NOW = datetime(2026, 3, 2, 16, 5, tzinfo=UTC)
SAMPLE_TOKEN = "a-token-that-opens-nothing"  # noqa: S105


class Preview(msgspec.Struct, frozen=True):
    """What goes to one channel: a text, or what is posted."""

    channel: str
    subject: str
    body: str
    posted: dict[str, Any] | None = None


def published_of(text: bytes) -> Transition:
    """Read a published event's JSON: ``type`` says which, else its members. Raises UnreadableError."""
    try:
        members = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError(str(error)) from error
    type = members.get("type") or _type_of(members)
    headers = {"ce_type": str(type), "ce_id": str(uuid.UUID(int=0))}
    transition = read_transition(Message(TRANSITIONS_TOPIC, "", headers, text))
    if transition is None:
        raise UnreadableError("not an event that is told")
    return transition


def _type_of(members: dict[str, Any]) -> str:
    if "clock_id" in members:
        return CLOCK_RANG
    if "change_id" in members:
        return OWNER_CHANGED
    if "handoff_id" in members:
        return OFFERED if members.get("overdue_at") is None else OVERDUE
    return TRANSITIONED


def sample(kind: str = "transition") -> Transition:
    """Give the made-up event of that kind, one of `SAMPLES`."""
    return published_of(msgspec.json.encode(SAMPLES[kind]))


def sample_values(public_url: str) -> dict[str, list[dict[str, Any]]]:
    """Give what templates may say, by kind of alert, of made-up events: every template is tried with it.

    To whom can answer and to whom cannot, since templates have to do with both.
    """
    wishes = [
        AlertWish("ae", PersonRef("elena", "Elena Petrova")), AlertWish("sales_leadership", None)
    ]  # fmt: skip
    return {
        kind: [
            values(sample(kind), wish, None, uuid.UUID(int=0), public_url, SAMPLE_NOW)
            for wish in wishes
        ]
        for kind in SAMPLES
    }


def previews(
    transition: Transition,
    team: Team,
    role: str,
    person: Person | None,
    channels: Sequence[str],
    public_url: str,
    templates: Templates = SHIPPED,
) -> list[Preview]:
    """Write what an alert about `transition` to `person` for `role` would look like by each of `channels`.

    `channels` are the roster's texts: built-in names or URLs.
    """
    ref = PersonRef(person.id, person.name) if person is not None else None
    id = uuid.UUID(int=0)
    addressee = person or addressee_of(None, team)
    said = values(transition, AlertWish(role, ref), addressee, id, public_url, SAMPLE_NOW)
    subject, body = write_alert(role, said, templates, transition.kind)
    answer = None
    if said["answer"] is not None:
        url = f"{public_url.rstrip('/')}/answer/{SAMPLE_TOKEN}"
        answer = Answer(url, SAMPLE_TOKEN, tuple(said["answer"]["reasons"]))
    found: list[Preview] = []
    for channel in channels:
        text = body_for(role, label(channel), said, templates, transition.kind) or body
        letter = Letter(
            str(id), subject, text, said["link"], None, str(transition.lead.id), (str(id),),
            answer=answer,
        )  # fmt: skip
        shown = text_of(letter) if label(channel) == "email" else text
        found.append(Preview(label(channel), subject, shown, _posted(channel, letter)))
    return found


def _posted(channel: str, letter: Letter) -> dict[str, Any] | None:
    hook = hook_of(channel)
    if hook is None:
        return None
    if hook.kind == "webhook":
        return webhook_payload(letter, SAMPLE_NOW)
    if hook.kind == "teams":
        return teams_card(letter)
    return slack_message(letter, buttons=True)
