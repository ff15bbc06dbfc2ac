"""The simulation past one machine: on Spark, over exported rows, the very document of the command.

``BATON_SPARK_LEADS`` says how many leads; CI takes few.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.baton.export import export_parquet
from services.contracts.simulations import encoded
from services.stage_service.simulations.pool import simulate
from services.stage_service.simulations.report import report
from tests.conftest import ROOT, missing
from tests.integration.test_simulation import (
    EASIER,
    ENDED,
    HOURS,
    SALES,
    playbook,
    run_under,
    stories,
)

pytestmark = pytest.mark.long
LEADS = int(os.environ.get("BATON_SPARK_LEADS", "150"))


def java_17() -> str:
    """The directory of a Java that Spark runs on."""
    java = shutil.which("java")
    if java is None:
        missing("Java 17")
    return str(Path(java).resolve().parents[1])


async def test_spark_gives_the_document_of_the_command(database_url: str, tmp_path: Path) -> None:
    """The same bytes: every count, and the way of each journey that would differ."""
    if importlib.util.find_spec("pyspark") is None:
        missing("pyspark (make spark)")
    await run_under(database_url, SALES, stories(LEADS))
    candidate = tmp_path / "candidate.yaml"
    candidate.write_text(EASIER)
    await export_parquet(database_url, tmp_path / "export", rows_a_file=200)
    since = "2026-01-07"
    ran = subprocess.run(
        [
            sys.executable, ROOT / "examples/spark_simulation.py", tmp_path / "export", candidate,
            "--team", ROOT / "playbooks/team.yaml", "--until", ENDED.isoformat(), "--since", since,
            "--master", "local[2]", "--by-lead", "--json", tmp_path / "spark.json",
        ],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {
            "JAVA_HOME": java_17(), "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_SUBMIT_ARGS": "--conf spark.ui.enabled=false --conf spark.sql.shuffle.partitions=2 "
            f"--conf spark.local.dir={tmp_path / 'spark'} pyspark-shell",
        },
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    by_spark = (tmp_path / "spark.json").read_bytes()
    for workers in (1, 2):
        tally = await simulate(
            database_url, playbook(EASIER), str(candidate), HOURS, ENDED, workers=workers,
            since=ENDED.replace(month=1, day=7), leads_a_task=40,
        )  # fmt: skip
        document = report(tally, playbook(EASIER), ENDED, ENDED.replace(month=1, day=7))
        assert encoded(document) == by_spark
    told = json.loads(by_spark)
    assert told["differing"] == len(told["differences"]) > 10
