"""What is done in rounds: at once again while there is more, seldomer while it fails, ended in good order."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from services.contracts import rounds
from services.contracts.rounds import Round


async def test_a_round_comes_at_once_while_there_is_more_and_rests_after() -> None:
    left, done = [True, True, False], asyncio.Event()

    async def work() -> bool:
        more = left.pop(0)
        if not left:
            done.set()
        return more

    it = Round("sweeper", work, 3600)
    it.start()
    async with asyncio.timeout(5):
        await done.wait()
    await asyncio.sleep(0)
    assert left == [], "it rests: a fourth round would have nothing to take"
    async with asyncio.timeout(5):
        await it.stop()  # the rest is not waited for


async def test_what_fails_is_counted_each_time_and_logged_once_a_kind() -> None:
    failures: list[BaseException] = [OSError("a"), OSError("b"), ValueError("c")]
    heard: list[tuple[str, str]] = []
    healed = asyncio.Event()

    async def work() -> bool:
        if failures:
            raise failures.pop(0)
        healed.set()
        return False

    it = Round("sweeper", work, 0.001, lambda name, error: heard.append((name, str(error))))
    with capture_logs() as lines:
        it.start()
        async with asyncio.timeout(5):
            await healed.wait()
        await it.stop()
    assert heard == [("sweeper", "a"), ("sweeper", "b"), ("sweeper", "c")]
    assert [(e["event"], e["reason"]) for e in lines] == [
        ("sweeper.failed", "OSError"),
        ("sweeper.failed", "ValueError"),
    ]


async def test_the_round_in_hand_is_ended_before_it_stops() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> bool:
        begun.set()
        await asyncio.sleep(0.01)
        ended.set()
        return True

    it = Round("sweeper", work, 3600)
    it.start()
    await begun.wait()
    await it.stop()
    assert ended.is_set()
    assert rounds.STOP_WITHIN_S > 1
