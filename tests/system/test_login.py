"""Who is let in by a browser, and what the pages promise it, on a really running system."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from services.contracts.access import SESSION_COOKIE
from tests.system.browsing import PAGES, Running, browser, context, running, session
from tests.system.running import until

__all__ = ["browser", "context", "running", "session"]
pytestmark = [pytest.mark.browser, pytest.mark.long]


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
