"""Connector files: mistakes with line, column and remedy; what a delivery asks, without any network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from services.baton.cli import app
from services.contracts.yaml_source import SourceError
from services.stage_service.sources.claims import claim_of, value_hash
from services.stage_service.sources.expressions import compile_expression
from services.stage_service.subscriptions.connectors.book import ConnectorBook, load_connector
from services.stage_service.subscriptions.connectors.checks import defects, first_defect
from services.stage_service.subscriptions.connectors.connector import Connector
from services.stage_service.subscriptions.connectors.connector_file import parse_connector
from services.stage_service.subscriptions.connectors.delivery import (
    Answer,
    Asked,
    Finished,
    Recall,
    Wrote,
    retry_after,
    run,
)
from services.stage_service.subscriptions.connectors.making import Connectors, NoConnectorError
from tests.conftest import ROOT
from tests.fakes.house import subscription

HEAD = """\
name: x
title: X
evidence: vendor documentation
types: [baton.stage.transitioned.v1]
auth: [{bearer: token}]
base: https://crm.example
"""
RECORD = "records: {person: {system: x, fields: {name: lead.name, stage: {value: event.to, wins: baton}}}}\n"
STEP = "steps:\n  - {name: a, request: GET /a}\n"


def connector(more: str = STEP, head: str = HEAD) -> Connector:
    """A connector file with `more`."""
    return parse_connector(head + more, "x.yaml")


@pytest.mark.parametrize(
    ("more", "line", "column", "message"),
    [
        ("steps:\n  - name: a\n    request: GET /{evnt.to}\n", 9, 24, "undeclared reference to 'evnt.to'"),
        ("steps:\n  - name: a\n    request: FETCH /a\n", 9, 14, "is not a request"),
        ("steps:\n  - name: a\n    request: GET /a\n    when: event.to ==\n", 10, 22, "Syntax error"),
        ("steps:\n  - {name: a, request: GET /a, boddy: {}}\n", 8, 32, "unknown key 'boddy'"),
        ("steps:\n  - {request: GET /a}\n", 8, 5, "has no 'name'"),
        ("steps: []\n", 7, 8, "'steps' is empty"),
        (STEP + "  - {name: a, request: GET /b}\n", 9, 5, "two steps are named 'a'"),
        ("steps:\n  - {name: a, request: POST /a, writes: true}\n", 8, 41, "'writes' without 'record'"),
        (RECORD + "steps:\n  - {name: a, request: POST /a, record: persn}\n", 9, 41,
         "unknown record 'persn'"),
        (RECORD + "steps:\n  - {name: a, request: POST /a, record: person, creates: true}\n", 9, 58,
         "'creates' without the new record's id"),
        ("steps:\n  - {name: a, request: POST /a, keep_s: 5}\n", 8, 41, "'keep_s' of a request"),
        ("records: {p: {fields: {n: {value: lead.name, wins: me}}}}\n" + STEP, 7, 52, "unknown side 'me'"),
        (STEP + "answers:\n  - {status: 429, means: later}\n", 10, 26, "unknown meaning 'later'"),
        (STEP + "answers:\n  - {means: wait}\n", 10, 5, "it fits every answer"),
        (STEP + "config: {url: {default: x}}\n", 9, 10, "has no 'about'"),
        ("steps:\n  - name: a\n    request: POST /a\n    body: {x: {y: 'lead.'}}\n", 10, 25, "Syntax error"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(
    more: str, line: int, column: int, message: str
) -> None:
    with pytest.raises(SourceError) as caught:
        connector(more)
    places = [(p.line, p.column) for p in caught.value.problems if message in p.message]
    assert (line, column) in places, str(caught.value)
    assert all(p.remedy for p in caught.value.problems)


def test_every_way_to_authenticate_is_one() -> None:
    """The first whose credentials are all there is taken."""
    head = HEAD.replace(
        "[{bearer: token}]",
        "[{oauth2: {grant: jwt_bearer, token_url: 'https://x/t', audience: 'https://x'}}, "
        "{header: {name: X-Key, from: key}}, {query: {name: k, from: key2}}]",
    )
    it = connector(head=head)
    assert [a.kind for a in it.auth] == ["oauth2", "header", "query"]
    found = it.auth_for({"key2": "1", "client_id": "2"})
    assert found is not None
    assert found.kind == "query"
    assert it.auth_for({"client_id": "2"}) is None


@pytest.mark.parametrize("name", ["hubspot", "pipedrive", "salesforce"])
def test_the_connectors_that_come_along_are_right(name: str) -> None:
    it = load_connector(ROOT / "connectors" / f"{name}.yaml")
    assert it.name == name
    assert all(setting.about for setting in it.settings)


def test_the_example_of_the_documentation_works() -> None:
    """The connector of 'Write your own', and what it asks about a lead that Kontor does not know."""
    text = (ROOT / "docs" / "connectors.md").read_text("utf-8")
    part = text[text.index("## Write your own") :]
    it = parse_connector(part.split("```yaml\n")[1].split("```")[0], "kontor.yaml")
    config = it.configured({"base_url": "https://kontor.example"})
    answers = [Answer(200, {}, {"people": []}), Answer(201, {}, {"id": 5})]
    lead = {"email": "ada@example.com", "name": "Ada"}
    asked, finished = driven(it, answers, lead=lead, config=config)
    assert [a.step for a in asked] == ["find", "create"]
    assert json.loads(asked[1].body or b"") == {
        "mail": "ada@example.com", "name": "Ada", "temperature": "warm"
    }  # fmt: skip
    assert finished.verdict == "ok"
    assert finished.known[0][1] == "5"


def test_config_is_laid_over_the_defaults() -> None:
    it = load_connector(ROOT / "connectors" / "hubspot.yaml")
    found = it.configured({"stages": {"mql": "opportunity", "sql": None}, "backward": False})
    assert found["stages"]["mql"] == "opportunity"
    assert "sql" not in found["stages"]
    assert found["stages"]["closed_won"] == "customer"
    assert found["backward"] is False
    assert found["base_url"] == "https://api.hubapi.com"


def test_a_wrong_config_is_told_with_its_place() -> None:
    it = load_connector(ROOT / "connectors" / "hubspot.yaml")
    config = {"stage": {}, "backward": "no", "owners": []}
    found = {d.field: d for d in defects(it, config, {"acces_token": "s3cret"})}
    assert list(found) == [
        "config.stage", "config.backward", "config.owners", "credentials.acces_token", "credentials",
    ]  # fmt: skip
    assert found["config.stage"].remedy == "Did you mean 'stages'?"
    assert "s3cret" not in str(found)
    assert defects(it, {"mark": 7}, {"access_token": "x"}) == []


async def test_a_subscription_of_no_connector_is_told_so() -> None:
    book = ConnectorBook(ROOT / "connectors")
    found = first_defect(book, "hubspt", {}, {})
    assert found is not None
    assert (found.code, found.field, found.remedy) == (
        "unknown-connector", "connector", "Did you mean 'hubspot'?"
    )  # fmt: skip
    assert first_defect(book, "hubspot", {}, {"access_token": "x"}) is None
    found = first_defect(book, "hubspot", {}, {})
    assert found is not None
    assert found.code == "missing-credentials"
    with pytest.raises(NoConnectorError, match="Did you mean 'hubspot'"):
        Connectors(book, Nowhere()).target(subscription("hubspt", {}), aiohttp.ClientSession)


class Nowhere:
    """No database: nothing here asks for one."""

    async def execute(self, query: str, *args: Any) -> str:
        """Fail."""
        raise AssertionError(query)

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """Fail."""
        raise AssertionError(query)


def driven(
    it: Connector, answers: list[Answer], memory: dict[str, str] | None = None, **scope: Any
) -> tuple[list[Asked], Finished]:
    """Run a delivery with `answers` in turn."""
    whole = {
        "event": {"to": "mql"},
        "lead": {"name": "Ada"},
        "owner": None,
        "config": {},
        "known": {},
    }
    steps = run(it, whole | scope)
    asked: list[Asked] = []
    came: Any = None
    while True:
        try:
            wish = steps.send(came)
        except StopIteration as end:
            return asked, end.value
        came = None
        if isinstance(wish, Asked):
            came = answers[len(asked)]
            asked.append(wish)
        elif isinstance(wish, Recall):
            came = memory
        else:
            assert isinstance(wish, Wrote)


WRITER = (
    RECORD
    + """\
