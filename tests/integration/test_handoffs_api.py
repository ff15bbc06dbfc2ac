"""Handoffs over HTTP on real PostgreSQL: the list, answers, numbers, and what the timeline tells."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from services.baton.verify import verify_database
from services.stage_service.ticker import Ticker
from tests.integration.stage import NOON, MadeUpTime, Stage, running_stage

START = NOON - timedelta(days=2)


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    """The stage service, running."""
    async with running_stage(database_url, now=MadeUpTime()) as it:
        yield it


async def tell(stage: Stage, name: str, type: str, at: datetime | None = None, **data: Any) -> str:
    """Post one event of a lead that is known by e-mail, at the moment `at`; gives the lead's id."""
    event: dict[str, Any] = {
        "specversion": "1.0", "id": uuid.uuid4().hex, "source": "/crm", "type": type,
        "data": {"email": f"{name}@{name}.example", "name": name.title(), "company": name, **data},
    }  # fmt: skip
    if at is not None:
        event["time"] = at.isoformat()
    clock = stage.house.now
    if at is not None:
        assert isinstance(clock, MadeUpTime)
        before, clock.at = clock.at, at
        [result] = await stage.send(event)
        clock.at = before
    else:
        [result] = await stage.send(event)
    assert result["status"] == "applied", result
    return result["lead_id"]


