"""The pages in a real browser, on a really running system."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from services.contracts.access import SCOPES, SESSION_COOKIE, create_key
from services.contracts.links import ANSWER, Links
from services.stage_service.app import create_app
from services.stage_service.settings import StageSettings
from tests.conftest import ROOT, missing
from tests.system.running import RunningBaton, free_port, lead_event, until

pytestmark = [pytest.mark.browser, pytest.mark.long]

PAGES = (
    "/", "/funnel", "/leads", "/handoffs", "/alerts", "/people", "/playbook", "/quarantine",
    "/simulation", "/subscriptions", "/audit",
)  # fmt: skip


class Running(RunningBaton):
    """A running Baton, told about leads one event at a time."""

    def tell(
        self, type: str, email: str, ago: timedelta = timedelta(), **data: Any
    ) -> dict[str, Any]:
        """Post one lead event, and give its result."""
        time = (datetime.now(UTC) - ago).isoformat()
        return self.send(lead_event(uuid.uuid4().hex, type, email, time=time, **data))[0]

    def lead(self, ago: timedelta = timedelta(), **data: Any) -> tuple[str, str]:
        """Bring a new lead in, and give its e-mail address and id."""
        email = f"{uuid.uuid4().hex}@corp.example"
        return email, self.tell("lead.created", email, ago, **data)["lead_id"]

    def fresh_link(self) -> str:
        """A login link that nobody has used."""
        printed = subprocess.run(
            [
                Path(sys.executable).parent / "baton", "login", "--data", self.data,
                "--url", self.url,
            ],
            check=True, capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        return printed.stdout.strip()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`baton up` on free ports with a data directory of its own."""
    baton = Running(tmp_path_factory.mktemp("pages") / "data")
    baton.start()
    yield baton
    baton.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def session(running: Running, browser: Browser) -> Any:
    """The cookies of a browser that followed the login link."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(running.login_url)
    page.wait_for_url(f"{running.url}/")
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def context(running: Running, browser: Browser, session: Any) -> Iterator[BrowserContext]:
    """A logged-in browser window."""
    context = browser.new_context(base_url=running.url, storage_state=session)
    yield context
    context.close()


@pytest.fixture
def page(running: Running, context: BrowserContext) -> Iterator[Page]:
    """A page that must not complain, break its own policy, or ask any other host."""
    page = context.new_page()
    complaints: list[str] = []
    page.on(
        "console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda r: None if r.url.startswith(running.url) else complaints.append(f"asked {r.url}"),
    )
    yield page
    assert complaints == []


def test_without_a_session_every_page_leads_to_the_login(running: Running) -> None:
    """Nobody sees a lead without a session, and the way back to the page is kept."""
    with httpx.Client(base_url=running.url) as nobody:
        for path in (*PAGES[1:], "/leads/x?all", "/fragments/board"):
            answer = nobody.get(path)
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/login?next=%2F")
        assert nobody.get("/").headers["location"] == "/login"
        assert nobody.get("/", headers={"hx-request": "true"}).headers["hx-redirect"] == "/login"
        assert nobody.post("/leads/x/move").headers["location"] == "/login"


def test_the_login_link_works_once(running: Running, browser: Browser) -> None:
    """The link sets a cookie that scripts cannot read; a second use is refused and explained."""
    link = running.fresh_link()
    first = browser.new_context()
    page = first.new_page()
    page.goto(f"{running.url}/login?next=/funnel")
    page.goto(link.replace("/login#", "/login?next=/funnel#"))  # only the part after # is new
    page.wait_for_url(f"{running.url}/funnel")
    cookie = next(c for c in first.cookies() if c.get("name") == SESSION_COOKIE)
    assert cookie.get("httpOnly") is True
    assert cookie.get("sameSite") == "Strict"
    assert "bat_" not in page.evaluate("document.cookie")
    second = browser.new_context()
    page = second.new_page()
    page.goto(link)
    expect(page.get_by_role("alert")).to_contain_text("does not work any more")
    page.fill("[name=token]", running.fresh_link())
    page.click("button:has-text('Log in')")
    page.wait_for_url(f"{running.url}/")
    first.close()
    second.close()


def test_nobody_is_sent_to_another_site_after_the_login(running: Running) -> None:
    """`next` leads only to our own pages."""
    with httpx.Client(base_url=running.url) as client:
        for elsewhere in ("https://evil.example/", "//evil.example", "/\\evil.example", ""):
            token = running.fresh_link().partition("#")[2]
            answer = client.post("/login", data={"token": token, "next": elsewhere})
            assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_logging_out_ends_the_session(running: Running, browser: Browser) -> None:
    """After the log-out the cookie is gone and worth nothing."""
    context = browser.new_context(base_url=running.url)
    page = context.new_page()
    page.goto(running.fresh_link())
    page.wait_for_url(f"{running.url}/")
    held = {c["name"]: c["value"] for c in context.cookies()}  # type: ignore[typeddict-item]
    page.click("text=Log out")
    page.wait_for_url(f"{running.url}/login")
    assert context.cookies() == []
    # The gatekeeper may know a key for 5 s more: it must be gone from the database at once.
    with httpx.Client(base_url=running.url, cookies=held) as thief:
        until(lambda: thief.get("/leads").status_code != 200, "the session ends", 10)
    context.close()


def test_another_site_can_do_nothing_with_the_cookie(
    running: Running, context: BrowserContext
) -> None:
    """A form that another site sends with our cookie changes nothing."""
    email, lead_id = running.lead()
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        for path in (f"/leads/{lead_id}/move", f"/handoffs/{lead_id}/accept", "/logout", "/login"):
            answer = context.request.post(
                path, headers=headers, form={"to": "nurture", "reason": "x"}, max_redirects=0
            )
            assert answer.status in (303, 403)
    lead = running.get(f"/v1/leads/{lead_id}")
    assert (lead["email"], lead["journeys"][0]["stage"]) == (email, "lead")
    assert context.request.get("/leads").ok


def test_a_link_from_another_site_opens_the_page(running: Running, context: BrowserContext) -> None:
    """A lead's link in a mail or a chat works although the cookie is SameSite=Strict."""
    _, lead_id = running.lead(name="Mailed Lead")
    page = context.new_page()
    page.route(
        "http://mail.example/",
        lambda r: r.fulfill(
            content_type="text/html", body=f'<a href="{running.url}/leads/{lead_id}">open</a>'
        ),
    )
    page.goto("http://mail.example/")
    page.click("text=open")
    expect(page.get_by_role("heading", level=1)).to_have_text("Mailed Lead")


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


def test_pages_keep_their_promises_to_the_browser(
    running: Running, context: BrowserContext
) -> None:
    """Strict policy on every page, assets kept for good under their content's name, errors as pages."""
    for path in (*PAGES, "/login", "/nowhere"):
        answer = context.request.get(path, headers={"accept": "text/html"})
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text()):
            kept = context.request.get(asset)
            assert kept.ok
            assert "immutable" in kept.headers["cache-control"]
        assert "<style" not in answer.text()
        assert ' style="' not in answer.text()
    assert context.request.get("/nowhere", headers={"accept": "text/html"}).status == 404
    assert context.request.get("/nowhere", headers={"accept": "*/*"}).json()["status"] == 404
    assert context.request.get("/static/x/../../routes.py").status == 404


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
