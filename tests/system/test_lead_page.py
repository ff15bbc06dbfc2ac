"""The page of a lead in a real browser, on a really running system: why it stands there, and what is done."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Browser, Page, expect

from services.contracts.links import ANSWER, Links
from tests.system.browsing import Running, browser, context, page, running, session
from tests.system.running import lead_event, until

__all__ = ["browser", "context", "page", "running", "session"]
pytestmark = [pytest.mark.browser, pytest.mark.long]


def test_the_lead_page_says_why(running: Running, page: Page) -> None:
    """The score is taken apart, skipped stages show, a late event strikes out what no longer holds."""
    email, lead_id = running.lead(
        name="Wanda <b>Why</b>",
        company="<script>alert(1)</script>",
        employees=300,
        ago=timedelta(days=5),
    )
    running.tell("meeting.booked", email, timedelta(days=2))
    page.goto(f"/leads/{lead_id}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Wanda <b>Why</b>")
    expect(page.locator(".lead-head")).to_contain_text("<script>alert(1)</script>")
    expect(page.locator(".stepper .skipped")).to_contain_text("Lead Qualification")
    expect(page.locator(".stepper .current")).to_contain_text("Discovery")
    expect(page.get_by_role("region", name="Score")).to_contain_text("200 employees or more")
    expect(page.locator(".record .explanation")).to_contain_text(
        "Moved from Lead Generation to Discovery"
    )
    page.click("details.why summary")
    expect(page.locator("details.why")).to_contain_text("meeting-booked")
    running.tell("lead.marketing_qualified", email, timedelta(days=3))
    running.tell("deal.lost", email)
    page.reload()
    expect(page.locator(".record.replaced s")).to_contain_text("Skipped: Lead Qualification")
    expect(page.locator(".story .badge.late").first).to_be_visible()
    expect(page.locator(".stepper .skipped")).to_have_count(0)
    expect(page.locator(".notice.warn")).to_contain_text("Held before Closed-Lost: reason missing")


def test_a_lead_is_moved_by_hand(running: Running, page: Page) -> None:
    """A move needs a reason and shows it; one that cannot be made says why beside the form."""
    email, lead_id = running.lead(company="Handmade")
    running.tell("demo.requested", email)
    page.goto(f"/leads/{lead_id}")
    page.select_option("select[name=to]", "nurture")
    page.click("button:has-text('Move')")
    assert page.evaluate("document.querySelector('[name=reason]').validity.valueMissing")
    page.fill("[name=reason]", "wants to wait for spring")
    page.click("button:has-text('Move')")
    expect(page.get_by_role("status")).to_contain_text("Moved to Nurture")
    expect(page.locator(".record").first).to_contain_text(
        "moved it by hand: wants to wait for spring"
    )
    expect(page.locator(".notice.warn")).to_contain_text("Off the path: Nurture")
    refused = page.request.post(f"/leads/{lead_id}/move", form={"to": "nurture", "reason": "again"})
    assert refused.status == 409
    assert "Not moved:" in refused.text()
    assert "is in Nurture already" in refused.text()


def test_a_merge_is_seen_and_undone(running: Running, page: Page) -> None:
    """The lead's page says who became one and why, and parts them again; the old address leads there."""
    name = f"Merge Ltd {uuid.uuid4().hex[:6]}"
    domain = f"{uuid.uuid4().hex[:8]}.example"
    crm = {"crm": uuid.uuid4().hex}
    email = f"ada@{domain}"
    one = running.tell("lead.created", email, company=name, name="Ada Ortiz")["lead_id"]
    running.tell("lead.created", f"ben@mail.{domain}", company=name, name="Ben Weiss")
    event = lead_event(uuid.uuid4().hex, "demo.requested", email, external_ids=crm)
    del event["data"]["email"]
    other = running.send(event)[0]["lead_id"]
    running.tell("form.submitted", email, external_ids=crm)
    page.goto(f"/leads/{other}")
    page.wait_for_url(f"{running.url}/leads/{one}")
    expect(page.locator("#who").locator("..")).to_contain_text("form.submitted names both by")
    expect(page.locator(".record.merge").first).to_contain_text("Merged with lead")
    expect(page.locator("section", has_text="Others at this company").last).to_contain_text("Ben")
    page.click(f"text=All of {domain}")
    expect(page.locator("h1")).to_contain_text(name)
    expect(page.locator("#leads")).to_contain_text("Ada Ortiz")
    page.go_back()
    form = page.locator("form", has_text="Unmerge")
    form.locator("[name=reason]").fill("two people who share a desk")
    form.locator("button").click()
    expect(page.locator(".record.merge").first).to_contain_text("Parted from lead")
    expect(page.locator("form", has_text="Unmerge")).to_have_count(0)
    page.goto(f"/leads/{other}")
    page.wait_for_url(f"{running.url}/leads/{other}")


