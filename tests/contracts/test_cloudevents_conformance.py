"""The conformance suite of CloudEvents, all of it that HTTP and JSON can show, posted to the service."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from jsonschema import Draft7Validator, FormatChecker
from ruamel.yaml import YAML

from services.baton.embedded import EmbeddedPostgres
from services.contracts.cloudevents import CloudEvent, check
from tests.integration.stage import BATCHED, STRUCTURED, Stage, fresh_database, running_stage

pytestmark = pytest.mark.real_data
over_http = pytest.mark.asyncio(loop_scope="module")

FIELDS = {
    "invalidNoSpecVersion": "specversion",
    "invalidNoId": "id",
    "invalidNoType": "type",
    "invalidNoSource": "source",
    "invalidTimeGarbage": "time",
    "invalidTimeToMinute": "time",
    "invalidTimeOffsetX": "time",
    "invalidTimeOffsetOutOfRange": "time",
    "invalidTimeOffsetNonInteger": "time",
    "invalidTimeOffsetHourOnly": "time",
    "invalidEmptyId": "id",
    "invalidEmptyType": "type",
    "invalidEmptySource": "source",
    "invalidEmptySpecVersion": "specversion",
    "invalidUnknownSpecVersion": "specversion",
    "invalidNonRfc2046DataContentType": "datacontenttype",
    "invalidEmptyDataContentType": "datacontenttype",
    "invalidEmptyDataSchema": "dataschema",
    "invalidEmptySubject": "subject",
    "invalidNumericId": "id",
    "invalidObjectId": "id",
    "invalidCapitalizedExtension": "MyExtension",
    "invalidPunctuatedExtension": "my.extension",
    "invalidNonIntegerExtensionValue": "my.extension",
    "invalidBothDataAndDataBase64": "data_base64",
}
"""The attribute that each invalid event of the suite has wrong."""

BATCH_FIELDS = {
    "invalidBatchMixedSpecVersions": [None, "specversion"],
    "invalidBatchContainingInvalidCloudEvent": ["id"],
    "invalidBatchContainingNonObject": ["body", None],
}
"""For each invalid batch what is wrong with each item; None: it is valid, and kept."""

FEATURES = {
    ("HTTP protocol binding", "Binary content mode (<contentType>)"): "HTTP",
    ("HTTP protocol binding", "Structured content mode (<contentType>)"): "HTTP",
    ("Kafka Protocol Binding", "Binary content mode"): "Baton takes events over HTTP only",
    (
        "Kafka Protocol Binding",
        "Structured content mode (<contentType>)",
    ): "Baton takes events over HTTP only",
}
"""Each scenario of the suite: run here, or why it does not apply."""

YAML_FILES = {
    "v1.yaml": "kept",
    "v1.0/v1_minimum.yaml": "kept",
    "v03.yaml": "refused: version 0.3",
    "v0.3/v03_minimum.yaml": "refused: version 0.3",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(postgres: EmbeddedPostgres) -> AsyncIterator[Stage]:
    """One stage service for the whole suite: its events share ids and sources, as senders' do."""
    with fresh_database(postgres) as url:
        async with running_stage(url) as it:
            yield it


@pytest.fixture(scope="module")
def suite(shared_data: Path) -> Path:
    """The directory of the suite."""
    return shared_data / "cloudevents_conformance"


def cases(suite: Path, name: str) -> list[dict[str, Any]]:
    """The cases of one file of the JSON format's suite."""
    return json.loads((suite / "format_json" / name).read_text())["tests"]


