"""What the pages say, read as HTML: boards of two playbooks, the past, what was not found."""

from __future__ import annotations

import html
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.stage import Stage, running_stage

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    """The stage service with the sales playbook and the one of customers."""
    files = [PLAYBOOKS / "sales.yaml", PLAYBOOKS / "expansion.yaml"]
    async with running_stage(database_url, playbook_files=files) as it:
        yield it


def event(name: str, type: str, **data: Any) -> dict[str, Any]:
    """Make an event of a lead."""
    about = {"email": f"{name}@{name}.example", "company": name.title(), **data}
    return {
        "specversion": "1.0", "id": uuid.uuid4().hex, "source": "/crm", "type": type, "data": about
    }  # fmt: skip


async def tell(stage: Stage, name: str, type: str, **data: Any) -> str:
    """Post one event of a lead, and give the lead's id."""
    [result] = await stage.send(event(name, type, **data))
    assert result["status"] == "applied", result
    return result["lead_id"]


async def read(stage: Stage, path: str, status: int = 200, **asked: str) -> str:
    """Give the text of a page as a reader has it: without marks, entities and runs of space."""
    answer = await stage.client.get(path, params=asked)
    assert answer.status_code == status, answer.text
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", answer.text)).split())


async def test_the_board_of_customers_tells_what_the_board_of_sales_does(stage: Stage) -> None:
    lead = await tell(stage, "ada", "deal.won", amount=5000)
    await tell(stage, "ada", "feature.requested")
    journeys = (await stage.client.get(f"/v1/leads/{lead}")).json()["journeys"]
    owner = next(j for j in journeys if j["playbook"] == "sales")["owners"]["csm"]
    begun = await read(stage, "/", playbook="expansion")
    assert f"{owner['name']} , of the Sales playbook" in begun
    assert "Score 15" in begun, "under this playbook, not under the first one"
    assert "journeys began at Customer Success & Expansion of the Sales playbook" in begun
    assert "because the deal was won" not in begun, "a move of the other playbook"
    await tell(stage, "ada", "customer.went_live")
    # The other playbook fills the log.
    await stage.send(*[event(f"l{n}", "demo.requested") for n in range(70)])
    moved = await read(stage, "/", playbook="expansion")
    assert "Moved from Onboarding to Adoption because the customer went live." in moved
    assert "asked for a demo" not in moved
    assert ", of the Sales playbook" not in moved, "it has an owner of its own"
    assert "asked for a demo" in await read(stage, "/")


async def test_leads_are_listed_by_a_stage_of_either_playbook(stage: Stage) -> None:
    await tell(stage, "ada", "deal.won")
    await tell(stage, "ben", "demo.requested")
    for asked in ("expansion/onboarding", "onboarding"):
        answer = await stage.client.get("/leads", params={"stage": asked})
        assert ("Ada" in answer.text, "Ben" in answer.text) == (True, False)
        as_json = re.search(r'href="(/v1/leads\?[^"]*)"', answer.text)
        assert as_json is not None
        found = await stage.client.get(html.unescape(as_json[1]))
        assert [i["company"] for i in found.json()["items"]] == ["Ada"]


async def test_the_page_of_a_customer_speaks_each_playbooks_words(stage: Stage) -> None:
    lead = await tell(stage, "ada", "deal.won", amount=5000)
    began = await read(stage, f"/leads/{lead}")
    assert "Of the Sales playbook; the first move here chooses." in began
    assert "eligible for Customer Success Manager" in began
    assert "eligible for csm" not in began
    await tell(stage, "ada", "customer.went_live", seats=80)
    said = await read(stage, f"/leads/{lead}")
    assert "Went live from /crm" in said
    assert "in Onboarding" in said
    assert "Score, Sales playbook: " in said
    assert "Score, Expansion playbook: 20" in said
    assert "the first move here chooses" not in said