async def listed(stage: Stage, **query: Any) -> list[dict[str, Any]]:
    """The handoffs that `query` asks for; ``from_`` stands for ``from``."""
    asked = {name.removesuffix("_"): value for name, value in query.items()}
    answer = await stage.client.get("/v1/handoffs", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


async def waiting(stage: Stage, name: str = "ada") -> dict[str, Any]:
    """A fresh handoff to the account executives, of a lead whose meeting is booked."""
    lead = await tell(stage, name, "meeting.booked")
    [item] = await listed(stage, lead_id=lead)
    return item


async def ring(stage: Stage, at: datetime) -> None:
    """Fire every clock that is due at the moment `at`."""
    ticker = Ticker(stage.house.pool, stage.house.lane, lambda: at)
    while await ticker.run_due():
        pass


async def test_a_handoff_shows_lead_person_deadline_and_reasons(stage: Stage) -> None:
    lead = await tell(stage, "ada", "demo.requested")
    await tell(stage, "ada", "meeting.booked")
    newest, older = await listed(stage, lead_id=lead)
    assert (older["role"], older["state"], older["implied"]) == ("lead_agent", "accepted", True)
    assert newest["lead"] == {
        "id": lead, "name": "Ada", "company": "ada", "email": "ada@ada.example"
    }  # fmt: skip
    assert (newest["stage"], newest["stage_title"]) == ("sql", "Discovery & Solutioning")
    assert (newest["role"], newest["from_role"], newest["round"]) == ("ae", "lead_agent", 1)
    assert newest["person"]["id"] in ("elena", "marcus")
    assert newest["giver"]["id"] == older["person"]["id"]
    assert newest["due_at"] > newest["offered_at"]
    assert newest["asked_at"] is not None
    assert newest["overdue"] is False
    assert 0 <= newest["age_seconds"] < 60
    assert "No budget" in newest["reasons"]
    one = (await stage.client.get(f"/v1/handoffs/{newest['id']}")).json()
    assert one | {"age_seconds": 0} == newest | {"age_seconds": 0}
    assert one["journey"]["playbook"] == "sales"


async def test_the_list_is_filtered_and_paged(stage: Stage) -> None:
    for hour, name in enumerate(("ada", "ben", "cleo", "dan")):
        await tell(stage, name, "meeting.booked", START + timedelta(hours=hour))
    lead = await tell(stage, "eve", "deal.won", START + timedelta(hours=9))
    names = [i["lead"]["name"] for i in await listed(stage, role="ae")]
    assert names == ["Dan", "Cleo", "Ben", "Ada"], "newest first"
    names = [i["lead"]["name"] for i in await listed(stage, role="ae", state="offered")]
    assert names == ["Ada", "Ben", "Cleo", "Dan"], "who waits longest comes first"
    for state in (None, "offered"):
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 2, "role": "ae"} | ({"state": state} if state else {})
        while True:
            page = (await stage.client.get("/v1/handoffs", params=query)).json()
            seen += [i["lead"]["name"] for i in page["items"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        assert seen == (names if state else names[::-1])
    [item] = await listed(stage, lead_id=lead, role="csm")
    assert [i["id"] for i in await listed(stage, person=item["person"]["id"])] == [item["id"]]
    until = (START + timedelta(hours=2)).isoformat()
    assert len(await listed(stage, role="ae", to=until)) == 2
    assert len(await listed(stage, role="ae", from_=until)) == 2
    assert await listed(stage, state="rejected") == []
    overdue = await listed(stage, overdue="true", state="offered")
    assert {i["overdue"] for i in overdue} == {True}
    fresh = await listed(stage, overdue="false")
    assert len(overdue) + len(fresh) == 5
    for bad in ("state=open", "cursor=x", "cursor=2026-01-01~x", "limit=0", "role=%00", "from=x"):
        assert (await stage.client.get(f"/v1/handoffs?{bad}")).status_code == 422, bad
    assert (await stage.client.get("/v1/handoffs?lead_id=x")).status_code == 404


async def test_a_handoff_is_accepted_once(stage: Stage, database_url: str) -> None:
    item = await waiting(stage)
    path = f"/v1/handoffs/{item['id']}/accept"
    answer = await stage.client.post(path, json={"actor": "Elena"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["state"], body["answered_by"], body["implied"]) == ("accepted", "Elena", False)
    again = await stage.client.post(path)
    assert again.status_code == 409
    assert "Elena accepted it on 20" in again.json()["detail"]
    assert (again.json()["state"], again.json()["answered_by"]) == ("accepted", "Elena")
    late = await stage.client.post(
        f"/v1/handoffs/{item['id']}/reject", json={"reason": "No budget"}
    )
    assert late.status_code == 409
    assert (await stage.client.get(f"/v1/handoffs/{item['id']}")).json()["state"] == "accepted"
    report = await verify_database(database_url)
    assert [f for f in report.findings if "published log" not in f] == []


async def test_a_rejection_needs_a_reason_and_goes_on(stage: Stage) -> None:
    """The playbook leads it back to the lead agent; the reason stands in the row and in the event."""
    item = await waiting(stage)
    path = f"/v1/handoffs/{item['id']}/reject"
    for bad in ({}, {"reason": ""}, {"reason": "  "}, {"reason": "x", "person": "zoe"}):
        assert (await stage.client.post(path, json=bad)).status_code == 422, bad
    done = await stage.client.post(path, json={"reason": " No budget "})
    assert done.status_code == 200, done.text
    assert (done.json()["state"], done.json()["reason"]) == ("rejected", "No budget")
    lead = (await stage.client.get(f"/v1/leads/{item['lead']['id']}")).json()
    assert lead["journeys"][0]["stage"] == "mql"
    again = await stage.client.post(path, json={"reason": "x"})
    assert again.status_code == 409
    assert "rejected it on 20" in again.json()["detail"]
    [back] = await listed(stage, lead_id=item["lead"]["id"], state="offered")
    assert back["role"] == "lead_agent"
    assert again.json()["handoff_id"] == back["id"], "it says where it waits now"


async def test_what_was_given_to_somebody_else_is_withdrawn(stage: Stage) -> None:
    item = await waiting(stage)
    other = "elena" if item["person"]["id"] == "marcus" else "marcus"
    await stage.client.post(
        f"/v1/leads/{item['lead']['id']}/assign",
        json={"role": "ae", "person": other, "reason": "on leave"},
    )
    answer = await stage.client.post(f"/v1/handoffs/{item['id']}/accept")
    assert answer.status_code == 409
    assert "it was withdrawn on 20" in answer.json()["detail"]
    [again] = await listed(stage, lead_id=item["lead"]["id"], state="offered")
    assert (again["id"], again["person"]["id"], again["round"]) == (
        answer.json()["handoff_id"], other, 2,
    )  # fmt: skip


async def test_two_answers_at_once_have_one_effect(stage: Stage) -> None:
    item = await waiting(stage)
    path = f"/v1/handoffs/{item['id']}"
    answers = await asyncio.gather(
        *(stage.client.post(f"{path}/accept", json={"actor": f"a{n}"}) for n in range(4)),
        *(stage.client.post(f"{path}/reject", json={"reason": "No", "actor": f"r{n}"}) for n in range(4)),
    )  # fmt: skip
    assert sorted(a.status_code for a in answers) == [200] + [409] * 7
    [taken] = [a.json() for a in answers if a.status_code == 200]
    stored = (await stage.client.get(path)).json()
    assert (stored["state"], stored["answered_by"]) == (taken["state"], taken["answered_by"])


async def test_the_same_request_sent_again_gets_the_first_answer(stage: Stage) -> None:
    item = await waiting(stage)
    headers = {"idempotency-key": f'"{uuid.uuid4()}"'}
    path = f"/v1/handoffs/{item['id']}/accept"
    first = await stage.client.post(path, json={}, headers=headers)
    again = await stage.client.post(path, json={}, headers=headers)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json()
    # As after a crash before the answer was kept: what was done is not refused.
    await stage.connection.execute(
        "UPDATE access.idempotency_keys SET status = NULL, body = NULL, claimed_until = NULL"
    )
    third = await stage.client.post(path, json={}, headers=headers)
    assert third.status_code == 200, third.text
    assert third.json()["answered_at"] == first.json()["answered_at"]
    stored = await stage.connection.fetch(
        "SELECT id FROM stage.events WHERE type = 'handoff.accepted'"
    )
    assert len(stored) == 1


async def test_answers_need_the_scope_and_a_handoff(stage: Stage) -> None:
    item = await waiting(stage)
    path = f"/v1/handoffs/{item['id']}"
    _, reader = await stage.new_key("read")
    headers = {"authorization": f"Bearer {reader}"}
    assert (await stage.client.get(path, headers=headers)).status_code == 200
    refused = await stage.client.post(f"{path}/accept", headers=headers)
    assert refused.status_code == 403
    for id in (str(uuid.uuid4()), "x"):
        assert (await stage.client.get(f"/v1/handoffs/{id}")).status_code == 404
        assert (await stage.client.post(f"/v1/handoffs/{id}/accept")).status_code == 404
    assert (await stage.client.get(path)).json()["state"] == "offered"


async def test_a_crm_answers_by_the_leads_email(stage: Stage) -> None:
    """It needs no handoff's id; but nobody may speak as Baton itself."""
    item = await waiting(stage)
    forged = {
        "specversion": "1.0", "id": "f", "source": "baton", "type": "handoff.accepted",
        "data": {"email": "ada@ada.example"},
    }  # fmt: skip
    for event in (forged, forged | {"source": "/crm", "type": "baton.clock.fired"}):
        refused = await stage.post(msgspec.json.encode(event))
        assert (refused.status_code, refused.json()["code"]) == (422, "reserved")
    assert (await stage.client.get(f"/v1/handoffs/{item['id']}")).json()["state"] == "offered"
    await tell(stage, "ada", "handoff.accepted", actor="Elena in the CRM")
    after = (await stage.client.get(f"/v1/handoffs/{item['id']}")).json()
    assert (after["state"], after["answered_by"]) == ("accepted", "Elena in the CRM")


async def test_the_timeline_tells_of_handoffs_and_clocks(stage: Stage) -> None:
    began = stage.house.now() - timedelta(hours=6)
    lead = await tell(stage, "ada", "meeting.booked", began)
    await ring(stage, stage.house.now())
    [item] = await listed(stage, lead_id=lead)
    assert item["overdue"] is True
    await stage.client.post(f"/v1/handoffs/{item['id']}/reject", json={"reason": "No budget"})
    items = (await stage.client.get(f"/v1/leads/{lead}/timeline")).json()["items"]
    mine = [i for i in items if i["kind"] == "handoff" and i["handoff_id"] == item["id"]]
    assert [i["action"] for i in mine] == ["offered", "overdue", "rejected"]
    assert mine[0]["cause"]["event_type"] == "meeting.booked"
    assert "reason" not in mine[0]
    assert mine[1]["cause"]["event_type"] == "baton.clock.fired"
    assert (mine[2]["reason"], mine[2]["person"]) == ("No budget", item["person"])
    assert mine[2]["cause"]["event_source"] == "baton"
    rings = [i for i in items if i["kind"] == "clock" and i["clock"] == "handoff-ae"]
    assert [i["action"] for i in rings][:2] == ["fired", "escalated"]
    assert rings[0]["title"] == "Answer to the handoff"
    assert (rings[0]["late"], rings[0]["deadline"]) == (True, item["due_at"])
    assert [i["to"] for i in rings] == ["owner", "stand_in", "role_lead"]
    assert {i["counts"] for i in rings} == {True}
    assert [i["occurred_at"] for i in items] == sorted(i["occurred_at"] for i in items)


async def test_a_clock_that_came_too_late_to_matter_says_so(stage: Stage) -> None:
    """An acceptance that is told late makes the deadline kept: what the clock said counts no more."""
    clock = stage.house.now
    assert isinstance(clock, MadeUpTime)
    began = clock() - timedelta(hours=10)
    clock.at = began  # the service's own ticker finds nothing due before the acceptance
    lead = await tell(stage, "ada", "meeting.booked", began)
    [item] = await listed(stage, lead_id=lead)
    await tell(stage, "ada", "handoff.accepted", began + timedelta(hours=1))
    clock.at = None
    # As when the ticker of another process had read the row before that.
    await stage.connection.execute(
        """UPDATE stage.clocks SET state = 'running', due_at = deadline, ended_at = NULL
           WHERE key = 'handoff-ae'"""
    )
    await ring(stage, stage.house.now())
    items = (await stage.client.get(f"/v1/leads/{lead}/timeline")).json()["items"]
    rings = [i for i in items if i["kind"] == "clock" and i["clock"] == "handoff-ae"]
    assert [i["counts"] for i in rings] == [False]
    page = (await stage.client.get(f"/leads/{lead}")).text
    assert "accepted it after 1 h" in page
    assert "Deadline passed" not in page
    assert (await stage.client.get(f"/v1/handoffs/{item['id']}")).json()["overdue"] is False


async def test_the_pages_answer_as_who_is_logged_in(stage: Stage) -> None:
    """The forms of the pages act; another answer, no reason, or no scope is told on the page."""
    item, other = await waiting(stage), await waiting(stage, "ben")
    shown = (await stage.client.get("/handoffs", params={"role": "ae"})).text
    assert f"/handoffs/{item['id']}/accept" in shown
    lead = f"/leads/{item['lead']['id']}"
    done = await stage.client.post(f"/handoffs/{item['id']}/accept", data={"back": lead})
    assert (done.status_code, done.headers["location"]) == (303, lead)
    after = (await stage.client.get(f"/v1/handoffs/{item['id']}")).json()
    assert (after["state"], after["answered_by"]) == ("accepted", "test")
    again = await stage.client.post(f"/handoffs/{item['id']}/accept", data={})
    assert again.status_code == 409
    assert "Not done:" in again.text
    assert "test accepted it on 20" in again.text
    path = f"/handoffs/{other['id']}/reject"
    refused = await stage.client.post(path, data={"words": " "})
    assert refused.status_code == 422
    assert "a rejection needs a reason" in refused.text
    _, reader = await stage.new_key("read")
    headers = {"authorization": f"Bearer {reader}"}
    assert "/accept" not in (await stage.client.get("/handoffs", headers=headers)).text
    assert (await stage.client.post(path, data={"words": "x"}, headers=headers)).status_code == 403
    sent = {"choice": "No budget", "back": "https://evil.example/"}
    away = await stage.client.post(path, data=sent)
    assert (away.status_code, away.headers["location"]) == (303, "/")
    assert (await stage.client.post(f"/handoffs/{uuid.uuid4()}/accept")).status_code == 404
    assert (await stage.client.post(f"/handoffs/{other['id']}/eat")).status_code == 404
    for odd in ("cursor=x", "by=x", "person=%00", "overdue=x"):
        assert (await stage.client.get(f"/handoffs?{odd}")).status_code == 200, odd


async def test_the_menu_and_the_board_show_what_is_overdue(stage: Stage) -> None:
    await waiting(stage)
    assert " overdue</span>" not in (await stage.client.get("/people")).text
    await tell(stage, "ben", "meeting.booked", stage.house.now() - timedelta(hours=9))
    for path in ("/people", "/leads", "/funnel", "/"):
        page = (await stage.client.get(path)).text
        assert 'title="Overdue handoffs">1<' in page, path
    board = (await stage.client.get("/")).text
    assert board.count("badge overdue") == 2, "in the menu and on the card"
    assert board.count("badge waits") == 1


async def numbers(stage: Stage, **query: Any) -> dict[str, Any]:
    """The numbers that `query` asks for."""
    answer = await stage.client.get("/v1/handoffs/numbers", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_numbers_count_what_their_definitions_say(stage: Stage) -> None:
    nothing = await numbers(stage)
    assert nothing["total"]["offered"] == 0
    assert nothing["groups"] == []
    at = stage.house.now() - timedelta(hours=10)
    minute = timedelta(minutes=1)
    # Asked at 0, booked after 6 minutes (a deed), accepted by a word 30 minutes later.
    await tell(stage, "ada", "demo.requested", at)
    await tell(stage, "ada", "meeting.booked", at + 6 * minute)
    await tell(stage, "ada", "handoff.accepted", at + 36 * minute, role="ae")
    # Accepted by a word after the deadline of four hours (Elena and Marcus work at any time).
    await tell(stage, "ben", "meeting.booked", at)
    await ring(stage, stage.house.now())
    await tell(stage, "ben", "handoff.accepted", at + 5 * 60 * minute)
    await tell(stage, "cleo", "meeting.booked", at)
    await tell(stage, "cleo", "handoff.rejected", at + 10 * minute, reason="No budget")
    await ring(stage, stage.house.now())
    await tell(stage, "dan", "meeting.booked")
    found = await numbers(stage)
    groups = {g["value"]: g for g in found["groups"]}
    ae = groups["ae"]
    assert ae["title"] == "Account Executive"
    counts = ("offered", "accepted", "rejected", "withdrawn", "waiting", "overdue")
    assert {c: ae[c] for c in counts} == {
        "offered": 4, "accepted": 2, "rejected": 1, "withdrawn": 0, "waiting": 1, "overdue": 0,
    }  # fmt: skip
    assert ae["deadlines"] == {"met": 2, "missed": 1}
    assert ae["time_to_accept"]["explicit"] == {
        "count": 2, "median_seconds": 165 * 60.0, "p90_seconds": pytest.approx(273 * 60.0),
    }  # fmt: skip
    assert ae["time_to_accept"]["implied"]["count"] == 0
    agent = groups["lead_agent"]
    assert agent["time_to_accept"]["implied"]["median_seconds"] == 6 * 60.0
    assert agent["speed_to_lead"] == {
        "count": 1, "median_seconds": 6 * 60.0, "p90_seconds": 6 * 60.0
    }  # fmt: skip
    assert (agent["waiting"], agent["overdue"]) == (1, 1), "what came back, and waits since"
    assert ae["reasons"] == [{"reason": "No budget", "count": 1}]
    qualify = next(c for c in agent["clocks"] if c["key"] == "qualify")
    assert (qualify["met"], qualify["title"]) == (1, "Qualified or given back")
    total = found["total"]
    assert {c: total[c] for c in counts} == {c: ae[c] + agent[c] for c in counts}
    assert set(found["definition"]) >= {"offered", "deadlines", "speed_to_lead", "load"}
    by_stage = {g["value"]: g["offered"] for g in (await numbers(stage, by="stage"))["groups"]}
    assert by_stage["sql"] == 4
    people = {g["value"]: g for g in (await numbers(stage, by="person"))["groups"]}
    assert people["elena"]["offered"] + people["marcus"]["offered"] == 4
    later = (at + 7 * 60 * minute).isoformat()
    assert (await numbers(stage, **{"from": later}))["total"]["offered"] == 1
    assert (await numbers(stage, to=later))["total"]["offered"] == total["offered"] - 1
    load = {p["id"]: p for p in found["load"]}
    assert sum(load[p]["open_journeys"] for p in ("elena", "marcus")) == 3
    assert sum(p["waiting"] for p in load.values()) == total["waiting"]
    assert sum(p["overdue"] for p in load.values()) == total["overdue"]
    assert load["sofia"]["waiting"] == 0
    for bad in ("by=x", "from=x"):
        assert (await stage.client.get(f"/v1/handoffs/numbers?{bad}")).status_code == 422
    assert (await stage.client.get("/v1/handoffs/numbers?playbook=x")).status_code == 404