steps:
  - name: find
    request: GET /people/{lead.name}
    query: {q: lead.email}
    record: person
    reads: {id: answer.id, fields: answer}
    answers: [{status: 404, means: absent}]
  - name: write
    when: record.person.id != null && size(record.person.changes) > 0
    request: PATCH /people/{record.person.id}
    body: {person: record.person.changes, note: lead.note, tags: [event.to, lead.note]}
    record: person
    writes: true
"""
)


def test_what_is_asked() -> None:
    """What has no value is left out, and what is put into an address is escaped."""
    lead = {"name": "A/da?", "email": None}
    asked, finished = driven(
        connector(WRITER), [Answer(200, {}, {"id": 7, "name": "x"}), Answer(200)], lead=lead
    )
    assert [a.url for a in asked] == ["/people/A%2Fda%3F", "/people/7"]
    assert json.loads(asked[1].body or b"") == {"person": {"stage": "mql"}, "tags": ["mql"]}
    assert asked[1].writing is not None
    assert asked[1].writing.fields == {"stage": value_hash("mql")}
    assert finished.verdict == "ok"
    assert finished.known == (
        ("person", "7", {"name": value_hash("A/da?"), "stage": value_hash("mql")}),
    )


@pytest.mark.parametrize(
    ("theirs", "last", "ours", "written"),
    [
        (None, None, "Ada", True),  # theirs is empty
        ("Ada", None, "Ada", False),  # nothing differs
        ("Eva", None, "Ada", False),  # the first meeting
        ("Eva", "Ada", "Ada", False),  # they changed it since
        ("Eva", "Eva", "Ada", True),  # we did
        (None, "Ada", "Ada", False),  # they emptied it since
        ("Eva", "Ada", "Mia", True),  # both did: the event is the later
    ],
)
def test_the_last_writer_has_the_say(
    theirs: str | None, last: str | None, ours: str, written: bool
) -> None:
    memory = {"name": value_hash(last)} if last else None
    answer = Answer(200, {}, {"id": "7", "name": theirs, "stage": "mql"})
    asked, _ = driven(connector(WRITER), [answer, Answer(200)], memory, lead={"name": ours})
    assert [a.step for a in asked] == ["find", "write"][: 1 + written]


@pytest.mark.parametrize(
    ("status", "means", "verdict"),
    [
        (200, None, "ok"), (204, None, "ok"), (400, None, "refused"), (404, None, "refused"),
        (401, None, "wait"), (408, None, "wait"), (429, None, "wait"), (500, None, "wait"),
        (301, None, "refused"), (400, "wait", "wait"), (500, "skip", "skip"), (409, "busy", "busy"),
        (200, "refused", "refused"), (409, "again", "busy"),
    ],
)  # fmt: skip
def test_what_a_status_means(status: int, means: str | None, verdict: str) -> None:
    told = f"answers: [{{status: {status}, means: {means}}}]\n" if means else ""
    asked, finished = driven(connector(STEP + told), [Answer(status)] * 5)
    assert finished.verdict == verdict
    assert len(asked) == (3 if means == "again" else 1)


def test_a_request_that_lacks_a_value_is_not_made() -> None:
    it = connector("steps:\n  - {name: a, request: 'GET /a/{known.crm}'}\n")
    asked, finished = driven(it, [])
    assert asked == []
    assert finished.reason == "step 'a' cannot be made: known.crm has no value"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "120"}, 120.0), ({}, None), ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT",
          "date": "Wed, 21 Oct 2026 07:27:00 GMT"}, 60.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
    ],
)  # fmt: skip
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("at(item.table, item.key)", "x"), ("at(item.table, 'no')", None), ("at(item.key, 'a')", None),
        ("soql(\"O'Hara\\\\\")", "'O\\'Hara\\\\'"), ("url('a b/ä')", "a%20b%2F%C3%A4"),
        ("changed(item.old, item.new)", {"b": 3}), ("changed(null, item.new)", None),
        ("without(item.new, ['a', 'c'])", {"b": 3}),
    ],
)  # fmt: skip
def test_functions(text: str, value: Any) -> None:
    item = {
        "table": {"k": "x"},
        "key": "k",
        "old": {"a": 1, "b": 2},
        "new": {"a": 1, "b": 3, "c": None},
    }
    assert compile_expression(text).evaluate({"item": item}) == value


def test_values_are_the_same_however_a_tool_writes_them() -> None:
    assert value_hash(250) == value_hash("250") == value_hash(250.0) == value_hash(" 250 ")
    assert value_hash(None) == value_hash("") == value_hash([])
    assert value_hash(True) == value_hash("true")
    assert value_hash([{"a": 1, "b": 2}]) == value_hash([{"b": 2, "a": 1}])
    assert value_hash("a") != value_hash("b")


def test_what_an_emptied_property_claims() -> None:
    """That HubSpot tells of a property without a value is said, too."""
    from services.stage_service.sources.book import load_source

    source = load_source(ROOT / "sources" / "hubspot.yaml")
    rule = source.events[0].echo
    assert rule is not None
    item = {"subscriptionType": "contact.propertyChange", "objectId": 7,
            "propertyName": "lifecyclestage", "propertyValue": ""}  # fmt: skip
    claim = claim_of(rule, {"item": item, "marks": []})
    assert claim is not None
    assert (claim.record, claim.fields) == ("contact:7", {"lifecyclestage": value_hash("")})


def test_a_file_that_becomes_wrong_leaves_its_last_good_version(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(HEAD + STEP)
    book = ConnectorBook(tmp_path)
    book.refresh()
    assert list(book.connectors) == ["x"]
    path.write_text(HEAD + "steps: nonsense, and longer than before\n")
    book.refresh()
    assert list(book.connectors) == ["x"]
    assert list(book.refused) == ["x"]
    path.unlink()
    book.refresh()
    assert (book.connectors, book.refused) == ({}, {})


def test_a_file_that_could_not_be_read_is_looked_at_again(tmp_path: Path) -> None:
    """Also when it looks unchanged, as when only the rights to read it were given."""
    path = tmp_path / "x.yaml"
    path.mkdir()
    book = ConnectorBook(tmp_path)
    book.refresh()
    assert list(book.refused) == ["x"]
    path.rmdir()
    path.write_text(HEAD + STEP)
    book.refresh()
    assert (list(book.connectors), book.refused) == (["x"], {})


EVENT = {
    "type": "baton.stage.transitioned.v1", "transition_id": "t-1",
    "lead": {"id": "l-1", "email": "ada@example.com", "name": "Ada", "company": None, "attributes": {}},
    "journey": {"id": "j-1", "playbook": "sales", "key": "main"}, "from": "lead", "to": "mql",
    "responsible": {"role": "ae", "owner": {"id": "elena", "name": "Elena"}},
}  # fmt: skip


def test_trying_a_connector_shows_its_requests(tmp_path: Path) -> None:
    event = tmp_path / "event.json"
    event.write_text(
        json.dumps({"specversion": "1.0", "id": "t-1", "type": EVENT["type"], "data": EVENT})
    )
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps({"owner": {"body": {"results": [{"id": "77"}]}}}))
    result = CliRunner().invoke(app, [
        "connectors", "try", "hubspot", str(event), "--answers", str(answers), "--owner-email",
        "elena@example.com", "--json", "--dir", str(ROOT / "connectors"),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert [r["step"] for r in told["requests"]] == ["owner", "find", "create"]
    assert told["requests"][1]["url"].startswith(
        "https://api.hubapi.com/crm/v3/objects/contacts/ada%40example.com?idProperty=email&"
    )
    assert told["requests"][2]["body"] == {"inputs": [{
        "id": "ada@example.com", "idProperty": "email",
        "properties": {"email": "ada@example.com", "lifecyclestage": "marketingqualifiedlead",
                       "hubspot_owner_id": "77"},
    }]}  # fmt: skip
    assert "authorization" not in result.output.lower()


def test_the_commands_tell_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(HEAD + STEP)
    runner = CliRunner()
    assert runner.invoke(app, ["connectors", "validate", str(path)]).exit_code == 0
    path.write_text(HEAD + "steps: []\n")
    for arguments in (["validate", str(path)], ["list", "--dir", str(tmp_path)]):
        result = runner.invoke(app, ["connectors", *arguments])
        assert result.exit_code == 1
        assert f"{path}:7:8: 'steps' is empty. Name at least one request." in result.output
    result = runner.invoke(
        app, ["connectors", "try", "hubspt", str(path), "--dir", str(ROOT / "connectors")]
    )
    assert result.exit_code == 2
    assert "Did you mean 'hubspot'?" in result.output
