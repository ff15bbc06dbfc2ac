"""What others rely on does not change under them: events, HTTP, command line, playbook and roster files.

``tests/contracts/published/`` holds each contract as it was last published. An addition passes; a removal
or a tightening fails. Publish a compatible change with ``python -m tests.contracts.test_public_contracts``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from ruamel.yaml import YAML

from services.baton.cli import app as command_line
from services.contracts.schemas import HERE as SCHEMAS
from services.contracts.schemas import generated
from services.stage_service.app import create_app
from services.stage_service.settings import StageSettings
from tests.contracts.compatibility import breaks_readers, breaks_writers
from tests.contracts.test_openapi import DOCUMENTS
from tests.integration.test_merging import part, said
from tests.integration.wired import walk, wired

ROOT = Path(__file__).parents[2]
PUBLISHED = Path(__file__).parent / "published"


def openapi() -> dict[str, Any]:
    """The HTTP contract of the stage service: operations, their parameters and answers."""
    settings = StageSettings(_env_file=None, database_url="postgresql://nobody@127.0.0.1:9/none")
    document = create_app(settings).openapi()
    return {
        f"{method.upper()} {path}": {
            "operation": operation["operationId"],
            "parameters": sorted(
                f"{p['in']} {p['name']}{' required' if p.get('required') else ''}"
                for p in operation.get("parameters", ())
            ),
            "answers": sorted(operation["responses"]),
        }
        for path, methods in sorted(document["paths"].items())
        for method, operation in sorted(methods.items())
        if path.startswith("/v1") or path in ("/livez", "/readyz", "/metrics")
    }


def commands() -> dict[str, list[str]]:
    """The command line's contract: each command with its options and arguments."""
    found: dict[str, list[str]] = {}

    def visit(name: str, command: Any) -> None:
        if hasattr(command, "commands"):
            for inner, each in command.commands.items():
                if not each.hidden:
                    visit(f"{name} {inner}", each)
        else:
            found[name] = sorted(o for p in command.params for o in (p.opts + p.secondary_opts))

    visit("baton", typer.main.get_command(command_line))
    return found


def schemas() -> dict[str, Any]:
    """All JSON Schemas."""
    return {p.name: json.loads(p.read_text()) for p in sorted(SCHEMAS.glob("*.schema.json"))}


def missing_in(old: dict[str, Any], new: dict[str, Any], what: str) -> list[str]:
    """What of `old` (names to lists or nested objects) is not in `new` any more."""
    gone: list[str] = []
    for name, value in old.items():
        if name not in new:
            gone.append(f"{what} {name} is gone")
        elif isinstance(value, dict):
            gone += missing_in(value, new[name], f"{what} {name}")
        elif isinstance(value, list):
            gone += [f"{what} {name}: {v} is gone" for v in value if v not in new[name]]
        elif value != new[name]:
            gone.append(f"{what} {name} was {value!r} and is {new[name]!r}")
    return gone


def answers_of(document: dict[str, Any]) -> dict[str, Any]:
    """The schemas of what an OpenAPI document's operations answer 2xx, by id and status."""
    return _schemas_in(document, lambda operation: {
        status: response.get("content", {})
        for status, response in operation["responses"].items()
        if status.startswith("2")
    })  # fmt: skip


def bodies_of(document: dict[str, Any]) -> dict[str, Any]:
    """The schemas of what an OpenAPI document's operations take."""
    return _schemas_in(
        document, lambda operation: {"body": operation.get("requestBody", {}).get("content", {})}
    )


def _schemas_in(document: dict[str, Any], contents: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        f"{operation['operationId']} {name} {media}": told["schema"]
        for item in document["paths"].values()
        for operation in item.values()
        for name, content in contents(operation).items()
        for media, told in content.items()
    }


def published(name: str) -> Any:
    """A contract as it was last published."""
    return json.loads((PUBLISHED / name).read_text())


def test_everything_public_is_published() -> None:
    """A new schema, route or command is added to ``published/`` with the change that makes it."""
    now = {
        "openapi.json": openapi(), "commands.json": commands(), **schemas(),
        **{f"openapi.{service}.json": {} for service in DOCUMENTS},
    }  # fmt: skip
    assert {p.name for p in PUBLISHED.glob("*.json")} == set(now)
    assert set(published("openapi.json")) == set(now["openapi.json"])
    assert set(published("commands.json")) == set(now["commands.json"])


def test_http_keeps_what_it_published() -> None:
    assert missing_in(published("openapi.json"), openapi(), "HTTP") == []


def test_the_command_line_keeps_what_it_published() -> None:
    assert missing_in(published("commands.json"), commands(), "command") == []


@pytest.mark.parametrize("name", sorted(schemas()))
def test_schemas_keep_what_they_published(name: str) -> None:
    compare = (
        breaks_writers
        if name
        in (
            "playbook.schema.json",
            "playbook-tests.schema.json",
            "team.schema.json",
            "source.schema.json",
            "connector.schema.json",
        )
        else breaks_readers
    )
    assert compare(published(name), schemas()[name]) == []