def attributes_of(row: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a stored event, extensions too, without those that were not sent."""
    envelope = row["envelope"]
    found = {
        "specversion": "1.0", "id": row["id"], "source": row["source"], "type": row["type"],
        "subject": row["subject"], "dataschema": envelope.get("dataschema"),
        "datacontenttype": envelope.get("datacontenttype"), **envelope.get("extensions", {}),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def data_of(row: dict[str, Any]) -> Any:
    """The data of a stored event, whatever it is."""
    return row["data"] or row["envelope"].get("data")


@over_http
async def test_every_valid_event_is_kept_with_all_it_says(stage: Stage, suite: Path) -> None:
    """Each valid event is taken, as the first or as a repeat, and its attributes are stored."""
    told = cases(suite, "valid-events.json")
    assert len(told) == 10
    for case in told:
        event = case["event"] | {"id": f"{case['id']}-single"}
        answer = await stage.post(json.dumps(event).encode())
        assert answer.status_code == 200, (case["id"], answer.text)
        assert answer.json()["results"][0]["status"] == "applied", case["id"]
        repeated = await stage.post(json.dumps(event).encode())
        assert repeated.json()["results"][0]["status"] == "duplicate", case["id"]
        row = await stage.stored(event["source"], event["id"])
        assert row is not None, case["id"]
        said = {k: v for k, v in event.items() if k not in ("data", "time") and v is not None}
        assert attributes_of(row) == said, case["id"]
        assert data_of(row) == event.get("data"), case["id"]
        if event.get("time"):
            assert row["time"].isoformat() == "2018-04-05T17:31:00+00:00", case["id"]


@over_http
async def test_every_invalid_event_is_refused_by_the_attribute(stage: Stage, suite: Path) -> None:
    """Each invalid event is a 422 that names what is wrong, and is not stored."""
    told = cases(suite, "invalid-events.json")
    assert {case["id"] for case in told} == FIELDS.keys()
    before = await stage.count()
    for case in told:
        answer = await stage.post(json.dumps(case["event"]).encode())
        assert answer.status_code == 422, (case["id"], answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["field"] == FIELDS[case["id"]], case["id"]
    assert await stage.count() == before


@over_http
async def test_every_valid_batch_is_kept(stage: Stage, suite: Path) -> None:
    """Each valid batch is taken whole: an empty one too, and one with two copies of an event."""
    told = cases(suite, "valid-batches.json")
    assert len(told) == 5
    for case in told:
        answer = await stage.post(json.dumps(case["batch"]).encode(), BATCHED)
        assert answer.status_code == 200, (case["id"], answer.text)
        results = answer.json()["results"]
        assert [(r["id"], r["source"]) for r in results] == [
            (e["id"], e["source"]) for e in case["batch"]
        ], case["id"]
        assert {r["status"] for r in results} <= {"applied", "duplicate"}, case["id"]
        for event in case["batch"]:
            row = await stage.stored(event["source"], event["id"])
            assert row is not None, case["id"]
            said = {k: v for k, v in event.items() if k != "time"}
            assert attributes_of(row) == said, case["id"]
        if case["id"] == "validBatchMinimal2":
            assert results[1]["status"] == "duplicate"


@over_http
async def test_of_every_invalid_batch_the_bad_are_named(stage: Stage, suite: Path) -> None:
    """What is invalid in a batch is refused by its attribute; valid neighbours are kept.

    A batch of nothing valid is a 422; a mixed one is 200 and says of each what became of it, since its
    sender would otherwise send the good ones for ever.
    """
    told = cases(suite, "invalid-batches.json")
    assert {case["id"] for case in told} == BATCH_FIELDS.keys()
    for case in told:
        answer = await stage.post(json.dumps(case["batch"]).encode(), BATCHED)
        expected = BATCH_FIELDS[case["id"]]
        assert answer.status_code == (200 if None in expected else 422), case["id"]
        results = answer.json()["results"]
        assert [r["error"] and r["error"]["field"] for r in results] == expected, case["id"]
        assert [r["status"] == "rejected" for r in results] == [f is not None for f in expected]


def scenarios(text: str) -> Iterator[tuple[str, str, str]]:
    """The scenarios of a feature file as (feature, title, text); Gherkin as far as the suite uses it."""
    feature = re.search(r"Feature: (.*)", text)
    assert feature is not None
    for block in re.split(r"\n\s*Scenario(?: Outline)?: ", text)[1:]:
        title, _, steps = block.partition("\n")
        yield feature[1].strip(), title.strip(), steps


def examples(steps: str) -> list[dict[str, str]]:
    """The rows of a scenario outline's examples by column."""
    _, _, told = steps.partition("Examples:")
    head, *rows = (
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in told.splitlines()
        if line.strip()
    )
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_no_scenario_is_left_unclassified(suite: Path) -> None:
    """Every scenario and every file of the suite is run here, or the reason why not is written down."""
    files = sorted((suite / "features").glob("*.feature"))
    found = {(f, t) for path in files for f, t, _ in scenarios(path.read_text())}
    assert found == FEATURES.keys()
    yamls = (suite / "yaml").rglob("*.yaml")
    assert {str(p.relative_to(suite / "yaml")) for p in yamls} == YAML_FILES.keys()
    assert {p.name for p in (suite / "format_json").iterdir()} == {
        "valid-events.json", "invalid-events.json", "valid-batches.json", "invalid-batches.json",
    }  # fmt: skip


@over_http
async def test_the_http_binding_is_read_as_the_scenarios_say(stage: Stage, suite: Path) -> None:
    """Each HTTP scenario with each of its examples: attributes and data arrive as its tables say."""
    done = 0
    for path in sorted((suite / "features").glob("*.feature")):
        for feature, title, outline in scenarios(path.read_text()):
            if FEATURES[feature, title] != "HTTP":
                continue
            for example in examples(outline):
                await scenario(stage, outline, example, f"{title} {example}", f"feature-{done}")
                done += 1
    assert done == 4


async def scenario(stage: Stage, steps: str, example: dict[str, str], what: str, id: str) -> None:
    """Play one scenario with the values of `example`, under an `id` of its own."""
    for name, value in example.items():
        steps = steps.replace(f"<{name}>", value)
    request, data = (
        "\n".join(line.strip() for line in block.splitlines())
        for block in re.findall(r'"""\n(.*?)\n\s*"""', steps, re.DOTALL)
    )
    head, _, body = request.replace("1234-1234-1234", id).partition("\n\n")
    lines = [line.partition(":") for line in head.splitlines()[1:]]
    headers = [
        (name.encode(), value.strip().encode())
        for name, _, value in lines
        if name.lower() not in ("host", "content-length")  # of the suite's own server and layout
    ]
    key = (b"authorization", f"Bearer {stage.key}".encode())
    answer = await stage.client.post("/v1/events", content=body.encode(), headers=[key, *headers])
    assert answer.status_code == 200, (what, answer.text)
    assert answer.json()["results"][0]["status"] == "applied", what
    attributes = steps.partition("Then")[2].partition("Examples:")[0]
    table = dict(re.findall(r"^\s*\|\s*(\w+)\s+\|\s*(.*?)\s*\|$", attributes, re.M))
    del table["key"]
    assert table.keys() == {"id", "specversion", "type", "source", "time", "datacontenttype"}
    row = await stage.stored(table["source"], id)
    assert row is not None, what
    # application/json is what is meant when nothing is said; only others are written down.
    kept = {"datacontenttype": "application/json"} | attributes_of(row)
    assert kept == {k: v for k, v in table.items() if k != "time"} | {"id": id}, what
    assert row["time"].strftime("%Y-%m-%dT%H:%M:%SZ") == table["time"], what
    assert row["data"] == json.loads(data), what


@over_http
async def test_the_events_of_the_suites_own_sender(stage: Stage, suite: Path) -> None:
    """Each event that the suite's command line would send, in both modes: 1.0 kept, 0.3 refused."""
    seen = 0
    for name, fate in YAML_FILES.items():
        for told in YAML(typ="base", pure=True).load_all((suite / "yaml" / name).read_text()):
            context = told["ContextAttributes"]
            attributes = {k: v for k, v in context.items() if k != "Extensions"}
            attributes |= context.get("Extensions", {})
            # The suite's YAML writes this extension as a block, with the newline that ends it.
            attributes = {k: v.strip() for k, v in attributes.items()}
            modes = [told["Mode"]] if "Mode" in told else ["binary", "structured"]
            for mode in modes:
                attributes["id"] = f"{context['id']}-{name}-{mode}"
                await sent_and_kept(stage, attributes, told["Data"].strip(), mode, fate)
                seen += 1
    assert seen == 28


async def sent_and_kept(
    stage: Stage, attributes: dict[str, str], data: str, mode: str, fate: str
) -> None:
    """Send one event in `mode` and look whether it met its `fate`."""
    content_type = attributes.get("datacontenttype", "application/json")
    is_json = content_type.startswith("application/json")
    value = json.loads(data) if is_json else data
    if mode == "structured":
        answer = await stage.post(json.dumps(attributes | {"data": value}).encode())
    else:
        headers = {f"ce-{k}": v for k, v in attributes.items() if k != "datacontenttype"}
        key = {"authorization": f"Bearer {stage.key}", "content-type": content_type}
        answer = await stage.client.post("/v1/events", content=data.encode(), headers=headers | key)
    row = await stage.stored(attributes["source"], attributes["id"])
    if fate != "kept":
        assert answer.status_code == 422, answer.text
        assert answer.json()["field"] == "specversion"
        assert row is None
        return
    assert answer.status_code == 200, answer.text
    assert row is not None
    said = {k: v for k, v in attributes.items() if k != "time"}
    assert attributes_of(row) == said
    if mode == "binary" and not (is_json or content_type.startswith("text/")):
        assert (
            msgspec.json.decode(f'"{row["envelope"]["data_base64"]}"', type=bytes) == data.encode()
        )
    else:
        assert data_of(row) == value


def test_the_official_schema_alone_would_not_do(suite: Path, shared_data: Path) -> None:
    """Why the rules are written out: the official schema takes some of the invalid events.

    When it no longer does, this fails, and the rules here may shrink.
    """
    schema = json.loads((shared_data / "cloudevents_spec" / "cloudevents.json").read_text())
    validator = Draft7Validator(schema, format_checker=FormatChecker())
    invalid = cases(suite, "invalid-events.json")
    taken = {case["id"] for case in invalid if validator.is_valid(case["event"])}
    assert "invalidUnknownSpecVersion" in taken
    assert "invalidBothDataAndDataBase64" in taken
    assert not [c["id"] for c in invalid if isinstance(check(c["event"]), CloudEvent)]


def test_the_official_sdk_alone_would_not_do(suite: Path) -> None:
    """Why the rules are written out: the SDK takes some invalid events and refuses a valid one.

    When it no longer does, this fails, and the rules here may shrink.
    """
    from cloudevents.core.bindings.http import HTTPMessage, from_structured_event

    def takes(event: dict[str, Any]) -> bool:
        message = HTTPMessage({"content-type": STRUCTURED}, json.dumps(event).encode())
        try:
            from_structured_event(message)
        except Exception:  # whatever it raises, it does not take it
            return False
        return True

    taken = {c["id"] for c in cases(suite, "invalid-events.json") if takes(c["event"])}
    assert {"invalidNoId", "invalidTimeToMinute"} <= taken
    valid = cases(suite, "valid-events.json")
    assert [c["id"] for c in valid if not takes(c["event"])] == ["validMinimalWithNullForOptional"]
    assert all(isinstance(check(c["event"]), CloudEvent) for c in valid)
