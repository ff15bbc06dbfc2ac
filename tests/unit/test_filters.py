"""What a subscription hears: types, conditions, their refusals."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from services.contracts.events import SUBSCRIPTION_STOPPED, Message, message_headers
from services.contracts.schemas import STRUCTS
from services.stage_service.playbook import Playbook, parse_playbook
from services.stage_service.subscriptions.filters import (
    FIELDS,
    TYPES,
    FilterError,
    check_filter,
    check_types,
    matcher_for,
    variables_of,
)
from tests.conftest import ROOT

MOVED = "baton.stage.transitioned.v1"
OFFERED = "baton.handoff.offered.v1"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def playbooks() -> dict[str, Playbook]:
    """The playbook that comes along."""
    text = (ROOT / "playbooks" / "sales.yaml").read_text("utf-8")
    return {"sales": parse_playbook(text, "sales.yaml")}


def message(type: str = MOVED, id: str = "e-1", **data: Any) -> Message:
    """A published event with the members that filters read."""
    body: dict[str, Any] = {
        "sequence": 3, "lead": {"id": "l-1", "email": "ada@example.com", "name": "Ada", "company": None,
                                "attributes": {"employees": "250", "country": "DE", "budget": 7}},
        "journey": {"id": "j-1", "playbook": "sales", "key": "main"}, "from": "lead", "to": "mql",
        "responsible": {"role": "ae", "owner": {"id": "elena", "name": "Elena"}}, "handoff": True,
        "previous_responsible": {"role": "lead_agent", "owner": None},
        "cause": {"event_type": "demo.requested", "event_source": "/website", "rule": "r", "actor": None},
        "score": {"fit": 25, "intent": 30, "total": 55}, "stage": {"key": "mql", "band": "tofu"},
    } | data  # fmt: skip
    return Message(
        "baton.transitions", "l-1", message_headers(id, type, NOW), msgspec.json.encode(body)
    )


def hears(
    playbooks: dict[str, Playbook], event: Message, *types: str, when: str | None = None
) -> bool:
    """Whether a subscription with these wishes hears `event`."""
    return matcher_for(SimpleNamespace(types=types, filter=when), playbooks)(event)


@pytest.mark.parametrize(
    ("types", "heard"),
    [
        ((), True), ((MOVED,), True), ((OFFERED,), False), (("baton.stage.*",), True), (("*",), True),
        (("baton.handoff.*", MOVED), True), (("baton.handoff.*",), False),
        (("baton.stage.transitioned",), False),
    ],
)  # fmt: skip
def test_types_choose(playbooks: dict[str, Playbook], types: tuple[str, ...], heard: bool) -> None:
    assert hears(playbooks, message(), *types) is heard


@pytest.mark.parametrize(
    ("when", "heard"),
    [
        ("to == 'mql'", True), ("to == 'sql'", False), ("from == 'lead' && playbook == 'sales'", True),
        ("lead.employees >= 200", True), ("lead.employees >= 300", False), ("lead.budget > 6.5", True),
        ("lead.country in ['DE', 'AT']", True), ("lead.company == 'Example'", False),
        ("lead.company != 'Example'", False), ("!known.lead.company", True), ("known.owner.id", True),
        ("owner.id == 'elena' || lead.company == 'x'", True), ("handoff && role == 'ae'", True),
        ("previous_role == 'lead_agent'", True), ("score.total > 50 && score.fit == 25", True),
        ("event.type.startsWith('baton.stage.')", True), ("stage == 'mql' && band == 'tofu'", True),
        ("event.time > timestamp('2026-01-01T00:00:00Z')", True), ("sequence == 3", True),
        ("reason == 'no budget'", False), ("cause.event_source == '/website'", True), ("true", True),
        ("lead.email.endsWith('@example.com')", True), ("known.to && known.from", True),
    ],
)  # fmt: skip
def test_a_condition_chooses_and_the_unknown_is_false(
    playbooks: dict[str, Playbook], when: str, heard: bool
) -> None:
    assert check_filter(when, playbooks) is None
    assert hears(playbooks, message(), when=when) is heard


def test_a_filter_reads_every_kind_of_event(playbooks: dict[str, Playbook]) -> None:
    """The same name is the same thing in each: the role of a handoff is a role."""
    offered = message(OFFERED, "e-2", role="csm", owner={"id": "kim", "name": "Kim"}, state="offered",
                      responsible=None, stage="onboarding", round=2, to=None)  # fmt: skip
    for when in ("role == 'csm'", "owner.id == 'kim'", "state == 'offered'", "round > 1",
                 "stage == 'onboarding'"):  # fmt: skip
        assert hears(playbooks, offered, when=when), when
    assert not hears(playbooks, offered, when="to == 'mql'")
    merged = Message(
        "baton.transitions", "l-7", message_headers("e-3", "baton.lead.merged.v1", NOW),
        msgspec.json.encode({"lead_id": "l-7", "reason": "same e-mail"}),
    )  # fmt: skip
    assert hears(playbooks, merged, when="lead.id == 'l-7' && reason == 'same e-mail'")


def test_what_is_remembered_is_of_the_same_values(playbooks: dict[str, Playbook]) -> None:
    """A verdict is kept by the values it was made of: names without a dot are values too."""
    matches = matcher_for(SimpleNamespace(types=(), filter="to == 'mql'"), playbooks)
    seen = [matches(message(id=f"m-{n}", to=to)) for n, to in enumerate(("mql", "sql", "mql"))]
    assert seen == [True, False, True]


def test_a_message_without_data_matches_no_condition(playbooks: dict[str, Playbook]) -> None:
    """As a tombstone."""
    empty = Message("baton.leads", "l-1", message_headers("e-9", MOVED, NOW), b"")
    assert not hears(playbooks, empty, when="to == 'mql'")
    assert hears(playbooks, empty, MOVED)


@pytest.mark.parametrize(
    ("text", "told", "remedy"),
    [
        ("lead.employes > 3", "column 5: undeclared reference to 'lead.employes'", "lead.employees"),
        ("score.totl > 3", "score.totl", "score.total"),
        ("to = 'mql'", "column 4", "docs/webhooks.md"),
        ("to", "gives a value of type string", "docs/webhooks.md"),
        ("lead.employees == 'many'", "column 16", "docs/webhooks.md"),
        ("has(lead.email)", "known.lead.x", "docs/webhooks.md"),
        ("to == 'mql' &&\n  frm == 'lead'", "line 2, column", "from"),
        ("", "", "docs/webhooks.md"),
        ("x" * 4001, "longer than", "Shorten"),
        ("(" * 2000, "", "docs/webhooks.md"),
    ],
)  # fmt: skip
def test_a_filter_that_cannot_work_is_refused_with_its_place(
    playbooks: dict[str, Playbook], text: str, told: str, remedy: str
) -> None:
    refused = check_filter(text, playbooks)
    assert refused is not None
    assert refused.field == "filter"
    assert told in refused.reason
    assert remedy in refused.remedy
    with pytest.raises(FilterError, match=re.escape(refused.reason)):
        matcher_for(SimpleNamespace(types=(), filter=text), playbooks)


def test_attributes_of_several_playbooks_have_one_type(playbooks: dict[str, Playbook]) -> None:
    sales = playbooks["sales"]
    other = msgspec.structs.replace(sales) if isinstance(sales, msgspec.Struct) else None
    assert other is None  # a dataclass: a stand-in with other attributes is enough
    second = SimpleNamespace(
        attributes={"lead": {"employees": "double", "country": "int", "seats": "int"}}
    )
    both: Any = {"sales": sales, "expansion": second}
    kinds = variables_of(both)
    assert kinds["lead.employees"] == "double"
    assert kinds["lead.country"] == "string"
    assert kinds["lead.seats"] == "int"
    assert hears(both, message(), when="lead.employees >= 200.0")


@pytest.mark.parametrize(
    ("types", "remedy"),
    [
        (("baton.stage.transitiond.v1",), "Did you mean 'baton.stage.transitioned.v1'?"),
        (("stage.*",), "See docs/events.md"), (("baton.*.v1",), ""), (("",), ""), (("*",) * 33, "'*'"),
        (("baton.stage.transitioned.v1", "x\x00"), "docs/events.md"),
    ],
)  # fmt: skip
def test_types_that_nothing_has_are_refused(types: tuple[str, ...], remedy: str) -> None:
    refused = check_types(types)
    assert refused is not None
    assert refused.field == "types"
    assert remedy in refused.remedy


def test_every_published_type_can_be_asked_for() -> None:
    assert check_types(TYPES) is None
    assert set(TYPES) < set(STRUCTS)
    assert check_types((SUBSCRIPTION_STOPPED,)) is not None  # its topic is not delivered
    assert check_types(("*", "baton.*", "baton.handoff.*")) is None


def test_equal_wishes_are_asked_once(playbooks: dict[str, Playbook]) -> None:
    """A hundred subscriptions with the same wishes cost one: whoever delivers remembers by matcher."""
    one, same, other = (
        matcher_for(SimpleNamespace(types=types, filter=when), playbooks)
        for types, when in (
            ((MOVED, "x*"), "to == 'mql'"),
            (("x*", MOVED), "to == 'mql'"),
            ((MOVED,), None),
        )
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != other


def test_every_variable_is_documented() -> None:
    """docs/webhooks.md lists what a filter may say."""
    text = (ROOT / "docs" / "webhooks.md").read_text("utf-8")
    assert [name for name in FIELDS if f"`{name}`" not in text] == []
