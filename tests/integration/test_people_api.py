"""Merged leads and accounts over HTTP: redirects, merges by hand, identities, what is shown."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from services.baton.embedded import EmbeddedPostgres
from services.stage_service.settings import StageSettings
from tests.integration.stage import Stage, fresh_database, running_stage
from tests.integration.wired import clean

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(postgres: EmbeddedPostgres) -> AsyncIterator[Stage]:
    """One stage service for the module; numbers without a country code are German."""
    with fresh_database(postgres) as url:
        async with running_stage(url, identity_phone_region="de") as it:
            yield it
        await clean(url)


def told(type: str, minute: int, **data: Any) -> dict[str, Any]:
    """A lead event as a tool sends it."""
    return {
        "specversion": "1.0", "id": str(uuid.uuid4()), "source": "/people", "type": type,
        "time": f"2026-01-05T09:{minute:02}:00Z", "data": data,
    }  # fmt: skip


class Person:
    """Made-up identities that no other test has."""

    def __init__(self) -> None:
        self.n = uuid.uuid4().hex[:8]
        self.email, self.crm = f"p{self.n}@co-{self.n}.example", {"crm": self.n}


async def merged(stage: Stage) -> tuple[Person, str, str]:
    """Two leads of one person that an event has merged; gives (person, survivor, merged id)."""
    who = Person()
    one, other, link = (
        await stage.send(told("lead.created", 0, email=who.email, name="Ada Ortiz", company="Co")),
        await stage.send(told("demo.requested", 5, external_ids=who.crm)),
        None,
    )
    link = await stage.send(told("page.viewed", 9, email=who.email, external_ids=who.crm))
    assert link[0]["lead_id"] == one[0]["lead_id"]
    return who, one[0]["lead_id"], other[0]["lead_id"]


async def test_the_old_id_still_answers(stage: Stage) -> None:
    """Reads redirect, writes act on the survivor; a chain leads to its end."""
    who, one, other = await merged(stage)
    for path in ("", "/timeline"):
        answer = await stage.client.get(f"/v1/leads/{other}{path}")
        assert answer.status_code == 308
        assert answer.headers["location"] == f"/v1/leads/{one}{path}"
        assert answer.json() == {"merged_into": one}
        assert answer.headers["cache-control"] == "no-store"
        followed = await stage.client.get(f"/v1/leads/{other}{path}", follow_redirects=True)
        assert followed.status_code == 200
    moved = await stage.client.post(
        f"/v1/leads/{other}/transitions", json={"to": "nurture", "reason": "later"}
    )
    assert moved.json()["lead_id"] == one
    listed = await stage.client.get("/v1/leads", params={"email": who.email})
    assert [i["id"] for i in listed.json()["items"]] == [one]
    older = await stage.client.post(
        f"/v1/leads/{other}/merge",
        json={"lead": (await stage.send(told("x", 1, email=Person().email)))[0]["lead_id"],
              "reason": "she said so"},
    )  # fmt: skip
    assert older.json()["lead_id"] == one


async def test_what_a_merged_lead_shows(stage: Stage) -> None:
    who, one, other = await merged(stage)
    lead = (await stage.client.get(f"/v1/leads/{one}")).json()
    assert [(i["kind"], i["value"], i["merged_from"]) for i in lead["identities"]] == [
        ("email", who.email, None), ("external:crm", who.n, other),
    ]  # fmt: skip
    [part] = lead["merged_from"]
    assert (part["lead_id"], part["survivor"], part["actor"]) == (other, one, None)
    assert part["reason"] == "page.viewed names both by e-mail and id in crm"
    assert lead["account"] == f"co-{who.n}.example"
    assert lead["email"] == who.email
    items = (await stage.client.get(f"/v1/leads/{one}/timeline")).json()["items"]
    assert [i["kind"] for i in items].count("event") == 3
    [merge] = [i for i in items if i["kind"] == "merge"]
    assert (merge["action"], merge["merged"], merge["survivor"]) == ("merged", other, one)


async def test_unmerge_over_http(stage: Stage) -> None:
    who, one, other = await merged(stage)
    for body, status in (
        ({"reason": "two people"}, 422),
        ({"reason": "two people", "lead": one}, 404),
        ({"reason": "two people", "lead": "nobody"}, 404),
        ({"reason": " ", "lead": other}, 422),
        ({"reason": "two people", "lead": other, "merge_id": other}, 422),
        ({"reason": "two people", "lead": other, "more": 1}, 422),
    ):
        refused = await stage.client.post(f"/v1/leads/{one}/unmerge", json=body)
        assert refused.status_code == status, (body, refused.text)
    # By the old id too: it is part of the survivor.
    done = await stage.client.post(
        f"/v1/leads/{other}/unmerge", json={"reason": "two people", "lead": other}
    )
    assert done.status_code == 200, done.text
    assert (await stage.client.get(f"/v1/leads/{other}")).status_code == 200
    lead = (await stage.client.get(f"/v1/leads/{one}")).json()
    assert lead["merged_from"] == []
    items = (await stage.client.get(f"/v1/leads/{other}/timeline")).json()["items"]
    assert [i["action"] for i in items if i["kind"] == "merge"] == ["merged", "unmerged"]
    assert [i for i in items if i["kind"] == "merge"][1]["reason"] == "two people"
    again = await stage.client.post(
        f"/v1/leads/{one}/unmerge", json={"reason": "two people", "lead": other}
    )
    assert again.status_code == 404
    # The same link again: refused, and the page says why.
    [link] = await stage.send(told("page.viewed", 20, email=who.email, external_ids=who.crm))
    assert "parted by hand" in link["warning"]
    session = await stage.client.get(f"/leads/{one}")
    assert "Not merged" in session.text
    assert "parted by hand" in session.text
    feed = (await stage.client.get("/v1/transitions", params={"limit": 1000})).json()["items"]
    mine = [i["type"] for i in feed if i.get("lead_id") == other]
    assert mine == ["baton.lead.merged.v1", "baton.lead.unmerged.v1"]


async def test_merging_by_hand_over_http(stage: Stage) -> None:
    [one, other] = await stage.send(
        told("lead.created", 0, email=Person().email),
        told("demo.requested", 1, email=Person().email),
    )
    a, b = one["lead_id"], other["lead_id"]
    nobody = str(uuid.UUID(int=1))
    for body, status in (
        ({"lead": a, "reason": "x"}, 409), ({"lead": nobody, "reason": "x"}, 404),
        ({"lead": "x", "reason": "x"}, 404), ({"lead": b}, 422), ({"lead": b, "reason": "  "}, 422),
    ):  # fmt: skip
        refused = await stage.client.post(f"/v1/leads/{a}/merge", json=body)
        assert refused.status_code == status, (body, refused.text)
    done = await stage.client.post(f"/v1/leads/{b}/merge", json={"lead": a, "reason": "one person"})
    assert done.json()["lead_id"] == min(a, b)
    again = await stage.client.post(f"/v1/leads/{b}/merge", json={"lead": a, "reason": "x"})
    assert again.status_code == 409
    lead = (await stage.client.get(f"/v1/leads/{min(a, b)}")).json()
    assert lead["merged_from"][0]["reason"] == "one person"
    assert lead["merged_from"][0]["actor"]
    assert lead["journeys"][0]["stage"] == "mql"


async def test_the_pages_of_a_merged_lead(stage: Stage) -> None:
    who, one, other = await merged(stage)
    moved = await stage.client.get(f"/leads/{other}")
    assert (moved.status_code, moved.headers["location"]) == (308, f"/leads/{one}")
    [colleague] = await stage.send(told("lead.created", 1, email=f"x@mail.co-{who.n}.example"))
    text = (await stage.client.get(f"/leads/{one}")).text
    for said in ("Known by", "Two leads became one", "Unmerge", "Others at this company", who.n):
        assert said in text
    assert colleague["lead_id"] in text
    page = (await stage.client.get(f"/accounts/co-{who.n}.example")).text
    assert one in page
    assert colleague["lead_id"] in page
    _, reader = await stage.new_key("read")
    seen = await stage.client.get(
        f"/leads/{one}", headers={"authorization": f"Bearer {reader}"}
    )  # fmt: skip
    assert "Unmerge" not in seen.text
    merge_id = (await stage.client.get(f"/v1/leads/{one}")).json()["merged_from"][0]["merge_id"]
    wrong = await stage.client.post(f"/leads/{one}/unmerge", data={"merge_id": one, "reason": "x"})
    assert wrong.status_code == 409
    assert "Not done" in wrong.text
    done = await stage.client.post(
        f"/leads/{one}/unmerge", data={"merge_id": merge_id, "reason": "two people"}
    )
    assert (done.status_code, done.headers["location"]) == (303, f"/leads/{one}")
    assert (await stage.client.get(f"/leads/{other}")).status_code == 200
    joined = await stage.client.post(
        f"/leads/{one}/merge", data={"lead": other, "reason": "one after all"}
    )
    assert joined.status_code == 303


async def test_accounts(stage: Stage) -> None:
    n = uuid.uuid4().hex[:6]
    await stage.send(
        told("lead.created", 0, email=f"a@mail.eu.{n}.co.uk", company="Acme"),
        told("demo.requested", 1, email=f"b@{n}.co.uk"),
        told("lead.created", 2, email=f"{n}@gmail.com", website=f"https://www.{n}.co.uk/about"),
        told("lead.created", 3, email=f"{n}@mailinator.com"),
    )
    account = (await stage.client.get(f"/v1/accounts/eu.{n}.co.uk")).json()
    assert (account["domain"], account["company"], account["leads"]) == (f"{n}.co.uk", "Acme", 3)
    assert account["stages"] == {"sales": {"lead": 2, "mql": 1}}
    assert len(account["items"]) == 3
    assert {i["account"] for i in account["items"]} == {f"{n}.co.uk"}
    listed = (await stage.client.get("/v1/leads", params={"account": f"{n}.co.uk"})).json()["items"]
    assert [i["id"] for i in listed] == [i["id"] for i in account["items"]]
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = (await stage.client.get(
            "/v1/accounts", params={"limit": "2", **({"cursor": cursor} if cursor else {})}
        )).json()  # fmt: skip
        found += [i["domain"] for i in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == sorted(set(found))
    assert f"{n}.co.uk" in found
    for path, status in (("gmail.com", 404), ("nobody.example", 404), ("x", 404)):
        assert (await stage.client.get(f"/v1/accounts/{path}")).status_code == status
    refused = await stage.client.get("/v1/leads", params={"account": "gmail.com"})
    assert refused.status_code == 404


async def test_a_phone_is_an_identity_and_an_attribute(stage: Stage) -> None:
    """Never refused; written in any way; shown as sent."""
    n = f"{uuid.uuid4().int % 10**7:07}"
    [one] = await stage.send(told("lead.created", 0, phone=f"030/{n}", name="Ada"))
    [other] = await stage.send(told("page.viewed", 1, phone=f"+49 30 {n}"))
    assert one["lead_id"] == other["lead_id"]
    lead = (await stage.client.get(f"/v1/leads/{one['lead_id']}")).json()
    assert lead["attributes"]["phone"] == f"+49 30 {n}"
    assert [(i["kind"], i["value"]) for i in lead["identities"]] == [("phone", f"+4930{n}")]
    [odd] = await stage.send(told("lead.created", 2, phone="ask reception", email=Person().email))
    assert odd["status"] == "applied"
    assert "phone" in odd["warning"]


async def test_several_ids_of_one_system_link(stage: Stage) -> None:
    """An alias: the old id and the new one are one person."""
    old, new = uuid.uuid4().hex, uuid.uuid4().hex
    [one] = await stage.send(told("page.viewed", 0, external_ids={"segment": old}))
    [other] = await stage.send(told("page.viewed", 1, external_ids={"segment": new}))
    [alias] = await stage.send(told("alias", 2, external_ids={"segment": [new, old]}))
    assert alias["lead_id"] == one["lead_id"] != other["lead_id"]
    lead = (await stage.client.get(f"/v1/leads/{one['lead_id']}")).json()
    assert lead["external_ids"] == {"segment": new}
    assert {i["value"] for i in lead["identities"]} == {old, new}


async def test_a_merge_asked_for_twice_happens_once(stage: Stage) -> None:
    """``Idempotency-Key``: the second attempt hears what the first was told."""
    [one, other] = await stage.send(
        told("lead.created", 0, email=Person().email),
        told("demo.requested", 1, email=Person().email),
    )
    a, b = sorted((one["lead_id"], other["lead_id"]))
    asked = {"json": {"lead": b, "reason": "one person"}, "headers": {"idempotency-key": f'"{b}"'}}
    first = await stage.client.post(f"/v1/leads/{a}/merge", **asked)
    again = await stage.client.post(f"/v1/leads/{a}/merge", **asked)
    assert (first.status_code, again.status_code) == (200, 200), again.text
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    merges = await stage.connection.fetchval(
        "SELECT count(*) FROM stage.merges WHERE merged = $1", uuid.UUID(b)
    )
    assert merges == 1


async def test_a_country_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="no country code"):
        StageSettings(
            _env_file=None,  # pyright: ignore[reportCallIssue]
            database_url="postgresql://nobody@127.0.0.1:9/none",
            identity_phone_region="Germany",
        )
