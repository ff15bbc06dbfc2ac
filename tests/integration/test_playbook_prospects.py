"""What waits to be published: told who breaks it, refused on record, and not asked for in the past."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.stage_service.activation import Activation
from tests.integration.stage import NOON, MadeUpTime, Stage, running_stage, serving_stage
from tests.integration.test_leads_command import baton
from tests.integration.test_playbook_commands import written
from tests.integration.test_playbook_versions import NOW, Shelved, sales, shelved

ROOT = Path(__file__).parents[2]
SALES = (ROOT / "playbooks/sales.yaml").read_text()
RENAMED = re.sub(r"\bsql\b", "discovery", SALES)
MOVED = RENAMED + "\nmigrate: {sql: discovery}\n"
YAML = {"content-type": "application/yaml"}
DAY = timedelta(days=1)


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Shelved]:
    async with shelved(database_url) as one:
        await one.publish(sales(), 0)
        yield one


def changed(word: str) -> str:
    return f"{SALES}\n# {word}\n"


# Refused at its time


async def test_a_refusal_is_in_the_audit_and_told_until_something_newer_is_published(
    it: Shelved,
) -> None:
    """Whatever the clocks say: the clock of the process that refuses is a day behind that of the database."""
    id = await it.schedule(sales("two"), NOW, None)
    await it.publish(sales(text=MOVED), 1)
    assert await Activation(it.pool, it.shelf, lambda: NOW).run_due() == 1
    [entry] = await it.pool.fetch(
        "SELECT actor, via, on_behalf_of, kind, subject, after FROM audit.entries WHERE action = 'refused'"
    )
    assert tuple(entry)[:5] == ("schedule", "system", "ada", "playbook", "sales")
    for said in ("stage 'discovery' of version 2 is gone", sales("two").digest, "2026-03-02"):
        assert said in entry["after"]
    assert [(s.id, s.open) for s in await it.shelf.still_open(it.pool, "sales")] == [(id, True)]
    assert await it.shelf.still_open(it.pool, "other") == []
    waits = await it.schedule(sales("three", MOVED), NOW + DAY, None)
    assert [s.id for s in await it.shelf.still_open(it.pool)] == [waits, id], "waiting first"
    await it.publish(sales("four", MOVED), 2)
    assert [s.id for s in await it.shelf.still_open(it.pool)] == [waits]
    assert [(s.id, s.open) for s in await it.shelf.scheduled(it.pool)] == [
        (waits, True), (id, False),
    ]  # fmt: skip


async def test_what_ended_before_it_was_noted_on_which_version_is_told_no_more(it: Shelved) -> None:
    id = await it.schedule(sales("two"), NOW, 1)
    await it.publish(sales("meanwhile"), 1)
    await Activation(it.pool, it.shelf, lambda: NOW).run_due()
    await it.pool.execute("UPDATE stage.scheduled_publications SET active_version = NULL")
    assert await it.shelf.still_open(it.pool) == []
    assert [(s.id, s.open) for s in await it.shelf.scheduled(it.pool)] == [(id, False)]


async def test_each_that_waits_is_judged_on_what_the_ones_before_it_make_active(
    it: Shelved,
) -> None:
    """Two of the same base: the first breaks the second; and what is said is what then happens."""
    first = await it.schedule(sales("a"), NOW, 1)
    second = await it.schedule(sales("b"), NOW + DAY, 1)
    third = await it.schedule(sales(text=MOVED), NOW + 2 * DAY, None)
    fourth = await it.schedule(sales("c"), NOW + 3 * DAY, None)
    told = {p.scheduled.id: (p.version, p.reason) for p in await it.shelf.prospects(it.pool)}
    assert list(told) == [first, second, third, fourth]
    assert told[first] == (2, None)
    assert told[second] == (None, "version 2 of the playbook 'sales' is active, not 1")
    assert told[third] == (3, None)
    assert "stage 'discovery' of version 3 is gone" in (told[fourth][1] or "")
    assert await Activation(it.pool, it.shelf, lambda: NOW + 4 * DAY).run_due() == 4
    became = {s.id: (s.version, s.reason) for s in await it.shelf.scheduled(it.pool)}
    assert became == told


# Over HTTP


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with running_stage(database_url, MadeUpTime()) as one:
        yield one


async def put(stage: Stage, text: str, if_match: str = "*", **query: Any) -> httpx.Response:
    headers = {**YAML, "if-match": if_match}
    return await stage.client.put(
        "/v1/playbooks/sales", content=text, headers=headers, params=query
    )


async def later(stage: Stage, text: str, days: int, if_match: str = "*") -> dict[str, Any]:
    answer = await put(stage, text, if_match, activate_at=(NOON + days * DAY).isoformat())
    assert answer.status_code == 202, answer.text
    return answer.json()


async def test_who_publishes_is_told_what_it_does_to_what_waits(stage: Stage) -> None:
    pinned = await later(stage, changed("pinned"), 1, '"1"')
    assert pinned["warnings"] == []
    loose = await later(stage, changed("loose"), 2)
    assert loose["warnings"] == [], "what comes in its turn is nothing to warn of"
    asked = await stage.client.post("/v1/playbooks/diff", content=changed("now"), headers=YAML)
    done = await put(stage, changed("now"), '"1"')
    assert done.status_code == 200, done.text
    broken, overtaken = done.json()["warnings"]
    assert (broken["scheduled"], broken["refused"]) == (pinned["id"], True)
    assert broken["reason"] == "version 2 of the playbook 'sales' is active, not 1"
    for said in (pinned["id"], "2026-03-05 12:00 UTC", "will be refused", broken["reason"]):
        assert said in broken["message"]
    assert (overtaken["scheduled"], overtaken["refused"], overtaken["reason"]) == (
        loose["id"], False, None,
    )  # fmt: skip
    assert "will take its place then, as version 3" in overtaken["message"]
    assert asked.json()["warnings"] == done.json()["warnings"], "and before it is published"
    back = await stage.client.post(
        "/v1/playbooks/sales/rollback", json={"version": 1}, headers={"if-match": '"2"'}
    )
    assert [(w["scheduled"], w["refused"]) for w in back.json()["warnings"]] == [
        (pinned["id"], True), (loose["id"], False),
    ]  # fmt: skip
    await stage.client.delete(f"/v1/playbooks/scheduled/{pinned['id']}")
    await stage.client.delete(f"/v1/playbooks/scheduled/{loose['id']}")
    assert (await put(stage, changed("alone"))).json()["warnings"] == []


async def test_who_schedules_is_told_who_breaks_whom(stage: Stage) -> None:
    second = await later(stage, changed("second"), 2, '"1"')
    first = await later(stage, changed("first"), 1, '"1"')
    assert [w["scheduled"] for w in first["warnings"]] == [second["id"]]
    third = await later(stage, changed("third"), 3, '"1"')
    assert [w["scheduled"] for w in third["warnings"]] == [second["id"], third["id"]]


async def test_what_was_refused_stands_beside_the_versions(stage: Stage) -> None:
    planned = await later(stage, changed("two"), 1)
    assert (await put(stage, MOVED)).status_code == 200
    now = NOON + DAY
    assert await Activation(stage.house.pool, stage.house.lane.shelf, lambda: now).run_due() == 1
    listed = (await stage.client.get("/v1/playbooks/sales/versions")).json()
    [refused] = listed["scheduled"]
    assert (refused["id"], refused["state"], refused["open"]) == (planned["id"], "refused", True)
    assert "stage 'discovery' of version 2 is gone" in refused["reason"]
    page = (await stage.client.get("/playbook")).text
    assert "To be published" not in page
    assert re.search(r"<strong>Refused:</strong> sales was to be published at .*discovery", page)
    assert (await put(stage, f"{MOVED}\n# x\n")).status_code == 200
    assert (await stage.client.get("/v1/playbooks/sales/versions")).json()["scheduled"] == []
    assert "<strong>Refused:</strong>" not in (await stage.client.get("/playbook")).text


async def test_a_time_that_is_past_is_refused_but_for_a_minute(stage: Stage) -> None:
    past = NOON - timedelta(seconds=70)
    wishes = [
        await put(stage, changed("past"), activate_at=past.isoformat()),
        await stage.client.post(
            "/v1/playbooks", content=SALES.replace("name: sales", "name: other", 1), headers=YAML,
            params={"activate_at": past.isoformat()},
        ),
    ]  # fmt: skip
    for answer in wishes:
        assert answer.status_code == 422, answer.text
        problem = answer.json()
        assert (problem["field"], problem["value"]) == ("activate_at", past.isoformat())
        assert "is past: it is 2026-03-04T12:00:00Z here" in problem["detail"]
        assert problem["remedy"].startswith("Leave it out to publish now")
    assert (await stage.client.get("/v1/playbooks/scheduled")).json()["items"] == []
    just = NOON - timedelta(seconds=50)
    done = await put(stage, changed("just"), activate_at=just.isoformat())
    assert (done.status_code, done.json()["version"]) == (200, 2)
    form = {"playbook": "sales", "version": "2", "text": changed("page"), "at": "2026-03-04T11:58"}
    page = await stage.client.post("/playbook/publish", data=form)
    assert page.status_code == 422
    assert "2026-03-04T11:58:00+00:00 is past" in page.text
    assert "Publish on top of version 2" in page.text, "and the form stands there to be corrected"


async def test_what_was_scheduled_and_is_sent_again_when_its_time_is_past_is_what_it_was(
    database_url: str,
) -> None:
    time = MadeUpTime()
    async with running_stage(database_url, time) as stage:
        await put(stage, changed("two"))
        wish = {"version": 1, "activate_at": (NOON + DAY / 24).isoformat()}
        headers = {"if-match": '"2"', "idempotency-key": '"later"'}

        async def back() -> httpx.Response:
            return await stage.client.post(
                "/v1/playbooks/sales/rollback", json=wish, headers=headers
            )

        first = await back()
        await stage.client.delete(f"/v1/playbooks/scheduled/{first.json()['id']}")
        # The claim ran out before the answer was stored.
        await stage.connection.execute(
            "UPDATE access.idempotency_keys SET status = NULL, body = NULL, claimed_until = '-infinity'"
        )
        time.at = NOON + DAY / 12
        again = await back()
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"]), again.text


# On the page


async def test_the_page_shows_what_going_back_means_before_it_does(stage: Stage) -> None:
    event = {"specversion": "1.0", "id": "e1", "source": "/s", "type": "webinar.attended",
             "data": {"email": "a@b.example", "employees": 60}}  # fmt: skip
    await stage.send(event)
    easier = SALES.replace('when: "score.total >= 60"', 'when: "score.total >= 20"')
    await put(stage, easier)
    await later(stage, changed("tonight"), 1, '"2"')
    page = await stage.client.get("/playbook", params={"playbook": "sales", "back": "1"})
    assert page.status_code == 200
    shown = page.text[page.text.index('id="way-back"') : page.text.index('id="try"')]
    for said in (
        "score-reached fires when score.total &gt;= 60 now", "score.total",
        "will be refused then: version 3 of the playbook", "Publish version 1 again",
    ):  # fmt: skip
        assert said in shown
    assert (await stage.client.get("/v1/playbooks/sales")).json()["version"] == 2
    form = {"playbook": "sales", "version": "2", "to": "1", "message": "Too many"}
    done = await stage.client.post("/playbook/rollback", data=form)
    assert done.headers["location"] == "/playbook?playbook=sales&live=3"
    after = (await stage.client.get(done.headers["location"])).text
    assert re.search(r'role="status">Version 3 of sales is live since 20\d\d-', after)
    assert "will be refused</span> version 3 of the playbook" in after
    _, reader = await stage.new_key("read")
    theirs = await stage.client.get(
        "/playbook?back=2", headers={"authorization": f"Bearer {reader}"}
    )
    assert "again</button>" not in theirs.text
    assert (await stage.client.get("/playbook?back=9")).status_code == 404
    assert (await stage.client.get("/playbook?back=x")).status_code == 404


async def test_going_back_to_where_stages_are_missing_is_not_offered(stage: Stage) -> None:
    block = SALES[SALES.index("  nurture:\n") :]
    block = block[: block.index("\n  disqualified:")] if "\n  disqualified:" in block else block
    extra = SALES.replace(block, f"{block}\n{block.replace('nurture', 'parked', 1)}", 1)
    rule = "rules:\n  - {key: park, from: [mql], to: parked, on: lead.parked, because: x}\n"
    extra = extra.replace("rules:\n", rule, 1)
    answer = await put(stage, extra)
    assert answer.status_code == 200, answer.text
    page = (await stage.client.get("/playbook?back=1")).text
    assert "stage &#39;parked&#39; of version 2 is gone" in page
    assert "--migrate GONE=STAGE" in page
    assert "again</button>" not in page


async def test_the_page_tells_doubts_before_it_publishes_and_that_it_is_live_after(
    stage: Stage,
) -> None:
    doubtful = SALES.replace('when: "score.total >= 60"', 'when: "score.total >= 6000"')
    tried = await stage.client.post("/playbook/try", data={"playbook": "sales", "text": doubtful})
    assert tried.status_code == 200
    said = tried.text.index("can never fire")
    assert said < tried.text.index("Publish on top of version 1")
    line = doubtful[: doubtful.index("score.total >= 6000")].count("\n") + 1
    assert re.search(rf"<strong>Line {line}, column \d+:</strong>[^<]*can never fire", tried.text)
    assert "Correct its condition, or remove the rule." in tried.text
    assert "can never fire" not in (await stage.client.get("/playbook")).text
    form = {"playbook": "sales", "version": "1", "text": doubtful}
    done = await stage.client.post("/playbook/publish", data=form)
    assert (await stage.client.get(done.headers["location"])).text.count("is live since") == 1
    later = {"playbook": "sales", "version": "2", "text": SALES, "at": "2026-03-06T08:00"}
    done = await stage.client.post("/playbook/publish", data=later)
    page = (await stage.client.get(done.headers["location"])).text
    assert "sales is to be published at 2026-03-06 08:00:00 UTC." in page
    assert "is live since" not in (await stage.client.get("/playbook?live=9&planned=x")).text


# On the command line


async def test_the_command_warns_and_lists_and_shows_the_way_back(
    database_url: str, tmp_path: Path
) -> None:
    easier = written(tmp_path, "easier.yaml", ("score.total >= 60", "score.total >= 20"))
    harder = written(tmp_path, "harder.yaml", ("score.total >= 60", "score.total >= 90"))
    async with serving_stage(database_url) as stage:
        code, said = await baton(
            stage, "playbook", "publish", easier, "--at", "2099-01-01T08:00Z", "--yes"
        )
        assert code == 0, said
        id = said.rsplit(": ", 1)[1].strip()
        code, said = await baton(stage, "playbook", "publish", harder, "--yes")
        assert code == 0, said
        assert re.search(
            rf"warning: what \w+ has scheduled for 2099-01-01 08:00 UTC \({id}\) will be refused then: "
            r"version 2 of the playbook 'sales' is active, not 1\. Call it off",
            said,
        ), said
        assert said.strip().endswith("sales version 2 is active")
        async with stage.house.judging.turn():  # nobody who turns back waits for somebody's figures
            code, said = await baton(stage, "playbook", "rollback", "sales", "1")
        assert code == 0, said
        assert "score-reached fires when score.total >= 60 now" in said
        assert "Not counted for how many journeys" in said
        assert "warning: " in said
        code, said = await baton(
            stage, "playbook", "publish", easier, "--at", "2020-01-01T08:00Z", "--yes"
        )
        assert (code, "2020-01-01T08:00:00+00:00 is past" in said) == (1, True), said
        await stage.connection.execute(
            "UPDATE stage.scheduled_publications SET activate_at = '2026-01-01T08:00Z'"
        )
        while not await stage.connection.fetchval(
            "SELECT count(*) FROM stage.scheduled_publications WHERE state = 'refused'"
        ):
            await stage.house.lane.shelf.activate_due(stage.house.pool, stage.house.now())
        code, said = await baton(stage, "playbook", "versions", "sales")
        assert code == 0, said
        assert (
            f"refused at 2026-01-01 08:00 UTC, scheduled by test: version 3 of the playbook 'sales' is "
            f"active, not 1 ({id})"
        ) in said
