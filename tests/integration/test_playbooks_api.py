"""Playbooks over HTTP: read, checked, compared, published with If-Match, scheduled, rolled back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.contracts.events import MOVED_BY_HAND
from tests.integration.stage import Stage, running_stage

ROOT = Path(__file__).parents[2]
SALES = (ROOT / "playbooks/sales.yaml").read_text()
EASIER = SALES.replace('when: "score.total >= 60"', 'when: "score.total >= 20"')
HARDER = SALES.replace('when: "score.total >= 60"', 'when: "score.total >= 90"')
YAML = {"content-type": "application/yaml"}
SALES_AT = "/v1/playbooks/sales"


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with running_stage(database_url) as it:
        yield it


async def put(stage: Stage, text: str, if_match: str | None, **query: Any) -> httpx.Response:
    headers = YAML if if_match is None else {**YAML, "if-match": if_match}
    return await stage.client.put(SALES_AT, content=text, headers=headers, params=query)


async def test_the_active_version_as_json_and_as_its_text(stage: Stage) -> None:
    answer = await stage.client.get(SALES_AT)
    body = answer.json()
    assert (body["version"], body["active"], body["author"]) == (1, True, None)
    assert body["source"] == SALES
    assert [s["key"] for s in body["stages"]][:2] == ["lead", "mql"]
    rule = next(r for r in body["rules"] if r["key"] == "score-reached")
    assert (rule["from"], rule["to"], rule["when"]) == (["lead"], "mql", "score.total >= 60")
    assert answer.headers["etag"] == '"1"'
    text = await stage.client.get(SALES_AT, headers={"accept": "application/yaml, */*;q=0.1"})
    assert text.text == SALES
    assert text.headers["content-type"] == "application/yaml"
    # Another form has another strong ETag.
    assert text.headers["etag"] == '"1.yaml"'
    assert text.headers["vary"] == "Accept"
    known = await stage.client.get(SALES_AT, headers={"if-none-match": '"1"'})
    assert (known.status_code, known.content) == (304, b"")


async def test_a_version_that_is_active_no_more_is_another_document(stage: Stage) -> None:
    where = f"{SALES_AT}/versions/1"

    async def get(tag: str, **headers: str) -> httpx.Response:
        return await stage.client.get(where, headers={"if-none-match": tag, **headers})

    assert (await get('W/"1"')).status_code == 304
    assert (await get("*")).status_code == 304
    assert (await get('"1.yaml"', accept="application/yaml")).status_code == 304
    await put(stage, EASIER, '"1"')
    now = await get('"1", "1.yaml"')
    assert (now.status_code, now.json()["active"], now.headers["etag"]) == (200, False, '"1.old"')
    assert (await get('"x", "1.old"')).status_code == 304
    assert (await get('"1.yaml"', accept="application/yaml")).status_code == 304
    assert (await put(stage, HARDER, '"2.old"')).status_code == 412


@pytest.mark.parametrize("weight", [b"\xb2", b"1\xb2", b".", b"-1", b"nan", b"1e3", b""])
async def test_a_weight_that_is_no_number_counts_nothing(stage: Stage, weight: bytes) -> None:
    accept = (b"accept", b"application/yaml;q=" + weight)
    answer = await stage.client.get(SALES_AT, headers=[accept])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    exact = (b"accept", b"application/json;q=0.9, application/yaml;q=1.000")
    assert (await stage.client.get(SALES_AT, headers=[exact])).text == SALES


async def test_publishing_needs_the_version_that_one_has_seen(stage: Stage) -> None:
    assert (await put(stage, EASIER, None)).status_code == 428
    for stale in ('"2"', 'W/"1"', '"x"', "1"):
        answer = await put(stage, EASIER, stale)
        assert answer.status_code == 412
        assert answer.json()["code"] == "playbook-changed"
        assert answer.json()["active"] == 1
    answer = await put(stage, EASIER, '"1"', message="More leads for the new team")
    assert answer.status_code == 200, answer.text
    assert answer.headers["etag"] == '"2.yaml"'
    body = answer.json()
    assert (body["version"], body["message"]) == (2, "More leads for the new team")
    assert [c["kind"] for c in body["diff"]["changes"]] == ["rule-when"]
    assert (await put(stage, HARDER, '"1", "2.yaml"')).json()["version"] == 3
    assert (await put(stage, HARDER, "*")).json()["code"] == "playbook-unchanged"
    assert (await put(stage, EASIER, "*")).status_code == 200
    names = [
        (v["version"], v["active"])
        for v in (await stage.client.get(f"{SALES_AT}/versions")).json()["items"]
    ]
    assert names == [(4, True), (3, False), (2, False), (1, False)]


async def test_a_version_published_holds_at_once_and_moves_name_it(stage: Stage) -> None:
    await put(stage, EASIER, '"1"')
    event = {"specversion": "1.0", "id": "e1", "source": "/s", "type": "lead.created",
             "data": {"email": "a@b.example", "employees": 500}}  # fmt: skip
    [result] = await stage.send(event)
    assert [t["rule"] for t in result["transitions"]] == ["score-reached"]
    feed = (await stage.client.get(f"/v1/leads/{result['lead_id']}/timeline")).json()["items"]
    assert next(i for i in feed if i["kind"] == "transition")["playbook_version"] == 2


async def test_a_text_with_mistakes_is_refused_with_all_their_places(stage: Stage) -> None:
    bad = SALES.replace("lead.employees >= 200", "lead.employes >= 200").replace(
        "    to: proposal\n", "    to: proposals\n"
    )
    for answer in (
        await put(stage, bad, '"1"'),
        await stage.client.post("/v1/playbooks/diff", content=bad, headers=YAML),
    ):
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        first, second = answer.json()["problems"]
        assert (first["level"], first["line"]) == (
            "error",
            SALES[: SALES.index("lead.employees >= 200")].count("\n") + 1,
        )
        assert first["column"] > 1
        assert first["remedy"] == "Did you mean 'lead.employees'?"
        assert "proposals" in second["message"]
    checked = await stage.client.post("/v1/playbooks/validate", content=bad, headers=YAML)
    assert checked.status_code == 200
    assert [p["line"] for p in checked.json()["problems"]] == [first["line"], second["line"]]
    assert checked.json()["valid"] is False
    assert (await stage.client.get(SALES_AT)).json()["version"] == 1


async def test_what_else_is_no_playbook_of_this_address(stage: Stage) -> None:
    wrong_type = await stage.client.put(
        SALES_AT, content=b"{}", headers={"content-type": "application/json", "if-match": "*"}
    )
    assert wrong_type.status_code == 415
    for text, status in (
        (SALES.replace("name: sales", "name: other", 1), 422),
        ("\x00", 422),
        ("- a", 422),
    ):
        assert (await put(stage, text, "*")).status_code == status
    binary = await stage.client.put(
        SALES_AT, content=b"\xff\xfe", headers={**YAML, "if-match": "*"}
    )
    assert binary.status_code == 422
    unknown = await stage.client.put(
        "/v1/playbooks/nosuch", content=SALES, headers={**YAML, "if-match": "*"}
    )
    assert unknown.status_code == 404
    assert (await stage.client.get(f"{SALES_AT}/versions/7")).status_code == 404
    taken = SALES.replace("name: sales", "name: diff", 1)
    assert (
        await stage.client.post("/v1/playbooks", content=taken, headers=YAML)
    ).status_code == 422


async def test_only_admins_publish_and_readers_read(stage: Stage) -> None:
    _, reader = await stage.new_key("read")
    mine = {"authorization": f"Bearer {reader}"}
    for path in ("", "/sales", "/sales/versions", "/sales/versions/1", "/scheduled"):
        assert (await stage.client.get(f"/v1/playbooks{path}", headers=mine)).status_code == 200
    for path in ("validate", "diff"):
        answer = await stage.client.post(
            f"/v1/playbooks/{path}", content=EASIER, headers=mine | YAML
        )
        assert answer.status_code == 200
    put_ = await stage.client.put(SALES_AT, content=EASIER, headers=mine | YAML | {"if-match": "*"})
    post = await stage.client.post("/v1/playbooks", content=EASIER, headers=mine | YAML)
    back = await stage.client.post(
        f"{SALES_AT}/rollback", json={"version": 1}, headers=mine | {"if-match": "*"}
    )
    assert [a.status_code for a in (put_, post, back)] == [403, 403, 403]


async def test_a_new_playbook_and_its_key_sent_again(stage: Stage) -> None:
    support = SALES.replace("name: sales", "name: support", 1)
    headers = {**YAML, "idempotency-key": '"once"'}
    first = await stage.client.post("/v1/playbooks", content=support, headers=headers)
    assert (first.status_code, first.json()["version"]) == (201, 1)
    where = {"etag": '"1.yaml"', "location": "/v1/playbooks/support/versions/1"}
    assert where.items() <= first.headers.items()
    again = await stage.client.post("/v1/playbooks", content=support, headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert where.items() <= again.headers.items()
    other = await stage.client.post("/v1/playbooks", content=support, headers=YAML)
    assert other.status_code == 409
    assert "PUT /v1/playbooks/support" in other.json()["remedy"]
    # The claim of the first ran out before its answer was stored: the repeat finds it published.
    await stage.connection.execute(
        "UPDATE access.idempotency_keys SET status = NULL, body = NULL, claimed_until = '-infinity'"
    )
    late = await stage.client.post("/v1/playbooks", content=support, headers=headers)
    assert (late.status_code, late.json()["version"]) == (201, 1)


async def test_rolled_back_to_an_older_version(stage: Stage) -> None:
    await put(stage, EASIER, '"1"')
    where = f"{SALES_AT}/rollback"
    wish = {"version": 1, "message": "Too many"}
    assert (await stage.client.post(where, json=wish)).status_code == 428
    assert (
        await stage.client.post(where, json=wish, headers={"if-match": '"1"'})
    ).status_code == 412
    headers = {"if-match": '"2"', "idempotency-key": '"back"'}
    answer = await stage.client.post(where, json=wish, headers=headers)
    assert answer.headers["etag"] == '"3.yaml"'
    assert answer.headers["location"] == f"{SALES_AT}/versions/3"
    done = answer.json()
    assert (done["version"], done["restores"], done["message"]) == (3, 1, "Too many")
    assert (await stage.client.get(SALES_AT)).json()["source"] == SALES
    await stage.connection.execute(
        "UPDATE access.idempotency_keys SET status = NULL, body = NULL, claimed_until = '-infinity'"
    )
    assert (await stage.client.post(where, json=wish, headers=headers)).json()["version"] == 3
    missing = await stage.client.post(where, json={"version": 9}, headers={"if-match": "*"})
    assert missing.status_code == 404


async def test_a_stage_that_goes_says_where_its_journeys_go_on(stage: Stage) -> None:
    renamed = (
        SALES.replace("proposal]", "offer]")
        .replace("proposal,", "offer,")
        .replace("  proposal:\n", "  offer:\n")
        .replace("to: proposal\n", "to: offer\n")
    )
    answer = await put(stage, renamed, '"1"')
    assert answer.status_code == 422
    assert "nothing says where its journeys go" in answer.json()["problems"][0]["message"]
    checked = await stage.client.post("/v1/playbooks/validate", content=renamed, headers=YAML)
    assert checked.json()["valid"] is False
    good = renamed + "\nmigrate: {proposal: offer}\n"
    done = (await put(stage, good, '"1"')).json()
    assert [c["kind"] for c in done["diff"]["changes"]] == ["stage-renamed"]
    # Back again needs no word: the rename is turned around.
    back = await stage.client.post(
        f"{SALES_AT}/rollback", json={"version": 1}, headers={"if-match": "*"}
    )
    assert back.status_code == 200, back.text
    assert [c["kind"] for c in back.json()["diff"]["changes"]] == ["stage-renamed"]


async def test_moves_by_hand_that_would_not_move_leave_no_event(stage: Stage) -> None:
    """Into a playbook that the lead has not entered; past a gate, or to where it is, by its new name."""
    event = {"specversion": "1.0", "id": "e1", "source": "/s", "type": "meeting.booked",
             "data": {"email": "a@b.example"}}  # fmt: skip
    [result] = await stage.send(event)
    lead = f"/v1/leads/{result['lead_id']}"
    expansion = (ROOT / "playbooks/expansion.yaml").read_text()
    await stage.client.post("/v1/playbooks", content=expansion, headers=YAML)
    wish = {"to": "adoption", "reason": "they went live", "playbook": "expansion"}
    refused = await stage.client.post(f"{lead}/transitions", json=wish)
    assert refused.status_code == 409, refused.text
    assert "'closed_won'" in refused.json()["detail"]
    assert refused.json()["remedy"] == "Move its journey in 'sales' there first."

    # Nobody has told the lead of the new name yet (the sweeper may be so quick; the answers are the same).
    renamed = re.sub(r"\bsql\b", "discovery", SALES).replace(
        "Negotiation\n    band: bofu\n",
        "Negotiation\n    band: bofu\n    gate: {require: [lead.employees]}\n",
    )
    published = await put(stage, renamed + "\nmigrate: {sql: discovery}\n", "*")
    assert published.status_code == 200, published.text
    for to, code in (("discovery", "conflict"), ("proposal", "gate-unmet")):
        wish = {"to": to, "reason": "they said so", "playbook": "sales"}
        refused = await stage.client.post(f"{lead}/transitions", json=wish)
        assert (refused.status_code, refused.json()["code"]) == (409, code), refused.text
    assert refused.json()["missing"] == ["lead.employees"]
    assert not await stage.connection.fetchval(
        "SELECT count(*) FROM stage.events WHERE type = $1", MOVED_BY_HAND
    )


async def test_scheduled_then_cancelled_or_active(stage: Stage) -> None:
    later = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    planned = await put(stage, EASIER, '"1"', activate_at=later, message="On Monday")
    assert planned.status_code == 202
    waiting = planned.json()
    assert (waiting["state"], waiting["base_version"], waiting["version"]) == ("waiting", 1, None)
    listed = (await stage.client.get("/v1/playbooks/scheduled")).json()["items"]
    assert [s["id"] for s in listed] == [waiting["id"]]
    where = f"/v1/playbooks/scheduled/{waiting['id']}"
    assert (await stage.client.delete(where)).json()["state"] == "cancelled"
    assert (await stage.client.delete(where)).status_code == 409
    assert (await stage.client.delete("/v1/playbooks/scheduled/nosuch")).status_code == 404
    soon = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    await put(stage, HARDER, '"1"', activate_at=soon)

    async def active() -> bool:
        return (await stage.client.get(SALES_AT)).json()["version"] == 2

    async with asyncio.timeout(30):
        while not await active():
            await asyncio.sleep(0.05)


async def test_the_same_is_scheduled_once_however_often_it_is_sent(stage: Stage) -> None:
    later = datetime.now(UTC) + timedelta(days=3)
    sent = [put(stage, EASIER, '"1"', activate_at=later.isoformat()) for _ in range(3)]
    first, *others = await asyncio.gather(*sent)
    assert [a.status_code for a in (first, *others)] == [202, 202, 202]
    assert [a.json() for a in others] == [first.json()] * 2
    next_day = (later + timedelta(days=1)).isoformat()
    for other in (
        await put(stage, EASIER, '"1"', activate_at=next_day),
        await put(stage, HARDER, '"1"', activate_at=later.isoformat()),
    ):
        assert other.json()["id"] != first.json()["id"]
    assert len((await stage.client.get("/v1/playbooks/scheduled")).json()["items"]) == 3
    # What was called off waits no more: the same is another wish then.
    await stage.client.delete(f"/v1/playbooks/scheduled/{first.json()['id']}")
    anew = await put(stage, EASIER, '"1"', activate_at=later.isoformat())
    assert (anew.status_code, anew.json()["state"]) == (202, "waiting")
    said = await stage.client.get("/v1/audit", params={"action": "scheduled"})
    assert len(said.json()["items"]) == 4


async def test_a_roll_back_at_a_time_sent_again_is_the_same_one(stage: Stage) -> None:
    await put(stage, EASIER, '"1"')
    later = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    wish = {"version": 1, "activate_at": later}
    headers = {"if-match": '"2"', "idempotency-key": '"later"'}

    async def back(**more: Any) -> httpx.Response:
        answer = await stage.client.post(f"{SALES_AT}/rollback", json=wish | more, headers=headers)
        assert answer.status_code == 202, answer.text
        return answer

    first = await back()
    id = await stage.connection.fetchval("SELECT effect_id::text FROM access.idempotency_keys")
    assert first.json()["id"] == id
    assert "etag" not in first.headers
    # The claim ran out before the answer was stored, and somebody called it off since.
    await stage.client.delete(f"/v1/playbooks/scheduled/{id}")
    await stage.connection.execute(
        "UPDATE access.idempotency_keys SET status = NULL, body = NULL, claimed_until = '-infinity'"
    )
    again = await back()
    assert (again.json()["id"], again.json()["state"]) == (id, "cancelled")
    del headers["idempotency-key"]
    waits = await back()
    assert (await back()).json() == waits.json()
    # Another wish of where journeys go on is another roll back.
    assert (await back(migrate={"gone": "mql"})).json()["id"] != waits.json()["id"]


async def test_what_a_text_would_change_and_for_how_many(stage: Stage) -> None:
    await stage.send(*(
        {"specversion": "1.0", "id": f"e{n}", "source": "/s", "type": "demo.requested",
         "data": {"email": f"l{n}@b.example", **({"phone": "1"} if n < 2 else {})}}
        for n in range(5)
    ))  # fmt: skip
    gated = SALES.replace(
        "    responsible: [lead_agent]\n    alerts",
        "    responsible: [lead_agent]\n    gate: {require: [lead.phone]}\n    alerts",
        1,
    )
    answer = await stage.client.post(
        "/v1/playbooks/diff", content=gated, headers=YAML, params={"impact": True}
    )
    body = answer.json()
    [change] = body["changes"]
    assert change["sentence"] == "Lead Qualification (mql) now needs the lead's phone (lead.phone)."
    assert change["impact"] == "3 open journeys no longer qualify, of 5 in Lead Qualification."
    assert (body["impact"]["leads"], body["impact"]["stages"][0]["no_longer"]) == (5, 3)
    assert body["simulate"] == "baton playbook simulate sales.yaml"
    plain = (await stage.client.post("/v1/playbooks/diff", content=gated, headers=YAML)).json()
    assert (plain["impact"], plain["moves"]) == (None, True)
    await put(stage, gated, '"1"')
    back = (await stage.client.get(f"{SALES_AT}/versions/2/diff", params={"to": 1})).json()
    assert [c["kind"] for c in back["changes"]] == ["gate-removed"]
    onwards = (await stage.client.get(f"{SALES_AT}/versions/1/diff")).json()
    assert [c["kind"] for c in onwards["changes"]] == ["gate-added"]


async def test_all_leads_are_judged_for_one_at_a_time(stage: Stage) -> None:
    async def diff(impact: bool) -> httpx.Response:
        return await stage.client.post(
            "/v1/playbooks/diff", content=EASIER, headers=YAML, params={"impact": impact}
        )

    form = {"playbook": "sales", "text": EASIER}
    async with stage.house.judging.turn(), asyncio.timeout(20):
        refused = await diff(True)
        assert (refused.status_code, refused.json()["code"]) == (429, "busy")
        assert int(refused.headers["retry-after"]) > 0
        assert (await diff(False)).status_code == 200
        page = await stage.client.post("/playbook/try", data=form)
        assert page.status_code == 200
        assert "score-reached fires when score.total &gt;= 20 now" in page.text
        assert "Not counted for how many journeys" in page.text
    assert (await diff(True)).status_code == 200
    assert "Not counted" not in (await stage.client.post("/playbook/try", data=form)).text


async def test_a_few_wait_to_have_a_text_checked_and_others_are_told(stage: Stage) -> None:
    async def check() -> httpx.Response:
        return await stage.client.post("/v1/playbooks/validate", content=SALES, headers=YAML)

    async with asyncio.timeout(30):
        async with stage.house.checking.turn():
            waiting = {asyncio.create_task(check()) for _ in range(7)}
            refused: list[httpx.Response] = []
            while len(refused) < 3:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                refused += [task.result() for task in done]
        answers = await asyncio.gather(*waiting)
    assert [(a.status_code, "retry-after" in a.headers) for a in refused] == [(429, True)] * 3
    assert [a.status_code for a in answers] == [200] * 4


async def test_a_published_version_survives_a_start_with_the_older_file(database_url: str) -> None:
    """The file that the service starts with was published once: it does not come back by itself."""
    async with running_stage(database_url) as stage:
        assert (await put(stage, EASIER, '"1"')).status_code == 200
    async with running_stage(database_url) as stage:
        body = (await stage.client.get(SALES_AT)).json()
        assert (body["version"], body["source"]) == (2, EASIER)
        assert body["author"] is not None
