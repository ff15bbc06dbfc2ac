"""The page of a playbook in a real browser, on a really running system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.system.browsing import Running, browser, context, running, session, watched

__all__ = ["browser", "context", "running", "session"]  # fixtures

pytestmark = [pytest.mark.browser, pytest.mark.long]

PICTURES = os.environ.get("BATON_PICTURES")
"""A directory for pictures of the page, to be looked at."""
GATED = (
    "    responsible: [lead_agent]\n    alerts",
    "    responsible: [lead_agent]\n    gate: {require: [lead.phone]}\n    alerts",
)


@pytest.fixture
def page(running: Running, context: BrowserContext) -> Iterator[Page]:
    """A page that must not complain but of what was refused, nor ask any other host."""
    with watched(running, context, (412, 422)) as page:
        yield page


def picture(page: Page, name: str) -> None:
    """Keep a picture where one is wanted."""
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def test_a_text_is_tried_published_scheduled_and_rolled_back(running: Running, page: Page) -> None:
    """A mistake has its line, a change its sentence and its number; nobody overwrites another unseen."""
    for n in range(3):
        running.tell("demo.requested", f"l{n}@corp.example", company="Corp")
    page.goto("/")
    page.get_by_role("link", name="Playbook", exact=True).click()
    expect(page.get_by_role("heading", name="Sales playbook version 1")).to_be_visible()
    expect(page.get_by_role("img", name="Sales playbook")).to_be_visible()
    area = page.get_by_label("The playbook, as YAML")
    text = area.input_value()
    picture(page, "playbook")

    area.fill(text.replace("lead.employees >= 200", "lead.employes >= 200"))
    page.get_by_role("button", name="See what it changes").click()
    line = text[: text.index("lead.employees >= 200")].count("\n") + 1
    expect(page.get_by_role("status")).to_contain_text(f"Line {line}, column")
    expect(page.get_by_role("status")).to_contain_text("Did you mean 'lead.employees'?")
    expect(page.get_by_role("button", name="Publish on top")).to_have_count(0)
    picture(page, "playbook-mistake")

    gated = text.replace(*GATED, 1)
    area.fill(gated)
    page.get_by_role("button", name="See what it changes").click()
    tried = page.get_by_role("status")
    expect(tried).to_contain_text("Lead Qualification (mql) now needs the lead's phone")
    expect(tried).to_contain_text("3 open journeys no longer qualify, of 3 in Lead Qualification.")
    picture(page, "playbook-tried")
    page.get_by_label("Why", exact=True).first.fill("We call first")
    page.get_by_role("button", name="Publish on top of version 1").click()
    expect(page.get_by_role("heading", name="Sales playbook version 2")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("Version 2 of sales is live since")
    newest = page.locator(".versions > li").first
    expect(newest).to_contain_text("We call first")
    expect(newest).to_contain_text("now needs the lead's phone")

    # What somebody else published since is not overwritten.
    area.fill(gated.replace("points: 25", "points: 30"))
    page.get_by_role("button", name="See what it changes").click()
    headers = {
        "authorization": f"Bearer {running.key}",
        "content-type": "application/yaml",
        "if-match": "*",
    }
    other = gated.replace("points: 25", "points: 35")
    httpx.put(
        f"{running.url}/v1/playbooks/sales", content=other, headers=headers
    ).raise_for_status()
    page.get_by_role("button", name="Publish on top of version 2").click()
    expect(page.get_by_role("alert")).to_contain_text("version 3 of the playbook 'sales' is active")
    expect(area).to_have_value(gated.replace("points: 25", "points: 30"))

    page.goto("/playbook")
    area.fill(gated)
    page.get_by_role("button", name="See what it changes").click()
    page.get_by_label("Begins to hold (UTC)").fill("2099-01-01T08:00")
    page.get_by_role("button", name="Publish on top of version 3").click()
    expect(page.get_by_role("heading", name="To be published")).to_be_visible()
    picture(page, "playbook-scheduled")
    page.get_by_role("button", name="Call off").click()
    expect(page.get_by_role("heading", name="To be published")).to_have_count(0)

    first = page.locator(".versions > li").last
    first.get_by_role("link", name="Back to version 1").click()
    way = page.get_by_role("region", name="Back to version 1")
    expect(way).to_contain_text("needs the lead's phone")
    expect(page.get_by_role("heading", name="Sales playbook version 3")).to_be_visible()
    picture(page, "playbook-back")
    way.get_by_label("Why", exact=True).fill("Too strict")
    way.get_by_role("button", name="Publish version 1 again").click()
    expect(page.get_by_role("status")).to_contain_text("Version 4 of sales is live since")
    expect(page.get_by_role("heading", name="Sales playbook version 4")).to_be_visible()
    expect(page.locator(".versions > li").first).to_contain_text("the text of version 1")
    expect(area).to_have_value(text)
    page.set_viewport_size({"width": 390, "height": 844})
    picture(page, "playbook-phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
