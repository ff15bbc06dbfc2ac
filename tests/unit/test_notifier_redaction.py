"""Channels are named without their secrets; reasons hold neither addresses nor secrets."""

from __future__ import annotations

from services.notifier.redaction import REASON_CHARACTERS_MAX, kind, label, scrub

SLACK = "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#sales"


def test_built_in_channels_keep_their_names() -> None:
    assert [label(c) for c in ("inbox", "console", "email")] == ["inbox", "console", "email"]


def test_a_url_becomes_scheme_and_hash() -> None:
    name = label(SLACK)
    assert name.startswith("slack:")
    assert len(name) == len("slack:") + 8
    assert name == label(SLACK)
    assert name != label(SLACK + "x")
    assert kind(name) == "slack"


def test_every_part_of_a_secret_url_is_hidden() -> None:
    told = f"POST to {SLACK} failed: TIiajkdnlazkcOXrIdevi7FQ at T1JJ3T3L2 said\n 403\x1b[0m"
    shown = scrub(told, SLACK)
    for part in ("T1JJ3T3L2", "A1BRTD4JD", "TIiajkdnlazkcOXrIdevi7FQ", "\n", "\x1b"):
        assert part not in shown
    assert "403" in shown


def test_addresses_and_urls_are_hidden() -> None:
    shown = scrub("550 <ada@acme.example> unknown, see https://mx.example/help?u=ada")
    assert "ada" not in shown
    assert "550" in shown


def test_a_reason_is_short() -> None:
    assert len(scrub("x " * 10_000)) <= REASON_CHARACTERS_MAX
