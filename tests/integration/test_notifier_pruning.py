"""What is long over is forgotten; what still waits, or is still to be sent, is not."""

from __future__ import annotations

import uuid
from datetime import timedelta

from services.contracts.audit import Actor
from services.contracts.handoffs import OFFERED
from services.notifier import attention, store
from services.notifier.pruning import OVER_KEEP, Pruner
from tests.integration.test_notifier_attention import Post, ae, post
from tests.integration.test_notifier_handoffs import NOW, accepted, change

__all__ = ["post"]


async def test_answered_handoffs_are_forgotten_and_open_ones_are_not(post: Post) -> None:
    answered, open_, fresh = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    post.clock.moment = NOW
    await post.tell(accepted(answered), change(open_, OFFERED, NOW))
    post.clock.moment = NOW + OVER_KEEP + timedelta(days=1)
    await post.tell(accepted(fresh, after_s=OVER_KEEP.total_seconds()))
    pruner = Pruner(post.pool, 7 * 86_400, 90 * 86_400, post.clock.now)
    assert await pruner.prune() == 1
    left = {r["id"] for r in await post.pool.fetch("SELECT id FROM notifier.handoffs")}
    assert left == {open_, fresh}


async def test_escalations_and_mutes_that_ended_are_forgotten(post: Post) -> None:
    now = post.clock.now()
    for person, until in (("ben", now + timedelta(days=1)), ("lim", None)):
        await attention.mute(post.pool, person, uuid.uuid4(), until, Actor(person), now)
    await post.tell(ae("ben"), ae("lim"), ae("kim"))
    _, lim, ben = await post.alerts()
    await store.acknowledge(post.pool, uuid.UUID(ben["id"]), Actor("ben"), now)
    post.clock.pass_(1800)
    assert await post.escalate() == 2  # that of Lim to Kim, that of Kim to Sofia
    await store.acknowledge(post.pool, uuid.UUID(lim["id"]), Actor("lim"), now)
    post.clock.pass_(OVER_KEEP.total_seconds() + 2 * 86_400)
    pruner = Pruner(post.pool, 7 * 86_400, 90 * 86_400, post.clock.now)
    assert await pruner.prune() == 2, "Ben's mute and escalation; Lim's climbed alert is to be sent"
    await post.settle()
    assert await pruner.prune() == 1
    assert await post.pool.fetchval("SELECT count(*) FROM notifier.escalations") == 1
    assert await post.pool.fetchval("SELECT person_id FROM notifier.mutes") == "lim"
