"""What stored stage keys are called now, through the renames of all versions since."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.playbook_succession import following, succession
from services.stage_service.stage_names import (
    VERSION_MAX,
    StoredName,
    as_now,
    stored_as,
    stored_names,
)

SALES = (Path(__file__).parents[2] / "playbooks/sales.yaml").read_text()


def named(key: str, moved: str = "") -> str:
    """The sales playbook with its stage ``sql`` called `key`; `moved`: where journeys go on."""
    return re.sub(r"\bsql\b", key, SALES) + (f"\nmigrate: {{{moved}}}\n" if moved else "")


def published(*texts: str) -> Playbook:
    """The last of `texts`, published one after the other."""
    active: Playbook | None = None
    for version, text in enumerate(texts, 1):
        new = parse_playbook(text, "p.yaml")
        moved = succession(new, {active.name: active} if active else {})
        active = following(new, active, version, moved)
    assert active is not None
    return active


ONCE = published(named("sql"), named("discovery", "sql: discovery"))
BACK = published(named("sql"), named("discovery", "sql: discovery"), named("sql", "discovery: sql"))
REUSED = published(
    named("sql"), named("discovery", "sql: discovery"), named("discovery").replace("nurture", "sql")
    + "\nmigrate: {nurture: sql}\n",
)  # fmt: skip


def test_without_a_rename_each_key_means_itself() -> None:
    assert {n.now for n in stored_names(published(SALES)) if n.is_whole} == set(
        published(SALES).stages
    )


def test_a_renamed_stage_is_found_under_both_names() -> None:
    assert stored_as(ONCE, "discovery") == [
        StoredName("discovery", 0, VERSION_MAX, "discovery"), StoredName("sql", 0, 2, "discovery"),
    ]  # fmt: skip
    assert stored_as(ONCE, "sql") == stored_as(ONCE, "discovery"), "an old link finds it too"


def test_a_name_that_came_back_means_one_stage_from_its_return_on() -> None:
    assert stored_as(BACK, "sql") == [
        StoredName("sql", 0, VERSION_MAX, "sql"), StoredName("discovery", 0, 3, "sql"),
    ]  # fmt: skip
    assert stored_as(REUSED, "sql") == [
        StoredName("sql", 2, VERSION_MAX, "sql"), StoredName("nurture", 0, 3, "sql"),
    ]  # fmt: skip
    assert StoredName("sql", 0, 2, "discovery") in stored_as(REUSED, "discovery")


@given(st.sampled_from((ONCE, BACK, REUSED)), st.data())
def test_each_stored_key_has_one_meaning_and_it_is_that_of_the_fold(
    playbook: Playbook, data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted({*playbook.stages, *playbook.former})))
    version = data.draw(st.integers(1, 5))
    [found] = [
        n for n in stored_names(playbook) if n.stage == key and n.since <= version < n.before
    ]
    assert found.now == playbook.current(key, version)


def journey(**more: Any) -> dict[str, Any]:
    return {"stage": "sql", "furthest_stage": "sql", "held": [], "playbook_version": 1, **more}


def test_a_journey_is_told_as_the_fold_will_have_it() -> None:
    told = as_now(ONCE, journey(held=[{"to": "sql"}, {"to": "closing"}]))
    assert told == journey(
        stage="discovery", furthest_stage="discovery", held=[{"to": "closing"}], playbook_version=2
    )
    assert as_now(ONCE, journey(stage="mql", furthest_stage="sql")) == journey(
        stage="mql", furthest_stage="discovery", playbook_version=2
    )
    for known in (ONCE, None):
        own = journey(stage="discovery", playbook_version=2)
        assert as_now(known, own) == own
