"""The AsyncAPI document is valid, complete, and says what the code does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from services.contracts.events import SUBSCRIPTION_STOPPED
from services.contracts.schemas import STRUCTS
from services.contracts.topics import TOPICS, Found, differences
from services.stage_service.asyncapi import ASYNCAPI, FEEDS, asyncapi
from services.stage_service.subscriptions.filters import TYPES
from tests.conftest import ROOT, missing

SPECS = ROOT / ".cache" / "clients" / "node_modules" / "@asyncapi" / "specs" / "schemas"
DOCUMENT = asyncapi("https://baton.example.com/base", "k1:9092, k2:9092")


def test_it_is_valid() -> None:
    """By AsyncAPI's own JSON Schema, bindings too."""
    if not SPECS.is_dir():
        missing("AsyncAPI's JSON Schemas (make clients)")
    checker = jsonschema.Draft7Validator(json.loads((SPECS / f"{ASYNCAPI}.json").read_text()))
    assert [f"{e.json_path}: {e.message[:200]}" for e in checker.iter_errors(DOCUMENT)] == []
    broken = json.loads(json.dumps(DOCUMENT))
    broken["channels"]["leads"]["bindings"]["kafka"]["partitions"] = "many"
    assert list(checker.iter_errors(broken))


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def test_every_reference_leads_somewhere() -> None:
    for reference in set(references(DOCUMENT)):
        found: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found


def test_it_names_every_topic_and_every_type() -> None:
    channels = {c["address"]: c for c in DOCUMENT["channels"].values()}
    told: set[str] = set()
    for topic in TOPICS:
        channel = channels[topic.name]
        assert set(topic.types) <= set(channel["messages"])
        assert channel["bindings"]["kafka"]["partitions"] == topic.partitions
        assert topic.key in channel["description"]
        told |= set(topic.types)
    assert told == set(STRUCTS)
    assert {*FEEDS.values(), "/v1/transitions/stream", "/v1/handoffs/feed/stream", None} <= set(
        channels
    )
    webhooks = DOCUMENT["channels"]["webhooks"]["messages"]
    assert set(webhooks) == {f"webhook.{t}" for t in TYPES}, "what a subscription can ask for"


def test_what_a_message_is_about_is_said_of_each_type() -> None:
    """The lead, whose id is the key; a stopped subscription is about itself."""
    told = {
        message["name"]: message["headers"]["properties"]["ce_subject"]["description"]
        for message in DOCUMENT["components"]["messages"].values()
        if "ce_subject" in message.get("headers", {}).get("properties", {})
    }
    assert told.pop(SUBSCRIPTION_STOPPED) == "the subscription's id, as the key"
    assert set(told.values()) == {"the lead's id, as the key"}


def test_servers_are_where_they_are() -> None:
    servers = DOCUMENT["servers"]
    assert [servers[n]["host"] for n in ("kafka", "kafka1")] == ["k1:9092", "k2:9092"]
    assert servers["http"]["host"] == "baton.example.com"
    assert servers["http"]["protocol"] == "https"
    assert servers["http"]["pathname"] == "/base"


def test_a_webhook_fits_what_is_said_of_it() -> None:
    """Full and thin; a type that is not the message's does not fit."""
    schema = {
        "$ref": "#/components/messages/webhook.baton.lead.merged.v1/payload",
        "components": DOCUMENT["components"],
    }
    checker = jsonschema.Draft7Validator(schema)
    body: dict[str, Any] = {
        "specversion": "1.0", "id": "1", "source": "baton", "type": "baton.lead.merged.v1",
        "subject": "l", "datacontenttype": "application/json", "position": 3,
        "data": {"merge_id": "m", "lead_id": "l", "survivor": "l", "merged": "k"},
    }  # fmt: skip
    assert list(checker.iter_errors(body)) == []
    assert list(checker.iter_errors(body | {"type": "baton.lead.unmerged.v1"}))
    assert list(checker.iter_errors(body | {"data": {"merge_id": 1}}))
    del body["subject"]
    assert list(checker.iter_errors(body))


def test_the_command_prints_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "baton", "asyncapi", "--url", "http://here:8080"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin", "BATON_KAFKA_BOOTSTRAP_SERVERS": "k9:9092"},
    )  # fmt: skip
    assert json.loads(done.stdout) == asyncapi("http://here:8080", "k9:9092")


def as_declared() -> dict[str, Found]:
    return {t.name: Found(t.name, t.partitions, 1, dict(t.configs)) for t in TOPICS}


def test_topics_as_declared_do_not_differ() -> None:
    found = as_declared()
    found["baton.leads"] = Found("baton.leads", 24, 3, dict(found["baton.leads"].configs))
    assert differences(found) == []


@pytest.mark.parametrize(
    ("name", "configs", "said"),
    [
        ("baton.leads", {"cleanup.policy": "delete"}, "--add-config cleanup.policy=compact"),
        ("baton.transitions", {"retention.ms": "1000"}, "retention.ms is '1000'"),
        ("baton.dead-letters", None, "baton.dead-letters does not exist"),
    ],
)
def test_a_topic_that_differs_is_told(name: str, configs: dict[str, str] | None, said: str) -> None:
    found = as_declared()
    if configs is None:
        del found[name]
    else:
        found[name] = Found(name, 6, 1, {**found[name].configs, **configs})
    [difference] = differences(found)
    assert said in difference.told()
