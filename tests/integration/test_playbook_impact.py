"""What a change means for the leads of now, counted, is what judging each of them by hand gives."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_diff import diff
from services.stage_service.playbook_impact import Impact
from services.stage_service.playbook_impact_words import impact_lines, with_impact
from services.stage_service.reads_impact import impact_of
from tests.integration.test_simulation import run_under, stories
from tests.integration.wired import event

SALES = (Path(__file__).parents[2] / "playbooks/sales.yaml").read_text()
NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY_S = 86_400.0


def parsed(text: str) -> Playbook:
    return parse_playbook(text, "sales.yaml")


async def impact_on(url: str, text: str, before: str = SALES) -> Impact:
    pool = await asyncpg.create_pool(url, min_size=1, max_size=2)
    try:
        return await impact_of(pool, replace(parsed(before), version=1), parsed(text), NOW)
    finally:
        await pool.close()


class Plain:
    """The leads as the tables have them (not the packed states), for judging without Baton's own code."""

    def __init__(
        self, rows: list[asyncpg.Record], signals: dict[str, list[tuple[str, datetime]]]
    ) -> None:
        self.rows = [
            dict(r)
            | {
                "attributes": msgspec.json.decode(r["attributes"]),
                "held": msgspec.json.decode(r["held"]),
            }
            for r in rows
        ]
        self.signals = signals

    def of(self, stage: str) -> list[dict[str, Any]]:
        """Those that stand in `stage`."""
        return [r for r in self.rows if r["stage"] == stage]


async def plain(url: str) -> Plain:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            """SELECT j.lead_id::text, j.stage, j.held, l.attributes, l.email,
                 (SELECT rule FROM stage.transitions t WHERE t.journey_id = j.id
                  AND t.replaced_by IS NULL ORDER BY sequence DESC LIMIT 1) AS rule
               FROM stage.journeys j JOIN stage.leads l ON l.id = j.lead_id"""
        )
        events: dict[str, list[tuple[str, datetime]]] = {}
        for id, type, time in await connection.fetch(
            "SELECT lead_id::text, type, time FROM stage.events ORDER BY time, source, id"
        ):
            events.setdefault(id, []).append((type, time))
        return Plain(rows, events)
    finally:
        await connection.close()


POINTS = {
    "page.viewed": (2, 7, 20), "email.clicked": (5, 14, 25), "content.downloaded": (10, 21, 30),
    "form.submitted": (12, 21, 36), "webinar.attended": (15, 21, 30), "demo.requested": (30, 30, 45),
    "meeting.held": (20, 30, 40),
}  # fmt: skip


def total(of: Plain, row: dict[str, Any], large: int = 25) -> int:
    """A lead's score at NOW, from its events, as docs/playbook.md says."""
    left: dict[str, tuple[float, datetime]] = {}
    for type, time in of.signals[row["lead_id"]]:
        if type in POINTS:
            points, half, cap = POINTS[type]
            before, then = left.get(type, (0.0, time))
            decayed = before * 0.5 ** ((time - then).total_seconds() / (half * DAY_S))
            left[type] = (min(decayed + points, cap), time)
    intent = sum(
        points * 0.5 ** ((NOW - then).total_seconds() / (POINTS[type][1] * DAY_S))
        for type, (points, then) in left.items()
    )
    employees = row["attributes"].get("employees", 0)
    fit = large if employees >= 200 else 15 if employees >= 50 else 0
    return int(intent + 0.5) + fit


OPEN = ("lead", "mql", "sql", "proposal", "closing")


