"""What an alert says, to whom, and that nobody can smuggle anything into it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.events import CORRECTED, TRANSITIONED, TRANSITIONS_TOPIC, Message
from services.contracts.team import Person, Team, team_of
from services.notifier.alerts import (
    SUBJECT_CHARACTERS_MAX,
    Alert,
    alerts_of,
)
from services.notifier.errors import UnreadableError
from services.notifier.harmless import one_line
from services.notifier.messages import Transition, read_transition
from services.notifier.previews import sample_values
from services.notifier.templates import SHIPPED, Templates

TEAM = team_of(
    (
        Person(
            "ana", "Ana Silva", roles=("lead_agent",), time_zone="Europe/Berlin",
            channels=("inbox", "email", "json://hooks.example/secret-token"),
        ),
        Person("lea", "Lea Vogt", roles=("sales_leadership",), channels=("inbox", "console")),
    )
)  # fmt: skip
PUBLIC_URL = "https://baton.example/"
NOW = datetime(2025, 3, 1, 10, tzinfo=UTC)


def event(**changes: Any) -> dict[str, Any]:
    """A transition as it is published, with `changes`."""
    return {
        "transition_id": "018f0000-0000-7000-8000-000000000001",
        "sequence": 2,
        "lead": {
            "id": "018f0000-0000-7000-8000-0000000000aa",
            "email": "ada@acme.example",
            "name": "Ada Lovelace",
            "company": "Acme",
            "attributes": {"country": "DE"},
            "touches": [
                {"type": "form", "time": "2025-03-01T10:00:00Z", "label": "Asked for a demo"},
                {"type": "page", "time": "2025-02-27T08:30:00Z", "label": "Viewed pricing"},
            ],
        },
        "journey": {"id": "j", "playbook": "sales", "key": "main"},
        "from": "lead_generation",
        "to": "lead_qualification",
        "occurred_at": "2025-03-01T10:00:00Z",
        "recorded_at": "2025-03-01T10:00:01Z",
        "responsible": {"role": "lead_agent", "owner": {"id": "ana", "name": "Ana Silva"}},
        "handoff": True,
        "score": {"fit": 20, "intent": 42, "total": 62},
        "explanation": "asked for a demo and the score 62 is over 50",
        "stage": {
            "key": "lead_qualification", "title": "Lead Qualification", "band": "MoFu",
            "focus": "Assess fit and intent", "goal": "A meeting for the account executive",
            "guidance": ["Call within an hour"], "next_steps": ["Research", "Call"],
        },
        "alerts": [{"role": "lead_agent", "person": {"id": "ana", "name": "Ana Silva"}}],
        "a_field_of_the_future": 1,
    } | changes  # fmt: skip


def message(body: Any, type: str = TRANSITIONED) -> Message:
    """`body` as a message of the bus."""
    value = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Message(TRANSITIONS_TOPIC, "lead", {"ce_id": "m-1", "ce_type": type}, value)


def read(body: Any) -> Transition:
    """Read an event that is good."""
    transition = read_transition(message(body))
    assert transition is not None
    return transition


def written(body: Any, team: Team = TEAM, templates: Templates = SHIPPED) -> list[Alert]:
    """The alerts of an event."""
    return list(alerts_of(read(body), team, PUBLIC_URL, uuid.uuid4, NOW, templates))


def test_an_alert_says_who_why_and_what_to_do() -> None:
    [alert] = written(event())
    assert alert.subject == "Yours now: Ada Lovelace (Acme) is at Lead Qualification"
    for said in (
        "Ana Silva, this lead is yours now, as lead agent.",
        "Ada Lovelace, ada@acme.example",
        "Company:  Acme",
        "Lead Qualification (from lead generation)",
        "62 (fit 20, intent 42)",
        "asked for a demo and the score 62 is over 50",
        "2025-03-01 11:00 CET  Asked for a demo",  # Ana's own time
        "Focus:    Assess fit and intent",
        "Goal:     A meeting for the account executive",
        "- Call within an hour",
        "1. Research\n  2. Call",
        "https://baton.example/leads/018f0000-0000-7000-8000-0000000000aa",
        f"Alert {alert.id}",
    ):
        assert said in alert.body
    assert alert.body.index("Asked for a demo") < alert.body.index("Viewed pricing")
    assert (alert.recipient, alert.addressee_id, alert.person_id) == ("ana", "ana", "ana")
    assert alert.stage == "lead_qualification"
    assert alert.company == "Acme"


def test_channels_are_labels_without_secrets() -> None:
    [alert] = written(event())
    assert alert.channels[:2] == ("inbox", "email")
    assert alert.channels[2].startswith("json:")
    assert "secret-token" not in repr(alert)


def test_nobody_eligible_goes_to_sales_leadership() -> None:
    [alert] = written(event(alerts=[{"role": "ae", "person": None}]))
    assert alert.recipient == "role:ae"
    assert alert.person_id is None
    assert alert.addressee_id == "lea"
    assert alert.channels == ("inbox", "console")
    assert alert.subject.startswith("Nobody for account executive: ")
    assert "Nobody was eligible as account executive" in alert.body


def test_nobody_eligible_and_no_leadership_stays_in_the_inbox() -> None:
    [alert] = written(event(alerts=[{"role": "ae", "person": None}]), team_of(()))
    assert alert.addressee_id is None
    assert alert.channels == ("inbox",)


def test_a_person_who_left_the_roster_is_reached_by_the_inbox() -> None:
    [alert] = written(event(), team_of(()))
    assert (alert.addressee_id, alert.channels) == ("ana", ("inbox",))


def test_one_alert_a_person_though_two_roles_wish_it() -> None:
    ana = {"id": "ana", "name": "Ana Silva"}
    wishes = [{"role": "lead_agent", "person": ana}, {"role": "ae", "person": ana}]
    wishes += [{"role": "csm", "person": None}, {"role": "csm", "person": None}]
    assert [a.recipient for a in written(event(alerts=wishes))] == ["ana", "role:csm"]


def test_a_lead_without_anything_is_still_written() -> None:
    bare = {"id": "018f0000-0000-7000-8000-0000000000aa", "email": None, "name": None}
    [alert] = written(event(lead=bare, stage={}, explanation="", handoff=False))
    assert alert.subject == "A lead without a name is at lead qualification"
    assert "Why now" not in alert.body
    assert "Last touches" not in alert.body
    assert alert.company is None


def test_a_role_may_have_a_template_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "alert.lead_agent.txt.j2").write_text(
        '{% extends "alert.txt.j2" %}{% block guidance %}Ring {{ who }}.{% endblock %}'
    )
    templates = Templates(tmp_path)
    templates.check(sample_values(PUBLIC_URL))
    assert templates.problems == []
    [alert] = written(event(), templates=templates)
    assert "Ring Ada Lovelace." in alert.body
    assert "Next steps" not in alert.body
    assert "Why now" in alert.body


def test_a_kind_of_channel_may_have_a_template_of_its_own(tmp_path: Path) -> None:
    """Only that channel's delivery has the other text."""
    (tmp_path / "alert.json.txt.j2").write_text("short: {{ who }}")
    [alert] = written(event(), templates=Templates(tmp_path))
    texts = {d.channel.partition(":")[0]: d.body for d in alert.deliveries}
    assert texts == {"inbox": None, "email": None, "json": "short: Ada Lovelace\n"}


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("ok\n{% if %}", 2, "Expected an expression"),
        ("ok\n\n{{ nobody }}", 3, "nobody"),
        ("{{ ''.__class__.__mro__ }}", 1, "unsafe"),
        ("{{ 'x' * 200000 }}", 1, "characters"),
        ("{{ 1 // 0 }}", 1, "zero"),
    ],
)
def test_a_broken_template_is_told_with_its_line_and_ours_is_used(
    tmp_path: Path, text: str, line: int, word: str
) -> None:
    (tmp_path / "alert.txt.j2").write_text(text)
    templates = Templates(tmp_path)
    templates.check(sample_values(PUBLIC_URL))
    [problem] = templates.problems
    assert problem.file.endswith("alert.txt.j2")
    assert problem.line == line
    assert word in problem.message
    assert problem.remedy
    [alert] = written(event(), templates=templates)
    assert "Why now" in alert.body


