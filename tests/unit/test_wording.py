"""What the pages say of values that nobody has given a word for."""

from __future__ import annotations

import pytest

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
