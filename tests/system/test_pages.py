"""The pages in a real browser, on a really running system."""

from __future__ import annotations

import asyncio
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from services.contracts.access import SCOPES, create_key
from services.stage_service.app import create_app
from services.stage_service.settings import StageSettings
from tests.conftest import ROOT
from tests.system.browsing import PAGES, Running, browser, context, page, running, session
from tests.system.running import free_port

__all__ = ["browser", "context", "page", "running", "session"]
pytestmark = [pytest.mark.browser, pytest.mark.long]


def test_the_board_moves_a_card_without_a_reload(running: Running, page: Page) -> None:
    """A posted event moves the card while one looks, and the last moves say why."""
    email, lead_id = running.lead(
        name="Lara Live", company="Livewire", seniority="vp", employees=500
    )
    page.goto("/")
    page.wait_for_selector("[data-state=live]")
    card = page.locator(f"[id='card-{lead_id}-main']")
    expect(page.locator("[data-stage=lead]").locator(card)).to_be_visible()
    page.locator("#about-sql summary").click()
    expect(page.locator("#about-sql")).to_contain_text("business case")
    page.evaluate("window.sameDocument = true")
    running.tell("meeting.booked", email)
    moved = page.locator("[data-stage=sql]").locator(card)
    expect(moved).to_be_visible(timeout=3000)
    expect(moved).to_have_class(re.compile("moved"))
    expect(moved).to_contain_text("Livewire")
    expect(page.locator(".news li").first).to_contain_text(
        "a meeting with an Account Executive is booked"
    )
    expect(page.locator("#about-sql")).to_have_attribute("open", "")
    assert page.evaluate("window.sameDocument") is True


def test_a_paused_board_stands_still(running: Running, page: Page) -> None:
    """Live updates can be paused, and catch up afterwards."""
    email, lead_id = running.lead(company="Stillwater")
    page.goto("/")
    page.wait_for_selector("[data-state=live]")
    page.click("#live-button")
    page.wait_for_selector("[data-state=paused]")
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url))
    running.tell("demo.requested", email)
    expect(page.locator("[data-stage=lead]").locator(f"[id='card-{lead_id}-main']")).to_be_visible()
    assert asked == []
    page.click("#live-button")
    expect(page.locator("[data-stage=mql]").locator(f"[id='card-{lead_id}-main']")).to_be_visible()


def test_an_alert_is_acknowledged(running: Running, page: Page) -> None:
    """The alert shows its message and deliveries; one click acknowledges it, in place."""
    email, _ = running.lead(name="Alma Alert", company="Bell")
    running.tell("demo.requested", email)
    expect_alert = page.locator(".alert", has_text="Alma Alert")
    for _ in range(50):
        page.goto("/alerts?role=lead_agent&status=delivered")
        if expect_alert.count():
            break
    page.evaluate("window.sameDocument = true")
    expect_alert.locator("summary").click()
    expect(expect_alert.locator(".message")).to_contain_text("they asked for a demo")
    expect(expect_alert.locator("table")).to_contain_text("inbox")
    expect_alert.get_by_role("button", name="Snooze 1 h").click()
    expect(expect_alert).to_contain_text("Snoozed until")
    expect_alert.get_by_role("button", name="Mute lead").click()
    expect(expect_alert).to_contain_text("Muted: nothing more of this lead")
    expect_alert.get_by_role("button", name="Unmute lead").click()
    expect(expect_alert.get_by_role("button", name="Mute lead")).to_be_visible()
    expect_alert.get_by_role("button", name="Acknowledge").click()
    expect(expect_alert).to_contain_text("Acknowledged by browser")
    expect(expect_alert.get_by_role("button", name="Acknowledge")).to_have_count(0)
    assert page.evaluate("window.sameDocument") is True
    page.goto("/alerts?status=acknowledged")
    expect(expect_alert).to_be_visible()


def test_leads_are_found(running: Running, page: Page) -> None:
    """Typing finds leads, the address keeps the search, going back brings the whole page back."""
    _, lead_id = running.lead(name="Needle Haystack", company="Farm")
    running.lead(name="Somebody Else", company="Farm")
    page.goto("/leads")
    page.fill("input[name=q]", "needle")
    expect(page.locator("#leads tbody tr")).to_have_count(1)
    page.wait_for_url(re.compile("q=needle"))
    page.click("#leads tbody a")
    page.wait_for_url(re.compile(lead_id))
    page.go_back()
    expect(page.locator("#leads tbody tr")).to_have_count(1)
    expect(page.locator("header.top")).to_be_visible()
    page.goto("/leads?stage=closing&q=needle")
    expect(page.locator("#leads")).to_contain_text("Nobody fits")


