"""The demo's traffic as the shipped source files read it."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime

from services.baton.demo import ODD_DELIVERY, _is_ours, first_days
from services.stage_service.sources.book import load_source
from services.stage_service.sources.mapping import Delivery, map_delivery
from tests.conftest import ROOT

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


def test_what_the_tools_tell_is_mapped_and_names_people_in_two_ways() -> None:
    """No delivery of the demo's tools is quarantined, and some users turn out to be known leads."""
    told = list(first_days(random.Random(7), NOW))
    assert {tool for tool, _ in told} == {"events", "generic", "segment"}
    addresses = {m["data"]["email"] for tool, m in told if tool == "events"}
    linked = 0
    for tool, message in told:
        if tool == "events":
            continue
        source = load_source(ROOT / "sources" / f"{tool}.yaml")
        mapped = map_delivery(source, Delivery(json.dumps(message).encode(), NOW))
        assert mapped.defects == []
        (event,) = mapped.events
        assert event.time is not None
        assert event.time <= NOW
        linked += event.type == "lead.identified" and event.data["email"] in addresses
    assert linked >= 5


def test_the_demo_leaves_the_leads_of_others_alone() -> None:
    told = [m for tool, m in first_days(random.Random(7), NOW) if tool == "events"]
    assert all(_is_ours(message["data"]["email"]) for message in told)
    assert not any(_is_ours(email) for email in ("bob@acme.com", "a@northwind.example", "", None))


def test_the_odd_delivery_is_quarantined() -> None:
    source = load_source(ROOT / "sources" / "generic.yaml")
    mapped = map_delivery(source, Delivery(json.dumps([ODD_DELIVERY]).encode(), NOW))
    assert mapped.events == []
    assert [defect.code for _, defect in mapped.defects] == ["no-type"]
