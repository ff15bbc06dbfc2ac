"""What an alert would look like: a transition as an example, and each channel's way to show a text. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from services.contracts.events import TRANSITIONED, TRANSITIONS_TOPIC, AlertWish, Message, PersonRef
from services.contracts.team import Person, Team
from services.notifier.alerts import (
    Transition,
    addressee_of,
    body_for,
    read_transition,
    values,
    write_alert,
)
from services.notifier.errors import UnreadableError
from services.notifier.hooks import hook_of, slack_message, teams_card, webhook_payload
from services.notifier.letters import Letter
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
        "title": "SQL", "focus": "A first conversation", "goal": "A plan both agree on",
        "guidance": ["Call within an hour."], "next_steps": ["Open the lead", "Call Ada"],
    },
    "alerts": [],
}  # fmt: skip
"""A made-up transition, as it is published."""


class Preview(msgspec.Struct, frozen=True):
    """What goes to one channel: a text, or what is posted."""

    channel: str
    subject: str
    body: str
    posted: dict[str, Any] | None = None


def transition_of(text: bytes) -> Transition:
    """Read a published transition (its JSON). Raises UnreadableError."""
    headers = {"ce_type": TRANSITIONED}
    transition = read_transition(Message(TRANSITIONS_TOPIC, "", headers, text))
    if transition is None:
        raise UnreadableError("not a transition")
    return transition


def sample() -> Transition:
    """Give the made-up transition."""
    return transition_of(msgspec.json.encode(SAMPLE))


def sample_values(public_url: str) -> dict[str, Any]:
    """Give what templates may say, of the made-up transition: every one is tried with it."""
    wish = AlertWish("ae", PersonRef("elena", "Elena Petrova"))
    return values(sample(), wish, None, uuid.UUID(int=0), public_url)


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
    said = values(transition, AlertWish(role, ref), addressee, id, public_url)
    subject, body = write_alert(role, said, templates)
    found: list[Preview] = []
    for channel in channels:
        text = body_for(role, label(channel), said, templates) or body
        letter = Letter(
            str(id), subject, text, said["link"], None, str(transition.lead.id), (str(id),)
        )
        found.append(Preview(label(channel), subject, text, _posted(channel, letter)))
    return found


def _posted(channel: str, letter: Letter) -> dict[str, Any] | None:
    hook = hook_of(channel)
    if hook is None:
        return None
    if hook.kind == "webhook":
        return webhook_payload(letter, datetime(2026, 3, 2, 10, tzinfo=UTC))
    if hook.kind == "teams":
        return teams_card(letter)
    return slack_message(letter, buttons=True)
