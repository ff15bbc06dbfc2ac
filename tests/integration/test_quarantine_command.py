"""`baton quarantine` against a stage service on a real socket."""

from __future__ import annotations

from tests.integration.stage import serving_stage
from tests.integration.test_leads_command import baton


async def test_a_delivery_is_listed_replayed_and_discarded(database_url: str) -> None:
    async with serving_stage(database_url) as stage:
        code, said = await baton(stage, "quarantine", "list")
        assert (code, said) == (0, "nothing in quarantine, status open\n")
        answer = await stage.client.post("/webhooks/generic", json={"email": "q@x.example"})
        assert answer.json()["quarantined"] == 1
        code, said = await baton(stage, "quarantine", "list")
        id = said.split()[0]
        assert (code, "gives no type" in said) == (0, True)
        code, said = await baton(stage, "quarantine", "replay", "--source", "genric")
        assert (code, said.startswith("there is no source 'genric'. ")) == (1, True)
        code, said = await baton(stage, "quarantine", "discard", id)
        assert (code, said) == (0, f"{id}: discarded\n")
        code, said = await baton(stage, "quarantine", "discard", id)
        assert (code, said) == (1, "the delivery is discarded already. Nothing is to do.\n")