def test_the_funnel_agrees_with_the_api(running: Running, page: Page) -> None:
    """The table shows the API's numbers, in groups too."""
    email, _ = running.lead(industry="<i>pumps</i>")
    running.tell("deal.won", email)
    page.goto("/funnel?by=industry")
    numbers = running.get("/v1/funnel", by="industry")
    rows = page.locator(".funnel tbody tr")
    expect(rows).to_have_count(len(numbers["stages"]))
    for row, stage in zip(rows.all(), numbers["stages"], strict=True):
        expect(row.locator("[data-label=Reached]")).to_have_text(str(stage["reached"]))
        expect(row.locator("[data-label=Skipped]")).to_have_text(str(stage["skipped"]))
    expect(page.get_by_role("row", name="<i>pumps</i>")).to_be_visible()


def test_dark_and_light(page: Page) -> None:
    """The system's theme holds until another is chosen, and the choice stays."""
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    page.goto("/funnel")
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert light != dark
    page.click("#theme")
    assert page.evaluate(ground) == light
    page.reload()
    assert page.evaluate(ground) == light
    page.click("#theme")
    page.emulate_media(color_scheme="light")
    page.reload()
    assert page.evaluate(ground) == dark


@pytest.mark.parametrize("width", [360, 1600])
def test_no_page_is_wider_than_the_screen(running: Running, page: Page, width: int) -> None:
    """On a phone and on a wide screen nothing sticks out."""
    email, lead_id = running.lead(name="W" * 120, company="M" * 200)
    running.tell("demo.requested", email, origin="o" * 300)
    page.set_viewport_size({"width": width, "height": 800})
    linked = running.tell("form.submitted", email, external_ids={"crm": f"{width}" * 60})["lead_id"]
    assert linked == lead_id
    for path in (*PAGES, f"/leads/{lead_id}", "/funnel?by=origin", "/accounts/corp.example"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


BASICS = """() => {
  const named = (e) => e.labels?.length || e.ariaLabel || e.getAttribute("aria-labelledby")
    || e.textContent.trim() || e.title || e.type === "hidden";
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  const levels = [...document.querySelectorAll("h1, h2, h3")].map((h) => Number(h.tagName[1]));
  return {
    nameless: [...document.querySelectorAll("input, textarea, button, a, summary")]
      .filter((e) => !named(e)).map((e) => e.outerHTML.slice(0, 90)),
    selects: [...document.querySelectorAll("select")].filter((e) => !e.labels.length).length,
    twice: ids.filter((id, at) => ids.indexOf(id) !== at),
    described: [...document.querySelectorAll("[aria-describedby], [aria-labelledby]")].flatMap((e) =>
      [e.getAttribute("aria-describedby"), e.getAttribute("aria-labelledby")])
      .filter((id) => id && !document.getElementById(id)),
    titles: levels.filter((level) => level === 1).length,
    skipped: levels.filter((level, at) => level > (levels[at - 1] ?? 0) + 1).length,
    heads: [...document.querySelectorAll("th")].filter((th) => !th.scope).length,
  };
}"""


def test_every_page_can_be_used_without_seeing_it(running: Running, page: Page) -> None:
    """Every control has a name, every id is one, headings skip no level, table heads say of what."""
    email, lead_id = running.lead(company="Unseen")
    running.tell("demo.requested", email)
    found: dict[str, Any] = {}
    for path in (*PAGES, f"/leads/{lead_id}", "/audit?actor=nobody", "/funnel?by=origin"):
        page.goto(path)
        told = page.evaluate(BASICS)
        if told != {"nameless": [], "selects": 0, "twice": [], "described": [], "titles": 1,
                    "skipped": 0, "heads": 0}:  # fmt: skip
            found[path] = told
    assert found == {}
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()


def test_the_pages_work_while_the_notifier_is_away(database_url: str) -> None:
    """Alerts say that the notifier does not answer; a lead's page shows all the rest."""
    with ThreadPoolExecutor(1) as thread:  # this one may have the browser's loop
        thread.submit(asyncio.run, _look_while_the_notifier_is_away(database_url)).result()


async def _look_while_the_notifier_is_away(database_url: str) -> None:
    settings = StageSettings(  # pyright: ignore[reportCallIssue]
        database_url=database_url, notifier_url=f"http://127.0.0.1:{free_port()}",
        playbook_files=[ROOT / "playbooks/sales.yaml"], team_file=ROOT / "playbooks/team.yaml",
    )  # fmt: skip
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        _, key = await create_key(app.state.house.pool, "test", SCOPES)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test",
            headers={"authorization": f"Bearer {key}"},
        ) as client:  # fmt: skip
            empty = await client.get("/")
            assert "No leads yet" in empty.text
            told = await client.post(
                "/v1/events", headers={"content-type": "application/cloudevents+json"},
                json={"specversion": "1.0", "id": "1", "source": "/t", "type": "demo.requested",
                      "data": {"email": "ada@corp.example", "name": "Ada Away"}},
            )  # fmt: skip
            lead_id = told.json()["results"][0]["lead_id"]
            alerts = await client.get("/alerts")
            assert alerts.status_code == 200
            assert "The notifier does not answer" in alerts.text
            lead = await client.get(f"/leads/{lead_id}")
            assert lead.status_code == 200
            assert "they asked for a demo" in lead.text
            assert "alerts are not shown" in lead.text
            refused = await client.post(f"/alerts/{uuid.uuid4()}/ack")
            assert refused.status_code == 503


