"""`baton handoffs` against a stage service on a real socket."""

from __future__ import annotations

from tests.integration.stage import serving_stage
from tests.integration.test_handoffs_api import waiting
from tests.integration.test_leads_command import baton


async def test_handoffs_are_listed_accepted_and_rejected(database_url: str) -> None:
    async with serving_stage(database_url) as stage:
        one, other = await waiting(stage), await waiting(stage, "ben")
        code, said = await baton(stage, "handoffs", "list", "--role", "ae")
        assert code == 0, said
        assert said.index(one["id"]) < said.index(other["id"]), "the longest waiting first"
        assert "overdue" not in said
        code, said = await baton(stage, "handoffs", "accept", one["id"])
        assert (code, said.strip()) == (0, f"{one['id']} is accepted by test")
        code, said = await baton(stage, "handoffs", "accept", one["id"])
        assert code == 1
        assert "test accepted it on 20" in said
        code, said = await baton(stage, "handoffs", "reject", other["id"], "--reason", "No budget")
        assert (code, said.strip()) == (0, f"{other['id']} is rejected by test: No budget")
        code, said = await baton(stage, "handoffs", "list", "--state", "rejected")
        assert other["id"] in said
        assert one["id"] not in said
        code, said = await baton(stage, "handoffs", "list", "--state", "odd")
        assert code == 1
        assert "state" in said
