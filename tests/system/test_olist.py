"""A real company's funnel, sent shuffled and with repeats, comes out right on Kafka.

Olist's public data: 8,000 marketing qualified leads and 842 of them won. What the funnel must say is
computed from the CSV files by DuckDB, not by us.
"""

from __future__ import annotations

import csv
import json
import random
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integration.kafka_broker import KafkaBroker
from tests.system.running import RunningBaton, until

pytestmark = [pytest.mark.long, pytest.mark.kafka, pytest.mark.real_data, pytest.mark.timeout(600)]

LEADS = "olist_marketing_qualified_leads_dataset.csv"
DEALS = "olist_closed_deals_dataset.csv"
DAY_S = 86_400


def olist_events(directory: Path) -> list[dict[str, Any]]:
    """The two files as CloudEvents: first contact, and won."""
    events: list[dict[str, Any]] = []
    with (directory / LEADS).open() as file:
        for row in csv.DictReader(file):
            events.append({
                "specversion": "1.0", "id": f"mql-{row['mql_id']}", "source": "/olist/leads",
                "type": "lead.marketing_qualified",
                "time": f"{row['first_contact_date']}T00:00:00Z",
                "data": {
                    "external_ids": {"olist": row["mql_id"]},
                    "landing_page_id": row["landing_page_id"], "origin": row["origin"] or None,
                },
            })  # fmt: skip
    with (directory / DEALS).open() as file:
        for row in csv.DictReader(file):
            about = {k: v or None for k, v in row.items() if k not in ("mql_id", "won_date")}
            events.append({
                "specversion": "1.0", "id": f"won-{row['mql_id']}", "source": "/olist/deals",
                "type": "deal.won", "time": f"{row['won_date'].replace(' ', 'T')}Z",
                "data": {"external_ids": {"olist": row["mql_id"]}, **about},
            })  # fmt: skip
    return events


