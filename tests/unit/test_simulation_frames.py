"""Exported rows: playbooks are folded with their renames, as from the database."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.baton.export import ABOUT, read_about
from services.contracts.events import LeadEvent
from services.stage_service.simulation import Tally
from services.stage_service.simulations.frames import (
    FORMAT,
    Exported,
    Job,
    PublishedText,
    simulation_of,
    tally_of,
)
from tests.unit import test_playbook_succession as versions

LATER = datetime(2026, 6, 1, tzinfo=UTC)
SILENT = versions.text("new, calls, won")
"""Does not say itself that `talks` is `calls` now: that was said beside the text."""
CARE = (
    versions.text("begun, cared, over")
    .replace("name: sales", "name: care")
    .replace("on: to.cared", "on: care.given")
    + "enters: {playbook: sales, stage: calls}\n"
)


def exported(migrate: dict[str, str]) -> Exported:
    texts = [
        PublishedText("sales", 2, SILENT, migrate),
        PublishedText("sales", 1, versions.OLD, {}),
        PublishedText("care", 1, CARE, {}),
    ]
    active = {0: {}, 1: {"sales": 1}, 2: {"sales": 2}, 3: {"sales": 2, "care": 1}}
    return Exported(FORMAT, LATER, 1, 3, 0, texts, active)


def row(event: LeadEvent, epoch: int) -> dict[str, Any]:
    at = int(event.time.timestamp()) * 1_000_000
    return {
        "lead_id": "lead", "source": event.source, "id": event.id, "type": event.type, "time": at,
        "recorded_at": at, "deal": event.deal, "data": "{}", "epoch": epoch,
    }  # fmt: skip


def told(about: Exported) -> Tally:
    job = Job(CARE, "care.yaml", {}, LATER, None, about)
    job = msgspec.json.decode(msgspec.json.encode(job), type=Job)  # as engines hand it on
    events = [
        row(versions.event("to.talks", 0), 1), row(versions.event("page.viewed", 5), 3),
        row(versions.event("care.given", 9), 3),
    ]  # fmt: skip
    return tally_of(simulation_of(job), None, events, [])


def test_another_playbooks_renamed_stage_begins_a_journey() -> None:
    tally = told(exported({"talks": "calls"}))
    assert tally.journeys == 1
    assert tally.candidate.stage("cared").current == 1


def test_an_export_of_another_format_is_refused(tmp_path: Path) -> None:
    about = msgspec.to_builtins(exported({}))
    for text in about["playbooks"]:
        del text["migrate"]
    (tmp_path / ABOUT).write_bytes(msgspec.json.encode(about | {"format": 1}))
    with pytest.raises(ValueError, match="has the format 1, not 2: export again"):
        read_about(tmp_path)