def test_a_correction_is_read_like_a_transition() -> None:
    assert read_transition(message(event(), CORRECTED)) is not None


def test_other_types_of_ours_tell_no_alert() -> None:
    assert read_transition(message(b"x", "baton.lead.merged.v1")) is None


def test_what_a_lead_wrote_stays_in_its_place() -> None:
    lead = event()["lead"] | {
        "name": "Eve\r\nBcc: all@victim.example\r\n\r\nHi {{ 'pw' ~ 'ned' }} {% raw %}",
        "company": "Evil <!channel> \u202egnp.exe\x00\x1b[31m",
    }
    lead["touches"] = [
        {"type": "x", "time": "2025-03-01T10:00:00Z", "label": "a\n\nWhy now:\n  pay me"}
    ]
    [alert] = written(event(lead=lead))
    assert "\n" not in alert.subject
    assert "\r" not in alert.body
    assert not [line for line in alert.body.splitlines() if line.startswith("Bcc")]
    assert alert.body.count("\nWhy now:\n") == 1
    assert "{{ 'pw' ~ 'ned' }}" in alert.body
    assert "pwned" not in alert.body
    assert not {"\x00", "\x1b", "\u202e", "<"} & set(alert.body + alert.subject)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("@everyone look", "＠everyone look"), ("hi @here", "hi ＠here"),
        ("[pay](http://x.example)", "[pay] (http://x.example)"), ("<!channel>", "‹!channel>"),
        ("ada@example.com", "ada@example.com"),
    ],
)  # fmt: skip
def test_a_lead_cannot_call_a_whole_chat(written: str, shown: str) -> None:
    assert one_line(written) == shown


