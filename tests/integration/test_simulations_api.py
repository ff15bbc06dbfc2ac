"""Simulations over HTTP: found by every replica, the same document as the command's, never in the way."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import jsonschema
import msgspec
import pytest

from services.baton import simulate as simulate_command
from services.contracts.schemas import HERE as SCHEMAS
from services.stage_service.errors import ConflictError
from services.stage_service.simulations import records, runs
from tests.integration.stage import Stage, running_stage
from tests.integration.test_simulation import EASIER, SALES, run_under, stories
from tests.integration.test_simulation import ROOT as HERE

RUNS = "/v1/playbooks/simulations"
WAIT_S = 60


async def begin(stage: Stage, text: str, **query: Any) -> httpx.Response:
    return await stage.client.post(
        "/v1/playbooks/simulate", content=text, params=query,
        headers={"content-type": "application/yaml"},
    )  # fmt: skip


async def shown(stage: Stage, id: str) -> dict[str, Any]:
    answer = await stage.client.get(f"{RUNS}/{id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def when(
    stage: Stage, id: str, is_so: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:  # fmt: skip
    async with asyncio.timeout(WAIT_S):
        while not is_so(now := await shown(stage, id)):
            await asyncio.sleep(0.05)
    return now


def is_over(run: dict[str, Any]) -> bool:
    return run["state"] != "running"


async def until_gone(pid: int) -> None:
    """Wait until no process of the group is left: init takes what was killed a moment later."""
    async with asyncio.timeout(WAIT_S):
        while not group_is_gone(pid):
            await asyncio.sleep(0.02)


def group_is_gone(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


def leader_of(stage: Stage) -> int:
    child = stage.house.simulations._child
    assert child is not None
    return child.process.pid


async def never_ending(stage: Stage) -> tuple[str, int]:
    """A simulation that cannot go on: its first table is locked. Its id, and the process that leads it."""
    await stage.connection.execute("BEGIN; LOCK TABLE stage.leads IN ACCESS EXCLUSIVE MODE")
    answer = await begin(stage, EASIER)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"], leader_of(stage)


async def test_the_document_of_http_is_that_of_the_command(
    database_url: str, tmp_path: Path
) -> None:
    """Both are what the one schema says; only the moment they were made at differs."""
    await run_under(database_url, SALES, stories(60))
    candidate = tmp_path / "candidate.yaml"
    candidate.write_text(EASIER)
    async with running_stage(database_url, simulation_workers=2) as stage:
        began = await begin(stage, EASIER, since="2026-01-06", workers=2)
        assert began.status_code == 202, began.text
        where = began.headers["location"]
        assert where == f"{RUNS}/{began.json()['id']}"
        assert (began.json()["state"], began.json()["result"]) == ("running", None)
        run = await when(stage, began.json()["id"], is_over)
        assert (run["state"], run["reason"], run["workers"]) == ("done", None, 2)
        leads = run["result"]["leads"]
        assert run["progress"] == {"leads_done": leads, "leads_total": leads}
        alone = (await stage.client.get(f"{where}/result")).json()
        assert alone == run["result"]
        lines = (await stage.client.get(f"{where}/result?format=csv")).text
        listed = (await stage.client.get(RUNS)).json()["items"]
        assert [item["id"] for item in listed] == [run["id"]]
        assert "result" not in listed[0]
    wrote, table = tmp_path / "out.json", tmp_path / "out.csv"
    await asyncio.to_thread(
        simulate_command.command, candidate, "2026-01-06", 1, HERE / "playbooks/team.yaml", wrote,
        table, database_url,
    )  # fmt: skip
    by_command = json.loads(wrote.read_bytes())
    assert by_command | {"until": None} == alone | {"until": None}
    assert table.read_bytes().decode() == lines
    assert len(list(csv.DictReader(io.StringIO(lines)))) == alone["differing"] > 5
    schema = json.loads((SCHEMAS / "baton.simulation.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(alone)


async def test_what_cannot_be_simulated_is_refused(database_url: str) -> None:
    async with running_stage(database_url, simulation_workers=1) as stage:
        answer = await begin(stage, SALES.replace("score.total >= 60", "score.totl >= 60"))
        assert answer.status_code == 422
        problem = answer.json()
        assert problem["field"] == "body"
        assert "score.totl" in problem["detail"]
        assert problem["problems"][0]["line"] > 100
        for query, field in (({"since": "ninety"}, "since"), ({"workers": 2}, "workers")):
            answer = await begin(stage, EASIER, **query)
            assert (answer.status_code, answer.json()["field"]) == (422, field)
        assert (
            await begin(stage, "name: \xff".encode("latin-1").decode("latin-1"))
        ).status_code == 422
        assert (await stage.client.get(RUNS)).json()["items"] == []
        for path in (f"{RUNS}/x", f"{RUNS}/00000000-0000-0000-0000-000000000000/result"):
            assert (await stage.client.get(path)).status_code == 404
        _, reader = await stage.new_key("read")
        stage.client.headers["authorization"] = f"Bearer {reader}"
        assert (await begin(stage, EASIER)).status_code == 403
        assert (await stage.client.get(RUNS)).status_code == 200


async def test_many_mistakes_are_told_as_few(database_url: str) -> None:
    """However many, and however long what they say: the first fifty, and nothing runs."""
    async with running_stage(database_url, simulation_workers=1) as stage:
        for count, length in ((500, 1), (60, 3000)):
            mistakes = "".join(
                f"  - {{key: k{n}, from: [lead], to: nowhere{n}{'x' * length}, because: x}}\n"
                for n in range(count)
            )
            answer = await begin(stage, SALES.replace("rules:\n", "rules:\n" + mistakes, 1))
            assert answer.status_code == 422, answer.text
            assert len(answer.json()["problems"]) == 50
            assert (await stage.client.get(RUNS)).json()["items"] == []


async def test_what_says_nothing_it_could_say_has_failed(database_url: str) -> None:
    """The row does not stay running, whatever comes of the processes."""
    async with running_stage(database_url) as stage:
        for told in (b"no message\n", b"x" * 2**21, b'{"type":"Done","size":9}\n'):
            id, leader = await never_ending(stage)
            child = stage.house.simulations._child
            assert child is not None
            child.stdout.feed_data(told)
            if told.startswith(b"{"):
                os.kill(leader, signal.SIGKILL)  # in the middle of the document
            run = await when(stage, id, is_over)
            assert (run["state"], run["reason"]) == ("failed", runs.ENDED)
            await stage.house.simulations.stop()
            await until_gone(leader)
            await stage.connection.execute("ROLLBACK")


async def test_one_at_a_time_and_any_replica_ends_it(database_url: str) -> None:
    async with running_stage(database_url) as here, running_stage(database_url) as there:
        id, leader = await never_ending(here)
        for stage in (here, there):
            refused = await begin(stage, EASIER)
            assert (refused.status_code, refused.json()["simulation"]) == (409, id)
            assert (await shown(stage, id))["state"] == "running"
        early = await here.client.get(f"{RUNS}/{id}/result")
        assert (early.status_code, early.json()["code"]) == (409, "conflict")
        assert (await there.client.delete(f"{RUNS}/{id}")).status_code == 204
        assert (await there.client.delete(f"{RUNS}/{id}")).status_code == 204
        await until_gone(leader)
        await here.connection.execute("ROLLBACK")
        again = await begin(there, EASIER)
        assert again.status_code == 202, again.text
        run = await when(here, again.json()["id"], is_over)
        assert run["state"] == "done"
        over = await here.client.delete(f"{RUNS}/{run['id']}")
        assert over.status_code == 409


async def test_the_same_request_again_is_the_same_simulation(database_url: str) -> None:
    """With an Idempotency-Key; where it is, is said both times."""
    async with running_stage(database_url) as stage:
        await stage.connection.execute("BEGIN; LOCK TABLE stage.journeys IN ACCESS EXCLUSIVE MODE")
        first, second = [
            await stage.client.post(
                "/v1/playbooks/simulate", content=EASIER, headers={"idempotency-key": '"once"'}
            )
            for _ in range(2)
        ]
        assert (first.status_code, second.status_code) == (202, 202)
        assert second.headers["idempotency-replayed"] == "true"
        assert second.headers["location"] == first.headers["location"]
        assert second.json() == first.json()
        again = await stage.house.simulations.start(EASIER, None, 1, "x", first.json()["id"])
        assert again.id == first.json()["id"]


async def test_a_stop_ends_the_processes_which_are_low_in_priority(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        id, leader = await never_ending(stage)
        assert os.getpriority(os.PRIO_PROCESS, leader) == os.getpriority(os.PRIO_PROCESS, 0) + 10
        stage.house.stopping.set()
        run = await when(stage, id, is_over)
        assert (run["state"], run["reason"]) == ("failed", runs.STOPPED)
        assert (await begin(stage, EASIER)).status_code == 503
        await stage.house.simulations.stop()
        await until_gone(leader)


async def test_processes_that_die_are_a_failure_that_says_so(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        id, leader = await never_ending(stage)
        os.kill(leader, signal.SIGKILL)
        run = await when(stage, id, is_over)
        assert (run["state"], run["reason"]) == ("failed", runs.ENDED)


async def test_processes_whose_leader_died_are_ended(database_url: str) -> None:
    """They hold its output open and wait for it for ever: none could begin any more."""
    await run_under(database_url, SALES, stories(5))
    async with running_stage(database_url) as stage:
        await stage.connection.execute("BEGIN; LOCK TABLE stage.journeys IN ACCESS EXCLUSIVE MODE")
        answer = await begin(stage, EASIER)
        assert answer.status_code == 202, answer.text
        leader = leader_of(stage)
        await until_a_worker_waits(stage)
        os.kill(leader, signal.SIGKILL)
        run = await when(stage, answer.json()["id"], is_over)
        assert (run["state"], run["reason"]) == ("failed", runs.ENDED)
        await until_gone(leader)
        await stage.connection.execute("ROLLBACK")
        again = await begin(stage, EASIER)
        assert again.status_code == 202, again.text
        assert (await when(stage, again.json()["id"], is_over))["state"] == "done"


async def until_a_worker_waits(stage: Stage) -> None:
    """Wait until a process has asked for a table that is locked."""
    asked = """SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event_type = 'Lock'"""
    async with asyncio.timeout(WAIT_S):
        while not await stage.house.pool.fetchval(asked):
            await asyncio.sleep(0.02)


async def test_the_processes_end_with_the_one_that_asked(database_url: str) -> None:
    """A service that is killed leaves nobody behind: its end of their stdin closes."""
    async with running_stage(database_url) as stage:
        _, leader = await never_ending(stage)
        child = stage.house.simulations._child
        assert child is not None
        assert child.process.stdin is not None
        child.process.stdin.close()
        await until_gone(leader)


async def test_one_that_nobody_hears_of_has_failed(database_url: str) -> None:
    """Its replica died: after a while it is told, and others may begin."""
    async with running_stage(database_url) as stage:
        await stage.connection.execute(
            """INSERT INTO stage.simulations (id, playbook, digest, source, workers, asked_by, state,
                 started_at, beat_at)
               VALUES ('00000000-0000-0000-0000-000000000001', 'sales', 'd', '', 1, 'x', 'running',
                 now() - interval '1 h', now() - interval '31 s')"""
        )
        run = await shown(stage, "00000000-0000-0000-0000-000000000001")
        assert (run["state"], run["reason"]) == ("failed", "the process that ran it is gone")
        assert run["ended_at"] is not None
        assert (await begin(stage, EASIER)).status_code == 202


async def test_too_little_memory_ends_it_and_says_so(database_url: str) -> None:
    """The limit holds for each process; the service is none of them."""
    await run_under(database_url, SALES, stories(5))
    async with running_stage(database_url) as stage:
        stage.house.simulations._memory_bytes = 40 * 2**20
        answer = await begin(stage, EASIER)
        run = await when(stage, answer.json()["id"], is_over)
        assert run["state"] == "failed"
        assert "ended" in run["reason"]


async def test_old_ones_are_forgotten(database_url: str) -> None:
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
        await pool.execute(
            """INSERT INTO stage.simulations (id, playbook, digest, source, workers, asked_by, state,
                 started_at, beat_at, ended_at)
               SELECT gen_random_uuid(), 'sales', 'd', '', 1, 'x', 'cancelled',
                 now() - n * interval '1 h', now(), now() FROM generate_series(1, 60) AS n"""
        )
        run = records.Run(
            "00000000-0000-0000-0000-000000000001", "sales", "d", "running", None, None, 1, "x",
            datetime.now(UTC), None, records.Progress(0, None),
        )  # fmt: skip
        await records.begin(pool, run, "")
        kept = await records.newest(pool)
        assert (len(kept), kept[0]) == (50, run)
        assert await pool.fetchval("SELECT count(*) FROM stage.simulations") == 50
        with pytest.raises(ConflictError):
            await records.begin(pool, msgspec.structs.replace(run, id=str(uuid.uuid4())), "")


@pytest.mark.parametrize("state", ["done", "running"])
async def test_the_table_refuses_what_cannot_be(database_url: str, state: str) -> None:
    """Done without a result; running and ended."""
    connection = await asyncpg.connect(database_url)
    try:
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(
                """INSERT INTO stage.simulations (id, playbook, digest, source, workers, asked_by, state,
                     started_at, beat_at, ended_at)
                   VALUES (gen_random_uuid(), 'sales', 'd', '', 1, 'x', $1, now(), now(), now())""",
                state,
            )
    finally:
        await connection.close()
