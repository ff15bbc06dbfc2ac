"""Versions on real PostgreSQL: published by whoever was first, never changed, activated at their time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.contracts.yaml_source import SourceError
from services.stage_service import versions
from services.stage_service.activation import Activation
from services.stage_service.errors import (
    ConflictError,
    NotFoundError,
    PlaybookChangedError,
    PlaybookUnchangedError,
)
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_diff import diff
from services.stage_service.shelf import Shelf

SALES = (Path(__file__).parents[2] / "playbooks/sales.yaml").read_text()
RENAMED = re.sub(r"\bsql\b", "discovery", SALES)
NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)


def sales(change: str = "", text: str = SALES) -> Playbook:
    """The sales playbook, with a line of comment that makes it another text."""
    return parse_playbook(f"{text}\n# {change}\n" if change else text, "sales.yaml")


class Shelved:
    """A shelf of one process."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self.pool, self.shelf = pool, Shelf()

    async def publish(self, playbook: Playbook, expected: int | None, **more: Any) -> int:
        """Publish, and give the version's number."""
        done = await self.shelf.publish(
            self.pool, playbook, author="ada", message="because", expected=expected, **more
        )
        return done.version

    async def schedule(
        self, playbook: Playbook, at: datetime, expected: int | None, **more: Any
    ) -> str:
        """Schedule, and give the id."""
        done = await self.shelf.schedule(
            self.pool, playbook, author="ada", message="at night", activate_at=at, expected=expected,
            **more,
        )  # fmt: skip
        return done.id

    async def states(self) -> dict[str, tuple[str, int | None]]:
        """What became of each that was scheduled: (state, version)."""
        return {s.id: (s.state, s.version) for s in await self.shelf.scheduled(self.pool)}

    async def numbers(self) -> list[int]:
        """The versions, the newest first."""
        return [v.version for v in await self.shelf.versions(self.pool, "sales")]


@asynccontextmanager
async def shelved(url: str) -> AsyncIterator[Shelved]:
    pool = await asyncpg.create_pool(url, min_size=2, max_size=4)
    try:
        it = Shelved(pool)
        await it.shelf.load(pool)
        yield it
    finally:
        await pool.close()


@pytest.fixture
async def it(database_url: str) -> AsyncIterator[Shelved]:
    async with shelved(database_url) as one:
        await one.shelf.publish_file(one.pool, sales())
        yield one


async def test_what_a_version_keeps(it: Shelved) -> None:
    diff = {"rules": {"changed": ["score-reached"]}}
    assert await it.publish(sales("two"), 1, diff=diff) == 2
    newest, first = await it.shelf.versions(it.pool, "sales")
    assert newest == await it.shelf.version_row(it.pool, "sales", 2)
    assert (newest.author, newest.message, newest.diff, newest.restores) == (
        "ada",
        "because",
        diff,
        None,
    )
    assert newest.source == sales("two").source
    assert (first.author, first.message, first.diff, first.migrate) == (None, None, None, {})
    assert first.epoch < newest.epoch == it.shelf.epoch
    assert it.shelf.playbooks["sales"].version == 2
    with pytest.raises(NotFoundError, match="no version 3"):
        await it.shelf.version_row(it.pool, "sales", 3)
    assert await it.shelf.versions(it.pool, "nothing") == []


async def test_of_two_who_publish_at_once_one_wins(database_url: str, it: Shelved) -> None:
    """Both looked at version 1: the second has to look again (If-Match)."""
    async with shelved(database_url) as other:
        done = await asyncio.gather(
            it.publish(sales("mine"), 1), other.publish(sales("theirs"), 1), return_exceptions=True
        )
        assert sorted(map(str, done))[0] == "2"
        [refused] = [d for d in done if isinstance(d, PlaybookChangedError)]
        assert (refused.extra, refused.value) == ({"active": 2}, 1)
        assert await it.numbers() == [2, 1]


@pytest.mark.parametrize("expected", [0, 2])
async def test_another_version_than_expected_is_a_conflict(it: Shelved, expected: int) -> None:
    with pytest.raises(PlaybookChangedError, match=f"version 1 .* is active, not {expected}"):
        await it.publish(sales("x"), expected)
    assert await it.numbers() == [1]


async def test_the_first_of_a_name_is_expected_to_be_none(it: Shelved) -> None:
    other = parse_playbook(SALES.replace("name: sales", "name: partners"), "p.yaml")
    with pytest.raises(PlaybookChangedError):
        await it.publish(other, 1)
    assert await it.publish(other, 0) == 1


