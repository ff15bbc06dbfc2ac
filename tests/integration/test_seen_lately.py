"""What events brought lately, as the checks of a playbook ask for it; what a start says of a playbook."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import structlog

from services.stage_service.seen_lately import seen_lately
from tests.integration.stage import ROOT, running_stage, serving_stage

SALES = (ROOT / "playbooks/sales.yaml").read_text(encoding="utf-8")


def lead_event(id: str, type: str, **data: object) -> dict[str, object]:
    return {"specversion": "1.0", "id": id, "source": "/t", "type": type,
            "data": {"email": "ada@example.com", **data}}  # fmt: skip


async def test_types_and_attributes_with_a_value_of_the_last_days(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        await stage.send(
            lead_event("1", "page.viewed", url="/", campaign=None),
            lead_event("2", "demo.asked", employee_count=250),
        )
        await stage.send(lead_event("3", "long.ago", once=1))
        await stage.connection.execute(
            "UPDATE stage.events SET recorded_at = recorded_at - $1::interval WHERE id = '3'",
            timedelta(days=91),
        )
        seen = await seen_lately(stage.connection, 90)
        assert (seen.days, seen.types) == (90, {"page.viewed", "demo.asked"})
        assert seen.attributes == {"email", "url", "employee_count"}
        assert "once" in (await seen_lately(stage.connection, 92)).attributes


async def test_validate_asks_the_database(database_url: str, tmp_path: Path) -> None:
    """For what events brought, and for who is in the roster there."""
    file = tmp_path / "mine.yaml"
    file.write_text(SALES.replace("to: role_lead}", "to: elna}", 1), encoding="utf-8")
    async with serving_stage(database_url) as stage:
        command = [
            Path(sys.executable).parent / "baton",
            "playbook",
            "validate",
            file,
            "--seen",
            "90d",
        ]

        async def told() -> str:
            done = await asyncio.to_thread(
                subprocess.run, command, env={"BATON_DATABASE_URL": database_url, "PATH": os.defpath},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return done.stderr

        none = await told()
        assert "no event came in the last 90 days" in none
        assert "Did you mean 'elena'? [playbook/nobody]" in none
        await stage.send(lead_event("2", "demo.request", employee_count=250))
        lately = await told()
        assert "Did you mean 'employee_count'? [playbook/unseen-attribute]" in lately
        assert "of the type 'demo.requested'. Did you mean 'demo.request'?" in lately
        assert "no event came" not in lately


async def test_a_start_says_how_many_warnings_there_are(database_url: str, tmp_path: Path) -> None:
    """One line with the checks, and no name of anybody: a playbook that was fine starts."""
    file = tmp_path / "mine.yaml"
    text = SALES.replace("to: role_lead}", "to: elna}").replace("total >= 60", "total >= 600")
    file.write_text(text, encoding="utf-8")
    with structlog.testing.capture_logs() as logs:
        async with running_stage(database_url, playbook_files=[file]) as stage:
            assert (await stage.client.get("/readyz")).status_code == 200
    [line] = [entry for entry in logs if entry["event"] == "playbook.warnings"]
    assert line["checks"] == ["playbook/never-fires", "playbook/nobody"]
    assert line["count"] == 1 + text.count("elna")
    assert "elna" not in str(line)


async def test_a_start_with_a_clean_playbook_says_nothing(database_url: str) -> None:
    with structlog.testing.capture_logs() as logs:
        async with running_stage(database_url):
            pass
    assert [entry for entry in logs if entry["event"] == "playbook.warnings"] == []
