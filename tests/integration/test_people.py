"""The roster over HTTP on real PostgreSQL: versions, import, the file, the audit, and both services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.baton import people as command
from services.notifier.app import create_app as create_notifier
from services.notifier.settings import NotifierSettings
from tests.integration.stage import Stage, running_stage, serving_stage

ROOT = Path(__file__).parents[2]
NINA = {
    "name": "Nina", "roles": ["ae"], "email": "nina@baton.example", "weight": 2,
    "away": [{"from": "2020-01-01", "until": "2020-01-02", "stand_in": "elena"}],
}  # fmt: skip


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.02)


async def audit(stage: Stage, **query: Any) -> list[dict[str, Any]]:
    return (await stage.client.get("/v1/audit", params=query)).json()["items"]


async def test_people_begin_as_the_file_and_change_by_version(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        people = (await stage.client.get("/v1/people")).json()["items"]
        assert [p["id"] for p in people][:3] == ["maya", "jonas", "aisha"]
        made = await stage.client.put("/v1/people/nina", json=NINA, headers={"if-none-match": "*"})
        assert (made.status_code, made.headers["etag"]) == (201, '"1"')
        again = await stage.client.put("/v1/people/nina", json=NINA, headers={"if-none-match": "*"})
        assert (again.status_code, again.json()["code"]) == (412, "changed-meanwhile")
        changed = await stage.client.put(
            "/v1/people/nina", json=NINA | {"weight": 3}, headers={"if-match": '"1"'}
        )
        assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
        late = await stage.client.put("/v1/people/nina", json=NINA, headers={"if-match": '"1"'})
        assert late.status_code == 412
        one = await stage.client.get("/v1/people/nina")
        assert one.json() == NINA | {"weight": 3, "id": "nina"}
        gone = await stage.client.delete("/v1/people/nina", headers={"if-match": '"2"'})
        assert gone.status_code == 204
        assert (await stage.client.get("/v1/people/nina")).status_code == 404
        told = [(a["action"], a["actor"]) for a in await audit(stage, subject="nina")]
        assert told == [("left", "test"), ("changed", "test"), ("added", "test")]
        changes = (await audit(stage, subject="nina"))[1]
        assert (changes["before"]["weight"], changes["after"]["weight"]) == (2, 3)
        back = await stage.client.put("/v1/people/nina", json=NINA)
        assert back.headers["etag"] == '"3"', "a version is never given twice"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"roles": ["aes"]}, "unknown role 'aes'"),
        ({"hours": {"mon": "9-5"}}, "'9-5' are not hours"),
        ({"id": "other"}, "not the one in the address"),
        ({"away": [{"from": "2026-01-01", "until": "2026-01-02", "stand_in": "zoe"}]}, "'zoe'"),
        ({"name": "N\x00"}, "no text or number that can be kept"),
        ({"wait": 1}, "unknown key 'wait'"),
    ],
)
async def test_a_wrong_person_is_refused_and_nothing_changes(
    database_url: str, change: dict[str, Any], told: str
) -> None:
    async with running_stage(database_url) as stage:
        answer = await stage.client.put("/v1/people/nina", json=NINA | change)
        assert answer.status_code == 422
        assert told in answer.text
        assert await audit(stage, subject="nina") == []


async def test_only_admin_reads_and_writes_people(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        _, token = await stage.new_key("read", "move")
        for method, path in (("GET", "/v1/people"), ("PUT", "/v1/people/x"), ("GET", "/v1/audit"),
                             ("POST", "/v1/people/import"), ("DELETE", "/v1/people/x")):  # fmt: skip
            answer = await stage.client.request(
                method, path, headers={"authorization": f"Bearer {token}"},
                json={} if method == "PUT" else None,
            )  # fmt: skip
            assert answer.status_code == 403, path


CSV = """id,name,email,roles,weight,mon,skills,channels
nina,Nina,nina@baton.example,ae;csm,2,09:00-12:00;13:00-17:00,french,inbox;slack://T0KEN/x
elena,Elena Petrova,elena@baton.example,ae,,,,inbox;email
"""


async def test_people_come_from_csv_all_or_none(database_url: str) -> None:
    async with running_stage(database_url) as stage:

        async def send(text: str, **query: Any) -> Any:
            headers = {"content-type": "text/csv"}
            return await stage.client.post(
                "/v1/people/import", content=text, params=query, headers=headers
            )

        dry = await send(CSV, dry_run=True)
        assert dry.json() == {
            "dry_run": True, "added": ["nina"], "changed": ["elena"], "unchanged": [],
        }  # fmt: skip
        assert (await stage.client.get("/v1/people/nina")).status_code == 404
        assert (await send(CSV)).json()["added"] == ["nina"]
        assert (await send(CSV)).json()["unchanged"] == ["nina", "elena"]
        nina = (await stage.client.get("/v1/people/nina")).json()
        assert nina["hours"] == {"mon": ["09:00-12:00", "13:00-17:00"]}
        assert "T0KEN" not in str(await audit(stage)), "no secret in the audit"
        wrong = await send(CSV + "kim,Kim,,aes,x,,,\nnina,Twice,,ae,,,,\nshort\n")
        assert wrong.status_code == 422
        told = [(p["line"], p["message"]) for p in wrong.json()["problems"]]
        assert [line for line, _ in told] == [4, 4, 5, 6]
        assert told[2][1] == "the id 'nina' is on line 2 already"
        assert (await send("id,nam,roles\n")).json()["problems"][0][
            "message"
        ] == "there is no column 'name'"


async def test_what_csv_cannot_tell_stays_and_is_audited_without_secrets(database_url: str) -> None:
    wants = {
        "deliver": "hourly",
        "channels": {"escalation": ["slack://T0KEN/x"], "ae": "json://K3Y"},
    }
    away = [{"from": "2026-08-03", "until": "2026-08-14"}]
    async with running_stage(database_url) as stage:
        person = NINA | {"alerts": wants, "away": away, "leads": ["ae"]}
        assert (await stage.client.put("/v1/people/nina", json=person)).status_code == 201
        answer = await stage.client.post(
            "/v1/people/import", content="id,name,roles,leads\nnina,Nina,ae;csm,csm\n",
            headers={"content-type": "text/csv"},
        )  # fmt: skip
        assert answer.json()["changed"] == ["nina"]
        nina = (await stage.client.get("/v1/people/nina")).json()
        assert (nina["alerts"], nina["away"], nina["leads"]) == (wants, away, ["csm"])
        told = str(await audit(stage, subject="nina"))
        assert "slack://..." in told
        assert "T0KEN" not in told
        assert "K3Y" not in told


async def test_the_audit_is_read_page_by_page(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        first = await audit(stage, limit=3)
        cursor = (await stage.client.get("/v1/audit?limit=3")).json()["next_cursor"]
        assert [a["id"] for a in await audit(stage, limit=1, cursor=cursor)] == [
            first[-1]["id"] - 1
        ]


async def test_a_change_is_the_other_services_too_within_two_seconds(
    database_url: str, tmp_path: Path
) -> None:
    settings = NotifierSettings(
        _env_file=None, database_url=database_url, team_file=ROOT / "playbooks/team.yaml",
        kafka_bootstrap_servers=None,
    )  # fmt: skip
    notifier = create_notifier(settings)
    async with (
        running_stage(database_url) as stage,
        running_stage(database_url) as other,
        notifier.router.lifespan_context(notifier),
    ):
        roster = notifier.state.house.dispatcher._roster
        await stage.client.put("/v1/people/nina", json=NINA)
        async with asyncio.timeout(2):
            await until(lambda: "nina" in other.house.team.by_id)
            await until(lambda: "nina" in roster.team().by_id)


async def test_where_the_file_has_the_say_the_api_reads_and_the_file_is_followed(
    database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "team.yaml"
    file.write_text("people: [{id: a, name: A, roles: [ae]}, {id: b, name: B, roles: [ae]}]")
    async with running_stage(database_url, team_file=file, roster="file") as stage:
        answer = await stage.client.put("/v1/people/nina", json=NINA)
        assert answer.status_code == 409
        assert "BATON_ROSTER=file" in answer.json()["detail"]
        file.write_text("people: [{id: b, name: Bea, roles: [ae]}, {id: c, name: C, roles: [csm]}]")
        await until(lambda: "c" in stage.house.team.by_id)
        assert sorted(stage.house.team.by_id) == ["b", "c"]
        assert stage.house.team.by_id["b"].name == "Bea"
        told = {(a["subject"], a["action"]) for a in await audit(stage)}
        assert {("a", "left"), ("b", "changed"), ("c", "added")} <= told


async def test_the_list_says_who_holds_how_many_and_whose_turn_is_next(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        events = [
            {"specversion": "1.0", "id": f"e{n}", "source": "/t", "type": "meeting.booked",
             "data": {"email": f"p{n}@c.example"}}
            for n in range(3)
        ]  # fmt: skip
        await stage.send(*events)
        people = (await stage.client.get("/v1/people", params={"role": "ae"})).json()["items"]
        assert {p["id"]: p["load"]["open_journeys"] for p in people} == {"elena": 1, "marcus": 2}
        assert [p["id"] for p in people if "ae" in p["load"]["next_for"]] == ["marcus"]
        gone = await stage.client.delete("/v1/people/elena")
        assert (gone.status_code, gone.json()["code"]) == (409, "conflict")
        assert (await stage.client.get("/v1/people/elena")).status_code == 200


async def test_the_page_shows_load_absence_and_whose_turn_is_next(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        away = NINA | {"away": [{"from": "2020-01-01", "until": "2999-01-01", "stand_in": "elena"}]}
        await stage.client.put("/v1/people/nina", json=away)
        page = await stage.client.get("/people")
        assert page.status_code == 200
        assert "Elena Petrova stands in" in page.text
        rows = [" ".join(r.split()) for r in page.text.split("<tr>") if "Marcus Chen" in r]
        assert len(rows) == 1
        assert "badge" in rows[0], "Marcus is next: the heaviest who is there"
        _, token = await stage.new_key("ingest")
        refused = await stage.client.get("/people", headers={"authorization": f"Bearer {token}"})
        assert refused.status_code in (303, 403)


async def test_the_command_line_lists_imports_and_lets_leave(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving_stage(database_url) as stage:

        def send(text: str, *, dry_run: bool = False) -> str:
            return command.import_file(stage.url, stage.key, text, "p.csv", dry_run=dry_run)

        said = await asyncio.to_thread(send, CSV, dry_run=True)
        assert said == "1 added, 1 changed, 0 unchanged (nothing kept: dry run)"
        assert await asyncio.to_thread(send, CSV) == "1 added, 1 changed, 0 unchanged"
        with pytest.raises(command.RefusedError) as refused:
            await asyncio.to_thread(send, "id,name,roles\nx,X,aes\ny,,ae\n")
        assert [line[:8] for line in str(refused.value).splitlines()] == ["p.csv:2:", "p.csv:3:"]
        capsys.readouterr()
        await asyncio.to_thread(command.show, stage.url, stage.key)
        assert "nina" in capsys.readouterr().out
        left = await asyncio.to_thread(command.leave, stage.url, stage.key, "nina", None)
        assert left == "nina left; 0 open journeys given on by routing"
        with pytest.raises(command.RefusedError, match="no person 'zoe' in the roster"):
            await asyncio.to_thread(command.leave, stage.url, stage.key, "elena", "zoe")


async def test_nobody_is_taken_off_while_a_batch_that_chose_them_commits(database_url: str) -> None:
    """The batch has chosen Elena and has not committed: taking her off waits, and is refused then."""
    async with running_stage(database_url) as stage:
        await stage.send(
            {"specversion": "1.0", "id": "1", "source": "/t", "type": "meeting.booked",
             "data": {"email": "a@c.example"}}
        )  # fmt: skip
        batch = await asyncpg.connect(database_url)
        await stage.connection.execute("UPDATE stage.journeys SET holder = 'marcus'")
        transaction = batch.transaction()
        await transaction.start()
        await batch.fetch("SELECT 1 FROM stage.rotations WHERE role = 'ae' FOR UPDATE")
        await batch.execute("UPDATE stage.journeys SET holder = 'elena'")
        taking = asyncio.create_task(stage.client.delete("/v1/people/elena"))
        waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
        async with asyncio.timeout(10):
            while not taking.done() and not await stage.connection.fetchval(waits):
                await asyncio.sleep(0.01)
        await transaction.commit()
        await batch.close()
        answer = await taking
        assert answer.status_code == 409
        assert (await stage.client.get("/v1/people/elena")).status_code == 200