async def test_the_same_text_again_is_nothing_to_publish(it: Shelved) -> None:
    with pytest.raises(PlaybookUnchangedError):
        await it.publish(sales(), None)


async def test_rolling_back_is_a_new_version_with_the_old_text(it: Shelved) -> None:
    await it.publish(sales("two"), 1)
    assert await it.publish(sales(), 2, restores=1) == 3
    newest = await it.shelf.version_row(it.pool, "sales", 3)
    first = await it.shelf.version_row(it.pool, "sales", 1)
    assert (newest.digest, newest.restores) == (first.digest, 1)
    assert newest.epoch > first.epoch
    assert await it.shelf.publish_file(it.pool, sales("two")) == 2, "an old file does not come back"
    assert await it.numbers() == [3, 2, 1]


async def test_without_migrate_a_stage_cannot_go_and_the_active_version_runs_on(
    it: Shelved,
) -> None:
    """I10, however it comes: published, scheduled, or from a file at the start."""
    gone = parse_playbook(RENAMED, "sales.yaml")
    for way in (
        it.publish(gone, 1),
        it.schedule(gone, NOW, 1),
        it.shelf.publish_file(it.pool, gone),
    ):
        with pytest.raises(
            SourceError, match=r"sales\.yaml:\d+:1: stage 'sql' of version 1 is gone"
        ):
            await way
    assert it.shelf.playbooks["sales"].version == 1
    assert await it.numbers() == [1]
    assert await it.shelf.scheduled(it.pool) == []
    renamed = sales(text=RENAMED + "\nmigrate: {sql: discovery}\n")
    assert await it.publish(renamed, 1) == 2
    assert await it.publish(sales(), 2, restores=1) == 3
    assert (await it.shelf.version_row(it.pool, "sales", 3)).migrate == {"discovery": "sql"}


async def test_what_is_due_is_activated_once_by_whoever_finds_it(
    database_url: str, it: Shelved
) -> None:
    id = await it.schedule(sales("two"), NOW, 1, diff=[1])
    async with shelved(database_url) as other:
        works = [
            Activation(s.pool, s.shelf, lambda: NOW - timedelta(seconds=1)) for s in (it, other)
        ]
        assert [await w.run_due() for w in works] == [0, 0]
        works = [Activation(s.pool, s.shelf, lambda: NOW) for s in (it, other) for _ in range(3)]
        assert sum(await asyncio.gather(*(w.run_due() for w in works))) == 1
        assert await it.states() == {id: ("activated", 2)}
        version = await it.shelf.version_row(other.pool, "sales", 2)
        assert (version.author, version.message, version.diff) == ("ada", "at night", [1])
        assert version.published_at < version.activated_at
    assert await it.numbers() == [2, 1]


async def test_a_process_without_events_follows(database_url: str, it: Shelved) -> None:
    async with shelved(database_url) as other:
        await it.publish(sales("two"), 1)
        follower = Activation(other.pool, other.shelf, lambda: NOW)
        follower.round.start()
        async with asyncio.timeout(5):
            while other.shelf.epoch != it.shelf.epoch:
                await asyncio.sleep(0)
        await follower.round.stop()
        assert other.shelf.playbooks["sales"].version == 2


async def test_what_others_changed_meanwhile_is_not_overwritten(it: Shelved) -> None:
    pinned = await it.schedule(sales("two"), NOW, 1)
    loose = await it.schedule(sales("three"), NOW + timedelta(hours=1), None)
    await it.publish(sales("meanwhile"), 1)
    assert await Activation(it.pool, it.shelf, lambda: NOW + timedelta(hours=1)).run_due() == 2
    assert await it.states() == {pinned: ("refused", None), loose: ("activated", 3)}
    told = {s.id: s.reason for s in await it.shelf.scheduled(it.pool)}
    assert told[pinned] == "version 2 of the playbook 'sales' is active, not 1"
    assert told[loose] is None


async def test_what_is_not_valid_any_more_is_refused_and_says_why(it: Shelved) -> None:
    id = await it.schedule(sales("two"), NOW, None)
    await it.publish(sales(text=RENAMED + "\nmigrate: {sql: discovery}\n"), 1)
    assert await Activation(it.pool, it.shelf, lambda: NOW).run_due() == 1
    [told] = await it.shelf.scheduled(it.pool)
    assert (told.id, told.state) == (id, "refused")
    assert told.reason is not None
    assert "stage 'discovery' of version 2 is gone" in told.reason
    assert await it.numbers() == [2, 1]


