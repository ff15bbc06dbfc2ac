"""`baton playbook diff`, `publish`, `rollback` and the others, against a stage service on a real socket."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.integration.stage import serving_stage
from tests.integration.test_leads_command import baton

SALES = (Path(__file__).parents[2] / "playbooks/sales.yaml").read_text()


LINE = SALES[: SALES.index('score.total >= 60"')].count("\n") + 1


def written(directory: Path, name: str, *changes: tuple[str, str]) -> str:
    text = SALES
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    file = directory / name
    file.write_text(text)
    return str(file)


async def test_a_playbook_is_compared_published_and_rolled_back(
    database_url: str, tmp_path: Path
) -> None:
    easier = written(tmp_path, "easier.yaml", ("score.total >= 60", "score.total >= 20"))
    async with serving_stage(database_url) as stage:
        await stage.send({"specversion": "1.0", "id": "1", "source": "/s", "type": "webinar.attended",
                          "data": {"email": "a@b.example", "employees": 60}})  # fmt: skip
        code, said = await baton(stage, "playbook", "diff", easier)
        assert code == 0, said
        flat = " ".join(said.split())
        assert "1 change; it can change where journeys go." in flat
        assert (
            f"score-reached fires when score.total >= 20 now (before: score.total >= 60). line {LINE}"
            in flat
        )
        assert "1 open journey has a score >= 20 (0 had >= 60): 1 more, 0 fewer." in flat
        assert (
            "1 open journey goes from Lead Generation to Lead Qualification at the next event, "
            "whatever that is (0 today)." in flat
        )
        assert "baton playbook simulate sales.yaml" in flat
        code, said = await baton(stage, "playbook", "publish", easier, "--expect", "7")
        assert code == 1
        assert "version 1 of the playbook 'sales' is active" in said
        code, said = await baton(stage, "playbook", "publish", easier, "--message", "More leads")
        assert code == 0, said
        assert said.strip().endswith("sales version 2 is active")
        code, said = await baton(stage, "playbook", "get", "sales")
        assert (code, said) == (0, Path(easier).read_text())
        code, said = await baton(
            stage, "playbook", "rollback", "sales", "1", "--message", "Too many"
        )
        assert code == 0, said
        assert said.strip().endswith("sales version 3 is active, the text of version 1")
        code, said = await baton(stage, "playbook", "versions", "sales")
        assert code == 0, said
        assert "More" in said
        assert "3 *" in said
        code, said = await baton(stage, "playbook", "diff", "sales@2", "sales@3", "--json")
        assert json.loads(said)["changes"][0]["kind"] == "rule-when"
        code, said = await baton(stage, "playbook", "diff", "nosuch@1", "sales@3")
        assert (code, "there is no playbook 'nosuch'" in said) == (1, True)


async def test_mistakes_are_told_with_their_places(database_url: str, tmp_path: Path) -> None:
    bad = written(tmp_path, "bad.yaml", ("lead.employees >= 200", "lead.employes >= 200"))
    async with serving_stage(database_url) as stage:
        code, said = await baton(stage, "playbook", "publish", bad, "--yes")
    assert code == 1
    assert re.search(r"\d+:\d+: .*lead\.employes.* Did you mean 'lead\.employees'\?", said)


async def test_published_later_and_called_off(database_url: str, tmp_path: Path) -> None:
    easier = written(tmp_path, "easier.yaml", ("score.total >= 60", "score.total >= 20"))
    async with serving_stage(database_url) as stage:
        code, said = await baton(
            stage, "playbook", "publish", easier, "--at", "2099-01-01T08:00+01:00"
        )
        assert code == 0, said
        assert "sales is to be published at 2099-01-01 07:00: " in said
        id = said.rsplit(": ", 1)[1].strip()
        code, said = await baton(stage, "playbook", "versions")
        assert id in said
        code, said = await baton(stage, "playbook", "cancel", id)
        assert (code, "cancelled" in said) == (0, True)
        code, said = await baton(stage, "playbook", "cancel", id)
        assert code == 1
        code, said = await baton(stage, "playbook", "publish", easier, "--at", "monday")
        assert (code, "is no time" in said) == (2, True)


async def test_a_file_that_is_mistyped_is_not_taken_for_what_is_active(
    database_url: str, tmp_path: Path
) -> None:
    easier = written(tmp_path, "easier.yaml", ("score.total >= 60", "score.total >= 20"))
    other = written(tmp_path, "other.yaml", ("name: sales", "name: other"))
    async with serving_stage(database_url) as stage:
        for old, said_of_it in (
            (str(tmp_path / "typo.yaml"), "neither a file nor a playbook"),
            ("typo.yaml", "neither a file nor a playbook"),
            ("sals", "'sals' is neither a file nor of the playbook 'sales'"),
        ):
            code, said = await baton(stage, "playbook", "diff", old, easier)
            assert (code, said_of_it in " ".join(said.split())) == (2, True), said
        code, said = await baton(stage, "playbook", "diff", "sales@1", other)
        assert (code, "nor of the playbook 'other'" in " ".join(said.split())) == (2, True), said
        for old in ("sales", "sales@1"):
            code, said = await baton(stage, "playbook", "diff", old, easier)
            assert (code, "1 change" in said) == (0, True), said


async def test_two_files_are_compared_without_a_service(database_url: str, tmp_path: Path) -> None:
    one = written(tmp_path, "one.yaml")
    other = written(tmp_path, "other.yaml", ("name: sales", "# a word\nname: sales"))
    async with serving_stage(database_url) as stage:
        url = stage.url
        stage.url = "http://127.0.0.1:1"
        code, said = await baton(stage, "playbook", "diff", one, other)
        stage.url = url
    assert (code, said.strip()) == (0, "No change of rules: only comments or layout differ.")
