"""The one-click links that answer a handoff: what a scanner, a person, a late-comer and a forger get."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.contracts.links import ANSWER, Links
from services.stage_service.app import create_app
from services.stage_service.settings import StageSettings
from tests.integration.stage import NOON, MadeUpTime, Stage, running_stage
from tests.integration.test_handoffs_api import listed, tell, waiting

KEY = "0123456789abcdef0123456789abcdef"
LINKS = Links(ANSWER, KEY, "https://baton.example/", 7 * 86_400)
TEAM = """
people:
  - {id: lena, name: Lena, roles: [lead_agent]}
  - {id: adam, name: Adam, roles: [ae], time_zone: Europe/Berlin, away: [{from: 2020-01-01, until: 2020-01-02, stand_in: beth}]}
  - {id: beth, name: Beth, roles: [ae], weight: 0}
  - {id: carl, name: Carl, roles: [ae], weight: 0}
  - {id: head, name: Head, roles: [], leads: [ae], weight: 0}
  - {id: boss, name: Boss, roles: [sales_leadership]}
  - {id: cleo, name: Cleo, roles: [csm]}
"""  # noqa: E501


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    """The stage service with the key of the links, running."""
    (tmp_path / "team.yaml").write_text(TEAM)
    team = tmp_path / "team.yaml"
    async with running_stage(database_url, MadeUpTime(), link_key=KEY, team_file=team) as it:
        yield it


@pytest.fixture
async def nobody(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    """A client without any key."""
    transport = httpx.ASGITransport(stage.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=stage.url) as client:
        yield client


def link(item: dict[str, Any], person: str = "adam", now: datetime | None = None) -> str:
    """The path of the link for `person`."""
    token = LINKS.token(uuid.UUID(item["id"]), person, now or NOON)
    return f"/answer/{token}"


async def state(stage: Stage, item: dict[str, Any]) -> dict[str, Any]:
    """The handoff as it is now."""
    return (await stage.client.get(f"/v1/handoffs/{item['id']}")).json()


async def test_opening_shows_and_the_button_accepts_once(
    stage: Stage, nobody: httpx.AsyncClient
) -> None:
    item = await waiting(stage)
    path = link(item)
    before = await stage.count()
    for _ in range(3):  # scanners open it as often as they like
        page = await nobody.get(path)
        assert page.status_code == 200
        for text in ("Do you take it?", "Ada", "Discovery &amp; Solutioning", "No budget", "CET"):
            assert text in page.text, text
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["x-robots-tag"] == "noindex"
        assert "script" not in page.headers["content-security-policy"]
    assert (await nobody.head(path)).status_code == 405
    assert await stage.count() == before
    done = await nobody.post(path, data={"answer": "accept"})
    assert done.status_code == 200
    assert "Ada is yours." in done.text
    after = await state(stage, item)
    assert (after["state"], after["answered_by"], after["implied"]) == ("accepted", "Adam", False)
    again = await nobody.post(path, data={"answer": "reject", "reason": "No budget"})
    assert again.status_code == 409
    assert "Adam accepted it on 20" in again.text
    assert "Answered already" in (await nobody.get(path)).text
    assert (await state(stage, item))["state"] == "accepted"
    assert await stage.count() == before + 1


async def test_a_rejection_takes_a_reason_from_the_list_or_in_own_words(
    stage: Stage, nobody: httpx.AsyncClient
) -> None:
    for name, sent, told in (
        ("ada", {"reason": "No budget", "other": " "}, "No budget"),
        ("ben", {"reason": "No budget", "other": "they went <b>bust</b>"}, "they went <b>bust</b>"),
    ):
        item = await waiting(stage, name)
        missing = await nobody.post(link(item), data={"answer": "reject", "reason": " "})
        assert missing.status_code == 422
        assert "A rejection needs a reason" in missing.text
        assert "<button" in missing.text, "it can be sent again at once"
        done = await nobody.post(link(item), data={"answer": "reject", **sent})
        assert done.status_code == 200
        assert "<b>" not in done.text
        after = await state(stage, item)
        assert (after["state"], after["reason"], after["answered_by"]) == ("rejected", told, "Adam")
    assert (await nobody.post(link(item), data={})).status_code == 422


async def test_programs_get_json(stage: Stage, nobody: httpx.AsyncClient) -> None:
    item = await waiting(stage)
    nobody.headers["accept"] = "application/json"
    shown = (await nobody.get(link(item))).json()
    assert (shown["id"], shown["state"], shown["reasons"][0]) == (
        item["id"],
        "offered",
        "No budget",
    )
    for form, status, code in (
        ({"answer": "reject"}, 422, "invalid-request"),
        ({"answer": "maybe"}, 422, "invalid-request"),
    ):
        refused = await nobody.post(link(item), data=form)
        assert (refused.status_code, refused.json()["code"]) == (status, code)
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["cache-control"] == "no-store"
    form = {"answer": "reject", "reason": "No budget", "actor": "slack:U1"}
    done = await nobody.post(link(item), data=form)
    assert done.status_code == 200
    assert (done.json()["state"], done.json()["answered_by"]) == ("rejected", "slack:U1")
    again = await nobody.post(link(item), data=form)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert "slack:U1 rejected it" in again.json()["detail"]
    gone = await nobody.get("/answer/x")
    assert (gone.status_code, gone.json()["code"]) == (410, "gone")


async def test_a_link_expires_and_cannot_be_changed(
    stage: Stage, nobody: httpx.AsyncClient
) -> None:
    item = await waiting(stage)
    path = link(item)
    forged = Links(ANSWER, "f" * 32, "", 600).token(uuid.UUID(item["id"]), "adam", NOON)
    old = link(item, now=NOON - timedelta(days=8))
    # Not the last letter: two of its bits say nothing.
    bad = [old, path[:-5] + ("A" if path[-5] != "A" else "B") + path[-4:], f"/answer/{forged}", "/answer/x",
           "/answer/" + "a." * 600, "/answer/%00%ff"]  # fmt: skip
    for each in bad:
        assert (await nobody.get(each)).status_code == 410, each
        assert (await nobody.post(each, data={"answer": "accept"})).status_code == 410, each
    unknown = link({"id": str(uuid.uuid4())})
    assert (await nobody.post(unknown, data={"answer": "accept"})).status_code == 404
    assert (await state(stage, item))["state"] == "offered"


async def test_a_link_pressed_twice_at_once_has_one_effect(
    stage: Stage, nobody: httpx.AsyncClient
) -> None:
    item = await waiting(stage)
    path, other, before = link(item), link(item, "head"), await stage.count()
    accept, reject = {"answer": "accept"}, {"answer": "reject", "reason": "No budget"}
    answers = await asyncio.gather(
        *(nobody.post(path, data=accept) for _ in range(3)),
        *(nobody.post(path, data=reject) for _ in range(3)),
        *(nobody.post(other, data=reject) for _ in range(2)),
    )
    assert {a.status_code for a in answers} <= {200, 409}
    after = await state(stage, item)
    taken = [a for a in answers if a.status_code == 200]
    word = "Accepted" if after["state"] == "accepted" else "Rejected"
    assert taken
    assert all(f"<h1>{word}</h1>" in a.text for a in taken)
    assert await stage.count() <= before + 2, "an event a link"


async def test_whoever_the_ladder_tells_may_answer_and_nobody_else(
    stage: Stage, nobody: httpx.AsyncClient
) -> None:
    """The stand-in, the role's lead and leadership answer for the owner; a colleague does not."""
    item = await waiting(stage)
    assert item["person"]["id"] == "adam"
    for stranger in ("carl", "cleo", "zoe"):
        refused = await nobody.post(link(item, stranger), data={"answer": "accept"})
        assert refused.status_code == 409, stranger
        assert "It is offered to Adam now" in refused.text
        assert (await nobody.get(link(item, stranger))).status_code == 409
    for n, person in enumerate(("beth", "head", "boss")):
        item = await waiting(stage, f"lead{n}")
        done = await nobody.post(link(item, person), data={"answer": "accept"})
        assert done.status_code == 200, person
        after = await state(stage, item)
        assert (after["answered_by"], after["person"]["id"]) == (person.title(), "adam")


