"""Both OpenAPI documents are fit for generators: valid, complete, and a client can be made of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from services.notifier import openapi as notifier_openapi
from services.notifier.app import create_app as create_notifier
from services.notifier.settings import NotifierSettings
from services.stage_service.api import openapi as stage_openapi
from services.stage_service.app import create_app
from services.stage_service.settings import StageSettings
from tests.conftest import ROOT, missing

NOWHERE = "postgresql://nobody@127.0.0.1:9/none"
MODULES = ROOT / ".cache" / "clients" / "node_modules"
METHODS = {"get", "put", "post", "delete", "patch"}
DOCUMENTS: dict[str, dict[str, Any]] = {
    "stage": create_app(StageSettings(_env_file=None, database_url=NOWHERE)).openapi(),
    "notifier": create_notifier(NotifierSettings(_env_file=None, database_url=NOWHERE)).openapi(),
}
ANSWERS = {"stage": stage_openapi.ANSWERS, "notifier": notifier_openapi.ANSWERS}
both = pytest.mark.parametrize("service", sorted(DOCUMENTS))


def operations(service: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENTS[service]["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                yield path, method, operation


def resolved(service: str, node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    found: Any = DOCUMENTS[service]
    for part in node["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


@both
def test_the_document_is_valid(service: str) -> None:
    OpenAPIV31SpecValidator(DOCUMENTS[service]).validate()


@both
def test_every_operation_can_be_named_and_found(service: str) -> None:
    ids = [o["operationId"] for _, _, o in operations(service)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z][a-z_]*[a-z]", id) for id in ids)
    tags = {tag["name"] for tag in DOCUMENTS[service]["tags"]}
    for path, _, operation in operations(service):
        assert operation["tags"], path
        assert set(operation["tags"]) <= tags, path
        assert operation.get("summary"), path
        assert operation.get("description") or operation.get("summary"), path


@both
def test_every_answer_has_a_shape(service: str) -> None:
    """What is answered 2xx is described; a bare object is no description, nothing says nothing."""
    for path, method, operation in operations(service):
        good = {s: r for s, r in operation["responses"].items() if s.startswith("2")}
        assert good, path
        for status, response in good.items():
            if status == "204" or operation["operationId"] == "post_delivery":
                continue
            content = resolved(service, response).get("content")
            assert content, f"{method} {path} {status}: say what it answers (api/openapi.py)"
            for media, told in content.items():
                schema = told["schema"]
                if media == "application/json" and operation["operationId"] != "get_asyncapi":
                    assert {"$ref", "properties", "anyOf"} & set(schema), (
                        f"{method} {path}: {schema}"
                    )


@both
def test_every_refusal_is_a_problem(service: str) -> None:
    problem = {"$ref": "#/components/schemas/Problem"}
    for path, method, operation in operations(service):
        for status, response in operation["responses"].items():
            if status < "400" or (status, operation["operationId"]) == ("503", "readyz"):
                continue
            content = resolved(service, response)["content"]
            assert list(content) == ["application/problem+json"], f"{method} {path} {status}"
            schema = content["application/problem+json"]["schema"]
            assert schema == problem or {"type", "title", "status", "detail", "code"} <= set(
                schema["properties"]
            ), f"{method} {path} {status}"
    assert "HTTPValidationError" not in json.dumps(DOCUMENTS[service])


@both
def test_every_operation_names_its_scope(service: str) -> None:
    for path, method, operation in operations(service):
        wanted = operation.get("security")
        if path in ("/livez", "/readyz", "/metrics"):
            assert wanted == []
            continue
        assert wanted, f"{method} {path}"
        assert set(wanted[0]["key"]) <= {"ingest", "read", "move", "admin"}
        assert {"401", "403", "429"} <= set(operation["responses"])


@both
def test_every_described_answer_is_one_of_an_operation(service: str) -> None:
    """What is described nobody has any more is taken away."""
    assert set(ANSWERS[service]) <= {o["operationId"] for _, _, o in operations(service)}


@both
def test_every_body_that_is_sent_has_an_example(service: str) -> None:
    for path, method, operation in operations(service):
        body = operation.get("requestBody")
        if body is None or path == "/webhooks/{source}":
            continue
        told = json.dumps([body, *(resolved(service, r) for r in references(body))])
        assert '"example' in told, f"{method} {path}"


def references(node: Any) -> Iterator[dict[str, str]]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


@both
def test_every_reference_leads_somewhere(service: str) -> None:
    for reference in references(DOCUMENTS[service]):
        assert resolved(service, reference)


CLIENT = """
import type {{ operations }} from './{service}';
type Ids = keyof operations;
const known: Ids[] = {ids};
type Good<T> = {{ 200: {{ content: {{ 'application/json': T }} }} }};
type Body<K extends Ids> = operations[K]['responses'] extends Good<infer T> ? T : never;
{use}
export {{ known }};
"""
USES = {
    "stage": "export function shown(lead: Body<'get_lead'>): string { return `${lead.id} ${lead.journeys"
    "[0].stage} ${lead.score.total.toFixed(0)} ${lead.identities[0].kind}`; }",
    "notifier": "export function shown(alert: Body<'get_alert'>): string { return `${alert.id} ${alert"
    ".deliveries[0].channel} ${alert.status}`; }",
}


@both
def test_a_client_is_generated_and_compiles(service: str, tmp_path: Path) -> None:
    """openapi-typescript makes types of it, and a program that uses them passes the strict compiler."""
    if not (MODULES / "openapi-typescript").is_dir():
        missing("the generator of clients (make clients)")
    document = tmp_path / f"{service}.json"
    document.write_text(json.dumps(DOCUMENTS[service]))
    made = run("openapi-typescript", str(document), "-o", str(tmp_path / f"{service}.ts"))
    assert "warn" not in made.lower(), made
    ids = json.dumps([o["operationId"] for _, _, o in operations(service)])
    program = tmp_path / "client.ts"
    program.write_text(CLIENT.format(service=service, ids=ids, use=USES[service]))
    run("tsc", "--noEmit", "--strict", "--target", "es2022", "--moduleResolution", "bundler",
        "--module", "es2022", str(program))  # fmt: skip


def run(tool: str, *arguments: str) -> str:
    done = subprocess.run(
        [MODULES / ".bin" / tool, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