@pytest.fixture(scope="module")
def olist(shared_data: Path, kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Baton on Kafka with all Olist events, shuffled, every tenth twice."""
    directory = shared_data / "olist"
    events = olist_events(directory)
    chance = random.Random(20180101)
    events += chance.sample(events, len(events) // 10)
    chance.shuffle(events)
    baton = RunningBaton(
        tmp_path_factory.mktemp("olist") / "data",
        {"BATON_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers},
    ).start()
    try:
        results = baton.send(*events)
        statuses = Counter(r["status"] for r in results)
        assert statuses == {"applied": 8842, "duplicate": 884}
        until(lambda: len(baton.alerts(role="csm")) >= 842, "842 CSM alerts", 120)
        yield baton, directory
    finally:
        baton.stop()


def _sql(directory: Path, query: str) -> list[Any]:
    """Ask DuckDB about the CSV files, in a process of its own: it tells of leaks when it ends."""
    text = query.format(
        leads=f"read_csv('{directory / LEADS}', header=true, all_varchar=true)",
        deals=f"read_csv('{directory / DEALS}', header=true, all_varchar=true)",
    )
    code = "import duckdb, json, sys; print(json.dumps(duckdb.sql(sys.argv[1]).fetchall()))"
    done = subprocess.run(
        [sys.executable, "-c", code, text], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_every_lead_and_every_deal_is_there_once(olist: Any) -> None:
    """8,000 leads, 842 in closed_won, 842 CSM alerts, one a transition and person."""
    baton, _ = olist
    stages = {s["stage"]: s for s in baton.get("/v1/funnel")["stages"]}
    assert stages["lead"]["reached"] == 8000
    assert stages["mql"]["reached"] == 8000
    assert stages["closed_won"]["current"] == stages["closed_won"]["reached"] == 842
    alerts = baton.alerts(role="csm")
    assert len(alerts) == 842
    assert len({(a["transition_id"], a["person"]["id"]) for a in alerts}) == 842
    assert len({a["lead_id"] for a in alerts}) == 842
    assert "clean" in baton.verify()


def test_skipped_stages_count_as_passed(olist: Any) -> None:
    """Olist records nothing between qualified and won: sql, proposal, closing are skipped."""
    baton, _ = olist
    stages = {s["stage"]: s for s in baton.get("/v1/funnel")["stages"]}
    for key in ("sql", "proposal", "closing"):
        assert (stages[key]["reached"], stages[key]["skipped"], stages[key]["current"]) == (
            842,
            842,
            0,
        )


def test_rate_by_origin_is_what_the_files_say(olist: Any) -> None:
    """Won per origin equals a computation straight from the CSV files."""
    baton, directory = olist
    expected = {
        origin: (leads, won)
        for origin, leads, won in _sql(directory,
            "SELECT coalesce(l.origin, '(unknown)'), count(*), count(d.mql_id) "
            "FROM {leads} l LEFT JOIN {deals} d USING (mql_id) GROUP BY 1",
        )
    }  # fmt: skip
    groups = baton.get("/v1/funnel", by="origin")["groups"]
    got = {g["value"]: (g["stages"][0]["reached"], g["stages"][-1]["reached"]) for g in groups}
    assert got == expected
    assert sum(won for _, won in got.values()) == 842


def test_days_to_close(olist: Any) -> None:
    """The median from first contact to won is 14.65 days, over all 842 deals."""
    baton, directory = olist
    rows = _sql(directory,
        "SELECT epoch(d.won_date::timestamp - l.first_contact_date::timestamp) "
        "FROM {leads} l JOIN {deals} d USING (mql_id)",
    )  # fmt: skip
    seconds = [r[0] for r in rows]
    pair = baton.get("/v1/funnel/durations", from_stage="mql", to_stage="closed_won")
    assert pair["count"] == len(seconds) == 842
    assert pair["median_seconds"] == pytest.approx(statistics.median(seconds))
    assert round(pair["median_seconds"] / DAY_S, 2) == 14.65


def test_a_deal_won_before_its_first_contact(olist: Any) -> None:
    """One deal was won before its lead's first contact: the timeline tells it in the order of time."""
    baton, directory = olist
    [(strange, won, contact)] = _sql(directory,
        "SELECT mql_id, won_date, first_contact_date FROM {leads} l JOIN {deals} d USING (mql_id) "
        "WHERE d.won_date::timestamp < l.first_contact_date::timestamp",
    )  # fmt: skip
    [result] = baton.send({
        "specversion": "1.0", "id": f"won-{strange}", "source": "/olist/deals", "type": "deal.won",
        "data": {"external_ids": {"olist": strange}},
    })  # fmt: skip
    assert result["status"] == "duplicate"
    items = baton.get(f"/v1/leads/{result['lead_id']}/timeline")["items"]
    held = [i for i in items if i["kind"] in ("transition", "correction") and not i["replaced_by"]]
    # It went straight from the first stage to won, at the moment it was won; the first contact, told
    # by its own time, came after and moved nothing.
    assert [(i["from"], i["to"]) for i in held] == [("lead", "closed_won")]
    assert held[0]["occurred_at"].startswith(won.split()[0])
    assert held[0]["skipped"] == ["mql", "sql", "proposal", "closing"]
    types = [i["type"] for i in items if i["kind"] == "event"]
    assert types == ["deal.won", "lead.marketing_qualified"]
    assert any(i["occurred_at"].startswith(contact) for i in items if i["kind"] == "event")


async def test_every_transition_is_on_kafka_in_order(olist: Any, kafka: KafkaBroker) -> None:
    """Each record of the feed is on the topic; per lead in the order of its sequence."""
    from aiokafka import AIOKafkaConsumer

    baton, _ = olist
    feed = baton.feed()
    consumer = AIOKafkaConsumer(
        "baton.transitions", bootstrap_servers=kafka.bootstrap_servers,
        auto_offset_reset="earliest", enable_auto_commit=False,
    )  # fmt: skip
    await consumer.start()
    try:
        seen: dict[str, int] = {}
        got: set[str] = set()
        while len(got) < len(feed):
            batches = await consumer.getmany(timeout_ms=10_000)
            assert batches, f"{len(got)} of {len(feed)} messages on the topic"
            for records in batches.values():
                for record in records:
                    headers = dict(record.headers)
                    data = json.loads(record.value)
                    assert headers["ce_specversion"] == b"1.0"
                    assert record.key.decode() == data["lead"]["id"]
                    if (
                        headers["ce_id"].decode() not in got
                    ):  # at least once: repeats are dropped by id
                        journey = data["journey"]["id"]
                        assert data["sequence"] == seen.get(journey, 0) + 1
                        seen[journey] = data["sequence"]
                    got.add(headers["ce_id"].decode())
    finally:
        await consumer.stop()
    assert got == {i["transition_id"] for i in feed}