def test_a_delivery_leaves_quarantine_by_two_clicks(running: Running, page: Page) -> None:
    """It is seen with its reason, tried, and discarded; a narrow screen holds it."""
    with running.client() as client:
        answer = client.post(
            "/webhooks/generic", json={"odd": "w" * 300, "email": "q@corp.example"}
        )
        assert answer.json()["quarantined"] == 1
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto("/quarantine")
    page.get_by_role("link", name="generic").first.click()
    expect(page.get_by_text("gives no type").first).to_be_visible()
    page.get_by_role("button", name="Try the source file as it is now").click()
    expect(page.get_by_text("1 item still amiss")).to_be_visible()
    # Nothing would be applied, so nothing is there to replay.
    expect(page.get_by_role("button", name="Replay")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_text("Discarded by")).to_be_visible()
    page.get_by_role("navigation").or_(page.locator(".crumbs")).get_by_role(
        "link", name="Quarantine"
    ).last.click()
    expect(page.get_by_role("heading", name="Quarantine")).to_be_visible()


def test_a_simulation_from_the_text_to_the_plots(running: Running, page: Page) -> None:
    """It is folded, shown beside today with plots and their tables, and leads to the leads."""
    email, lead_id = running.lead(name="Sim Ulated", employees=300)
    running.tell("webinar.attended", email)
    running.tell("content.downloaded", email)
    page.goto("/simulation")
    text = page.get_by_label("The playbook to try")
    text.fill(text.input_value().replace("score.total >= 60", "score.total >= 20"))
    page.get_by_role("button", name="Simulate", exact=True).click()
    expect(page.get_by_role("heading", name="Stages: today → candidate")).to_be_visible(
        timeout=60_000
    )
    # What differs is drawn; what does not is folded, and drawn as it is unfolded.
    differs = page.get_by_role("region", name="Alerts by role and day").locator(".plot:visible")
    expect(differs.locator("canvas")).to_be_visible()
    expect(differs).to_have_count(1)
    table = page.locator(f"#{differs.get_attribute('data-plots')}")
    page.locator(".plot-of", has=table).get_by_text("The numbers by day").click()
    expect(table).to_contain_text(f"{datetime.now(UTC):%Y-%m-%d}")
    folding = page.locator("details", has=page.locator(".plot")).first
    if folding.count():
        expect(folding.locator(".plot").first).not_to_be_visible()
        folding.locator("> summary").click()
        expect(folding.locator("canvas").first).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV", exact=True).click()
    assert lead_id in download.value.path().read_text()
    page.locator("#theme").click()
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    page.locator(f'a[href="/leads/{lead_id}"]').click()
    expect(page.get_by_role("heading", name="Sim Ulated")).to_be_visible()


def test_a_text_that_is_no_playbook_is_told_so(running: Running, context: BrowserContext) -> None:
    """The text stays, and the mistake is told with its line. (A refusal is a line on the console.)"""
    page = context.new_page()
    page.goto("/simulation")
    text = page.get_by_label("The playbook to try")
    text.fill(text.input_value().replace("score.total >= 60", "score.totl >= 60"))
    page.get_by_role("button", name="Simulate", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("undeclared reference to 'score.totl'")
    expect(page.get_by_label("The playbook to try")).to_have_value(re.compile("score.totl"))