async def test_a_moment_that_cannot_be_told_of_is_refused_beside_the_present(stage: Stage) -> None:
    lead = await tell(stage, "ada", "demo.requested")
    for path in (f"/leads/{lead}", "/funnel"):
        for text, reason in (
            ("last Monday", "is no moment"),
            ("2199-01-01T00:00", "in the future"),
        ):
            answer = await stage.client.get(path, params={"at": text})
            assert answer.status_code == 422
            assert f'value="{text}"' in answer.text, "the form is as it was sent"
            told = await read(stage, path, 422, at=text)
            assert "Not looked back: As of:" in told
            assert reason in told
            assert "Lead Qualification" in told, "the present is there"
    early = await stage.client.get(f"/leads/{lead}", params={"at": "2001-01-01T00:00"})
    assert early.status_code == 404
    said = await read(stage, f"/leads/{lead}", 404, at="2001-01-01T00:00")
    assert (
        "Baton did not know this lead yet on 2001-01-01 00:00:00 UTC. It first heard of it" in said
    )
    beginning = re.search(r'href="([^"]*)">Look at its beginning', early.text)
    assert beginning is not None
    nowhere = await stage.client.get(f"/leads/{uuid.uuid4()}", params={"at": "2001-01-01T00:00"})
    assert nowhere.status_code == 404
    assert "Not looked back" not in nowhere.text
    days = await stage.client.get("/funnel", params={"from": "2026-02-30", "to": "2026-03-01"})
    assert days.status_code == 422
    assert 'value="2026-02-30"' in days.text
    assert "Started from: “2026-02-30” is no day. Give it as 2026-01-31." in html.unescape(
        days.text
    )


async def test_the_audit_offers_what_it_has_and_says_how_to_ask_for_more(stage: Stage) -> None:
    await stage.client.put("/v1/people/nina", json={"name": "Nina", "roles": ["csm", "ae"]})
    whole = (await stage.client.get("/audit")).text
    for offered in ("test", "person", "added"):
        assert f'<option value="{offered}">' in whole
    assert "roles: csm, ae" in await read(stage, "/audit", object="person/nina")
    asked = {"actor": "nobody at all", "object": "person", "to": "2001-01-01"}
    none = await stage.client.get("/audit", params=asked)
    said = await read(stage, "/audit", **asked)
    assert "for who nobody at all , to what person and until 2001-01-01" in said
    for kept in ("actor=nobody+at+all&amp;to=2001-01-01", "object=person&amp;to=2001-01-01"):
        assert f'href="/audit?{kept}"' in none.text
    export = re.search(r'href="(/v1/audit/export\?[^"]*)"', none.text)
    assert export is not None
    lines = await stage.client.get(html.unescape(export[1]))
    assert (lines.status_code, lines.text) == (200, "")
    for field, text in (("from", "yesterday"), ("lead_id", "ada")):
        refused = await stage.client.get("/audit", params={field: text})
        assert refused.status_code == 422
        assert f'value="{text}"' in refused.text
        assert 'aria-invalid="true"' in refused.text
    lead = await tell(stage, "ada", "demo.requested")
    moved = {"to": "nurture", "reason": "spring"}
    await stage.client.post(f"/v1/leads/{lead}/transitions", json=moved)
    by_page = await stage.client.get("/audit", params={"lead_id": f"http://x/leads/{lead}?all"})
    assert f"/v1/audit?lead_id={lead}" in by_page.text
    assert by_page.text.count("<tr id=") == 1
    today = stage.house.now().date().isoformat()
    assert "roles: csm, ae" in await read(stage, "/audit", **{"from": today, "to": today})


async def test_the_last_day_there_is_has_an_end_too(stage: Stage) -> None:
    await tell(stage, "ada", "demo.requested")
    for page in ("/funnel", "/audit"):
        await read(stage, page, to="9999-12-31")


async def test_a_state_that_cannot_be_read_takes_no_board_away(stage: Stage) -> None:
    """Of a playbook that is not the first: its scores are in the states."""
    broken = await tell(stage, "ada", "deal.won", amount=5000)
    await tell(stage, "ben", "deal.won", amount=5000)
    await stage.connection.execute("UPDATE stage.leads SET state = '' WHERE id = $1", broken)
    said = await read(stage, "/", playbook="expansion")
    assert "Ada Score –" in said
    assert re.search(r"Ben Score \d", said)
