"""The stage service while it cannot be opened: it says why, and goes on by itself."""

from __future__ import annotations

import asyncio

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

from services.contracts.yaml_source import SourceError
from services.stage_service.app import create_app
from services.stage_service.settings import StageSettings
from tests.integration.stage import ROOT


def app_on(database_url: str) -> FastAPI:
    """The stage service."""
    return create_app(
        StageSettings(
            _env_file=None, database_url=database_url,
            playbook_files=[ROOT / "playbooks" / "sales.yaml"],
            team_file=ROOT / "playbooks" / "team.yaml",
        )  # type: ignore[call-arg]
    )  # fmt: skip


BROKEN = (
    "INSERT INTO stage.playbook_versions (name, version, digest, source) "
    "VALUES ('broken', 1, 'x', 'stages: 7')"
)


async def ready(client: httpx.AsyncClient, reason: str | None) -> None:
    """Wait until readiness tells `reason`; None: until it is ready."""
    while True:
        answer = await client.get("/readyz")
        if answer.status_code == (200 if reason is None else 503) and (
            reason is None or reason in answer.json()["reason"]
        ):
            return
        await asyncio.sleep(0)  # served in memory, a request lets nobody else run


async def test_what_it_cannot_open_with_is_told_and_tried_again(database_url: str) -> None:
    """Not migrated, then with a stored playbook that it cannot read, then right."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("ALTER TABLE access.keys RENAME TO keys_to_come")
    await connection.execute(BROKEN)
    app = app_on(database_url)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://stage") as client,
    ):
        await ready(client, "database")
        await connection.execute("ALTER TABLE access.keys_to_come RENAME TO keys")
        await ready(client, "could not start: SourceError")
        assert (await client.get("/v1/leads")).status_code == 503
        assert (await client.get("/livez")).status_code == 200
        await connection.execute("DELETE FROM stage.playbook_versions WHERE name = 'broken'")
        await ready(client, None)
        assert (await client.get("/v1/leads")).status_code == 401
    await connection.close()


async def test_with_its_database_there_a_start_that_cannot_succeed_fails(
    database_url: str,
) -> None:
    """A deployment sees at once that it is wrong."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(BROKEN)
    await connection.close()
    app = app_on(database_url)
    with pytest.raises(SourceError):
        async with app.router.lifespan_context(app):
            pass