def test_a_handoff_is_accepted_and_another_rejected(running: Running, page: Page) -> None:
    """What waits shows with its deadline; the buttons on the list and on the lead answer it."""
    email, lead_id = running.lead(name="Hanna Handed", company="Handed Over")
    running.tell("meeting.booked", email)
    page.goto("/")
    card = page.locator(f"[id='card-{lead_id}-main']")
    expect(card.locator(".badge.waits")).to_contain_text("Waiting")
    page.goto("/handoffs?role=ae")
    row = page.locator("tbody tr", has_text="Handed Over")
    expect(row).to_contain_text("in 4 h")
    row.get_by_role("button", name="Accept").click()
    expect(page.locator("tbody tr", has_text="Handed Over")).to_have_count(0)
    page.goto(f"/leads/{lead_id}")
    expect(page.locator(".handoff-line.accepted")).to_contain_text("browser accepted it after")
    running.tell("deal.won", email)
    page.reload()
    offer = page.locator(".offer")
    expect(offer).to_contain_text("to accept")
    offer.get_by_text("Reject…").click()
    offer.get_by_label("Handover notes are missing").check()
    offer.get_by_role("button", name="Reject").click()
    expect(page.locator(".handoff-line.rejected")).to_contain_text("Handover notes are missing")
    expect(page.locator(".offer")).to_contain_text("offer no. 2")


@pytest.mark.parametrize("width", [360, 1600])
def test_an_answer_link_is_used_without_a_login(
    running: Running, browser: Browser, width: int
) -> None:
    """Whoever has the link sees what it is about, rejects it with a reason, and hears it once more."""
    email, lead_id = running.lead(name="Linus Linked", company="L" * 150)
    running.tell("meeting.booked", email)
    [item] = running.get("/v1/handoffs", lead_id=lead_id)["items"]
    links = Links(ANSWER, (running.data / "link-key").read_text().strip(), running.url, 600)
    token = links.token(uuid.UUID(item["id"]), item["person"]["id"], datetime.now(UTC))
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text))
    page.goto(links.url(token))
    expect(page.get_by_role("heading", level=1)).to_have_text("Do you take it?")
    page.get_by_text("Reject, with a reason").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_label("No budget").check()
    page.get_by_role("button", name="Reject").click()
    expect(page.get_by_role("status")).to_contain_text("with your reason: No budget")
    page.goto(links.url(token))
    expect(page.get_by_role("heading", level=1)).to_have_text("Answered already")
    assert running.get(f"/v1/handoffs/{item['id']}")["reason"] == "No budget"
    assert complaints == []
    context.close()


def test_a_lead_says_what_would_move_it_and_what_it_was_before(
    running: Running, page: Page
) -> None:
    """Why not, clause by clause with more than colour; and the lead and the funnel of a moment ago."""
    email, id = running.lead(timedelta(days=2), employees=900, name="Grace Meyer", phone="+49 30 1")
    before = datetime.now(UTC)
    until(lambda: datetime.now(UTC) - before > timedelta(seconds=1.1), "a second to pass")
    running.tell("meeting.booked", email)
    page.goto(f"/leads/{id}")
    why = page.get_by_role("region", name="What would move it")
    expect(
        why.get_by_text("It moves to Proposal & Negotiation on “Proposal sent”.")
    ).to_be_visible()
    expect(page.locator(".stepper .current")).to_contain_text("Discovery & Solutioning")
    moment = f"{before + timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}"
    page.get_by_label("As of (UTC)").fill(moment)
    page.get_by_role("button", name="Look back").click()
    expect(page.get_by_text("You look at the past:")).to_be_visible()
    expect(page.locator(".stepper .current")).to_contain_text("Lead Generation")
    expect(page.get_by_role("button", name="Move", exact=True)).to_have_count(0)
    why.get_by_text("Each rule, clause by clause").click()
    rule = why.locator(".rules > li", has_text="rule score-reached")
    expect(rule.locator(".clauses li")).to_contain_text("✗")
    expect(rule.locator(".clauses li")).to_contain_text("score.total >= 60")
    expect(rule.locator(".clauses li")).to_contain_text("score: 25 points")
    page.goto(f"/funnel?at={moment}")
    expect(page.get_by_text("You look at the past:")).to_be_visible()
    then = page.locator("td[data-label=Reached]").nth(2).inner_text()
    page.get_by_role("link", name="Back to now").click()
    expect(page.locator("td[data-label=Reached]").nth(2)).not_to_have_text(then)
