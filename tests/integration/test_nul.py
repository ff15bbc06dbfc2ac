"""NUL, which PostgreSQL has no text with, in any query or path parameter of any route: never a 500."""

from __future__ import annotations

import re
from typing import Any

import httpx
from fastapi import FastAPI

from services.notifier.app import create_app as notifier_app
from services.notifier.settings import NotifierSettings
from tests.conftest import ROOT
from tests.integration.stage import running_stage


async def asked_everywhere(app: FastAPI, client: httpx.AsyncClient) -> list[tuple[str, int, Any]]:
    """Ask each GET route with NUL in each of its parameters, one at a time; gives what was answered."""
    answers: list[tuple[str, int, Any]] = []
    for path, methods in app.openapi()["paths"].items():
        for parameter in methods.get("get", {}).get("parameters", ()):
            name, place = parameter["name"], parameter["in"]
            filled = re.sub(r"\{[^}]*\}", "00000000-0000-7000-8000-000000000000", path)
            if place == "query":
                answer = await client.get(f"{filled}?{name}=a%00b")
            elif place == "path":
                answer = await client.get(filled_but(path, name))
            else:
                continue
            told = answer.json() if answer.headers["content-type"].endswith("json") else {}
            answers.append((f"{place} {path} {name}", answer.status_code, told.get("field")))
    return answers


def filled_but(path: str, name: str) -> str:
    """Fill the address, but NUL for `name`."""
    return re.sub(
        r"\{([^}]*)\}",
        lambda m: "a%00b" if m[1] == name else "00000000-0000-7000-8000-000000000000",
        path,
    )


async def test_the_stage_service_refuses_nul_in_every_parameter(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        answers = await asked_everywhere(stage.app, stage.client)
    assert len(answers) > 60
    assert [a for a in answers if a[1] >= 500] == []


async def test_the_notifier_refuses_nul_in_every_parameter(database_url: str) -> None:
    settings = NotifierSettings(
        _env_file=None, database_url=database_url, team_file=ROOT / "playbooks" / "team.yaml"
    )
    app = notifier_app(settings)
    async with running_stage(database_url) as stage, app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"authorization": f"Bearer {stage.key}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://notifier.test", headers=headers
        ) as client:
            answers = await asked_everywhere(app, client)
    assert len(answers) > 5
    assert [a for a in answers if a[1] >= 500] == []