async def test_what_was_called_off_does_not_come(it: Shelved) -> None:
    id = await it.schedule(sales("two"), NOW, 1)
    told = await it.shelf.cancel(it.pool, id, author="bob")
    assert (told.state, told.ended_by) == ("cancelled", "bob")
    assert await Activation(it.pool, it.shelf, lambda: NOW).run_due() == 0
    with pytest.raises(ConflictError, match="is cancelled already"):
        await it.shelf.cancel(it.pool, id, author="bob")
    with pytest.raises(NotFoundError):
        await it.shelf.cancel(it.pool, "0190b3c1-0000-7000-8000-000000000000", author="bob")
    assert await it.numbers() == [1]


async def test_none_is_taken_before_its_turn(it: Shelved) -> None:
    """Whoever waits to publish holds no row that another would pass over for a later one."""
    for text in ("two", "three"):
        await it.schedule(sales(text), NOW, None)
    async with it.pool.acquire() as holder, holder.transaction():
        await holder.execute("LOCK TABLE stage.playbook_versions IN SHARE MODE")
        waiting = asyncio.create_task(it.shelf.activate_due(it.pool, NOW))
        async with asyncio.timeout(5):
            while not await it.pool.fetchval("SELECT pid FROM pg_locks WHERE NOT granted"):
                assert not waiting.done()
        free = await it.pool.fetch(
            "SELECT FROM stage.scheduled_publications FOR UPDATE SKIP LOCKED"
        )
        assert len(free) == 2
    assert await waiting is not None
    await Activation(it.pool, it.shelf, lambda: NOW).run_due()
    assert await it.numbers() == [3, 2, 1]


async def test_a_death_before_the_version_is_written_changes_nothing(it: Shelved) -> None:
    """I12: the table is awaited, the process dies: the next one does it."""
    id = await it.schedule(sales("two"), NOW, 1)
    async with it.pool.acquire() as holder, holder.transaction():
        await holder.execute("LOCK TABLE stage.playbook_versions IN SHARE MODE")
        dying = asyncio.create_task(it.shelf.activate_due(it.pool, NOW))
        async with asyncio.timeout(5):
            while not (pid := await it.pool.fetchval("SELECT pid FROM pg_locks WHERE NOT granted")):
                assert not dying.done()
        await it.pool.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await dying
    assert await it.states() == {id: ("waiting", None)}
    await Activation(it.pool, it.shelf, lambda: NOW).run_due()
    assert await it.states() == {id: ("activated", 2)}
    assert await it.numbers() == [2, 1]


async def test_a_death_after_the_version_is_written_changes_nothing(it: Shelved) -> None:
    id = await it.schedule(sales("two"), NOW, 1)
    await it.pool.execute(
        """CREATE FUNCTION stage.die() RETURNS trigger LANGUAGE plpgsql AS
           $$BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END$$;
           CREATE TRIGGER die BEFORE UPDATE ON stage.scheduled_publications FOR EACH ROW
           EXECUTE FUNCTION stage.die()"""
    )
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await it.shelf.activate_due(it.pool, NOW)
    assert (await it.numbers(), await it.states()) == ([1], {id: ("waiting", None)})
    await it.pool.execute("DROP FUNCTION stage.die CASCADE")
    await Activation(it.pool, it.shelf, lambda: NOW).run_due()
    assert (await it.numbers(), await it.states()) == ([2, 1], {id: ("activated", 2)})


async def test_who_waited_for_another_is_active_after_it(it: Shelved) -> None:
    """A past moment has the epoch that was the newest then, whichever transaction began first."""
    async with it.pool.acquire() as slow, slow.transaction():
        await slow.execute("SELECT now()")
        assert await it.publish(sales("two"), 1) == 2
        await versions.lock(slow)
        await versions.insert(slow, versions.Publication(sales("three"), "bob", "it began first"))
    third, second, _ = await it.shelf.versions(it.pool, "sales")
    assert second.activated_at < third.activated_at


async def test_the_difference_is_the_one_to_the_version_before_it(it: Shelved) -> None:
    """What was scheduled on top of whatever is active tells no difference to what is gone."""
    easier = sales(text=SALES.replace("score.total >= 60", "score.total >= 20"))
    seen = diff(it.shelf.playbooks["sales"], easier).shown()
    id = await it.schedule(easier, NOW, None, diff=seen)
    await it.publish(sales(text=SALES.replace("points: 25", "points: 30")), 1)
    assert await Activation(it.pool, it.shelf, lambda: NOW).run_due() == 1
    assert await it.states() == {id: ("activated", 3)}
    told = (await it.shelf.version_row(it.pool, "sales", 3)).diff
    assert (seen["before_version"], told["before_version"]) == (1, 2)
    assert len(told["changes"]) == len(seen["changes"]) + 1