@pytest.mark.parametrize("service", sorted(DOCUMENTS))
def test_what_is_answered_keeps_its_shape(service: str) -> None:
    old, new = published(f"openapi.{service}.json"), DOCUMENTS[service]
    now = answers_of(new)
    for name, schema in answers_of(old).items():
        assert name in now, f"{name} is gone"
        assert breaks_readers(schema, now[name], old, new) == [], name


@pytest.mark.parametrize("service", sorted(DOCUMENTS))
def test_what_is_taken_keeps_its_shape(service: str) -> None:
    old, new = published(f"openapi.{service}.json"), DOCUMENTS[service]
    now = bodies_of(new)
    for name, schema in bodies_of(old).items():
        assert name in now, f"{name} is gone"
        assert breaks_writers(schema, now[name], old, new) == [], name


def test_the_comparisons_would_notice() -> None:
    """The checks above are able to fail; those of schemas have tests of their own."""
    old = published("openapi.stage.json")
    new = json.loads(json.dumps(old))
    del new["components"]["schemas"]["Moved"]["properties"]["to"]
    schemas = (
        answers_of(old)["post_events 200 application/json"],
        answers_of(new)["post_events 200 application/json"],
    )
    assert breaks_readers(*schemas, old, new) == ["results[].transitions[].to is gone"]
    assert missing_in({"x": ["1"]}, {"x": []}, "it")
    assert missing_in({"x": ["1"]}, {"x": ["1", "2"], "y": []}, "it") == []


def test_the_event_schemas_are_those_of_the_code() -> None:
    for name, text in generated().items():
        assert (SCHEMAS / name).read_text() == text, "run: python -m services.contracts.schemas"


@pytest.mark.parametrize(("file", "schema"), [("sales.yaml", "playbook"), ("team.yaml", "team")])
def test_the_files_that_come_with_baton_fit_their_schema(file: str, schema: str) -> None:
    value = YAML(typ="safe").load((ROOT / "playbooks" / file).read_text())
    checker = jsonschema.Draft202012Validator(schemas()[f"{schema}.schema.json"])
    checker.check_schema(checker.schema)
    assert [e.message for e in checker.iter_errors(value)] == []


@pytest.mark.parametrize("file", sorted((ROOT / "sources").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_source_files_fit_their_schema(file: Path) -> None:
    value = YAML(typ="safe").load(file.read_text())
    checker = jsonschema.Draft202012Validator(schemas()["source.schema.json"])
    checker.check_schema(checker.schema)
    assert [e.message for e in checker.iter_errors(value)] == []


@pytest.mark.parametrize("file", sorted((ROOT / "connectors").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_connector_files_fit_their_schema(file: Path) -> None:
    value = YAML(typ="safe").load(file.read_text())
    checker = jsonschema.Draft202012Validator(schemas()["connector.schema.json"])
    checker.check_schema(checker.schema)
    assert [e.message for e in checker.iter_errors(value)] == []


async def test_what_is_published_fits_its_schema(database_url: str) -> None:
    """Every message of a walk, and of a corrected one, against the schema of its type."""
    async with wired(database_url) as it:
        events = walk()
        await it.lane.submit([*events[:2], *events[3:]])
        await it.lane.submit([events[2]])
        messages = await it.messages()
    types = {m["type"] for m in messages}
    assert types == {"baton.stage.transitioned.v1", "baton.transition.corrected.v1"}
    for message in messages:
        schema = schemas()[f"{message.pop('type')}.schema.json"]
        checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        assert [e.message for e in checker.iter_errors(message)] == []
        # None of these takes a whole journey back.
        assert set(message) | {"ended"} == set(schema["$defs"]["StageTransitioned"]["properties"])
        assert "ended" not in message


async def test_what_is_published_of_merges_fits_its_schema(database_url: str) -> None:
    async with wired(database_url) as it:
        for keys in ({"email": "a@b.example"}, {"external_ids": {"crm": "1"}}):
            await it.lane.submit([said("demo.requested", 1, **keys)])
        await it.lane.submit([said("x", 2, email="a@b.example", external_ids={"crm": "1"})])
        merged = await it.pool.fetchval("SELECT merged::text FROM stage.merges")
        await part(it, merged)
        messages = [m for m in await it.messages() if "merge_id" in m]
    assert [m["type"] for m in messages] == (
        ["baton.lead.merged.v1"] * 2 + ["baton.lead.unmerged.v1"] * 2
    )
    for message in messages:
        schema = schemas()[f"{message.pop('type')}.schema.json"]
        checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        assert [e.message for e in checker.iter_errors(message)] == []


if __name__ == "__main__":
    os.makedirs(PUBLISHED, exist_ok=True)
    contracts = {
        "openapi.json": openapi(), "commands.json": commands(), **schemas(),
        **{f"openapi.{service}.json": document for service, document in DOCUMENTS.items()},
    }  # fmt: skip
    for name, contract in contracts.items():
        (PUBLISHED / name).write_text(json.dumps(contract, indent=1) + "\n")
