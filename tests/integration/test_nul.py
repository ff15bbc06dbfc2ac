"""NUL, which PostgreSQL has no text with, and depth, in any parameter and member of a body: never a 500."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
from fastapi import FastAPI

from services.notifier.app import create_app as notifier_app
from services.notifier.settings import NotifierSettings
from tests.conftest import ROOT
from tests.integration.stage import running_stage

SOME_ID = "00000000-0000-7000-8000-000000000000"
DEEP: Any = json.loads("[" * 850 + "]" * 850)
"""Deeper than a function can go that calls itself for each part, and not too deep for JSON's reader."""


async def asked_everywhere(app: FastAPI, client: httpx.AsyncClient) -> list[tuple[str, int, Any]]:
    """Ask each GET route with NUL in each of its parameters, one at a time; gives what was answered."""
    answers: list[tuple[str, int, Any]] = []
    for path, methods in app.openapi()["paths"].items():
        for parameter in methods.get("get", {}).get("parameters", ()):
            name, place = parameter["name"], parameter["in"]
            filled = re.sub(r"\{[^}]*\}", SOME_ID, path)
            if place == "query":
                answer = await client.get(f"{filled}?{name}=a%00b")
            elif place == "path":
                answer = await client.get(filled_but(path, name))
            else:
                continue
            told = answer.json() if answer.headers["content-type"].endswith("json") else {}
            answers.append((f"{place} {path} {name}", answer.status_code, told.get("field")))
    return answers


async def sent_everywhere(
    app: FastAPI, client: httpx.AsyncClient, bad: Any
) -> list[tuple[str, int, Any]]:
    """Send each route that takes JSON the value `bad` in each member, one at a time."""
    answers: list[tuple[str, int, Any]] = []
    document = app.openapi()
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema", {})
            for kind in (schema, *schema.get("anyOf", ())):
                body = schemas.get(kind.get("$ref", "").rpartition("/")[2], {})
                valid = {
                    name: valid_for(body["properties"][name]) for name in body.get("required", ())
                }
                for name in body.get("properties", ()):
                    filled = re.sub(r"\{[^}]*\}", SOME_ID, path)
                    answer = await client.request(method, filled, json=valid | {name: bad})
                    answers.append((f"{path} {name}", answer.status_code, answer.text))
    return answers


def valid_for(schema: dict[str, Any]) -> Any:
    """Give a value that `schema` takes."""
    schema = schema.get("anyOf", [schema])[0]
    by_format = {"uuid": SOME_ID, "date-time": "2100-01-01T00:00:00Z"}
    if schema.get("type") == "integer":
        return 1
    return schema.get("const") or by_format.get(schema.get("format", ""), "x")


def filled_but(path: str, name: str) -> str:
    """Fill the address, but NUL for `name`."""
    return re.sub(
        r"\{([^}]*)\}",
        lambda m: "a%00b" if m[1] == name else SOME_ID,
        path,
    )


async def test_the_stage_service_refuses_nul_in_every_parameter(database_url: str) -> None:
    async with running_stage(database_url) as stage:
        answers = await asked_everywhere(stage.app, stage.client)
        sent = await sent_everywhere(stage.app, stage.client, "a\0b")
        deep = await sent_everywhere(stage.app, stage.client, DEEP)
    assert len(answers) > 60
    assert [a for a in answers if a[1] >= 500] == []
    assert len(sent) > 50
    assert [a for a in sent if a[1] != 422 or "NUL" not in a[2]] == []
    assert [a for a in deep if a[1] not in (400, 422)] == []


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
            sent = await sent_everywhere(app, client, "a\0b")
            deep = await sent_everywhere(app, client, DEEP)
    assert len(answers) > 5
    assert [a for a in answers if a[1] >= 500] == []
    assert len(sent) > 5
    assert [a for a in sent if a[1] != 422 or "NUL" not in a[2]] == []
    assert [a for a in deep if a[1] not in (400, 422)] == []