@given(st.text())
def test_one_line_is_one_printable_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1
    line.encode()  # no lone surrogates


@given(st.text(max_size=400), st.text(max_size=400))
def test_any_name_and_company_can_be_written(name: str, company: str) -> None:
    transition = read(event())
    lead = msgspec.structs.replace(transition.lead, name=name, company=company)
    transition = msgspec.structs.replace(transition, lead=lead)
    [alert] = alerts_of(transition, TEAM, PUBLIC_URL, uuid.uuid4, NOW)
    assert len(alert.subject) <= SUBJECT_CHARACTERS_MAX
    assert alert.subject.isprintable()
    assert all(line.isprintable() for line in alert.body.split("\n"))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff\xfe", b"[]", b"{", b"null", b'{"transition_id": 1}', b"[" * 100_000,
        event(transition_id="not-a-uuid"),
        event(alerts=[{"role": "ae\x00", "person": None}]),
        event(alerts=[{"role": "ae", "person": {"id": " \n", "name": "x"}}]),
        event(alerts=[{"role": "ae", "person": None}] * 51),
        event(recorded_at="2025-03-01T10:00:01"),
        {k: v for k, v in event().items() if k != "lead"},
    ],
)  # fmt: skip
def test_what_is_not_a_transition_is_refused_with_a_reason(body: Any) -> None:
    with pytest.raises(UnreadableError) as refused:
        read_transition(message(body))
    assert refused.value.reason


@pytest.mark.parametrize("headers", [{}, {"ce_type": "com.example.other"}])
def test_what_is_not_ours_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(UnreadableError):
        read_transition(Message(TRANSITIONS_TOPIC, "", headers, b"{}"))
