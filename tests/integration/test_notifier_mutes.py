"""A lead that somebody has muted: nothing of it is escalated for want of their answer, and it says why."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from services.contracts.audit import Actor
from services.notifier import attention
from tests.integration.test_notifier_attention import Post, ae, of, post

__all__ = ["post"]


async def mute(post: Post, person: str, lead: str, seconds: float | None = None) -> None:
    """Mute a lead for somebody, for ever or for so long."""
    now = post.clock.now()
    until = now + timedelta(seconds=seconds) if seconds is not None else None
    await attention.mute(post.pool, person, uuid.UUID(lead), until, Actor(person), now)


async def escalation(post: Post, lead: str) -> dict[str, Any]:
    """The escalation of the newest alert about a lead, as its record shows it."""
    return next(a for a in await post.alerts() if a["lead_id"] == lead)["escalation"]


async def test_a_mute_ends_what_climbs_for_that_person_and_lead_alone(post: Post) -> None:
    muted, other = str(uuid.uuid4()), str(uuid.uuid4())
    await post.tell(ae("ben", lead=of(muted)), ae("ben", lead=of(other)), ae("lim", lead=of(muted)))
    await mute(post, "ben", muted)
    by_person = {(a["lead_id"], a["addressee_id"]): a["escalation"] for a in await post.alerts()}
    assert by_person[muted, "ben"]["why"] == "muted by ben"
    assert by_person[muted, "ben"]["due_at"] is None
    assert by_person[muted, "ben"]["ended_at"] is not None
    assert [by_person[key]["ended_at"] for key in ((muted, "lim"), (other, "ben"))] == [None, None]
    post.clock.pass_(1800)
    assert await post.escalate() == 2


async def test_what_comes_while_muted_does_not_climb_and_after_it_does_again(post: Post) -> None:
    lead = str(uuid.uuid4())
    await mute(post, "ben", lead, 3600)
    await post.tell(ae("ben", lead=of(lead)))
    assert (await escalation(post, lead))["ended_at"] is None
    post.clock.pass_(1800)
    assert await post.escalate() == 1
    assert len(await post.alerts()) == 1, "nobody else heard of it"
    assert (await escalation(post, lead))["why"] == "muted by ben"
    post.clock.pass_(1801)
    await post.tell(ae("ben", lead=of(lead)))
    post.clock.pass_(1800)
    assert await post.escalate() == 1
    climbed, first, _ = await post.alerts()
    assert (climbed["addressee_id"], climbed["escalated_from"]) == ("kim", first["id"])
    assert first["escalation"]["told"] == ["kim"]
