"""`baton alerts preview` and how the page shows why an alert waits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.baton.cli import app
from services.notifier.escalations import waits_of
from services.stage_service.pages.rendering import _templates

TEAM = str(Path(__file__).parents[2] / "playbooks/team.yaml")


def baton(*arguments: str, **more: str) -> Any:
    """Run a command."""
    return CliRunner().invoke(
        app, ["alerts", *arguments], env={"BATON_TEAM_FILE": TEAM, "COLUMNS": "200", **more}
    )


def test_a_role_and_a_person_can_be_previewed() -> None:
    for who in ("ae", "elena"):
        result = baton("preview", who)
        assert result.exit_code == 0, result.output
        assert "Elena Petrova, this lead is yours now" in result.output
        assert "== inbox" in result.output
        assert "== email" in result.output


def test_a_channel_shows_what_is_posted() -> None:
    result = baton("preview", "elena", "--channel", "teams+https://x.example/secret")
    assert '"AdaptiveCard"' in result.output
    assert "secret" not in result.output
    assert baton("preview", "elena", "--channel", "telegraph").exit_code == 2
    assert baton("preview", "nobody").exit_code == 2


def test_a_mail_shows_the_link_by_which_a_handoff_is_answered() -> None:
    shown = baton(
        "preview", "elena", "--channel", "email", BATON_PUBLIC_URL="https://b.example"
    ).output
    assert "Accept or reject: https://b.example/answer/a-token-that-opens-nothing" in shown
    other = baton("preview", "sales_leadership", "--channel", "email").output
    assert "Accept or reject" not in other, "they cannot answer"


def test_handoffs_and_clocks_can_be_previewed(tmp_path: Path) -> None:
    from services.notifier.previews import SAMPLES

    overdue = baton("preview", "elena", "--kind", "handoff").output
    assert "Overdue: Ada Lovelace (Acme) waits for an answer from you" in overdue
    clock = baton("preview", "elena", "--kind", "clock", "--channel", "slack+https://x.example/y")
    assert "Waits for: Handoff to Account Executive" in clock.output
    assert '"baton_accept"' in clock.output
    assert baton("preview", "elena", "--kind", "weather").exit_code == 2
    file = tmp_path / "event.json"
    for kind, members in SAMPLES.items():  # which one it is, its members say
        file.write_text(json.dumps(members))
        shown = baton("preview", "elena", "--event", str(file))
        assert shown.output == baton("preview", "elena", "--kind", kind).output


def test_a_template_is_tried_with_what_its_kind_may_say(tmp_path: Path) -> None:
    (tmp_path / "handoff.txt.j2").write_text("{{ wait.deadline }}, {{ wait.owner }}")
    (tmp_path / "clock.ae.txt.j2").write_text("{{ answer.until }}")
    (tmp_path / "subject.clock.txt.j2").write_text("{{ wait.title }}!")
    result = baton("preview", "elena", "--kind", "handoff", "--templates", str(tmp_path))
    assert "Mon 2026-03-02 15:00 CET, Elena Petrova" in result.output
    assert result.exit_code == 1  # who cannot answer has no `answer`
    assert "clock.ae.txt.j2:1" in result.output
    assert "subject.clock" not in result.output


def test_an_event_of_ones_own_is_shown(tmp_path: Path) -> None:
    from services.notifier.previews import SAMPLE

    file = tmp_path / "event.json"
    file.write_text(json.dumps(SAMPLE | {"lead": SAMPLE["lead"] | {"name": "Grace Hopper"}}))
    shown = baton("preview", "ae", "--event", str(file)).output
    assert "Grace Hopper (Acme) is at Discovery & Solutioning" in shown
    file.write_text("{}")
    assert baton("preview", "ae", "--event", str(file)).exit_code == 2


def test_a_broken_template_fails_the_preview_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "alert.ae.txt.j2").write_text("{{ who }}\n{{ nobody }}\n")
    result = baton("preview", "ae", "--templates", str(tmp_path))
    assert result.exit_code == 1
    assert "alert.ae.txt.j2:2" in result.output
    assert "Ada Lovelace" in result.output


@pytest.mark.parametrize("text", ["ae", "ae=", "ae=0m", "ae=5", "AE=5m", "=5m", "ae=5m csm=4h"])
def test_waits_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write ae=30m"):
        waits_of(text)


def test_waits() -> None:
    assert waits_of("") == {}
    assert waits_of("ae=30m, csm=4h, *=1d,") == {"ae": 1800, "csm": 14_400, "*": 86_400}


def test_the_page_says_why_an_alert_waits() -> None:
    delivery = {
        "channel": "email", "attempt": 1, "status": "pending", "reason": None, "latency_ms": None,
        "due_at": "2026-03-05T08:00:00Z", "finished_at": None,
    }  # fmt: skip
    alert = {
        "id": "1", "lead_id": "2", "subject": "S", "body": "B", "role": "ae", "status": "pending",
        "person": None, "created_at": "2026-03-04T20:00:00Z", "acknowledged_at": None,
        "acknowledged_by": None, "deliveries": [delivery],
    }  # fmt: skip
    more = {"may_move": False, "roles": {}, "back": "/", "open": True}
    template = _templates.get_template("_alert.html")
    assert "held until" not in template.render(alert=alert, **more)  # of a notifier before
    delivery |= {"why": "held until 09:00 Europe/Berlin: quiet hours", "ambiguous": True}
    alert |= {"why": "not acknowledged by Ben", "snoozed_until": "2026-03-06T08:00:00Z"}
    shown = template.render(alert=alert, **more)
    assert "Mute lead" not in shown  # of a notifier before, or without the scope
    alert |= {"muted": False, "addressee_id": "ben"}
    more["may_move"] = True
    shown = template.render(alert=alert, **more)
    for text in ("Acknowledge", "Snooze 1 h", "Mute lead", 'hx-post="/alerts/1/snooze"'):
        assert text in shown
    assert ">Answer<" not in shown
    asks = {"handoff_id": "3"}
    asking = template.render(alert=alert | asks, **more)
    assert 'class="button primary" href="/leads/2#offer-3">Answer<' in asking
    assert asking.count("primary") == 1
    answered = {"acknowledged_at": "2026-03-04T20:00:00Z", "acknowledged_why": "accepted by ben"}
    settled = template.render(alert=alert | asks | answered | {"muted": True}, **more)
    assert ">Answer<" not in settled
    assert "</time>: accepted by ben</span>" in settled.replace("\n", "")
    assert "Snooze" not in settled
    assert "Unmute lead" in settled
    assert "accepted by ben" in settled
    for text in (delivery["why"], "Escalated: not acknowledged by Ben", "Snoozed until",
                 "it may have arrived"):  # fmt: skip
        assert text in shown
