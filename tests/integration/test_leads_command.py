"""`baton leads why`, `merge` and `unmerge` against a stage service on a real socket."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from pathlib import Path

from tests.integration.stage import ROOT, Stage, serving_stage


async def baton(stage: Stage, *arguments: str) -> tuple[int, str]:
    """Run a command of `baton` as a user does; gives (exit code, what it printed)."""
    command = [Path(sys.executable).parent / "baton", *arguments, "--url", stage.url]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env={"BATON_API_KEY": stage.key, "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


async def test_leads_are_merged_and_parted(database_url: str) -> None:
    async with serving_stage(database_url) as stage:
        results = await stage.send(*(
            {"specversion": "1.0", "id": str(uuid.uuid4()), "source": "/t", "type": "demo.requested",
             "data": {"email": f"{name}@x.example"}} for name in ("a", "b")
        ))  # fmt: skip
        one, other = sorted(r["lead_id"] for r in results)
        code, said = await baton(stage, "leads", "merge", other, one, "--reason", "one person")
        assert (code, said.startswith(f"{other} is part of {one}; ")) == (0, True), said
        code, said = await baton(stage, "leads", "merge", other, one, "--reason", "again")
        assert code == 1
        assert "the same lead already. Nothing to do." in said
        code, said = await baton(stage, "leads", "unmerge", one, other, "--reason", "two people")
        assert (code, said.startswith(f"{other} is by itself again, apart from {one}; ")) == (
            0,
            True,
        )
        code, said = await baton(stage, "leads", "unmerge", one, other, "--reason", "two people")
        assert code == 1
        assert "no such merge" in said


async def test_why_a_lead_is_where_it_is(database_url: str) -> None:
    """By address or id, readable without colour; a past moment, and what is refused, with the remedy."""
    async with serving_stage(database_url) as stage:
        [told] = await stage.send(
            {"specversion": "1.0", "id": "1", "source": "/t", "type": "lead.created",
             "data": {"email": "ada@x.example", "employees": 900}}
        )  # fmt: skip
        for name in ("ada@x.example", told["lead_id"]):
            code, said = await baton(stage, "leads", "why", name)
            assert code == 0, said
            assert "sales/main: Lead Generation (lead) since" in said
            assert (
                "-> It moves to Lead Qualification on “Marked marketing-qualified” or “Asked for a demo”."
                in said
            )
            assert "   NO  score-reached -> mql  on every event" in said
            assert "   NO  score.total >= 60  [score.total = 25]" in said
            assert "gate of disqualified: reason (of the event) missing" in said
        code, said = await baton(stage, "leads", "why", "nobody@x.example")
        assert (code, "no lead has this e-mail address" in said) == (1, True)
        code, said = await baton(stage, "leads", "why", told["lead_id"], "--at", "2020-01-01")
        assert (code, "Its first event arrived at" in said) == (1, True), said
