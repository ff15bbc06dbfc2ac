"""What others rely on does not change under them: events, HTTP, command line, playbook and roster files.

``tests/contracts/published/`` holds each contract as it was last published. An addition passes; a removal
or a tightening fails. Publish a compatible change with ``python -m tests.contracts.test_public_contracts``.
"""

from __future__ import annotations

import json
import os
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
from tests.integration.test_lane import walk, wired
from tests.integration.test_merging import part, said

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


def broken_readers(old: Any, new: Any, at: str = "") -> list[str]:
    """What a reader of events that fit `old` may miss in events that fit `new`."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"{at} was {old!r} and is {new!r}"]
    found: list[str] = []
    for name, inner in old.get("properties", {}).items():
        if name not in new.get("properties", {}):
            found.append(f"{at}.{name} is gone")
        else:
            found += broken_readers(inner, new["properties"][name], f"{at}.{name}")
    found += [f"{at}.{n} is no longer always there" for n in old.get("required", ())
              if n not in new.get("required", ())]  # fmt: skip
    for word in ("type", "format", "$ref", "anyOf", "enum", "const"):
        if old.get(word) != new.get(word):
            found.append(f"{at}: {word} was {old.get(word)!r} and is {new.get(word)!r}")
    for name, inner in old.get("$defs", {}).items():
        found += broken_readers(inner, new.get("$defs", {}).get(name), f"{at}#{name}")
    if "items" in old:
        found += broken_readers(old["items"], new.get("items"), f"{at}[]")
    return found


def refused_writers(old: Any, new: Any, at: str = "") -> list[str]:
    """What a file that fits `old` may break in `new`: new requirements, removed keys, other types."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"{at} was {old!r} and is {new!r}"]
    found: list[str] = []
    for name, inner in old.get("properties", {}).items():
        if name not in new.get("properties", {}):
            found.append(f"{at}.{name} is gone")
        else:
            found += refused_writers(inner, new["properties"][name], f"{at}.{name}")
    found += [f"{at}.{n} is newly required" for n in new.get("required", ())
              if n not in old.get("required", ())]  # fmt: skip
    found += [f"{at}: {v!r} is no longer allowed" for v in old.get("enum", ())
              if v not in new.get("enum", ())]  # fmt: skip
    for word in ("type", "pattern", "maximum", "minimum"):
        if old.get(word) != new.get(word):
            found.append(f"{at}: {word} was {old.get(word)!r} and is {new.get(word)!r}")
    for word in ("items", "additionalProperties"):
        if word in old:
            found += refused_writers(old[word], new.get(word), f"{at}.{word}")
    return found


def published(name: str) -> Any:
    """A contract as it was last published."""
    return json.loads((PUBLISHED / name).read_text())


def test_http_keeps_what_it_published() -> None:
    assert missing_in(published("openapi.json"), openapi(), "HTTP") == []


def test_the_command_line_keeps_what_it_published() -> None:
    assert missing_in(published("commands.json"), commands(), "command") == []


@pytest.mark.parametrize("name", sorted(schemas()))
def test_schemas_keep_what_they_published(name: str) -> None:
    compare = (
        refused_writers
        if name
        in (
            "playbook.schema.json",
            "playbook-tests.schema.json",
            "team.schema.json",
            "source.schema.json",
            "connector.schema.json",
        )
        else broken_readers
    )
    assert compare(published(name), schemas()[name]) == []


def test_the_comparisons_would_notice() -> None:
    """The checks above are able to fail."""
    old = {"properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert broken_readers(old, {"properties": {}, "required": []})
    assert broken_readers(old, {"properties": {"a": {"type": "integer"}}, "required": ["a"]})
    assert broken_readers(old, {**old, "properties": {**old["properties"], "b": {}}}) == []
    assert refused_writers(old, {**old, "required": ["a", "b"]})
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
    contracts = {"openapi.json": openapi(), "commands.json": commands(), **schemas()}
    for name, contract in contracts.items():
        (PUBLISHED / name).write_text(json.dumps(contract, indent=1) + "\n")