async def test_a_link_to_what_was_given_to_somebody_else_is_superseded(
    stage: Stage, nobody: httpx.AsyncClient
) -> None:
    item = await waiting(stage)
    await stage.client.post(
        f"/v1/leads/{item['lead']['id']}/assign",
        json={"role": "ae", "person": "carl", "reason": "her account"},
    )
    refused = await nobody.post(link(item), data={"answer": "accept"})
    assert refused.status_code == 409
    assert "It was withdrawn on 20" in refused.text
    [again] = await listed(stage, lead_id=item["lead"]["id"], state="offered")
    assert again["person"]["id"] == "carl"
    await tell(stage, "ada", "proposal.sent")
    late = await nobody.post(link(again, "carl"), data={"answer": "reject", "reason": "x"})
    assert late.status_code == 409
    assert "It counts as accepted, by what was done" in late.text


async def test_without_a_key_there_are_no_links(database_url: str) -> None:
    async with running_stage(database_url, MadeUpTime()) as stage:
        item = await waiting(stage)
        assert (await stage.client.get(link(item))).status_code == 404
        assert (await stage.client.post(link(item))).status_code == 404


def test_a_key_that_can_be_guessed_is_refused_at_the_start() -> None:
    settings = StageSettings(
        _env_file=None, database_url="postgresql://x@127.0.0.1:9/x", link_key="short"
    )
    with pytest.raises(ValueError, match="BATON_LINK_KEY"):
        create_app(settings)
