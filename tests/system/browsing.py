"""A running Baton and a real browser that is logged in to it, for tests of the pages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.conftest import ROOT, missing
from tests.system.running import RunningBaton, lead_event

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


@contextmanager
def watched(
    running: Running, context: BrowserContext, tolerated: Sequence[int] = ()
) -> Iterator[Page]:
    """Open a page that must not complain, break its own policy, or ask any other host.

    `tolerated` are answers that a test provokes: the browser complains of each.
    """
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
    assert [c for c in complaints if not any(str(status) in c for status in tolerated)] == []


@pytest.fixture
def page(running: Running, context: BrowserContext) -> Iterator[Page]:
    """A page that has nothing to complain of."""
    with watched(running, context) as page:
        yield page
