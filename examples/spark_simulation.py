"""A candidate playbook on real history, on a Spark cluster: the fold of `baton playbook simulate`, by lead.

    baton events export --parquet /data/baton
    spark-submit examples/spark_simulation.py /data/baton new.yaml --team playbooks/team.yaml --json out.json

Every executor needs Python with `baton`, pandas and pyarrow; `--master local[*]` runs it here. The
result is the document of `baton playbook simulate --json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from services.baton.export import read_about
from services.contracts.simulations import encoded
from services.contracts.team import load_team
from services.stage_service.simulation import Tally
from services.stage_service.simulations.frames import Job, candidate_of, tally_of, told_to
from services.stage_service.simulations.pool import hours_of, since_of
from services.stage_service.simulations.report import report

LEADS_A_GROUP = 500


def folding(job: bytes) -> Callable[[Any, Any], Any]:
    """Give the function that Spark calls with all rows of some leads: events, and recorded journeys."""

    def fold(events: Any, journeys: Any) -> Any:
        import pandas as pd  # pyright: ignore[reportMissingImports]

        tally = tally_of(*told_to(job), events.to_dict("records"), journeys.to_dict("records"))
        return pd.DataFrame({"tally": [msgspec.json.encode(tally)]})

    return fold


def folded(spark: Any, directory: str, job: Job, *, by_lead: bool) -> Tally:
    """Fold an export on `spark`; gives the sum over all leads."""
    from pyspark.sql import functions as f  # pyright: ignore[reportMissingImports]

    def table(name: str) -> Any:
        found = spark.read.parquet(f"{directory}/{name}")
        for column in ("time", "recorded_at"):
            if column in found.columns:  # exact, and past what pandas can hold
                found = found.withColumn(column, f.unix_micros(column))
        groups = max(1, job.exported.leads // LEADS_A_GROUP)
        # A lead's rows stay together either way; a call for each lead costs more than its fold.
        bucket = f.pmod(f.xxhash64("lead_id"), f.lit(groups))
        return found.withColumn("together", f.col("lead_id") if by_lead else bucket).groupBy(
            "together"
        )

    parts = table("events").cogroup(table("journeys")).applyInPandas(
        folding(msgspec.json.encode(job)), "tally binary"
    )  # fmt: skip
    whole = Tally()
    for row in parts.toLocalIterator():
        whole.add(msgspec.json.decode(bytes(row["tally"]), type=Tally))
    return whole


def main() -> None:
    """Run it."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("export", help="directory of `baton events export`")
    reader.add_argument("candidate", type=Path, help="the playbook to try")
    reader.add_argument("--team", type=Path, required=True, help="the roster whose hours count")
    reader.add_argument("--since", default="", help="90d, or 2026-09-01")
    reader.add_argument("--until", default="", help="when the story ends; now, by itself")
    reader.add_argument("--master", default="", help="by itself the one of spark-submit")
    reader.add_argument("--by-lead", action="store_true", help="a group of rows a lead")
    reader.add_argument("--json", type=Path, required=True, help="write the result here")
    asked = reader.parse_args()

    from pyspark.sql import SparkSession  # pyright: ignore[reportMissingImports]

    until = since_of(asked.until, datetime.now(UTC)) or datetime.now(UTC)
    job = Job(
        asked.candidate.read_text(encoding="utf-8"), str(asked.candidate),
        hours_of(load_team(asked.team)), until, since_of(asked.since, until),
        read_about(Path(asked.export)),
    )  # fmt: skip
    candidate = candidate_of(job)
    building = SparkSession.builder.appName("baton simulation")
    spark = (building.master(asked.master) if asked.master else building).getOrCreate()
    try:
        tally = folded(spark, asked.export, job, by_lead=asked.by_lead)
    finally:
        spark.stop()
    asked.json.write_bytes(encoded(report(tally, candidate, until, job.since)))
    print(f"{tally.events:,} events of {tally.leads:,} leads; {tally.differing:,} journeys differ")


if __name__ == "__main__":
    main()
