"""`baton events export`: every event of every lead, in pieces, and the fold of them is the simulation."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pyarrow import parquet

from services.baton.export import ABOUT, export_parquet, read_about
from services.stage_service.simulation import Tally
from services.stage_service.simulations.frames import Job, moment, simulation_of, tally_of
from tests.integration.test_playbook_moves import DISCOVERY
from tests.integration.test_simulation import (
    EASIER,
    ENDED,
    HOURS,
    SALES,
    run_under,
    simulated_on,
    stories,
)
from tests.integration.wired import event


def rows(directory: Path) -> list[dict[str, Any]]:
    """All rows of a directory, times in microseconds."""
    found: list[dict[str, Any]] = []
    for file in sorted(directory.iterdir()):
        table = parquet.read_table(file)
        for name in ("time", "recorded_at"):
            if name in table.column_names:
                at = table.column_names.index(name)
                table = table.set_column(at, name, table.column(name).cast("int64"))
        found += table.to_pylist()
    return found


async def test_the_fold_of_exported_rows_is_the_simulation(
    database_url: str, tmp_path: Path
) -> None:
    """Put together as you like: here each lead by itself, and all at once."""
    await run_under(database_url, SALES, stories(60))
    told: list[tuple[int, int]] = []
    about = await export_parquet(
        database_url, tmp_path / "out", rows_a_file=100,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told[-1] == (60, 60)
    assert read_about(tmp_path / "out") == about
    events, journeys = rows(tmp_path / "out/events"), rows(tmp_path / "out/journeys")
    assert (about.leads, about.events, about.journeys) == (60, len(events), len(journeys))
    connection = await asyncpg.connect(database_url)
    stored = await connection.fetch(
        "SELECT source, id, time, recorded_at, data FROM stage.events ORDER BY source, id"
    )
    await connection.close()
    events.sort(key=lambda row: (row["source"], row["id"]))
    assert [
        (r["source"], r["id"], moment(r["time"]), moment(r["recorded_at"]), r["data"])
        for r in events
    ] == [tuple(r) for r in stored]
    for since in (None, event("x", 9000).time):
        job = Job(EASIER, "candidate.yaml", HOURS, ENDED, since, about)
        whole = await simulated_on(database_url, EASIER, since=since)
        assert tally_of(simulation_of(job), since, events, journeys) == whole
        parts = Tally()
        for lead in sorted({row["lead_id"] for row in events}):
            parts.add(tally_of(
                simulation_of(job), since, *([r for r in table if r["lead_id"] == lead]
                                             for table in (events, journeys))
            ))  # fmt: skip
            if since is not None:
                break  # one is enough: a fold is made anew each time here
        assert since is not None or parts == whole


async def test_renames_go_with_it(database_url: str, tmp_path: Path) -> None:
    """A stage has another name since version 2: the active text differs nowhere, wherever it is folded."""
    leads = [f"lead{number}@example.com" for number in range(20)]
    await run_under(database_url, SALES, stories(20))
    await run_under(database_url, DISCOVERY, [event("page.viewed", 90_000, lead) for lead in leads])
    about = await export_parquet(database_url, tmp_path / "out")
    assert [(p.version, p.migrate) for p in about.playbooks] == [(1, {}), (2, {"sql": "discovery"})]
    tables = rows(tmp_path / "out/events"), rows(tmp_path / "out/journeys")
    assert any('"rule":"migrate"' in journey["moves"] for journey in tables[1])
    job = Job(DISCOVERY, "candidate.yaml", HOURS, ENDED, None, about)
    tally = tally_of(simulation_of(job), None, *tables)
    assert tally == await simulated_on(database_url, DISCOVERY)
    assert (tally.journeys, tally.differing) == (20, 0)
    assert tally.today.stages == tally.candidate.stages
    assert "sql" not in tally.today.stages


async def test_nothing_stored_is_an_export_too(database_url: str, tmp_path: Path) -> None:
    about = await export_parquet(database_url, tmp_path / "out")
    assert (about.leads, about.events) == (0, 0)
    assert rows(tmp_path / "out/events") == []
    with pytest.raises(FileExistsError, match="name a new directory"):
        await export_parquet(database_url, tmp_path / "out")


async def test_what_broke_off_is_not_taken_for_whole(database_url: str, tmp_path: Path) -> None:
    await run_under(database_url, SALES, stories(3))

    def broken(done: int, total: int) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        await export_parquet(database_url, tmp_path / "out", progress=broken)
    assert not (tmp_path / "out" / ABOUT).exists()


def test_moments_are_exact() -> None:
    """Past what pandas' nanoseconds can hold, too."""
    for text in ("1969-12-31T23:59:59.999999+00:00", "9999-12-31T23:59:59.999999+00:00"):
        at = datetime.fromisoformat(text)
        assert moment((at - moment(0)).days * 86_400_000_000
                      + (at - moment(0)).seconds * 1_000_000 + at.microsecond) == at  # fmt: skip
