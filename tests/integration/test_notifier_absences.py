"""Escalation through nights and vacations: it waits for who sleeps, and goes past who is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from services.contracts.audit import Actor
from services.notifier import store
from services.notifier.roster import Roster
from tests.integration.test_notifier_attention import Post, ae

TEAM = """
people:
  - {id: ina, name: Ina Box, roles: [ae], time_zone: Europe/Berlin, channels: [inbox],
     working_hours: "09:00-17:00"}
  - id: vic
    name: Vic Vacation
    roles: [ae]
    email: v@baton.example
    channels: [inbox, email]
    working_hours: "09:00-17:00"
    away: [{from: 2026-03-02, until: 2026-03-13, stand_in: sam}]
  - {id: sam, name: Sam Stand, roles: [ae], email: s@baton.example, channels: [email],
     working_hours: "09:00-17:00"}
  - id: kim
    name: Kim Lead
    roles: [marketing]
    leads: [ae]
    email: k@baton.example
    channels: [email]
    working_hours: "09:00-17:00"
    away: [{from: 2026-03-02, until: 2026-03-13}]
  - {id: sofia, name: Sofia Top, roles: [sales_leadership], channels: [email],
     email: sofia@baton.example, working_hours: "09:00-17:00"}
"""
MORNING = datetime(2026, 3, 4, 10, tzinfo=UTC)
"""A Wednesday; Vic and Kim are away until Friday of the next week."""


@pytest.fixture
async def post(database_url: str, tmp_path: Path) -> AsyncIterator[Post]:
    """A notifier on an empty database; alerts for account executives wait 30 minutes."""
    file = tmp_path / "team.yaml"
    file.write_text(TEAM)
    async with asyncpg.create_pool(database_url, min_size=0, max_size=8) as pool:
        post = Post(pool, Roster(file))
        post.clock.moment = MORNING
        yield post
        post.wire.close()


async def told(post: Post) -> list[str]:
    """Who was told by escalation, in turn."""
    return [a["addressee_id"] for a in reversed(await post.alerts()) if a["kind"] == "escalation"]


async def test_who_reads_only_the_inbox_is_not_escalated_for_sleeping(post: Post) -> None:
    post.clock.moment = datetime(2026, 3, 4, 22, tzinfo=UTC)  # 23:00 in Berlin
    await post.tell(ae("ina"))
    post.clock.moment = datetime(2026, 3, 5, 8, 29, 59, tzinfo=UTC)
    assert await post.escalate() == 0
    post.clock.moment = datetime(2026, 3, 5, 8, 30, tzinfo=UTC)
    assert await post.escalate() == 1


async def test_an_alert_of_somebody_on_vacation_climbs_to_the_stand_in_in_time(post: Post) -> None:
    """It is held for Vic until the vacation ends; somebody else hears of it today."""
    await post.tell(ae("vic"))
    post.clock.pass_(1799)
    assert await post.escalate() == 0
    post.clock.pass_(1)
    assert await post.escalate() == 1
    assert await told(post) == ["sam"]
    await post.settle()
    assert [person for person, _ in post.letters] == ["sam"]


async def test_a_lead_on_vacation_does_not_hold_up_the_ladder(post: Post) -> None:
    await post.tell(ae("sam"))
    post.clock.pass_(1800)
    assert await post.escalate() == 1
    assert await told(post) == ["sofia"]
    await post.settle()
    assert [person for person, _ in post.letters] == ["sam", "sofia"]


async def test_where_everybody_is_away_they_are_told_all_the_same(
    post: Post, tmp_path: Path
) -> None:
    (tmp_path / "team.yaml").write_text(
        TEAM.replace("roles: [sales_leadership]", "roles: [csm]").replace("stand_in: sam", "")
    )
    await post.tell(ae("vic"))
    post.clock.pass_(1800)
    assert await post.escalate() == 1
    assert await told(post) == ["kim"]


async def test_an_escalation_that_waits_is_not_sent_once_the_alert_is_acknowledged(
    post: Post,
) -> None:
    post.clock.moment = datetime(2026, 3, 4, 16, 45, tzinfo=UTC)
    await post.tell(ae("sam"))
    await post.settle()
    post.clock.pass_(1800)
    assert await post.escalate() == 1  # at 17:15: it waits for Sofia's morning
    own = (await post.alerts())[-1]
    await store.acknowledge(post.pool, own["id"], Actor("sam"), post.clock.now())
    post.clock.moment = datetime(2026, 3, 5, 9, tzinfo=UTC)
    await post.settle()
    assert [person for person, _ in post.letters] == ["sam"]
    escalation = (await post.alerts())[0]
    assert escalation["status"] == "suppressed"
    assert {d["reason"] for d in escalation["deliveries"]} == {"acknowledged"}
