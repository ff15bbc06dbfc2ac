"""The pages of subscriptions in a real browser, on a really running system, with a real receiver."""

from __future__ import annotations

import base64
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import standardwebhooks
from playwright.sync_api import BrowserContext, Page, expect

from tests.system.browsing import Running, browser, context, session, watched
from tests.system.running import until

__all__ = ["browser", "context", "session"]  # fixtures

pytestmark = [pytest.mark.browser, pytest.mark.long]

PICTURES = os.environ.get("BATON_PICTURES")
"""A directory for pictures of the pages, to be looked at."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`baton up` that may deliver to this machine."""
    baton = Running(
        tmp_path_factory.mktemp("pages") / "data", {"BATON_SUBSCRIPTIONS_ALLOW": "127.0.0.0/8"}
    )
    baton.start()
    yield baton
    baton.stop()


@pytest.fixture
def page(running: Running, context: BrowserContext) -> Iterator[Page]:
    """A page that must not complain but of what was refused, nor ask any other host."""
    with watched(running, context, (422,)) as page:
        yield page


class Receiver:
    """A CRM: keeps what it is sent, and answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.taken: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if outer.status == 200:
                    outer.taken.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(b"<script>alert(1)</script>")

            def log_message(self, *_: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token={base64.b16encode(b'abc').decode()}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    it = Receiver()
    yield it
    it.server.shutdown()
    it.server.server_close()


def picture(page: Page, name: str) -> None:
    """Keep a picture where one is wanted."""
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def test_a_subscription_from_its_form_to_its_end(
    running: Running, page: Page, receiver: Receiver
) -> None:
    """Made, tested, failed, resent, its secret replaced, paused, resumed, removed: all by hand."""
    page.goto("/subscriptions")
    expect(page.get_by_role("heading", name="Nobody hears of what happens here")).to_be_visible()
    page.get_by_label("Name").fill("CRM")
    page.get_by_label("Address").fill(receiver.url)
    page.get_by_label("Filter").fill("lead.employes > 3")
    page.get_by_role("button", name="Subscribe").click()
    expect(page.get_by_role("alert")).to_contain_text("Did you mean 'lead.employees'?")
    expect(page.get_by_label("Address")).to_have_value(receiver.url)
    picture(page, "subscriptions-refused")
    page.get_by_label("Filter").fill("lead.employees > 3")
    page.get_by_role("button", name="Subscribe").click()
    secret = page.locator("#secret").inner_text()
    assert secret.startswith("whsec_")
    picture(page, "subscription-new")

    page.get_by_role("button", name="Send a test event").click()
    expect(page.get_by_role("heading", name="baton.test.v1")).to_be_visible()
    until(lambda: receiver.taken, "the test event")
    headers, body = receiver.taken[0]
    standardwebhooks.Webhook(secret).verify(body, headers)
    here = page.url
    until(lambda: page.goto(here) and page.get_by_text("delivered").count(), "it is recorded")
    expect(page.get_by_text("<script>alert(1)</script>")).to_be_visible()  # as text
    picture(page, "delivery")

    receiver.status = 503
    running.tell("demo.requested", "ada@corp.example", employees=250, name="Ada", company="Corp")
    page.get_by_role("link", name="CRM").click()
    until(
        lambda: page.reload() and page.get_by_text("answered 503").count(), "the failure is shown"
    )
    picture(page, "subscription-failing")
    page.locator("table a", has_text="stage.transitioned.v1").first.click()
    receiver.status = 200
    page.get_by_role("button", name="Resend").click()
    until(lambda: len(receiver.taken) == 2, "the resent one")
    assert b"ada@corp.example" in receiver.taken[1][1]

    page.get_by_role("link", name="CRM").click()
    page.get_by_role("button", name="Replace the secret").click()
    expect(page.locator("#secret")).not_to_have_text(secret)
    expect(page.get_by_text("signs on until")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("Nothing is sent")).to_be_visible()
    expect(page.locator("#secret")).to_have_count(0)
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("Replay from a place").click()
    page.get_by_label("After a position").fill("nonsense")
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_role("alert")).to_contain_text("neither a position nor a time")
    page.goto("/subscriptions")
    expect(page.get_by_role("row", name="CRM")).to_contain_text("on")
    assert receiver.url.partition("?")[2] not in page.content()
    picture(page, "subscriptions")
    page.get_by_role("link", name="CRM").click()
    page.get_by_text("Remove", exact=True).click()
    page.get_by_role("button", name="Remove CRM").click()
    expect(page.get_by_role("heading", name="Nobody hears of what happens here")).to_be_visible()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_pages_fit_narrow_and_wide_windows(
    running: Running, page: Page, receiver: Receiver, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    with running.client() as client:
        made = client.post(
            "/v1/subscriptions", json={"name": f"W{width}", "url": receiver.url}
        ).json()
        client.post(f"/v1/subscriptions/{made['id']}/test", params={"wait": 20})
    for path in ("/subscriptions", f"/subscriptions/{made['id']}"):
        page.goto(path)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, (path, wide)
        picture(
            page, f"{path.strip('/').partition('/')[0]}-{'one-' * (path.count('/') > 1)}{width}"
        )
    with running.client() as client:
        client.delete(f"/v1/subscriptions/{made['id']}").raise_for_status()
