"""Keys bound to sources, and rate limits, over HTTP: on the hot path and everywhere else."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio

from services.baton.embedded import EmbeddedPostgres
from services.contracts import access
from services.contracts.rates import RATE_LIMITED
from services.stage_service.settings import StageSettings
from tests.integration.stage import (
    BATCHED,
    STRUCTURED,
    Stage,
    fresh_database,
    running_stage,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(postgres: EmbeddedPostgres) -> AsyncIterator[Stage]:
    """A stage service whose keys may ask twice, and send five events, before they wait for hours."""
    with fresh_database(postgres) as url:
        async with running_stage(
            url, rate_limit_requests="1/h burst 2", rate_limit_events="1/h burst 5",
            rate_limit_failures="1/h burst 3",
        ) as it:  # fmt: skip
            yield it


async def new_key(stage: Stage, *scopes: str, **named: Any) -> dict[str, str]:
    """The header of a new key."""
    _, token = await access.create_key(stage.connection, "key", scopes, **named)
    return {"authorization": f"Bearer {token}"}


def event(source: str = "/rates") -> dict[str, Any]:
    """A valid event."""
    return {"specversion": "1.0", "id": str(uuid.uuid4()), "source": source, "type": "page.viewed"}


async def post(stage: Stage, key: dict[str, str], *events: dict[str, Any]) -> httpx.Response:
    """Send events; one of them structured, more of them as a batch."""
    body, content_type = (events[0], STRUCTURED) if len(events) == 1 else (events, BATCHED)
    return await stage.client.post(
        "/v1/events", content=json.dumps(body), headers={"content-type": content_type, **key}
    )


def assert_limited(answer: httpx.Response, limit: str) -> None:
    """It is a 429 that tells when to come again."""
    assert answer.status_code == 429, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "rate-limited"
    wait_s = int(answer.headers["retry-after"])
    assert 0 < wait_s <= 5 * 3600
    assert answer.headers["ratelimit"] == f'"{limit}";r=0;t={wait_s}'
    assert answer.headers["ratelimit-policy"].startswith(f'"{limit}";q=1;w=3600')


async def test_a_bound_key_sends_its_sources_and_others_are_named(stage: Stage) -> None:
    """In a batch the valid events beside them are kept."""
    key = await new_key(stage, "ingest", sources=["hubspot", "/website"], rate="off")
    sent = [event("hubspot"), event("/sources/hubspot"), event("stripe"), event("/website")]
    answer = await post(stage, key, *sent)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [r["status"] for r in results] == ["applied", "applied", "rejected", "applied"]
    error = results[2]["error"]
    assert (error["code"], error["field"], error["value"]) == (
        "source-not-allowed", "source", "stripe",
    )  # fmt: skip
    assert await stage.stored("stripe", sent[2]["id"]) is None
    assert await stage.stored("/website", sent[3]["id"]) is not None


async def test_a_single_event_of_another_source_is_forbidden(stage: Stage) -> None:
    """403 in each content mode; a batch of nothing else is 422 like any without a valid event."""
    key = await new_key(stage, "ingest", sources=["hubspot"], rate="off")
    answer = await post(stage, key, event("stripe"))
    assert answer.status_code == 403
    assert answer.json()["code"] == "source-not-allowed"
    binary = {f"ce-{name}": value for name, value in event("/stripe").items()}
    answer = await stage.client.post("/v1/events", headers={**binary, **key})
    assert answer.status_code == 403
    answer = await post(stage, key, event("stripe"), event("stripe"))
    assert answer.status_code == 422
    assert (await stage.client.get("/v1/leads", headers=key)).status_code == 403


@pytest.mark.parametrize("scopes", [["ingest", "read"], ["admin"], ["read"]])
async def test_a_bound_key_has_no_other_scope(stage: Stage, scopes: list[str]) -> None:
    """Neither by the function nor in the database."""
    with pytest.raises(ValueError, match="no other"):
        await access.create_key(stage.connection, "both", scopes, sources=["hubspot"])
    with pytest.raises(asyncpg.CheckViolationError):
        await stage.connection.execute(
            "INSERT INTO access.keys (id, name, kind, hash, scopes, sources) "
            "VALUES ('x', 'x', 'key', decode(repeat('00', 32), 'hex'), $1, '{hubspot}')",
            scopes,
        )


@pytest.mark.parametrize(
    "named", [{"sources": [""]}, {"sources": [" a"]}, {"sources": ["a\0"]}, {"rate": "fast"},
              {"event_rate": "1/x"}, {"sources": [str(n) for n in range(100)]}],
)  # fmt: skip
async def test_what_a_key_cannot_be_bound_to(stage: Stage, named: dict[str, Any]) -> None:
    """A typing mistake makes no key."""
    with pytest.raises(ValueError):
        await access.create_key(stage.connection, "wrong", ["ingest"], **named)


async def test_keys_are_listed_with_their_bounds(stage: Stage) -> None:
    """Whoever looks after keys sees what each may."""
    id, _ = await access.create_key(
        stage.connection, "hs", ["ingest"], sources=["b", "a"], rate="5/s", event_rate="off"
    )
    [key] = [k for k in await access.list_keys(stage.connection) if k["id"] == id]
    assert (key["sources"], key["rate"], key["event_rate"]) == (["a", "b"], "5/s", "off")


async def test_the_hot_path_and_the_rest_share_a_keys_bucket(stage: Stage) -> None:
    """Two requests pass, wherever they go; the third is 429, and its event is not taken."""
    key = await new_key(stage, "ingest", "read")
    before = RATE_LIMITED.labels("requests")._value.get()
    assert (await post(stage, key, event())).status_code == 200
    assert (await stage.client.get("/v1/leads", headers=key)).status_code == 200
    stored = await stage.count()
    assert_limited(await post(stage, key, event()), "requests")
    assert_limited(await stage.client.get("/v1/leads", headers=key), "requests")
    assert await stage.count() == stored
    assert RATE_LIMITED.labels("requests")._value.get() == before + 2
    assert (await post(stage, await new_key(stage, "ingest"), event())).status_code == 200


async def test_events_have_a_limit_of_their_own(stage: Stage) -> None:
    """Five events, in whatever requests; what is refused is refused whole."""
    key = await new_key(stage, "ingest", rate="off")
    assert (await post(stage, key, *(event() for _ in range(4)))).status_code == 200
    stored = await stage.count()
    assert_limited(await post(stage, key, event(), event()), "events")
    assert await stage.count() == stored
    assert (await post(stage, key, event())).status_code == 200
    assert_limited(await post(stage, key, event()), "events")


async def test_who_guesses_keys_has_to_wait(postgres: EmbeddedPostgres) -> None:
    """After three wrong keys an address tries no more, right or wrong; who was right before goes on."""
    with fresh_database(postgres) as url:
        async with running_stage(url, rate_limit_failures="1/h burst 3") as stage:
            good = await new_key(stage, "ingest", "read")
            assert (await post(stage, good, event())).status_code == 200
            wrong = {"authorization": "Bearer bat_000000000000_wrong"}
            for _ in range(2):
                assert (await post(stage, wrong, event())).status_code == 401
            answer = await stage.client.get("/v1/leads", headers=wrong)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == 'Bearer realm="baton"'
            assert_limited(await post(stage, wrong, event()), "failures")
            assert_limited(await stage.client.get("/v1/leads", headers=wrong), "failures")
            fresh = await new_key(stage, "ingest", "read")
            assert_limited(await post(stage, fresh, event()), "failures")
            assert (await post(stage, good, event())).status_code == 200
            stage.house.gatekeeper._known = {  # the cache's 5 s are over
                token: (0.0, who) for token, (_, who) in stage.house.gatekeeper._known.items()
            }
            assert (await post(stage, good, event())).status_code == 200
            nobody = await stage.client.get("/v1/leads", headers={"authorization": ""})
            assert nobody.status_code == 401  # no key is no guess


async def test_a_setting_that_is_no_rate_is_refused() -> None:
    """At the start, by its name."""
    with pytest.raises(ValueError, match="rate_limit_events"):
        StageSettings(_env_file=None, database_url="postgresql://x", rate_limit_events="many")  # type: ignore[call-arg]
