"""What the pages say of values that nobody has given a word for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from services.stage_service.pages import wording
from services.stage_service.pages.wording import happening


@pytest.mark.parametrize(
    ("type", "said"),
    [
        ("email.spam_reported", "Email spam reported"),
        ("hubspot.contact.creation", "Hubspot contact creation"),
        ("x", "X"),
    ],
)
def test_an_event_without_a_label_reads_as_words(type: str, said: str) -> None:
    assert happening(type) == said


def told(action: str, **more: object) -> str:
    """What a timeline says of a handoff to Elena."""
    item = {
        "action": action, "person": {"id": "elena", "name": "Elena"}, "role_title": "Account Executive",
        "round": 1, "age_seconds": 720.0, "implied": False, "reason": None, "answered_by": None,
    }  # fmt: skip
    return wording.handed(item | more)


def test_handoffs_are_told_in_sentences() -> None:
    """Who, what, after how long, and why; also where somebody else answered, or nobody has it."""
    assert told("offered") == "Offered to Elena as Account Executive."
    assert told("offered", round=2, person=None) == (
        "Offered to nobody yet as Account Executive. It is offer no. 2."
    )
    assert (
        told("accepted", answered_by="Head of Sales") == "Head of Sales accepted it after 12 min."
    )
    assert told("accepted", implied=True) == (
        "Elena took it up after 12 min: what was done shows it."
    )
    assert told("rejected", reason="No budget") == "Elena rejected it after 12 min: No budget."
    assert told("rejected") == "Elena rejected it after 12 min: no reason given."
    assert told("overdue") == "Overdue: Elena had not answered by the deadline."
    assert told("withdrawn", reason="on leave") == "No longer waits for Elena: on leave."


def test_clocks_are_told_by_their_title() -> None:
    """What a step of a clock is called."""
    for action, words in (
        ("reminded", "Reminder: The signature"), ("fired", "Deadline passed: The signature"),
        ("escalated", "Escalated: The signature"),
    ):  # fmt: skip
        assert wording.rung({"action": action, "title": "The signature"}) == words


@pytest.mark.parametrize(
    ("left", "said"),
    [(4 * 3600, "in 4 h"), (3600, "in 1 h"), (86_400, "in 1 d"), (600, "in 10 min"),
     (3 * 3600 + 600, "in 3 h"), (-4 * 3600 + 60, "3 h ago"), (-3600, "1 h ago")],
)  # fmt: skip
def test_what_is_ahead_is_rounded_and_ages_are_floored(left: int, said: str) -> None:
    """Some time has gone when it is shown; a deadline in 4 h still reads so."""
    assert wording.ago(datetime.now(UTC) + timedelta(seconds=left - 1)) == said
