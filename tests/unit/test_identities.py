"""Who an event is about: keys under a policy, and when two leads are the same person."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.events import MAIN, LeadEvent, identities_of
from services.contracts.problems import Defect
from services.stage_service.accounts import account_of, company_domain
from services.stage_service.identities import Key, Policy, e164, is_anchor, is_shared, keys_of
from services.stage_service.resolution import Decision, Resolution, Standing, decide, involved


def keys(policy: Policy = Policy(), **data: Any) -> list[Key]:  # noqa: B008  frozen
    sent = identities_of(data)
    assert not isinstance(sent, Defect)
    return list(keys_of(sent, data, policy)[0])


def test_an_address_is_an_identity_as_it_was_sent() -> None:
    assert keys(email=" Ada+News@Example.COM ") == [("email", "ada+news@example.com")]


def test_folded_addresses_are_found_as_sent_and_as_folded() -> None:
    plus = Policy(fold_plus=True)
    assert keys(plus, email="ada+news@example.com") == [
        ("email", "ada+news@example.com"), ("email", "ada@example.com"),
    ]  # fmt: skip
    assert keys(plus, email="+news@example.com") == [("email", "+news@example.com")]
    dots = Policy(fold_dots=True)
    assert keys(dots, email="a.da@gmail.com")[1:] == [("email", "ada@gmail.com")]
    assert keys(dots, email="a.da@example.com") == [("email", "a.da@example.com")]
    case = Policy(keep_case=True)
    assert keys(case, email=" Ada@Example.COM ") == [("email", "Ada@example.com")]


def test_several_ids_of_one_system() -> None:
    assert keys(external_ids={"segment": ["new", "old", "new"], "crm": 7}) == [
        ("external:crm", "7"), ("external:segment", "new"), ("external:segment", "old"),
    ]  # fmt: skip
    read = identities_of({"external_ids": {"segment": [str(n) for n in range(17)]}})
    assert isinstance(read, Defect)
    assert read.code == "too-many"


@pytest.mark.parametrize(
    ("text", "region", "number"),
    [
        ("+49 30 901820", None, "+4930901820"), ("030/90 18 20", "DE", "+4930901820"),
        ("030/90 18 20", None, None), ("(212) 555-0100", "US", "+12125550100"), ("call me", "US", None),
        ("12", "US", None), ("555 555 5555", "US", None), ("0000000000", "US", None),
    ],
)  # fmt: skip
def test_phones_are_e164(text: str, region: str | None, number: str | None) -> None:
    assert e164(text, region) == number


def test_a_phone_that_cannot_be_read_is_a_warning() -> None:
    for phone in ("ask my secretary", "0", "x" * 65, ["1"], {"a": 1}, True):
        sent = identities_of({"email": "a@b.example", "phone": phone})
        assert not isinstance(sent, Defect)
        found, warnings = keys_of(sent, {}, Policy())
        assert found == (("email", "a@b.example"),) or list(found) == [("email", "a@b.example")]
        assert all("phone" in w for w in warnings)
    assert keys_of((("phone", "12"),), {}, Policy())[1]


@pytest.mark.parametrize("value", [
    "null", "Undefined", "[object Object]", "anonymous", "0", "-1", "--",
    "00000000-0000-0000-0000-000000000000", "False", "{{contact.id}}",
    "*|UNIQID|*", "%%subscriberid%%", "${user.id}",
])  # fmt: skip
def test_values_that_stand_for_no_id_name_nobody(value: str) -> None:
    found, warnings = keys_of((("anonymous", value), ("external:crm", value)), {}, Policy())
    assert (list(found), len(warnings)) == ([], 2)


def test_a_shared_mailbox_names_nobody_beside_a_strong_identity() -> None:
    assert keys(email="sales@b.example") == [("email", "sales@b.example")]
    assert keys(email="Sales+x@b.example", anonymous_id="x") == [
        ("email", "sales+x@b.example"), ("anonymous", "x"),
    ]  # fmt: skip
    assert keys(email="info@b.example", external_ids={"crm": "1"}) == [("external:crm", "1")]
    assert not is_shared(("email", "salesman@b.example"), Policy())


START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
EMAIL, OTHER, CRM = ("email", "a@x"), ("email", "c@x"), ("external:crm", "1")
PHONE, BROWSER = ("phone", "+491"), ("anonymous", "x")
KNOWN, VISITOR = Standing(True, 1), Standing(False, 1)


def never(_: str, __: str) -> bool:
    return False


def decided(
    named: list[Key], owned: dict[Key, str], policy: Policy = Policy(), **standing: Standing  # noqa: B008
) -> Decision:  # fmt: skip
    return decide(named, owned, standing, never, policy)


def test_nobody_owns_them_a_new_lead() -> None:
    assert decided([EMAIL, BROWSER], {}) == Decision(None, [], [], [], [EMAIL, BROWSER], [])


def test_two_strong_identities_of_one_event_are_one_person() -> None:
    found = decided([EMAIL, CRM], {EMAIL: "2", CRM: "1"}, **{"1": KNOWN, "2": KNOWN})
    assert (found.lead, found.merged, found.refused) == ("1", ["2"], [])


def test_a_weak_identity_of_a_known_lead_merges_nobody() -> None:
    for weak in (PHONE, BROWSER):
        found = decided([EMAIL, weak], {EMAIL: "2", weak: "1"}, **{"1": KNOWN, "2": KNOWN})
        assert (found.lead, found.merged, [r.lead for r in found.refused]) == ("2", [], ["1"])
        found = decided([EMAIL, weak], {weak: "1"}, **{"1": KNOWN})
        assert (found.lead, found.claimed) == (None, [EMAIL])


def test_a_visitor_becomes_the_known_lead_and_the_older_survives() -> None:
    found = decided([EMAIL, BROWSER], {EMAIL: "2", BROWSER: "1"}, **{"1": VISITOR, "2": KNOWN})
    assert (found.lead, found.merged) == ("1", ["2"])
    found = decided([EMAIL, BROWSER], {BROWSER: "1"}, **{"1": VISITOR})
    assert (found.lead, found.claimed) == ("1", [EMAIL])


def test_what_has_a_weak_identity_only_finds_the_known_lead_first() -> None:
    found = decided([PHONE, BROWSER], {PHONE: "1", BROWSER: "2"}, **{"1": VISITOR, "2": KNOWN})
    assert (found.lead, found.merged) == ("1", ["2"])
    found = decided([PHONE, BROWSER], {PHONE: "1", BROWSER: "2"}, **{"1": KNOWN, "2": KNOWN})
    assert (found.lead, found.merged, [r.lead for r in found.refused]) == ("1", [], ["2"])


def test_the_cap_holds_for_claims_and_for_merges() -> None:
    small = Policy(identities_max=3)
    found = decided([EMAIL, CRM], {EMAIL: "1"}, small, **{"1": Standing(True, 3)})
    assert (found.claimed, found.unclaimed) == ([], [CRM])
    found = decided([EMAIL, CRM], {EMAIL: "1", CRM: "2"}, small,
                    **{"1": Standing(True, 2), "2": Standing(True, 2)})  # fmt: skip
    assert (found.lead, found.merged) == ("1", [])
    assert "one id for many people" in found.refused[0].reason


def test_by_hand_only() -> None:
    found = decided([EMAIL, CRM], {EMAIL: "1", CRM: "2"}, Policy(automatic=False),
                    **{"1": KNOWN, "2": KNOWN})  # fmt: skip
    assert "by hand only" in found.refused[0].reason


names = st.lists(
    st.sampled_from([EMAIL, OTHER, CRM, ("external:erp", "2"), PHONE, BROWSER, ("anonymous", "y")]),
    min_size=1, max_size=5, unique=True,
)  # fmt: skip


@given(
    named=names,
    owners=st.dictionaries(st.sampled_from([EMAIL, OTHER, CRM, PHONE, BROWSER]), st.sampled_from("123")),
    barred=st.sets(st.sampled_from(["12", "13", "23"])),
    most=st.integers(1, 8),
)  # fmt: skip
def test_whatever_is_decided_is_sound(
    named: list[Key], owners: dict[Key, str], barred: set[str], most: int
) -> None:
    standing = {
        lead: Standing(any(o == lead and is_anchor(k) for k, o in owners.items()),
                       sum(o == lead for o in owners.values()))
        for lead in set(owners.values())
    }  # fmt: skip
    named = sorted(named, key=[EMAIL, OTHER, CRM, ("external:erp", "2"), PHONE, BROWSER,
                               ("anonymous", "y")].index)  # fmt: skip
    owned = {k: o for k, o in owners.items() if k in named}
    policy = Policy(identities_max=most)
    found = decide(named, owned, standing, lambda a, b: "".join(sorted((a, b))) in barred, policy)
    together = {found.lead, *found.merged} - {None}
    assert together | {r.lead for r in found.refused} == set(owned.values())
    assert together.isdisjoint(r.lead for r in found.refused)
    assert found.lead is None or found.lead == min(together)  # type: ignore[type-var]
    assert set(found.claimed) | set(found.unclaimed) == set(named) - set(owned)
    # Nobody parted by hand comes together, and no weak identity joins two who are known without it.
    for one in together:
        for other in together:
            assert "".join(sorted((str(one), str(other)))) not in barred or one == other
    strongly = {o for k, o in owned.items() if is_anchor(k)}
    known = [i for i in together if standing[str(i)].is_known and i not in strongly]
    assert len(known) <= 1
    assert not (known and any(is_anchor(k) for k in named))
    if len(together) > 1:
        assert sum(standing[str(i)].identities for i in together) <= most


@given(
    events=st.lists(names, min_size=1, max_size=8),
    owners=st.dictionaries(st.sampled_from([EMAIL, OTHER, CRM, PHONE, BROWSER]), st.sampled_from("123")),
)  # fmt: skip
def test_a_batch_asks_for_all_it_needs(events: list[list[Key]], owners: dict[Key, str]) -> None:
    """`involved` names every lead whose standing is asked for, whatever the events of a batch do."""
    asked = involved(events, owners)
    standing = {
        lead: Standing(any(o == lead and is_anchor(k) for k, o in owners.items()),
                       sum(o == lead for o in owners.values()))
        for lead in asked
    }  # fmt: skip
    made = iter(range(100, 200))
    resolution = Resolution(dict(owners), standing, (), Policy(), lambda: str(next(made)))
    for n, named in enumerate(events):
        ranked = sorted(named, key=lambda k: (k[0] != "email", k[0][:1] == "a", k))
        event = LeadEvent(str(n), "/t", "t", START, START, None, (), MAIN, {}, {})
        lead, _ = resolution.place(event, ranked)
        assert resolution.root(lead) == lead
    # Everything named is owned, by a lead that is nobody else's part.
    for lead in resolution.claims.values():
        assert resolution.root(lead) == lead
        assert lead in resolution.new or lead in set(owners.values())
    for link in resolution.links:
        assert {link.survivor, link.merged} <= set(owners.values())
        assert link.survivor < link.merged


@pytest.mark.parametrize(
    ("text", "account"),
    [
        ("mail.eu.acme.co.uk", "acme.co.uk"), ("https://www.acme.co.uk/about?x=1", "acme.co.uk"),
        ("Acme.COM", "acme.com"), ("gmail.com", None), ("mailinator.com", None), ("co.uk", None),
        ("localhost", None), ("10.1.2.3", None), ("http://user@acme.io:80/", "acme.io"), ("", None),
        ("bücher.de", "xn--bcher-kva.de"), ("http://[::1]/", None), ("pm.me", None), ("\x00", None),
        ("a" * 5000, None), ("x." * 200 + "com", None),
    ],
)  # fmt: skip
def test_accounts_are_registered_domains(text: str, account: str | None) -> None:
    assert company_domain(text) == account


@pytest.mark.parametrize("text", ["acme.com (old)", "acme.com, Inc", "ac me.com", "n/a", "[::1]"])
def test_what_is_no_domain_is_no_account(text: str) -> None:
    assert company_domain(text) is None


def test_the_account_of_a_lead() -> None:
    assert account_of("ada@eu.acme.com", {"website": "other.com"}) == "acme.com"
    assert (
        account_of("ada@gmail.com", {"company_domain": 7, "website": "https://acme.com"})
        == "acme.com"
    )
    assert account_of(None, {"company_domain": "gmail.com"}) is None


@given(st.text(max_size=300))
def test_any_text_as_a_domain(text: str) -> None:
    found = company_domain(text)
    assert found is None or ("." in found and found == found.lower())


@given(st.dictionaries(st.sampled_from(["email", "external_ids", "phone", "anonymous_id"]),
                       st.one_of(st.none(), st.text(max_size=20), st.integers(), st.booleans(),
                                 st.lists(st.text(max_size=5), max_size=3),
                                 st.dictionaries(st.text(max_size=5),
                                                 st.one_of(st.text(max_size=5),
                                                           st.lists(st.text(max_size=5), max_size=3)),
                                                 max_size=3))))  # fmt: skip
def test_any_identities_are_read_or_refused(data: dict[str, Any]) -> None:
    """And only e-mail, external ids and anonymous id can be refused: never a phone."""
    read = identities_of(data)
    if isinstance(read, Defect):
        assert read.field.startswith(("data.email", "data.external_ids", "data.anonymous_id"))
        return
    for policy in (
        Policy(),
        Policy(fold_plus=True, fold_dots=True, region="US"),
        Policy(keep_case=True),
    ):
        found, warnings = keys_of(read, data, policy)
        assert len(set(found)) == len(found)
        assert all(isinstance(w, str) for w in warnings)
