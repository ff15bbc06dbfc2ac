# ruff: noqa: S101, S603, T201
"""Take the pictures in docs/images from a running demo: ``uv run python docs/screenshots.py``.

Starts `baton up --demo` in a directory of its own; with a login link as argument it looks there instead.
``--only subscriptions`` takes the picture of that page alone. Needs Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, StorageState, sync_playwright

IMAGES = Path(__file__).parent / "images"
DESKTOP = {"width": 1440, "height": 900}
WIDE = {"width": 1600, "height": 1000}
PHONE = {"width": 390, "height": 844}
LINK = re.compile(r"http://\S+/login#\S+")


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def demo() -> Iterator[str]:
    """Run the demo for a while, and give the link that logs in."""
    with tempfile.TemporaryDirectory(prefix="baton-pictures-") as data:
        up = subprocess.Popen(
            [
                sys.executable, "-m", "services.baton.cli", "up", "--demo", "--data", f"{data}/data",
                "--port", str(free_port()), "--notifier-port", str(free_port()),
            ],
            stdout=subprocess.PIPE, text=True,
            env=os.environ | {"BATON_SUBSCRIPTIONS_ALLOW": "127.0.0.0/8"},
        )  # fmt: skip
        assert up.stdout is not None
        try:
            yield next(m[0] for line in up.stdout if (m := LINK.search(line)))
        finally:
            up.terminate()
            up.wait(30)


def take(page: Page, name: str, *, whole: bool = False) -> None:
    """Take one picture, once nothing moves."""
    page.wait_for_load_state("networkidle" if page.url.endswith("/login") else "load")
    page.evaluate("document.fonts.ready")
    page.screenshot(path=IMAGES / f"{name}.png", full_page=whole, animations="disabled")
    print(f"docs/images/{name}.png")


def known_twice(page: Page, url: str) -> str:
    """Give the lead with the longest history among those who were two leads once."""
    found = page.request.get(f"{url}/v1/leads?limit=200").json()["items"]
    asked = [page.request.get(f"{url}/v1/leads/{lead['id']}").json() for lead in found]
    merged = [lead for lead in asked if lead["merged_from"]] or asked
    return max(merged, key=lambda lead: lead["journeys"][0]["sequence"])["id"]


def pictures(browser: Browser, link: str, _: StorageState | None) -> StorageState:
    """Take the pictures of most pages; gives the session, as the link works once."""
    url = link.partition("/login")[0]
    context = browser.new_context(viewport=WIDE, color_scheme="light")
    page = context.new_page()
    page.goto(f"{url}/login")
    take(page, "login")
    page.goto(link)
    page.wait_for_url(f"{url}/")
    page.wait_for_selector("[data-state=live]")
    take(page, "board")
    page.emulate_media(color_scheme="dark")
    take(page, "board-dark")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(DESKTOP)
    page.goto(f"{url}/funnel?by=industry")
    take(page, "funnel", whole=True)
    page.goto(f"{url}/leads")
    take(page, "leads")
    page.goto(f"{url}/leads/{known_twice(page, url)}")
    page.wait_for_selector(".story .record")
    take(page, "lead", whole=True)
    lead = page.url
    page.emulate_media(color_scheme="dark")
    take(page, "lead-dark")
    page.goto(f"{url}/funnel?by=industry")
    take(page, "funnel-dark")
    page.emulate_media(color_scheme="light")
    page.goto(f"{url}/alerts")
    page.click(".alert summary")
    take(page, "alerts")
    page.goto(f"{url}/handoffs")
    take(page, "handoffs", whole=True)
    page.goto(f"{url}/quarantine")
    page.click("tbody a")
    page.click("text=Try the source file")
    take(page, "quarantine")
    _simulation(page, url)
    page.set_viewport_size(PHONE)
    for name, address in (("board", url), ("lead", lead), ("leads", f"{url}/leads"),
                          ("funnel", f"{url}/funnel"), ("alerts", f"{url}/alerts"),
                          ("handoffs", f"{url}/handoffs")):  # fmt: skip
        page.goto(address)
        take(page, f"{name}-phone")
    session = context.storage_state()
    context.close()
    return session


def _simulation(page: Page, url: str) -> None:
    page.goto(f"{url}/simulation")
    text = page.locator("#text")
    text.fill(text.input_value().replace("score.total >= 60", "score.total >= 40"))
    page.click("button:has-text('Simulate')")
    page.wait_for_selector("#stages", timeout=60_000)
    page.wait_for_selector(".plot canvas")
    page.screenshot(
        path=IMAGES / "simulation.png", full_page=True, animations="disabled",
        clip={"x": 0, "y": 0, "width": 1440, "height": 1270},
    )  # fmt: skip
    print("docs/images/simulation.png")


@contextlib.contextmanager
def receiver() -> Iterator[str]:
    """Run what subscriptions post to: ``/503`` is in trouble, the rest takes everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(503 if self.path == "/503" else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def subscriptions(browser: Browser, link: str, session: StorageState | None) -> StorageState | None:
    """Take the picture of the subscriptions: one that hears, one in trouble, one paused."""
    url = link.partition("/login")[0]
    context = browser.new_context(
        viewport=DESKTOP, color_scheme="light", storage_state=session
    )  # fmt: skip
    page = context.new_page()
    page.goto(url if session else link)
    page.wait_for_url(f"{url}/")
    with receiver() as crm:
        for name, path in (("Warehouse", "/paused"), ("Billing", "/503"), ("CRM", "/baton")):
            page.goto(f"{url}/subscriptions")
            page.get_by_label("Name").fill(name)
            page.get_by_label("Address").fill(crm + path)
            page.get_by_label("Begins").select_option("beginning")
            page.get_by_role("button", name="Subscribe").click()
            page.locator("#secret").wait_for()
            if path == "/paused":
                page.get_by_role("button", name="Pause").click()
                page.wait_for_load_state()
        page.goto(f"{url}/subscriptions")
        rows = page.get_by_role("row")
        while (
            "failing" not in rows.filter(has_text="Billing").inner_text()
            or rows.filter(has_text="CRM").locator("[data-label=Behind]").inner_text() != "0"
        ):
            page.wait_for_timeout(500)
            page.reload()
        take(page, "subscriptions")
    context.close()
    return session


PARTS = {"pages": pictures, "subscriptions": subscriptions}


def main() -> None:
    """Take the pictures of the demo, or of the system whose login link is given."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not on the PATH.")
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("link", nargs="?", help="a login link of the system to look at")
    asked.add_argument("--only", choices=PARTS, help="take these alone")
    wanted = asked.parse_args()
    IMAGES.mkdir(exist_ok=True)
    where = contextlib.nullcontext(wanted.link) if wanted.link else demo()
    with where as link, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        session: StorageState | None = None
        for name, part in PARTS.items():
            if wanted.only in (None, name):
                session = part(browser, link, session)
        browser.close()


if __name__ == "__main__":
    main()