async def test_a_gate_on_the_present_stage(database_url: str) -> None:
    await run_under(database_url, SALES, stories(150))
    new = SALES.replace(
        "    responsible: [lead_agent]\n    alerts",
        "    responsible: [lead_agent]\n    gate: {require: [lead.phone, lead.employees]}\n    alerts",
        1,
    )
    found = await impact_on(database_url, new)
    there = await plain(database_url)
    [stage] = found.stages
    mql = there.of("mql")
    lacking = [
        r for r in mql if not r["attributes"].get("phone") or not r["attributes"].get("employees")
    ]
    assert len(lacking) > 5
    assert (stage.stage, stage.journeys, stage.no_longer) == ("mql", len(mql), len(lacking))
    assert stage.missing == {"lead.phone": sum(not r["attributes"].get("phone") for r in mql)}
    assert (found.leads, found.open) == (150, sum(r["stage"] in OPEN for r in there.rows))
    told = with_impact(
        diff(parsed(SALES), parsed(new)), found, {"mql": "Lead Qualification"}
    ).changes[0]
    assert told.sentence.startswith("Lead Qualification (mql) now needs the lead's phone")
    assert (
        told.impact
        == f"{len(lacking)} open journeys no longer qualify, of {len(mql)} in Lead Qualification."
    )


async def test_a_rule_with_another_threshold(database_url: str) -> None:
    """Whom it brought and who no longer qualifies, who has the score, and who moves at the next event."""
    at = NOW - timedelta(minutes=10)
    fresh = [
        event(
            "lead.created",
            (NOW - timedelta(hours=1) - event("x", 0, "a@b.de").time).total_seconds() / 60,
            f"new{n}@example.com",
            employees=size,
        )
        for n, size in enumerate((10, 60, 400) * 6)
    ]
    begin = event("x", 0, "a@b.de").time
    for n in range(18):
        for k, type in enumerate(
            ("webinar.attended", "form.submitted", "content.downloaded")[: n % 4]
        ):
            fresh.append(event(type, (at - begin).total_seconds() / 60 + k, f"new{n}@example.com"))
    await run_under(
        database_url,
        SALES.replace('score.total >= 60"', 'score.total >= 40"'),
        [*stories(120), *fresh],
    )
    before = SALES.replace('score.total >= 60"', 'score.total >= 40"')
    after = before.replace('score.total >= 40"', 'score.total >= 30"').replace(
        "points: 25", "points: 5"
    )
    found = await impact_on(database_url, after, before)
    there = await plain(database_url)
    brought = [r for r in there.of("mql") if r["rule"] == "score-reached"]
    was = [total(there, r) >= 40 for r in brought]
    now = [total(there, r, large=5) >= 30 for r in brought]
    [rule] = found.rules
    assert (rule.rule, rule.stage, rule.brought) == ("score-reached", "mql", len(brought))
    assert (rule.met_before, rule.met_after) == (sum(was), sum(now))
    assert rule.no_longer == sum(a and not b for a, b in zip(was, now, strict=True))
    assert rule.no_longer > 0
    ours = [r for r in there.rows if r["stage"] in OPEN]
    [threshold] = found.thresholds
    assert (threshold.before, threshold.after) == (">= 40", ">= 30")
    assert threshold.reached_before == sum(total(there, r) >= 40 for r in ours)
    assert threshold.reached_after == sum(total(there, r, large=5) >= 30 for r in ours)
    assert threshold.gained - threshold.lost == threshold.reached_after - threshold.reached_before
    # At the next event fit is as it was judged last.
    moving = [r for r in there.of("lead") if total(there, r) >= 30]
    [move] = found.next_moves
    assert moving
    assert (move.from_stage, move.to_stage, move.before, move.after) == (
        "lead",
        "mql",
        0,
        len(moving),
    )
    assert f"{len(moving)} open journey" in impact_lines(found, {})[0]


async def test_held_moves_that_a_weaker_gate_lets_go(database_url: str) -> None:
    strict = SALES.replace(
        "    responsible: [ae]\n    alerts: [ae]",
        "    responsible: [ae]\n    gate: {require: [lead.budget, lead.employees]}\n    alerts: [ae]",
        1,
    )
    await run_under(database_url, strict, stories(150))
    there = await plain(database_url)
    waiting = [r for r in there.rows if r["held"]]
    assert len(waiting) > 5
    weaker = strict.replace("[lead.budget, lead.employees]", "[lead.employees]")
    found = await impact_on(database_url, weaker, strict)
    assert (found.held.journeys, found.held.released_before) == (len(waiting), 0)
    assert found.held.released_after == sum(bool(r["attributes"].get("employees")) for r in waiting)
    assert sum(m.after for m in found.next_moves) >= found.held.released_after
    [stage] = found.stages
    assert stage.now_met == 0 or stage.journeys >= stage.now_met


