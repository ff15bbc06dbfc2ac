"""Whatever an authentic sender writes, the answer is 2xx or 4xx: mutated samples of every source.

300 cases in the quick run; ten thousand for every source in the long one.
"""

from __future__ import annotations

import random
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.baton.embedded import EmbeddedPostgres
from services.stage_service.sources.book import SourceBook
from services.stage_service.sources.mapping import Delivery, map_delivery
from tests.integration.stage import Stage, fresh_database, running_stage
from tests.unit.test_sources_golden import SOURCES, delivery_of, fixtures, real_samples

QUICK, LONG = 300, 10_000
OVER_HTTP = 150
ODD: list[Any] = [
    None, "", "\x00", "\x00a", "a" * 3000, -1, 0, 2**53 + 1, 2**63, 2**70, 1.5, 1e17, True, [], {}, [[]],
    "{}", "9" * 400, "2026-02-30T99:00:00Z", -(2**62), "\u202e\ufeff", {"": {}}, [None, {"a": [1]}], "a@b",
]  # fmt: skip


def samples(source: Path) -> list[Delivery]:
    """The samples of a source, ours and the real ones."""
    pairs = [*fixtures(), *real_samples()]
    return [delivery_of(source, sample) for each, sample in pairs if each == source]


def mutated(delivery: Delivery, chance: random.Random) -> bytes:
    """The body with one to four things wrong with it."""
    body = delivery.body
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        value = None
    for _ in range(chance.randint(1, 4)):
        if value is not None and chance.random() < 0.8:
            value = _changed(value, chance)
            try:
                body = msgspec.json.encode(value)
            except (msgspec.EncodeError, UnicodeEncodeError, OverflowError):
                continue
        elif b"=" in body and b"<" not in body and chance.random() < 0.5:
            body = _changed_form(body, chance)
        else:
            body = _changed_bytes(body, chance)
            value = None
    return body


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        deed = chance.random()
        if deed < 0.15:
            return {k: v for k, v in value.items() if k != name}
        if deed < 0.25:
            return {**value, chance.choice([name.upper(), name + "[]", "\x00", ""]): value[name]}
        return {**value, name: _changed(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        if chance.random() < 0.2:
            return value[:at] + value[at + 1 :]
        if chance.random() < 0.2:
            return value * chance.randint(2, 5)
        return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
    if chance.random() < 0.1:
        deep: Any = value
        for _ in range(chance.choice([5, 31, 40, 200])):
            deep = [deep] if chance.random() < 0.5 else {"a": deep}
        return deep
    return chance.choice(ODD)


def _changed_form(body: bytes, chance: random.Random) -> bytes:
    pairs = body.split(b"&")
    at = chance.randrange(len(pairs))
    name, _, value = pairs[at].partition(b"=")
    odd = urllib.parse.quote(str(chance.choice(ODD))).encode()
    pairs[at] = chance.choice([
        name + b"=" + odd, name, name + b"[x]=" + value, odd + b"=" + value, b"%ff%00=" + value, b"",
        name + b"[][a]=1",
    ])  # fmt: skip
    return b"&".join(pairs)


def _changed_bytes(body: bytes, chance: random.Random) -> bytes:
    changed = bytearray(body or b"x")
    at = chance.randrange(len(changed))
    deed = chance.random()
    if deed < 0.4:
        changed[at] = chance.randrange(256)
    elif deed < 0.6:
        del changed[at : at + chance.randint(1, 40)]
    elif deed < 0.8:
        changed[at:at] = changed[at : at + 60]
    else:
        changed[at:at] = chance.choice([b"\xff\xfe", b"\x00", b"]]>", b"&x;", b"<a>", b'"', b"%zz"])
    return bytes(changed)


def fuzz(source: Path, cases: int, seed: int) -> None:
    """Map mutated samples: every one gives events, defects or nothing, and never raises."""
    book = SourceBook(source.parent)
    book.refresh()
    chance = random.Random(seed)
    known = samples(source)
    it = book.sources[source.stem]
    for _ in range(cases):
        delivery = chance.choice(known)
        body = mutated(delivery, chance)
        result = map_delivery(it, msgspec.structs.replace(delivery, body=body))
        # What is kept is written as JSON: it must be possible.
        msgspec.json.encode(result.shown())


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_no_mutation_breaks_a_mapping(source: Path, pytestconfig: pytest.Config) -> None:
    fuzz(source, QUICK, pytestconfig.getoption("randomly_seed", 0) or 0)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_ten_thousand_mutations(source: Path, pytestconfig: pytest.Config) -> None:
    fuzz(source, LONG, pytestconfig.getoption("randomly_seed", 1) or 1)


@pytest.fixture(scope="module")
def module_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
async def stage(module_database: str, tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage whose sources all take a Baton key, so that mutated bodies are authentic."""
    for file in SOURCES:
        text = file.read_text()
        start = text.index("\nverify:") + 1
        end = text.index("\nread:", start)
        (tmp_path / file.name).write_text(text[:start] + "verify: [key]\n" + text[end + 1 :])
    async with running_stage(module_database, sources_dir=tmp_path) as it:
        assert set(it.app.state.intake.book.sources) == {f.stem for f in SOURCES}
        yield it


async def test_no_mutation_is_answered_5xx(stage: Stage, pytestconfig: pytest.Config) -> None:
    """Over HTTP and into PostgreSQL: applied or quarantined, and what was applied can be folded."""
    seed = pytestconfig.getoption("randomly_seed", 2) or 2
    chance = random.Random(seed)
    for _ in range(OVER_HTTP):
        source = chance.choice(SOURCES)
        delivery = chance.choice(samples(source))
        body = mutated(delivery, chance)
        answer = await stage.client.post(
            f"/webhooks/{source.stem}", content=body,
            headers={"content-type": delivery.content_type or "text/plain"},
        )  # fmt: skip
        assert answer.status_code == 200, (seed, source.stem, body, answer.text)
