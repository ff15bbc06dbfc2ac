"""The checker of schema changes: every planted break is found, and what breaks nobody passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.contracts.compatibility import breaks_readers, breaks_writers

PUBLISHED: dict[str, Any] = {
    "$ref": "#/$defs/Moved",
    "$defs": {
        "Moved": {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "sequence": {"type": "integer", "minimum": 1},
                "score": {"type": "number"},
                "state": {"enum": ["open", "closed"]},
                "lead": {"$ref": "#/$defs/Lead"},
                "owner": {"anyOf": [{"$ref": "#/$defs/Person"}, {"type": "null"}]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "stages": {"type": "object", "additionalProperties": {"type": "integer"}},
                "note": {"type": "string"},
                "attributes": {"type": "object"},
            },
            "required": ["id", "sequence", "score", "state", "lead", "owner", "tags", "stages"],
        },
        "Lead": {
            "type": "object",
            "properties": {"id": {"type": "string"}, "email": {"type": ["string", "null"]}},
            "required": ["id", "email"],
        },
        "Person": {
            "type": "object",
            "properties": {"id": {"type": "string"}},
            "required": ["id"],
        },
    },
}


def changed(change: str) -> dict[str, Any]:
    """The schema after a line of Python on its definitions."""
    schema = copy.deepcopy(PUBLISHED)
    moved, lead, person = (schema["$defs"][n] for n in ("Moved", "Lead", "Person"))
    p = moved["properties"]
    exec(change, {"p": p, "moved": moved, "lead": lead, "person": person, "schema": schema})
    return schema


BREAKS = {
    "a field is gone": "del p['note']",
    "a required field is gone": "del p['id']; moved['required'].remove('id')",
    "a field has another name": "p['seq'] = p.pop('sequence'); moved['required'][1] = 'seq'",
    "a field has another type": "p['sequence'] = {'type': 'string'}",
    "an integer became any number": "p['sequence']['type'] = 'number'",
    "a field may be null": "p['id'] = {'type': ['string', 'null']}",
    "a field may be null by anyOf": "p['id'] = {'anyOf': [{'type': 'string'}, {'type': 'null'}]}",
    "a field may be anything": "p['id'] = {}",
    "a field is not always there any more": "moved['required'].remove('tags')",
    "an inner field is gone": "del lead['properties']['email']",
    "an inner field is not always there": "lead['required'].remove('id')",
    "a field of an alternative is gone": "del person['properties']['id']; person['required'] = []",
    "an alternative came": "p['owner']['anyOf'].append({'type': 'string'})",
    "a value came": "p['state']['enum'].append('lost')",
    "values are free": "p['state'] = {'type': 'string'}",
    "items changed": "p['tags']['items'] = {'type': 'integer'}",
    "items are of any type": "del p['tags']['items']",
    "a list became its only item": "p['tags'] = {'type': 'string'}",
    "values of a map changed": "p['stages']['additionalProperties'] = {'type': 'string'}",
    "a bound is gone": "del p['sequence']['minimum']",
    "a bound is lower": "p['sequence']['minimum'] = 0",
}
HARMLESS = {
    "nothing": "",
    "a new field": "p['more'] = {'type': 'string'}",
    "a new field that is always there": "p['more'] = {'type': 'string'}; moved['required'].append('more')",
    "a field is always there now": "moved['required'].append('note')",
    "a number is an integer now": "p['score']['type'] = 'integer'",
    "null comes no more": "lead['properties']['email'] = {'type': 'string'}",
    "an alternative less": "p['owner'] = {'$ref': '#/$defs/Person'}",
    "a value less": "p['state']['enum'].remove('closed')",
    "one value": "p['state'] = {'const': 'open'}",
    "a definition has another name": "schema['$defs']['L'] = lead; p['lead'] = {'$ref': '#/$defs/L'}",
    "a definition is written out": "p['lead'] = lead",
    "said otherwise": "p['id'] |= {'description': 'x', 'examples': ['y'], 'title': 'Id'}",
    "a map says of what": "p['attributes']['additionalProperties'] = {'type': 'string'}",
    "a stricter bound": "p['sequence']['minimum'] = 2",
    "types in another order": "lead['properties']['email'] = {'type': ['null', 'string']}",
    "types as alternatives": "lead['properties']['email'] = "
    "{'anyOf': [{'type': 'null'}, {'type': 'string'}]}",
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS.keys())
def test_a_break_is_found(change: str) -> None:
    found = breaks_readers(PUBLISHED, changed(change))
    assert found, change
    assert all("the document" not in line or "anything" in line for line in found), found


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_breaks_nobody_passes(change: str) -> None:
    assert breaks_readers(PUBLISHED, changed(change)) == []


FORM: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "size": {"enum": ["s", "m"]},
        "rules": {"type": "array", "items": {"$ref": "#/$defs/Rule"}},
    },
    "required": ["name"],
    "$defs": {"Rule": {"type": "object", "properties": {"to": {"type": "string"}}}},
}


@pytest.mark.parametrize(
    "change",
    [
        "form['required'].append('size')",
        "p['more'] = {'type': 'string'}; form['required'].append('more')",
        "del p['size']",
        "p['size']['enum'].remove('m')",
        "p['name']['type'] = 'integer'",
        "p['name']['maxLength'] = 5",
        "p['name']['pattern'] = 'x'",
        "rule['required'] = ['to']",
        "rule['properties']['to'] = {'type': 'boolean'}",
    ],
)
def test_what_a_writer_may_not_write_any_more_is_found(change: str) -> None:
    new = copy.deepcopy(FORM)
    exec(change, {"form": new, "p": new["properties"], "rule": new["$defs"]["Rule"]})
    assert breaks_writers(FORM, new), change


@pytest.mark.parametrize(
    "change",
    [
        "",
        "p['more'] = {'type': 'string'}",
        "p['size']['enum'].append('l')",
        "p['name']['type'] = ['string', 'null']",
        "p['name']['maxLength'] = 20",
        "form['required'].clear()",
    ],
)
def test_what_a_writer_may_write_besides_passes(change: str) -> None:
    new = copy.deepcopy(FORM)
    exec(change, {"form": new, "p": new["properties"], "rule": new["$defs"]["Rule"]})
    assert breaks_writers(FORM, new) == []