async def test_a_stage_that_is_gone(database_url: str) -> None:
    """All that stand in it are counted, and a renamed stage keeps its gate and its next moves."""
    await run_under(database_url, SALES, stories(100))
    there = await plain(database_url)
    renamed = (
        SALES.replace("proposal]", "offer]")
        .replace("proposal,", "offer,")
        .replace("  proposal:\n", "  offer:\n")
        .replace("to: proposal\n", "to: offer\n")
        + "\nmigrate: {proposal: offer}\n"
    )
    found = await impact_on(database_url, renamed)
    [gone] = found.gone
    assert (gone.stage, gone.to, gone.journeys) == ("proposal", "offer", len(there.of("proposal")))
    assert gone.journeys > 3
    told = with_impact(diff(parsed(SALES), parsed(renamed)), found, {})
    [change] = [c for c in told.changes if c.kind == "stage-renamed"]
    assert change.impact == f"{gone.journeys} journeys stand there today."
    # The name alone is another: no rule is told as changed.
    assert len(told.changes) == 1
    homeless = await impact_on(database_url, renamed.partition("\nmigrate")[0])
    assert homeless.gone[0].to is None


async def test_who_did_not_qualify_before_is_not_told_again(database_url: str) -> None:
    await run_under(database_url, SALES, stories(60))
    mql = "    responsible: [lead_agent]\n"
    gated = SALES.replace(mql, f"{mql}    gate: {{require: [lead.phone]}}\n", 1)
    stricter = SALES.replace(mql, f"{mql}    gate: {{require: [lead.phone, lead.budget]}}\n", 1)
    [stage] = (await impact_on(database_url, stricter, gated)).stages
    count = len((await plain(database_url)).of("mql"))
    assert count > 0
    assert (stage.unmet_before, stage.unmet_after, stage.no_longer) == (count, count, 0)


async def test_nothing_is_written_and_a_comment_changes_nothing(database_url: str) -> None:
    await run_under(database_url, SALES, stories(40))
    found = await impact_on(database_url, SALES + "\n# a word\n")
    assert found.stages == found.gone == found.rules == found.thresholds == []
    assert all(m.before == m.after for m in found.next_moves)
    assert impact_lines(found, {})[0].startswith("None of ")


LEADS = int(os.environ.get("BATON_IMPACT_LEADS", "20000"))


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_a_million_leads_take_no_more_memory(database_url: str, record_property: Any) -> None:
    """BATON_IMPACT_LEADS=1000000 is its full size."""
    import resource

    await run_under(database_url, SALES, stories(100))
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            """INSERT INTO stage.leads (id, email, external_ids, attributes, fit, intent, state,
                 first_seen_at, last_seen_at, created_at, updated_at)
               SELECT gen_random_uuid(), NULL, '{}', '{}', 0, 0, l.state, now(), now(), now(), now()
               FROM generate_series(1, $1 / 100) CROSS JOIN (SELECT state FROM stage.leads) l""",
            LEADS,
        )
        await connection.execute("VACUUM ANALYZE stage.leads")
    finally:
        await connection.close()
    after = SALES.replace('score.total >= 60"', 'score.total >= 50"')
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = datetime.now(UTC)
    found = await impact_on(database_url, after)
    took_s = (datetime.now(UTC) - started).total_seconds()
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    record_property("measured", f"{found.leads} leads in {took_s:.1f} s, {grown_mb:.0f} MB more")
    assert found.leads == LEADS // 100 * 100 + 100
    assert grown_mb < 64
